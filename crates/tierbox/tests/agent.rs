//! The agent's handle on a real sandbox: T1 by rules and by the kernel, approvals, and decisions on record.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use support::{fixture, started};
use tierbox::code::CodeTask;
use tierbox::{
    Action, AgentOptions, AgentPolicy, Approval, ApprovalRule, Approver, Audit, AuditEntry, AuditOperation, Consent, ErrorKind,
    ExecRequest, ExecState, GuestPath, Hold, KillReason, Outcome, Preset, Profile, ProfileBuilder, ProgramRule, SandboxExt,
    Sensitive, StartOptions, Tooling,
};
use tokio::sync::oneshot;

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let checked = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), checked).await.expect("it comes true");
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn t1() -> ProfileBuilder {
    Profile::builder("t1", "T1.H1.N2".parse().unwrap())
}

/// A rule that lets a program do what it was not meant to.
fn careless(program: &str, options: &[&str], operands: &[&str], allowed: &[&str]) -> ProgramRule {
    ProgramRule {
        program: program.to_owned(),
        options: options.iter().map(|option| ((*option).to_owned(), "*".to_owned())).collect(),
        operands: words(operands),
        allow: vec![words(allowed)],
        refuse: vec![words(&["--no-such-option"])],
        ..ProgramRule::default()
    }
}

mod escape {
    use super::*;

