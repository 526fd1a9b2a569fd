//! Streams of a gibibyte: what is held of them meanwhile does not grow with them.

use std::pin::Pin;
use std::task::{Context, Poll};

use libtest_mimic::Trial;
use tierbox::{ExecRequest, Limit, Outcome, ReadOptions, WriteOptions};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::world::{ensure, nothing_left, sh, spec, start, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("slow::streams::a_gibibyte_of_output", a_gibibyte_of_output),
        trial("slow::streams::a_gibibyte_of_input", a_gibibyte_of_input),
        trial("slow::streams::a_file_of_a_gibibyte_there_and_back", a_file_of_a_gibibyte_there_and_back),
    ]
}

const GIB: u64 = 1 << 30;

/// The most by which this process may grow meanwhile.
const ROOM: u64 = 64 << 20;

/// What a position of a stream holds: a pattern whose period is no power of two, so that a piece that is lost, doubled or moved shows.
fn byte_at(position: u64) -> u8 {
    (position % 251) as u8
}

/// The most that this process has had in memory since it was last asked to forget.
struct Peak(u64);

impl Peak {
    fn begin() -> Self {
        // 5 sets the high-water mark to what is there now.
        std::fs::write("/proc/self/clear_refs", "5").expect("the mark can be set");
        Self(Self::now())
    }

    fn now() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a high-water mark");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    fn end(self) -> Result<(), String> {
        let grown = Self::now().saturating_sub(self.0);
        ensure(grown < ROOM, format!("this process grew by {} MiB", grown >> 20))
    }
}

/// A gibibyte of the pattern.
struct Pattern(u64);

impl AsyncRead for Pattern {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = buf.remaining().min(usize::try_from(GIB - self.0).unwrap_or(usize::MAX)).min(256 << 10);
        let begin = self.0;
        let unfilled = buf.initialize_unfilled_to(count);
        unfilled.iter_mut().zip(begin..).for_each(|(byte, position)| *byte = byte_at(position));
        buf.advance(count);
        self.0 += count as u64;
        Poll::Ready(Ok(()))
    }
}

/// Reads a stream to its end, which must be a gibibyte of the pattern.
async fn is_the_pattern(mut stream: impl AsyncRead + Unpin) -> Result<(), String> {
    let (mut position, mut piece) = (0_u64, vec![0; 256 << 10]);
    loop {
        match stream.read(&mut piece).await.map_err(|error| error.to_string())? {
            0 => return ensure(position == GIB, format!("{position} bytes came")),
            count => {
                let wrong = piece[..count].iter().zip(position..).find(|(byte, at)| **byte != byte_at(*at));
                ensure(wrong.is_none(), format!("the byte at {:?} is another", wrong.map(|(_, at)| at)))?;
                position += count as u64;
            }
        }
    }
}

async fn a_gibibyte_of_output() -> Result<(), String> {
    let environment = start(spec("tierbox-test/debian:1")).await.map_err(text)?;
    let machine = environment.primary();
    let peak = Peak::begin();
    let mut command = machine.spawn(ExecRequest::shell("head -c 1073741824 /dev/zero; echo over >&2")).await.map_err(text)?;
    let (mut stdout, mut stderr) = (command.take_stdout().ok_or("no stdout")?, command.take_stderr().ok_or("no stderr")?);
    let (mut total, mut piece) = (0_u64, vec![0; 256 << 10]);
    loop {
        match stdout.read(&mut piece).await.map_err(|error| error.to_string())? {
            0 => break,
            count => total += count as u64,
        }
    }
    let mut complaints = String::new();
    stderr.read_to_string(&mut complaints).await.map_err(|error| error.to_string())?;
    let ended = command.wait().await.map_err(text)?;
    peak.end()?;
    ensure(total == GIB && complaints == "over\n", format!("{total} bytes and {complaints:?}"))?;
    ensure(ended.outcome == Outcome::Exited(0), format!("{ended:?}"))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn a_gibibyte_of_input() -> Result<(), String> {
    let environment = start(spec("tierbox-test/debian:1")).await.map_err(text)?;
    let machine = environment.primary();
    let peak = Peak::begin();
    let mut command = machine.spawn(ExecRequest::new(["wc", "-c"]).stdin_stream()).await.map_err(text)?;
    let mut stdin = command.take_stdin().ok_or("no stdin")?;
    let sent = tokio::io::copy(&mut Pattern(0), &mut stdin).await.map_err(|error| error.to_string())?;
    drop(stdin);
    let mut counted = String::new();
    let mut stdout = command.take_stdout().ok_or("no stdout")?;
    stdout.read_to_string(&mut counted).await.map_err(|error| error.to_string())?;
    peak.end()?;
    ensure((sent, counted.trim()) == (GIB, "1073741824"), format!("{sent} were sent, and {counted:?} came"))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn a_file_of_a_gibibyte_there_and_back() -> Result<(), String> {
    let mut roomy = spec("tierbox-test/debian:1");
    // The working area has ten parts of sixteen, and lies in memory.
    roomy.limits.disk = Some(Limit::required(2 * GIB));
    roomy.limits.memory = Some(Limit::required(5 * GIB / 2));
    roomy.limits.file_size = None;
    let environment = start(roomy).await.map_err(text)?;
    let machine = environment.primary();
    let peak = Peak::begin();
    machine.write(&"/workspace/big".into(), Box::new(Pattern(0)), WriteOptions::default()).await.map_err(text)?;
    let size = sh(&machine, "stat -c %s /workspace/big").await?;
    ensure(size == "1073741824", size)?;
    let (meta, file) = machine.read(&"/workspace/big".into(), ReadOptions::default()).await.map_err(text)?;
    ensure(meta.size == GIB, format!("{meta:?}"))?;
    is_the_pattern(file).await?;
    peak.end()?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}
