//! The engine, driven through the real program.

mod engine_support;

use std::io::Read;

use engine_support::*;
use tierbox_supervisor::protocol::{
    End, Exec, FileOp, FromSupervisor, Kill, Killed, NotStarted, StdinMode, TOO_MANY, ToSupervisor, VERSION, WinSize,
};
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

mod ends {
    use super::*;

    /// A reader that takes the end of input for a byte, as a shell does that is about to edit a line, is told again.
    #[test]
    fn the_end_of_a_terminals_input_is_not_lost() {
        let mut machine = Machine::start_guest(|_| {}, 0);
        let mut command = sh("stty raw -echo; echo raw; head -c 1 | od -An -tx1; stty sane; cat; cat; echo over");
        command.pty = Some(WinSize { rows: 30, cols: 100 });
        let call = machine.client.launch(&command);
        machine.client.read_until(call, "raw");
        machine.client.send(call, &ToSupervisor::InputEnd);
        let rest = machine.client.collect(call);
        assert!(rest.out().contains("04") && rest.out().contains("over"), "{}", rest.out());
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

    fn leftovers_die_by_id(machine: &mut Machine) {
        let id = exec(&[]).id;
        let collected = machine.client.run(&Exec { id, ..sh("sleep 1000 > /dev/null 2>&1 & echo $!") });
        assert_eq!(collected.end(), End::Exited { code: 0 });
        let left = collected.out().trim().to_owned();
        assert!(is_running(&left));
        let call = machine.client.call();
        machine.client.send(call, &ToSupervisor::KillById { id, reason: Kill::Cancelled });
        assert_eq!(machine.client.next_of(call), FromSupervisor::Finished);
        eventually("what it left behind is gone", || !is_running(&left));
        eventually("there is nothing to kill any more", || {
            let call = machine.client.call();
            machine.client.send(call, &ToSupervisor::KillById { id, reason: Kill::Cancelled });
            matches!(machine.client.next_of(call), FromSupervisor::Failed { .. })
        });
    }

    #[test]
    fn what_an_ended_command_left_behind_is_killed_by_its_id() {
        leftovers_die_by_id(&mut Machine::start(Mode::Process));
        let mut there = false;
        let mut machine = Machine::start_with(Mode::Process, |setup| there = cgroup(setup, "/sys/fs/cgroup/freezer", "freezer"));
        if there {
            leftovers_die_by_id(&mut machine);
        }
    }

    /// Both parts of a pipeline count, and what an earlier command used does not.
    #[test]
    fn memory_is_counted_for_all_processes_of_a_command_together() {
        let mut there = false;
        let mut machine = Machine::start_with(Mode::Process, |setup| there = cgroup(setup, "/sys/fs/cgroup/memory", "memory"));
        if !there {
            return;
        }
        let hold = "{ head -c 40000000 /dev/zero; echo full >&2; read line <&3; } | tail -c 40000000 > /dev/null";
        let command = Exec { stdin: StdinMode::Framed, ..sh(&format!("exec 3<&0; {hold} & {hold} & wait")) };
        let call = machine.client.launch(&command);
        machine.client.read_until(call, "full\nfull\n");
        machine.client.send(call, &ToSupervisor::InputEnd);
        let two = machine.client.collect(call).done.unwrap().peak_memory.unwrap();
        assert!((60 << 20..1 << 30).contains(&two), "{two} bytes");
        let little = machine.client.run(&sh("exit 0")).done.unwrap().peak_memory.unwrap();
        assert!(little < 30 << 20, "{little} bytes");
    }

    #[test]
    fn file_workers_are_in_the_machines_cgroups() {
        let mut there = false;
        let mut path = String::new();
        let mut machine = Machine::start_with(Mode::Process, |setup| {
            there = cgroup(setup, "/sys/fs/cgroup/memory", "memory");
            path = setup.cgroups.first().map(|group| String::from_utf8_lossy(&group.path.0).into_owned()).unwrap_or_default();
        });
        if !there {
            return;
        }
        let call = machine.client.call();
        let op = FileOp::MakeDir { path: blob("made") };
        machine.client.send(call, &ToSupervisor::File { op });
        assert_eq!(machine.client.next_of(call), FromSupervisor::Finished);
        let below = std::fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let inside: String = below.map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default()).collect();
        assert_eq!(inside.lines().count(), 1, "the worker alone: {inside}");
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

mod detached {
    use super::*;

    fn listening(dir: &std::path::Path, setup: &mut tierbox_supervisor::setup::Setup) -> std::path::PathBuf {
        let path = dir.join("socket");
        setup.listen = Some(blob(path.as_os_str().as_encoded_bytes()));
        path
    }

    #[test]
    fn detached_commands_are_listed_followed_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = std::path::PathBuf::new();
        let mut machine = Machine::start_with(Mode::Process, |setup| {
            path = listening(dir.path(), setup);
            setup.persist = true;
        });
        let command = Exec { detached: true, stdin: StdinMode::Framed, ..sh("echo one; read line; echo two $line; exit 5") };
        let call = machine.client.launch(&command);
        machine.client.read_until(call, "one\n");
        let mut other = Client::connect(&path, 0);
        drop(std::mem::replace(&mut machine.client, Client::connect(&path, 0)));
        let listing = other.call();
        other.send(listing, &ToSupervisor::ListExecs);
        let FromSupervisor::Execs { execs } = other.next_of(listing) else { panic!("no listing") };
        assert_eq!((execs.len(), execs[0].id, execs[0].detached, execs[0].pid.is_some()), (1, command.id, true, true));
        let attach = ToSupervisor::Attach { id: command.id, stdout_from: 2, stderr_from: 0 };
        let call = other.call();
        other.send(call, &attach);
        assert_eq!(other.read_until(call, "e\n"), "e\n", "from the third byte on");
        other.send(call, &ToSupervisor::Input { data: blob("more\n") });
        let collected = other.collect(call);
        assert_eq!((collected.out().as_str(), collected.end()), ("two more\n", End::Exited { code: 5 }));
        let wait = other.call();
        other.send(wait, &ToSupervisor::Wait { id: command.id });
        assert!(matches!(other.next_of(wait), FromSupervisor::Done { .. }));
        let again = other.call();
        other.send(again, &ToSupervisor::Attach { id: command.id, stdout_from: 0, stderr_from: 0 });
        let collected = other.collect(again);
        assert_eq!((collected.out().as_str(), collected.end()), ("one\ntwo more\n", End::Exited { code: 5 }));
        other.send(0, &ToSupervisor::Shutdown);
        assert_eq!(machine.wait_end(), 0);
    }

    #[test]
    fn a_client_too_many_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = std::path::PathBuf::new();
        let machine = Machine::start_with(Mode::Process, |setup| path = listening(dir.path(), setup));
        // Its own channel is the first.
        let mut clients: Vec<Client> = (1..256).map(|_| Client::connect(&path, 0)).collect();
        let mut refused = Client::new(Line::Socket(std::os::unix::net::UnixStream::connect(&path).unwrap()));
        let FromSupervisor::Refused { step, detail, .. } = refused.next().message else { panic!("it was let in") };
        assert!(step == TOO_MANY && detail.contains("256"), "{step}: {detail}");
        assert!(refused.try_next().is_none(), "the line ends");
        let last = clients.pop().unwrap();
        drop(last);
        // Its place is free once the machine noticed.
        let again = || {
            let mut client = Client::new(Line::Socket(std::os::unix::net::UnixStream::connect(&path).unwrap()));
            let _ = client.try_send(0, &ToSupervisor::Hello { version: VERSION, grace_ms: 0 });
            client.try_next().is_some_and(|frame| matches!(frame.message, FromSupervisor::Welcome { .. }))
        };
        eventually("a place becomes free", again);
        drop(machine);
    }

