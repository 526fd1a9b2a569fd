//! A task on an instance that others made: a user and a directory of its own, which end with it. Nothing else of the instance is touched.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::call::shown;
use crate::door::{Door, line};

/// A task, as a lease remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The directory of all tasks.
    pub(crate) base: String,
    /// Sixteen hexadecimal digits: its directory's name.
    pub(crate) hash: String,
}

/// What all scripts begin with. `M` is root's alone; of each task it holds a directory with what is known of it, and what the sandbox
/// keeps. A task is removed by its name alone, which is sixteen digits and nothing else.
const HEAD: &str = r#"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; LC_ALL=C; export PATH LC_ALL
umask 022
B='@BASE@'; H=@HASH@; M=$B/.tierbox
fail() { echo "failed=$1"; exit 0; }
alone() { if command -v flock >/dev/null; then exec 8>"$M/lock" && flock -w 60 8 || fail 'another task holds the lock'; fi; }
is_name() { case $1 in *[!0-9a-f]*) return 1;; ????????????????) return 0;; esac; return 1; }
end_of() {
  left=$(id -u "tierbox-$1" 2>/dev/null) || return 0
  rounds=0
  while [ $rounds -lt 100 ]; do
    setpriv --reuid="$left" --regid="$left" --clear-groups /bin/sh -c 'kill -KILL -1' 2>/dev/null
    found=
    for p in /proc/[0-9]*; do
      [ "$(stat -c %u "$p" 2>/dev/null)" = "$left" ] || continue
      { read -r line <"$p/stat"; } 2>/dev/null || continue
      case ${line##*) } in Z*|X*) ;; *) found=1; break;; esac
    done
    [ -n "$found" ] || return 0
    rounds=$((rounds+1))
    sleep 0.05 || sleep 1
  done
  return 1
}
remove() {
  is_name "$1" || return 1
  for p in "$M/$1"/tierbox-plain-*; do
    [ -d "$p" ] || continue
    for at in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/freezer; do
      g=$at/tierbox-${p##*-}
      [ ! -e "$g/cgroup.kill" ] || echo 1 >"$g/cgroup.kill"
    done
  done
  end_of "$1" || return 1
  for p in "$M/$1"/tierbox-plain-*; do
    [ -d "$p" ] || continue
    for at in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/freezer; do
      g=$at/tierbox-${p##*-}
      [ ! -d "$g" ] || rmdir "$g"/* "$g" 2>/dev/null
    done
  done
  rm -rf --one-file-system -- "$B/$1" || return 1
  if uid=$(id -u "tierbox-$1" 2>/dev/null); then
    find /tmp /var/tmp /dev/shm -xdev -uid "$uid" -delete 2>/dev/null
    rm -f "/var/spool/cron/crontabs/tierbox-$1" "/var/spool/cron/tierbox-$1"
    ! command -v nft >/dev/null || nft delete table inet "tierbox_$1" 2>/dev/null
    ! command -v iptables >/dev/null || iptables -w -D OUTPUT -d 169.254.169.254 -m owner --uid-owner "$uid" -j REJECT 2>/dev/null
    for address in 169.254.169.254 169.254.170.2 100.100.100.200; do
      ip rule del pref 117 uidrange "$uid-$uid" to $address/32 prohibit 2>/dev/null
    done
    ip -6 rule del pref 117 uidrange "$uid-$uid" to fd00:ec2::254/128 prohibit 2>/dev/null
    userdel "tierbox-$1" >/dev/null 2>&1 || return 1
  fi
  rm -rf -- "$M/$1"
}
"#;

/// Makes a task, and removes those that gave no sign of life for as long as they asked for.
const MAKE: &str = r#"
place=$B
while [ "$place" != / ] && [ -n "$place" ]; do
  [ ! -L "$place" ] || fail "$place is a link"
  if [ -e "$place" ]; then
    facts=$(stat -c '%u %a' "$place")
    case $facts in '0 '*[2367]|'0 '*[2367]?) [ "$place" != "$B" ] && [ -k "$place" ] || fail "$place may be written by others than root";; '0 '*) ;;
    *) fail "$place is not root's";; esac
  fi
  place=${place%/*}
done
mkdir -p "$B" || fail "$B cannot be made"
mkdir -m 700 "$M" 2>/dev/null || [ -d "$M" ] || fail "$M cannot be made"
alone
swept=0
for m in "$M"/*; do
  name=${m##*/}
  is_name "$name" && [ "$name" != $H ] && [ -e "$m/alive" ] || continue
  hours=24
  read -r hours <"$m/hours"
  [ -n "$(find "$m/alive" -mmin "+$((hours*60))")" ] || continue
  ! remove "$name" || swept=$((swept+1))
done
echo "swept=$swept"
mkdir -m 700 "$M/$H" || fail 'the task is there already'
echo @HOURS@ >"$M/$H/hours"
: >"$M/$H/alive"
shell=/bin/bash; [ -x $shell ] || shell=/bin/sh
useradd --no-create-home --home-dir "$B/$H" --user-group --shell $shell tierbox-$H >/dev/null 2>&1 || fail 'its user cannot be made'
mkdir -m 700 "$B/$H" && chown tierbox-$H:tierbox-$H "$B/$H" || fail 'its directory cannot be made'
uid=$(id -u tierbox-$H)
echo "uid=$uid"
! grep -qsw memory /sys/fs/cgroup/cgroup.subtree_control || echo memory=cgroup
if command -v sudo >/dev/null; then
  ! setpriv --reuid=$uid --regid=$uid --init-groups sudo -n true 2>/dev/null || echo rights=sudo
fi
by=
if command -v nft >/dev/null; then
  nft -f - 2>/dev/null <<END && by=nftables
table inet tierbox_$H {
  chain metadata {
    type filter hook output priority -150; policy accept;
    meta skuid $uid ip daddr 169.254.169.254 reject
    meta skuid $uid ip6 daddr fd00:ec2::254 reject
  }
}
END
fi
if [ -z "$by" ] && command -v iptables >/dev/null; then
  iptables -w -I OUTPUT -d 169.254.169.254 -m owner --uid-owner $uid -j REJECT 2>/dev/null && by=iptables
fi
for address in 169.254.169.254 169.254.170.2 100.100.100.200; do
  ip rule add pref 117 uidrange $uid-$uid to $address/32 prohibit 2>/dev/null && routed=1
done
ip -6 rule add pref 117 uidrange $uid-$uid to fd00:ec2::254/128 prohibit 2>/dev/null
[ -n "$by" ] || [ -z "$routed" ] || by='a routing rule'
echo "metadata=$by"
ask() { if command -v curl >/dev/null; then "$@" curl -s -o /dev/null -m 3 http://169.254.169.254/
  else "$@" python3 -c 'import socket;socket.create_connection(("169.254.169.254",80),3)' 2>/dev/null; fi; }
! ask || echo control=1
ask setpriv --reuid=$uid --regid=$uid --clear-groups -- || echo closed=1
there=; missing=
for program in @RUNTIMES@; do
  if command -v $program >/dev/null; then there="$there $program"; else missing="$missing $program"; fi
done
echo "there=$there"
echo "missing=$missing"
"#;

/// Bounds a task's memory by its cgroup.
const BOUND: &str = r#"
echo @BYTES@ >@GROUP@/memory.max || exit 1
[ ! -e @GROUP@/memory.swap.max ] || echo 0 >@GROUP@/memory.swap.max
"#;

const REMOVE: &str = r#"
[ -d "$M" ] || { echo removed=0; exit 0; }
alone
if [ -e "$M/$H" ] || id "tierbox-$H" >/dev/null 2>&1 || [ -e "$B/$H" ]; then
  remove $H || fail "task $H cannot be removed"
  echo removed=1
else
  echo removed=0
fi
"#;

const STATUS: &str = r#"
read -r load rest </proc/loadavg; echo "load=$load $rest"
echo "cpus=$(grep -c ^processor /proc/cpuinfo)"
while read -r key value rest; do case $key in MemTotal:) echo "memory=$value";; MemAvailable:) echo "available=$value";; esac; done </proc/meminfo
at=$B; while [ ! -d "$at" ]; do at=${at%/*}; [ -n "$at" ] || at=/; done
echo "disk=$(df -Pk "$at" | { read -r _; read -r _ total _ free _; echo "$total $free"; })"
tasks=0
for m in "$M"/*; do is_name "${m##*/}" && tasks=$((tasks+1)); done
echo "tasks=$tasks"
"#;

impl Task {
    /// The task of an environment.
    pub(crate) fn of(base: &str, environment: &str) -> Self {
        let hash = Sha256::digest(environment).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { base: base.to_owned(), hash }
    }

    /// Its user.
    pub(crate) fn user(&self) -> String {
        format!("tierbox-{}", self.hash)
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> String {
        format!("{}/{}", self.base, self.hash)
    }

    /// Where its sandbox keeps its things.
    pub(crate) fn place(&self) -> String {
        format!("{}/.tierbox/{}", self.base, self.hash)
    }

    fn script(&self, body: &str) -> String {
        format!("{}{body}", HEAD.replace("@BASE@", &self.base).replace("@HASH@", &self.hash))
    }

    /// Makes it. `runtimes` are names of programs that were checked.
    pub(crate) fn make(&self, hours: u32, runtimes: &[String]) -> String {
        self.script(&MAKE.replace("@HOURS@", &hours.to_string()).replace("@RUNTIMES@", &runtimes.join(" ")))
    }

    /// Bounds its memory by its cgroup.
    pub(crate) fn bound(group: &str, bytes: u64) -> String {
        BOUND.replace("@BYTES@", &bytes.to_string()).replace("@GROUP@", group)
    }

    /// A sign of life.
    pub(crate) fn renew(&self) -> String {
        self.script(": >\"$M/$H/alive\"\n")
    }

    /// Removes it, whatever state it is in.
    pub(crate) fn remove(&self) -> String {
        self.script(REMOVE)
    }

    /// How the instance is.
    pub(crate) fn status(&self) -> String {
        self.script(STATUS)
    }
}

/// What a machine told of a task that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// What closes the metadata service to its user.
    pub(crate) door: Door,
    /// A cgroup can bound its memory.
    pub(crate) bounds_memory: bool,
    /// Older tasks that were removed.
    pub(crate) swept: u64,
    /// Runtimes that are there, and those that are not.
    pub(crate) runtimes: [String; 2],
}

impl Made {
    /// Reads what the script printed.
    ///
    /// # Errors
    /// `HostUnable` where the task could not be made.
    pub(crate) fn read(printed: &[u8], stderr: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(printed);
        let find = |key: &str| line(&text, key);
        let unable = |message: String| {
            Error::new(ErrorKind::HostUnable, "prepare task", message)
                .with_backend(BACKEND)
                .with_help("ec2.base-dir must be root's, in directories that nobody else may write to; the instance needs useradd and setpriv")
        };
        if let Some(why) = find("failed") {
            return Err(unable(shown(why)));
        }
        if find("uid").is_none() || find("missing").is_none() {
            return Err(unable(format!("the machine's answer makes no sense: {:?}", shown(&String::from_utf8_lossy(stderr)))));
        }
        Ok(Self {
            door: Door::read(&text),
            bounds_memory: find("memory") == Some("cgroup"),
            swept: find("swept").and_then(|count| count.parse().ok()).unwrap_or(0),
            runtimes: ["there", "missing"].map(|key| shown(find(key).unwrap_or_default().trim())),
        })
    }
}

/// How an instance is: its own words, as it may be another's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The instance.
    pub instance: String,
    /// EC2's word for its state.
    pub state: String,
    /// Load of one, five and fifteen minutes.
    pub load: [f64; 3],
    /// Processors.
    pub cpus: u64,
    /// Memory in all and available, in bytes.
    pub memory: [u64; 2],
    /// The disk of the tasks in all and free, in bytes.
    pub disk: [u64; 2],
    /// Tasks that are there.
    pub tasks: u64,
}

