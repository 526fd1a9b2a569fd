//! The MCP server against clients that are not ours: the official Python SDK, and Strands Agents'.
#![cfg(all(feature = "local", feature = "mcp", target_os = "linux"))]

mod support;

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

/// A server, and a client that writes lines.
struct Typed {
    child: std::process::Child,
    answers: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Typed {
    fn start(state: &std::path::Path, arguments: &[&str]) -> Self {
        let mut command = support::tierbox(state);
        command.args(["--quiet", "mcp"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut typed = Self { child, answers };
        let about = r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"typed","version":"1"}}"#;
        let hello = typed.ask(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{about}}}"#));
        assert_eq!(hello["result"]["serverInfo"]["name"], "tierbox", "{hello}");
        typed.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        typed
    }

    fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).and_then(|()| input.flush()).unwrap();
    }

    /// Says something and hears the next line.
    fn ask(&mut self, line: &str) -> serde_json::Value {
        self.say(line);
        serde_json::from_str(&self.answers.next().expect("an answer").unwrap()).unwrap()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

mod conformance {
    mod mcp {
        use crate::{Typed, client, support};

        /// Nobody waits for an answer that never comes, and what is wrong is told apart.
        #[test]
        fn what_cannot_be_understood_is_answered() {
            let state = tempfile::tempdir().unwrap();
            let mut typed = Typed::start(state.path(), &["--profile", "local-process"]);
            let too_long = format!(
                r#"{{"jsonrpc":"2.0","id":"long","method":"tools/call","params":{{"name":"write_file","arguments":{{"path":"x","contents":"{}"}}}}}}"#,
                "x".repeat(17 << 20)
            );
            for (line, id, code, part) in [
                (too_long.as_str(), serde_json::json!("long"), -32600, "longer than 16777216 bytes"),
                (r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"arguments":{}}}"#, 2.into(), -32602, "name"),
                (
                    r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"exec","arguments":[1]}}"#,
                    3.into(),
                    -32602,
                    "arguments",
                ),
                (r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"nothing"}}"#, 4.into(), -32602, "run_code"),
                (r#"{"jsonrpc":"2.0","id":5,"method":"nothing"}"#, 5.into(), -32601, "nothing"),
                (
                    r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"run_code","arguments":{"code":"echo \ud800"}}}"#,
                    8.into(),
                    -32700,
                    "hex escape",
                ),
                (r#"{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"exec",}}"#, 9.into(), -32700, "no JSON"),
            ] {
                let answer = typed.ask(line);
                assert_eq!((&answer["id"], &answer["error"]["code"]), (&id, &code.into()), "{answer}");
                assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
            }
            let many = r#"{"argv":["/bin/sh","-c","mkdir many && cd many && seq 1003 | xargs touch"]}"#;
            let call = |id: u32, name: &str, arguments: &str| {
                format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{name}","arguments":{arguments}}}}}"#
                )
            };
            assert_eq!(typed.ask(&call(6, "exec", many))["result"]["structuredContent"]["success"], true);
            let listed = typed.ask(&call(7, "list_directory", r#"{"path":"many"}"#))["result"]["structuredContent"].take();
            assert_eq!((listed["entries"].as_array().unwrap().len(), &listed["left_out"]), (1000, &3.into()));
            assert!(listed["note"].as_str().unwrap().contains("1000 of 1003"), "{}", listed["note"]);
            typed.end();
        }

        /// A sandbox that was started without a log has one from then on.
        #[test]
        fn a_sandbox_that_it_is_given_is_logged() {
            let state = tempfile::tempdir().unwrap();
            let run = |arguments: &[&str]| {
                let output = support::tierbox(state.path()).args(arguments).output().unwrap();
                assert!(output.status.success(), "{arguments:?}: {output:?}");
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            run(&["up", "--profile", "local-process", "--name", "mine"]);
            assert!(!state.path().join("runs").exists());
            let mut typed = Typed::start(state.path(), &["--sandbox", "mine"]);
            let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"exec","arguments":{"argv":["/bin/echo","seen"]}}}"#;
            assert_eq!(typed.ask(call)["result"]["structuredContent"]["stdout"], "seen\n");
            typed.end();
            let runs: Vec<_> = std::fs::read_dir(state.path().join("runs")).unwrap().flatten().collect();
            let id = runs[0].file_name().into_string().unwrap();
            let shown = run(&["log", "show", &id]);
            assert!(shown.contains("decision") && shown.contains("/bin/echo seen"), "{shown}");
            assert!(runs[0].path().join("attestation.json").exists());
            // Whoever uses it later goes on with it.
            run(&["exec", "mine", "--", "/bin/echo", "later"]);
            run(&["down", "mine"]);
            assert!(run(&["log", "show", &id]).contains("/bin/echo later"));
            run(&["log", "verify", &id]);
        }

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
