//! Proves the tooling axis: what the agent's handle refuses, and what the machine's kernel does.

use std::path::Path;
use std::sync::Arc;

use tierbox_code::CodeTask;
use tierbox_core::{
    AgentPolicy, AgentSettings, Environment, EnvironmentSpec, ErrorKind, ExecRequest, GuestPath, Result, Sandbox, Tooling,
};
use tierbox_verify::{ControlResult, ProbeResult, ProbeStatus};

use crate::agent::AgentSandbox;
use crate::confinement;
use crate::gate::Gate;
use crate::termination::Termination;

/// A path at which nobody can make anything, so that what is let through has no effect.
const NOWHERE: &str = "/proc/tierbox-probe";
/// A program that is in no machine.
const NO_PROGRAM: &str = "/nonexistent/tierbox-probe";

/// Something that is asked of a handle.
enum Attempt {
    Run(ExecRequest),
    Detached(ExecRequest),
    Code,
    Cleanup,
    Write,
    MakeDir,
    Remove,
    Read,
    List,
    Stat,
    TaskFiles,
    Sessions,
}

/// A rule of the tooling axis, and what must be refused if it holds.
struct Rule {
    id: &'static str,
    rule: &'static str,
    attempts: Vec<Attempt>,
}

/// What the tier of a specification promises of the agent, tried in the machines of its environment.
///
/// # Errors
/// If it could not be tried in a machine at all.
pub(crate) async fn probes(spec: &EnvironmentSpec, environment: &dyn Environment) -> Result<Vec<ProbeResult>> {
    let promised = spec.tier.tooling();
    if promised == Tooling::T0 {
        return Ok(Vec::new());
    }
    let machines = environment.machines();
    let own = AgentPolicy::of(spec);
    let mut found = of_handle(&handle(environment.primary(), own.clone()), promised).await;
    if promised == Tooling::T1 {
        for machine in &machines {
            let mut result = of_kernel(machine.as_ref(), &own).await?;
            result.machine = (machines.len() > 1).then(|| machine.name().to_owned());
            found.push(result);
        }
    }
    Ok(found)
}

/// A handle that is bound by a policy alone: approvals are no part of a tier, and nothing of this is the agent's.
fn handle(machine: Arc<dyn Sandbox>, policy: AgentPolicy) -> AgentSandbox {
    let gate = Gate {
        settings: AgentSettings::default(),
        approver: None,
        audit: None,
        environment: "verification".to_owned(),
        termination: Termination::of(Path::new("/nonexistent"), "probe"),
    };
    AgentSandbox::new(machine.clone(), machine, policy, gate, None)
}

/// What a tooling level promises that a handle refuses, each beside a handle of T0 on the same machine.
pub(crate) async fn of_handle(agent: &AgentSandbox, promised: Tooling) -> Vec<ProbeResult> {
    let free = handle(agent.machine(), AgentPolicy::new(Tooling::T0, Vec::new()));
    let mut found = Vec::new();
    for rule in rules(promised, agent.policy()) {
        let (mut let_through, mut unshown, mut words) = (Vec::new(), Vec::new(), None);
        for attempt in &rule.attempts {
            match attempt.is_refused(agent).await {
                None => let_through.push(attempt.to_string()),
                Some(why) => words = words.or(Some(why)),
            }
            // The control only asks for what has an effect nowhere.
            let refused = match attempt {
                Attempt::Run(request) | Attempt::Detached(request) => free.check(request).is_err(),
                other => other.is_refused(&free).await.is_some(),
            };
            if refused {
                unshown.push(attempt.to_string());
            }
        }
        let status = match (let_through.is_empty(), unshown.is_empty()) {
            (false, _) => ProbeStatus::Fail,
            (true, true) => ProbeStatus::Pass,
            (true, false) => ProbeStatus::Inconclusive,
        };
        let detail = match let_through.is_empty() {
            true => format!("{} tried: {}", rule.attempts.len(), words.unwrap_or_default()),
            false => format!("it was allowed: {}", let_through.join(", ")),
        };
        let shown = match unshown.is_empty() {
            true => format!("{} allowed at T0", rule.attempts.len()),
            false => format!("refused at T0 too: {}", unshown.join(", ")),
        };
        found.push(ProbeResult {
            id: rule.id.to_owned(),
            machine: None,
            rule: rule.rule.to_owned(),
            status,
            detail,
            control: Some(ControlResult { lifted: "tooling axis".to_owned(), found: unshown.is_empty(), detail: shown }),
        });
    }
    found
}

/// Whether the kernel of a machine keeps commands to what the policy names there.
async fn of_kernel(machine: &dyn Sandbox, policy: &AgentPolicy) -> Result<ProbeResult> {
    let program = tierbox_guest::supervisor::BYTES.unwrap_or_default();
    match confinement::named(machine, policy).await {
        Ok(named) => tierbox_verify::verify_confined(machine, program, &named).await,
        // The agent's handle refuses to begin for the same reason.
        Err(error) if matches!(error.kind(), ErrorKind::PolicyDenied | ErrorKind::TierRefused) => {
            Ok(tierbox_verify::unconfined(error.message()))
        }
        Err(error) => Err(error),
    }
}

