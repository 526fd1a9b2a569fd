//! Putting the supervisor into a machine that somebody else isolates, and starting it there.
//!
//! Everything a backend has to run in the machine is made here, as scripts for `/bin/sh -c`:
//!
//! 1. [`script`] reads the program from its standard input, makes a directory that nobody else can enter, puts the supervisor
//!    there, tries whether it runs, tells about the machine and the user, and becomes the supervisor: **one process for the
//!    machine**, in the background, which outlives the line. [`land`] hands the program over and hears what is told; the line is then
//!    the first to the supervisor, for [`Channel::begin`](crate::Channel::begin). All of that is one session, because on a slow
//!    machine each takes as long as many commands.
//! 2. [`Installed::join`] connects standard input and output to the supervisor that runs: what a
//!    [`Reconnect`](crate::Reconnect) opens. The joining process hands its descriptors over, so no byte is copied on the way.
//!
//! When the machine ends the supervisor removes its directory; [`Installed::remove`] is for those that were killed.
//!
//! Joining checks the program's hash first, since whoever is root in the machine can replace it. Where there is no
//! shell (an image with one static program), put [`program`] into a directory of mode 0700 by the engine's own means, and run
//! [`Installed::serve_argv`] and [`Installed::join_argv`] directly.
//!
//! The scripts are one line of ASCII without `'`, `\` and `!`, so that any login shell takes [`quoted`] as it is:
//!
//! ```no_run
//! # async fn example(machine: impl Fn(String) -> tierbox_guest::Line,
//! #     reconnect: std::sync::Arc<dyn tierbox_guest::Reconnect>) -> tierbox_core::Result<()> {
//! use std::time::Duration;
//! use tierbox_guest::{Channel, install};
//!
//! let options = install::Options { user: Some("agent".into()), ..install::Options::default() };
//! let landed = install::land(machine(install::quoted(&install::script(&options)?))).await?;
//! let (setup, line) = (landed.installed.setup("machine-1"), landed.line);
//! let (channel, ready) = Channel::begin(line, reconnect, &setup, install::GRACE, Duration::from_secs(30)).await?;
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;
use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_supervisor::protocol::VERSION;
use tierbox_supervisor::setup::{Agent, Mode, Net, Root, Setup, UserMap};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::errors::printable;
use crate::line::Line;
use crate::supervisor;

/// How long commands live on without a line, unless the profile's `reconnect-grace` says otherwise.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long one that is not wanted may take to go.
const LEAVING: Duration = Duration::from_secs(5);

/// The most that is read of what the script printed.
const LONGEST: usize = 64 << 10;

/// The program's name in its directory.
const NAME: &str = "tierbox-supervisor";

/// The search path of the scripts themselves.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the program is installed for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The sandbox's default user, by name or number; whoever runs the script where `None`. Another one than that needs root.
    pub user: Option<String>,
    /// Directories to try instead of `/run` and `/var/lib` (root), or of `$XDG_RUNTIME_DIR`, `$HOME` and `/tmp` (others).
    pub directories: Vec<String>,
}

/// A user of the machine, as its `/etc/passwd` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name; the number as text where it has none.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its home directory.
    pub home: String,
    /// Its login shell.
    pub shell: String,
}

/// A supervisor that lies in a machine, and what that said of itself. All of it is the machine's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its directory: absolute, of mode 0700, and its own.
    pub dir: String,
    /// Whether it runs as root, so that commands can run as any user.
    pub root: bool,
    /// The sandbox's default user.
    pub user: Account,
    /// `PATH` as the machine's login configuration has it.
    pub path: String,
    /// The same for root.
    pub path_of_root: String,
    /// `LANG` as the machine's locale configuration has it.
    pub lang: Option<String>,
}

/// The embedded program.
///
/// # Errors
/// `Unsupported` where none is embedded: without feature `embed`, and on hosts that are not Linux.
pub fn program() -> Result<&'static [u8]> {
    supervisor::BYTES.ok_or_else(|| Error::unsupported("install supervisor", "a supervisor built for this host"))
}

