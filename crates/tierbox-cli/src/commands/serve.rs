//! `tierbox serve`.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tierbox::{Error, ErrorKind};
use tierbox_serve::{Options, Server, Tokens, default_socket};

use crate::args::ServeArgs;
use crate::interrupt::Failure;
use crate::{Context, output};

/// How long a daemon that ends may keep its place.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most CPUs that make sense as a bound.
const MOST_CPUS: f64 = 1e6;

pub(crate) async fn serve(context: &mut Context, args: ServeArgs) -> Result<u8, Failure> {
    if args.background {
        let socket = background(context, args.socket)?;
        if context.global.json {
            output::json(&serde_json::json!({ "socket": socket }));
        } else {
            output::line(socket.display().to_string());
        }
        return Ok(0);
    }
    let options = options(args)?;
    let server = context.interrupts.guard(Server::bind(context.client.clone(), options)).await?;
    let (socket, address) = (server.socket().display().to_string(), server.address());
    if context.global.json {
        output::json(&serde_json::json!({ "socket": socket, "address": address.map(|address| address.to_string()) }));
    } else if !context.global.quiet {
        output::remark(&format!("listening on {socket}"));
        if let Some(address) = address {
            output::remark(&format!("listening on http://{address}"));
        }
    }
    match context.interrupts.guard(server.run(std::future::pending())).await {
        // Told to end, it has done what it should.
        Err(Failure::Interrupted(_)) | Ok(()) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Starts a daemon unless one listens already, and waits until it hears. One that is about to end has its place still, and hears nobody:
/// then another one is started when the place is free.
fn background(context: &Context, socket: Option<PathBuf>) -> Result<PathBuf, Error> {
    let socket = socket.map_or_else(|| default_socket(&context.client), Ok)?;
    let began = Instant::now();
    loop {
        launch()?;
        let Err(error) = UnixStream::connect(&socket) else { return Ok(socket) };
        if began.elapsed() > PATIENCE {
            return Err(Error::io("start daemon", error).with_context("path", socket.display()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Starts this program again without `--background`, in a process group of its own, and waits until it listens, or says that
/// another one does.
fn launch() -> Result<(), Error> {
    let failed = |error| Error::io("start daemon", error);
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--background" && argument != "--json");
    let mut child = Command::new(program)
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    // It writes one line when it listens, and none if it fails.
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout.take(64 << 10)).read_line(&mut line).map_err(failed)?;
    }
    if !line.is_empty() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(64 << 10).read_to_string(&mut said).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.code() == Some(i32::from(crate::exit::of_error(ErrorKind::AlreadyExists))) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, "start daemon", format!("it ended with {status}: {}", said.trim())))
}

pub(crate) fn print_openapi() {
    let text = serde_json::to_string_pretty(&tierbox_serve::openapi()).unwrap_or_default();
    output::line(&text);
}

fn options(args: ServeArgs) -> Result<Options, Error> {
    let mut options = Options::default();
    options.socket = args.socket;
    options.tcp = args.tcp;
    options.tokens = args.tokens.map(|path| Tokens::read_or_make(&path)).transpose()?;
    options.ttl = args.ttl;
    options.idle = args.idle;
    if let Some(memory) = args.memory {
        options.budget.memory = Some(memory);
    }
    if let Some(cpus) = args.cpu {
        if !(0.0..=MOST_CPUS).contains(&cpus) {
            return Err(Error::new(ErrorKind::InvalidInput, "read command line", "--cpu is not a number of CPUs"));
        }
        options.budget.cpu_millis = Some((cpus * 1000.0) as u64);
    }
    options.budget.backends.extend(args.max);
    Ok(options)
}
