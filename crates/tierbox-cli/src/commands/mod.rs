//! The commands.

pub(crate) mod code;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod doctor;
pub(crate) mod end;
pub(crate) mod env;
#[cfg(feature = "serve")]
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod execs;
pub(crate) mod forward;
pub(crate) mod log;
pub(crate) mod ls;
#[cfg(feature = "mcp")]
pub(crate) mod mcp;
pub(crate) mod run;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod starting;
pub(crate) mod up;
pub(crate) mod verify;

use clap::CommandFactory;

use crate::args::{Cli, Command, ConfigCommand};
use crate::{exit, output};

/// Runs a command that needs neither backends nor state; `None` for all others.
pub(crate) fn without_client(cli: &Cli) -> Option<u8> {
    match &cli.command {
        Command::ExitCodes => output::line(exit::TABLE),
        #[cfg(feature = "serve")]
        Command::Serve(args) if args.openapi => serve::print_openapi(),
        Command::Config(ConfigCommand::Template) => output::raw(tierbox::profile::template().as_bytes()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tierbox", &mut script);
            output::raw(&script);
        }
        _ => return None,
    }
    Some(0)
}
