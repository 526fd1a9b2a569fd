//! The command line's grammar.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint};
use tierbox::transfer::UnpackLimits;

use crate::parse::{self, CopyInArg, CopyOutArg, EnvArg, MountArg};

/// Runs untrusted code in sandboxes whose isolation tier is enforced, or refused.
#[derive(Debug, Parser)]
#[command(name = "tierbox", version, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Example:\n  tierbox run -- /bin/sh -c 'echo hello'\n\nFailures of tierbox's own: tierbox help exit-codes"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Global {
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Say what is done; twice for details (TIERBOX_LOG chooses more finely)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print no line about tiers and no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// The directory of leases (default: TIERBOX_STATE_DIR, else the XDG state directory)
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// A directory of profiles to look in first; may be repeated
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub profile_dir: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one command in a fresh sandbox, then remove the sandbox
    Run(Box<RunArgs>),
    /// Start a sandbox that stays, and print its id
    Up(UpArgs),
    /// Run a command in a sandbox that is up
    Exec(ExecArgs),
    /// Open a terminal in a sandbox that is up, or in a fresh one
    Shell(ShellArgs),
    /// Copy files into or out of a sandbox that is up
    Cp(CpArgs),
    /// List sandboxes
    #[command(after_help = "Example:\n  tierbox ls --json")]
    Ls,
    /// List the commands in a sandbox
    Ps(PsArgs),
    /// Print what a detached command has printed
    Logs(LogsArgs),
    /// Signal or kill a command in a sandbox
    Kill(KillArgs),
    /// Forward a port of this host's loopback address to a port or Unix socket inside
    Forward(ForwardArgs),
    /// End sandboxes
    Down(DownArgs),
    /// Remove what is left of sandboxes that nobody wants any more
    Cleanup(CleanupArgs),
    /// Give a model the tools of one sandbox, over MCP on standard input and output
    #[cfg(feature = "mcp")]
    Mcp(McpArgs),
    /// Run code in a language, with files in and files out
    #[command(subcommand)]
    Code(CodeCommand),
    /// List the profiles that can be started by name
    #[command(after_help = "Example:\n  tierbox profiles")]
    Profiles,
    /// Serve other programs over HTTP, on a Unix socket of your own
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// Follow what happens in the daemon: starts, ends, commands
    #[cfg(feature = "serve")]
    #[command(after_help = "Example:\n  tierbox events --json | jq .outcome")]
    Events {
        /// The daemon's Unix socket (default: serve/serve.sock in the state directory)
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        socket: Option<PathBuf>,
    },
    /// Print the variables that make Inspect's tools fit a profile's tooling tier, for a shell's eval
    #[command(after_help = "Example:\n  eval \"$(tierbox env local-tools)\"")]
    Env {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "local", env = "TIERBOX_PROFILE")]
        profile: String,
    },
    /// Probe a profile's isolation from inside, each probe with a twin that shows it to work
    #[command(after_help = "Example:\n  tierbox verify local")]
    Verify {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "local", env = "TIERBOX_PROFILE", hide_env_values = true)]
        profile: String,
    },
    /// Check and show the operation logs of runs that were started with --log
    #[command(subcommand)]
    Log(LogCommand),
    /// Print a logged run as one HTML page
    #[command(after_help = "Example:\n  tierbox report local-0a1b2c -o run.html")]
    Report {
        /// The id or name of the run's sandbox, or the directory of the run
        run: String,
        /// Write it to this file
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
    /// Say what this machine can enforce, why not, and what to change
    Doctor(DoctorArgs),
    /// Set an account up for EC2, check it, take it down; see how an instance is
    #[cfg(feature = "ec2")]
    #[command(subcommand)]
    Ec2(Ec2Command),
    /// Show, check and make profiles
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script
    #[command(after_help = "Example:\n  tierbox completions bash > ~/.local/share/bash-completion/completions/tierbox")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// What the exit statuses mean
    #[command(long_about = crate::exit::TABLE, after_help = "Example:\n  tierbox run -- /bin/false; echo $?")]
    ExitCodes,
}