fn hash() -> Result<String> {
    let hash =
        supervisor::sha256().ok_or_else(|| Error::unsupported("install supervisor", "a supervisor built for this host"))?;
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A word of a script, if it needs no quoting but double quotes.
fn plain_word(what: &str, word: &str) -> Result<String> {
    let fits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@+:".contains(&byte));
    if fits && !word.starts_with('-') {
        return Ok(word.to_owned());
    }
    let message = format!("{what} {word:?} cannot be used: letters, digits and / . _ - @ + : only");
    Err(Error::new(ErrorKind::InvalidInput, "install supervisor", message))
}

/// Prints what the machine says of itself and of the user `$want`; `$me` is the number of whoever runs it.
pub(crate) const FACTS: &str = "echo \"want=$want\"; [ -n \"$want\" ] || want=$me; \
     while IFS=: read -r name pass number rest; do \
     if [ \"$name\" = \"$want\" ]; then echo \"user=$name:$pass:$number:$rest\"; break; fi; \
     if [ \"$number\" = \"$want\" ]; then echo \"number=$name:$pass:$number:$rest\"; fi; done < /etc/passwd; \
     if [ -r /etc/environment ]; then \
     while IFS= read -r line; do case $line in PATH=*) echo \"environment=${line#PATH=}\";; esac; done < /etc/environment; fi; \
     if [ -r /etc/login.defs ]; then \
     while read -r key value; do case $key in ENV_PATH|ENV_SUPATH) echo \"$key=${value#PATH=}\";; esac; done < /etc/login.defs; fi; \
     for file in /etc/default/locale /etc/locale.conf; do [ -r $file ] || continue; \
     while IFS= read -r line; do case $line in LANG=*) echo \"lang=${line#LANG=}\";; esac; done < $file; done; \
     echo done=1";

/// Prints the hash of a file: each machine has one of these.
const SUM: &str = "sum() { if command -v sha256sum >/dev/null; then sha256sum < \"$1\"; \
                   elif command -v openssl >/dev/null; then openssl dgst -sha256 -r < \"$1\"; \
                   else busybox sha256sum < \"$1\"; fi; }";

/// The script that installs the program and becomes it: [`land`] is its other side.
///
/// Where nobody is named in the [options](Options::user), the default user is the script's first argument, if it has one.
///
/// # Errors
/// `InvalidInput` for a user or directory that no machine has; `Unsupported` where no supervisor is embedded.
pub fn script(options: &Options) -> Result<String> {
    let user = options.user.as_deref().map_or(Ok(String::new()), |user| plain_word("the user", user))?;
    let given = options.directories.iter().map(|dir| plain_word("the directory", dir)).collect::<Result<Vec<_>>>()?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::new(ErrorKind::Io, "install supervisor", error.to_string()))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let (given, hash, arch, facts) = (given.join(" "), hash()?, std::env::consts::ARCH, FACTS);
    // To its last byte and no further: the line goes on with what is for the supervisor. Some `head`s read ahead, which finds nothing,
    // as nothing is sent before the script has said its last word.
    let length = program()?.len();
    let script = format!(
        "LC_ALL=C; export LC_ALL; home=${{HOME:-}}; PATH={PATH}; export PATH; umask 077; {SUM}; trap \"\" PIPE; \
         no() {{ echo \"refused=$1\"; exit 3; }}; \
         full() {{ rm -rf \"$dir\" \"${{have%/*}}\"; no space; }}; \
         arch=$(uname -m); echo \"arch=$arch\"; [ \"$arch\" = {arch} ] || no arch; \
         head -c 1 </dev/null >/dev/null 2>&1 || no head; \
         me=$(id -u); echo \"uid=$me\"; \
         if [ \"$me\" = 0 ]; then dirs=\"/run /var/lib\"; else dirs=\"${{XDG_RUNTIME_DIR:-}} $home /tmp\"; fi; \
         given=\"{given}\"; [ -z \"$given\" ] || dirs=$given; \
         have=; good=; why=; \
         for base in $dirs; do \
         [ -d \"$base\" ] || continue; \
         if [ \"$me\" = 0 ]; then dir=$base/tierbox-{random}; mkdir -m 700 \"$dir\" 2>/dev/null || {{ why=$base; continue; }}; \
         else dir=$(mktemp -d \"$base/tierbox-XXXXXXXXXX\" 2>/dev/null) || {{ why=$base; continue; }}; fi; \
         if [ -z \"$have\" ]; then head -c {length} > \"$dir/{NAME}\" || full; else cat \"$have\" > \"$dir/{NAME}\" || full; fi; \
         [ -z \"$have\" ] || rm -rf \"${{have%/*}}\"; have=$dir/{NAME}; \
         chmod 700 \"$have\"; got=$(sum \"$have\"); [ \"${{got%% *}}\" = {hash} ] || {{ rm -rf \"$dir\"; no hash; }}; \
         if \"$have\" version >/dev/null 2>&1 </dev/null; then good=$dir; break; fi; why=$base; \
         done; \
         [ -n \"$good\" ] || {{ [ -z \"$have\" ] || rm -rf \"${{have%/*}}\"; no place; }}; \
         echo \"dir=$good\"; \
         want=\"{user}\"; [ -n \"$want\" ] || want=${{1:-}}; {facts}; \
         cd / || exit 9; trap - PIPE; exec \"$good/{NAME}\" serve \"$good\""
    );
    Ok(script)
}