impl Status {
    /// Reads what the script printed; `None` for nonsense.
    pub(crate) fn read(instance: &str, state: &str, printed: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(printed);
        let number = |key: &str| line(&text, key)?.trim().parse::<u64>().ok();
        let mut loads =
            line(&text, "load")?.split(' ').map_while(|word| word.parse::<f64>().ok().filter(|load| load.is_finite()));
        let (total, free) = line(&text, "disk")?.split_once(' ')?;
        let bytes = |kib: u64| kib.checked_mul(1024);
        Some(Self {
            instance: instance.to_owned(),
            state: shown(state),
            load: [loads.next()?, loads.next()?, loads.next()?],
            cpus: number("cpus")?,
            memory: [bytes(number("memory")?)?, bytes(number("available")?)?],
            disk: [bytes(total.parse().ok()?)?, bytes(free.parse().ok()?)?],
            tasks: number("tasks")?,
        })
    }
}

/// How often a task gives a sign of life.
pub(crate) fn sign_every(hours: u32) -> Duration {
    Duration::from_secs(u64::from(hours) * 3600 / 3)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_task_is_called_by_sixteen_digits() {
        let task = Task::of("/opt/sandbox", "ec2-1");
        assert_eq!(task.hash.len(), 16);
        assert_eq!(task.directory(), format!("/opt/sandbox/{}", task.hash));
        assert!(!task.make(24, &["python3".to_owned()]).contains('@'.to_string().repeat(2).as_str()));
        assert!(task.user().len() <= 32);
    }

    #[test]
    fn what_a_machine_tells_is_taken_apart() {
        let made =
            Made::read(b"swept=2\nuid=1001\nmemory=cgroup\nmetadata=nftables\nclosed=1\nthere= sh bash\nmissing= node\n", b"");
        let made = made.unwrap();
        assert_eq!((made.swept, made.bounds_memory, made.door.holds(), made.door.has_metadata), (2, true, true, false));
        assert_eq!(made.runtimes, ["sh bash", "node"]);
        assert!(Made::read(b"uid=1\nfailed=/opt is not root's\n", b"").unwrap_err().message().contains("root's"));
        assert!(Made::read(b"", b"sh: no").is_err());
        let status = Status::read(
            "i-1",
            "running",
            b"load=0.10 0.20 0.30 1/99 7\ncpus=2\nmemory=2000\navailable=900\ndisk=10 5\ntasks=3\n",
        );
        assert_eq!(status.unwrap().disk, [10240, 5120]);
        assert!(Status::read("i-1", "running", b"load=x\n").is_none());
    }
}