    /// E04 and E38 for T1: other names of a program, and variables that change what it does.
    #[tokio::test]
    async fn only_the_named_program_by_its_name() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start_with(t1().programs(["/usr/bin/cat"]), StartOptions::new()).await) else {
            return;
        };
        running.write_bytes("text", "x").await.unwrap();
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        let cat = || ExecRequest::new(["/usr/bin/cat", "text"]);
        assert_eq!(agent.run(cat()).await.unwrap().stdout.text(), "x");
        for argv0 in [
            "cat",
            "/bin/cat",
            "./cat",
            "//usr/bin/cat",
            "/usr/bin/./cat",
            "/usr/bin/cat/",
            "/usr/bin/cat\n",
            "/usr/bin/cat\u{0}",
            "/proc/self/exe",
            "/lib64/ld-linux-x86-64.so.2",
            "",
            "-c",
            "$(cat)",
        ] {
            let refused = agent.run(ExecRequest::new([argv0, "text"])).await.unwrap_err();
            assert!(matches!(refused.kind(), ErrorKind::PolicyDenied | ErrorKind::InvalidInput), "{argv0:?}: {refused}");
        }
        for variable in ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GCONV_PATH", "PATH", "HOME", "BASH_ENV", "X"] {
            assert_eq!(
                agent.run(cat().env(variable, "/workspace")).await.unwrap_err().kind(),
                ErrorKind::PolicyDenied,
                "{variable}"
            );
        }
        // What the agent says of its own confinement does not count.
        let own = cat().confine([GuestPath::from("/usr/bin/id")]);
        assert_eq!(agent.run(own).await.unwrap().stdout.text(), "x");
        assert!(agent.write_bytes("text", Vec::new()).await.is_err() && agent.remove(&"text".into(), false).await.is_err());
        assert!(agent.run_code(&CodeTask::new("sh", "id")).await.is_err());
        running.stop().await.unwrap();
    }

    /// Rules that let an executing program through: the kernel does not.
    #[tokio::test]
    async fn the_kernel_holds_what_a_careless_rule_lets_through() {
        let fixture = fixture();
        let profile = t1()
            .rule(careless("/usr/bin/env", &[], &["/usr/bin/id"], &["/usr/bin/id"]))
            .rule(careless("/usr/bin/find", &["-exec"], &["*"], &[".", "-exec", "/usr/bin/id", ";"]))
            .rule(careless("/usr/bin/tee", &[], &["*"], &["made"]))
            .rule(careless("/usr/bin/sort", &["-o", "--compress-program"], &["*"], &["-o", "made", "text"]))
            .rule(careless("/usr/bin/cp", &[], &["*"], &["/usr/bin/id", "own"]));
        let Some(running) = started(fixture.client.start_with(profile, StartOptions::new()).await) else { return };
        running.write_bytes("text", "b\na\n").await.unwrap();
        running.write_bytes("id", "").await.unwrap();
        let loader = running.run(ExecRequest::shell("ls /lib64/ld-*.so* /lib/ld-*.so* 2>/dev/null | head -n 1")).await.unwrap();
        let loader = loader.stdout.text().trim().to_owned();
        assert!(running.run(ExecRequest::new([loader.as_str(), "/usr/bin/id"])).await.unwrap().success(), "{loader}");
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        // It looks like `id`, and would be executable, had the harness not put it there as well.
        running.run(ExecRequest::shell("cp /usr/bin/id own; chmod 755 own")).await.unwrap();
        for argv in [
            ["/usr/bin/env", "/usr/bin/id"].as_slice(),
            &["/usr/bin/find", "text", "-exec", &loader, "/usr/bin/id", ";"],
            &["/usr/bin/find", "text", "-exec", "/usr/bin/find", "text", "-exec", &loader, "./own", ";"],
            &["/usr/bin/find", "text", "-exec", "/usr/bin/id", ";"],
            &["/usr/bin/find", "text", "-exec", "./own", ";"],
            &["/usr/bin/tee", "made"],
            &["/usr/bin/tee", "/tmp/made"],
            &["/usr/bin/sort", "-o", "made", "text"],
            &["/usr/bin/sort", "-o", "text", "text"],
            &["/usr/bin/cp", "/usr/bin/id", "own2"],
        ] {
            let ran = agent.run(ExecRequest::new(argv)).await.unwrap();
            assert!(!ran.stdout.text().contains("uid="), "{argv:?}: {ran:?}");
            if !argv[0].ends_with("find") {
                assert!(!ran.success(), "{argv:?}: {ran:?}");
            }
        }
        let left = running.run(ExecRequest::shell("cat text; ls made /tmp/made own2 2>/dev/null | wc -l")).await.unwrap();
        assert_eq!(left.stdout.text(), "b\na\n0\n");
        // A command that outlives its caller is held all the same.
        let id = agent.spawn_detached(ExecRequest::new(["/usr/bin/tee", "made"])).await.unwrap();
        running.wait(id).await.unwrap();
        assert!(running.stat(&"made".into(), false).await.is_err());
        // The harness is free.
        assert!(running.run(ExecRequest::new(["/usr/bin/env", "/usr/bin/id"])).await.unwrap().success());
        running.stop().await.unwrap();
    }

    /// Only where its rule says so, and then no more than named programs by their names.
    #[tokio::test]
    async fn a_program_starts_others_only_if_its_rule_says_so() {
        let fixture = fixture();
        let counting = |children| ProgramRule {
            children,
            ..careless("/usr/bin/env", &[], &["/usr/bin/wc", "/usr/bin/id"], &["/usr/bin/wc"])
        };
        for (children, status) in [(true, 0), (false, 126)] {
            let profile = t1().programs(["/usr/bin/wc"]).rule(counting(children));
            let Some(running) = started(fixture.client.start_with(profile, StartOptions::new()).await) else { return };
            let agent = running.for_agent(AgentOptions::new()).await.unwrap();
            let counted = agent.run(ExecRequest::new(["/usr/bin/env", "/usr/bin/wc"])).await.unwrap();
            assert_eq!(counted.outcome(), Outcome::Exited(status), "{counted:?}");
            let other = agent.run(ExecRequest::new(["/usr/bin/env", "/usr/bin/id"])).await.unwrap();
            assert_eq!(other.outcome(), Outcome::Exited(126), "{other:?}");
            running.stop().await.unwrap();
        }
    }

    /// A name that the profile allows leads to something else inside.
    #[tokio::test]
    async fn a_link_to_a_shell_and_a_script_are_refused() {
        let fixture = fixture();
        let named = ["/workspace/tool", "/workspace/absent"];
        let Some(running) = started(fixture.client.start_with(t1().programs(named), StartOptions::new()).await) else { return };
        for (make, kind) in [
            ("ln -sf /bin/sh tool", ErrorKind::PolicyDenied),
            ("ln -sf /usr/bin/env middle; ln -sf middle tool", ErrorKind::PolicyDenied),
            ("ln -sf tool tool", ErrorKind::TierRefused),
            ("rm -f tool; printf '#!/bin/sh\\nid\\n' > tool; chmod 755 tool", ErrorKind::TierRefused),
            ("rm -f tool; mkdir tool", ErrorKind::TierRefused),
        ] {
            running.run(ExecRequest::shell(make)).await.unwrap();
            let refused = running.for_agent(AgentOptions::new()).await.err().map(|error| error.kind());
            assert_eq!(refused, Some(kind), "{make}");
            assert_eq!(running.agent().run(ExecRequest::new(["/workspace/tool"])).await.unwrap_err().kind(), kind, "{make}");
        }
        running.run(ExecRequest::shell("rm -rf tool; cp /usr/bin/true tool")).await.unwrap();
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        assert_eq!(agent.run(ExecRequest::new(["/workspace/tool"])).await.unwrap().outcome(), Outcome::Exited(0));
        running.stop().await.unwrap();
    }
}