    #[test]
    fn only_the_newest_output_is_held() {
        let mut machine = Machine::start(Mode::Process);
        let command = Exec { detached: true, ..sh("head -c 1500000 /dev/zero; echo end") };
        let call = machine.client.launch(&command);
        machine.client.send(call, &ToSupervisor::Detach);
        let wait = machine.client.call();
        machine.client.send(wait, &ToSupervisor::Wait { id: command.id });
        let FromSupervisor::Done { done } = machine.client.next_of(wait) else { panic!("no end") };
        assert_eq!(done.stdout_total, 1_500_004);
        let attached = machine.client.call();
        machine.client.send(attached, &ToSupervisor::Attach { id: command.id, stdout_from: 10, stderr_from: 0 });
        let collected = machine.client.collect(attached);
        assert_eq!((collected.first_offset[0], collected.stdout.len()), (1_500_004 - (1 << 20), 1 << 20));
        assert!(collected.out().ends_with("end\n"));
        assert_eq!(collected.retained, Some([1 << 20, 0]), "what was there is told first");
    }

    #[test]
    fn a_client_that_goes_takes_its_commands_along_unless_it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = std::path::PathBuf::new();
        let mut machine = Machine::start_with(Mode::Process, |setup| path = listening(dir.path(), setup));
        let mut patient = Client::connect(&path, 5_000);
        let kept = sh("echo a; sleep 0.2; echo b");
        let call = patient.launch(&kept);
        patient.read_until(call, "a\n");
        drop(patient);
        let mut brief = Client::connect(&path, 0);
        let call = brief.launch(&sh("echo $$; exec sleep 60"));
        let pid = brief.read_until(call, "\n");
        drop(brief);
        eventually("the command goes with its client", || !is_running(&pid));
        let call = machine.client.call();
        machine.client.send(call, &ToSupervisor::Attach { id: kept.id, stdout_from: 2, stderr_from: 0 });
        let collected = machine.client.collect(call);
        assert_eq!((collected.out().as_str(), collected.end()), ("b\n", End::Exited { code: 0 }));
    }

    #[test]
    fn a_machine_ends_with_its_channel_or_its_lifetime() {
        let mut machine = Machine::start(Mode::Process);
        let call = machine.client.launch(&sh("echo $$; exec sleep 60"));
        let pid = machine.client.read_until(call, "\n");
        let (unused, _) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(std::mem::replace(&mut machine.client, Client::new(Line::Socket(unused))));
        machine.wait_end();
        assert!(!is_running(&pid));
        let mut machine = Machine::start_with(Mode::Process, |setup| {
            setup.lifetime_ms = Some(50);
            setup.persist = true;
        });
        assert_eq!(machine.wait_end(), 0);
    }

    #[test]
    fn commands_are_told_that_the_lifetime_is_over() {
        let mut machine = Machine::start_with(Mode::Process, |setup| setup.lifetime_ms = Some(500));
        let call = machine.client.launch(&sh("echo $$; trap '' TERM; sleep 60 & wait"));
        let pid = machine.client.read_until(call, "\n");
        let collected = machine.client.collect(call);
        assert_eq!(collected.end(), End::Killed { reason: Killed::Lifetime });
        assert_eq!(machine.wait_end(), 0);
        assert!(!is_running(&pid));
    }

    #[test]
    fn a_guest_waits_for_its_commands_as_long_as_it_was_told() {
        let mut machine = Machine::start_guest(|_| {}, 300);
        let call = machine.client.launch(&sh("echo $$; exec sleep 60"));
        let pid = machine.client.read_until(call, "\n");
        let start = std::time::Instant::now();
        machine.client.close();
        machine.wait_end();
        assert!(start.elapsed() >= std::time::Duration::from_millis(300) && !is_running(&pid));
    }
}

