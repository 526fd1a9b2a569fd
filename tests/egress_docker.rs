//! N1 on containers of a Docker Engine: the network part of the escape corpus in a world of its own, as on this machine's.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    tierbox_testkit::world::run(run)
}

#[cfg(target_os = "linux")]
fn run() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with, world::ATTACKS};

    let suites = [Suite::escape(minimum::docker(), world::factory()).only(ATTACKS).variant("docker::n1")]
        .map(|suite| suite.required(support::REQUIRED));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(target_os = "linux")]
mod world {
    use std::sync::Arc;

    use tierbox::{Backend, Environment};
    use tierbox_testkit::{Absence, Adjust, BackendFactory, Factory, world};

    use crate::support::engines::{self, DEBIAN};

    const ENGINE: &str = "docker";

    /// Containers whose profile allows what the world's names are for.
    pub fn factory() -> Arc<dyn Factory> {
        let backend: Arc<dyn Backend> = Arc::new(tierbox::docker::DockerBackend::new());
        let mut spec = engines::docker_spec(ENGINE, "docker-web", DEBIAN);
        spec.network.allow = world::ALLOWED.iter().map(|name| (*name).to_owned()).collect();
        Arc::new(InWorld(BackendFactory::new(ENGINE, backend, spec, engines::address(ENGINE).err())))
    }

    /// Is absent where there is no world.
    struct InWorld(BackendFactory);

    #[async_trait::async_trait]
    impl Factory for InWorld {
        fn engine(&self) -> &str {
            self.0.engine()
        }

        fn absent(&self) -> Option<Absence> {
            self.0.absent().or_else(world::absent)
        }

        async fn start(&self, adjust: Adjust<'_>) -> tierbox::Result<Arc<dyn Environment>> {
            self.0.start(adjust).await
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