/// Answers as it is told, and remembers what it was asked.
struct Scripted {
    answer: fn(&Action) -> Option<Consent>,
    asked: Mutex<Vec<Action>>,
}

impl Scripted {
    fn new(answer: fn(&Action) -> Option<Consent>) -> Arc<Self> {
        Arc::new(Self { answer, asked: Mutex::default() })
    }
}

#[async_trait]
impl Approver for Scripted {
    async fn decide(&self, action: &Action) -> tierbox::Result<Consent> {
        self.asked.lock().unwrap().push(action.clone());
        match (self.answer)(action) {
            Some(consent) => Ok(consent),
            None => std::future::pending().await,
        }
    }

    fn name(&self) -> &str {
        "scripted"
    }
}

/// Says when it is asked, and answers when it is told what.
struct Slow(Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<Consent>)>>);

impl Slow {
    fn new() -> (Arc<Self>, oneshot::Receiver<()>, oneshot::Sender<Consent>) {
        let ((tell, asked), (answer, answered)) = (oneshot::channel(), oneshot::channel());
        (Arc::new(Self(Mutex::new(Some((tell, answered))))), asked, answer)
    }
}

#[async_trait]
impl Approver for Slow {
    async fn decide(&self, _: &Action) -> tierbox::Result<Consent> {
        let (tell, answered) = self.0.lock().unwrap().take().expect("one question");
        tell.send(()).unwrap();
        Ok(answered.await.unwrap())
    }

    fn name(&self) -> &str {
        "slow"
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<AuditEntry>>);

impl Audit for Log {
    fn record(&self, entry: AuditEntry) {
        self.0.lock().unwrap().push(entry);
    }
}

impl Log {
    /// Every decision: tool, verdict, by whom.
    fn decisions(&self) -> Vec<(String, String, String)> {
        let entries = self.0.lock().unwrap();
        let text = |entry: &AuditEntry, name: &str| entry.arguments[name].as_str().unwrap_or_default().to_owned();
        let decisions = entries.iter().filter(|entry| entry.operation == AuditOperation::Decision);
        decisions.map(|entry| (text(entry, "tool"), text(entry, "verdict"), text(entry, "by"))).collect()
    }
}

fn t0(preset: Preset, rules: Vec<ApprovalRule>) -> ProfileBuilder {
    Profile::builder("approved", "T0.H1.N2".parse().unwrap()).agent(move |agent| {
        agent.preset = preset;
        agent.approvals = rules.clone();
        agent.approval_timeout = Duration::from_millis(300);
    })
}

fn rule(tool: Option<Sensitive>, pattern: &str, action: Approval) -> ApprovalRule {
    ApprovalRule { tool, pattern: pattern.to_owned(), action }
}

mod conformance {
    use super::*;