mod protocol_rules {
    use super::*;

    #[test]
    fn nonsense_closes_the_connection_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut machine =
            Machine::start_with(Mode::Process, |setup| setup.listen = Some(blob(path.as_os_str().as_encoded_bytes())));
        let mut garbage = Client::connect(&path, 0);
        garbage.send_bytes(&[0xff; 64]);
        assert_eq!(garbage.try_next(), None);
        let mut impolite = Client::new(Line::Socket(std::os::unix::net::UnixStream::connect(&path).unwrap()));
        impolite.send(0, &ToSupervisor::Ping);
        assert_eq!(impolite.try_next(), None);
        let mut stranger = Client::new(Line::Socket(std::os::unix::net::UnixStream::connect(&path).unwrap()));
        stranger.send(0, &ToSupervisor::Hello { version: 999, grace_ms: 0 });
        assert!(matches!(stranger.next().message, FromSupervisor::Welcome { .. }));
        assert_eq!(stranger.try_next(), None);
        let mut without = Client::connect(&path, 0);
        let exec = Exec { output: tierbox_supervisor::protocol::OutputMode::Passed, ..sh("true") };
        without.send(1, &ToSupervisor::Exec { exec });
        assert_eq!(without.try_next(), None, "descriptors are counted, but did not come");
        let mut flooding = Client::connect(&path, 0);
        let call = flooding.launch(&Exec { stdin: StdinMode::Framed, ..sh("sleep 60") });
        for _ in 0..50 {
            let data = blob(vec![0; 64 << 10]);
            if flooding.try_send(call, &ToSupervisor::Input { data }).is_err() {
                break;
            }
        }
        while flooding.try_next().is_some() {}
        assert_eq!(machine.client.run(&sh("echo well")).out(), "well\n");
    }

    #[test]
    fn a_call_that_cannot_be_is_refused() {
        let mut machine = Machine::start(Mode::Process);
        for bad in [exec(&[]), exec(&[""]), exec(&["a\0b"])] {
            let call = machine.client.launch(&bad);
            assert!(matches!(machine.client.next_of(call), FromSupervisor::Failed { .. }), "{bad:?}");
        }
        let call = machine.client.call();
        machine.client.send(call, &ToSupervisor::Wait { id: [9; 16] });
        assert!(matches!(machine.client.next_of(call), FromSupervisor::Failed { .. }));
        machine.client.send(99, &ToSupervisor::Kill { reason: Kill::Cancelled });
        assert_eq!(machine.client.run(&sh("echo well")).out(), "well\n");
    }
}