/// What is done with an account of AWS.
#[cfg(feature = "ec2")]
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  tierbox ec2 check ec2")]
pub(crate) enum Ec2Command {
    /// Look at what a profile leans on, one by one, each with its fix
    #[command(after_help = "Example:\n  tierbox ec2 check ./ec2-tierbox.toml")]
    Check {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "ec2")]
        profile: String,
    },
    /// Deploy the stack that the backend needs, write a profile for it, and check both
    Setup(Ec2Setup),
    /// Remove the stack, its bucket with all objects, and its instance
    #[command(after_help = "Example:\n  tierbox ec2 teardown --stack tierbox")]
    Teardown {
        #[command(flatten)]
        account: Ec2Account,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Load, memory, disk and tasks of the instance of an attach profile
    #[command(after_help = "Example:\n  tierbox ec2 status ec2-default")]
    Status {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "ec2-default")]
        profile: String,
    },
    /// End what other state directories left: instances whose time is past, by their tags
    #[command(after_help = "Example:\n  tierbox ec2 cleanup ./ec2-tierbox.toml")]
    Cleanup {
        /// The profile, which names account, region and bucket: a name, or the path of a file
        #[arg(default_value = "ec2")]
        profile: String,
        /// This environment, whether anybody uses it or not; may be repeated
        #[arg(long, value_name = "ENVIRONMENT", conflicts_with = "all")]
        id: Vec<String>,
        /// All environments of the account and region, whether anybody uses them or not
        #[arg(long)]
        all: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// An account, a region and a stack there.
#[cfg(feature = "ec2")]
#[derive(Debug, clap::Args)]
pub(crate) struct Ec2Account {
    /// The stack's name; the names of what it makes begin with it
    #[arg(long, default_value = "tierbox")]
    pub stack: String,
    /// The region (default: AWS's own configuration)
    #[arg(long)]
    pub region: Option<String>,
    /// The profile of AWS's own files
    #[arg(long, value_name = "NAME")]
    pub aws_profile: Option<String>,
    /// Where AWS's API is, if not at Amazon's own addresses
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// What to set up.
#[cfg(feature = "ec2")]
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tierbox ec2 setup --region eu-west-2 --instance --type t3.small")]
pub(crate) struct Ec2Setup {
    #[command(flatten)]
    pub account: Ec2Account,
    /// A public subnet too, and a profile with N0 in it
    #[arg(long)]
    pub internet: bool,
    /// The gateway of N1 too, and a profile with N1: an instance in the public subnet that is the only way out
    #[arg(long, conflicts_with_all = ["internet", "instance"])]
    pub gateway: bool,
    /// The gateway's program `tierbox-egress` for Linux on x86-64 (default: the one of this host)
    #[arg(long, value_name = "PATH", requires = "gateway", value_hint = ValueHint::FilePath)]
    pub gateway_program: Option<PathBuf>,
    /// Who resolves names for the gateway, when it is made (default: 1.1.1.1)
    #[arg(long, value_name = "ADDRESS", requires = "gateway")]
    pub gateway_resolver: Option<std::net::Ipv4Addr>,
    /// An instance for attach profiles too, in the default network, with Python and Node
    #[arg(long)]
    pub instance: bool,
    /// Its type
    #[arg(long, default_value = "t3.small", requires = "instance")]
    pub r#type: String,
    /// Where the profile is written (default: ec2-STACK.toml)
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// What is done with a log.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Say whether a log is as it was written
    Verify {
        /// The id or name of the run's sandbox, or the directory of the run
        run: String,
        /// The hash of a line that was noted elsewhere, such as the last one: the log must still have it
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
    },
    /// Print the operations of a run
    Show {
        /// The id or name of the run's sandbox, or the directory of the run
        run: String,
    },
}

/// Which sandbox to start, and what differs from its profile.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartArgs {
    /// The profile: a name, or the path of a file
    #[arg(short, long, value_name = "NAME", env = "TIERBOX_PROFILE", hide_env_values = true, default_value = "local")]
    pub profile: String,
    /// Set a value of the profile, such as limits.pids=64; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::setting)]
    pub set: Vec<(String, String)>,
    /// Permit --set, --mount and variables to weaken the profile; the report lists what they do
    #[arg(long)]
    pub allow_weaker: bool,
    /// Keep an operation log and an attestation of the run, for `tierbox log` and `tierbox report`
    #[arg(long, env = "TIERBOX_OPERATION_LOG", hide_env_values = true)]
    pub log: bool,
    /// Copy a host file or directory in (default: to its name in the working directory); may be repeated
    #[arg(long, value_name = "SRC[:PATH]", value_parser = OsStringValueParser::new().try_map(parse::copy_in), value_hint = ValueHint::AnyPath)]
    pub copy_in: Vec<CopyInArg>,
    /// Make a host directory visible inside, read-only unless :rw (default: at /mnt/NAME); may be repeated
    #[arg(long, value_name = "DIR[:PATH][:rw]", value_parser = OsStringValueParser::new().try_map(parse::mount), value_hint = ValueHint::DirPath)]
    pub mount: Vec<MountArg>,
    /// Set a variable of every command, or pass this shell's on; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = parse::env)]
    pub env: Vec<EnvArg>,
}

/// How a command is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommandArgs {
    /// Where it starts (default: the sandbox's working directory)
    #[arg(long, value_name = "PATH")]
    pub cwd: Option<OsString>,
    /// As whom: a user's name or number (default: the sandbox's own)
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Kill it and all its children after this time, such as 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    /// Forward this terminal's input (input that is not a terminal is always forwarded)
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run it as the harness: the tooling tier (T) does not bind it. This is logged
    #[arg(long)]
    pub as_harness: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub argv: Vec<OsString>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox run -- /bin/sh -c 'echo hello from $PWD'
  tierbox run --copy-in ./task --copy-out out --timeout 5m -- python3 task/main.py
  tierbox run --set limits.pids=64 --json -- /usr/bin/make test

The exit status is the command's; see tierbox help exit-codes.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub start: StartArgs,
    /// Copy a file or directory out after the command (default: to its name here); may be repeated
    #[arg(long, value_name = "PATH[:DST]", value_parser = OsStringValueParser::new().try_map(parse::copy_out), value_hint = ValueHint::AnyPath)]
    pub copy_out: Vec<CopyOutArg>,
    /// Keep the sandbox for a look: always, or only if the command fails
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pub keep: Option<Keep>,
    #[command(flatten)]
    pub command: CommandArgs,
}

