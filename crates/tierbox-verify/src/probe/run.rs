//! Carries probes out: inside, and in the twins that show them to work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tierbox_core::{
    Error, ErrorKind, ExecRequest, GuestPath, Lifted, NotStartedCause, Outcome, Report, Result, Sandbox, SandboxExt, WriteOptions,
};

use super::canary::Canaries;
use super::catalogue::{Answers, Control, Finding, Ground, Place, Probe, probes};
use super::named::has_no_network;
use super::{ControlResult, ProbeResult, ProbeStatus, Unprobed, Verification, lookout};

/// How long one machine may take for its probes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The most that the probe program prints.
const MOST: u64 = 1 << 20;

/// The most of an answer that is looked at, which is what the probe program gives.
const LONGEST: usize = 256 << 10;

/// Makes twins.
#[async_trait]
pub trait Twins: Send + Sync {
    /// A twin without this rule.
    ///
    /// # Errors
    /// `Unsupported` where none is possible; else why it could not be made.
    async fn start(&self, lifted: &Lifted) -> Result<Box<dyn Twin>>;
}

/// A twin that runs. Dropping it ends it too.
#[async_trait]
pub trait Twin: Send + Sync {
    /// Its machine.
    fn sandbox(&self) -> Arc<dyn Sandbox>;

    /// Ends it.
    async fn end(self: Box<Self>);
}

/// Verifies an environment: carries the probes of its tier out inside each of its machines, and each in a twin of the primary one
/// without the rule that it probes. `machines` are all, primary first; `allow` are the names that its profile lists; `program` is
/// the supervisor, which answers for what can be seen and reached.
///
/// # Errors
/// If probes could not be carried out in the primary machine at all. What they found is in the result, and so are other machines
/// in which none could be carried out.
pub async fn verify(
    machines: &[Arc<dyn Sandbox>],
    report: &Report,
    allow: &[String],
    program: &'static [u8],
    twins: Arc<dyn Twins>,
) -> Result<Verification> {
    let since = Instant::now();
    let failed = |error| Error::io("set canaries up", error);
    let canaries = tokio::task::spawn_blocking(Canaries::new).await.map_err(|_| stopped())?.map_err(failed)?;
    let round = Round { machines, report, allow, program, twins, canaries: &canaries };
    let first = probes(report, allow, &Ground::new(&canaries));
    let of_network = |probe: &&Probe| matches!(probe.control, Control::Twin(Lifted::Network));
    let (network, rest): (Vec<&Probe>, Vec<&Probe>) = first.iter().partition(of_network);
    let all = requests(first.iter().filter(|probe| matches!(probe.place, Place::Machine)));
    let (mut inside, mut controls, seen) =
        tokio::join!(ask_all(&round, &all), controls(&round, &rest), lookout::look(&round, &network));
    lookout::add(&mut controls, seen.controls);
    for (answers, more) in inside.iter_mut().zip(seen.inside) {
        match (answers.as_mut(), more) {
            (Ok(answers), Ok(more)) => answers.extend(more),
            (Ok(_), Err(error)) => *answers = Err(error),
            (Err(_), _) => (),
        }
    }
    let ground = Ground { canaries: &canaries, elsewhere: seen.elsewhere.as_ref(), leads: seen.leads };
    let probes = probes(report, allow, &ground);
    let mut verification = Verification { time: crate::clock::text(SystemTime::now()), ..Verification::default() };
    for (index, (machine, answers)) in machines.iter().zip(inside).enumerate() {
        match answers {
            Ok(answers) => {
                verification.machines.push(machine.name().to_owned());
                let own = probes.iter().filter(|probe| index == 0 || matches!(probe.place, Place::Machine));
                let judged = own.map(|probe| {
                    let mut result = judge(probe, &answers, &controls, index > 0);
                    let is_its = machines.len() > 1 && matches!(probe.place, Place::Machine);
                    result.machine = is_its.then(|| machine.name().to_owned());
                    result
                });
                verification.probes.extend(judged.collect::<Vec<_>>());
            }
            // Nothing can be said of an environment without its primary machine.
            Err(error) if index == 0 => return Err(error),
            Err(error) => {
                let unprobed = Unprobed { machine: machine.name().to_owned(), why: error.message().to_owned() };
                verification.unprobed.push(unprobed);
            }
        }
    }
    verification.took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    verification.settle();
    // Waits for a thread.
    let _ = tokio::task::spawn_blocking(move || drop(canaries)).await;
    Ok(verification)
}