/// A supervisor that was just started.
#[derive(Debug)]
pub struct Landed {
    /// Where it lies, and for whom.
    pub installed: Installed,
    /// The first line to it.
    pub line: Line,
    /// All that was printed before it began, for whoever had something else print first. It is the machine's word.
    pub said: String,
}

/// Hands the program over to a [`script`] that a line was opened to, and hears what it says of its machine.
///
/// # Errors
/// `Unsupported` where the supervisor cannot run (another architecture, no directory where programs can be executed): use the
/// [plain transport](crate::plain). `NoSpace`; `InvalidInput` for a user that the machine does not have; `Lost` if the line ends;
/// `Protocol` for anything else.
pub async fn land(mut line: Line) -> Result<Landed> {
    let program = program()?;
    let mut said = Vec::new();
    {
        let Line { reader, writer, .. } = &mut line;
        let send = async {
            // A script that refuses reads nothing, and says why.
            if writer.write_all(program).await.is_ok() {
                let _ = writer.flush().await;
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            heard = hear(reader, &mut said) => heard?,
            never = send => match never {},
        }
    }
    match parse(&said) {
        Ok(installed) => Ok(Landed { installed, line, said: String::from_utf8_lossy(&said).into_owned() }),
        Err(error) => {
            leave(line).await;
            Err(error)
        }
    }
}

/// Ends a line, and waits a while for whoever is at its other end to go: a supervisor that is not wanted removes its directory.
async fn leave(line: Line) {
    let Line { mut reader, writer, kept } = line;
    drop(writer);
    let _ = tokio::time::timeout(LEAVING, tokio::io::copy(&mut reader, &mut tokio::io::sink())).await;
    drop(kept);
}

/// Reads to the last word of a script, or to the end of what it says.
async fn hear(reader: &mut (impl AsyncRead + Unpin), said: &mut Vec<u8>) -> Result<()> {
    while !said.ends_with(b"\ndone=1\n") && said.len() <= LONGEST {
        let count = reader.read_buf(said).await.map_err(|error| Error::io("install supervisor", error))?;
        if count == 0 {
            let refused = find(&String::from_utf8_lossy(said), "refused").is_some();
            let lost = || Error::new(ErrorKind::Lost, "install supervisor", "the line went away").retryable();
            return if refused { Ok(()) } else { Err(lost()) };
        }
    }
    Ok(())
}

/// What a [`script`] printed before it became the supervisor.
fn parse(printed: &[u8]) -> Result<Installed> {
    if printed.len() > LONGEST {
        return Err(odd("is too long"));
    }
    let text = String::from_utf8_lossy(printed);
    if let Some(reason) = find(&text, "refused") {
        return Err(refused(reason, find(&text, "arch").unwrap_or_default()));
    }
    let Facts { root, user, path, path_of_root, lang } = facts(&text)?;
    let dir = find(&text, "dir").filter(|dir| dir.starts_with('/') && is_plain(dir));
    let dir = dir.ok_or_else(|| odd("names no directory"))?.to_owned();
    Ok(Installed { dir, root, user, path, path_of_root, lang })
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, "look at machine", format!("the machine's answer {what}"))
}

/// The value that a machine printed under a key.
pub(crate) fn find<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// Whether a word of a machine's can stand in a script.
pub(crate) fn is_plain(word: &str) -> bool {
    plain_word("the directory", word).is_ok()
}

/// What [`FACTS`] printed.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Whether scripts run as root.
    pub(crate) root: bool,
    pub(crate) user: Account,
    /// The `PATH` of that user.
    pub(crate) path: String,
    /// The `PATH` of root.
    pub(crate) path_of_root: String,
    pub(crate) lang: Option<String>,
}

