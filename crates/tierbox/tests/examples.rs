//! The examples run, each in a process of its own with a state directory of its own.
#![cfg(all(feature = "local", target_os = "linux"))]

#[path = "../examples/builder.rs"]
mod builder;
#[path = "../examples/eval.rs"]
mod eval;
#[path = "../examples/ten_lines.rs"]
mod ten_lines;

mod support;

mod conformance {
    use std::process::Command;

    use crate::support::{fixture, started};
    use crate::{builder, eval, ten_lines};

    /// The child's half: runs the example that the parent names.
    #[test]
    fn child() {
        let outcome = match std::env::var("TIERBOX_TEST_EXAMPLE").as_deref() {
            Ok("ten_lines") => ten_lines::main(),
            Ok("builder") => builder::main(),
            Ok("eval") => eval::main(),
            _ => return,
        };
        outcome.unwrap();
    }

    async fn run(example: &str) -> Option<String> {
        let fixture = fixture();
        started(fixture.client.start("local").await)?.stop().await.unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "conformance::child", "--nocapture"])
            .env("TIERBOX_TEST_EXAMPLE", example)
            .env("TIERBOX_STATE_DIR", fixture.state.path().join("tierbox"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        fixture.assert_empty().await;
        Some(text)
    }

    #[tokio::test]
    async fn ten_lines_print_the_answer() {
        let Some(text) = run("ten_lines").await else { return };
        assert!(text.contains("exited with status 0: 42"), "{text}");
    }

    #[tokio::test]
    async fn a_profile_built_in_code_binds_the_agent() {
        let Some(text) = run("builder").await else { return };
        assert!(text.contains("counted: 3 text") && text.contains("refused: T1 allows named programs only"), "{text}");
    }

    #[tokio::test]
    async fn the_harness_scores_its_samples() {
        let Some(text) = run("eval").await else { return };
        for line in ["sum: Right", "wrong: Wrong", "endless: OutOfTime", "score: 1/3"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
