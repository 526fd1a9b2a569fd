//! The engine, driven through the real program.

mod engine_support;

use std::io::Read;

use engine_support::*;
use tierbox_supervisor::protocol::{End, Exec, FromSupervisor, Kill, Killed, NotStarted, StdinMode, ToSupervisor, WinSize};
use tierbox_supervisor::setup::Mode;

mod commands {
    use super::*;

    #[test]
    fn passed_descriptors_carry_the_output() {
        let mut machine = Machine::start(Mode::Process);
        let (call, mut stdout, mut stderr) = passed(&mut machine.client, &sh("echo out; echo err >&2; exit 3"));
        let collected = machine.client.collect(call);
        assert_eq!(collected.end(), End::Exited { code: 3 });
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).unwrap();
        stderr.read_to_string(&mut err).unwrap();
        assert_eq!((out.as_str(), err.as_str(), collected.started), ("out\n", "err\n", 1));
        machine.shutdown();
    }

    #[test]
    fn framed_output_environment_directory_and_status() {
        let mut machine = Machine::start_guest(|_| {}, 0);
        std::fs::create_dir(machine.dir.path().join("sub")).unwrap();
        let mut command = sh("echo $BASE $MINE; pwd; echo problem >&2; kill -USR1 $$");
        command.env = vec![(blob("MINE"), blob("mine"))];
        command.cwd = Some(blob("sub"));
        let collected = machine.client.run(&command);
        assert!(collected.out().starts_with("base mine\n"), "{}", collected.out());
        assert!(collected.out().trim_end().ends_with("/sub"), "{}", collected.out());
        assert_eq!((collected.err().as_str(), collected.ends), ("problem\n", 2));
        assert_eq!(collected.end(), End::Signaled { signal: 10 });
        let done = collected.done.unwrap();
        assert_eq!((done.stdout_total, done.stderr_total), (collected.stdout.len() as u64, 8));
        assert!(done.user_us.is_some() && done.peak_memory.is_some() && done.wall_us > 0);
    }

    #[test]
    fn what_cannot_be_executed_says_so() {
        let mut machine = Machine::start(Mode::Process);
        std::fs::write(machine.dir.path().join("data"), "no program").unwrap();
        for (argv, code, errno, line) in [
            ("no-such-program", 127, 2, "tierbox: no-such-program: not found\n"),
            ("/no/such", 127, 2, "tierbox: /no/such: not found\n"),
            ("./data", 126, 13, "tierbox: ./data: permission denied\n"),
        ] {
            let collected = machine.client.run(&exec(&[argv]));
            assert_eq!((collected.end(), collected.err().as_str()), (End::Exited { code }, line));
            assert_eq!(collected.done.unwrap().cannot_execute, Some(errno));
        }
        let own = machine.client.run(&sh("exit 127")).done.unwrap();
        assert_eq!((own.end, own.cannot_execute), (End::Exited { code: 127 }, None));
    }

    #[test]
    fn what_never_ran_says_why() {
        let mut machine = Machine::start(Mode::Process);
        let mut bad_cwd = exec(&["true"]);
        bad_cwd.cwd = Some(blob("nowhere"));
        let mut nobody = exec(&["true"]);
        nobody.user = Some("no-such-user-here".into());
        let mut too_big = exec(&["true"]);
        too_big.env = vec![(blob("BIG"), blob(vec![b'x'; 3 << 20]))];
        for (command, cause) in [(bad_cwd, NotStarted::BadCwd), (nobody, NotStarted::UnknownUser), (too_big, NotStarted::TooBig)]
        {
            let call = machine.client.launch(&command);
            let collected = machine.client.collect(call);
            assert_eq!((collected.end(), collected.started), (End::NotStarted { cause }, 0));
        }
        let once = exec(&["true"]);
        assert_eq!(machine.client.run(&once).end(), End::Exited { code: 0 });
        assert_eq!(machine.client.run(&once).end(), End::NotStarted { cause: NotStarted::AlreadyLaunched });
    }

    #[test]
    fn children_get_clean_signals_and_no_descriptors() {
        let mut machine = Machine::start(Mode::Process);
        let collected = machine.client.run(&sh("ls /proc/self/fd; grep -E 'Sig(Ign|Blk)' /proc/self/status; umask"));
        let text = collected.out();
        assert!(text.starts_with("0\n1\n2\n3\n"), "{text}");
        assert_eq!(text.matches("0000000000000000").count(), 2, "{text}");
        assert!(text.ends_with("0022\n") && !text.contains("\n4\n"), "{text}");
    }
}

