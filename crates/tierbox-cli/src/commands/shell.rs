//! `tierbox shell`.

use std::io::IsTerminal;

use tierbox::{Error, ErrorKind, ExecRequest, Result, Running};

use crate::actor::Actor;
use crate::args::ShellArgs;
use crate::commands::starting;
use crate::interrupt::Failure;
use crate::{Context, login, session, terminal};

/// Becomes the user's own shell, if the sandbox has it. Where that is the plain one, a person is better off with bash.
const SCRIPT: &str = "case \"$SHELL\" in '' | /bin/sh | /usr/bin/sh) [ ! -x /bin/bash ] || exec /bin/bash -i ;; esac\n\
                      [ ! -x \"$SHELL\" ] || exec \"$SHELL\" -i\nexec /bin/sh -i";

pub(crate) async fn shell(context: &mut Context, args: ShellArgs) -> Result<u8, Failure> {
    let json = context.global.json;
    if json && std::io::stdin().is_terminal() {
        // What is collected until the end cannot be answered to.
        let error = Error::new(ErrorKind::InvalidInput, "open shell", "a shell at a terminal is no JSON");
        return Err(error.with_help("leave --json out, or give the shell its input from a file or a pipe").into());
    }
    if let Some(sandbox) = &args.sandbox {
        let client = context.client.clone();
        let work = async { terminal_in(&client.attach(sandbox).await?, &args, json).await };
        return context.interrupts.guard(work).await;
    }
    let options = starting::options(context, &args.start);
    let for_agent = (!args.as_harness).then(|| ExecRequest::shell(SCRIPT));
    let running = starting::start(context, &args.start, options, for_agent.as_ref()).await?;
    let done = context.interrupts.guard(terminal_in(&running, &args, json)).await;
    context.interrupts.guard(running.stop()).await?;
    done
}

async fn terminal_in(running: &Running, args: &ShellArgs, json: bool) -> Result<u8> {
    if !running.sandbox().capabilities().pty {
        return login::open(running, args, json).await;
    }
    let actor = Actor::in_primary(running, args.as_harness).await?;
    let mut request = ExecRequest::shell(SCRIPT).stdin_stream().pty(terminal::size());
    if let Ok(kind) = std::env::var("TERM") {
        request = request.env("TERM", kind);
    }
    request.user = args.user.clone();
    if json {
        return session::collect_shell(&actor, request, starting::describe(running)).await;
    }
    Ok(session::conclude(&session::shell(&actor, request).await?))
}
