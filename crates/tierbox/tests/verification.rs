//! Verification on the local backend: it passes where all is well, and each probe fails where its rule does not hold.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

use std::sync::Arc;

use tierbox::verify::ProbeStatus;
use tierbox::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, LeaseHandle, LeaseRecord, Lifted, Progress,
    Registry, Result, Tierbox,
};

/// The local backend, except that what it starts is a twin: a rule is lifted without anybody knowing.
struct Sabotaged {
    honest: Arc<dyn Backend>,
    lifted: Lifted,
}

#[async_trait::async_trait]
impl Backend for Sabotaged {
    fn name(&self) -> &'static str {
        "local"
    }
    fn settings_schema(&self) -> serde_json::Value {
        self.honest.settings_schema()
    }
    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        self.honest.validate(spec)
    }
    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        self.honest.capabilities(spec)
    }
    async fn start(&self, spec: &EnvironmentSpec, lease: Arc<dyn LeaseHandle>, _: &dyn Progress) -> Result<Box<dyn Environment>> {
        let inner = self.honest.twin(spec, &self.lifted, lease).await?;
        let mut report = inner.report().clone();
        report.tier = spec.tier;
        Ok(Box::new(Lying { inner, report }))
    }
    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        self.honest.twin(spec, lifted, lease).await
    }
    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        self.honest.attach(lease).await
    }
    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        self.honest.is_alive(lease).await
    }
    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        self.honest.destroy(lease).await
    }
    async fn doctor(&self) -> Vec<Check> {
        self.honest.doctor().await
    }
}

/// An environment that claims to be what was asked for.
struct Lying {
    inner: Box<dyn Environment>,
    report: tierbox::Report,
}

#[async_trait::async_trait]
impl Environment for Lying {
    fn id(&self) -> &str {
        self.inner.id()
    }
    fn machines(&self) -> Vec<Arc<dyn tierbox::Sandbox>> {
        self.inner.machines()
    }
    fn report(&self) -> &tierbox::Report {
        &self.report
    }
    fn connection(&self, machine: &str) -> Result<tierbox::Connection> {
        self.inner.connection(machine)
    }
    async fn stop(&self) -> Result<()> {
        self.inner.stop().await
    }
    async fn ended(&self, limit: std::time::Duration) -> bool {
        self.inner.ended(limit).await
    }
}

fn sabotaged(state: &tempfile::TempDir, lifted: Lifted) -> Tierbox {
    let honest = Registry::linked().get("local").unwrap();
    let mut registry = Registry::linked();
    registry.register(Arc::new(Sabotaged { honest, lifted }));
    Tierbox::builder().registry(registry).user_config(false).state_dir(state.path().join("tierbox")).build().unwrap()
}

mod conformance {
    use tierbox::{ErrorKind, SandboxExt, StartOptions, Verify};

    use super::*;
    use crate::support::{fixture, started};