mod streams {
    use super::*;

    #[test]
    fn framed_input_goes_both_ways_in_bounded_windows() {
        let mut machine = Machine::start_guest(|_| {}, 0);
        let mut command = exec(&["cat"]);
        command.stdin = StdinMode::Framed;
        let call = machine.client.launch(&command);
        let sent: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
        let mut window = 1 << 20;
        let mut received = Vec::new();
        let mut chunks = sent.chunks(64 << 10).peekable();
        let done = loop {
            while let Some(chunk) = chunks.peek().filter(|chunk| chunk.len() <= window) {
                window -= chunk.len();
                let data = blob(chunk);
                machine.client.send(call, &ToSupervisor::Input { data });
                chunks.next();
                if chunks.peek().is_none() {
                    machine.client.send(call, &ToSupervisor::InputEnd);
                }
            }
            match machine.client.next_of(call) {
                FromSupervisor::Output { stream, offset, data } => {
                    assert_eq!(offset, received.len() as u64);
                    machine.client.send(call, &ToSupervisor::Credit { stream, bytes: data.0.len() as u32 });
                    received.extend(data.0);
                }
                FromSupervisor::InputCredit { bytes } => window += bytes as usize,
                FromSupervisor::Done { done } => break done,
                _ => {}
            }
        };
        assert_eq!(done.end, End::Exited { code: 0 });
        assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    }

    #[test]
    fn without_credit_the_command_waits() {
        let mut machine = Machine::start(Mode::Process);
        let call = machine.client.launch(&sh("head -c 3000000 /dev/zero; echo end >&2"));
        let mut received = 0;
        while received < 1 << 20 {
            if let FromSupervisor::Output { data, .. } = machine.client.next_of(call) {
                received += data.0.len();
            }
        }
        machine.client.send(0, &ToSupervisor::Ping);
        assert_eq!(machine.client.next().message, FromSupervisor::Pong, "nothing more came without credit");
        machine.client.send(call, &ToSupervisor::Credit { stream: 1, bytes: 1 << 20 });
        let rest = machine.client.collect(call);
        assert_eq!((received + rest.stdout.len(), rest.err().as_str()), (3_000_000, "end\n"));
    }

    #[test]
    fn the_end_of_the_command_ends_the_call_though_a_child_holds_the_pipe() {
        let mut machine = Machine::start(Mode::Process);
        let start = std::time::Instant::now();
        let collected = machine.client.run(&sh("echo before; (trap '' PIPE; sleep 1; echo late; sleep 30) & echo $!"));
        assert!(start.elapsed() < std::time::Duration::from_millis(900), "{:?}", start.elapsed());
        let text = collected.out();
        let pid = text.strip_prefix("before\n").unwrap();
        assert!(is_running(pid), "what was left behind runs on");
        assert_eq!(collected.end(), End::Exited { code: 0 });
        machine.shutdown();
        eventually("it dies with the machine", || !is_running(pid));
    }

    #[test]
    fn a_reader_that_went_away_is_told() {
        let mut machine = Machine::start(Mode::Process);
        let mut command = sh("exec <&-; sleep 5");
        command.stdin = StdinMode::Framed;
        let call = machine.client.launch(&command);
        while machine.client.next_of(call) != FromSupervisor::InputClosed {}
        machine.client.send(call, &ToSupervisor::Kill { reason: Kill::Cancelled });
        assert_eq!(machine.client.collect(call).end(), End::Killed { reason: Killed::Cancelled });
    }

