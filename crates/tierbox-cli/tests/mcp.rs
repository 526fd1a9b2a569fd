//! The MCP server against clients that are not ours: the official Python SDK, and Strands Agents'.
#![cfg(all(feature = "local", feature = "mcp", target_os = "linux"))]

mod support;

use std::path::PathBuf;
use std::process::Command;

/// A Python with both clients, as `tests/engines/python.sh start` makes it.
fn python() -> Option<PathBuf> {
    let told = std::env::var_os("TIERBOX_TEST_PYTHON_MCP").map(PathBuf::from);
    told.or_else(|| Some(PathBuf::from("/var/lib/tierbox-engines/python/mcp/bin/python"))).filter(|path| path.exists())
}

/// Whether the one run of this state directory has decisions on record.
fn decisions(state: &std::path::Path) -> bool {
    let runs: Vec<_> = std::fs::read_dir(state.join("runs")).unwrap().flatten().collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    let log = std::fs::read_to_string(runs[0].path().join("log.jsonl")).unwrap();
    log.contains("\"operation\":\"decision\"")
}

/// Runs a case of the client's against a server of this profile.
fn client(case: &str, profile: &str, settings: &[&str]) {
    let Some(python) = python() else {
        return support::skip(
            "python-mcp",
            "the Python clients of MCP are not installed",
            "tests/engines/python.sh install && tests/engines/python.sh start",
        );
    };
    let state = tempfile::tempdir().unwrap();
    if !support::able(state.path()) {
        return;
    }
    let program = env!("CARGO_BIN_EXE_tierbox");
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mcp_clients/client.py")).arg(case).arg(program);
    command.args(["--quiet", "--state-dir"]).arg(state.path().join("state")).args([
        "mcp",
        "--allow-weaker",
        "--profile",
        profile,
    ]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    // Without a terminal of its own, so that nobody is asked.
    let mut detached = Command::new("setsid");
    detached.arg("--wait").arg(command.get_program()).args(command.get_args());
    detached.env("HOME", support::home(state.path())).env("NO_COLOR", "1").env_remove("TIERBOX_PROFILE");
    let output = detached.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!("ok {case}")), "{said}");
    assert_eq!(decisions(&state.path().join("state")), case != "nothing", "each decision is in the operation log");
    // The sandbox ends with its client.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let listed =
            Command::new(program).args(["ls", "--json", "--state-dir"]).arg(state.path().join("state")).output().unwrap();
        if String::from_utf8_lossy(&listed.stdout).contains("\"environments\":[]") {
            return;
        }
        assert!(std::time::Instant::now() < until, "the sandbox outlives its client: {listed:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

mod conformance {
    mod mcp {
        use crate::client;

        #[test]
        fn every_tool_does_what_it_says() {
            client("everything", "local", &[]);
        }

        #[test]
        fn errors_are_useful_to_a_model() {
            client("errors", "local", &[]);
        }

        #[test]
        fn long_calls_report_progress() {
            client("progress", "local", &[]);
        }

        #[test]
        fn a_cancelled_call_leaves_nothing() {
            client("cancellation", "local", &[]);
        }

        #[test]
        fn calls_run_side_by_side() {
            client("several", "local", &[]);
        }

        #[test]
        fn what_is_offered_follows_the_tier() {
            client("named_programs", "local-tools", &[]);
            client("nothing", "local", &["tier=T2.H1.N2"]);
        }

        #[test]
        fn what_is_offered_follows_the_approvals() {
            let rules = "tools.approvals.rules=[{tool=\"code\",pattern=\"sh\",action=\"allow\"}]";
            client("unattended", "local", &["tools.approvals.preset=dev", rules]);
        }

        #[test]
        fn a_decision_can_terminate_the_run() {
            client(
                "terminated",
                "local",
                &["tools.approvals.rules=[{tool=\"exec\",pattern=\"/bin/rm *\",action=\"terminate\"}]"],
            );
        }

        #[test]
        fn strands_agents_can_use_it() {
            client("strands", "local", &[]);
        }
    }
}
