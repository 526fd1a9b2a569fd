//! What tierbox puts into a machine: the timer that ends it, a user without rights, and a closed door to the metadata service.

use std::net::Ipv4Addr;
use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::call::shown;
use crate::door::{Door, line};

/// The user that commands run as where the profile names none.
pub(crate) const USER: &str = "tierbox";

/// Ends the machine when nobody renewed it: what `/run/tierbox/until` says is compared with the machine's own uptime, so that no clock
/// has to be right. After a reboot it begins anew.
const TIMER: &str = r#"#!/bin/sh
# tierbox: ends this machine when nobody renews it.
umask 077
mkdir -p /run/tierbox /var/lib/cloud/scripts/per-boot
cat >/var/lib/cloud/scripts/per-boot/tierbox-timer <<'END'
#!/bin/sh
umask 077
mkdir -p /run/tierbox
# One of them is enough, whoever starts it first.
mkdir /run/tierbox/timer 2>/dev/null || exit 0
read -r up rest </proc/uptime
echo $((${up%.*}+@LIFE@)) >/run/tierbox/until
setsid sh -c 'missed=0
while :; do
  read -r up rest </proc/uptime
  until=
  read -r until </run/tierbox/until
  if [ -n "$until" ]; then missed=0; else missed=$((missed+1)); until=999999999; fi
  if [ "${up%.*}" -ge "$until" ] || [ $missed -gt 3 ]; then shutdown -h now || poweroff; sleep 30; poweroff -f; fi
  sleep 2
done' </dev/null >/dev/null 2>&1 &
END
chmod 700 /var/lib/cloud/scripts/per-boot/tierbox-timer
/var/lib/cloud/scripts/per-boot/tierbox-timer
"#;

/// What a machine runs at its first boot. It lives so long unless somebody renews it.
pub(crate) fn user_data(life: Duration) -> String {
    TIMER.replace("@LIFE@", &life.as_secs().to_string())
}

/// Makes the machine ready, and tells what it found, as `key=value` lines.
const PREPARE: &str = r#"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; LC_ALL=C; export PATH LC_ALL
want=@USER@
if [ "$want" = tierbox ] && ! id tierbox >/dev/null 2>&1; then
  shell=/bin/bash; [ -x $shell ] || shell=/bin/sh
  useradd --create-home --user-group --shell $shell tierbox || { echo 'failed=the user tierbox cannot be made'; exit 0; }
fi
uid=$(id -u "$want" 2>/dev/null) || { echo "failed=there is no user $want"; exit 0; }
echo "uid=$uid"
# The agent may answer before the machine has run its user data, and some images run none.
[ -e /run/tierbox/until ] || (
@TIMER@
)
[ -e /run/tierbox/until ] && echo timer=1
# Who is in these groups has the machine.
for group in $(id -Gn "$want" 2>/dev/null); do
  case $group in docker|lxd|incus|incus-admin|libvirt|disk) echo "rights=the group $group";; esac
done
if [ "$uid" = 0 ]; then echo rights=root
elif command -v sudo >/dev/null; then
  setpriv --reuid="$want" --regid="$(id -g "$want")" --init-groups sudo -n true 2>/dev/null && echo rights=sudo
fi
by=
if command -v nft >/dev/null; then
  nft -f - 2>/dev/null <<'END' && by=nftables
table inet tierbox
delete table inet tierbox
table inet tierbox {
  chain metadata {
    type filter hook output priority -150; policy accept;
    meta skuid != 0 ip daddr 169.254.169.254 reject
    meta skuid != 0 ip6 daddr fd00:ec2::254 reject
  }
}
END
fi
if [ -z "$by" ] && command -v iptables >/dev/null; then
  rule='OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT'
  { iptables -w -C $rule || iptables -w -I $rule; } 2>/dev/null && by=iptables
fi
# By routes too, so that nobody even finds a way: those of other clouds are asked for as well.
while ip rule del pref 117 2>/dev/null; do :; done
for address in 169.254.169.254 169.254.170.2 100.100.100.200; do
  ip rule add pref 117 uidrange 1-4294967294 to $address/32 prohibit 2>/dev/null && routed=1
done
ip -6 rule del pref 117 2>/dev/null; ip -6 rule add pref 117 uidrange 1-4294967294 to fd00:ec2::254/128 prohibit 2>/dev/null
[ -n "$by" ] || [ -z "$routed" ] || by='a routing rule'
echo "metadata=$by"
@WALL@
ask() { if command -v curl >/dev/null; then "$@" curl -s -o /dev/null -m 3 http://169.254.169.254/
  else "$@" python3 -c 'import socket;socket.create_connection(("169.254.169.254",80),3)' 2>/dev/null; fi; }
ask && echo control=1
if [ "$uid" != 0 ]; then ask setpriv --reuid="$uid" --regid=65534 --clear-groups -- || echo closed=1; fi
"#;

