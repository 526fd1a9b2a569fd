//! Verification on the local backend: it passes where all is well, and each probe fails where its rule does not hold.
#![cfg(all(feature = "local", target_os = "linux"))]

mod attested;
mod decided;
mod restored;
mod sabotaged;
mod share;
mod support;

use std::sync::Arc;

use sabotaged::{Harm, sabotaged};
use tierbox::verify::{ProbeStatus, SABOTAGES, Verdict};
use tierbox::{CanaryName, Lifted, Result, ShownPath};

/// Something that answers whatever it is sent, and names what leads to it.
fn answering(rules: &[&str]) -> Vec<CanaryName> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let leads_to = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut chunk = [0; 4096];
                let _ = std::io::Read::read(&mut stream, &mut chunk);
                let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
            });
        }
    });
    rules.iter().map(|rule| CanaryName { rule: (*rule).to_owned(), leads_to }).collect()
}

mod conformance {
    use tierbox::{ErrorKind, SandboxExt, StartOptions, Verify};
    use tokio::io::AsyncReadExt;

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
        let control = |id: &str| {
            let probe = verified.verification.probes.iter().find(|probe| probe.id == id).unwrap();
            probe.control.clone().unwrap().detail
        };
        assert_eq!(control("h.sockets").matches("exists:").count(), 12, "{}", control("h.sockets"));
        // Each set is one that the control saw something in, unless no command can be root's here.
        let sets = control("h.capabilities");
        let empty = ["CapEff 0,", "CapPrm 0,", "CapInh 0,", "CapAmb 0,"].iter().any(|set| sets.contains(set));
        assert!(!empty || sets.contains("the other sets are not shown"), "{sets}");
        assert!(!empty || !rustix::process::geteuid().is_root(), "{sets}");
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

