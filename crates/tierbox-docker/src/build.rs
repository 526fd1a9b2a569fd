//! Builds images from Dockerfiles.

use std::io::{self, Write};
use std::path::Path;

use bollard::query_parameters::BuildImageOptions;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tierbox_core::{Error, ErrorKind, Progress, Result};
use tierbox_guest::transfer::{self, Choice};
use tokio::sync::mpsc;

use crate::engine::{Engine, bounded, failed};
use crate::ignore::Ignore;
use crate::launch::{LABEL, labels};
use crate::plan::BuildPlan;
use crate::settings::invalid;
use crate::{BACKEND, dockerfile, triggers};

/// How much of a context is under way at once, in pieces of [`PIECE`].
const PIECES: usize = 8;

/// The size of a piece.
const PIECE: usize = 128 << 10;

/// The longest Dockerfile.
const MAX_DOCKERFILE: u64 = 1 << 20;

/// How many of the last lines of a build are kept for its error.
const LAST_LINES: usize = 12;

/// Builds an image under a name that is in the lease already. The Dockerfile is trusted like code: its steps have the engine's
/// default network.
///
/// # Errors
/// `InvalidProfile` for a context that is none; `HostUnable` with the last lines of a build that fails.
pub async fn image(engine: &Engine, plan: &BuildPlan, name: &str, id: &str, progress: &dyn Progress) -> Result<()> {
    let dockerfile = inside(plan)?;
    let text = read(plan, &dockerfile)?;
    let labelled = dockerfile::labelled(&text, LABEL, id, &triggers::labelled(engine, plan, &text, id).await?);
    progress.step(&format!("building the image from {}", plan.dockerfile.display()));
    let options = BuildImageOptions {
        dockerfile,
        t: Some(name.to_owned()),
        rm: true,
        forcerm: true,
        labels: Some(labels(id)),
        buildargs: Some(plan.args.clone().into_iter().collect()),
        target: plan.target.clone().unwrap_or_default(),
        ..BuildImageOptions::default()
    };
    let ignore = Ignore::of(&plan.context, &options.dockerfile)?;
    let body = bollard::body_try_stream(packed(plan.context.clone(), options.dockerfile.clone(), labelled, ignore));
    let mut steps = engine.docker.build_image(options, None, Some(body));
    let mut said: Vec<String> = Vec::new();
    while let Some(step) = steps.next().await {
        let (line, wrong) = match step {
            Ok(step) => (step.stream.unwrap_or_default(), step.error_detail.map(|detail| detail.message.unwrap_or_default())),
            Err(error) => (String::new(), Some(failed("build the image", &error).message().to_owned())),
        };
        let line = bounded(&line);
        if line.starts_with("Step ") {
            progress.step(&line);
        }
        if !line.is_empty() {
            said.push(line);
            said.drain(..said.len().saturating_sub(LAST_LINES));
        }
        if let Some(wrong) = wrong {
            return Err(broken(plan, &wrong, &said));
        }
    }
    Ok(())
}

fn broken(plan: &BuildPlan, wrong: &str, said: &[String]) -> Error {
    let kind = if wrong.contains("no space left on device") { ErrorKind::NoSpace } else { ErrorKind::HostUnable };
    let message = format!("{}: {}\nits last lines:\n  {}", plan.dockerfile.display(), bounded(wrong), said.join("\n  "));
    Error::new(kind, "build the image", message)
        .with_backend(BACKEND)
        .with_help("build it by hand (`docker build`) to see everything that it prints")
}

/// The Dockerfile's path in its context.
fn inside(plan: &BuildPlan) -> Result<String> {
    let real = |what: &str, path: &Path| {
        path.canonicalize().map_err(|error| invalid(format!("{what}: {} cannot be read: {error}", path.display())))
    };
    let (context, file) = (real("docker.context", &plan.context)?, real("docker.dockerfile", &plan.dockerfile)?);
    if let Some(within) = &plan.within
        && !context.starts_with(real("docker.compose", within)?)
    {
        return Err(invalid(format!("the build context {} leads out of {}", context.display(), within.display()))
            .with_help("a compose file builds from its own directory; docker.dockerfile and docker.context name others"));
    }
    match file.strip_prefix(&context) {
        Ok(inside) => Ok(inside.to_string_lossy().into_owned()),
        Err(_) => Err(invalid(format!("docker.dockerfile: {} is not in {}", file.display(), context.display()))
            .with_help("name the directory that holds it in docker.context")),
    }
}

/// The Dockerfile. It is sent with labels in it: everything that the build makes bears one, whatever becomes of the build.
fn read(plan: &BuildPlan, dockerfile: &str) -> Result<Vec<u8>> {
    let path = plan.context.join(dockerfile);
    let unread = |why: String| invalid(format!("docker.dockerfile: {} cannot be read: {why}", path.display()));
    let mut text = Vec::new();
    let file = std::fs::File::open(&path).map_err(|error| unread(error.to_string()))?;
    io::Read::read_to_end(&mut io::Read::take(file, MAX_DOCKERFILE + 1), &mut text).map_err(|error| unread(error.to_string()))?;
    if text.len() as u64 > MAX_DOCKERFILE {
        return Err(unread("it is larger than 1 MiB".to_owned()));
    }
    Ok(text)
}

/// A directory as a tar stream, without what is ignored, and with this Dockerfile. Links in it are packed as links and never followed.
fn packed(
    context: std::path::PathBuf,
    dockerfile: String,
    labelled: Vec<u8>,
    ignore: Ignore,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let end = sender.clone();
    tokio::task::spawn_blocking(move || {
        let choose = |path: &[u8]| match path == dockerfile.as_bytes() {
            true => Choice::Instead(labelled.clone()),
            false => ignore.choose(path),
        };
        let mut out = io::BufWriter::with_capacity(PIECE, Pieces(sender));
        let packed = transfer::pack_chosen(&context, &choose, &mut out).map_err(io::Error::other).and_then(|_| out.flush());
        if let Err(error) = packed {
            // The engine then has half a stream, and refuses it.
            let _ = end.blocking_send(Err(error));
        }
    });
    futures_util::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|piece| (piece, receiver)))
        .into_stream()
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