    #[test]
    fn a_terminal_is_one() {
        let mut machine = Machine::start_guest(|_| {}, 0);
        let mut command = sh("tty; stty size; read line; echo got $line; stty size; cat; echo over");
        command.pty = Some(WinSize { rows: 30, cols: 100 });
        let call = machine.client.launch(&command);
        let text = machine.client.read_until(call, "30 100");
        assert!(text.contains("/dev/pts/"), "{text}");
        machine.client.send(call, &ToSupervisor::Resize { size: WinSize { rows: 40, cols: 120 } });
        machine.client.send(call, &ToSupervisor::Input { data: blob("word\n") });
        machine.client.read_until(call, "40 120");
        machine.client.send(call, &ToSupervisor::InputEnd);
        let rest = machine.client.collect(call);
        assert!(rest.out().contains("over"), "{}", rest.out());
        assert_eq!((rest.end(), rest.ends), (End::Exited { code: 0 }, 1), "the end of stderr came first");
    }
}

mod kills {
    use super::*;

    /// A tree that tries to get away, each member of which writes its number.
    const RUNAWAY: &str = "echo $$; (setsid sh -c 'echo $$; (setsid sh -c \"echo \\$\\$; exec sleep 60\" &) ; exec sleep 60' &); \
        trap '' TERM; sleep 60 & echo $!; wait";

    fn pids_of(client: &mut Client, call: u32, count: usize) -> Vec<String> {
        let mut text = String::new();
        while text.lines().count() < count {
            text.push_str(&client.read_until(call, "\n"));
        }
        text.lines().map(str::to_owned).collect()
    }

    fn dies_with(machine: &mut Machine, command: &Exec, end: &End, how: impl FnOnce(&mut Client, u32)) {
        let call = machine.client.launch(command);
        let pids = pids_of(&mut machine.client, call, 4);
        how(&mut machine.client, call);
        let collected = machine.client.collect(call);
        assert_eq!(&collected.end(), end);
        let survivors: Vec<_> = pids.iter().filter(|pid| is_running(pid)).collect();
        assert!(survivors.is_empty(), "{survivors:?} of {pids:?} live on");
        assert_eq!(machine.client.run(&sh("echo well")).out(), "well\n");
    }

    fn cgroup(setup: &mut tierbox_supervisor::setup::Setup, root: &str, kind: &str) -> bool {
        let root = std::path::Path::new(root);
        if !rustix::process::geteuid().is_root() || !root.join("cgroup.procs").exists() {
            return false;
        }
        let path = root.join(&setup.id);
        let settings = Vec::new();
        setup.cgroups.push(tierbox_supervisor::setup::Cgroup {
            path: blob(path.as_os_str().as_encoded_bytes()),
            kind: kind.into(),
            settings,
        });
        true
    }

    fn unified(setup: &mut tierbox_supervisor::setup::Setup) -> bool {
        cgroup(setup, "/sys/fs/cgroup/unified", "v2") || cgroup(setup, "/sys/fs/cgroup", "v2")
    }

    fn every_way(machine: &mut Machine) {
        let timeout = End::Killed { reason: Killed::Timeout };
        dies_with(machine, &Exec { timeout_ms: Some(300), ..sh(RUNAWAY) }, &timeout, |_, _| {});
        let idle = End::Killed { reason: Killed::Idle };
        dies_with(machine, &Exec { idle_ms: Some(200), ..sh(RUNAWAY) }, &idle, |_, _| {});
        let cancelled = End::Killed { reason: Killed::Cancelled };
        dies_with(machine, &sh(RUNAWAY), &cancelled, |client, call| {
            client.send(call, &ToSupervisor::Kill { reason: Kill::Cancelled });
        });
        let command = Exec { kill_leftovers: true, stdin: StdinMode::Framed, ..sh(&RUNAWAY.replace("wait", "read line")) };
        dies_with(machine, &command, &End::Exited { code: 1 }, |client, call| client.send(call, &ToSupervisor::InputEnd));
        let id = exec(&[]).id;
        dies_with(machine, &Exec { id, ..sh(RUNAWAY) }, &End::Killed { reason: Killed::OutputLimit }, |client, _| {
            let call = client.call();
            client.send(call, &ToSupervisor::KillById { id, reason: Kill::OutputLimit });
            assert_eq!(client.next_of(call), FromSupervisor::Finished);
        });
    }

