//! What the tooling axis lets the agent run. It binds the agent, not the harness.

use crate::rules::{self, check_any};
use crate::{AgentSettings, EnvironmentSpec, Error, ErrorKind, ExecRequest, Preset, ProgramRule, Result, Tooling};

/// The agent's rules, made from a tier and the programs that a profile names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPolicy {
    tooling: Tooling,
    /// Allowed with any arguments.
    programs: Vec<String>,
    rules: Vec<ProgramRule>,
}

impl AgentPolicy {
    /// Rules for a tooling level; `programs` are the absolute paths that T1 allows with any arguments.
    pub fn new(tooling: Tooling, programs: Vec<String>) -> Self {
        Self { tooling, programs, rules: Vec::new() }
    }

    /// The rules of a specification.
    pub fn of(spec: &EnvironmentSpec) -> Self {
        Self::new(spec.tier.tooling(), spec.programs.clone()).with_rules(spec.agent.rules.clone())
    }

    /// Adds programs that T1 allows with certain arguments.
    #[must_use]
    pub fn with_rules(mut self, rules: Vec<ProgramRule>) -> Self {
        self.rules = rules;
        self
    }

    /// What the agent may do.
    pub fn tooling(&self) -> Tooling {
        self.tooling
    }

    /// The programs that T1 names, without repetition.
    pub fn programs(&self) -> Vec<&str> {
        let all = self.programs.iter().map(String::as_str).chain(self.rules.iter().map(|rule| rule.program.as_str()));
        let mut named: Vec<&str> = Vec::new();
        for program in all {
            if !named.contains(&program) {
                named.push(program);
            }
        }
        named
    }

    /// For each rule, one command that it allows, for people and models.
    pub fn examples(&self) -> Vec<String> {
        let example = |rule: &ProgramRule| Some(format!("{} {}", rule.program, rule.allow.first()?.join(" ")));
        self.rules.iter().filter_map(example).collect()
    }

    /// Some command that T1 allows; `None` if it names no program.
    pub fn some_command(&self) -> Option<Vec<&str>> {
        let ruled = || {
            let rule = self.rules.first()?;
            let arguments = rule.allow.first().into_iter().flatten();
            Some(std::iter::once(&rule.program).chain(arguments).map(String::as_str).collect())
        };
        self.programs.first().map(|program| vec![program.as_str()]).or_else(ruled)
    }

    /// Checks that the rules hold what T1 promises: no shell, no program that starts others unless a rule lists its options,
    /// and every rule true to its own examples.
    ///
    /// # Errors
    /// `InvalidProfile` naming the program.
    pub fn validate(&self) -> Result<()> {
        self.programs.iter().try_for_each(|program| check_any(program))?;
        self.rules.iter().try_for_each(ProgramRule::validate)
    }

    /// Checks what a named program really is, once its links are followed: `/usr/bin/editor` may be an editor that runs
    /// programs, and `/bin/ls` a shell by another name.
    ///
    /// # Errors
    /// `PolicyDenied` naming both.
    pub fn check_resolved(&self, named: &str, real: &str) -> Result<()> {
        let by_rule = self.rules.iter().any(|rule| rule.program == named);
        let known = if by_rule { rules::check_ruled(real) } else { check_any(real) };
        known.map_err(|error| denied(format!("{named} is {real} in this machine, and {}", error.message())))
    }

    /// Checks a command of the agent's, before any side effect.
    ///
    /// T1 compares the first argument with the named programs byte for byte: a program must be called by the absolute
    /// path that the profile names, so that no `PATH` of the agent's choosing decides what runs. Arguments are held against
    /// the program's rules. Of variables only those that name neither file nor program can be set, and those that a rule lists.
    ///
    /// # Errors
    /// [`ErrorKind::PolicyDenied`] naming the rule.
    pub fn check(&self, request: &ExecRequest) -> Result<()> {
        match self.tooling {
            Tooling::T0 => Ok(()),
            Tooling::T1 => self.check_named(request),
            Tooling::T2 => Err(denied("T2 allows no execution")
                .with_help("use a T0 or T1 profile, or --as-harness for a command of the harness's own")),
        }
    }

    /// Whether a command that T1 allows may start programs itself: if a rule that allows it says so.
    pub fn allows_children(&self, request: &ExecRequest) -> bool {
        let program = request.argv.first().map(Vec::as_slice).unwrap_or_default();
        let arguments = request.argv.get(1..).unwrap_or_default();
        let means = |rule: &ProgramRule| rule.program.as_bytes() == program && rule.allows(arguments).is_ok();
        self.rules.iter().any(|rule| rule.children && means(rule))
    }

