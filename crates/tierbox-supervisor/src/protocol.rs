//! The protocol between the host and a supervisor, version 2.
//!
//! A channel carries frames both ways. A frame is `length: u32` (of what follows), `call: u32`, then one message. `call`
//! is chosen by the host and names an operation (an exec, a file transfer, a dial); every later frame about it carries the
//! same number. Call 0 is the channel itself.
//!
//! Descriptors go only from host to supervisor, over a local socket, and only pipes and sockets that the host made. They
//! are attached to the frame that counts them. A supervisor that sends descriptors is broken, and the host closes the
//! channel.
//!
//! Flow control: each framed stream starts with a window of [`WINDOW`] bytes, and the receiver grants more with `Credit`
//! (host to supervisor) or `InputCredit` (supervisor to host) as it consumes. A sender that exceeds its window is broken.
//!
//! Sessions: a channel over a line that can drop (ssh, an engine's exec) begins with `Begin` instead of `Hello`. From then on both
//! sides count the frames that they take in, tell the other side now and then (`Ack`), and keep what they sent until it is
//! acknowledged. When the line drops, the supervisor keeps everything as it is for the grace that `Begin` names. A new line that
//! starts with `Resume` goes on where the old one ended: each side says how many frames it has, and the other sends what is
//! missing. So each frame is taken in exactly once, whatever happens to lines. `Join`, `Begin`, `Resume`, `Resumed`, `Ack` and
//! `Leave` belong to lines, not to the session: they are neither counted nor sent again.

use crate::wire::{Blob, DecodeError, Reader, Wire};
use crate::{wire_enum, wire_struct};

/// The step of a `Refused` that answers a client instead of `Welcome`: the machine has as many as it takes.
pub const TOO_MANY: &str = "clients";

/// The version in [`ToSupervisor::Hello`]. Both sides must agree exactly: the host always carries its own supervisor.
pub const VERSION: u32 = 3;

/// The longest frame, in bytes after its length field. A longer one closes the channel.
pub const MAX_FRAME: usize = 4 << 20;

/// The most data in one `Input` or `Output` frame.
pub const CHUNK: usize = 64 << 10;

/// The window of a framed stream, in bytes; also what is retained per stream for a client that went away.
pub const WINDOW: u32 = 1 << 20;

/// Files up to this size travel inside one frame instead of a stream.
pub const INLINE: u32 = 64 << 10;

/// What each side of a session may have sent without an acknowledgement before it lets output wait, in bytes. Acknowledgements
/// are due after a quarter of it.
pub const UNACKNOWLEDGED: usize = 2 << 20;

/// Acknowledgements are due after so many frames, too.
pub const ACK_FRAMES: u64 = 64;

/// Which stream of a command.
pub const STDOUT: u8 = 1;
/// Which stream of a command.
pub const STDERR: u8 = 2;

wire_enum! {
    /// What a command reads.
    pub enum StdinMode {
        /// `/dev/null`.
        Null = 0,
        /// A descriptor that comes with the frame (the first one).
        Passed = 1,
        /// `Input` frames of the same call, then `InputEnd`.
        Framed = 2,
    }
}

wire_enum! {
    /// Where a command's output goes.
    pub enum OutputMode {
        /// Two descriptors that come with the frame, stdout then stderr (after stdin's).
        Passed = 0,
        /// `Output` frames of the same call.
        Framed = 1,
    }
}

wire_struct! {
    /// A terminal's size.
    pub struct WinSize {
        /// Height.
        pub rows: u16,
        /// Width.
        pub cols: u16,
    }
}

wire_struct! {
    /// A command to launch.
    pub struct Exec {
        /// Its identity: 128 random bits. A second launch with the same id is refused, never run.
        pub id: [u8; 16],
        /// Program and arguments; at least one.
        pub argv: Vec<Blob>,
        /// Variables on top of the base environment.
        pub env: Vec<(Blob, Blob)>,
        /// Leave out the base environment.
        pub env_clear: bool,
        /// Where it starts, relative to the working directory.
        pub cwd: Option<Blob>,
        /// Name or number of a user in the machine.
        pub user: Option<String>,
        /// Time limit in milliseconds.
        pub timeout_ms: Option<u64>,
        /// Limit on silence, in milliseconds. Needs framed output, since passed descriptors are not seen.
        pub idle_ms: Option<u64>,
        /// What it reads. Ignored with a terminal, which is always framed.
        pub stdin: StdinMode,
        /// Where its output goes. A terminal or a detached exec is always framed.
        pub output: OutputMode,
        /// A pseudo-terminal of this size.
        pub pty: Option<WinSize>,
        /// Kill what it leaves behind when it ends.
        pub kill_leftovers: bool,
        /// Outlive the channel. Output is kept, [`WINDOW`] bytes per stream, oldest dropped.
        pub detached: bool,
        /// What it is kept to.
        pub confine: Option<Confinement>,
    }
}