fn rules(promised: Tooling, policy: &AgentPolicy) -> Vec<Rule> {
    let run = |argv: &[&str]| Attempt::Run(ExecRequest::new(argv.iter().copied()));
    let shells = ["/bin/sh", "/bin/bash", "/usr/bin/dash", "/bin/zsh", "sh"].map(|shell| run(&[shell, "-c", "exit 0"]));
    let indirect = [run(&["/bin/busybox", "sh", "-c", "exit 0"]), run(&["/usr/bin/env", "sh", "-c", "exit 0"])];
    let interpreters = [
        run(&["/usr/bin/python3", "-c", "pass"]),
        run(&["/usr/bin/perl", "-e", "1"]),
        run(&["/usr/bin/awk", "BEGIN{}"]),
        run(&["/usr/local/bin/node", "-e", "0"]),
        run(&["/lib64/ld-linux-x86-64.so.2", "/bin/true"]),
    ];
    let unnamed = || ExecRequest::new([NO_PROGRAM]);
    let mut programs = vec![Attempt::Run(unnamed()), Attempt::Detached(unnamed())];
    if promised == Tooling::T2 {
        programs.extend(policy.programs().into_iter().map(|program| run(&[program])));
        programs.push(run(&["/bin/true"]));
    }
    let mut rules = vec![
        Rule {
            id: "t.exec",
            rule: match promised {
                Tooling::T2 => "The agent's handle refuses every program",
                _ => "The agent's handle refuses a program that is not named",
            },
            attempts: programs,
        },
        Rule { id: "t.shell", rule: "The agent's handle refuses shells", attempts: shells.into_iter().chain(indirect).collect() },
        Rule {
            id: "t.interpreter",
            rule: "The agent's handle refuses what runs a program that it is given",
            attempts: interpreters.into(),
        },
        Rule {
            id: "t.write",
            rule: "The agent's handle changes no file",
            attempts: vec![Attempt::Write, Attempt::MakeDir, Attempt::Remove],
        },
        Rule { id: "t.code", rule: "The agent's handle runs no code", attempts: vec![Attempt::Code, Attempt::Cleanup] },
    ];
    if promised == Tooling::T1 {
        let command = policy.some_command().unwrap_or_else(|| vec![NO_PROGRAM]);
        let allowed = || ExecRequest::new(command.iter().copied());
        rules.push(Rule {
            id: "t.variables",
            rule: "A named program takes no variable and no user that would make it another",
            attempts: [allowed().env("LD_PRELOAD", NO_PROGRAM), allowed().env("PATH", "/nonexistent"), allowed().user("root")]
                .map(Attempt::Run)
                .into(),
        });
    }
    if promised == Tooling::T2 {
        rules.push(Rule {
            id: "t.look",
            rule: "The agent's handle reads nothing",
            attempts: vec![Attempt::Read, Attempt::List, Attempt::Stat, Attempt::TaskFiles, Attempt::Sessions],
        });
    }
    rules
}

impl Attempt {
    /// The words with which a handle refuses it; `None` if it lets it through, whatever comes of it then.
    async fn is_refused(&self, agent: &AgentSandbox) -> Option<String> {
        let path = GuestPath::from(NOWHERE);
        let done = match self {
            Self::Run(request) => agent.run(request.clone()).await.map(drop),
            Self::Detached(request) => agent.spawn_detached(request.clone()).await.map(drop),
            Self::Code => agent.run_code(&CodeTask::new("none", "")).await.map(drop),
            Self::Cleanup => agent.cleanup_tasks(None).await.map(drop),
            Self::Write => agent.write_bytes(path, Vec::new()).await,
            Self::MakeDir => agent.make_dir(&path).await,
            Self::Remove => agent.remove(&path, false).await,
            Self::Read => agent.read_bytes(path, 1).await.map(drop),
            Self::List => agent.list(&path).await.map(drop),
            Self::Stat => agent.stat(&path, false).await.map(drop),
            Self::TaskFiles => agent.get_files("none", None, 1).await.map(drop),
            Self::Sessions => agent.sessions().await.map(drop),
        };
        done.err().filter(|error| error.kind() == ErrorKind::PolicyDenied).map(|error| error.message().to_owned())
    }
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = match self {
            Self::Run(request) | Self::Detached(request) => {
                let variables = request.env.keys().map(|name| format!("{}=… ", name.escape_ascii()));
                let user = request.user.iter().map(|user| format!("as {user}: "));
                let argv = String::from_utf8_lossy(&request.argv.join(&b' ')).into_owned();
                return write!(f, "{}{argv}", user.chain(variables).collect::<String>());
            }
            Self::Code => "run code",
            Self::Cleanup => "remove tasks",
            Self::Write => "write a file",
            Self::MakeDir => "make a directory",
            Self::Remove => "remove a file",
            Self::Read => "read a file",
            Self::List => "list a directory",
            Self::Stat => "look at a file",
            Self::TaskFiles => "read a task's files",
            Self::Sessions => "list sessions",
        };
        f.write_str(word)
    }
}
