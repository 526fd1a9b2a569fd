//! What the agent asks for, as rules, people and the log look at it.

use std::borrow::Cow;

use tierbox_code::CodeTask;
use tierbox_core::{Approval, ApprovalRule, ExecRequest, GuestPath, Sensitive, Stdin, fits, is_harmless_variable};

/// How much of what comes along is shown, in bytes each.
const SHOWN: usize = 2000;

/// A sensitive action with all that comes along.
pub(crate) struct Asked<'a> {
    pub tool: Sensitive,
    /// What a rule is compared with: the arguments joined by spaces, the runtime, the path.
    text: Cow<'a, [u8]>,
    /// A command's arguments joined by NUL, of which none holds one: a rule that allows speaks of them one by one.
    words: Option<Vec<u8>>,
    /// What a rule that does not allow is compared with as well: variables, the user, the directory, input, code, files.
    along: Vec<Cow<'a, [u8]>>,
    /// Whether what comes along may make something else of the text, so that no rule that allows the text means it.
    altered: bool,
    /// For people.
    pub what: String,
}

impl<'a> Asked<'a> {
    /// A command. Variables can make any program do anything, and another user may do more than the one that a rule was
    /// written for.
    pub fn exec(request: &'a ExecRequest) -> Self {
        let mut what = shown(&request.argv);
        let mut along = Vec::new();
        let odd = request.env.iter().filter(|(name, _)| !is_harmless_variable(name));
        for (name, value) in odd {
            let pair = [name.as_slice(), b"=", value].concat();
            what += &format!("; with {}", head(&pair));
            along.push(Cow::from(pair));
        }
        let altered = !along.is_empty() || request.user.is_some();
        if let Some(user) = &request.user {
            what += &format!("; as {user}");
            along.push(user.as_bytes().into());
        }
        if let Some(cwd) = &request.cwd {
            what += &format!("; in {cwd}");
            along.push(cwd.as_bytes().into());
        }
        match &request.stdin {
            Stdin::Bytes(bytes) if !bytes.is_empty() => {
                what += &format!("; given {}", head(bytes));
                along.push(bytes.as_ref().into());
            }
            // Nobody can look at what is not there yet.
            Stdin::Stream => what += "; given what comes later",
            _ => {}
        }
        if request.env_clear {
            what += "; without the sandbox's own variables";
        }
        let words = Some(request.argv.join(&b'\0'));
        Self { tool: Sensitive::Exec, text: request.argv.join(&b' ').into(), words, along, altered, what }
    }

    /// A piece of code. Whoever allows a runtime allows all code in it, so that nothing that comes along can add to it.
    pub fn code(task: &'a CodeTask) -> Self {
        let mut what = format!("{}: {}", task.runtime, task.code);
        let mut along = vec![Cow::from(task.code.as_bytes())];
        for (name, value) in &task.env {
            let pair = format!("{name}={value}").into_bytes();
            what += &format!("; with {}", head(&pair));
            along.push(pair.into());
        }
        for (name, contents) in &task.files {
            what += &format!("; and the file {name}: {}", head(contents));
            along.extend([Cow::from(name.as_bytes()), contents.into()]);
        }
        if let Some(stdin) = &task.stdin {
            what += &format!("; given {}", head(stdin));
            along.push(stdin.into());
        }
        Self { tool: Sensitive::Code, text: task.runtime.as_bytes().into(), words: None, along, altered: false, what }
    }

    /// A change of a file, with what is to be in it.
    pub fn change(verb: &str, path: &'a GuestPath, contents: Option<&'a [u8]>) -> Self {
        let with = contents.map_or_else(String::new, |contents| format!(": {}", head(contents)));
        let what = format!("{verb} {}{with}", quoted(&path.to_string()));
        let along = contents.map(Cow::from).into_iter().collect();
        Self { tool: Sensitive::Write, text: path.as_bytes().into(), words: None, along, altered: false, what }
    }

    /// The removal of old tasks.
    pub fn cleanup(what: String) -> Self {
        Self { tool: Sensitive::Write, text: b"tasks".as_slice().into(), words: None, along: Vec::new(), altered: false, what }
    }

