//! A profile in code: typed, checked like a file, and used for several commands of one sandbox.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::time::Duration;

use tierbox::{ErrorKind, ExecRequest, Limit, Profile, SandboxExt, StartOptions, Tierbox};

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> tierbox::Result<()> {
    let profile = Profile::builder("word-count", "T1.H1.N2".parse()?)
        .description("Counts words, and lets the agent run one program")
        .limits(|limits| {
            limits.pids = Some(Limit::best(64));
            limits.disk = Some(Limit::required(16 << 20));
            limits.exec = Some(Duration::from_secs(10));
        })
        .programs(["/usr/bin/wc"])
        .env("LANG", "C.UTF-8");

    // The user's own configuration does not count here: every run of this program is the same.
    let client = Tierbox::builder().user_config(false).build()?;
    let running = client.start_with(profile, StartOptions::new()).await?;

    // The harness writes the input; the tier binds the agent only.
    running.write_bytes("text", "one two three\n").await?;
    let counted = running.agent().run(ExecRequest::new(["/usr/bin/wc", "-w", "text"])).await?;
    println!("counted: {}", counted.stdout.text().trim());

    let refused = running.agent().run(ExecRequest::shell("rm text")).await;
    let error = refused.expect_err("T1 runs named programs only");
    assert_eq!(error.kind(), ErrorKind::PolicyDenied);
    println!("refused: {}", error.message());
    running.stop().await
}
