//! The tierbox command line, as a library: ten lines make a `tierbox` that carries a backend of your own.
//!
//! ```no_run
//! # mod my_backend { pub use tierbox::local::LocalBackend as MyBackend; }
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! fn main() -> ExitCode {
//!     let mut registry = tierbox::Registry::linked();
//!     registry.register(Arc::new(my_backend::MyBackend::new()));
//!     tierbox_cli::main_with(registry)
//! }
//! ```
//!
//! A backend that registers itself (`tierbox::register_backend!`) needs no such line: linking its crate is enough, and
//! [`main`] serves it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod actor;
mod approve;
mod args;
mod commands;
mod exit;
mod interrupt;
mod login;
mod neutral;
mod output;
mod parse;
mod progress;
mod session;
mod streams;
mod table;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tierbox::{Registry, Tierbox};

use crate::args::{Cli, Command, ConfigCommand, Global, LogCommand};
use crate::interrupt::{Failure, Interrupts};

/// How long what was being written when a command failed or was interrupted is waited for.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// How long the end of an interrupted start is waited for.
const SETTLE: Duration = Duration::from_secs(10);

/// Runs the command line of this process with the backends that are linked into it.
pub fn main() -> ExitCode {
    main_with(Registry::linked())
}

/// Runs the command line of this process with these backends.
pub fn main_with(registry: Registry) -> ExitCode {
    if starts_something(std::env::args_os().skip(1)) {
        tierbox::prepare(&registry);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(output::usage(&error)),
    };
    output::start_log(&cli.global);
    let json = cli.global.json;
    match run(cli, registry) {
        Ok(status) => ExitCode::from(output::settled(status)),
        Err(failure) => ExitCode::from(output::failure(&failure, json)),
    }
}

/// Whether the first word is a command that starts an environment: what a start needs in any case is then got ready while the arguments
/// and the profile are read. A wrong guess costs a little time and nothing else.
fn starts_something(mut args: impl Iterator<Item = OsString>) -> bool {
    let word = args.find(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    word.is_some_and(|word| ["run", "up", "shell"].iter().any(|command| word == *command))
}

/// What every command works with.
pub(crate) struct Context {
    pub client: Tierbox,
    pub global: Global,
    pub interrupts: Interrupts,
}

fn run(cli: Cli, registry: Registry) -> Result<u8, Failure> {
    if let Some(status) = commands::without_client(&cli) {
        return Ok(status);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| tierbox::Error::io("start runtime", error))?;
    let outcome = runtime.block_on(async {
        let mut builder = Tierbox::builder().registry(registry);
        if let Some(path) = &cli.global.state_dir {
            builder = builder.state_dir(path);
        }
        for path in &cli.global.profile_dir {
            builder = builder.profile_dir(path);
        }
        let mut context = Context { client: builder.build()?, global: cli.global, interrupts: Interrupts::listen()? };
        let outcome = dispatch(&mut context, cli.command).await;
        if outcome.is_err() && !context.interrupts.hurry() {
            // What was dropped half-way ends in the background; a second interrupt does not wait for it.
            let _ = context.interrupts.guard(async { Ok(tierbox::settle(SETTLE).await) }).await;
        }
        // The process ends now, and its memory with it: to take the profiles' schema apart first would only take time.
        std::mem::forget(context.client);
        outcome
    });
    // A copy that was interrupted takes its half file away again. Nothing else is waited for.
    runtime.shutdown_timeout(if outcome.is_err() { LAST_WRITES } else { Duration::ZERO });
    outcome
}

async fn dispatch(context: &mut Context, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => commands::run::run(context, *args).await,
        Command::Up(args) => commands::up::up(context, args).await,
        Command::Exec(args) => commands::exec::exec(context, args).await,
        Command::Shell(args) => commands::shell::shell(context, args).await,
        Command::Cp(args) => commands::cp::cp(context, args).await,
        Command::Ls => commands::ls::ls(context).await,
        Command::Ps(args) => commands::execs::ps(context, args).await,
        Command::Logs(args) => commands::execs::logs(context, args).await,
        Command::Kill(args) => commands::execs::kill(context, args).await,
        Command::Forward(args) => commands::forward::forward(context, args).await,
        Command::Down(args) => commands::end::down(context, args).await,
        Command::Cleanup(args) => commands::end::cleanup(context, args).await,
        Command::Env { profile } => commands::env::env(context, &profile),
        Command::Profiles => commands::config::profiles(context),
        #[cfg(feature = "serve")]
        Command::Events { socket } => commands::events::events(context, socket).await,
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::serve(context, args).await,
        #[cfg(feature = "mcp")]
        Command::Mcp(args) => commands::mcp::mcp(context, args).await,
        Command::Code(command) => commands::code::code(context, command).await,
        Command::Verify { profile } => commands::verify::verify(context, &profile).await,
        Command::Log(LogCommand::Verify { run, head }) => Ok(commands::log::verify(context, &run, head.as_deref())?),
        Command::Log(LogCommand::Show { run }) => Ok(commands::log::print(context, &run)?),
        Command::Report { run, output } => Ok(commands::log::report(context, &run, output)?),
        #[cfg(feature = "ec2")]
        Command::Ec2(command) => commands::ec2::ec2(context, command).await,
        Command::Doctor(args) => commands::doctor::doctor(context, args).await,
        Command::Config(ConfigCommand::Show { profile, set, allow_weaker }) => {
            commands::config::show(context, &profile, set, allow_weaker)
        }
        Command::Config(ConfigCommand::Validate { profiles }) => commands::config::validate(context, &profiles),
        #[cfg(feature = "ec2")]
        Command::Config(ConfigCommand::Auth { profile }) => commands::ec2::auth(context, &profile).await,
        #[cfg(feature = "ec2")]
        Command::Config(ConfigCommand::Import { file, output }) => Ok(commands::ec2::import(context, &file, &output)?),
        Command::Config(ConfigCommand::Schema) => commands::config::schema(context),
        Command::Config(ConfigCommand::Template) | Command::Completions { .. } | Command::ExitCodes => {
            unreachable!("these need no client")
        }
    }
}

#[cfg(test)]
mod unit {
    use super::starts_something;

    #[test]
    fn the_commands_that_start_something() {
        let guess = |line: &str| starts_something(line.split(' ').map(Into::into));
        assert!(guess("run -- /bin/true") && guess("--json -v run /bin/true") && guess("up --name x") && guess("shell"));
        assert!(!guess("exec x run") && !guess("ls") && !guess("--help") && !guess(""));
    }
}