    #[tokio::test]
    async fn an_isolated_container_is_verified_and_the_record_is_reused() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let verified = running.verification().expect("local verifies once").clone();
        let open: Vec<_> = verified.verification.probes.iter().filter(|probe| probe.status != ProbeStatus::Pass).collect();
        assert!(open.is_empty(), "{open:#?}");
        assert!(verified.verification.verified && !verified.reused && verified.verification.probes.len() > 15);
        running.stop().await.unwrap();
        let again = started(fixture.client.start("local").await).unwrap();
        let reused = again.verification().unwrap();
        assert!(reused.reused);
        assert_eq!(reused.verification, verified.verification);
        assert!(again.run(tierbox::ExecRequest::new(["/bin/true"])).await.unwrap().success());
        again.stop().await.unwrap();
        let other = started(fixture.client.start_with("local", StartOptions::new().set("limits.pids", "512")).await).unwrap();
        assert!(!other.verification().unwrap().reused);
        other.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn every_sabotage_is_caught_and_refused() {
        let fixture = fixture();
        let Some(honest) = started(fixture.client.start("local").await) else { return };
        honest.stop().await.unwrap();
        let shared = tempfile::tempdir().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(shared.path().join("socket")).unwrap();
        let mount = Lifted::Mount { host: shared.path().join("socket"), guest: "/run/docker.sock".into() };
        let table: [(Lifted, &[&str]); 8] = [
            (Lifted::Isolation, &["h.namespace.mnt", "h.namespace.pid", "h.marker", "h.processes", "n.unix", "n.abstract"]),
            (Lifted::Network, &["h.namespace.net", "n.routes", "n.metadata", "n.tcp", "n.udp", "n.dns"]),
            (Lifted::Ipc, &["h.namespace.ipc"]),
            (Lifted::Uts, &["h.namespace.uts"]),
            (Lifted::Capabilities, &["h.capabilities"]),
            (Lifted::NoNewPrivs, &["h.no-new-privs"]),
            (Lifted::Seccomp, &["h.seccomp"]),
            (mount, &["h.sockets"]),
        ];
        for (lifted, caught) in table {
            let state = tempfile::tempdir().unwrap();
            let client = sabotaged(&state, lifted.clone());
            let error = client.start("local").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TierRefused, "{lifted:?}: {error}");
            for probe in caught {
                assert!(error.message().contains(&format!("{probe} (")), "{probe} did not catch {lifted:?}: {error}");
            }
            assert!(client.list().await.unwrap().environments.is_empty(), "{lifted:?} left something behind");
            assert!(!state.path().join("tierbox/verified").exists(), "a failure was recorded as a success");
        }
        drop(socket);
    }

    /// A container that is said to be a virtual machine.
    #[tokio::test]
    async fn a_wrong_claim_of_a_kernel_is_caught() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        struct NoTwins;
        #[async_trait::async_trait]
        impl tierbox::verify::Twins for NoTwins {
            async fn start(&self, lifted: &Lifted) -> Result<Box<dyn tierbox::verify::Twin>> {
                Err(tierbox::Error::unsupported("start twin", lifted.name()))
            }
        }
        let mut report = running.report().clone();
        report.tier = "T0.H3.N2".parse().unwrap();
        let program = tierbox::supervisor_program().unwrap();
        let found = tierbox::verify::verify(running.sandbox(), &report, program, Arc::new(NoTwins)).await.unwrap();
        let failed: Vec<_> = found.failed().map(|probe| probe.id.as_str()).collect();
        assert_eq!(failed, ["h.kernel.namespaces", "h.kernel.boot", "h.kernel.engine"]);
        // Without twins nothing negative is called passed.
        let marker = found.probes.iter().find(|probe| probe.id == "h.marker").unwrap();
        assert_eq!(marker.status, ProbeStatus::ByConfiguration);
        assert!(!found.verified);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn off_is_not_verified_and_says_so() {
        let fixture = fixture();
        let mut spec = fixture.client.resolve("local", &StartOptions::new()).unwrap();
        spec.verify = Some(Verify::Off);
        let Some(running) = started(fixture.client.start_spec(spec, StartOptions::new()).await) else { return };
        assert!(running.verification().is_none());
        assert!(running.attestation().unwrap().verification.is_none());
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_logged_run_has_a_chain_an_attestation_and_no_secrets() {
        let fixture = fixture();
        let options = StartOptions::new()
            .log()
            .env("PLAIN", "visible")
            .overrides(tierbox::Overrides::new().secret_env("API_TOKEN", tierbox::Secret::new("hunter2-long")));
        let Some(running) = started(fixture.client.start_with("local", options).await) else { return };
        let id = running.id().to_owned();
        running.run(tierbox::ExecRequest::shell("echo it is $API_TOKEN; exit 3")).await.unwrap();
        running.stop().await.unwrap();
        let run = fixture.client.run(&id).unwrap();
        assert!(run.attestation_matches);
        let attestation = run.attestation.clone().unwrap();
        assert_eq!((attestation.tier.as_str(), attestation.environment.as_str()), ("T0.H1.N2", id.as_str()));
        assert!(
            attestation.verification.unwrap().verified && attestation.affordances.variables.contains(&"API_TOKEN".to_owned())
        );
        let standing = tierbox::verify::log::check(&run.directory).unwrap();
        assert!(standing.is_intact() && standing.ended && standing.unfinished.is_empty(), "{standing:?}");
        let text = std::fs::read_to_string(run.directory.join("log.jsonl")).unwrap();
        assert!(text.contains("it is ***") && !text.contains("hunter2"), "{text}");
        let document = std::fs::read_to_string(run.directory.join("attestation.json")).unwrap();
        assert!(!document.contains("hunter2"));
        std::fs::write(run.directory.join("attestation.json"), document.replace("T0.H1.N2", "T0.H3.N2")).unwrap();
        assert!(!fixture.client.run(&id).unwrap().attestation_matches);
        fixture.assert_empty().await;
    }
}

mod unit {
    #[test]
    fn the_committed_schema_of_attestations_has_not_drifted() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/attestation.schema.json");
        let current = format!("{:#}\n", tierbox::verify::Attestation::schema());
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), current, "run with TIERBOX_TEST_BLESS=1");
    }
}
