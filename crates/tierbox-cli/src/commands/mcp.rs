//! `tierbox mcp`.

use std::time::Duration;

use tierbox::code::CodeRunner;
use tierbox::{AgentOptions, Running};
use tierbox_mcp::Server;

use crate::args::McpArgs;
use crate::commands::starting;
use crate::interrupt::Failure;
use crate::{Context, approve, output};

/// How often tasks that expired are removed.
const SWEEP: Duration = Duration::from_secs(3600);

/// What an agent was allowed is on record, whatever the profile says.
pub(crate) async fn mcp(context: &mut Context, args: McpArgs) -> Result<u8, Failure> {
    if let Some(name) = &args.sandbox {
        let client = context.client.clone();
        let work = async { serve(&client.attach_logged(name).await?).await };
        return context.interrupts.guard(work).await;
    }
    let options = starting::options(context, &args.start).log();
    let running = starting::start(context, &args.start, options, None).await?;
    let done = context.interrupts.guard(serve(&running)).await;
    context.interrupts.guard(running.stop()).await?;
    match done {
        // Told to end, it has done what it should.
        Err(Failure::Interrupted(_)) => Ok(0),
        done => done,
    }
}

async fn serve(running: &Running) -> tierbox::Result<u8> {
    // Standard input and output belong to the client, so that a person is asked on the terminal, where there is one.
    let agent = running.for_agent(approver(AgentOptions::new())).await?;
    let server = Server::new(agent, running.code_settings(), Server::about(running.report()));
    tracing::info!(target: "tierbox::op", id = running.id(), tools = ?server.offered(), "serving MCP");
    let runner = running.code()?;
    tokio::select! {
        served = tierbox_mcp::serve(server, tokio::io::stdin(), tokio::io::stdout()) => served.map(|()| 0),
        () = sweep(&runner) => Ok(0),
    }
}

fn approver(options: AgentOptions) -> AgentOptions {
    let has_terminal = std::fs::File::options().read(true).write(true).open("/dev/tty").is_ok();
    if has_terminal { options.approver(approve::terminal()) } else { options }
}

/// Removes what expired, now and each hour. Never ends.
async fn sweep(runner: &CodeRunner) {
    let mut hours = tokio::time::interval(SWEEP);
    loop {
        hours.tick().await;
        if let Err(error) = runner.cleanup_tasks(None).await {
            output::remark(&format!("expired tasks could not be removed: {}", error.message()));
        }
    }
}
