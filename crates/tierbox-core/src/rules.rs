//! T1's rules for programs: what an argument list may be, and which programs need such a rule.

use crate::pattern::fits;
use crate::{Error, ErrorKind, ProgramRule, Result};

/// Variables that the agent may set at T1 for any program: none of them names a file or a program.
const HARMLESS: [&str; 6] = ["LANG", "LANGUAGE", "TERM", "COLUMNS", "LINES", "NO_COLOR"];

/// Whatever these run is up to whoever types: never allowed.
const SHELLS: &[&str] = &[
    "sh",
    "bash",
    "rbash",
    "dash",
    "ash",
    "zsh",
    "ksh",
    "mksh",
    "fish",
    "csh",
    "tcsh",
    "pwsh",
    "busybox",
    "toybox",
    "ld",
    "sudo",
    "su",
    "doas",
    "chroot",
    "nsenter",
    "unshare",
    "setpriv",
    "runuser",
    "login",
    "systemd-run",
    "expect",
    "screen",
    "tmux",
];

/// These run a language of their own: allowed only by a rule.
const INTERPRETERS: &[&str] = &[
    "python",
    "pypy",
    "perl",
    "ruby",
    "node",
    "nodejs",
    "deno",
    "bun",
    "lua",
    "luajit",
    "php",
    "tclsh",
    "wish",
    "Rscript",
    "R",
    "java",
    "scala",
    "ghc",
    "runghc",
    "guile",
    "sbcl",
    "erl",
    "elixir",
    "julia",
    "octave",
    "gdb",
    "lldb",
    "bc",
    "dc",
    "m4",
    "jq",
    "sqlite",
    "psql",
    "mysql",
    "redis-cli",
    "gnuplot",
    "pydoc",
    "original-awk",
    "ed",
    "sed",
];

/// These start other programs, or write files, if an option says so: allowed only by a rule, which lists the options.
const BY_OPTION: &[&str] = &[
    "find",
    "fd",
    "tar",
    "bsdtar",
    "cpio",
    "zip",
    "unzip",
    "7z",
    "git",
    "hg",
    "svn",
    "sort",
    "uniq",
    "diff",
    "split",
    "install",
    "tcpdump",
    "curl",
    "wget",
    "rsync",
    "scp",
    "sftp",
    "ftp",
    "nmap",
    "openssl",
    "ssh",
    "man",
    "less",
    "more",
    "most",
    "vim",
    "vi",
    "view",
    "ex",
    "rvim",
    "nvim",
    "nano",
    "emacs",
    "pico",
    "dd",
    "tee",
    "cp",
    "mv",
    "rm",
    "ln",
    "touch",
    "truncate",
    "shred",
    "mkdir",
    "rmdir",
    "chmod",
    "chown",
    "mount",
    "umount",
    "make",
    "cmake",
    "ninja",
    "cargo",
    "rustc",
    "gcc",
    "cc",
    "g++",
    "clang",
    "go",
    "npm",
    "npx",
    "pip",
    "pipx",
    "uv",
    "gem",
    "apt",
    "apt-get",
    "dpkg",
    "rpm",
    "yum",
    "dnf",
    "docker",
    "podman",
    "kubectl",
    "script",
    "crontab",
    "at",
    "rg",
    "ag",
    "file",
    "strings",
    "nc",
    "ncat",
    "netcat",
    "socat",
    "telnet",
    "lp",
    "mail",
    "gpg",
    "vimdiff",
    "gvim",
    "evim",
    "rview",
    "rgview",
    "ip",
    "tc",
    "journalctl",
    "systemctl",
    "loginctl",
    "coredumpctl",
    "xz",
    "gzip",
    "bzip2",
    "zstd",
    "lz4",
    "patch",
    "shuf",
    "csplit",
    "sponge",
    "ar",
    "objcopy",
    "strip",
    "setfacl",
    "setfattr",
    "gold",
    "gfortran",
    "tcc",
];

