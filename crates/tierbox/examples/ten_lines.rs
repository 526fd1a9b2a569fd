//! From a profile's name to the output of a command.
#![allow(clippy::print_stdout, reason = "an example talks")]

use tierbox::{ExecRequest, SandboxExt, Tierbox};

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> tierbox::Result<()> {
    let running = Tierbox::new()?.start("local").await?;
    let result = running.sandbox().run(ExecRequest::shell("echo $((6 * 7))")).await?;
    println!("{}: {}", result.outcome(), result.stdout.text());
    running.stop().await
}