    /// All of them are looked at, so that none is taken for one that the profile does not name.
    #[tokio::test]
    async fn a_container_with_many_mounts_is_verified() {
        let fixture = fixture();
        let host = tempfile::tempdir().unwrap();
        let long = "a-directory-with-quite-a-long-name".repeat(3);
        let mounts = |overrides: tierbox::Overrides, number: usize| {
            let directory = host.path().join(format!("{long}-{number}"));
            std::fs::create_dir(&directory).unwrap();
            overrides.mount(directory, format!("/mnt/{long}-{number}"), false)
        };
        let overrides = (0..200).fold(tierbox::Overrides::new(), mounts);
        let Some(running) = started(fixture.client.start_with("local", StartOptions::new().overrides(overrides)).await) else {
            return;
        };
        assert!(running.verification().unwrap().verification.verified);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// With named hosts, every rule of the gateway is shown too.
    #[tokio::test]
    async fn a_container_with_named_hosts_is_verified() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local-web").await) else { return };
        let verified = running.verification().expect("local verifies once").clone();
        let open: Vec<_> = verified.verification.probes.iter().filter(|probe| probe.status != ProbeStatus::Pass).collect();
        assert!(open.is_empty() && verified.verification.verified, "{open:#?}");
        let ids: Vec<_> = verified.verification.probes.iter().map(|probe| probe.id.as_str()).collect();
        for probe in ["n.names", "n.listed", "n.unlisted", "n.unlisted.tls", "n.sni", "n.host", "n.port", "n.address"] {
            assert!(ids.contains(&probe), "{probe} is not among {ids:?}");
        }
        // Nothing was asked of a name outside, and every record of the machine itself is a refusal.
        for decision in running.decisions().await.unwrap() {
            assert!(decision.verification, "{decision:?} is taken for the agent's");
            let own = decision.name.ends_with(".invalid") || decision.name.starts_with("127.0.0.1");
            let query = decision.protocol == tierbox::Protocol::Dns;
            assert!(query || (own && decision.verdict == tierbox::Verdict::Refused), "{decision:?}");
        }
        // What is asked for afterwards is not taken for verification's, whatever it asks for.
        let before = running.decisions().await.unwrap().len();
        let request = "exec 3<>/dev/tcp/198.18.0.1/80; printf 'GET / HTTP/1.1\\r\\nHost: other.tierbox.invalid\\r\\n\\r\\n' >&3; head -1 <&3";
        let asked = running.run(tierbox::ExecRequest::new(["/bin/bash", "-c", request])).await.unwrap();
        assert!(asked.stdout.text().contains("403"), "{asked:?}");
        let later = running.decisions().await.unwrap().split_off(before);
        assert!(!later.is_empty() && later.iter().all(|decision| !decision.verification), "{later:?}");
        running.stop().await.unwrap();
        let again = started(fixture.client.start("local-web").await).unwrap();
        assert!(again.verification().unwrap().reused);
        again.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// Whose probes are carried out again, because it claims to be a virtual machine, and fail: it is refused, and lives on for its owner.
    #[tokio::test]
    async fn one_that_is_found_again_is_refused_if_a_probe_fails() {
        let fixture = fixture();
        let kept = StartOptions::new().hold(tierbox::Hold::Kept);
        let Some(running) = started(fixture.client.start_with("local", kept).await) else { return };
        let id = running.id().to_owned();
        drop(running);
        let error = sabotaged("local", &fixture.state, Harm::FoundAnother).attach(&id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TierRefused);
        assert!(error.message().contains("h.kernel.namespaces"), "{}", error.message());
        assert!(error.help().is_some_and(|help| help.contains(&format!("{id} still runs"))), "{:?}", error.help());
        fixture.client.attach(&id).await.unwrap().stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// The sabotages of one list, each refused by the probes that it names.
    #[tokio::test]
    async fn every_sabotage_is_caught_and_refused() {
        let fixture = fixture();
        let Some(honest) = started(fixture.client.start("local").await) else { return };
        honest.stop().await.unwrap();
        let possible = tierbox::verify::probe_names().unwrap();
        let shared = tempfile::tempdir().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(shared.path().join("socket")).unwrap();
        let share = crate::share::Share::mount();
        let mount = |host: &std::path::Path, guest: &str| {
            Harm::Lifted(Lifted::Mounts(vec![ShownPath { host: host.to_owned(), guest: guest.into() }]))
        };
        for sabotage in SABOTAGES {
            let (profile, harm) = match sabotage.name {
                "isolation" => ("local", Harm::Lifted(Lifted::Isolation)),
                "network" => ("local", Harm::Lifted(Lifted::Network)),
                "ipc" => ("local", Harm::Lifted(Lifted::Ipc)),
                "uts" => ("local", Harm::Lifted(Lifted::Uts)),
                "capabilities" => ("local", Harm::Lifted(Lifted::Capabilities)),
                "no-new-privs" => ("local", Harm::Lifted(Lifted::NoNewPrivs)),
                "seccomp" => ("local", Harm::Lifted(Lifted::Seccomp)),
                "socket" => ("local", mount(&shared.path().join("socket"), "/run/docker.sock")),
                "bind" => ("local", mount(shared.path(), "/mnt/of-nobody")),
                "share" => match &share {
                    Some(share) => ("local", mount(share.path(), "/mnt/share")),
                    // Only root mounts.
                    None => continue,
                },
                "bypass" => ("local-web", Harm::Lifted(Lifted::Network)),
                "lists-more" => ("local-web", Harm::Lifted(Lifted::Names(answering(&["other.tierbox.invalid"])))),
                "lists-less" => ("local-web", Harm::Names(&["unasked.test"])),
                "deaf" => ("local-web", Harm::Siblings(|_| Vec::new())),
                "careless" => (
                    "local-web",
                    Harm::Siblings(|mut names| {
                        let more = ["other.tierbox.invalid", "tcp://listed.tierbox.invalid:443", "listed.tierbox.invalid:8099"];
                        let leads_to = names[0].leads_to;
                        names.extend(more.map(|rule| CanaryName { rule: rule.to_owned(), leads_to }));
                        names
                    }),
                ),
                // There is no such network; it is carried out on Docker.
                "outside" => continue,
                // In tests of their own, below.
                "kernel" | "kernel-of-a-container" | "kernel-of-a-process" | "rules" | "handle" | "unconfined" => continue,
                other => panic!("{other} is not carried out"),
            };
            let state = tempfile::tempdir().unwrap();
            let client = sabotaged("local", &state, harm);
            let error = client.start(profile).await.expect_err(sabotage.name);
            assert_eq!(error.kind(), ErrorKind::TierRefused, "{}: {error}", sabotage.name);
            for probe in sabotage.caught_by.iter().filter(|probe| possible.contains(*probe)) {
                assert!(error.message().contains(&format!("{probe} (")), "{probe} did not catch {}: {error}", sabotage.name);
            }
            assert!(client.list().await.unwrap().environments.is_empty(), "{} left something behind", sabotage.name);
            assert!(!state.path().join("tierbox/verified").exists(), "a failure was recorded as a success");
        }
        drop(socket);
    }

    /// A machine beside the primary one is looked at as closely.
    #[tokio::test]
    async fn a_sabotage_of_another_machine_is_caught_there() {
        let state = tempfile::tempdir().unwrap();
        let client = sabotaged("local", &state, Harm::Beside(Lifted::Seccomp));
        let error = match client.start("local").await {
            Err(error) if error.kind() == ErrorKind::TierRefused => error,
            other => {
                assert!(started(other).is_none(), "it was started");
                return;
            }
        };
        assert!(error.message().contains("h.seccomp (in "), "{error}");
        // The honest one passed.
        assert_eq!(error.message().matches("h.seccomp").count(), 1, "{error}");
        assert!(client.list().await.unwrap().environments.is_empty());
    }

    /// Whether what such a client starts was verified, and whether that was found before.
    async fn looked(client: &tierbox::Tierbox) -> Option<(tierbox::verify::Verification, bool)> {
        let running = started(client.start("local").await)?;
        let verified = running.verification().unwrap().clone();
        running.stop().await.unwrap();
        Some((verified.verification, verified.reused))
    }

    /// Two twins that claim to be on the host's network, and are each on one of their own: canaries that one opens there are not heard by
    /// the other, and nothing is called verified by them.
    #[tokio::test]
    async fn canaries_that_no_control_hears_show_nothing() {
        let state = tempfile::tempdir().unwrap();
        let apart = |lifted: &Lifted| Ok(if *lifted == Lifted::Network { Lifted::Ipc } else { lifted.clone() });
        let Some((found, _)) = looked(&sabotaged("local", &state, Harm::Twins(apart))).await else { return };
        for id in ["n.tcp", "n.udp", "n.dns", "n.routes", "n.metadata", "h.namespace.net"] {
            let probe = found.probes.iter().find(|probe| probe.id == id).unwrap();
            assert_eq!(probe.status, ProbeStatus::Inconclusive, "{probe:?}");
        }
        // They were asked for all the same: the other half of what such a probe takes, this host's own canaries, was heard.
        let probe = found.probes.iter().find(|probe| probe.id == "n.tcp").unwrap();
        assert!(probe.control.as_ref().unwrap().lifted.contains("isolation"), "{probe:?}");
        assert!(!found.verified);
    }

    /// A host that refuses a twin leaves its probes open. It is asked once more; after that no start pays for what cannot be told.
    #[tokio::test]
    async fn what_cannot_be_told_twice_is_not_tried_at_every_start() {
        let state = tempfile::tempdir().unwrap();
        let refused = |lifted: &Lifted| match lifted {
            Lifted::Network => Err(tierbox::Error::new(ErrorKind::HostUnable, "start twin", "it is forbidden here")),
            other => Ok(other.clone()),
        };
        let client = sabotaged("local", &state, Harm::Twins(refused));
        let Some((first, reused)) = looked(&client).await else { return };
        let probe = first.probes.iter().find(|probe| probe.id == "n.tcp").unwrap();
        assert_eq!(probe.status, ProbeStatus::Inconclusive);
        assert!(probe.control.as_ref().unwrap().detail.contains("it is forbidden here"), "{probe:?}");
        assert!(!reused && !looked(&client).await.unwrap().1);
        // On a busy machine another probe may once have been unable to tell, too: then nothing was confirmed yet.
        let mut last = (first, false);
        for _ in 0..6 {
            last = looked(&client).await.unwrap();
            if last.1 {
                break;
            }
        }
        let (known, reused) = last;
        assert!(reused && !known.verified && known.verdict == Verdict::NotVerified, "{known:?}");
    }

    #[tokio::test]
    async fn where_nothing_is_promised_nothing_is_called_verified() {
        let fixture = fixture();
        let running = started(fixture.client.start("local-process").await).unwrap();
        let found = running.verification().unwrap().verification.clone();
        assert_eq!((found.verdict, found.verified), (Verdict::NothingToProve, false));
        assert_eq!(running.verify().await.unwrap().verdict, Verdict::NothingToProve);
        let attestation = running.attestation().unwrap();
        assert_eq!(attestation.verdict, Verdict::NothingToProve);
        assert!(!attestation.verification.unwrap().verified);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// A record that somebody else could have written, or that is of something else, is measured again.
    #[tokio::test]
    async fn a_record_that_was_tampered_with_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let fixture = fixture();
        let reused = async || {
            let running = started(fixture.client.start("local").await)?;
            let reused = running.verification().unwrap().reused;
            running.stop().await.unwrap();
            Some(reused)
        };
        let Some(first) = reused().await else { return };
        assert!(!first && reused().await.unwrap());
        let directory = fixture.state.path().join("tierbox/verified");
        let record = std::fs::read_dir(&directory).unwrap().flatten().next().unwrap().path();
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(!reused().await.unwrap(), "others could have written it");
        assert!(reused().await.unwrap(), "it was not written anew");
        let text = std::fs::read_to_string(&record).unwrap();
        std::fs::write(&record, text.replacen("\"boot\":\"", "\"boot\":\"0", 1)).unwrap();
        assert!(!reused().await.unwrap(), "it is of something else");
        fixture.assert_empty().await;
    }

    /// Who finds an environment again sees of when its probes are, and can carry them out again.
    #[tokio::test]
    async fn one_that_is_found_again_says_of_when_its_probes_are() {
        let fixture = fixture();
        let detached = |verify: Option<Verify>| {
            let mut spec = fixture.client.resolve("local", &StartOptions::new()).unwrap();
            spec.verify = verify;
            spec
        };
        let kept = StartOptions::new().hold(tierbox::Hold::Kept);
        let Some(running) = started(fixture.client.start_spec(detached(None), kept.clone()).await) else { return };
        let (id, found) = (running.id().to_owned(), running.verification().unwrap().verification.clone());
        drop(running);
        let again = fixture.client.attach(&id).await.unwrap();
        let known = again.verification().unwrap();
        assert!(known.reused && known.verification == found);
        let note = again.report().notes.last().unwrap();
        assert!(note.starts_with("found again: its probes are of ") && note.ends_with("not repeated"), "{note}");
        assert_eq!(again.attestation().unwrap().verdict, Verdict::Verified);
        assert_eq!(again.verify().await.unwrap().verdict, Verdict::Verified);
        again.stop().await.unwrap();
        // Where the profile asks for it at every start, they are carried out again.
        let running = started(fixture.client.start_spec(detached(Some(Verify::Always)), kept.clone()).await).unwrap();
        let (id, first) = (running.id().to_owned(), running.verification().unwrap().verification.time.clone());
        drop(running);
        let again = fixture.client.attach(&id).await.unwrap();
        let known = again.verification().unwrap();
        assert!(!known.reused && known.verification.verified && known.verification.time > first, "{known:?}");
        let note = again.report().notes.last().unwrap();
        assert!(note.contains("carried out again"), "{note}");
        again.stop().await.unwrap();
        // And where it was never verified, that is said.
        let running = started(fixture.client.start_spec(detached(Some(Verify::Off)), kept).await).unwrap();
        let id = running.id().to_owned();
        drop(running);
        let again = fixture.client.attach(&id).await.unwrap();
        assert!(again.verification().is_none() && again.attestation().unwrap().verdict == Verdict::NotProbed);
        assert!(again.report().notes.last().unwrap().ends_with("nothing is known of a verification"));
        again.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn rules_that_let_anything_through_are_caught() {
        let fixture = fixture();
        let mut spec = fixture.client.resolve("local-tools", &StartOptions::new()).unwrap();
        spec.programs.push("/nonexistent/tierbox-probe".to_owned());
        let error = match fixture.client.start_spec(spec, StartOptions::new()).await {
            Err(error) if error.kind() == ErrorKind::TierRefused => error,
            other => {
                assert!(started(other).is_none(), "it was started");
                return;
            }
        };
        assert!(error.message().contains("t.exec ("), "{error}");
        fixture.assert_empty().await;
    }

    /// The statuses of probes that tell of a handle, by what is promised of it.
    async fn probed(agent: &tierbox::AgentSandbox, promised: tierbox::Tooling) -> Vec<(String, ProbeStatus)> {
        agent.verify(promised).await.into_iter().map(|probe| (probe.id, probe.status)).collect()
    }

    #[tokio::test]
    async fn a_handle_of_a_lower_tier_is_caught() {
        use tierbox::{AgentOptions, AgentPolicy, Tooling};
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let policy = |tooling| AgentPolicy::new(tooling, vec!["/usr/bin/cat".to_owned()]);
        let agent = async |policy| running.for_agent(AgentOptions::new().policy(policy)).await.unwrap();
        let free = running.for_agent(AgentOptions::new()).await.unwrap();
        let (named, nothing) = (agent(policy(Tooling::T1)).await, agent(policy(Tooling::T2)).await);
        let of = |found: &[(String, ProbeStatus)], status| -> Vec<String> {
            found.iter().filter(|(_, is)| *is == status).map(|(id, _)| id.clone()).collect()
        };
        for (honest, tooling) in [(&named, Tooling::T1), (&nothing, Tooling::T2)] {
            let found = probed(honest, tooling).await;
            assert_eq!(of(&found, ProbeStatus::Pass).len(), found.len(), "{found:?}");
        }
        let mut caught = std::collections::BTreeSet::new();
        for (handle, promised) in [(&free, Tooling::T1), (&free, Tooling::T2), (&named, Tooling::T2)] {
            let found = probed(handle, promised).await;
            let failed = of(&found, ProbeStatus::Fail);
            let all = found.len();
            // A handle of T1 refuses much of what T2 promises, and not that anything is read.
            let least = if std::ptr::eq(handle, &free) && promised == Tooling::T2 { all } else { 1 };
            assert!(failed.len() >= least, "{promised}: {found:?}");
            assert!(!std::ptr::eq(handle, &named) || failed == ["t.exec", "t.look"], "{found:?}");
            caught.extend(failed);
        }
        let expected = SABOTAGES.iter().find(|sabotage| sabotage.name == "handle").unwrap().caught_by;
        let missed: Vec<_> = expected.iter().filter(|probe| !caught.contains(**probe)).collect();
        assert!(missed.is_empty(), "{missed:?}");
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// The kernel of the machine is never told what may be executed there.
    #[tokio::test]
    async fn a_machine_that_confines_nobody_is_caught() {
        let fixture = fixture();
        // The control: one that does is verified, if this kernel can.
        let Some(running) = started(fixture.client.start("local-tools").await) else { return };
        let verified = running.verification().unwrap().verification.clone();
        let probe = verified.probes.iter().find(|probe| probe.id == "t.kernel").unwrap();
        assert_eq!((probe.status, probe.control.as_ref().unwrap().found), (ProbeStatus::Pass, true), "{probe:?}");
        assert!(verified.verified, "{verified:#?}");
        running.stop().await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let client = sabotaged("local", &state, Harm::Unconfined);
        let error = client.start("local-tools").await.expect_err("it was started");
        assert_eq!(error.kind(), ErrorKind::TierRefused, "{error}");
        assert!(error.message().contains("t.kernel ("), "{error}");
        assert!(client.list().await.unwrap().environments.is_empty());
        fixture.assert_empty().await;
    }

    /// What verification finds in an environment that is said to be a virtual machine; `stated` if its engine says so too.
    async fn as_a_machine(running: &tierbox::Running, stated: bool) -> tierbox::verify::Verification {
        struct NoTwins;
        #[async_trait::async_trait]
        impl tierbox::verify::Twins for NoTwins {
            async fn start(&self, lifted: &Lifted) -> Result<Box<dyn tierbox::verify::Twin>> {
                Err(tierbox::Error::unsupported("start twin", lifted.name()))
            }
        }
        let mut report = running.report().clone();
        report.tier = "T0.H3.N2".parse().unwrap();
        if stated {
            let (name, detail) = ("virtual machine".to_owned(), "so it says".to_owned());
            report.mechanisms.push(tierbox::Mechanism { name, applied: tierbox::Applied::Enforced, detail });
        }
        let program = tierbox::supervisor_program().unwrap();
        tierbox::verify::verify(&running.machines(), &report, &[], program, Arc::new(NoTwins)).await.unwrap()
    }

    /// The probes of a kernel of its own that found something else.
    fn failed(found: &tierbox::verify::Verification) -> Vec<&str> {
        found.failed().map(|probe| probe.id.as_str()).filter(|id| id.starts_with("h.kernel.")).collect()
    }

    fn caught_by(name: &str) -> &'static [&'static str] {
        SABOTAGES.iter().find(|sabotage| sabotage.name == name).unwrap().caught_by
    }

    /// A container that is said to be a virtual machine, by its engine or not.
    #[tokio::test]
    async fn a_wrong_claim_of_a_kernel_is_caught() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let found = as_a_machine(&running, false).await;
        assert_eq!(failed(&found), caught_by("kernel"));
        // Without twins nothing negative is called passed.
        let marker = found.probes.iter().find(|probe| probe.id == "h.marker").unwrap();
        assert_eq!(marker.status, ProbeStatus::ByConfiguration);
        assert!(!found.verified);
        assert_eq!(failed(&as_a_machine(&running, true).await), caught_by("kernel-of-a-container"));
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    /// A process of this host's is in the first namespaces of a kernel, which is this host's.
    #[tokio::test]
    async fn a_shared_kernel_is_caught_by_its_boot_id_alone() {
        if std::fs::read_link("/proc/self/ns/pid").is_ok_and(|kind| kind.to_str() != Some("pid:[4026531836]")) {
            // In a container of somebody's there is no process to be had that is in the first ones.
            return;
        }
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local-process").await) else { return };
        assert_eq!(failed(&as_a_machine(&running, true).await), caught_by("kernel-of-a-process"));
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
    async fn long_outputs_and_files_are_in_the_log_in_whole() {
        let fixture = fixture();
        let secret = tierbox::Overrides::new().secret_env("API_TOKEN", tierbox::Secret::new("hunter2-long"));
        let options = StartOptions::new().log().overrides(secret);
        let Some(running) = started(fixture.client.start_with("local", options).await) else { return };
        let id = running.id().to_owned();
        let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo $API_TOKEN; head -c 2000000 /dev/zero >&2";
        let printed = running.run(tierbox::ExecRequest::shell(script)).await.unwrap();
        assert!(printed.stdout.text().contains("hunter2-long"));
        running.write_bytes("big", vec![b'y'; 2 << 20]).await.unwrap();
        let mut packed = Vec::new();
        running.pack(&tierbox::GuestPath::from(".")).await.unwrap().read_to_end(&mut packed).await.unwrap();
        running.unpack(&tierbox::GuestPath::from("copy"), Box::new(std::io::Cursor::new(packed.clone()))).await.unwrap();
        running.stop().await.unwrap();
        let run = fixture.client.run(&id).unwrap();
        let standing = run.check(None).unwrap();
        assert!(standing.is_intact() && standing.references == 5, "{standing:?}");
        let log = std::fs::read_to_string(run.directory.join("log.jsonl")).unwrap();
        let mut sizes = Vec::new();
        for line in log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
            for data in line["data"].as_array().into_iter().flatten().filter(|data| data["file"].is_string()) {
                assert!(data["kept"].is_null(), "{data}");
                let path = run.directory.join(data["file"].as_str().unwrap());
                let held = std::fs::read(&path).unwrap();
                assert!(!held.windows(7).any(|part| part == b"hunter2"), "{} holds a secret", path.display());
                sizes.push((data["stream"].as_str().unwrap().to_owned(), held.len(), path));
            }
        }
        let found: Vec<_> = sizes.iter().map(|(stream, size, _)| (stream.as_str(), *size)).collect();
        let (stdout, archive) = (3_000_000 + "***\n".len(), ("contents", packed.len()));
        assert_eq!(found, [("stdout", stdout), ("stderr", 2_000_000), ("contents", 2 << 20), archive, archive]);
        assert!(packed.len() > 2 << 20 && std::fs::read(&sizes[3].2).unwrap() == packed, "the directory as it came out");
        let mut held = std::fs::read(&sizes[0].2).unwrap();
        held[1_500_000] = b'z';
        std::fs::write(&sizes[0].2, held).unwrap();
        assert!(!run.check(None).unwrap().is_intact());
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
        assert!(attestation.made_of.contains_key("root") && attestation.made_of.contains_key("engine"));
        assert_eq!((attestation.affordances.execution.as_str(), attestation.affordances.between_machines), ("anything", true));
        assert!(
            attestation.verification.unwrap().verified && attestation.affordances.variables.contains(&"API_TOKEN".to_owned())
        );
        let standing = run.check(None).unwrap();
        assert!(standing.is_intact() && standing.ended && standing.unfinished.is_empty(), "{standing:?}");
        let text = std::fs::read_to_string(run.directory.join("log.jsonl")).unwrap();
        assert!(text.contains("it is ***") && !text.contains("hunter2"), "{text}");
        let document = std::fs::read_to_string(run.directory.join("attestation.json")).unwrap();
        assert!(!document.contains("hunter2"));
        std::fs::write(run.directory.join("attestation.json"), document.replace("T0.H1.N2", "T0.H3.N2")).unwrap();
        let found = |what: &str| {
            let problems = fixture.client.run(&id).unwrap().check(None).unwrap().problems;
            problems.iter().any(|problem| problem.what.contains(what))
        };
        assert!(found("attestation"));
        fixture.assert_empty().await;
    }
}

mod unit {
    use std::collections::BTreeSet;

    use tierbox::verify::{SABOTAGES, probe_names, sabotage_table};

    /// No probe is there that could not be shown to fail, and no sabotage names a probe that is not there.
    #[test]
    fn every_probe_has_a_sabotage() {
        let probes = probe_names().unwrap();
        let caught: BTreeSet<&str> = SABOTAGES.iter().flat_map(|sabotage| sabotage.caught_by).copied().collect();
        let unproved: Vec<_> = probes.difference(&caught).collect();
        assert!(unproved.is_empty(), "these are in no sabotage: {unproved:?}");
        // A host without IPv6 has no probes for it.
        let unknown: Vec<_> = caught.difference(&probes).filter(|probe| !probe.ends_with('6')).collect();
        assert!(unknown.is_empty(), "there are no such probes: {unknown:?}");
        let names: BTreeSet<&str> = SABOTAGES.iter().map(|sabotage| sabotage.name).collect();
        assert_eq!(names.len(), SABOTAGES.len());
    }

    #[test]
    fn the_book_has_the_table_of_sabotages() {
        const MARKS: [&str; 2] = ["<!-- sabotages -->\n", "<!-- end -->"];
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/book/src/verification.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(MARKS[0]).unwrap();
        let (table, after) = rest.split_once(MARKS[1]).unwrap();
        let current = format!("\n{}\n", sabotage_table());
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(&path, format!("{before}{}{current}{}{after}", MARKS[0], MARKS[1])).unwrap();
        } else {
            assert_eq!(table, current, "run with TIERBOX_TEST_BLESS=1");
        }
    }

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