/// These start the program that their arguments name: allowed only by a rule, and no rule may let any argument through.
const BY_OPERAND: &[&str] = &[
    "env",
    "xargs",
    "parallel",
    "nice",
    "nohup",
    "timeout",
    "setsid",
    "stdbuf",
    "strace",
    "ltrace",
    "watch",
    "time",
    "ionice",
    "taskset",
    "flock",
    "run-parts",
    "awk",
    "gawk",
    "mawk",
    "nawk",
    "ssh",
    "sed",
    "command",
    "exec",
    "start-stop-daemon",
    "chrt",
    "prlimit",
    "catchsegv",
    "valgrind",
    "perf",
    "faketime",
    "fakeroot",
    "proot",
    "entr",
    "setarch",
    "linux32",
    "linux64",
    "i386",
    "x86_64",
    "uname26",
    "choom",
    "bwrap",
    "firejail",
    "numactl",
    "cgexec",
    "chpst",
    "softlimit",
    "daemonize",
    "unbuffer",
    "rlwrap",
    "dbus-run-session",
    "dbus-launch",
    "xvfb-run",
    "pkexec",
    "busctl",
];

/// These take their first argument for a bundle of options even without a dash.
const BUNDLED: &[&str] = &["tar", "bsdtar", "ar"];

/// What is special about a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shell,
    Interpreter,
    ByOption,
    ByOperand,
    Plain,
}

fn name_of(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or_default()
}

/// A program by the name of its file: `python3.11` and `vim.basic` are what they are without the ending, `x86_64-linux-gnu-gcc-12` is
/// what one of its words says.
fn kind(program: &str) -> Kind {
    let name = name_of(program);
    let bare = |word: &'_ str| word.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_owned();
    let words: Vec<&str> = name.split(['.', '-']).collect();
    let stem = bare(words.first().copied().unwrap_or_default());
    let has = |list: &[&str], word: &str| list.contains(&word) || list.contains(&bare(word).as_str());
    let is = |list: &[&str]| list.contains(&name) || list.contains(&stem.as_str());
    let is_of = |list: &[&str]| list.contains(&name) || words.iter().any(|word| has(list, word));
    match () {
        () if is(SHELLS) || name.starts_with("ld-") || name.starts_with("ld.so") => Kind::Shell,
        () if is_of(BY_OPERAND) => Kind::ByOperand,
        () if is_of(INTERPRETERS) => Kind::Interpreter,
        () if is_of(BY_OPTION) => Kind::ByOption,
        () => Kind::Plain,
    }
}

/// Checks that a program may be allowed with any arguments.
///
/// # Errors
/// `InvalidProfile` for a shell, an interpreter, or a program that can start others.
pub(crate) fn check_any(program: &str) -> Result<()> {
    let why = match kind(program) {
        Kind::Plain => return Ok(()),
        Kind::Shell => return Err(bad(format!("{program} runs whatever it is told, which T1 forbids")).with_help(NO_SHELL)),
        Kind::Interpreter => "runs a language of its own",
        Kind::ByOption => "starts programs or writes files if an option says so",
        Kind::ByOperand => "starts the program that its arguments name",
    };
    Err(bad(format!("{program} {why}, so that T1 cannot allow it with any arguments"))
        .with_help("write a [[tools.rules]] for it, which lists the options and operands, with examples"))
}

/// Checks what a program that a rule allows really is: anything but a shell.
///
/// # Errors
/// `InvalidProfile` for a shell.
pub(crate) fn check_ruled(program: &str) -> Result<()> {
    if kind(program) == Kind::Shell {
        return Err(bad(format!("{program} runs whatever it is told, which T1 forbids")));
    }
    Ok(())
}

const NO_SHELL: &str = "name the programs that it would start instead";

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidProfile, "read rule", message)
}

