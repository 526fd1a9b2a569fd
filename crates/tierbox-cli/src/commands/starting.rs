//! A start, as `run`, `up` and `shell` have in common.

use serde_json::json;
use tierbox::{AgentPolicy, CopyIn, ExecRequest, MountSpec, Running, StartOptions};

use crate::args::StartArgs;
use crate::interrupt::Failure;
use crate::{Context, output, progress};

/// The options that the command line describes.
pub(crate) fn options(context: &Context, args: &StartArgs) -> StartOptions {
    let mut options = StartOptions::new();
    options.set = args.set.clone();
    options.allow_weaker = args.allow_weaker;
    options.log = args.log;
    options.env = args.env.iter().map(|variable| (variable.key.clone(), variable.value.clone())).collect();
    let copied = args.copy_in.iter().map(|copy| CopyIn { host: copy.host.clone(), guest: copy.guest.as_slice().into() });
    options.files = copied.collect();
    let mounts = args.mount.iter().map(|mount| MountSpec {
        host: mount.host.clone(),
        guest: mount.guest.clone(),
        writable: mount.writable,
    });
    options.mounts = mounts.collect();
    options.progress = progress::for_terminal(&context.global);
    options
}

/// Starts it, and says on stderr what it runs under. A command that the agent will be told to run in it is checked before
/// anything is made.
pub(crate) async fn start(
    context: &mut Context,
    args: &StartArgs,
    options: StartOptions,
    for_agent: Option<&ExecRequest>,
) -> Result<Running, Failure> {
    let logged = options.log;
    let client = context.client.clone();
    let spec = client.resolve(args.profile.as_str(), &options)?;
    if let Some(request) = for_agent {
        AgentPolicy::of(&spec).check(&with_variables(request, args))?;
    }
    let running = context.interrupts.guard(client.start_spec(spec, options)).await?;
    if !context.global.quiet && !context.global.json {
        output::remark(&running.report().summary());
        if logged {
            output::remark(&format!("logged: look with `tierbox log show {0}` or `tierbox report {0}`", running.id()));
        }
        for weakened in &running.report().weakened {
            output::remark(&format!("weakened: {weakened}"));
        }
        // Among them what a copy left out, which whoever asked for the copy must hear.
        if context.global.verbose > 0 || !args.copy_in.is_empty() {
            running.report().notes.iter().for_each(|note| output::remark(&format!("note: {note}")));
        }
    }
    Ok(running)
}

/// What the agent asks for: the variables of the command line are the environment's, but whoever is to run a command under rules names
/// them, as with `exec`.
fn with_variables(request: &ExecRequest, args: &StartArgs) -> ExecRequest {
    args.env.iter().fold(request.clone(), |request, variable| request.env(variable.key.as_str(), variable.value.as_str()))
}

/// A sandbox as data.
pub(crate) fn describe(running: &Running) -> serde_json::Value {
    json!({ "id": running.id(), "report": running.report() })
}
