//! What the tooling axis lets the agent run. It binds the agent, not the harness.

use crate::{Error, ErrorKind, ExecRequest, Result, Tooling};

/// The agent's rules, made from a tier and the programs that a profile names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPolicy {
    tooling: Tooling,
    programs: Vec<String>,
}

impl AgentPolicy {
    /// Rules for a tooling level; `programs` are the absolute paths that T1 allows.
    pub fn new(tooling: Tooling, programs: Vec<String>) -> Self {
        Self { tooling, programs }
    }

    /// Checks a command of the agent's, before any side effect.
    ///
    /// T1 compares the first argument with the named programs byte for byte: a program must be called by the absolute
    /// path that the profile names, so that no `PATH` of the agent's choosing decides what runs. Loader variables
    /// (`LD_*`) are refused with it, since they would put other code into an allowed program.
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

    fn check_named(&self, request: &ExecRequest) -> Result<()> {
        let program = request.argv.first().map(Vec::as_slice).unwrap_or_default();
        if !self.programs.iter().any(|allowed| allowed.as_bytes() == program) {
            let named = if self.programs.is_empty() { "none".to_owned() } else { self.programs.join(", ") };
            return Err(denied(format!("T1 allows named programs only, and {} is not one of them", program.escape_ascii()))
                .with_help(format!("call one of these by its full path: {named}")));
        }
        if let Some(variable) = request.env.keys().find(|key| key.starts_with(b"LD_")) {
            return Err(denied(format!("T1 does not let the agent set the loader variable {}", variable.escape_ascii())));
        }
        if request.user.is_some() {
            return Err(denied("T1 does not let the agent choose a user"));
        }
        Ok(())
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
        assert!(policy.check(&ExecRequest::new(["/usr/bin/ls", "-l"])).is_ok());
        for argv0 in ["ls", "/bin/ls", "/usr/bin/../bin/ls", "/usr/bin/ls "] {
            assert_eq!(policy.check(&ExecRequest::new([argv0])).unwrap_err().kind(), ErrorKind::PolicyDenied, "{argv0}");
        }
        let preload = ExecRequest::new(["/usr/bin/ls"]).env("LD_PRELOAD", "/workspace/x.so");
        assert!(policy.check(&preload).is_err());
    }

    #[test]
    fn t2_refuses_all() {
        let policy = AgentPolicy::new(Tooling::T2, vec!["/bin/true".into()]);
        assert!(policy.check(&ExecRequest::new(["/bin/true"])).is_err());
    }
}