impl Exec {
    /// One without a limit or anything of its own: it reads nothing, and its output comes in frames.
    pub fn new(id: [u8; 16], argv: Vec<Blob>) -> Self {
        Self {
            id,
            argv,
            env: Vec::new(),
            env_clear: false,
            cwd: None,
            user: None,
            timeout_ms: None,
            idle_ms: None,
            stdin: StdinMode::Null,
            output: OutputMode::Framed,
            pty: None,
            kill_leftovers: false,
            detached: false,
            confine: None,
        }
    }
}

wire_struct! {
    /// The only files that a command may execute; it can then write none.
    pub struct Confinement {
        /// Absolute paths.
        pub executables: Vec<Blob>,
        /// Whether it may execute after it became the command.
        pub children: bool,
    }
}

wire_enum! {
    /// Why a command is killed on request.
    pub enum Kill {
        /// The caller cancelled.
        Cancelled = 0,
        /// It printed more than it may; only the host counts passed descriptors.
        OutputLimit = 1,
    }
}

wire_enum! {
    /// What a stream is opened to, inside.
    pub enum Dial {
        /// A port on 127.0.0.1.
        Tcp { /// The port.
            port: u16 } = 0,
        /// A Unix socket's path.
        Unix { /// The path.
            path: Blob } = 1,
    }
}

wire_enum! {
    /// An operation on files, done as the sandbox's default user.
    pub enum FileOp {
        /// Read a regular file. Answer: `Contents` if at most [`INLINE`] bytes, else `Opened`, `Output` frames (or the passed
        /// descriptor) and `Finished`.
        Read {
            /// The file.
            path: Blob,
            /// First byte.
            offset: u64,
            /// Bytes, or to the end.
            length: Option<u64>,
            /// Refuse with `TooLarge` beyond this.
            max: Option<u64>,
            /// A pipe comes with the frame, for contents that are not inline.
            passed: bool,
        } = 0,
        /// Write a file atomically. Answer: `Finished`.
        Write {
            /// The file.
            path: Blob,
            /// Permission bits.
            mode: Option<u32>,
            /// Refuse if it exists.
            create_new: bool,
            /// The whole contents, if small.
            inline: Option<Blob>,
            /// Without `inline`: a pipe comes with the frame. Otherwise `Input` frames, then `InputEnd`. The end of a pipe
            /// alone does not commit: the host sends `Commit`, so that a host that dies leaves the old file.
            passed: bool,
        } = 1,
        /// Facts about a path. Answer: `Meta`.
        Stat {
            /// The path.
            path: Blob,
            /// Follow a link.
            follow: bool,
        } = 2,
        /// A directory's entries. Answer: any number of `Entries`, then `Finished`.
        List {
            /// The directory.
            path: Blob,
        } = 3,
        /// Remove. Answer: `Finished`.
        Remove {
            /// The path.
            path: Blob,
            /// A whole tree.
            recursive: bool,
        } = 4,
        /// Make a directory and its parents. Answer: `Finished`.
        MakeDir {
            /// The directory.
            path: Blob,
        } = 5,
        /// Unpack a tar stream. Data as for `Write`. Answer: `Finished`.
        Unpack {
            /// The directory.
            path: Blob,
            /// A pipe comes with the frame.
            passed: bool,
        } = 6,
        /// Pack a directory. Answer: `Opened`, data as for `Read`, `Finished`.
        Pack {
            /// The directory.
            path: Blob,
            /// A pipe comes with the frame.
            passed: bool,
        } = 7,
    }
}

