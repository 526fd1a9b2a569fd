//! Decisions about what the agent asks for: rules, presets, somebody who is asked. Each one is recorded.

use std::sync::Arc;

use tierbox_core::{
    Action, AgentSettings, Approval, ApprovalRule, Approver, AuditOperation, AuditOutcome, Consent, Error, ErrorKind, Principal,
    Result, Sensitive,
};

use crate::AuditLayer;
use crate::asked::Asked;
use crate::termination::Termination;

/// What all handles of one agent share.
pub(crate) struct Gate {
    pub settings: AgentSettings,
    pub approver: Option<Arc<dyn Approver>>,
    pub audit: Option<AuditLayer>,
    pub environment: String,
    pub termination: Termination,
}

/// A decision with whose it is.
struct Decision {
    consent: Consent,
    by: String,
}

impl Gate {
    /// Whether the agent may do this, after asking whoever must be asked.
    ///
    /// # Errors
    /// `PolicyDenied` with the reason.
    pub async fn pass(&self, machine: &str, asked: Asked<'_>) -> Result<()> {
        self.check_alive()?;
        let tool = asked.tool;
        let rule = self.settings.approvals.iter().find(|rule| asked.is_meant_by(rule));
        let action = Action::new(self.environment.as_str(), machine, tool, asked.what);
        let mut decision = self.decide(&action, rule).await;
        // Whoever was asked took his time: what ended the run meanwhile ended this too.
        if let (Consent::Allow, Err(over)) = (&decision.consent, self.check_alive()) {
            decision.consent = Consent::Reject(over.message().to_owned());
        }
        self.record(&action, verdict(&decision.consent), &decision.by, reason(&decision.consent));
        match decision.consent {
            Consent::Allow => Ok(()),
            Consent::Reject(reason) => Err(denied(tool, &reason, &decision.by)
                .with_help("go on without it, or have somebody approve it: see [tools.approvals] in the profile")),
            Consent::Terminate(reason) => {
                self.termination.set();
                Err(denied(tool, &format!("{reason}; the run is terminated"), &decision.by))
            }
        }
    }

    /// Whether some action of this kind could get consent.
    pub fn may(&self, tool: Sensitive) -> bool {
        let passes = |approval: Approval| match approval {
            Approval::Allow => true,
            Approval::Ask => self.approver.is_some(),
            Approval::Reject | Approval::Terminate => false,
        };
        let rules = self.settings.approvals.iter().filter(|rule| rule.tool.is_none_or(|of| of == tool));
        rules.map(|rule| rule.action).chain([self.settings.preset.approval()]).any(passes)
    }

    /// Records a refusal that the tier made, and passes it on.
    pub fn refused<T>(&self, machine: &str, tool: Sensitive, what: impl FnOnce() -> String, refused: Error) -> Result<T> {
        let action = Action::new(self.environment.as_str(), machine, tool, what());
        self.record(&action, "refused", "tier", Some(refused.message()));
        Err(refused)
    }

    /// Whether the agent may still do anything.
    pub fn check_alive(&self) -> Result<()> {
        if self.termination.is_set() { Err(over()) } else { Ok(()) }
    }

    async fn decide(&self, action: &Action, rule: Option<&ApprovalRule>) -> Decision {
        let (approval, by) = match rule {
            Some(rule) => (rule.action, format!("rule {:?}", rule.pattern)),
            None => (self.settings.preset.approval(), format!("preset {}", preset_name(self.settings.preset))),
        };
        match approval {
            Approval::Allow => Decision { consent: Consent::Allow, by },
            Approval::Reject => Decision { consent: Consent::Reject("it is not allowed here".to_owned()), by },
            Approval::Terminate => Decision { consent: Consent::Terminate("it is not allowed here".to_owned()), by },
            Approval::Ask => self.ask(action, by).await,
        }
    }

    async fn ask(&self, action: &Action, by: String) -> Decision {
        let Some(approver) = &self.approver else {
            return Decision { consent: Consent::Reject("it needs approval, and nobody can be asked".to_owned()), by };
        };
        let limit = self.settings.approval_timeout;
        let by = format!("{by}, asked {}", approver.name());
        let consent = match tokio::time::timeout(limit, approver.decide(action)).await {
            Ok(Ok(consent)) => consent,
            Ok(Err(error)) => Consent::Reject(format!("it needs approval, and none could be had: {}", error.message())),
            Err(_) => Consent::Reject(format!("it needs approval, and nobody answered within {} s", limit.as_secs_f64())),
        };
        Decision { consent, by }
    }

    fn record(&self, action: &Action, verdict: &'static str, by: &str, reason: Option<&str>) {
        tracing::info!(target: "tierbox::op", id = self.environment, tool = action.tool.as_str(), verdict, by, "decision");
        let Some(audit) = &self.audit else { return };
        let mut entry = audit
            .entry(Principal::Agent, AuditOperation::Decision)
            .machine(action.machine.as_str())
            .argument("tool", action.tool.as_str())
            .argument("what", action.what.as_str())
            .argument("verdict", verdict)
            .argument("by", by)
            .outcome(AuditOutcome::Done);
        if let Some(reason) = reason {
            entry = entry.argument("reason", reason);
        }
        audit.record(entry);
    }
}

/// What the agent is told once its run was terminated.
pub(crate) fn over() -> Error {
    let message = "the run was terminated by an earlier decision, so that nothing more is done for the agent";
    Error::new(ErrorKind::PolicyDenied, "act as agent", message)
}

fn verdict(consent: &Consent) -> &'static str {
    match consent {
        Consent::Allow => "allowed",
        Consent::Reject(_) => "refused",
        Consent::Terminate(_) => "terminated",
    }
}

fn reason(consent: &Consent) -> Option<&str> {
    match consent {
        Consent::Allow => None,
        Consent::Reject(reason) | Consent::Terminate(reason) => Some(reason),
    }
}

fn preset_name(preset: tierbox_core::Preset) -> &'static str {
    match preset {
        tierbox_core::Preset::Ci => "ci",
        tierbox_core::Preset::Dev => "dev",
        tierbox_core::Preset::Prod => "prod",
    }
}

fn denied(tool: Sensitive, reason: &str, by: &str) -> Error {
    let tool = match tool {
        Sensitive::Exec => "run command",
        Sensitive::Code => "run code",
        Sensitive::Write => "change files",
    };
    Error::new(ErrorKind::PolicyDenied, tool, reason).with_context("decided by", by)
}