/// Reads what [`FACTS`] printed.
pub(crate) fn facts(text: &str) -> Result<Facts> {
    if text.len() > LONGEST {
        return Err(odd("is too long"));
    }
    let find = |key: &str| find(text, key);
    if find("done") != Some("1") {
        return Err(odd(&format!("ends early: {:?}", printable(text.trim(), 300))));
    }
    let uid: u32 = find("uid").and_then(|uid| uid.parse().ok()).ok_or_else(|| odd("names no user"))?;
    let own = find("want").is_none_or(|want| want.is_empty() || want == uid.to_string());
    let user = match find("user").or_else(|| find("number")).map(account) {
        Some(Some(account)) => account,
        None if own => nameless(uid),
        // As root any number is a user, with or without a name.
        None if uid == 0 && find("want").is_some_and(|want| want.parse::<u32>().is_ok_and(|number| number != u32::MAX)) => {
            nameless(find("want").and_then(|want| want.parse().ok()).unwrap_or_default())
        }
        _ => return Err(Error::new(ErrorKind::InvalidInput, "look at machine", "the machine has no such user")),
    };
    if uid != 0 && user.uid != uid {
        let message = "another default user than the one who logs in needs root in the machine";
        return Err(Error::new(ErrorKind::InvalidInput, "look at machine", message));
    }
    let unquoted = |text: &str| text.trim().trim_matches('"').to_owned();
    let path = |key: &str| {
        let told = find("environment").or_else(|| find(key)).map(unquoted);
        told.filter(|path| !path.is_empty()).unwrap_or_else(|| PATH.to_owned())
    };
    Ok(Facts {
        root: uid == 0,
        path: path(if user.uid == 0 { "ENV_SUPATH" } else { "ENV_PATH" }),
        path_of_root: path("ENV_SUPATH"),
        user,
        lang: find("lang").map(unquoted).filter(|lang| !lang.is_empty()),
    })
}

fn refused(reason: &str, arch: &str) -> Error {
    let new = |kind, message: String| Error::new(kind, "install supervisor", message);
    match reason {
        "arch" => new(ErrorKind::Unsupported, format!("the supervisor cannot run on {}", printable(arch, 40)))
            .with_help("the plain transport works on any architecture"),
        "head" => new(ErrorKind::Unsupported, "the machine has no `head -c`, which takes the supervisor in".to_owned()),
        "place" => {
            new(ErrorKind::Unsupported, "the machine has no directory where the supervisor could lie and be run".to_owned())
                .with_help("it needs one that may be written and is not mounted noexec; the plain transport needs none")
        }
        "space" => new(ErrorKind::NoSpace, "the machine has no room for the supervisor".to_owned()),
        "hash" => new(ErrorKind::Io, "the supervisor did not arrive whole".to_owned()).retryable(),
        other => new(ErrorKind::Protocol, format!("the machine refused: {:?}", printable(other, 100))),
    }
}