wire_enum! {
    /// From host to supervisor.
    pub enum ToSupervisor {
        /// First on every channel.
        Hello {
            /// [`VERSION`].
            version: u32,
            /// Keep this channel's execs alive so long after it broke, in milliseconds, for a client that comes back.
            grace_ms: u64,
        } = 0,
        /// Launch a command.
        Exec {
            /// The command.
            exec: Exec,
        } = 1,
        /// Follow a command that was launched on another channel (or on a broken one) from a byte position in each stream.
        Attach {
            /// Its identity.
            id: [u8; 16],
            /// First byte of stdout that is wanted; bytes no longer held are skipped.
            stdout_from: u64,
            /// Likewise of stderr.
            stderr_from: u64,
        } = 2,
        /// Stop following; the command lives on.
        Detach = 3,
        /// Data for the call's input.
        Input {
            /// At most [`CHUNK`] bytes.
            data: Blob,
        } = 4,
        /// End of the call's input.
        InputEnd = 5,
        /// A write or unpack whose data came through a passed pipe is complete.
        Commit = 6,
        /// The host consumed so much of the call's output.
        Credit {
            /// [`STDOUT`] or [`STDERR`].
            stream: u8,
            /// Bytes.
            bytes: u32,
        } = 7,
        /// Send a signal to a command's process.
        Signal {
            /// Its identity.
            id: [u8; 16],
            /// 1 to 64.
            signal: i32,
        } = 8,
        /// Change a terminal's size.
        Resize {
            /// The new size.
            size: WinSize,
        } = 9,
        /// Kill the tree of the command that was launched or attached by this call.
        Kill {
            /// Why.
            reason: Kill,
        } = 10,
        /// Kill the tree of a command by id; of one that ended, what it left behind.
        KillById {
            /// Its identity.
            id: [u8; 16],
            /// Why.
            reason: Kill,
        } = 11,
        /// List commands. Answer: `Execs`.
        ListExecs = 12,
        /// Tell the end of a command by id: `Done`, now or when it ends.
        Wait {
            /// Its identity.
            id: [u8; 16],
        } = 13,
        /// Operate on files.
        File {
            /// The operation.
            op: FileOp,
        } = 14,
        /// Give up the call: a file operation is aborted (a write leaves the old contents), a dialled stream closed.
        Abort = 15,
        /// Open a stream inside. Answer: `Dialed`, then `Input` and `Output` ([`STDOUT`]) frames.
        Dial {
            /// To what.
            target: Dial,
        } = 16,
        /// Read and discard these descriptors (reading ends of passed pipes) to their end, so that processes which a command
        /// left behind do not die of a closed pipe.
        Linger {
            /// How many descriptors come with the frame.
            count: u8,
        } = 17,
        /// End the machine: kill everything and exit.
        Shutdown = 18,
        /// From now on the machine outlives this channel (it listens on its socket) and ends by `Shutdown` or its lifetime.
        Persist = 19,
        /// Answer with `Pong`.
        Ping = 20,
        /// The network helper is attached; the machine may go on with its set-up. Only after [`NetworkWanted`](FromSupervisor::NetworkWanted).
        NetworkReady = 21,
        /// The two descriptors that come with the frame, for reading and for writing, are the client's line from now on. Only as
        /// the first frame on a local socket of a machine that was started by `serve`; the socket stays open as long as the
        /// line does.
        Join = 22,
        /// First on a channel whose line may drop, in place of `Hello`. Answer: `Welcome`, the first counted frame.
        Begin {
            /// [`VERSION`].
            version: u32,
            /// Names the session: 128 random bits that only the host knows.
            session: [u8; 16],
            /// How long everything is kept when the line drops, in milliseconds.
            grace_ms: u64,
        } = 23,
        /// First on a new line of a session. Answer: `Resumed`, or `Failed` (`NotFound`) on call 0 if there is no such session
        /// (any more).
        Resume {
            /// The session.
            session: [u8; 16],
            /// Frames of the session that the host took in.
            received: u64,
        } = 24,
        /// So many frames of the session were taken in.
        Ack {
            /// All in all.
            received: u64,
        } = 25,
        /// The session is over: as if its grace were.
        Leave = 26,
    }
}

wire_enum! {
    /// Why a command never ran.
    pub enum NotStarted {
        /// The working directory cannot be entered.
        BadCwd = 0,
        /// No such user.
        UnknownUser = 1,
        /// The user's number is not mapped into this sandbox.
        UserNotMapped = 2,
        /// Arguments and environment are too big for the kernel.
        TooBig = 3,
        /// No process could be made.
        NoResources = 4,
        /// This id was launched before.
        AlreadyLaunched = 5,
        /// The kernel cannot keep it to named executables.
        Unconfined = 6,
        /// The cgroup of its limits does not take it.
        NotAdmitted = 7,
    }
}

wire_enum! {
    /// Why the supervisor killed a command.
    pub enum Killed {
        /// Time limit.
        Timeout = 0,
        /// Silence limit.
        Idle = 1,
        /// Output limit, on the host's word.
        OutputLimit = 2,
        /// Out of memory, by the exec's own cgroup counter.
        Memory = 3,
        /// Cancelled by the host, or the channel was lost for longer than its grace.
        Cancelled = 4,
        /// The machine's lifetime is over.
        Lifetime = 5,
    }
}

