//! The Inspect provider and the daemon, driven from Python: Inspect's own checks, an eval with a mock model, and a fuzzer that
//! reads the OpenAPI document. What they need is made by `tests/engines/python.sh`.
//!
//! The program that the provider starts is this one: with `TIERBOX_TEST_AS_PROGRAM` set it is `tierbox`.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod aws;
#[cfg(target_os = "linux")]
mod support;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    // The gateway of a sandbox that the daemon keeps.
    if let Some(code) = tierbox::egress::run_if_asked() {
        return code;
    }
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

    use crate::{aws, support};

    pub const AS_PROGRAM: &str = "TIERBOX_TEST_AS_PROGRAM";
    const PYTHON: &str = "TIERBOX_TEST_PYTHON";
    const SCHEMATHESIS: &str = "TIERBOX_TEST_SCHEMATHESIS";
    const VAGRANT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles/vagrant-basic.toml");

    type Test = fn(&Scene) -> Result<(), Failed>;
    /// Makes a profile on an engine, in a directory of the test's own.
    type Place = fn(&Path) -> Result<String, Failed>;

    pub fn trials() -> Vec<Trial> {
        let tests: [(&str, Test); 4] = [
            ("eval::inspect::the_provider_keeps_its_promises", |scene| scene.pytest("test_provider.py", None)),
            ("eval::inspect::an_eval_runs_and_its_log_says_in_what", |scene| scene.pytest("test_eval.py", None)),
            ("eval::inspect::a_person_logs_in_and_submits", |scene| scene.pytest("test_human.py", None)),
            ("eval::openapi::a_fuzzer_finds_no_answer_that_the_document_does_not_describe", Scene::fuzz),
        ];
        let missing = absence().or_else(support::containers_absent);
        let trial = |(name, test): (&'static str, Test)| trial(name, "python", missing.clone(), test);
        tests.into_iter().map(trial).chain(self_checks()).collect()
    }

    /// Inspect's own checks, on every backend that has an engine here.
    fn self_checks() -> Vec<Trial> {
        let local = absence().or_else(support::containers_absent);
        let mut backends: Vec<(&str, &str, Option<Absence>, Place)> = vec![("local", "python", local, local_profile)];
        backends.push(("docker", "docker", absence().or_else(|| support::engines::address("docker").err()), docker_profile));
        backends.push(("aws", "aws", absence().or_else(aws::absent), aws_profile));
        backends.push(("vm_required", "vagrant", absence().or_else(vagrant_absent), |_| Ok(VAGRANT.to_owned())));
        let trials = backends.into_iter().map(|(marker, engine, missing, place)| {
            let name = match marker {
                "local" => "eval::inspect::every_check_of_its_own_passes".to_owned(),
                marker => format!("{marker}::eval::inspect::every_check_of_its_own_passes"),
            };
            trial(&name, engine, missing, move |scene| {
                let profile = place(scene.directory.path())?;
                scene.pytest("test_self_check.py", Some(&profile))
            })
        });
        trials.collect()
    }

    fn trial(
        name: &str,
        engine: &'static str,
        missing: Option<Absence>,
        test: impl FnOnce(&Scene) -> Result<(), Failed> + Send + 'static,
    ) -> Trial {
        let (absent, own) = (missing.is_some(), name.to_owned());
        Trial::test(name, move || match missing {
            Some(absence) => Ok(support::skip(engine, &own, &absence)?),
            None => test(&Scene::new()?),
        })
        .with_ignored_flag(absent && !on_ci())
    }

    fn root() -> Result<String, Failed> {
        Ok(std::env::var("TIERBOX_TEST_ROOT")?)
    }

    fn written(directory: &Path, text: &str) -> Result<String, Failed> {
        let path = directory.join("checked.toml");
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn local_profile(directory: &Path) -> Result<String, Failed> {
        let text = format!("extends = \"local\"\ntier = \"T0.H1.N2\"\n[local]\nroot = {:?}\n", root()?);
        written(directory, &text)
    }

    /// The same small Debian, as an image.
    fn docker_profile(directory: &Path) -> Result<String, Failed> {
        const IMAGE: &str = "tierbox-test/inspect:1";
        let host = std::env::var("TIERBOX_ENGINE_DOCKER")?;
        let import = "docker -H \"$1\" image inspect \"$2\" >/dev/null 2>&1 || \
                      tar -C \"$3\" -c . | docker -H \"$1\" import -c 'USER agent' -c 'WORKDIR /home/agent' - \"$2\"";
        succeeded(Command::new("sh").args(["-c", import, "sh", &host, IMAGE, &root()?]).output()?)?;
        let settings = format!("image = {IMAGE:?}\nhost = {host:?}\npull = \"never\"\nread-only = false\n");
        // Nothing bounds a root that can be written to, which the checks need for users of their own.
        let limits = "[limits]\ndisk = { max = \"1GiB\", enforce = \"best\" }\n";
        written(directory, &format!("extends = \"docker\"\ntier = \"T0.H1.N2\"\n{limits}[docker]\n{settings}"))
    }

    /// An instance on the server that imitates AWS. Its machines share this host's kernel, so that verification would refuse them.
    fn aws_profile(directory: &Path) -> Result<String, Failed> {
        let server = aws::Server::new();
        let settings = server.settings();
        let mut text = "extends = \"ec2\"\ntier = \"T0.H3.N0\"\nverify = \"off\"\n[ec2]\n".to_owned();
        for key in ["region", "endpoint-url", "bucket"] {
            text.push_str(&format!("{key} = {}\n", settings[key]));
        }
        for key in ["access-key-id", "secret-access-key"] {
            let path = directory.join(key);
            std::fs::write(&path, settings[key].as_str().ok_or("no key")?)?;
            text.push_str(&format!("{key} = {:?}\n", format!("file:{}", path.display())));
        }
        written(directory, &text)
    }

    fn vagrant_absent() -> Option<Absence> {
        let there = std::env::var("TIERBOX_TEST_VAGRANT").is_ok_and(|providers| providers.contains("libvirt"));
        let reason = "TIERBOX_TEST_VAGRANT does not name libvirt: tests/engines/vagrant.sh was not started";
        (!there).then(|| Absence { reason: reason.to_owned(), install: "cargo xtask test --engine vagrant".to_owned() })
    }

    fn on_ci() -> bool {
        std::env::var_os("CI").is_some()
    }

    fn absence() -> Option<Absence> {
        let missing = [PYTHON, SCHEMATHESIS, "TIERBOX_TEST_ROOT"].into_iter().find(|name| std::env::var_os(name).is_none())?;
        let install = "cargo xtask test --engine python".to_owned();
        Some(Absence { reason: format!("{missing} is not set, so that there is no Python for the tests"), install })
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

        /// Runs a file of tests: on this profile, else on the one that they make.
        fn pytest(&self, file: &str, profile: Option<&str>) -> Result<(), Failed> {
            let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python");
            let interpreter = std::env::var_os(PYTHON).ok_or("no Python")?;
            let mut command = self.command(interpreter);
            command.args(["-m", "pytest", "-q", "--tb=short", "-c"]).arg(python.join("pyproject.toml"));
            let rootdir = format!("--rootdir={}", python.display());
            if let Some(profile) = profile {
                command.env("TIERBOX_TEST_PROFILE", profile);
            }
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
                    // Its answer goes on for as long as somebody reads.
                    "--exclude-operation-id=Events",
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