/// The names of every probe that some environment on this host can get.
///
/// # Errors
/// If this host gives no listeners for canaries.
pub fn probe_names() -> Result<std::collections::BTreeSet<&'static str>> {
    use tierbox_core::{HostIsolation, KillDomain, Locality, Network, Tier, Tooling};
    let canaries = Canaries::new().map_err(|error| Error::io("set canaries up", error))?;
    let mut names = std::collections::BTreeSet::from(super::TOOLING);
    for host in HostIsolation::ALL {
        for network in Network::ALL {
            for locality in [Locality::Local, Locality::Remote] {
                let Ok(tier) = Tier::new(Tooling::T0, *host, *network) else { continue };
                let report = Report::bare("", tier, locality, KillDomain::Cgroup);
                names.extend(probes(&report, &["a.test".to_owned()], &Ground::new(&canaries)).iter().map(|probe| probe.id));
            }
        }
    }
    Ok(names)
}

fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "verify", "the runtime is shutting down")
}

/// What all of a verification has in common.
pub(super) struct Round<'a> {
    pub machines: &'a [Arc<dyn Sandbox>],
    pub report: &'a Report,
    pub allow: &'a [String],
    pub program: &'static [u8],
    pub twins: Arc<dyn Twins>,
    pub canaries: &'a Canaries,
}

pub(super) fn requests<'a>(probes: impl Iterator<Item = &'a Probe>) -> Vec<String> {
    let mut requests: Vec<String> = probes.flat_map(|probe| probe.requests.iter().cloned()).collect();
    requests.sort();
    requests.dedup();
    requests
}

pub(super) type Controls = BTreeMap<Lifted, Result<Answers>>;

/// What is asked for in which twin.
pub(super) fn wanted(probes: &[&Probe]) -> BTreeMap<Lifted, Vec<String>> {
    let mut wanted: BTreeMap<Lifted, Vec<String>> = BTreeMap::new();
    let mut want = |lifted: &Lifted, asked: &[String]| wanted.entry(lifted.clone()).or_default().extend_from_slice(asked);
    for probe in probes {
        match &probe.control {
            Control::Twin(lifted) => want(lifted, &probe.requests),
            Control::Twins(twins) => twins.iter().for_each(|(lifted, asked)| want(lifted, asked)),
            Control::Unneeded | Control::Impossible => (),
        }
        if let Place::Twin(lifted) = &probe.place {
            want(lifted, &probe.requests);
        }
    }
    for (lifted, asked) in &mut wanted {
        // Unless it is a gateway, a machine's own resolver is the host's in a twin, and nothing is to be asked there.
        let has_gateway = matches!(lifted, Lifted::Names(_));
        asked.retain(|request| has_gateway || !request.starts_with("dns:/"));
        asked.sort();
        asked.dedup();
    }
    wanted
}

/// What the probes find in their twins, which are made at the same time.
pub(super) async fn controls(round: &Round<'_>, probes: &[&Probe]) -> Controls {
    let mut tasks = tokio::task::JoinSet::new();
    for (lifted, asked) in wanted(probes) {
        tasks.spawn(control(lifted, asked, round.program, round.twins.clone(), round.canaries.nonce.clone()));
    }
    let mut found = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        if let Ok((lifted, answers)) = done {
            found.insert(lifted, answers);
        }
    }
    found
}