fn account(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
    Some(Account {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn nameless(uid: u32) -> Account {
    Account { name: uid.to_string(), uid, gid: uid, home: "/".to_owned(), shell: "/bin/sh".to_owned() }
}

impl Installed {
    /// The script that is one more line to the supervisor that runs.
    pub fn join(&self) -> String {
        let program = format!("{}/{NAME}", self.dir);
        let hash = hash().unwrap_or_default();
        format!(
            "PATH={PATH}; {SUM}; cd / || exit 9; got=$(sum {program}); \
             if [ \"${{got%% *}}\" = \"{hash}\" ]; then exec {program} join {}; fi; \
             echo \"the supervisor in {} was changed\" >&2; exit 9",
            self.dir, self.dir
        )
    }

    /// What starts a supervisor that lies in its directory, and is the first line to it.
    pub fn serve_argv(&self) -> [String; 3] {
        [format!("{}/{NAME}", self.dir), "serve".to_owned(), self.dir.clone()]
    }

    /// The same as [`join`](Self::join) without a shell, and without a look at the hash.
    pub fn join_argv(&self) -> [String; 3] {
        [format!("{}/{NAME}", self.dir), "join".to_owned(), self.dir.clone()]
    }

    /// The script that removes what a supervisor left that was killed.
    pub fn remove(&self) -> String {
        format!("PATH={PATH}; rm -rf {}", self.dir)
    }

    /// What to tell the supervisor: a machine that somebody else isolates, whose commands run as [`user`](Self::user), start in
    /// its home, and have `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL` and `LANG`; those as root have root's `PATH`. Add the profile's
    /// variables ([`Setup::set_variable`]), working directory and limits of processes before
    /// [`Channel::begin`](crate::Channel::begin).
    pub fn setup(&self, id: &str) -> Setup {
        let user = &self.user;
        let blob = |text: &str| Blob::from(text.as_bytes());
        let lang = self.lang.as_deref().unwrap_or("C.UTF-8");
        let env = [
            ("PATH", self.path.as_str()),
            ("HOME", &user.home),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", &user.shell),
            ("LANG", lang),
        ];
        Setup {
            version: VERSION,
            mode: Mode::Guest,
            id: id.to_owned(),
            users: UserMap::Single,
            agent: Agent { name: user.name.clone(), uid: user.uid, gid: user.gid, home: blob(&user.home) },
            env: env.iter().map(|(key, value)| (blob(key), blob(value))).collect(),
            root_path: Some(blob(&self.path_of_root)),
            workdir: blob(&user.home),
            root: Root::Host,
            binds: Vec::new(),
            files: Vec::new(),
            writable: Vec::new(),
            disk: None,
            inodes: None,
            rlimits: Vec::new(),
            cgroups: Vec::new(),
            net: Net::Host,
            listen: None,
            persist: false,
            lifetime_ms: None,
            crash_at: None,
            lifted: Vec::new(),
            filter: false,
        }
    }
}

/// A script of this module as a command line for any login shell.
pub fn quoted(script: &str) -> String {
    format!("exec /bin/sh -c '{script}'")
}

#[cfg(test)]
mod unit {
    use super::*;

    const GOOD: &str = "arch=x86_64\nuid=0\ndir=/run/tierbox-1\nuser=ann:x:1000:1000::/home/ann:/bin/bash\n\
                        ENV_SUPATH=/sbin:/bin\nENV_PATH=/bin\nlang=\"en_US.UTF-8\"\ndone=1\n";

    #[test]
    fn a_machine_tells_what_it_is() {
        let installed = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((installed.dir.as_str(), installed.root, installed.path.as_str()), ("/run/tierbox-1", true, "/bin"));
        assert_eq!((installed.user.uid, installed.lang.as_deref()), (1000, Some("en_US.UTF-8")));
        let setup = installed.setup("x");
        assert_eq!((setup.agent.uid, setup.workdir), (1000, Blob::from(b"/home/ann".as_slice())));
        assert_eq!(setup.root_path, Some(Blob::from(b"/sbin:/bin".as_slice())));
    }

    #[test]
    fn a_hostile_machine_gets_nothing_into_a_script() {
        for dir in ["/run/$(reboot)", "/run/a b", "run", "/run/'x", "-x", "/x;y"] {
            let lie = GOOD.replace("/run/tierbox-1", dir);
            assert_eq!(parse(lie.as_bytes()).unwrap_err().kind(), ErrorKind::Protocol, "{dir}");
        }
        assert_eq!(parse(&vec![b'x'; LONGEST + 1]).unwrap_err().kind(), ErrorKind::Protocol);
        assert_eq!(parse(b"arch=x86_64\nuid=0\n").unwrap_err().kind(), ErrorKind::Protocol);
        let strange = parse(b"arch=\x1b[31m\nrefused=arch\n").unwrap_err();
        assert_eq!(strange.kind(), ErrorKind::Unsupported);
        assert!(!strange.to_string().contains('\x1b'));
        let nobody = GOOD.replace("user=ann:x:1000:1000::/home/ann:/bin/bash", "want=ann");
        assert_eq!(parse(nobody.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn users_and_directories_are_words() {
        for user in ["a b", "$(id)", "'", "-x", ""] {
            let options = Options { user: Some(user.to_owned()), ..Options::default() };
            assert_eq!(script(&options).unwrap_err().kind(), ErrorKind::InvalidInput, "{user:?}");
        }
    }

    #[cfg(all(feature = "embed", target_os = "linux"))]
    #[test]
    fn scripts_go_through_any_login_shell() {
        let installed = parse(GOOD.as_bytes()).unwrap();
        let options = Options::default();
        for text in [script(&options).unwrap(), installed.join(), installed.remove()] {
            assert!(text.is_ascii() && !text.contains(['\'', '\\', '!', '\n']), "{text}");
        }
    }
}