    /// Whether a rule speaks of this. One that allows speaks of the text alone, and of nothing that alters it; every other one
    /// speaks of what comes along too.
    pub fn is_meant_by(&self, rule: &ApprovalRule) -> bool {
        let means = |text: &Cow<'_, [u8]>| fits(&rule.pattern, text);
        rule.tool.is_none_or(|tool| tool == self.tool)
            && match rule.action {
                Approval::Allow => !self.altered && self.is_exactly(&rule.pattern),
                _ => means(&self.text) || self.along.iter().any(means),
            }
    }

    /// A space in the pattern is the end of an argument, and a space in an argument none of the pattern's: `git log` is no program's
    /// name.
    fn is_exactly(&self, pattern: &str) -> bool {
        match &self.words {
            Some(words) => fits(&pattern.replace(' ', "\0"), words),
            None => fits(pattern, &self.text),
        }
    }
}

/// The beginning of something, on one line, with its size where that is not all.
fn head(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    let cut = if bytes.len() > SHOWN { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("{}{cut}", quoted(&text))
}

/// A command as a person reads it: arguments with anything odd in them are quoted.
pub(crate) fn shown(argv: &[Vec<u8>]) -> String {
    argv.iter().map(|argument| quoted(&String::from_utf8_lossy(argument))).collect::<Vec<_>>().join(" ")
}

fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte);
    match text.bytes().all(plain) && !text.is_empty() {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn rule(pattern: &str, action: Approval) -> ApprovalRule {
        ApprovalRule { tool: None, pattern: pattern.into(), action }
    }

    #[test]
    fn a_space_in_an_argument_is_none_of_a_rule_that_allows() {
        let is_meant = |argv: &[&str], pattern: &str, action| {
            Asked::exec(&ExecRequest::new(argv.iter().copied())).is_meant_by(&rule(pattern, action))
        };
        for (argv, pattern, allowed) in [
            (&["git", "log"] as &[&str], "git *", true),
            (&["git", "commit", "-m", "two words"], "git commit *", true),
            (&["git /../evil"], "git *", false),
            (&["git ", "log"], "git *", false),
            (&["git", "log -p"], "git log -p", false),
            (&["git", "", "log"], "git  log", true),
            (&["git", " log"], "git  log", false),
        ] {
            assert_eq!(is_meant(argv, pattern, Approval::Allow), allowed, "{argv:?} {pattern}");
            // Whoever refuses or asks is given no way around.
            for action in [Approval::Ask, Approval::Reject, Approval::Terminate] {
                assert!(is_meant(argv, pattern, action), "{argv:?} {pattern}");
            }
        }
        let path = GuestPath::from("two words");
        assert!(Asked::change("write", &path, None).is_meant_by(&rule("two words", Approval::Allow)));
    }

    #[test]
    fn what_comes_along_is_no_way_around_a_rule() {
        let (allow, refuse) = (rule("/usr/bin/git *", Approval::Allow), rule("*secret*", Approval::Terminate));
        let git = || ExecRequest::new(["/usr/bin/git", "log"]);
        assert!(Asked::exec(&git()).is_meant_by(&allow));
        assert!(Asked::exec(&git().env("LANG", "C").cwd("/tmp")).is_meant_by(&allow));
        for altered in [git().env("GIT_CONFIG_COUNT", "1"), git().user("root")] {
            assert!(!Asked::exec(&altered).is_meant_by(&allow), "{altered:?}");
        }
        for hidden in [git().stdin_bytes(b"a secret".to_vec()), git().env("X", "secret"), git().cwd("/secrets")] {
            assert!(Asked::exec(&hidden).is_meant_by(&refuse), "{hidden:?}");
        }
        let code = CodeTask::new("python", "import json").file("json.py", "print('secret')");
        assert!(Asked::code(&code).is_meant_by(&refuse) && Asked::code(&code).is_meant_by(&rule("python", Approval::Allow)));
        assert!(Asked::code(&code).what.contains("and the file json.py: 'print("), "{}", Asked::code(&code).what);
        let contents = b"secret".to_vec();
        let path = GuestPath::from("x");
        let write = Asked::change("write", &path, Some(&contents));
        assert!(write.is_meant_by(&refuse));
        assert!(matches!(write.along.as_slice(), [Cow::Borrowed(_)]), "what may be large is not copied");
        assert_eq!(write.what, "write x: secret", "whoever is asked sees what is written");
        let streamed = git().stdin_stream();
        assert_eq!(Asked::exec(&streamed).what, "/usr/bin/git log; given what comes later");
    }
}
