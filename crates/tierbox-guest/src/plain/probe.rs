//! What the machine is, asked once.

use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};

use super::call::Caller;
use super::script::PRELUDE;
use super::words::Words;
use super::{PLACE, PlainConfig, PlainRun};
use crate::errors::printable;
use crate::install::{self, Facts};

/// How long the questions may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The tools that everything here is made of.
const TOOLS: &str = "env mkdir mkfifo cat head wc sleep rm mv ln chmod stat readlink dd";

/// A machine, as it told.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// A directory of our own that nobody else can enter.
    pub(super) base: String,
    /// Whether scripts run as root.
    pub(super) root: bool,
    pub(super) facts: Facts,
    pub(super) env: String,
    /// Starts a session of its own, for where the transport does not.
    pub(super) setsid: Option<String>,
    /// Becomes another user.
    pub(super) setpriv: Option<String>,
    /// The cgroup in which each command gets one of its own.
    pub(super) group: Option<String>,
    pub(super) tar: bool,
    /// Whether `stat` tells fractions of seconds.
    pub(super) fraction: bool,
    /// Whether its shell has programs in itself, which it takes before those of `PATH`, as busybox may do (and its `env` then does).
    pub(super) applets: bool,
}

fn script(user: &str, groups: bool, place: &str) -> Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::new(ErrorKind::Io, "open sandbox", error.to_string()))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(
        "{PRELUDE}umask 077
old=$IFS
where() {{ IFS=:; for dir in $PATH; do if [ -x $dir/$1 ]; then echo $dir/$1; break; fi; done; IFS=$old; }}
missing=; for tool in {TOOLS}; do command -v $tool >/dev/null || missing=\"$missing $tool\"; done
[ -z \"$missing\" ] || {{ echo \"missing=$missing\"; exit 0; }}
[ -r /proc/$$/stat ] || {{ echo 'missing= /proc'; exit 0; }}
me=$(id -u); echo \"uid=$me\"
base=
if [ \"$me\" = 0 ]; then
  for dir in {place} {PLACE} /var/lib /var/tmp /tmp /run; do
    if mkdir -m 700 $dir/tierbox-plain-{random} 2>/dev/null; then base=$dir/tierbox-plain-{random}; break; fi
  done
else
  for dir in /var/tmp /tmp \"$HOME\"; do
    base=$(mktemp -d \"$dir/tierbox-plain-XXXXXXXXXX\" 2>/dev/null) && break
  done
fi
echo \"base=$base\"
case $(stat -c %.9Y / 2>/dev/null) in *[0-9].[0-9]*) echo fraction=1;; esac
echo \"env=$(where env)\"
echo \"setsid=$(where setsid)\"
if [ \"$me\" = 0 ] && setpriv --reuid=0 --regid=0 --init-groups -- true 2>/dev/null; then echo \"setpriv=$(where setpriv)\"; fi
! command -v tar >/dev/null || echo tar=1
echo \"applets=$(PATH=/dev/null; command -v env)\"
{}want={user}
{}",
        if groups { GROUPS } else { "" },
        install::FACTS
    ))
}

/// Makes a cgroup for the commands of a sandbox: of version 2 where it can kill, else of version 1's freezer.
const GROUPS: &str = r#"
if [ "$me" = 0 ]; then
  for at in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/freezer; do
    [ -e $at/cgroup.procs ] || continue
    group=$at/tierbox-${base##*-}
    mkdir $group 2>/dev/null || continue
    if [ -e $group/cgroup.kill ] || [ -e $group/freezer.state ]; then echo "group=$group"; break; fi
    rmdir $group
  done
fi
"#;

/// Asks a machine what it is. `groups` asks for cgroups of commands too.
pub(super) async fn ask(caller: &Caller, config: &PlainConfig) -> Result<Machine> {
    const TRIED: &str = "open sandbox";
    let mut words = Words::default();
    let quoted = words.word(config.user.as_deref().unwrap_or_default().as_bytes());
    let place = config.place.as_ref().map(|place| words.word(place.as_bytes())).unwrap_or_default();
    let output = {
        let script = format!("{}{}", words.before, script(&quoted, config.groups, &place)?);
        caller.run(PlainRun::new(script, bytes::Bytes::new(), LIMIT), TRIED).await?
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let find = |key: &str| install::find(&text, key);
    if let Some(missing) = find("missing") {
        let message = format!("the machine lacks what a plain sandbox needs:{}", printable(missing, 300));
        return Err(Error::new(ErrorKind::Unsupported, TRIED, message));
    }
    let program = |key: &str| find(key).filter(|path| path.starts_with('/') && install::is_plain(path)).map(str::to_owned);
    let odd = |what: &str| {
        let said = String::from_utf8_lossy(&output.stderr);
        Error::new(ErrorKind::Protocol, TRIED, format!("the machine {what}: {:?}", printable(said.trim(), 300)))
    };
    Ok(Machine {
        base: program("base").ok_or_else(|| odd("has no directory for a sandbox"))?,
        root: find("uid") == Some("0"),
        facts: install::facts(&text)?,
        env: program("env").ok_or_else(|| odd("does not say where env is"))?,
        setsid: program("setsid"),
        setpriv: program("setpriv"),
        group: program("group"),
        tar: find("tar") == Some("1"),
        fraction: find("fraction") == Some("1"),
        applets: find("applets") != Some(""),
    })
}

/// Looks a user up.
pub(super) async fn account(caller: &Caller, user: &str) -> Result<Option<install::Account>> {
    let mut words = Words::default();
    let quoted = words.word(user.as_bytes());
    let script = format!("{}{PRELUDE}me=$(id -u)\necho uid=$me\nwant={quoted}\n{}", words.before, install::FACTS);
    let output = caller.run(PlainRun::new(script, bytes::Bytes::new(), LIMIT), "exec").await?;
    let text = String::from_utf8_lossy(&output.stdout);
    match install::facts(&text) {
        Ok(facts) => Ok(Some(facts.user)),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}