async fn control(
    lifted: Lifted,
    asked: Vec<String>,
    program: &'static [u8],
    twins: Arc<dyn Twins>,
    nonce: String,
) -> (Lifted, Result<Answers>) {
    let answers = match twins.start(&lifted).await {
        Ok(twin) => {
            let answers = match lifted {
                Lifted::Capabilities => ask_holder(twin.sandbox().as_ref(), program, &asked, &nonce).await,
                _ => ask(twin.sandbox().as_ref(), program, &asked, &nonce).await,
            };
            twin.end().await;
            answers
        }
        Err(error) => Err(error),
    };
    (lifted, answers)
}

/// Has the probe program answer inside every machine, at the same time.
pub(super) async fn ask_all(round: &Round<'_>, requests: &[String]) -> Vec<Result<Answers>> {
    let program = round.program;
    let tasks: Vec<_> = round
        .machines
        .iter()
        .map(|machine| {
            let (machine, requests, nonce) = (machine.clone(), requests.to_vec(), round.canaries.nonce.clone());
            Ended(tokio::spawn(async move { ask(machine.as_ref(), program, &requests, &nonce).await }))
        })
        .collect();
    let mut found = Vec::new();
    for mut task in tasks {
        found.push((&mut task.0).await.unwrap_or_else(|_| Err(stopped())));
    }
    found
}

/// A task that ends when nobody waits for it any more.
struct Ended<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ended<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has the probe program answer inside.
pub(super) async fn ask(sandbox: &dyn Sandbox, program: &'static [u8], requests: &[String], nonce: &str) -> Result<Answers> {
    ask_as(sandbox, program, requests, nonce, &Asker { word: "probe", user: None }).await
}

/// The same where capabilities are not reduced: root's command takes them into each of its sets, so that every set has something to
/// show. Where none of root's can be started, only the set is shown that commands have without being root's, and why.
async fn ask_holder(sandbox: &dyn Sandbox, program: &'static [u8], requests: &[String], nonce: &str) -> Result<Answers> {
    // By its number: not every machine has names.
    let holder = Asker { word: "probe-holding", user: Some("0") };
    match ask_as(sandbox, program, requests, nonce, &holder).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let mut answers = ask(sandbox, program, requests, nonce).await?;
            answers.insert(UNHELD.to_owned(), (false, error.message().to_owned()));
            Ok(answers)
        }
        asked => asked,
    }
}

/// What stands among the answers of a twin in which nobody could hold what was to be found.
const UNHELD: &str = "unheld";

/// Who asks, and by which word of the probe program.
struct Asker {
    word: &'static str,
    user: Option<&'static str>,
}

async fn ask_as(
    sandbox: &dyn Sandbox,
    program: &'static [u8],
    requests: &[String],
    nonce: &str,
    asker: &Asker,
) -> Result<Answers> {
    if requests.is_empty() {
        return Ok(Answers::new());
    }
    let path = put(sandbox, program, &program_name(nonce)).await?;
    let argv = [path.clone(), asker.word.to_owned()].into_iter().chain(requests.iter().cloned());
    let mut request = ExecRequest::new(argv).timeout(PATIENCE);
    request.user = asker.user.map(str::to_owned);
    request.output_limit = Some(tierbox_core::OutputLimit { bytes: MOST, on_exceed: tierbox_core::OnExceed::Kill });
    let result = sandbox.run(request).await;
    let _ = sandbox.remove(&GuestPath::from(path.as_str()), false).await;
    let result = result?;
    if let Outcome::NotStarted { cause: NotStartedCause::UserNotMapped | NotStartedCause::UnknownUser, .. } = result.outcome() {
        return Err(Error::unsupported("probe", "a command as that user"));
    }
    if !result.success() {
        let said = result.stderr.text();
        let message = format!("the probe program {}: {}", result.outcome(), said.chars().take(300).collect::<String>());
        return Err(Error::new(ErrorKind::Io, "probe", message));
    }
    Ok(parse(&result.stdout.text(), requests))
}

