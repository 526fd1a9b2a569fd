//! What a subscriber of `tracing` learns of commands.
#![cfg(all(target_os = "linux", feature = "local"))]

use std::io::Write;
use std::sync::{Arc, Mutex};

use tierbox::{ExecRequest, SandboxExt, Tierbox};
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

mod conformance {
    use super::*;

    fn client(state: &tempfile::TempDir) -> Tierbox {
        Tierbox::builder().user_config(false).state_dir(state.path().join("state")).build().unwrap()
    }

    #[tokio::test]
    async fn a_handle_in_a_span_tells_what_was_retained() {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
        let state = tempfile::tempdir().unwrap();
        let running = client(&state).start("local-process").await.unwrap();
        let id = running.sandbox().spawn_detached(ExecRequest::shell("echo past; exec sleep 1000")).await.unwrap();
        let begun = std::time::Instant::now();
        while running.sandbox().attach(id, 0, 0).await.unwrap().retained() != Some([5, 0]) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(20), "nothing is told to be retained");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_span_names_the_backend_the_environment_and_the_command() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_span_events(FmtSpan::CLOSE);
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let state = tempfile::tempdir().unwrap();
        let running = client(&state).start("local-process").await.unwrap();
        let id = running.id().to_owned();
        let request = ExecRequest::shell("exit 3").env("TOKEN", "hunter2");
        running.run(request).await.unwrap();
        running.write_bytes("f", "x").await.unwrap();
        running.stop().await.unwrap();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let of = |operation: &str| {
            let found = text.lines().find(|line| line.contains(&format!("operation=\"{operation}\"")) && line.contains("close"));
            found.unwrap_or_else(|| panic!("no span of {operation} in\n{text}")).to_owned()
        };
        let exec = of("exec");
        for part in ["backend=\"local\"", &format!("environment=\"{id}\""), "exec=", "outcome=exited with status 3"] {
            assert!(exec.contains(part), "{part} in {exec}");
        }
        assert!(of("write").contains(&id) && !text.contains("hunter2"));
    }
}
