//! The rows.

#[cfg(feature = "docker")]
mod docker;
#[cfg(feature = "ec2")]
mod ec2;
pub(crate) mod egress;
mod files;
pub(crate) mod idle;
mod inspect;
mod latency;
mod mcp;
mod parallel;
mod plain;
mod program;
mod serve;
mod stream;
#[cfg(feature = "vagrant")]
mod vagrant;
mod verify;

use crate::bench::{Bench, Failure};
use crate::report::Row;

/// One row, or a few that are measured together.
pub(crate) struct Case {
    pub name: &'static str,
    /// The bar of its (first) row.
    pub bar: f64,
    /// Whether it takes minutes, and so must be asked for.
    pub needs_build: bool,
    pub measure: fn(&Bench) -> Result<Vec<Row>, Failure>,
}

const fn case(name: &'static str, bar: f64, measure: fn(&Bench) -> Result<Vec<Row>, Failure>) -> Case {
    Case { name, bar, needs_build: false, measure }
}

/// Every row, in the order of the table.
pub(crate) const ALL: &[Case] = &[
    case("exec", 2.0, latency::exec),
    case("start + exec + stop", 1.0, latency::lifecycle),
    case("tierbox run", 1.5, program::run),
    case("8 at once", 1.0, parallel::throughput),
    case("200 alive", 1.0, parallel::alive),
    case("memory per idle sandbox", 2.0, idle::memory),
    case("stream 1 GiB", 2.0, stream::handle),
    case("collect 1 GiB", 1.0, stream::collected),
    case("write 100 MiB", 2.0, files::write),
    case("read 100 MiB", 2.0, files::read),
    #[cfg(feature = "docker")]
    case("docker exec", 1.0, docker::exec),
    #[cfg(feature = "docker")]
    case("docker files", 1.0, docker::files),
    #[cfg(feature = "docker")]
    case("docker create and destroy", 1.5, docker::lifecycle),
    #[cfg(feature = "docker")]
    case("docker verification", 10.0, docker::verification),
    #[cfg(feature = "docker")]
    case("docker memory per idle machine", 8.0, docker::idle),
    #[cfg(feature = "docker")]
    case("docker 50 at once", 1.5, docker::many),
    #[cfg(feature = "docker")]
    case("docker for Inspect", 1.0, docker::inspect),
    case("egress gateway", 8.0, egress::requests),
    case("exec through serve", 1.0, serve::exec),
    case("tasks through serve", 1.5, serve::tasks),
    case("exec through MCP", 1.0, mcp::exec),
    case("exec for Inspect", 1.0, inspect::exec),
    case("verification", 1.0, verify::all),
    case("self-check", 1.0, verify::outside),
    case("operation log", 1.2, verify::log),
    case("plain exec", 20.0, plain::exec),
    case("program size", 1.0, program::size),
    case("tierbox --help", 1.0, program::help),
    #[cfg(feature = "ec2")]
    case("EC2", 1.0, ec2::all),
    #[cfg(feature = "ec2")]
    case("EC2 crowd", 2.5, ec2::crowd),
    #[cfg(feature = "vagrant")]
    case("vagrant: exec", 0.5, vagrant::commands),
    #[cfg(feature = "vagrant")]
    case("vagrant: exec by scripts", 1.2, vagrant::scripts),
    #[cfg(feature = "vagrant")]
    case("vagrant: 100 MiB", 1.5, vagrant::files),
    #[cfg(feature = "vagrant")]
    case("vagrant: start", 1.15, vagrant::starts),
    Case { name: "release build", bar: 1.0, needs_build: true, measure: program::build },
];