impl ProgramRule {
    /// Whether these arguments (without the program itself) are allowed.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn allows(&self, arguments: &[impl AsRef<[u8]>]) -> std::result::Result<(), String> {
        let arguments: Vec<&[u8]> = arguments.iter().map(AsRef::as_ref).collect();
        for (index, first) in self.first.iter().enumerate() {
            if arguments.get(index) != Some(&first.as_bytes()) {
                return Err(format!("its argument {} must be {first}", index + 1));
            }
        }
        let is_bundle = self.first.is_empty() && arguments.first().is_some_and(|first| !first.starts_with(b"-"));
        if is_bundle && BUNDLED.contains(&name_of(&self.program)) {
            return Err(format!("{} takes its first argument for options: let it begin with a dash", self.program));
        }
        let mut rest = arguments[self.first.len()..].iter();
        let (mut operands, mut only_operands) = (Vec::new(), false);
        while let Some(argument) = rest.next() {
            let is_option = !only_operands && argument.starts_with(b"-") && argument.len() > 1;
            if !is_option {
                operands.push(*argument);
            } else if self.is_flag(argument) {
                only_operands |= *argument == b"--";
            } else {
                self.option(argument, || rest.next().copied())?;
            }
        }
        self.check_operands(&operands)
    }

    fn is_flag(&self, argument: &[u8]) -> bool {
        let listed = |wanted: &[u8]| self.flags.iter().any(|flag| flag.as_bytes() == wanted);
        // Single letters may be run together, if each of them is listed.
        let letters = |letters: &[u8]| letters.len() > 1 && letters.iter().all(|letter| listed(&[b'-', *letter]));
        listed(argument) || (!argument.starts_with(b"--") && letters(&argument[1..]))
    }

    fn option<'a>(&self, argument: &'a [u8], next: impl FnOnce() -> Option<&'a [u8]>) -> std::result::Result<(), String> {
        let shown = || argument.escape_ascii().to_string();
        let pattern = |name: &[u8]| self.options.iter().find(|(option, _)| option.as_bytes() == name).map(|(_, pattern)| pattern);
        let fitting = |pattern: &String, value: &[u8]| {
            if fits(pattern, value) { Ok(()) } else { Err(format!("the value of {} must fit {pattern:?}", shown())) }
        };
        if let Some(value) = pattern(argument) {
            let given = next().ok_or_else(|| format!("{} needs a value", shown()))?;
            return fitting(value, given);
        }
        let attached = if argument.starts_with(b"--") {
            argument.iter().position(|byte| *byte == b'=').map(|at| (&argument[..at], &argument[at + 1..]))
        } else {
            argument.split_at_checked(2)
        };
        match attached.and_then(|(name, value)| Some((pattern(name)?, value))) {
            Some((wanted, value)) => fitting(wanted, value),
            None => Err(format!("the option {} is not among those that the rule lists", shown())),
        }
    }

    fn check_operands(&self, operands: &[&[u8]]) -> std::result::Result<(), String> {
        if operands.len() < self.min_operands {
            return Err(format!("it needs at least {} arguments that are no options", self.min_operands));
        }
        if self.max_operands.is_some_and(|most| operands.len() > most) {
            return Err(format!("it takes at most {} arguments that are no options", self.max_operands.unwrap_or_default()));
        }
        // To many programs such an argument is a command, or a file of further arguments: only a pattern that says so means it.
        let is_more = |operand: &[u8]| operand.starts_with(b"+") || operand.starts_with(b"@");
        let means = |pattern: &String, operand: &[u8]| fits(pattern, operand) && !(is_more(operand) && is_open(pattern));
        let unfit = operands.iter().find(|operand| !self.operands.iter().any(|pattern| means(pattern, operand)));
        unfit.map_or(Ok(()), |operand| Err(format!("the argument {} fits no pattern of the rule", operand.escape_ascii())))
    }

    /// Whether the agent may set a variable for it.
    pub(crate) fn allows_variable(&self, name: &[u8]) -> bool {
        is_harmless_variable(name) || self.env.iter().any(|allowed| allowed.as_bytes() == name)
    }

    /// Checks the rule, and its examples against it.
    ///
    /// # Errors
    /// `InvalidProfile`: a program that no rule can allow, a rule that lets anything through, an example that it does not
    /// bear out, or no example.
    pub fn validate(&self) -> Result<()> {
        let program = &self.program;
        if !program.starts_with('/') || program.contains('\0') || program.split('/').any(|part| part == "..") {
            return Err(bad(format!("{program:?} is not the absolute path of a program")));
        }
        match kind(program) {
            Kind::Shell => {
                return Err(bad(format!("{program} runs whatever it is told, which T1 forbids")).with_help(NO_SHELL));
            }
            Kind::ByOperand if self.operands.iter().chain(self.options.values()).any(|pattern| names_any_program(pattern)) => {
                return Err(bad(format!("{program} starts what its arguments name, and this rule lets any of them through"))
                    .with_help("write the arguments out in `operands` and `options`"));
            }
            _ => {}
        }
        if let Some(flag) = self.flags.iter().chain(self.options.keys()).find(|flag| !flag.starts_with('-')) {
            return Err(bad(format!("{flag:?} is no option: one begins with a dash")));
        }
        if let Some(name) = self.env.iter().find(|name| is_loaders(name) || name.is_empty() || name.contains(['=', '\0'])) {
            return Err(bad(format!("the agent cannot be allowed to set {name:?} for {program}")));
        }
        if self.allow.is_empty() || self.refuse.is_empty() {
            return Err(bad(format!("the rule for {program} has no examples"))
                .with_help("give arguments that it must allow in `allow`, and some that it must refuse in `refuse`"));
        }
        for example in &self.allow {
            self.allows(example)
                .map_err(|why| bad(format!("the rule for {program} must allow {example:?}, and does not: {why}")))?;
        }
        match self.refuse.iter().find(|example| self.allows(example).is_ok()) {
            Some(example) => Err(bad(format!("the rule for {program} must refuse {example:?}, and allows it"))),
            None => Ok(()),
        }
    }
}

