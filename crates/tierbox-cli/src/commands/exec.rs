//! `tierbox exec`.

use serde_json::json;

use crate::actor::Actor;
use crate::args::ExecArgs;
use crate::interrupt::Failure;
use crate::{Context, output, session};

pub(crate) async fn exec(context: &mut Context, args: ExecArgs) -> Result<u8, Failure> {
    let json = context.global.json;
    let client = context.client.clone();
    let work = async {
        let running = client.attach(&args.sandbox).await?;
        let actor = Actor::in_primary(&running, args.command.as_harness).await?;
        let mut request = session::request(args.command, args.env);
        if args.detach {
            request.stdin = tierbox::Stdin::Null;
            let id = actor.spawn_detached(request).await?;
            if json {
                output::json(&json!({ "exec": id.to_string() }))
            } else {
                output::line(id.to_string())
            }
            return Ok(0);
        }
        if json {
            return session::collect(&actor, request, json!({ "id": running.id() })).await;
        }
        Ok(session::conclude(&session::stream(&actor, request).await?))
    };
    context.interrupts.guard(work).await
}