/// A name for the probe program that no other has: a machine is asked again, for what its twins showed, while it still answers.
fn program_name(nonce: &str) -> String {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    format!("tierbox-probe-{}-{}", &nonce[..12], ASKED.fetch_add(1, Ordering::Relaxed))
}

/// Puts the program where the agent may write, and returns its path: in the working directory, or in `/tmp` if that one is closed to it.
pub(super) async fn put(sandbox: &dyn Sandbox, program: &'static [u8], name: &str) -> Result<String> {
    let write = async |path: &str| {
        let options = WriteOptions { mode: Some(0o755), create_new: true };
        sandbox.write(&GuestPath::from(path), Box::new(std::io::Cursor::new(program)), options).await
    };
    let (here, elsewhere) = (format!("./{name}"), format!("/tmp/{name}"));
    let Err(error) = write(&here).await else { return Ok(here) };
    if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Io) && write(&elsewhere).await.is_ok() {
        return Ok(elsewhere);
    }
    let message = format!("its program of {} KiB cannot be written into the sandbox: {}", program.len() >> 10, error.message());
    Err(Error::new(error.kind(), "verify", message).with_help(
        "verification needs a working directory or /tmp that the agent can write, with so much room (limits.disk); or \
         verify = \"off\", which the report then says",
    ))
}

/// What comes from inside is believed only in so far as it answers what was asked.
pub(super) fn parse(text: &str, requests: &[String]) -> Answers {
    let mut answers = Answers::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, '\t');
        let (Some(request), Some(word), Some(found)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let Ok(at) = requests.binary_search_by(|asked| asked.as_str().cmp(request)) else { continue };
        let found: String = found.chars().filter(|char| !char.is_control()).take(LONGEST).collect();
        answers.insert(requests[at].clone(), (word == "yes", found));
    }
    answers
}

/// `beside` is for the machines beside the primary one.
fn judge(probe: &Probe, inside: &Answers, controls: &Controls, beside: bool) -> ProbeResult {
    let result = |status, detail, control| ProbeResult {
        id: probe.id.to_owned(),
        machine: None,
        rule: probe.rule.to_owned(),
        status,
        detail,
        control,
    };
    if beside && has_no_network(probe, inside) {
        return result(ProbeStatus::Pass, "this machine has no network".to_owned(), None);
    }
    let answers = match &probe.place {
        Place::Machine => inside,
        Place::Twin(lifted) => match controls.get(lifted) {
            Some(Ok(answers)) => answers,
            Some(Err(error)) if error.kind() == ErrorKind::Unsupported => {
                return result(ProbeStatus::ByConfiguration, "this backend makes no such sibling".to_owned(), None);
            }
            Some(Err(error)) => {
                let why = format!("the sibling could not be made: {}", error.message());
                return result(ProbeStatus::Inconclusive, why, None);
            }
            None => return result(ProbeStatus::Inconclusive, "the sibling was not made".to_owned(), None),
        },
    };
    let finding = (probe.judge)(answers);
    let (status, detail, control) = match (finding, &probe.control) {
        (Finding::Broken(detail), control) => (ProbeStatus::Fail, detail, shown(probe, control, controls).1),
        (Finding::Unclear(detail), control) => (ProbeStatus::Inconclusive, detail, shown(probe, control, controls).1),
        (Finding::Holds(detail), control) => {
            let (status, control) = shown(probe, control, controls);
            (status, detail, control)
        }
    };
    result(status, detail, control)
}

type Shown = (ProbeStatus, Option<ControlResult>);

/// What the control says about a probe that found nothing.
fn shown(probe: &Probe, control: &Control, controls: &Controls) -> Shown {
    match control {
        Control::Unneeded => (ProbeStatus::Pass, None),
        Control::Impossible => (ProbeStatus::ByConfiguration, None),
        Control::Twin(lifted) => shown_by(probe, lifted, controls),
        Control::Twins(twins) => twins
            .iter()
            .map(|(lifted, _)| shown_by(probe, lifted, controls))
            .reduce(both)
            .unwrap_or((ProbeStatus::Inconclusive, None)),
    }
}