    fn check_named(&self, request: &ExecRequest) -> Result<()> {
        let program = request.argv.first().map(Vec::as_slice).unwrap_or_default();
        let is_any = self.programs.iter().any(|allowed| allowed.as_bytes() == program);
        let rules: Vec<&ProgramRule> = self.rules.iter().filter(|rule| rule.program.as_bytes() == program).collect();
        if !is_any && rules.is_empty() {
            let named = self.programs();
            let help = match named.is_empty() {
                true => "the profile names none: name them in tools.programs, or as [[tools.rules]]".to_owned(),
                false => format!("call one of these by its full path: {}", named.join(", ")),
            };
            return Err(denied(format!("T1 allows named programs only, and {} is not one of them", program.escape_ascii()))
                .with_help(help));
        }
        if request.user.is_some() {
            return Err(denied("T1 does not let the agent choose a user"));
        }
        let arguments = request.argv.get(1..).unwrap_or_default();
        let allowing: Vec<&ProgramRule> = rules.iter().copied().filter(|rule| rule.allows(arguments).is_ok()).collect();
        if !is_any && allowing.is_empty() {
            let why = rules.iter().find_map(|rule| rule.allows(arguments).err()).unwrap_or_default();
            let example = rules.iter().find_map(|rule| rule.allow.first()).map(|arguments| arguments.join(" "));
            let error = denied(format!("T1 does not allow {} with these arguments: {why}", program.escape_ascii()));
            return Err(match example {
                Some(example) => error.with_help(format!("allowed is, for example: {} {example}", program.escape_ascii())),
                None => error,
            });
        }
        let allowed = |name: &[u8]| rules::is_harmless_variable(name) || allowing.iter().any(|rule| rule.allows_variable(name));
        match request.env.keys().find(|name| !allowed(name)) {
            Some(name) => Err(denied(format!("T1 does not let the agent set the variable {}", name.escape_ascii()))),
            None => Ok(()),
        }
    }
}

impl AgentSettings {
    /// The rules for a tooling level.
    pub fn policy(&self, tooling: Tooling, programs: Vec<String>) -> AgentPolicy {
        AgentPolicy::new(tooling, programs).with_rules(self.rules.clone())
    }
}

impl EnvironmentSpec {
    /// Whether something is decided about what the agent does: by T1 or T2, or by approvals.
    pub fn binds_agent(&self) -> bool {
        self.tier.tooling() > Tooling::T0 || self.agent.preset != Preset::Ci || !self.agent.approvals.is_empty()
    }
}

fn denied(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::PolicyDenied, "exec as agent", message)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn t1_takes_exact_paths_only() {
        let policy = AgentPolicy::new(Tooling::T1, vec!["/usr/bin/ls".into()]);
        policy.validate().unwrap();
        assert!(policy.check(&ExecRequest::new(["/usr/bin/ls", "-l"]).env("LC_ALL", "C")).is_ok());
        for argv0 in ["ls", "/bin/ls", "/usr/bin/../bin/ls", "/usr/bin/ls ", ""] {
            assert_eq!(policy.check(&ExecRequest::new([argv0])).unwrap_err().kind(), ErrorKind::PolicyDenied, "{argv0}");
        }
        for variable in ["LD_PRELOAD", "PATH", "HOME", "PAGER", "LESSOPEN", "BASH_ENV", "http_proxy"] {
            let request = ExecRequest::new(["/usr/bin/ls"]).env(variable, "x");
            assert!(policy.check(&request).is_err(), "{variable}");
        }
        assert!(policy.check(&ExecRequest::new(["/usr/bin/ls"]).user("root")).is_err());
    }

    #[test]
    fn rules_look_at_arguments() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let rule = ProgramRule {
            program: "/usr/bin/find".into(),
            flags: words(&["-print"]),
            options: [("-name".to_owned(), "*".to_owned())].into(),
            operands: words(&["*"]),
            env: words(&["TZ"]),
            allow: vec![words(&[".", "-name", "*.rs"])],
            refuse: vec![words(&[".", "-exec", "id", ";"]), words(&[".", "-delete"])],
            ..ProgramRule::default()
        };
        let policy = AgentPolicy::new(Tooling::T1, Vec::new()).with_rules(vec![rule]);
        policy.validate().unwrap();
        assert!(policy.check(&ExecRequest::new(["/usr/bin/find", ".", "-print"]).env("TZ", "UTC")).is_ok());
        let error = policy.check(&ExecRequest::new(["/usr/bin/find", ".", "-exec", "id", ";"])).unwrap_err();
        assert!(error.message().contains("-exec") && error.help().unwrap().contains("/usr/bin/find . -name"), "{error}");
        assert!(policy.check_resolved("/usr/bin/find", "/usr/bin/find").is_ok());
        assert!(policy.check_resolved("/usr/bin/find", "/bin/busybox").is_err());
    }

    #[test]
    fn only_a_rule_that_allows_the_command_lets_it_start_others() {
        let rule = |first: &str, children| ProgramRule {
            program: "/usr/bin/git".into(),
            first: vec![first.to_owned()],
            children,
            ..ProgramRule::default()
        };
        let policy = AgentPolicy::new(Tooling::T1, vec!["/usr/bin/ls".into()]);
        let policy = policy.with_rules(vec![rule("log", true), rule("status", false)]);
        let allows = |argv: &[&str]| policy.allows_children(&ExecRequest::new(argv));
        assert!(allows(&["/usr/bin/git", "log"]));
        for argv in [["/usr/bin/git", "status"].as_slice(), &["/usr/bin/git", "log", "x"], &["/usr/bin/ls"], &["log", "log"]] {
            assert!(!allows(argv), "{argv:?}");
        }
    }

    #[test]
    fn a_link_to_a_shell_is_a_shell() {
        let policy = AgentPolicy::new(Tooling::T1, vec!["/usr/bin/editor".into()]);
        assert!(policy.check_resolved("/usr/bin/editor", "/usr/bin/vim.basic").is_err());
        assert!(policy.check_resolved("/usr/bin/ls", "/usr/bin/coreutils-ls").is_ok());
    }

    #[test]
    fn t2_refuses_all() {
        let policy = AgentPolicy::new(Tooling::T2, vec!["/bin/true".into()]);
        assert!(policy.check(&ExecRequest::new(["/bin/true"])).is_err());
    }
}