mod files_and_streams_inside {
    use std::io::Write;

    use tierbox_supervisor::protocol::{Dial, Failure, FileOp};

    use super::*;

    fn path(machine: &Machine, name: &str) -> tierbox_supervisor::wire::Blob {
        blob(machine.dir.path().join(name).as_os_str().as_encoded_bytes())
    }

    fn ask(machine: &mut Machine, op: FileOp) -> FromSupervisor {
        let call = machine.client.call();
        machine.client.send(call, &ToSupervisor::File { op });
        machine.client.next_of(call)
    }

    fn write(machine: &Machine, name: &str, inline: Option<&[u8]>) -> FileOp {
        FileOp::Write { path: path(machine, name), mode: None, create_new: false, inline: inline.map(blob), passed: false }
    }

    fn read(machine: &Machine, name: &str) -> FileOp {
        FileOp::Read { path: path(machine, name), offset: 0, length: None, max: None, passed: false }
    }

    #[test]
    fn small_files_travel_in_one_frame() {
        let mut machine = Machine::start(Mode::Process);
        let op = write(&machine, "small", Some(b"contents"));
        assert_eq!(ask(&mut machine, op), FromSupervisor::Finished);
        let op = read(&machine, "small");
        let FromSupervisor::Contents { data, .. } = ask(&mut machine, op) else { panic!("no contents") };
        assert_eq!(data.0, b"contents");
        let op = read(&machine, "missing");
        assert!(matches!(ask(&mut machine, op), FromSupervisor::Failed { failure: Failure::NotFound, .. }));
    }