    #[tokio::test]
    async fn what_needs_consent_is_done_only_with_it() {
        let fixture = fixture();
        let log = Arc::new(Log::default());
        let rules = vec![
            rule(Some(Sensitive::Exec), "/bin/cat *", Approval::Allow),
            rule(Some(Sensitive::Write), "/etc/*", Approval::Reject),
        ];
        let options = StartOptions::new().audit(log.clone());
        let Some(running) = started(fixture.client.start_with(t0(Preset::Dev, rules), options).await) else { return };
        let approver = Scripted::new(|action| match action.what.as_str() {
            what if what.contains("never") => Some(Consent::Reject("not today".into())),
            what if what.contains("silent") => None,
            _ => Some(Consent::Allow),
        });
        let agent = running.for_agent(AgentOptions::new().approver(approver.clone())).await.unwrap();
        agent.write_bytes("text", b"x".to_vec()).await.unwrap();
        assert_eq!(agent.run(ExecRequest::new(["/bin/cat", "text"])).await.unwrap().stdout.text(), "x");
        assert!(agent.run_code(&CodeTask::new("sh", "echo x")).await.unwrap().success());
        let refused = agent.run(ExecRequest::new(["/bin/echo", "never", "it's"])).await.unwrap_err();
        assert_eq!((refused.kind(), refused.message()), (ErrorKind::PolicyDenied, "not today"));
        let refused = agent.run(ExecRequest::shell("touch silent")).await.unwrap_err();
        assert!(refused.message().contains("nobody answered within 0.3 s"), "{refused}");
        assert_eq!(agent.write_bytes("/etc/hosts", Vec::new()).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        assert!(running.stat(&"silent".into(), false).await.is_err(), "what was refused was done");
        let asked: Vec<String> = approver.asked.lock().unwrap().iter().map(|action| action.what.clone()).collect();
        assert_eq!(asked, ["write text: x", "sh: echo x", "/bin/echo never 'it'\\''s'", "/bin/sh -c 'touch silent'"]);
        // Looking needs no consent; without anybody to ask, what needs it is refused.
        assert_eq!(agent.read_bytes("text", 10).await.unwrap(), b"x");
        let alone = running.for_agent(AgentOptions::new()).await.unwrap();
        assert!(alone.run(ExecRequest::new(["/bin/true"])).await.unwrap_err().message().contains("nobody can be asked"));
        assert!(alone.may(Sensitive::Exec) && !alone.may(Sensitive::Code) && !alone.is_terminated());
        running.stop().await.unwrap();
        let (dev, asked) = ("preset dev".to_owned(), "preset dev, asked scripted".to_owned());
        let of = |tool: &str, verdict: &str, by: &str| (tool.to_owned(), verdict.to_owned(), by.to_owned());
        let expected = [
            of("write", "allowed", &asked),
            of("exec", "allowed", "rule \"/bin/cat *\""),
            of("code", "allowed", &asked),
            of("exec", "refused", &asked),
            of("exec", "refused", &asked),
            of("write", "refused", "rule \"/etc/*\""),
            of("exec", "refused", &dev),
        ];
        assert_eq!(log.decisions(), expected);
    }

    #[tokio::test]
    async fn one_agent_can_be_bound_more_than_the_profile_does_and_none_less() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start_with(t0(Preset::Ci, Vec::new()), StartOptions::new()).await) else {
            return;
        };
        let bound = |policy: AgentPolicy| running.for_agent(AgentOptions::new().policy(policy));
        let t1 = bound(AgentPolicy::new(Tooling::T1, words(&["/usr/bin/id"]))).await.unwrap();
        assert!(t1.run(ExecRequest::new(["/usr/bin/id"])).await.unwrap().success());
        assert_eq!(t1.run(ExecRequest::shell("id")).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        assert_eq!(t1.write_bytes("x", Vec::new()).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        let t2 = bound(AgentPolicy::new(Tooling::T2, Vec::new())).await.unwrap();
        assert_eq!(t2.read_bytes("/etc/hostname", 10).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        let shell = bound(AgentPolicy::new(Tooling::T1, words(&["/bin/sh"]))).await.err().unwrap();
        assert_eq!(shell.kind(), ErrorKind::InvalidProfile, "{shell}");
        // The profile's own handle is as free as before.
        assert!(running.for_agent(AgentOptions::new()).await.unwrap().run(ExecRequest::shell("id")).await.unwrap().success());
        running.stop().await.unwrap();
        let text_only = Profile::builder("text", "T2.H1.N2".parse().unwrap());
        let running = fixture.client.start_with(text_only, StartOptions::new()).await.unwrap();
        for weaker in [AgentPolicy::new(Tooling::T0, Vec::new()), AgentPolicy::new(Tooling::T1, words(&["/usr/bin/id"]))] {
            let refused = running.for_agent(AgentOptions::new().policy(weaker)).await.err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::WeakerRefused, "{refused}");
        }
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_terminated_run_does_nothing_more() {
        let fixture = fixture();
        let log = Arc::new(Log::default());
        let rules = vec![rule(Some(Sensitive::Exec), "/bin/true", Approval::Allow)];
        let options = StartOptions::new().audit(log.clone());
        let Some(running) = started(fixture.client.start_with(t0(Preset::Prod, rules), options).await) else { return };
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        assert!(agent.run(ExecRequest::new(["/bin/true"])).await.unwrap().success());
        assert!(agent.run(ExecRequest::new(["/bin/false"])).await.unwrap_err().message().contains("terminated"));
        assert!(agent.is_terminated() && running.is_terminated());
        assert!(agent.run(ExecRequest::new(["/bin/true"])).await.is_err());
        assert!(agent.read_bytes("/etc/hostname", 100).await.is_err());
        assert!(running.agent().run(ExecRequest::new(["/bin/true"])).await.is_err(), "another handle of the same agent's");
        // The harness still scores.
        assert!(running.run(ExecRequest::new(["/bin/true"])).await.unwrap().success());
        // Nor does another process that finds it.
        let marks = fixture.client.state_path().unwrap().join("terminated");
        assert!(marks.join(running.id()).exists());
        running.stop().await.unwrap();
        assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 0);
        let verdicts: Vec<String> = log.decisions().into_iter().map(|(_, verdict, _)| verdict).collect();
        assert_eq!(verdicts, ["allowed", "terminated"]);
    }

    /// However it is run, and whichever process decides.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_agent_runs_ends_when_its_run_is_terminated() {
        let fixture = fixture();
        let rules = vec![rule(Some(Sensitive::Exec), "/bin/false", Approval::Terminate)];
        let options = StartOptions::new().hold(Hold::Until(SystemTime::now() + Duration::from_secs(600)));
        let Some(running) = started(fixture.client.start_with(t0(Preset::Ci, rules), options).await) else { return };
        let elsewhere = fixture.client.attach(running.id()).await.unwrap();
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        let endless = || ExecRequest::new(["/bin/sleep", "1000"]);
        let (collected, code) = (agent.clone(), agent.clone());
        let collected = tokio::spawn(async move { collected.run(endless()).await.map(drop) });
        let code = tokio::spawn(async move { code.run_code(&CodeTask::new("sh", "exec sleep 1000")).await.map(drop) });
        let mut spawned = agent.spawn(endless()).await.unwrap();
        agent.spawn_detached(endless()).await.unwrap();
        let harness = running.spawn(ExecRequest::new(["/bin/sleep", "2000"])).await.unwrap();
        let alive = async |wanted: usize| {
            let execs = running.execs().await.unwrap();
            execs.iter().filter(|exec| matches!(exec.state, ExecState::Running)).count() == wanted
        };
        until(|| alive(5)).await;
        let decider = elsewhere.for_agent(AgentOptions::new()).await.unwrap();
        assert!(decider.run(ExecRequest::new(["/bin/false"])).await.unwrap_err().message().contains("terminated"));
        assert_eq!(agent.read_bytes("/etc/hostname", 100).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        for under_way in [collected, code] {
            assert_eq!(under_way.await.unwrap().unwrap_err().kind(), ErrorKind::PolicyDenied);
        }
        assert_eq!(spawned.wait().await.unwrap().outcome, Outcome::Killed(KillReason::Cancelled));
        // The harness's own goes on.
        until(|| alive(1)).await;
        drop(harness);
        running.stop().await.unwrap();
    }

    /// A consent that comes after the run was terminated is none.
    #[tokio::test]
    async fn what_was_asked_before_a_run_was_terminated_is_not_done_after_it() {
        let fixture = fixture();
        let rules = vec![rule(Some(Sensitive::Exec), "/bin/false", Approval::Terminate)];
        let Some(running) = started(fixture.client.start_with(t0(Preset::Dev, rules), StartOptions::new()).await) else { return };
        let (slow, asked, answer) = Slow::new();
        let agent = running.for_agent(AgentOptions::new().approver(slow)).await.unwrap();
        let waiting = agent.clone();
        let waits = tokio::spawn(async move { waiting.write_bytes("made", b"made".to_vec()).await });
        asked.await.unwrap();
        agent.run(ExecRequest::new(["/bin/false"])).await.unwrap_err();
        answer.send(Consent::Allow).unwrap();
        assert_eq!(waits.await.unwrap().unwrap_err().kind(), ErrorKind::PolicyDenied);
        let made = running.run(ExecRequest::shell("ls")).await.unwrap();
        assert_eq!(made.stdout.text(), "");
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn refusals_of_the_tier_are_on_record() {
        let fixture = fixture();
        let log = Arc::new(Log::default());
        let options = StartOptions::new().audit(log.clone());
        let Some(running) = started(fixture.client.start_with(t1().programs(["/usr/bin/wc"]), options).await) else { return };
        let agent = running.for_agent(AgentOptions::new()).await.unwrap();
        assert!(agent.run(ExecRequest::shell("id")).await.is_err());
        assert!(agent.write_bytes("x", Vec::new()).await.is_err());
        running.stop().await.unwrap();
        fixture.assert_empty().await;
        let of = |tool: &str| (tool.to_owned(), "refused".to_owned(), "tier".to_owned());
        assert_eq!(log.decisions(), [of("exec"), of("write")]);
    }
}
