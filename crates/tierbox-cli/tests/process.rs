//! What only a process of its own shows: signals, streams, terminals.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

mod conformance {
    use std::io::{Read, Write};
    use std::path::Path;
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process};

    use crate::support::{able, home, skip, tierbox};

    const LIMIT: Duration = Duration::from_secs(20);

    fn fixture() -> Option<tempfile::TempDir> {
        let state = tempfile::tempdir().unwrap();
        able(&state.path().join("s")).then_some(state)
    }

    fn assert_empty(state: &Path) {
        let left = tierbox(state).args(["ls", "--json"]).output().unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(left.starts_with("{\"environments\":[],\"foreign\":[]"), "{left}");
    }

    /// Starts a command that says when it runs, and waits for that.
    fn running(state: &Path) -> Child {
        let mut child = tierbox(state)
            .args(["run", "--quiet", "--", "/bin/sh", "-c", "trap '' TERM INT; echo ready; sleep 1000; sleep 1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        child
    }

    fn send(child: &Child, signal: Signal) {
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    fn end(child: &mut Child) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < LIMIT, "it goes on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[cfg(feature = "serve")]
    #[test]
    fn a_daemon_in_the_background_listens_before_it_is_told_and_is_one() {
        use std::os::unix::net::UnixStream;

        let state = tempfile::tempdir().unwrap();
        let start = || {
            // The idle time is for the case that this test dies.
            let args = ["serve", "--background", "--json", "--idle", "60s"];
            let told = tierbox(state.path()).args(args).stdin(Stdio::null()).output().unwrap();
            assert!(told.status.success(), "{told:?}");
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
            std::path::PathBuf::from(told["socket"].as_str().unwrap())
        };
        let socket = start();
        UnixStream::connect(&socket).unwrap();
        let [daemon] = daemons(state.path())[..] else { panic!("{:?}", daemons(state.path())) };
        assert_eq!(start(), socket);
        assert_eq!(daemons(state.path()), [daemon]);
        kill_process(Pid::from_raw(daemon).unwrap(), Signal::TERM).unwrap();
        let began = Instant::now();
        while !daemons(state.path()).is_empty() {
            assert!(began.elapsed() < LIMIT, "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The processes that have a state directory in their environment.
    #[cfg(feature = "serve")]
    fn daemons(state: &Path) -> Vec<i32> {
        let state = state.display().to_string();
        let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let has = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&state))
        };
        pids.filter(has).collect()
    }

    /// Code that runs before all others could stop the host; a raised priority must not reach it.
    #[test]
    fn the_callers_priority_stays_outside() {
        let Some(state) = fixture() else { return };
        let raise = ["-n", "-5", "chrt", "-f", "10"];
        if !std::process::Command::new("nice").args(raise).arg("true").status().is_ok_and(|status| status.success()) {
            return skip("root", "a raised priority is not permitted here", "run the tests as root");
        }
        // Fields 19 and 41: nice value and policy.
        let output = std::process::Command::new("nice")
            .args(raise)
            .arg(env!("CARGO_BIN_EXE_tierbox"))
            .args(["run", "--quiet", "--", "cut", "-d ", "-f19,41", "/proc/self/stat"])
            .env("TIERBOX_STATE_DIR", state.path().join("s"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0 0\n", "{output:?}");
    }

    #[test]
    fn a_copy_that_fails_hides_neither_the_status_nor_the_other_copies() {
        let Some(state) = fixture() else { return };
        let (state, to) = (state.path().join("s"), state.path().join("out"));
        let copied = |script: &str| {
            let _ = std::fs::remove_file(&to);
            let arg = format!("here:{}", to.display());
            let args =
                ["run", "--quiet", "--copy-out", "missing:/nonexistent/x", "--copy-out", &arg, "--", "/bin/sh", "-c", script];
            let output = tierbox(&state).args(args).output().unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), b"kept\n");
            assert!(String::from_utf8_lossy(&output.stderr).contains("missing"), "{output:?}");
            output.status.code().unwrap()
        };
        assert_eq!(copied("echo kept > here; exit 3"), 3);
        assert_eq!(copied("echo kept > here"), 66);
    }

    /// A log whose disk is full is no reason to leave a sandbox behind.
    #[test]
    fn nobody_has_to_hear_what_the_program_says() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let status = tierbox(&state).args(["run", "-vv", "--", "/bin/sh", "-c", "exit 7"]).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(7));
        let status = tierbox(&state).args(["run", "--profile", "no-such", "--", "/bin/true"]).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(66));
        assert_empty(&state);
    }

    /// A process that gets no thread says so, instead of waiting for one.
    #[test]
    fn without_room_for_a_thread_it_ends() {
        let Some(state) = fixture() else { return };
        let program = env!("CARGO_BIN_EXE_tierbox");
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "ulimit -d 1000; exec \"$0\" run -- /bin/true", program])
            .env("TIERBOX_STATE_DIR", state.path().join("s"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        end(&mut child);
    }

    /// Input that does not end neither holds up the command nor its limits.
    #[test]
    fn json_does_not_wait_for_the_end_of_the_input() {
        let Some(state) = fixture() else { return };
        let mut child = tierbox(&state.path().join("s"))
            .args(["--json", "run", "--timeout", "1s", "--", "/bin/sh", "-c", "read -r line; echo \"got $line\"; sleep 1000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\n").unwrap();
        assert_eq!(end(&mut child).code(), Some(124));
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("got one"), "{said}");
    }

    #[test]
    fn paths_that_are_no_text_are_refused_or_shown() {
        use std::os::unix::ffi::OsStrExt;
        let state = tempfile::tempdir().unwrap();
        let odd = state.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
        for arguments in [["--json", "ls"], ["--json", "cleanup"]] {
            let output = tierbox(&odd).args(arguments).output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 64)), "{output:?}");
        }
        let output = tierbox(&odd).args(["--json", "doctor"]).output().unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok(), "{output:?}");
    }

    /// What somebody did to a log is told by line, and the rest of it can still be read.
    #[test]
    fn a_line_of_a_log_that_is_no_json_is_named() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        let said = |args: &[&str]| {
            let output = tierbox(&state).args(args).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(said(&["run", "--log", "--", "/bin/echo", "recorded"]).0, Some(0));
        let run = std::fs::read_dir(state.join("runs")).unwrap().next().unwrap().unwrap();
        let (id, log) = (run.file_name().into_string().unwrap(), run.path().join("log.jsonl"));
        assert_eq!(said(&["log", "verify", &id]).0, Some(0));
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        std::fs::write(&log, format!("{}\nno json\n{}\n", lines[0], lines[1..].join("\n"))).unwrap();
        let (status, found) = said(&["log", "verify", &id]);
        assert_eq!(status, Some(1), "{found}");
        assert!(found.contains("line 2: it is not JSON") && found.contains("WAS CHANGED"), "{found}");
        assert!(!found.contains("attestation"), "it is what the log names: {found}");
        let (status, shown) = said(&["log", "show", &id]);
        assert!(status == Some(0) && shown.contains("/bin/echo"), "{shown}");
        let (status, page) = said(&["report", &id]);
        assert!(status == Some(0) && page.contains("THE LOG WAS CHANGED"), "{status:?}");
    }

    #[test]
    fn what_promises_nothing_is_not_called_verified() {
        let state = tempfile::tempdir().unwrap();
        let output = tierbox(state.path()).args(["--json", "verify", "local-process"]).output().unwrap();
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{found}");
        let verification = &found["verification"];
        assert_eq!((&verification["verdict"], &verification["verified"]), (&"nothing-to-prove".into(), &false.into()));
        let output = tierbox(state.path()).args(["verify", "local-process"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("promises nothing that could be probed"), "{said}");
    }

    #[test]
    fn logs_are_data_too() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        let said = |args: &[&str]| {
            let output = tierbox(&state).args(args).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(said(&["up", "--name", "logs"]).0, Some(0));
        let (_, id) = said(&["exec", "-d", "logs", "--", "/bin/sh", "-c", "echo here; sleep 1000"]);
        let logs = |id: &str, more: &[&str]| {
            let (status, text) = said(&[&["--json", "logs"], more, &["logs", id.trim()]].concat());
            (status, serde_json::from_str::<serde_json::Value>(&text).unwrap())
        };
        let started = Instant::now();
        while logs(&id, &[]).1["stdout"]["text"] != "here\n" {
            assert!(started.elapsed() < LIMIT, "it prints nothing");
        }
        assert!(logs(&id, &[]).1["outcome"].is_null(), "it runs");
        assert_eq!(said(&["kill", "logs", id.trim()]).0, Some(0));
        let (status, ended) = logs(&id, &["-f"]);
        assert_eq!((status, &ended["stdout"]["text"]), (Some(137), &serde_json::json!("here\n")), "{ended}");
        // Somebody who has seen enough ends the watching, not the command.
        let (_, id) = said(&["exec", "-d", "logs", "--", "/bin/sh", "-c", "while echo again; do sleep 0.05; done"]);
        let mut watching = tierbox(&state).args(["logs", "-f", "logs", id.trim()]).stdout(Stdio::piped()).spawn().unwrap();
        watching.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        assert!(end(&mut watching).success());
        let after = logs(&id, &[]).1;
        assert!(after["outcome"].is_null(), "it runs on: {after}");
        assert_eq!(said(&["down", "logs"]).0, Some(0));
    }

    #[test]
    fn a_working_directory_that_is_closed_to_the_agent_is_verified_from_elsewhere() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        let output = tierbox(&state).args(["run", "--set", "workdir=/", "--", "/bin/pwd"]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"/\n".as_slice()), "{output:?}");
        let mounted = tempfile::tempdir().unwrap();
        std::fs::write(mounted.path().join("seen"), "").unwrap();
        let mount = format!("{}:/workspace", mounted.path().display());
        let output = tierbox(&state).args(["run", "--mount", &mount, "--", "/bin/ls"]).output().unwrap();
        // Whether it lets the agent look in is the host's to say; that it starts is ours.
        assert!(!String::from_utf8_lossy(&output.stderr).contains("error:"), "{output:?}");
        // A working directory below what is mounted is one of the mount's.
        std::fs::create_dir(mounted.path().join("below")).unwrap();
        let mount = format!("{}:/data", mounted.path().display());
        let output =
            tierbox(&state).args(["run", "--mount", &mount, "--set", "workdir=/data/below", "--", "/bin/ls"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("error:"), "{output:?}");
        let output = tierbox(&state).args(["run", "--set", "limits.disk=1MiB", "--", "/bin/true"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(73) && said.contains("limits.disk"), "{output:?}");
    }

    #[test]
    fn signals_end_the_tree_and_clean_up() {
        let Some(state) = fixture() else { return };
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let mut child = running(state.path());
            send(&child, signal);
            assert_eq!(end(&mut child).code(), Some(status));
            assert_empty(state.path());
        }
    }

    /// As `timeout` does it: the second one does not ask for a hurry, in which things are left.
    #[test]
    fn a_signal_that_comes_twice_at_once_is_one() {
        let Some(state) = fixture() else { return };
        for delay in [0, 1, 5, 20, 50] {
            let mut child = running(state.path());
            send(&child, Signal::TERM);
            std::thread::sleep(std::time::Duration::from_millis(delay));
            send(&child, Signal::TERM);
            assert_eq!(end(&mut child).code(), Some(143));
            assert_empty(state.path());
        }
    }

    #[test]
    fn what_a_kill_leaves_is_cleaned_up() {
        let Some(state) = fixture() else { return };
        let mut child = running(state.path());
        child.kill().unwrap();
        child.wait().unwrap();
        let cleaned = tierbox(state.path()).args(["cleanup", "--json"]).output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        assert_empty(state.path());
    }

    #[test]
    fn output_that_is_lost_is_a_failure() {
        let Some(state) = fixture() else { return };
        for json in [&["--quiet"][..], &["--json"]] {
            let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
            let mut command = tierbox(state.path());
            let lost = command.args(["run"]).args(json).args(["--", "/bin/echo", "hi"]).stdout(full).output().unwrap();
            assert_eq!(lost.status.code(), Some(74), "{json:?}");
            assert!(String::from_utf8_lossy(&lost.stderr).contains("write output"), "{lost:?}");
        }
    }

    #[test]
    fn what_is_copied_out_goes_through_no_link() {
        let Some(state) = fixture() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (dir.path().join("elsewhere"), dir.path().join("link"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let copy_out = |to: String| {
            let mut command = tierbox(state.path());
            command.args(["run", "--quiet", "--copy-out", &format!("/etc/passwd:{to}"), "--", "/bin/true"]).output().unwrap()
        };
        let refused = copy_out(link.display().to_string());
        assert!(!refused.status.success() && elsewhere.read_dir().unwrap().next().is_none(), "{refused:?}");
        assert!(copy_out(format!("{}/", link.display())).status.success());
        assert!(elsewhere.join("passwd").exists());
    }

    #[test]
    fn a_state_directory_cannot_be_mounted() {
        let Some(state) = fixture() else { return };
        let mount = format!("{}:/mnt/x", state.path().display());
        let refused = tierbox(state.path()).args(["run", "--mount", &mount, "--", "/bin/true"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    }

    /// No `fixture`: nothing is started, so any host will do.
    #[test]
    fn what_the_agent_may_not_run_is_refused_before_a_sandbox_exists() {
        let place = tempfile::tempdir().unwrap();
        let state = place.path().join("s");
        let profile = place.path().join("text-only.toml");
        std::fs::write(&profile, "tier = \"T2.H1.N2\"\nextends = \"local\"\n").unwrap();
        let refused = tierbox(&state).arg("run").arg("--profile").arg(&profile).args(["--", "/bin/true"]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(77), "{said}");
        assert!(said.contains("T2 allows no execution") && !said.contains("enforced by"), "{said}");
        assert!(!state.exists(), "a state directory was made");
    }

    #[test]
    fn stdin_that_is_no_terminal_is_forwarded() {
        let Some(state) = fixture() else { return };
        let mut child = tierbox(state.path())
            .args(["run", "--quiet", "--", "/usr/bin/wc", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let chunk = vec![b'x'; 1 << 20];
        (0..4).for_each(|_| stdin.write_all(&chunk).unwrap());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4194304");
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_command() {
        let Some(state) = fixture() else { return };
        let mut child = tierbox(state.path())
            .args(["run", "--quiet", "--", "/usr/bin/yes"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut some = [0; 4096];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let status = end(&mut child);
        assert!(matches!(status.code(), Some(141 | 1)), "{status}");
        assert_empty(state.path());
    }

    #[test]
    fn output_that_is_no_terminal_is_not_changed() {
        let Some(state) = fixture() else { return };
        let script = r#"printf '\033]0;title\007\377'"#;
        let output = tierbox(state.path()).args(["run", "--quiet", "--", "/bin/sh", "-c", script]).output().unwrap();
        assert_eq!(output.stdout, b"\x1b]0;title\x07\xff");
    }

    /// Runs the program under a terminal of its own, made by `script`, and returns what that terminal showed.
    fn on_a_terminal(state: &Path, command: &str, input: &str) -> String {
        let mut child = terminal(state, command);
        child.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let mut shown = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut shown).unwrap();
        child.wait().unwrap();
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn terminal(state: &Path, command: &str) -> Child {
        let program = env!("CARGO_BIN_EXE_tierbox");
        std::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &format!("{program} {command}"), "/dev/null"])
            .env("TIERBOX_STATE_DIR", state)
            .env("HOME", home(state))
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`script` is part of every util-linux")
    }

    /// The same, with a line for each question that the program asks.
    fn answered(state: &Path, command: &str, answers: &[&str]) -> String {
        let mut child = terminal(state, command);
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (mut shown, mut part, mut asked) = (String::new(), [0; 4096], 0);
        loop {
            let count = stdout.read(&mut part).unwrap();
            if count == 0 {
                break;
            }
            shown += &String::from_utf8_lossy(&part[..count]);
            if let Some(answer) = answers.get(asked).filter(|_| shown.matches("[t]erminate the run: ").count() > asked) {
                stdin.write_all(format!("{answer}\n").as_bytes()).unwrap();
                asked += 1;
            }
        }
        child.wait().unwrap();
        shown
    }

    #[test]
    fn terminal_escapes_are_shown_and_not_obeyed() {
        let Some(state) = fixture() else { return };
        let command = r#"run --quiet -- /bin/sh -c 'printf "\033]0;title\007x\n"'"#;
        let shown = on_a_terminal(state.path(), command, "");
        assert!(shown.contains("^[]0;title^Gx"), "{shown:?}");
        assert!(!shown.contains("\u{1b}]0;title"), "{shown:?}");
    }

    #[test]
    fn a_shell_has_a_terminal() {
        let Some(state) = fixture() else { return };
        let typed = "stty size; tty; exit 5\n";
        let shown = on_a_terminal(state.path(), "shell --quiet", typed);
        assert!(shown.contains("/dev/pts/"), "{shown:?}");
        assert_empty(state.path());
    }

    /// A person is asked on the terminal; what was typed before the question, or after it was given up, is no answer.
    #[test]
    fn a_person_is_asked_and_only_a_yes_to_this_question_counts() {
        let Some(state) = fixture() else { return };
        let profile = state.path().join("asks.toml");
        let text = "tier = \"T0.H1.N2\"\nextends = \"local\"\n[tools.approvals]\npreset = \"dev\"\ntimeout = \"2s\"\n";
        std::fs::write(&profile, text).unwrap();
        let run = |id: &str| format!("code run --quiet --profile {} --runtime sh -c 'echo d\"i\"d {id}'", profile.display());
        for (answers, done) in [(&["y"][..], true), (&["n"], false), (&["yes, please"], false), (&[], false)] {
            let shown = answered(state.path(), &run("1"), answers);
            assert_eq!(shown.contains("did 1"), done, "{answers:?}: {shown}");
            assert!(shown.contains("wants to run code") && shown.contains("echo d"), "{shown}");
            assert_eq!(shown.contains("nobody answered within 2 s"), answers.is_empty(), "{shown}");
        }
        // Typed too early: thrown away.
        let shown = on_a_terminal(state.path(), &run("2"), "y\n");
        assert!(!shown.contains("did 2"), "{shown}");
        assert_empty(state.path());
    }

    #[test]
    fn a_second_signal_does_not_wait() {
        let Some(state) = fixture() else { return };
        let mut child = running(state.path());
        send(&child, Signal::INT);
        send(&child, Signal::TERM);
        assert!(matches!(end(&mut child).code(), Some(130 | 143)));
        let cleaned = tierbox(state.path()).arg("cleanup").output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        assert_empty(state.path());
    }

    /// However far a verification has come when it is given up.
    #[test]
    fn an_interrupted_verification_leaves_no_twins() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        let leases = || std::fs::read_dir(state.join("leases")).map_or(0, |files| files.flatten().count());
        for round in 0..16 {
            let mut child = tierbox(&state)
                .args(["run", "--quiet", "--set", "verify=always", "--", "/bin/true"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let started = Instant::now();
            while leases() < 2 + round % 4 && child.try_wait().unwrap().is_none() && started.elapsed() < LIMIT {
                std::thread::sleep(Duration::from_millis(1));
            }
            if round == 3 {
                let shown = tierbox(&state).args(["ls", "--json"]).output().unwrap();
                let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
                assert!(shown["environments"].as_array().unwrap().len() <= 1, "twins are shown: {shown}");
            }
            // At each stage of the twins, from their beginning to their end.
            std::thread::sleep(Duration::from_millis(3 * round as u64));
            send(&child, Signal::INT);
            assert!(matches!(end(&mut child).code(), Some(0 | 130)));
            assert_empty(&state);
        }
    }

    #[test]
    fn an_interrupt_is_data_too() {
        let Some(state) = fixture() else { return };
        let mut child = tierbox(&state.path().join("s"))
            .args(["--json", "run", "--", "/bin/sh", "-c", "sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !std::fs::read_dir(state.path().join("s/leases")).is_ok_and(|mut files| files.next().is_some()) {
            assert!(started.elapsed() < LIMIT, "it does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        send(&child, Signal::TERM);
        assert_eq!(end(&mut child).code(), Some(143));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let said: serde_json::Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap();
        assert_eq!((&said["error"]["kind"], &said["status"]), (&"cancelled".into(), &143.into()), "{said}");
        assert_empty(&state.path().join("s"));
    }

    /// Also where the last line is not ended, and where the end comes before the shell reads.
    #[test]
    fn a_shell_ends_with_its_input() {
        let Some(state) = fixture() else { return };
        for (input, said) in [("", ""), ("echo $((6*7))", "42"), ("echo $((6*7))\n", "42")] {
            let mut child = tierbox(&state.path().join("s"))
                .args(["shell", "--quiet"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            end(&mut child);
            let mut shown = String::new();
            child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
            assert!(shown.contains(said), "{input:?}: {shown}");
        }
    }

    /// What a shell was given is done, and comes back as one document.
    #[test]
    fn a_shell_can_answer_as_data() {
        let Some(state) = fixture() else { return };
        let mut child = tierbox(&state.path().join("s"))
            .args(["--json", "shell"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo $((6*7)); exit 5\n").unwrap();
        let done = child.wait_with_output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one document");
        assert_eq!((done.status.code(), &shown["outcome"]["exited"]), (Some(5), &5.into()), "{shown}");
        assert!(shown["stdout"]["text"].as_str().unwrap().contains("42"), "{shown}");
        assert!(done.stderr.is_empty(), "{done:?}");
        let at_a_terminal = on_a_terminal(state.path(), "shell --json", "");
        assert!(at_a_terminal.contains("a shell at a terminal is no JSON"), "{at_a_terminal}");
    }

    /// By its name while it is up, and by the last that had the name when it is gone.
    #[test]
    fn a_log_is_found_by_its_sandboxs_name() {
        let Some(state) = fixture() else { return };
        let done = |args: &[&str]| {
            let output = tierbox(&state.path().join("s")).args(args).output().unwrap();
            assert!(output.status.success(), "{args:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        for round in ["first", "second"] {
            done(&["up", "--quiet", "--name", "known", "--log"]);
            done(&["exec", "known", "--", "/bin/echo", round]);
            assert!(done(&["log", "show", "known"]).contains(round));
            done(&["down", "known"]);
            let shown = done(&["log", "show", "known"]);
            assert!(shown.contains(round) && (round == "first" || !shown.contains("first")), "{shown}");
        }
        assert!(done(&["log", "verify", "known"]).contains("is as it was written"));
        assert!(done(&["report", "known"]).to_lowercase().starts_with("<!doctype html>"));
        let unknown = tierbox(&state.path().join("s")).args(["log", "show", "unknown"]).output().unwrap();
        assert_eq!(unknown.status.code(), Some(66), "{unknown:?}");
    }

    /// A name is bytes: on this host, on the command line, and inside.
    #[test]
    fn files_go_in_and_out_whatever_their_names() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let Some(state) = fixture() else { return };
        let directory = state.path().join("files");
        let odd = directory.join(OsStr::from_bytes(b"\xff"));
        std::fs::create_dir_all(&odd).unwrap();
        std::fs::write(odd.join("in"), "in").unwrap();
        let mut mount = odd.clone().into_os_string();
        mount.push(":/mnt/odd");
        let output = tierbox(&state.path().join("s"))
            .args(["run", "--quiet"].map(OsStr::new))
            .args([OsStr::new("--copy-in"), odd.as_os_str(), OsStr::new("--mount"), mount.as_os_str()])
            .args([OsStr::new("--copy-out"), OsStr::from_bytes(b"\xfe")])
            .args(["--", "/bin/sh", "-c", "cat ./*/in /mnt/odd/in; printf out > \"$(printf '\\376')\""])
            .current_dir(&directory)
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"inin".as_slice()), "{output:?}");
        assert_eq!(std::fs::read(directory.join(OsStr::from_bytes(b"\xfe"))).unwrap(), b"out");
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = tierbox(Path::new("/nonexistent")).args(["completions", shell]).output().unwrap();
            assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("as-harness"), "{shell}");
        }
    }

    /// FIFOs are not carried, and whoever asked for the copy hears of it.
    #[test]
    fn what_a_copy_leaves_out_is_said() {
        let Some(state) = fixture() else { return };
        let from = state.path().join("from");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("file"), "in").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let copy = format!("{}:task", from.display());
        let output = tierbox(&state.path().join("s")).args(["run", "--copy-in", &copy, "--", "ls", "task"]).output().unwrap();
        assert_eq!(output.stdout, b"file\n", "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("1 (FIFOs, sockets, devices) left out"), "{output:?}");
    }

    #[test]
    fn texts_are_data_too() {
        let state = tempfile::tempdir().unwrap();
        for (args, key) in [
            (["exit-codes"].as_slice(), "exit_codes"),
            (&["completions", "bash"], "script"),
            (&["config", "template"], "template"),
        ] {
            let output = tierbox(state.path()).arg("--json").args(args).output().unwrap();
            let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(value[key].as_str().is_some_and(|text| text.len() > 500), "{output:?}");
        }
    }

    #[test]
    fn a_wrong_word_is_answered_with_all_right_ones() {
        let state = tempfile::tempdir().unwrap();
        let output = tierbox(state.path()).args(["run", "--set", "local.mode=vm", "--", "true"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("is not one of container, process"), "{output:?}");
    }

    #[test]
    fn a_forward_ends_with_its_sandbox() {
        let Some(state) = fixture() else { return };
        let state = state.path().join("s");
        assert!(tierbox(&state).args(["up", "--quiet", "--name", "box"]).stdout(Stdio::null()).status().unwrap().success());
        let mut forward = tierbox(&state).args(["forward", "box", "0:80"]).stdout(Stdio::piped()).spawn().unwrap();
        // It says where it listens, and from then on serves.
        let mut first = [0];
        forward.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        assert!(tierbox(&state).args(["down", "box"]).status().unwrap().success());
        assert_eq!(end(&mut forward).code(), Some(75));
    }

    #[test]
    fn forwarded_ports_reach_inside() {
        let Some(state) = fixture() else { return };
        let up = tierbox(state.path()).args(["up", "--quiet", "--name", "served"]).output().unwrap();
        assert!(up.status.success(), "{up:?}");
        // Answers one line on a Unix socket that bash's and python's absence does not matter for: the program is perl.
        let serve = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => '/tmp/s', Listen => 1) or die; \
                     while (my $c = $s->accept) { my $l = <$c>; print $c \"got $l\"; close $c }";
        let detached = tierbox(state.path()).args(["exec", "-d", "served", "--", "/usr/bin/perl", "-e", serve]).output().unwrap();
        assert!(detached.status.success(), "{detached:?}");
        let mut forward = tierbox(state.path())
            .args(["forward", "served", "0:/tmp/s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut line = std::io::BufReader::new(forward.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut line, &mut address).unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        let started = Instant::now();
        let answer = loop {
            let mut stream = std::net::TcpStream::connect(address.trim()).unwrap();
            let mut answer = String::new();
            if stream.write_all(b"ping\n").is_ok() && stream.read_to_string(&mut answer).is_ok() && !answer.is_empty() {
                break answer;
            }
            assert!(started.elapsed() < LIMIT, "nobody answers");
        };
        assert_eq!(answer, "got ping\n");
        send(&forward, Signal::INT);
        assert_eq!(end(&mut forward).code(), Some(0));
        assert!(tierbox(state.path()).args(["down", "served"]).status().unwrap().success());
        assert_empty(state.path());
    }

    #[test]
    fn a_sandbox_that_stays_ends_within_a_day() {
        let Some(state) = fixture() else { return };
        assert!(tierbox(state.path()).args(["up", "--quiet", "--name", "box"]).stdout(Stdio::null()).status().unwrap().success());
        let listed = tierbox(state.path()).args(["ls", "--json"]).output().unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let one = &listed["environments"][0];
        let span = one["ends"].as_u64().zip(one["created"].as_u64()).map(|(end, start)| end - start);
        // Both are whole seconds, of two moments.
        assert!(matches!(span, Some(86_399..=86_401)), "{one}");
        assert!(tierbox(state.path()).args(["down", "box"]).status().unwrap().success());
        assert_empty(state.path());
    }

    #[test]
    fn a_forwarded_connection_is_on_record() {
        let Some(state) = fixture() else { return };
        let up = tierbox(state.path()).args(["up", "--quiet", "--log"]).output().unwrap();
        let id = String::from_utf8(up.stdout).unwrap().trim().to_owned();
        let mut forward =
            tierbox(state.path()).args(["forward", &id, "0:81"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut address = String::new();
        let mut line = std::io::BufReader::new(forward.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut line, &mut address).unwrap();
        let mut nobody = std::net::TcpStream::connect(address.trim()).unwrap();
        assert_eq!(nobody.read(&mut [0]).unwrap_or(0), 0, "nothing listens there");
        send(&forward, Signal::INT);
        assert_eq!(end(&mut forward).code(), Some(0));
        let shown = tierbox(state.path()).args(["log", "show", &id]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.lines().any(|line| line.contains("dial") && line.contains("81")), "{shown}");
        assert!(tierbox(state.path()).args(["down", &id]).status().unwrap().success());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn changes_of_files_are_told_inside() {
        let Some(state) = fixture() else { return };
        // inotify_init1, inotify_add_watch for IN_CREATE; then the name stands behind the event's sixteen bytes.
        let watch = "my $f = syscall(294, 0); die if $f < 0; my $d = '.'; syscall(254, $f, $d, 0x100) >= 0 or die; \
                     open(my $new, '>', 'made') or die; open(my $events, '<&=', $f) or die; \
                     sysread($events, my $event, 4096) or die; print unpack('x16 Z*', $event)";
        let told = tierbox(state.path()).args(["run", "--quiet", "--", "/usr/bin/perl", "-e", watch]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&told.stdout), "made", "{told:?}");
    }
}