    #[test]
    fn big_files_stream_both_ways() {
        let mut machine = Machine::start(Mode::Process);
        let contents: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 249) as u8).collect();
        let call = machine.client.call();
        let op = write(&machine, "big", None);
        machine.client.send(call, &ToSupervisor::File { op });
        let mut window = 1 << 20;
        for chunk in contents.chunks(64 << 10) {
            while window < chunk.len() {
                let FromSupervisor::InputCredit { bytes } = machine.client.next_of(call) else { panic!("no credit") };
                window += bytes as usize;
            }
            window -= chunk.len();
            machine.client.send(call, &ToSupervisor::Input { data: blob(chunk) });
        }
        machine.client.send(call, &ToSupervisor::InputEnd);
        while machine.client.next_of(call) != FromSupervisor::Finished {}
        assert!(std::fs::read(machine.dir.path().join("big")).unwrap() == contents);
        let call = machine.client.call();
        let op = read(&machine, "big");
        machine.client.send(call, &ToSupervisor::File { op });
        assert!(matches!(machine.client.next_of(call), FromSupervisor::Opened { .. }));
        let mut received = Vec::new();
        loop {
            match machine.client.next_of(call) {
                FromSupervisor::Output { stream, offset, data } => {
                    assert_eq!(offset, received.len() as u64);
                    machine.client.send(call, &ToSupervisor::Credit { stream, bytes: data.0.len() as u32 });
                    received.extend(data.0);
                }
                FromSupervisor::Finished => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(received == contents);
    }

    #[test]
    fn many_operations_at_once_and_one_given_up() {
        let mut machine = Machine::start(Mode::Process);
        let op = write(&machine, "never", None);
        let given_up = machine.client.call();
        machine.client.send(given_up, &ToSupervisor::File { op });
        machine.client.send(given_up, &ToSupervisor::Input { data: blob("half") });
        let calls: Vec<u32> = (0..40)
            .map(|number| {
                let call = machine.client.call();
                let op = write(&machine, &format!("file-{number}"), Some(number.to_string().as_bytes()));
                machine.client.send(call, &ToSupervisor::File { op });
                call
            })
            .collect();
        calls.into_iter().for_each(|call| assert_eq!(machine.client.next_of(call), FromSupervisor::Finished));
        machine.client.send(given_up, &ToSupervisor::Abort);
        let op = read(&machine, "file-39");
        assert!(matches!(ask(&mut machine, op), FromSupervisor::Contents { .. }));
        assert!(!machine.dir.path().join("never").exists());
    }

    #[test]
    fn streams_to_ports_and_sockets() {
        let mut machine = Machine::start(Mode::Process);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = std::os::unix::net::UnixListener::bind(machine.dir.path().join("inner")).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let echo = |stream: &mut dyn ReadWrite| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        };
        let echoing = std::thread::spawn(move || {
            let (mut tcp, _) = tcp.accept().unwrap();
            let (mut unix, _) = unix.accept().unwrap();
            echo(&mut tcp);
            drop(tcp);
            echo(&mut unix);
        });
        let inner = Dial::Unix { path: blob("inner") };
        let mut calls = Vec::new();
        for target in [Dial::Tcp { port }, inner] {
            let call = machine.client.call();
            machine.client.send(call, &ToSupervisor::Dial { target });
            assert_eq!(machine.client.next_of(call), FromSupervisor::Dialed);
            calls.push(call);
        }
        for call in calls {
            machine.client.send(call, &ToSupervisor::Input { data: blob("across") });
            machine.client.send(call, &ToSupervisor::InputEnd);
            assert_eq!(machine.client.read_until(call, "across"), "across");
            assert!(matches!(machine.client.next_of(call), FromSupervisor::OutputEnd { .. }));
            assert_eq!(machine.client.next_of(call), FromSupervisor::Finished);
        }
        echoing.join().unwrap();
        for (target, expected) in [
            (Dial::Tcp { port }, Failure::NotFound),
            (Dial::Unix { path: blob("no-such-socket") }, Failure::NotFound),
            (Dial::Unix { path: blob(vec![b'a'; 300]) }, Failure::Invalid),
        ] {
            let call = machine.client.call();
            machine.client.send(call, &ToSupervisor::Dial { target });
            assert!(matches!(machine.client.next_of(call), FromSupervisor::Failed { failure, .. } if failure == expected));
        }
    }

    trait ReadWrite: Read + Write {}
    impl<T: Read + Write> ReadWrite for T {}
}

mod containers {
    use tierbox_supervisor::protocol::FileOp;
    use tierbox_supervisor::setup::{MadeFile, Net, Setup, UserMap};

    use super::*;

    /// A container of root's, or `None` for a plain user, whose container has no other users.
    fn container(change: impl FnOnce(&mut Setup)) -> Option<Machine> {
        rustix::process::geteuid().is_root().then(|| {
            Machine::start_with(Mode::Container, |setup| {
                let passwd =
                    "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\nann:x:1001:1001::/home/ann:/bin/ash\n";
                let file = |path: &str, contents: &str| MadeFile { path: blob(path), mode: 0o644, contents: blob(contents) };
                setup.users = UserMap::Direct { first: 800_000, count: 65_536 };
                (setup.agent.uid, setup.agent.gid) = (1000, 1000);
                setup.agent.home = blob("/home/agent");
                setup.workdir = blob("/workspace");
                setup.files = vec![file("/etc/passwd", passwd), file("/etc/group", "ann:x:1001:\nteam:x:1100:agent,ann\n")];
                setup.net = Net::Isolated;
                change(setup);
            })
        })
    }