/// What one twin says.
fn shown_by(probe: &Probe, lifted: &Lifted, controls: &Controls) -> Shown {
    let result = |found: bool, detail: String| Some(ControlResult { lifted: lifted.name().to_owned(), found, detail });
    match controls.get(lifted) {
        Some(Ok(answers)) => match (probe.judge)(&with_unasked(probe, answers)) {
            Finding::Broken(detail) if answers.contains_key(UNHELD) => (
                ProbeStatus::Pass,
                result(true, format!("{detail}; the other sets are not shown: no command can be root's here")),
            ),
            Finding::Broken(_) if !silent(probe, answers).is_empty() => {
                (ProbeStatus::Inconclusive, result(false, format!("nothing was found by {}", silent(probe, answers).join(", "))))
            }
            Finding::Broken(detail) => (ProbeStatus::Pass, result(true, detail)),
            Finding::Holds(detail) | Finding::Unclear(detail) => (ProbeStatus::Inconclusive, result(false, detail)),
        },
        Some(Err(error)) if error.kind() == ErrorKind::Unsupported => (ProbeStatus::ByConfiguration, None),
        Some(Err(error)) => {
            (ProbeStatus::Inconclusive, result(false, format!("the twin could not be made: {}", error.message())))
        }
        None => (ProbeStatus::Inconclusive, result(false, "the twin was not made".to_owned())),
    }
}

/// What two say together: each must have found it.
fn both((first, one): Shown, (second, other): Shown) -> Shown {
    let status = match (first, second) {
        (ProbeStatus::Pass, ProbeStatus::Pass) => ProbeStatus::Pass,
        (ProbeStatus::ByConfiguration, ProbeStatus::Pass | ProbeStatus::ByConfiguration)
        | (ProbeStatus::Pass, ProbeStatus::ByConfiguration) => ProbeStatus::ByConfiguration,
        _ => ProbeStatus::Inconclusive,
    };
    let control = match (one, other) {
        (Some(one), Some(other)) => Some(ControlResult {
            lifted: format!("{}; {}", one.lifted, other.lifted),
            found: one.found && other.found,
            detail: format!("{}; {}", one.detail, other.detail),
        }),
        (one, other) => one.or(other),
    };
    (status, control)
}

/// The requests that its control needs, and that found nothing there.
fn silent<'a>(probe: &'a Probe, answers: &Answers) -> Vec<&'a str> {
    let counts = |request: &str, said: &str| probe.counts.as_ref().is_none_or(|counts| counts(request, said));
    let is_silent = |request: &&String| !answers.get(*request).is_some_and(|(yes, said)| *yes && counts(request, said));
    let mut silent: Vec<&str> = probe.needed.iter().filter(is_silent).map(String::as_str).collect();
    if probe.beyond.iter().all(|request| is_silent(&request)) {
        silent.extend(probe.beyond.iter().map(String::as_str));
    }
    silent
}