wire_enum! {
    /// The end of a command, as first recorded.
    pub enum End {
        /// It never ran.
        NotStarted { /// Why.
            cause: NotStarted } = 0,
        /// Exit status 0 to 255.
        Exited { /// The status.
            code: i32 } = 1,
        /// Ended by a signal.
        Signaled { /// The signal.
            signal: i32 } = 2,
        /// Killed by the supervisor.
        Killed { /// Why.
            reason: Killed } = 3,
    }
}

wire_struct! {
    /// The end of a command and what it used.
    pub struct Done {
        /// The end.
        pub end: End,
        /// The errno if the program could not be executed.
        pub cannot_execute: Option<i32>,
        /// Wall time in microseconds.
        pub wall_us: u64,
        /// User CPU time in microseconds.
        pub user_us: Option<u64>,
        /// System CPU time in microseconds.
        pub system_us: Option<u64>,
        /// Peak memory in bytes: of all its processes together where its cgroup counts that, and never less than its largest process.
        pub peak_memory: Option<u64>,
        /// Bytes that went to stdout, if framed.
        pub stdout_total: u64,
        /// Bytes that went to stderr, if framed.
        pub stderr_total: u64,
    }
}

wire_struct! {
    /// A command that the supervisor knows of.
    pub struct ExecInfo {
        /// Its identity.
        pub id: [u8; 16],
        /// Program and arguments, cut to 4 KiB in all.
        pub argv: Vec<Blob>,
        /// Its process id inside, while it runs.
        pub pid: Option<u32>,
        /// Whether it outlives its channel.
        pub detached: bool,
        /// Milliseconds since its launch.
        pub age_ms: u64,
        /// Its end, if it ended.
        pub done: Option<Done>,
    }
}

wire_enum! {
    /// What a path names.
    pub enum Kind {
        /// A regular file.
        File = 0,
        /// A directory.
        Directory = 1,
        /// A symbolic link.
        Symlink = 2,
        /// Anything else.
        Other = 3,
    }
}

wire_struct! {
    /// The facts about a file.
    pub struct Meta {
        /// What it is.
        pub kind: Kind,
        /// Bytes.
        pub size: u64,
        /// Permission bits.
        pub mode: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Nanoseconds since 1970.
        pub modified_ns: i64,
        /// A link's target.
        pub target: Option<Blob>,
    }
}

wire_struct! {
    /// A name in a directory.
    pub struct Entry {
        /// The name.
        pub name: Blob,
        /// The facts.
        pub meta: Meta,
    }
}

wire_enum! {
    /// What went wrong with an operation.
    pub enum Failure {
        /// ENOENT, ENOTDIR, or an unknown exec id.
        NotFound = 0,
        /// EACCES, EPERM, EROFS.
        PermissionDenied = 1,
        /// A file was expected.
        IsADirectory = 2,
        /// Not a regular file, or not a directory where one was expected.
        NotAFile = 3,
        /// Beyond the caller's limit, or the file system's.
        TooLarge = 4,
        /// ENOSPC, EDQUOT.
        NoSpace = 5,
        /// EEXIST.
        AlreadyExists = 6,
        /// An archive's entry was refused.
        UnsafeArchive = 7,
        /// The request makes no sense.
        Invalid = 8,
        /// Not offered by this supervisor.
        Unsupported = 9,
        /// The worker was killed from inside the sandbox. Nothing was changed; try again.
        Interrupted = 10,
        /// Any other errno.
        Io = 11,
    }
}

wire_struct! {
    /// One mechanism of isolation, as the supervisor set it up.
    pub struct Mechanism {
        /// Its name.
        pub name: String,
        /// 0 enforced, 1 weaker, 2 absent.
        pub applied: u8,
        /// The particulars.
        pub detail: String,
    }
}

