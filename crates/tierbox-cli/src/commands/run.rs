//! `tierbox run`.

use tierbox::transfer::UnpackLimits;
use tierbox::{ExecRequest, Result, Running};

use crate::actor::Actor;
use crate::args::{Keep, RunArgs};
use crate::commands::{cp, starting};
use crate::interrupt::Failure;
use crate::parse::CopyOutArg;
use crate::{Context, output, session};

pub(crate) async fn run(context: &mut Context, args: RunArgs) -> Result<u8, Failure> {
    let mut options = starting::options(context, &args.start);
    options.keepable = args.keep.is_some();
    let as_harness = args.command.as_harness;
    let request = session::request(args.command, Vec::new());
    request.validate()?;
    let mut running = starting::start(context, &args.start, options, (!as_harness).then_some(&request)).await?;
    let json = context.global.json;
    let done = context.interrupts.guard(command(&running, request, as_harness, &args.copy_out, json)).await;
    let failed = !matches!(done, Ok(0));
    let interrupted = matches!(done, Err(Failure::Interrupted(_)));
    let keep = match args.keep {
        Some(Keep::Always) => !interrupted,
        Some(Keep::OnFailure) => failed && !interrupted,
        None => false,
    };
    if keep {
        let id = context.interrupts.guard(running.keep()).await?;
        output::remark(&format!("kept {id}: look with `tierbox shell {id}`, end it with `tierbox down {id}`"));
    } else {
        context.interrupts.guard(running.stop()).await?;
    }
    done
}

async fn command(running: &Running, request: ExecRequest, as_harness: bool, copy_out: &[CopyOutArg], json: bool) -> Result<u8> {
    let actor = Actor::in_primary(running, as_harness).await?;
    let status = if json {
        session::collect(&actor, request, starting::describe(running)).await?
    } else {
        session::conclude(&session::stream(&actor, request).await?)
    };
    let mut copied = 0;
    for copy in copy_out {
        // The others are still wanted, and so is the command's own status.
        if let Err(error) = cp::out(running.sandbox().as_ref(), &copy.guest, &copy.host, UnpackLimits::default()).await {
            let failed = output::failure(&Failure::Error(error), json);
            copied = if copied == 0 { failed } else { copied };
        }
    }
    Ok(if status == 0 { copied } else { status })
}