/// The answers of a twin that was not asked for everything.
pub(super) fn with_unasked(probe: &Probe, answers: &Answers) -> Answers {
    let mut answers = answers.clone();
    let is_elsewhere = matches!(probe.control, Control::Twins(_));
    for request in probe.requests.iter().filter(|request| is_elsewhere || request.starts_with("dns:/")) {
        answers.entry(request.clone()).or_insert((false, "not asked".to_owned()));
    }
    answers
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::probe::catalogue::{capabilities, heard, sockets};

    /// What comes of a probe that finds nothing inside and, in its twin, these answers.
    fn status(probe: &Probe, inside: &Answers, twin: Answers) -> (ProbeStatus, String) {
        let Control::Twin(lifted) = &probe.control else { panic!("{} has no twin", probe.id) };
        let controls = Controls::from([(lifted.clone(), Ok(twin))]);
        let result = judge(probe, inside, &controls, false);
        (result.status, result.control.unwrap().detail)
    }

    #[test]
    fn a_control_that_sees_one_set_of_capabilities_alone_shows_nothing_of_the_others() {
        let probe = capabilities();
        let answers = |sets: [&str; 5]| -> Answers {
            let names = ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"];
            names.into_iter().zip(sets).map(|(set, bits)| (format!("field:{set}"), (true, bits.to_owned()))).collect()
        };
        let inside = answers(["0", "0", "0", "0", "a80425fb"]);
        let all = ["1fffeffffff"; 5];
        assert_eq!(status(&probe, &inside, answers(all)).0, ProbeStatus::Pass);
        for missing in 0..5 {
            let mut sets = all;
            // What docker gives by default is no more than may be there.
            sets[missing] = if missing == 4 { "a80425fb" } else { "0" };
            assert_eq!(status(&probe, &inside, answers(sets)).0, ProbeStatus::Inconclusive, "{missing}");
        }
        // Where no command can be root's, the one set that shows counts, and the others are not said to have been seen.
        let mut unheld = answers(["0", "0", "0", "0", "1fffeffffff"]);
        unheld.insert(UNHELD.to_owned(), (false, String::new()));
        let (found, detail) = status(&probe, &inside, unheld);
        assert!(found == ProbeStatus::Pass && detail.contains("the other sets are not shown"), "{detail}");
    }

    #[test]
    fn a_control_that_sees_one_socket_alone_shows_nothing_of_the_others() {
        let canaries = Canaries::new().unwrap();
        let probe = sockets(true, &canaries);
        let answers = |is_there: fn(usize) -> bool| -> Answers {
            let of = |(at, request): (usize, &String)| (request.clone(), (is_there(at), String::new()));
            probe.requests.iter().enumerate().map(of).collect()
        };
        let inside = answers(|_| false);
        assert_eq!(status(&probe, &inside, answers(|_| true)).0, ProbeStatus::Pass);
        assert_eq!(status(&probe, &inside, answers(|at| at != 7)).0, ProbeStatus::Inconclusive);
        assert_eq!(status(&probe, &inside, answers(|at| at == 0)).0, ProbeStatus::Inconclusive);
    }

    #[test]
    fn two_questions_to_a_machine_at_once_have_a_program_each() {
        let nonce = "0123456789abcdef";
        let (one, two) = (program_name(nonce), program_name(nonce));
        assert!(one.starts_with("tierbox-probe-0123456789ab-"), "{one}");
        assert_ne!(one, two);
    }

    /// What is heard on loopback of a twin says nothing about the host's other addresses.
    #[test]
    fn a_control_that_hears_loopback_alone_shows_nothing() {
        let requests = ["tcp:127.0.0.1:9", "tcp:192.0.2.1:9", "tcp:192.0.2.2:9"].map(str::to_owned);
        let lifted = Lifted::Network;
        let probe = heard("n.tcp", "", requests.to_vec(), Control::Twin(lifted.clone()), "NONCE").beyond_loopback();
        let answers = |said: [&str; 3]| -> Answers {
            let answer = |said: &str| (!said.is_empty(), said.to_owned());
            requests.iter().cloned().zip(said.map(answer)).collect()
        };
        let status = |twin: [&str; 3]| {
            let controls = Controls::from([(lifted.clone(), Ok(answers(twin)))]);
            judge(&probe, &answers(["", "", ""]), &controls, false).status
        };
        assert_eq!(status(["NONCE", "NONCE", "NONCE"]), ProbeStatus::Pass);
        // A bridge that went away meanwhile.
        assert_eq!(status(["NONCE", "", "NONCE"]), ProbeStatus::Pass);
        for missed in [["NONCE", "", ""], ["NONCE", "somebody", ""], ["", "", ""]] {
            assert_eq!(status(missed), ProbeStatus::Inconclusive, "{missed:?}");
        }
    }
}
