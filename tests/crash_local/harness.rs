//! A harness that will be killed: it starts, runs and stops until then.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use tierbox::{ExecRequest, Hold, Leftovers, SandboxExt, StartOptions, Tierbox};

/// Tells the judge, who may have gone.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn word(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let tierbox =
        Tierbox::builder().state_dir(PathBuf::from(word("TIERBOX_STATE_DIR"))).user_config(false).build().expect("the facade");
    runtime.block_on(async {
        match word("CRASH_PLAN").as_str() {
            "detach" => detach(&tierbox).await,
            "once" => once(&tierbox).await,
            "stay" => stay(&tierbox).await,
            _ => loop {
                once(&tierbox).await;
            },
        }
    });
    say("done");
    std::thread::sleep(Duration::from_secs(60));
    ExitCode::SUCCESS
}

/// What leaves the command's session and its line of parents.
fn scattered() -> ExecRequest {
    let mark = word("CRASH_MARK");
    let mut request =
        ExecRequest::shell(format!("(setsid sleep {mark} >/dev/null 2>&1 &); sleep {mark} >/dev/null 2>&1 & echo x > file"));
    request.leftovers = Leftovers::Keep;
    request
}

async fn once(tierbox: &Tierbox) {
    say("start");
    let spec = crate::support::spec(&word("CRASH_PROFILE"));
    let running = match tierbox.start_spec(spec, StartOptions::new()).await {
        Ok(running) => running,
        Err(error) => {
            say("failed");
            let _ = writeln!(std::io::stderr(), "{error}");
            return;
        }
    };
    say(&format!("id {}", running.id()));
    let sandbox = running.sandbox();
    for _ in 0..3 {
        let _ = sandbox.run(scattered()).await;
    }
    say("stop");
    let _ = running.stop().await;
}

async fn stay(tierbox: &Tierbox) {
    let running =
        tierbox.start_spec(crate::support::spec(&word("CRASH_PROFILE")), StartOptions::new()).await.expect("an environment");
    say(&format!("id {}", running.id()));
    let _ = running.sandbox().run(scattered()).await;
    say("ready");
    std::thread::sleep(Duration::from_secs(60));
}

async fn detach(tierbox: &Tierbox) {
    let mut options = StartOptions::new();
    options.hold = Some(Hold::Until(SystemTime::now() + Duration::from_secs(120)));
    let running =
        tierbox.start_spec(crate::support::spec(&word("CRASH_PROFILE")), options).await.expect("a detached environment");
    say(&format!("id {}", running.id()));
    let _ = running.sandbox().run(scattered()).await;
}