wire_enum! {
    /// From supervisor to host.
    pub enum FromSupervisor {
        /// The machine is set up. First on a new machine's own channel, before anything else.
        Ready {
            /// What was enforced.
            mechanisms: Vec<Mechanism>,
            /// 0 session, 1 subreaper, 2 cgroup.
            kill_domain: u8,
            /// Whether `Killed(Memory)` can be told.
            memory_outcome: bool,
            /// Whether root and other users of the machine can be used.
            users: bool,
        } = 0,
        /// The machine could not be set up, or takes no more clients ([`TOO_MANY`]); the channel ends.
        Refused {
            /// What was tried: `user namespace`, `uid map`, `mount /proc`, …
            step: String,
            /// The errno, or 0.
            errno: i32,
            /// More particulars; may be empty.
            detail: String,
        } = 1,
        /// The machine has its namespaces and waits for a network helper.
        NetworkWanted {
            /// Its first process, in the host's pid namespace.
            pid: u32,
        } = 2,
        /// Answer to `Hello`.
        Welcome {
            /// [`VERSION`].
            version: u32,
        } = 3,
        /// A command's or stream's data.
        Output {
            /// [`STDOUT`] or [`STDERR`].
            stream: u8,
            /// Position of the first byte.
            offset: u64,
            /// At most [`CHUNK`] bytes.
            data: Blob,
        } = 4,
        /// A framed stream is at its end, or was left to background children.
        OutputEnd {
            /// [`STDOUT`] or [`STDERR`].
            stream: u8,
        } = 5,
        /// The supervisor consumed so much input; the host may send as much again.
        InputCredit {
            /// Bytes.
            bytes: u32,
        } = 6,
        /// The reader of the call's input went away; more is pointless.
        InputClosed = 7,
        /// A command's process exists.
        Started {
            /// Its process id inside.
            pid: u32,
        } = 8,
        /// A command ended. With framed output, after its `OutputEnd`s.
        Done {
            /// The end.
            done: Done,
        } = 9,
        /// Answer to `ListExecs`.
        Execs {
            /// At most 1024, newest first.
            execs: Vec<ExecInfo>,
        } = 10,
        /// Facts.
        Meta {
            /// The facts.
            meta: Meta,
        } = 11,
        /// A small file, whole.
        Contents {
            /// The facts.
            meta: Meta,
            /// The contents.
            data: Blob,
        } = 12,
        /// A read or pack goes on as a stream.
        Opened {
            /// The facts.
            meta: Meta,
        } = 13,
        /// Part of a listing.
        Entries {
            /// Names and facts.
            entries: Vec<Entry>,
        } = 14,
        /// The operation is complete.
        Finished = 15,
        /// The operation failed; nothing more comes for this call.
        Failed {
            /// What kind.
            failure: Failure,
            /// The errno, or 0.
            errno: i32,
            /// Particulars, made by the supervisor.
            detail: String,
        } = 16,
        /// The stream is open.
        Dialed = 17,
        /// Answer to `Ping`.
        Pong = 18,
        /// Answer to `Resume`.
        Resumed {
            /// Frames of the session that the supervisor took in.
            received: u64,
        } = 19,
        /// So many frames of the session were taken in.
        Ack {
            /// All in all.
            received: u64,
        } = 20,
        /// First answer to `Attach`: so much of each stream is held for this client. What comes after it is new.
        Attached {
            /// Bytes of stdout.
            stdout: u64,
            /// Bytes of stderr.
            stderr: u64,
        } = 21,
    }
}

/// A message with its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<M> {
    /// The operation it belongs to; 0 is the channel.
    pub call: u32,
    /// The message.
    pub message: M,
}

/// The bytes of a frame, length field included.
///
/// # Panics
/// If the message is longer than [`MAX_FRAME`]: senders split data into [`CHUNK`]s and bound what they take in.
pub fn encode<M: Wire>(call: u32, message: &M) -> Vec<u8> {
    let mut out = vec![0; 4];
    call.put(&mut out);
    message.put(&mut out);
    let length = out.len() - 4;
    assert!(length <= MAX_FRAME, "a frame of {length} bytes was built");
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    out
}

/// The bytes of a frame, or `None` if it would be longer than [`MAX_FRAME`].
pub fn try_encode<M: Wire>(call: u32, message: &M) -> Option<Vec<u8>> {
    let mut out = vec![0; 4];
    call.put(&mut out);
    message.put(&mut out);
    let length = out.len() - 4;
    if length > MAX_FRAME {
        return None;
    }
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Some(out)
}

/// Takes frames out of a stream of bytes, in whatever pieces they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && (self.start == self.buffer.len() || self.start >= 64 << 10) {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are not taken out yet.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// [`DecodeError`] for a frame that is too long or malformed. The stream is then useless.
    pub fn next_frame<M: Wire>(&mut self) -> Result<Option<Frame<M>>, DecodeError> {
        let pending = &self.buffer[self.start..];
        let Some((length, rest)) = pending.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(DecodeError::TooLong);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let mut reader = Reader::new(body);
        let call = u32::get(&mut reader)?;
        let message = M::get(&mut reader)?;
        if reader.remaining() != 0 {
            return Err(DecodeError::Trailing);
        }
        self.start += 4 + length;
        Ok(Some(Frame { call, message }))
    }
}