    #[test]
    fn whole_trees_by_shim() {
        let mut machine = Machine::start(Mode::Process);
        assert!(matches!(machine.ready, FromSupervisor::Ready { kill_domain: 1, .. }), "{:?}", machine.ready);
        every_way(&mut machine);
    }

    #[test]
    fn whole_trees_by_unified_cgroup() {
        let mut there = false;
        let mut machine = Machine::start_with(Mode::Process, |setup| there = unified(setup));
        if there {
            assert!(matches!(machine.ready, FromSupervisor::Ready { kill_domain: 2, .. }), "{:?}", machine.ready);
            every_way(&mut machine);
        }
    }

    #[test]
    fn whole_trees_by_freezer() {
        let mut there = false;
        let mut machine = Machine::start_with(Mode::Process, |setup| there = cgroup(setup, "/sys/fs/cgroup/freezer", "freezer"));
        if there {
            assert!(matches!(machine.ready, FromSupervisor::Ready { kill_domain: 2, .. }), "{:?}", machine.ready);
            every_way(&mut machine);
        }
    }

    #[test]
    fn a_command_that_kills_its_own_shim() {
        let mut machine = Machine::start(Mode::Process);
        let script = format!("kill -9 $PPID; {RUNAWAY}");
        let call = machine.client.launch(&Exec { timeout_ms: Some(2000), ..sh(&script) });
        let collected = machine.client.collect(call);
        assert_eq!(collected.end(), End::Signaled { signal: 9 });
        let pids: Vec<String> = collected.out().lines().map(str::to_owned).collect();
        eventually("nothing survives", || !pids.iter().any(|pid| is_running(pid)));
        assert_eq!(machine.client.run(&sh("echo well")).out(), "well\n");
    }

    #[test]
    fn running_out_of_memory_is_told() {
        let mut there = false;
        let mut machine = Machine::start_with(Mode::Process, |setup| {
            there = cgroup(setup, "/sys/fs/cgroup/memory", "memory");
            if there {
                setup.cgroups[0].settings.push(("memory.limit_in_bytes".into(), (64 << 20).to_string()));
            }
        });
        if there {
            assert!(matches!(machine.ready, FromSupervisor::Ready { memory_outcome: true, .. }), "{:?}", machine.ready);
            for _ in 0..2 {
                let collected = machine.client.run(&exec(&["tail", "/dev/zero"]));
                assert_eq!(collected.end(), End::Killed { reason: Killed::Memory });
            }
            let killed = machine.client.run(&sh("kill -9 $$"));
            assert_eq!(killed.end(), End::Signaled { signal: 9 }, "only the command's own shortage counts");
        }
    }

    #[test]
    fn exit_and_timeout_at_once_give_one_end() {
        let mut machine = Machine::start(Mode::Process);
        let calls: Vec<u32> =
            (0..100).map(|_| machine.client.launch(&Exec { timeout_ms: Some(10), ..exec(&["sleep", "0.009"]) })).collect();
        for call in calls {
            let end = machine.client.collect(call).end();
            let expected = [End::Exited { code: 0 }, End::Killed { reason: Killed::Timeout }];
            assert!(expected.contains(&end), "{end:?}");
        }
        machine.client.send(0, &ToSupervisor::Ping);
        assert_eq!(machine.client.next().message, FromSupervisor::Pong, "nothing came twice");
    }

    #[test]
    fn signals_go_to_the_command_alone() {
        let mut machine = Machine::start(Mode::Process);
        let command = sh("trap 'echo caught; exit 7' TERM; echo set; while :; do sleep 0.01; done");
        let call = machine.client.launch(&command);
        machine.client.read_until(call, "set");
        let other = machine.client.call();
        machine.client.send(other, &ToSupervisor::Signal { id: command.id, signal: 15 });
        assert_eq!(machine.client.next_of(other), FromSupervisor::Finished);
        let collected = machine.client.collect(call);
        assert_eq!((collected.out().as_str(), collected.end()), ("caught\n", End::Exited { code: 7 }));
        let other = machine.client.call();
        machine.client.send(other, &ToSupervisor::Signal { id: command.id, signal: 15 });
        assert!(matches!(machine.client.next_of(other), FromSupervisor::Failed { .. }));
    }
}