/// When `run` keeps its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Keep {
    /// Always
    Always,
    /// If the command does not exit with status 0
    OnFailure,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox up --name demo
  id=$(tierbox up --profile ./offline.toml --lifetime 2h)")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub start: StartArgs,
    /// A name for it: lower-case letters, digits and dashes
    #[arg(short, long)]
    pub name: Option<String>,
    /// When it ends by itself (default: the profile's lifetime, else 24h)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub lifetime: Option<Duration>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox exec demo -- /bin/cat file
  tierbox exec -d demo -- python3 -m http.server 8000
  tierbox exec -it demo -- /bin/bash")]
pub(crate) struct ExecArgs {
    /// The sandbox's id or name
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Let it run on in the background and print its id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// Set a variable, or pass this shell's on; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = parse::env)]
    pub env: Vec<EnvArg>,
    #[command(flatten)]
    pub command: CommandArgs,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  tierbox shell demo\n  tierbox shell --profile local-open")]
pub(crate) struct ShellArgs {
    /// The sandbox's id or name; a fresh one that ends with the shell where none is given
    #[arg(value_name = "SANDBOX", conflicts_with_all = ["set", "copy_in", "mount"])]
    pub sandbox: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
    /// As whom: a user's name or number (default: the sandbox's own)
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Open it as the harness: the tooling tier (T) does not bind it. This is logged
    #[arg(long)]
    pub as_harness: bool,
}

/// Copies as the harness, whatever the tooling tier: any path of this host that you may read, those that --copy-in refuses too.
/// FIFOs, sockets and devices are not carried.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  tierbox cp ./data demo:data\n  tierbox cp demo:/workspace/out ./out")]
pub(crate) struct CpArgs {
    /// From: a path on this host, or SANDBOX:PATH
    #[arg(value_hint = ValueHint::AnyPath)]
    pub from: OsString,
    /// To: a path on this host, or SANDBOX:PATH
    #[arg(value_hint = ValueHint::AnyPath)]
    pub to: OsString,
    /// The most that may come out of a sandbox, such as 64GiB, or `none` [default: 16GiB in a million files]
    #[arg(long, value_name = "SIZE", value_parser = parse::bound)]
    pub max: Option<UnpackLimits>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  tierbox ps demo")]
pub(crate) struct PsArgs {
    /// The sandbox's id or name
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  tierbox logs -f demo 3f2a")]
pub(crate) struct LogsArgs {
    /// The sandbox's id or name
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// The command's id, or the beginning of it
    #[arg(value_name = "EXEC")]
    pub exec: String,
    /// Go on until it ends; the exit status is then the command's
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  tierbox kill demo 3f2a\n  tierbox kill --signal TERM demo 3f2a")]
pub(crate) struct KillArgs {
    /// The sandbox's id or name
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// The command's id, or the beginning of it
    #[arg(value_name = "EXEC")]
    pub exec: String,
    /// Send only this signal, only to the command itself (default: kill its whole tree)
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse::signal)]
    pub signal: Option<tierbox::Signal>,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  tierbox forward demo 8000\n  tierbox forward demo 9000:8000\n  tierbox forward demo 9000:/run/app.sock"
)]
pub(crate) struct ForwardArgs {
    /// The sandbox's id or name
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// A port inside, or this host's port and a port or socket inside; port 0 here chooses a free one
    #[arg(value_name = "[PORT:]TARGET", value_parser = parse::forward)]
    pub target: parse::ForwardArg,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  tierbox down demo")]
pub(crate) struct DownArgs {
    /// Ids or names
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandboxes: Vec<String>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  tierbox cleanup\n  tierbox cleanup --kept\n  tierbox cleanup --all --yes")]
pub(crate) struct CleanupArgs {
    /// Also sandboxes that were kept on request
    #[arg(long)]
    pub kept: bool,
    /// Also sandboxes that are up. What a living process uses is never touched. Asks first
    #[arg(long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[cfg(feature = "serve")]
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox serve
  tierbox serve --tcp 127.0.0.1:8020 --tokens ~/.config/tierbox/tokens
  tierbox serve --memory 16GiB --max vagrant=2

Environments live on when the daemon ends, until their leases do; the next daemon finds them.
The tokens' file has lines `harness TOKEN` and `agent TOKEN ENVIRONMENT [MACHINE…]`; it is made with one new
harness token if it does not exist. Only its owner may be able to read it.")]
pub(crate) struct ServeArgs {
    /// The Unix socket (default: serve/serve.sock in the state directory)
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Listen on a loopback address as well; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS", requires = "tokens")]
    pub tcp: Option<std::net::SocketAddr>,
    /// The file of those who may come over TCP
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tokens: Option<PathBuf>,
    /// Memory of all environments together (default: nine tenths of this host's)
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub memory: Option<u64>,
    /// CPUs of all environments together (default: sixteen times this host's)
    #[arg(long, value_name = "CPUS")]
    pub cpu: Option<f64>,
    /// Environments of a backend at once; may be repeated
    #[arg(long, value_name = "BACKEND=COUNT", value_parser = parse::count)]
    pub max: Vec<(String, u64)>,
    /// How long a lease lasts for a client that does not say
    #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "5m")]
    pub ttl: Duration,
    /// End the daemon after this time without clients and environments
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub idle: Option<Duration>,
    /// Start it in the background unless one listens already, print its socket, and end
    #[arg(long, conflicts_with_all = ["tcp", "tokens", "openapi"])]
    pub background: bool,
    /// Print the OpenAPI document and end
    #[arg(long)]
    pub openapi: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  tierbox doctor\n  sudo tierbox doctor --install")]
pub(crate) struct DoctorArgs {
    /// Show the files that let plain users of this host start sandboxes, ask, and write them
    #[arg(long)]
    pub install: bool,
    /// With --install: do not ask
    #[arg(short, long, requires = "install")]
    pub yes: bool,
}

#[cfg(feature = "mcp")]
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox mcp --profile local
  tierbox mcp --profile local-tools
  tierbox mcp --sandbox demo

What is offered follows the tier: T0 code, commands and files; T1 the named programs, and reading; T2 nothing.
A fresh sandbox ends with the client.")]
pub(crate) struct McpArgs {
    /// Serve this sandbox, which is up, instead of a fresh one
    #[arg(long, value_name = "SANDBOX", conflicts_with_all = ["set", "copy_in", "mount"])]
    pub sandbox: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
}

#[derive(Debug, Clone, Subcommand)]
#[command(after_help = "Example:\n  tierbox code run -c 'print(6 * 7)'")]
pub(crate) enum CodeCommand {
    /// Run a piece of code, in a fresh sandbox or in one that is up
    Run(Box<CodeRunArgs>),
    /// List a task's files, or print one of them
    #[command(
        after_help = "Examples:\n  tierbox code files demo 3f2a5b6c7d8e9f00\n  tierbox code files demo 3f2a5b6c7d8e9f00 out/result.csv"
    )]
    Files {
        /// The sandbox's id or name
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
        /// The task's hash, as `run` prints it
        #[arg(value_name = "TASK")]
        task: String,
        /// The file, by its path below the task's directory (default: list all)
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove the directories of old tasks and sessions
    #[command(after_help = "Examples:\n  tierbox code cleanup demo\n  tierbox code cleanup demo --older-than 0s")]
    Cleanup {
        /// The sandbox's id or name
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
        /// Those whose last run is at least this long ago (default: the profile's code.expiry)
        #[arg(long, value_name = "TIME", value_parser = parse::age)]
        older_than: Option<Duration>,
    },
    /// Say which runtimes there are, and what tasks take
    #[command(after_help = "Example:\n  tierbox code status demo")]
    Status {
        /// The sandbox's id or name
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
    },
    /// List the sessions
    #[command(after_help = "Example:\n  tierbox code sessions demo")]
    Sessions {
        /// The sandbox's id or name
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
    },
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tierbox code run -c 'print(6 * 7)'
  tierbox code run --sandbox demo --session work --file data.csv analyse.py
  echo 'ls -l' | tierbox code run --runtime sh --timeout 10s --json -

The exit status is the program's; see tierbox help exit-codes.")]
pub(crate) struct CodeRunArgs {
    /// A file of this host with the code; - for stdin, which is the default
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "code")]
    pub script: Option<PathBuf>,
    /// The code itself
    #[arg(short, long, value_name = "CODE")]
    pub code: Option<String>,
    /// What runs it: one of the profile's runtimes
    #[arg(short, long, value_name = "NAME", default_value = "python")]
    pub runtime: String,
    /// Run it in this sandbox, which is up, instead of a fresh one
    #[arg(long, value_name = "SANDBOX", conflicts_with_all = ["set", "copy_in", "mount"])]
    pub sandbox: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
    /// The session, whose tasks share a directory that stays
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// An input file (default: by its own name below the task's directory); may be repeated
    #[arg(long, value_name = "SRC[:NAME]", value_parser = OsStringValueParser::new().try_map(parse::copy_in), value_hint = ValueHint::FilePath)]
    pub file: Vec<CopyInArg>,
    /// Kill it and all its children after this time, such as 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    /// Limit the CPU time of each process, such as 30s
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub cpu_time: Option<Duration>,
    /// Limit the address space of each process, such as 1GiB
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub memory: Option<u64>,
    /// Start in the sandbox's working directory, without a directory of its own
    #[arg(long)]
    pub no_private_dir: bool,
    /// Run it as the harness: the tooling tier (T) and approvals do not bind it. This is logged
    #[arg(long)]
    pub as_harness: bool,
}

#[derive(Debug, Clone, Subcommand)]
#[command(after_help = "Example:\n  tierbox config show local")]
pub(crate) enum ConfigCommand {
    /// Print every value of a profile with where it comes from; secrets are masked
    #[command(after_help = "Example:\n  tierbox config show local --set limits.exec=5m")]
    Show {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "local", env = "TIERBOX_PROFILE")]
        profile: String,
        /// Set a value of the profile; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse::setting)]
        set: Vec<(String, String)>,
        /// Permit what weakens the profile
        #[arg(long)]
        allow_weaker: bool,
    },
    /// Check profiles without starting anything
    #[command(after_help = "Example:\n  tierbox config validate profiles/*.toml")]
    Validate {
        /// Names or paths
        #[arg(required = true, value_name = "PROFILE", value_hint = ValueHint::FilePath)]
        profiles: Vec<String>,
    },
    /// Print the JSON Schema of a profile
    #[command(after_help = "Example:\n  tierbox config schema > tierbox.schema.json")]
    Schema,
    /// Say where the credentials of a profile of EC2 come from
    #[cfg(feature = "ec2")]
    #[command(after_help = "Example:\n  tierbox config auth ec2-default")]
    Auth {
        /// The profile: a name, or the path of a file
        #[arg(default_value = "ec2")]
        profile: String,
    },
    /// Write a profile for each environment of another sandbox's config.json; keys are not copied
    #[cfg(feature = "ec2")]
    #[command(after_help = "Example:\n  tierbox config import config.json --output profiles")]
    Import {
        /// The file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The directory that the profiles are written to
        #[arg(long, value_name = "DIRECTORY", default_value = ".", value_hint = ValueHint::DirPath)]
        output: PathBuf,
    },
    /// Print a profile to start from
    #[command(after_help = "Example:\n  tierbox config template > my.toml")]
    Template,
}
