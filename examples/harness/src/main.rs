//! The program: `harness run --profile NAME`, and `harness cleanup` for what a killed run left.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tierbox::{CleanupOptions, Error, Result, Tierbox};
use tierbox_harness::record::{Records, Verdict};
use tierbox_harness::run::{Plan, run};
use tierbox_harness::tasks;

/// Evaluates the tasks of this example.
#[derive(Debug, Parser)]
struct Cli {
    /// The directory of leases
    #[arg(long, global = true)]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every sample, and write the results as JSON lines
    Run {
        /// The profile: where samples run
        #[arg(long, default_value = "local")]
        profile: String,
        /// Samples at once
        #[arg(long, default_value_t = 4)]
        concurrency: usize,
        /// Further attempts at a sample whose sandbox failed
        #[arg(long, default_value_t = 2)]
        retries: u32,
        /// Where results go (default: stdout)
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Remove what is left of runs that were killed
    Cleanup,
}

#[tokio::main]
async fn main() -> ExitCode {
    match command(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            tierbox_harness::progress::complain(&error);
            ExitCode::from(2)
        }
    }
}

/// Whether every sample could be judged, or everything was removed.
async fn command(cli: Cli) -> Result<bool> {
    let mut builder = Tierbox::builder().user_config(false);
    if let Some(path) = &cli.state_dir {
        builder = builder.state_dir(path);
    }
    let client = builder.build()?;
    match cli.command {
        Command::Cleanup => Ok(client.cleanup(CleanupOptions::default()).await?.failed.is_empty()),
        Command::Run { profile, concurrency, retries, out } => {
            let records = match out {
                Some(path) => Records::new(File::create(path).map_err(|error| Error::io("open results", error))?),
                None => Records::new(std::io::stdout()),
            };
            let plan = Plan { profile, concurrency, retries };
            let work = run(&client, &plan, tasks::all(), Arc::new(records));
            let done = tokio::select! {
                done = work => done?,
                // What was dropped ends in the background.
                _ = tokio::signal::ctrl_c() => {
                    tierbox::settle(Duration::from_secs(30)).await;
                    return Ok(false);
                }
            };
            done.unclean.iter().for_each(|(task, error)| tierbox_harness::progress::unclean(task, error));
            Ok(!done.records.iter().any(|record| matches!(record.verdict, Verdict::Invalid(_))))
        }
    }
}