    #[test]
    fn users_have_their_ids_groups_and_no_capabilities() {
        let Some(mut machine) = container(|_| {}) else { return };
        let show =
            "id -u; id -g; id -G; echo $HOME $USER $SHELL; grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2 | uniq";
        let none = "0000000000000000\n";
        let run =
            |machine: &mut Machine, user: Option<&str>| machine.client.run(&Exec { user: user.map(str::to_owned), ..sh(show) });
        assert_eq!(run(&mut machine, None).out(), format!("1000\n1000\n1000\n\n{none}"));
        let ann = format!("1001\n1001\n1001 1100\n/home/ann ann /bin/ash\n{none}");
        assert_eq!(run(&mut machine, Some("ann")).out(), ann);
        assert_eq!(run(&mut machine, Some("1001")).out(), ann);
        assert_eq!(run(&mut machine, Some("4242")).out(), format!("4242\n4242\n4242\n/ 4242 /bin/sh\n{none}"));
        let root = run(&mut machine, Some("root")).out();
        assert!(root.starts_with("0\n0\n0\n/root root /bin/sh\n0000000000000000\n"), "{root}");
        let (kept, _) = root.lines().nth(5).unwrap().split_at(16);
        let kept = u64::from_str_radix(kept, 16).unwrap();
        assert!(kept & 1 == 1 && kept & (1 << 21 | 1 << 19) == 0, "chown, but neither sys_admin nor sys_ptrace: {kept:x}");
        let unmapped = run(&mut machine, Some("70000"));
        assert_eq!(unmapped.end(), End::NotStarted { cause: NotStarted::UserNotMapped });
    }

    /// All that a sandbox's user can do to processes; alone in it, that user has the supervisor's own number.
    fn signals_harm_nobody_else(mut machine: Machine) {
        let script = "(setsid sh -c 'sleep 60' &); kill -9 $PPID; sleep 60";
        let collected = machine.client.run(&Exec { timeout_ms: Some(500), ..sh(script) });
        assert!(matches!(collected.end(), End::Signaled { signal: 9 } | End::Killed { reason: Killed::Timeout }));
        for script in ["kill -9 -1", "kill -STOP -1 & sleep 0.02", "kill -STOP -1; kill -9 -1", "kill -TERM -1"] {
            machine.client.run(&Exec { timeout_ms: Some(500), ..sh(script) });
            assert_eq!(machine.client.run(&sh("echo well")).out(), "well\n", "after {script}");
        }
        let op = FileOp::MakeDir { path: blob("made") };
        for script in ["true", "kill -STOP -1", "kill -9 -1"] {
            let call = machine.client.call();
            machine.client.send(call, &ToSupervisor::File { op: op.clone() });
            assert_eq!(machine.client.next_of(call), FromSupervisor::Finished, "before {script}");
            machine.client.run(&Exec { timeout_ms: Some(500), ..sh(script) });
        }
        let left = machine.client.run(&sh("cat /proc/[0-9]*/comm"));
        assert!(!left.out().contains("sleep"), "{}", left.out());
        machine.shutdown();
    }

    #[test]
    fn signals_of_a_user_among_others_harm_nobody_else() {
        if let Some(machine) = container(|_| {}) {
            signals_harm_nobody_else(machine);
        }
    }

    #[test]
    fn signals_of_a_user_who_is_alone_harm_nobody_else() {
        if let Some(machine) = container(|setup| setup.users = UserMap::Single) {
            signals_harm_nobody_else(machine);
        }
    }

    #[test]
    fn thousands_of_orphans_are_reaped() {
        let Some(mut machine) = container(|_| {}) else { return };
        let script =
            "i=0; while [ $i -lt 40 ]; do (j=0; while [ $j -lt 50 ]; do (: & ) ; j=$((j+1)); done) & i=$((i+1)); done; wait";
        assert_eq!(machine.client.run(&sh(script)).end(), End::Exited { code: 0 });
        eventually("no zombie stays", || {
            machine.client.run(&sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")).out().trim() == "0"
        });
    }

    #[test]
    fn nobody_inside_sees_into_the_supervisor_or_its_helpers() {
        let Some(mut machine) = container(|_| {}) else { return };
        let script = "for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in tierbox*) cat $p/environ $p/mem 2>&1; \
            ls $p/fd 2>&1;; esac; done | grep -vc -i 'denied'";
        for user in ["agent", "root"] {
            let collected = machine.client.run(&Exec { user: Some(user.into()), ..sh(script) });
            assert_eq!(collected.out(), "0\n", "{user}: {}", collected.err());
        }
    }
}