/// A pattern that says nothing about how the text begins.
fn is_open(pattern: &str) -> bool {
    pattern.starts_with(['*', '?'])
}

/// A pattern that many programs' names, or many programs in a language, may fit.
fn names_any_program(pattern: &str) -> bool {
    is_open(pattern) || (pattern.starts_with('/') && pattern.contains(['*', '?']))
}

/// Variables that put other code into a program.
fn is_loaders(name: &str) -> bool {
    name.starts_with("LD_") || ["GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH"].contains(&name)
}

/// Whether the agent may set a variable for any program: it names no file and no program, and switches nothing on.
pub fn is_harmless_variable(name: &[u8]) -> bool {
    name.starts_with(b"LC_") || HARMLESS.iter().any(|harmless| harmless.as_bytes() == name)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn curl() -> ProgramRule {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        ProgramRule {
            program: "/usr/bin/curl".into(),
            first: words(&["-q"]),
            flags: words(&["-s", "-S", "-f", "--head", "--"]),
            options: [("-m".to_owned(), "#".to_owned()), ("--max-time".to_owned(), "#".to_owned())].into(),
            operands: words(&["https://*"]),
            min_operands: 1,
            max_operands: Some(1),
            allow: vec![words(&["-q", "-sS", "https://index.example.org/"])],
            refuse: vec![words(&["-q", "-o", "x", "https://index.example.org/"])],
            ..ProgramRule::default()
        }
    }

    #[test]
    fn only_what_is_listed_goes_through() {
        let rule = curl();
        rule.validate().unwrap();
        for good in [
            vec!["-q", "https://a/"],
            vec!["-q", "-m", "5", "https://a/"],
            vec!["-q", "-m5", "https://a/"],
            vec!["-q", "--max-time=5", "https://a/"],
            vec!["-q", "--max-time", "5", "-sSf", "https://a/"],
            vec!["-q", "--", "https://a/"],
        ] {
            assert_eq!(rule.allows(&good), Ok(()), "{good:?}");
        }
        for bad in [
            vec!["https://a/"],
            vec!["-s", "-q", "https://a/"],
            vec!["-q"],
            vec!["-q", "file:///etc/passwd"],
            vec!["-q", "https://a/", "https://b/"],
            vec!["-q", "-so", "x", "https://a/"],
            vec!["-q", "--max-time=1x", "https://a/"],
            vec!["-q", "--max-ti=1", "https://a/"],
            vec!["-q", "-m", "https://a/"],
            vec!["-q", "https://a/", "-m"],
            vec!["-q", "-K", "-", "https://a/"],
            vec!["-q", "--config=x", "https://a/"],
            vec!["-q", "-d@/etc/passwd", "https://a/"],
            vec!["-q", "-", "https://a/"],
        ] {
            assert!(rule.allows(&bad).is_err(), "{bad:?}");
        }
    }

    /// Commands of vim's and less's, files of arguments, tar's bundle without a dash.
    #[test]
    fn options_that_do_not_look_like_any_are_no_operands() {
        let open = |program: &str| ProgramRule {
            program: program.into(),
            operands: vec!["*".into()],
            flags: vec!["-R".into(), "-t".into(), "-f".into()],
            ..ProgramRule::default()
        };
        assert!(open("/usr/bin/vim").allows(&["-R", "file"]).is_ok());
        assert!(open("/usr/bin/vim").allows(&["-R", "+!id", "file"]).is_err());
        assert!(open("/usr/bin/cc").allows(&["@file"]).is_err());
        assert!(ProgramRule { operands: vec!["+%Y".into()], ..open("/usr/bin/date") }.allows(&["+%Y"]).is_ok());
        assert!(open("/bin/tar").allows(&["-tf", "a.tar"]).is_ok());
        assert!(open("/bin/tar").allows(&["cfI", "/dev/null", "/usr/bin/find", "f"]).is_err());
    }

    #[test]
    fn examples_are_checked() {
        let mut rule = curl();
        rule.allow.push(vec!["-q".into(), "ftp://x".into()]);
        assert!(rule.validate().unwrap_err().message().contains("must allow"));
        let mut rule = curl();
        rule.refuse.push(vec!["-q".into(), "https://x".into()]);
        assert!(rule.validate().unwrap_err().message().contains("must refuse"));
        assert!(ProgramRule { allow: Vec::new(), ..curl() }.validate().is_err());
        assert!(ProgramRule { env: vec!["LD_PRELOAD".into()], ..curl() }.validate().is_err());
    }

    #[test]
    fn programs_that_start_others_need_a_rule() {
        for program in [
            "/usr/bin/find",
            "/bin/tar",
            "/usr/bin/git",
            "/usr/bin/awk",
            "/usr/bin/gawk",
            "/usr/bin/env",
            "/usr/bin/xargs",
            "/usr/bin/vim",
            "/usr/bin/vim.basic",
            "/usr/bin/less",
            "/usr/bin/ssh",
            "/usr/bin/python3",
            "/usr/bin/python3.11",
            "/usr/bin/perl5.36",
            "/usr/bin/nice",
            "/usr/bin/sort",
            "/usr/bin/lua5.4",
            "/usr/bin/setarch",
            "/usr/bin/x86_64-linux-gnu-gcc-12",
            "/usr/bin/original-awk",
            "/usr/bin/pydoc3",
            "/usr/bin/journalctl",
            "/usr/bin/vimdiff",
            "/usr/sbin/ip",
            "/usr/bin/xz",
        ] {
            assert!(check_any(program).is_err(), "{program}");
        }
        for program in ["/bin/sh", "/usr/bin/bash", "/bin/busybox", "/lib64/ld-linux-x86-64.so.2", "/usr/bin/sudo"] {
            assert!(check_any(program).is_err(), "{program}");
            assert!(ProgramRule { program: program.into(), ..curl() }.validate().is_err(), "{program}");
        }
        for program in ["/usr/bin/ls", "/bin/cat", "/usr/bin/grep", "/usr/bin/sha256sum", "/usr/bin/wc"] {
            assert!(check_any(program).is_ok(), "{program}");
        }
        for (operand, option) in [("*", None), ("/*", None), ("/usr/bin/*", None), ("A=#", Some(("-S", "*")))] {
            let options = option.map(|(name, pattern): (&str, &str)| (name.to_owned(), pattern.to_owned())).into_iter().collect();
            let open = ProgramRule { program: "/usr/bin/env".into(), operands: vec![operand.into()], options, ..curl() };
            assert!(open.validate().unwrap_err().message().contains("lets any of them through"), "{operand} {option:?}");
        }
    }
}
