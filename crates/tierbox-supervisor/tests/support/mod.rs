//! A worker, a directory of its user, and what a test does with them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tierbox_supervisor::protocol::{Failure, FileOp, FromSupervisor};
use tierbox_supervisor::runtime::files::Worker;
use tierbox_supervisor::runtime::identity::Identity;

/// An operation's last answer; one that tests compare.
pub type Answer = FromSupervisor;

/// Whether the test may become somebody else.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The kind of failure; anything else fails the test.
pub fn failure(answer: Answer) -> Failure {
    match answer {
        FromSupervisor::Failed { failure, .. } => failure,
        other => panic!("no failure but {other:?}"),
    }
}

/// All that comes out of a pipe.
pub fn read_all(pipe: &mut File) -> Vec<u8> {
    let mut data = Vec::new();
    pipe.read_to_end(&mut data).unwrap();
    data
}

/// A worker and its directory.
pub struct Bench {
    pub worker: Worker,
    pub uid: u32,
    gid: u32,
    dir: tempfile::TempDir,
    ended: bool,
}

impl Bench {
    pub fn new() -> Self {
        // In memory where there is such a place, as the machine's writable areas mostly are.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (uid, gid) =
            if is_root() { (65534, 65534) } else { (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()) };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let identity =
            Identity { name: "agent".into(), uid, gid, groups: vec![gid], home: b"/".to_vec(), shell: b"/bin/sh".to_vec() };
        let workdir = dir.path().as_os_str().as_encoded_bytes();
        Self { worker: Worker::fork(&identity, workdir, &[]).unwrap(), uid, gid, dir, ended: false }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file of the worker's user.
    pub fn make(&self, name: &str, contents: &[u8]) {
        fs::write(self.path(name), contents).unwrap();
        chown(self.path(name), Some(self.uid), Some(self.gid)).unwrap();
    }

    /// Makes a directory of the worker's user.
    pub fn make_dir(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        chown(self.path(name), Some(self.uid), Some(self.gid)).unwrap();
    }

    /// Makes directories inside each other, deeper than any path can name.
    pub fn make_chain(&self, top: &str, name: &str, depth: usize) {
        use rustix::fs::{Mode, OFlags, chownat, mkdirat, openat};
        let owner = (Some(rustix::fs::Uid::from_raw(self.uid)), Some(rustix::fs::Gid::from_raw(self.gid)));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir: OwnedFd = rustix::fs::open(self.path(top), flags, Mode::empty()).unwrap();
        for _ in 0..depth {
            mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
            chownat(&dir, name, owner.0, owner.1, rustix::fs::AtFlags::empty()).unwrap();
            dir = openat(&dir, name, flags, Mode::empty()).unwrap();
        }
    }

    /// Makes a FIFO that everybody may use.
    pub fn make_fifo(&self, name: &str) {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, self.path(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    /// The names in a directory, sorted.
    pub fn names(&self, name: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(name)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// An operation without a stream; its last answer.
    pub fn run(&mut self, op: FileOp) -> Answer {
        self.worker.submit(&op, None).unwrap();
        self.last()
    }

    /// An operation that produces a stream; its last answer and the stream.
    pub fn run_with_sink(&mut self, op: FileOp) -> (Answer, Vec<u8>) {
        let mut pipe = self.begin_with_sink(op);
        let data = read_all(&mut pipe);
        (self.last(), data)
    }

    pub fn begin_with_sink(&mut self, op: FileOp) -> File {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        self.worker.submit(&op, Some(write)).unwrap();
        read.into()
    }

    pub fn begin_with_source(&mut self, op: FileOp) -> File {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        self.worker.submit(&op, Some(read)).unwrap();
        write.into()
    }

    /// Unpacks an archive and commits it.
    pub fn unpack(&mut self, path: &str, archive: &[u8]) -> Answer {
        let mut pipe = self.begin_with_source(FileOp::Unpack { path: path.as_bytes().into(), passed: true });
        // A worker that refuses the archive stops reading.
        let _ = pipe.write_all(archive);
        drop(pipe);
        self.worker.commit().unwrap();
        self.last()
    }

    /// The operation's last answer; those before are dropped.
    pub fn last(&mut self) -> Answer {
        loop {
            match self.next() {
                FromSupervisor::Opened { .. } | FromSupervisor::Entries { .. } => {}
                answer => return answer,
            }
        }
    }

    /// The next answer.
    pub fn next(&mut self) -> Answer {
        if let Some(answer) = self.take() {
            return answer;
        }
        loop {
            self.wait_readable();
            let mut answers = self.worker.receive().expect("the worker is gone");
            answers.reverse();
            WAITING.with_borrow_mut(|waiting| waiting.splice(0..0, answers).for_each(drop));
            if let Some(answer) = self.take() {
                return answer;
            }
        }
    }

    fn take(&self) -> Option<Answer> {
        WAITING.with_borrow_mut(Vec::pop)
    }

    fn wait_readable(&self) {
        let socket = self.worker.as_fd();
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "the worker does not answer");
    }

    fn process(&self) -> Pid {
        Pid::from_raw(self.worker.pid()).unwrap()
    }

    pub fn kill(&self) {
        kill_process(self.process(), Signal::KILL).unwrap();
    }

    pub fn stop(&self) {
        kill_process(self.process(), Signal::STOP).unwrap();
        waitpid(Some(self.process()), WaitOptions::UNTRACED).unwrap();
    }

    /// Closes the worker's socket and waits until it is gone.
    pub fn end(&mut self) {
        rustix::net::shutdown(self.worker.as_fd().as_fd(), rustix::net::Shutdown::Both).unwrap();
        let _ = waitpid(Some(self.process()), WaitOptions::empty());
        self.ended = true;
    }

    /// The memory that the worker has for itself.
    pub fn memory_kib(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.worker.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A file system of 1 MiB; None where this user cannot mount.
    pub fn mount_small(&self, name: &str) -> Option<Mounted> {
        self.make_dir(name);
        let path = self.path(name);
        let options = format!("size=1m,mode=777,uid={},gid={}", self.uid, self.gid);
        let options = std::ffi::CString::new(options).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &path, "tmpfs", none, options.as_c_str()).ok().map(|()| Mounted(path))
    }

    /// Limits the size of the files that the worker writes.
    pub fn limit_file_size(&self, bytes: u64) {
        let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::prlimit(Some(self.process()), rustix::process::Resource::Fsize, limit).unwrap();
    }
}

thread_local! {
    /// Answers that came together with an earlier one, last first. Each test has its own thread and worker.
    static WAITING: std::cell::RefCell<Vec<Answer>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            self.end();
        }
    }
}

/// A mount that ends with the test.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0 as &Path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// An archive with entries that no honest program writes.
#[derive(Default)]
pub struct Forged(Vec<u8>);

impl Forged {
    pub fn file(&mut self, name: &str, contents: &[u8]) {
        self.raw(b'0', name, "", 0o644, contents);
    }

    pub fn link(&mut self, kind: u8, name: &str, target: &str) {
        self.raw(kind, name, target, 0o777, b"");
    }

    pub fn raw(&mut self, kind: u8, name: &str, target: &str, mode: u32, contents: &[u8]) {
        self.header(kind, name, target, mode, contents.len() as u64);
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// A header with a size that nothing backs.
    pub fn claim(&mut self, kind: u8, name: &str, size: u64) {
        self.header(kind, name, "", 0o644, size);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    fn header(&mut self, kind: u8, name: &str, target: &str, mode: u32, size: u64) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
    }
}

/// Runs `work` while two names are exchanged as fast as can be; returns how often they were.
pub fn while_swapping(one: PathBuf, other: PathBuf, work: impl FnOnce()) -> usize {
    use std::sync::atomic::{AtomicBool, Ordering};
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, exchange).unwrap();
                swaps += 1;
            }
            swaps
        });
        let stopping = Stop(&stop);
        work();
        drop(stopping);
        swapper.join().unwrap()
    })
}
