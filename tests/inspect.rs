//! The Inspect provider and the daemon, driven from Python: Inspect's own checks, an eval with a mock model, and a fuzzer that
//! reads the OpenAPI document. What they need is made by `tests/engines/python.sh`.
//!
//! The program that the provider starts is this one: with `TIERBOX_TEST_AS_PROGRAM` set it is `tierbox`.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod support;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    if std::env::var_os(python::AS_PROGRAM).is_some() {
        return tierbox_cli::main();
    }
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), python::trials()).exit_code()
}

#[cfg(target_os = "linux")]
mod python {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use libtest_mimic::{Failed, Trial};
    use tierbox_testkit::Absence;

    use crate::support;

    pub const AS_PROGRAM: &str = "TIERBOX_TEST_AS_PROGRAM";
    const PYTHON: &str = "TIERBOX_TEST_PYTHON";
    const SCHEMATHESIS: &str = "TIERBOX_TEST_SCHEMATHESIS";

    type Test = fn(&Scene) -> Result<(), Failed>;

    pub fn trials() -> Vec<Trial> {
        let tests: [(&str, Test); 4] = [
            ("eval::inspect::every_check_of_its_own_passes", |scene| scene.pytest("test_self_check.py")),
            ("eval::inspect::the_provider_keeps_its_promises", |scene| scene.pytest("test_provider.py")),
            ("eval::inspect::an_eval_runs_and_its_log_says_in_what", |scene| scene.pytest("test_eval.py")),
            ("eval::openapi::a_fuzzer_finds_no_answer_that_the_document_does_not_describe", Scene::fuzz),
        ];
        let missing = absence();
        let trial = |(name, test): (&'static str, Test)| {
            let (gone, absent) = (missing.clone(), missing.is_some());
            Trial::test(name, move || match gone {
                Some(absence) => Ok(support::skip("python", name, &absence)?),
                None => test(&Scene::new()?),
            })
            .with_ignored_flag(absent && !on_ci())
        };
        tests.into_iter().map(trial).collect()
    }

    fn on_ci() -> bool {
        std::env::var_os("CI").is_some()
    }

    fn absence() -> Option<Absence> {
        let missing = [PYTHON, SCHEMATHESIS, "TIERBOX_TEST_ROOT"].into_iter().find(|name| std::env::var_os(name).is_none())?;
        let install = "cargo xtask test --engine python".to_owned();
        let absence = Absence { reason: format!("{missing} is not set, so that there is no Python for the tests"), install };
        Some(absence).or_else(support::containers_absent)
    }

    /// A state directory, and a `tierbox` that is this program.
    struct Scene {
        directory: tempfile::TempDir,
        program: PathBuf,
    }

    impl Scene {
        fn new() -> Result<Self, Failed> {
            use std::os::unix::fs::PermissionsExt;
            let directory = tempfile::tempdir()?;
            let program = directory.path().join("tierbox");
            let own = std::env::current_exe()?;
            let script = format!("#!/bin/sh\n{AS_PROGRAM}=1 exec '{}' \"$@\"\n", own.display());
            std::fs::write(&program, script)?;
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
            Ok(Self { directory, program })
        }

        fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
            let mut command = Command::new(program);
            command
                .env("TIERBOX_STATE_DIR", self.directory.path().join("state"))
                .env("TIERBOX_PROGRAM", &self.program)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("HOME", self.directory.path())
                .env_remove("INSPECT_LOG_DIR")
                .current_dir(self.directory.path());
            command
        }

        fn pytest(&self, file: &str) -> Result<(), Failed> {
            let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python");
            let interpreter = std::env::var_os(PYTHON).ok_or("no Python")?;
            let mut command = self.command(interpreter);
            command.args(["-m", "pytest", "-q", "--tb=short", "-c"]).arg(python.join("pyproject.toml"));
            let rootdir = format!("--rootdir={}", python.display());
            succeeded(command.arg(rootdir).arg(python.join("tests").join(file)).output()?)
        }

        /// Fuzzes a daemon of its own, and one environment on which commands and files are tried.
        fn fuzz(&self) -> Result<(), Failed> {
            let arguments = ["serve", "--json", "--tcp", "127.0.0.1:0", "--tokens"];
            let tokens = self.directory.path().join("tokens");
            let mut serving = self.command(&self.program);
            let mut daemon = serving.args(arguments).arg(&tokens).stdout(std::process::Stdio::piped()).spawn()?;
            let up = ["up", "--name", "fuzzed", "--profile", "local"];
            let outcome =
                succeeded(self.command(&self.program).args(up).output()?).and_then(|()| self.fuzz_at(&mut daemon, &tokens));
            let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM);
            daemon.wait()?;
            succeeded(self.command(&self.program).args(["cleanup", "--all", "--yes"]).output()?)?;
            outcome
        }

        fn fuzz_at(&self, daemon: &mut std::process::Child, tokens: &Path) -> Result<(), Failed> {
            use std::io::{BufRead, BufReader};
            let mut line = String::new();
            BufReader::new(daemon.stdout.take().ok_or("no output")?).read_line(&mut line)?;
            let listening: serde_json::Value = serde_json::from_str(&line)?;
            let address = listening["address"].as_str().ok_or("no address")?;
            let text = std::fs::read_to_string(tokens)?;
            let token = text.trim().strip_prefix("harness ").ok_or("no token")?;
            // Most of what can be asked is asked of an environment, which a fuzzer does not guess.
            let parameters = "[parameters]\n\"path.environment\" = \"fuzzed\"\n\"query.machine\" = \"default\"\n";
            std::fs::write(self.directory.path().join("schemathesis.toml"), parameters)?;
            let mut command = self.command(std::env::var_os(SCHEMATHESIS).ok_or("no schemathesis")?);
            command
                .args(["run", "--phases=examples,coverage,fuzzing", "--max-examples=30", "--seed=1", "--workers=1"])
                .args([
                    "--request-timeout=30",
                    "--generation-database=none",
                    "--no-color",
                    "--exclude-operation-id=Create",
                    "--exclude-operation-id=Destroy",
                ])
                // Raw bytes have no schema that could be broken, and a path that decodes to nothing is another path.
                .arg("--exclude-checks=positive_data_acceptance,unsupported_method")
                .arg(format!("--header=Authorization: Bearer {token}"))
                .arg(format!("http://{address}/v1/openapi.json"));
            succeeded(command.output()?)
        }
    }

    fn succeeded(output: Output) -> Result<(), Failed> {
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let end = text.len().saturating_sub(12_000);
        let end = (end..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        Err(format!("{}\n{}", output.status, &text[end..]).into())
    }
}
