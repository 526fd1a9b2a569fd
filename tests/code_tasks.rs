//! Code tasks on every backend that runs here.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod aws;

#[cfg(target_os = "linux")]
#[path = "code_tasks/mod.rs"]
mod cases;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::process::ExitCode;
    use std::sync::Arc;

    use libtest_mimic::{Arguments, Failed, Trial};
    use tierbox_core::Environment;
    use tierbox_testkit::{BackendFactory, Factory};

    use crate::support::plain::{Plain, Tools, WIDE, absent};
    use crate::{cases, support};

    pub fn main() -> ExitCode {
        let mut trials = Vec::new();
        for (name, case) in cases::ALL {
            for (place, factory) in local() {
                let name = name.replacen("::", &format!("::{place}::"), 1);
                trials.push(trial(name, factory, move |environment| case(environment)));
            }
        }
        for (place, factory) in engines() {
            let is_slow = place == "aws";
            let all = move |environment| Box::pin(async move { cases::run_all(&environment, is_slow).await }) as cases::Done;
            trials.push(trial(format!("conformance::{place}::code_tasks"), factory, all));
        }
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    /// This machine: a test for each case.
    fn local() -> Vec<(&'static str, Arc<dyn Factory>)> {
        let backend = Arc::new(support::framed::Framed);
        let framed = BackendFactory::new("local-process", backend, support::spec("local-process"), None);
        vec![
            ("container", support::local("local-container", "local")),
            ("process", support::local("local-process", "local-process")),
            ("framed", Arc::new(framed)),
        ]
    }

    /// What takes longer to start: all cases in one machine.
    fn engines() -> Vec<(&'static str, Arc<dyn Factory>)> {
        let plain = |engine: &str, tools| -> Arc<dyn Factory> {
            let backend = Arc::new(Plain { tools, limits: WIDE, loses: false, keeps: false });
            Arc::new(BackendFactory::new(engine, backend, support::spec("local-process"), absent(tools)))
        };
        vec![
            ("plain::sh", plain("plain-sh", Tools::Host)),
            ("plain::busybox", plain("plain-busybox", Tools::Busybox)),
            ("docker", support::engines::docker("docker", "docker")),
            ("docker::plain", support::engines::docker_plain("docker", "docker")),
            ("docker::podman", support::engines::docker("podman", "docker")),
            ("aws", crate::aws::factory()),
        ]
    }

    fn trial(
        name: String,
        factory: Arc<dyn Factory>,
        run: impl FnOnce(Arc<dyn Environment>) -> cases::Done + Send + 'static,
    ) -> Trial {
        let test = name.clone();
        Trial::test(name, move || {
            // The backend is asked on a runtime of its own.
            let containers = || (factory.engine() == "local-container").then(support::containers_absent).flatten();
            if let Some(absence) = factory.absent().or_else(containers) {
                return Ok(support::skip(factory.engine(), &test, &absence)?);
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let environment = factory.start(&|_| ()).await.map_err(|error| Failed::from(format!("{error:?}")))?;
                run(environment.clone()).await;
                environment.stop().await.map_err(|error| Failed::from(format!("{error:?}")))
            })
        })
    }
}
