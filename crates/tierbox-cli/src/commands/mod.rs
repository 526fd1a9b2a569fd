//! The commands.

pub(crate) mod code;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod doctor;
#[cfg(feature = "ec2")]
pub(crate) mod ec2;
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

/// Prints a text as it is, or as the value of one key where JSON is asked for.
fn text(cli: &Cli, key: &str, text: &str) {
    match cli.global.json {
        true => output::json(&serde_json::json!({ key: text })),
        false => output::line(text.trim_end_matches('\n')),
    }
}

/// Runs a command that needs neither backends nor state; `None` for all others.
pub(crate) fn without_client(cli: &Cli) -> Option<u8> {
    match &cli.command {
        Command::ExitCodes => text(cli, "exit_codes", exit::TABLE),
        #[cfg(feature = "serve")]
        Command::Serve(args) if args.openapi => serve::print_openapi(),
        Command::Config(ConfigCommand::Template) => text(cli, "template", tierbox::profile::template()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tierbox", &mut script);
            text(cli, "script", &String::from_utf8_lossy(&script));
        }
        _ => return None,
    }
    Some(0)
}
