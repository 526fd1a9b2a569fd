//! The template and the server by themselves: what others have to say of them.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use super::world::{Outcome, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("infra::cfn_lint_finds_nothing", |_| linted()),
        trial("infra::the_stack_makes_what_it_says", |_| by_python("stack.py", Some("infra/tierbox.yaml"))),
        trial("slow::infra::the_server_does_what_it_says", |_| by_python("check.py", None)),
    ]
}

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

async fn succeeds(mut command: Command) -> Outcome {
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(())
}

async fn linted() -> Outcome {
    let mut lint = Command::new(std::env::var_os("TIERBOX_TEST_CFN_LINT").ok_or("TIERBOX_TEST_CFN_LINT names no cfn-lint")?);
    lint.arg(checkout().join("infra/tierbox.yaml"));
    succeeds(lint).await
}

/// Checks by AWS's own client for Python.
async fn by_python(script: &str, more: Option<&str>) -> Outcome {
    let url = std::env::var("TIERBOX_TEST_AWS").map_err(text)?;
    let mut python = Command::new(std::env::var_os("TIERBOX_TEST_AWS_PYTHON").ok_or("TIERBOX_TEST_AWS_PYTHON names no Python")?);
    python.arg("-B").arg(checkout().join("tests/engines/aws").join(script));
    match more {
        Some(file) => python.arg(&url).arg(checkout().join(file)),
        None => python.arg(url.rsplit(':').next().unwrap_or_default()),
    };
    succeeds(python).await
}
