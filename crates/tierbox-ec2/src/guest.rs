//! What tierbox puts into a machine: the timer that ends it, a user without rights, and a closed door to the metadata service.

use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::call::shown;

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
[ -e /run/tierbox/until ] && echo timer=1
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
if [ -z "$by" ]; then
  ip rule del pref 117 2>/dev/null
  ip rule add pref 117 uidrange 1-4294967294 to 169.254.169.254/32 prohibit 2>/dev/null && by='a routing rule'
fi
echo "metadata=$by"
ask() { if command -v curl >/dev/null; then "$@" curl -s -o /dev/null -m 3 http://169.254.169.254/
  else "$@" python3 -c 'import socket;socket.create_connection(("169.254.169.254",80),3)' 2>/dev/null; fi; }
ask && echo control=1
if [ "$uid" != 0 ]; then ask setpriv --reuid="$uid" --regid=65534 --clear-groups -- || echo closed=1; fi
"#;

/// The script that makes a machine ready for a user.
pub(crate) fn prepare(user: &str) -> String {
    let mut quoted = String::from("'");
    quoted.push_str(&user.replace('\'', "'\\''"));
    quoted.push('\'');
    PREPARE.replace("@USER@", &quoted)
}

/// What the machine told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// The user may become root, so that nothing in the machine binds it.
    pub(crate) is_root: bool,
    /// What closes the metadata service; empty for nothing.
    pub(crate) metadata: String,
    /// Metadata answer root, and so would answer others if nothing closed them.
    pub(crate) has_metadata: bool,
    /// They did not answer the user.
    pub(crate) is_closed: bool,
    /// The machine's timer runs.
    pub(crate) has_timer: bool,
}

impl Prepared {
    /// Reads what the script printed.
    ///
    /// # Errors
    /// `InvalidProfile` for a user that is not there, `HostUnable` for a machine that could not be made ready.
    pub(crate) fn read(printed: &[u8], stderr: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(printed);
        let find = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let unable = |message: String| Error::new(ErrorKind::HostUnable, "prepare machine", message).with_backend(BACKEND);
        if let Some(why) = find("failed") {
            return Err(unable(shown(why)));
        }
        if find("uid").is_none() {
            return Err(unable(format!("the machine's answer makes no sense: {:?}", shown(&String::from_utf8_lossy(stderr)))));
        }
        Ok(Self {
            is_root: find("rights").is_some(),
            metadata: shown(find("metadata").unwrap_or_default()),
            has_metadata: find("control").is_some(),
            is_closed: find("closed").is_some(),
            has_timer: find("timer").is_some(),
        })
    }
}