/// Closes the network to all users but those of the system, whose services the SSM agent needs: a second wall inside of that which
/// stands around the machine. @GATEWAY@ is what stays in reach, or nothing.
const WALL: &str = r#"if [ "$uid" != 0 ]; then
  who=1000-4294967294; [ "$uid" -ge 1000 ] || who="{ $uid, 1000-4294967294 }"
  gate=@GATEWAY@
  names=$(sed -n 's/^nameserver[[:space:]]*//p' /etc/resolv.conf | head -n 3)
  for family in -4 -6; do
    while ip $family rule del pref 118 2>/dev/null; do :; done
    while ip $family rule del pref 119 2>/dev/null; do :; done
  done
  for range in $uid-$uid 1000-4294967294; do
    # A query goes to the gateway whichever resolver it names, and has to have a way first.
    [ -z "$gate" ] || for to in $gate $names; do
      case $to in 127.*|*:*) ;; *) ip rule add pref 118 uidrange $range to $to/32 lookup main 2>/dev/null;; esac
    done
    ip rule add pref 119 uidrange $range prohibit 2>/dev/null && wall='routing rules'
    ip -6 rule add pref 119 uidrange $range prohibit 2>/dev/null
  done
  if command -v nft >/dev/null; then
    if [ -z "$gate" ]; then rules="meta skuid $who meta l4proto { tcp, udp } th dport 53 reject
      meta skuid $who oifname != \"lo\" reject"
    else rules="meta skuid $who oifname != \"lo\" ip daddr != $gate reject
      meta skuid $who oifname != \"lo\" meta nfproto ipv6 reject"; fi
    nft -f - 2>/dev/null <<END && wall="${wall:+$wall and }nftables"
table inet tierbox_wall
delete table inet tierbox_wall
table inet tierbox_wall {
  chain wall {
    type filter hook output priority 10; policy accept;
    $rules
  }
}
END
    if [ -n "$gate" ]; then
      nft -f - 2>/dev/null <<END && echo names=1
table ip tierbox_names
delete table ip tierbox_names
table ip tierbox_names {
  chain guard {
    type filter hook prerouting priority -300; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }
  chain names {
    type nat hook output priority -100; policy accept;
    meta skuid $who udp dport 53 dnat to $gate
    meta skuid $who tcp dport 53 dnat to $gate
  }
  chain back {
    type nat hook postrouting priority 100; policy accept;
    oifname != "lo" ip saddr 127.0.0.0/8 masquerade
  }
}
END
      # A resolver on loopback is asked from loopback, whence nothing goes out by itself.
      case $names in 127.*) echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet;; esac 2>/dev/null
    fi
  fi
  echo "wall=$wall"
fi"#;

/// How much of the network is closed inside of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wall {
    /// Nothing but metadata.
    None,
    /// Everything.
    Whole,
    /// Everything but the gateway at this address, which answers queries.
    Gate(Ipv4Addr),
}

impl Wall {
    fn script(self) -> String {
        let gate = match self {
            Self::None => return String::new(),
            Self::Whole => String::new(),
            Self::Gate(address) => address.to_string(),
        };
        WALL.replace("@GATEWAY@", &gate)
    }
}

/// The script that makes a machine ready for a user, and lets it live so long.
pub(crate) fn prepare(user: &str, wall: Wall, life: Duration) -> String {
    let mut quoted = String::from("'");
    quoted.push_str(&user.replace('\'', "'\\''"));
    quoted.push('\'');
    PREPARE.replace("@TIMER@", user_data(life).trim_end()).replace("@WALL@", &wall.script()).replace("@USER@", &quoted)
}

/// What the machine told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// What closes the metadata service to its users.
    pub(crate) door: Door,
    /// The machine's timer runs.
    pub(crate) has_timer: bool,
    /// What closes the network to its users from inside; empty for nothing.
    pub(crate) wall: String,
    /// Queries go to the gateway.
    pub(crate) has_names: bool,
}

impl Prepared {
    /// Reads what the script printed.
    ///
    /// # Errors
    /// `InvalidProfile` for a user that is not there, `HostUnable` for a machine that could not be made ready.
    pub(crate) fn read(printed: &[u8], stderr: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(printed);
        let find = |key: &str| line(&text, key);
        let unable = |message: String| Error::new(ErrorKind::HostUnable, "prepare machine", message).with_backend(BACKEND);
        if let Some(why) = find("failed") {
            return Err(unable(shown(why)));
        }
        if find("uid").is_none() {
            return Err(unable(format!("the machine's answer makes no sense: {:?}", shown(&String::from_utf8_lossy(stderr)))));
        }
        Ok(Self {
            door: Door::read(&text),
            has_timer: find("timer").is_some(),
            wall: shown(find("wall").unwrap_or_default()),
            has_names: find("names").is_some(),
        })
    }
}
