//! The twin on the host's network, and what has to be looked for beside it.
//!
//! Most often that network is this process's own, and the twin hears the canaries that stand here. An engine in a network of its own
//! (one in a virtual machine, one that is itself in a container) has another host: then canaries are opened there too, and asked for
//! once more, inside and by other twins. And where that network has no way outside, a twin with one shows what a route looks like.

use tierbox_core::{Lifted, Result, Sandbox};

use super::catalogue::{Answers, Control, Finding, Ground, Place, Probe, probes};
use super::elsewhere::Elsewhere;
use super::run::{Controls, Round, ask, ask_all, controls, requests, wanted, with_unasked};

/// What came of it.
#[derive(Default)]
pub(super) struct Seen {
    /// What its twins found.
    pub controls: Controls,
    /// The canaries on the engine's host, if that is another network.
    pub elsewhere: Option<Elsewhere>,
    /// Whether a twin with a way outside was needed, and made.
    pub leads: bool,
    /// What was found inside of that, by machine; nothing if nothing was asked for.
    pub inside: Vec<Result<Answers>>,
}

/// Looks for what these probes, whose control is that twin, must find there.
pub(super) async fn look(round: &Round<'_>, network: &[&Probe]) -> Seen {
    if network.is_empty() {
        return Seen::default();
    }
    let seen = match round.twins.start(&Lifted::Network).await {
        Ok(twin) => {
            let seen = from(round, network, twin.sandbox().as_ref()).await;
            twin.end().await;
            seen
        }
        Err(error) => Err(error),
    };
    seen.unwrap_or_else(|error| Seen { controls: Controls::from([(Lifted::Network, Err(error))]), ..Seen::default() })
}

async fn from(round: &Round<'_>, network: &[&Probe], twin: &dyn Sandbox) -> Result<Seen> {
    let asked = wanted(network).remove(&Lifted::Network).unwrap_or_default();
    let answers = ask(twin, round.program, &asked, &round.canaries.nonce).await?;
    let probe = |id: &str| network.iter().find(|probe| probe.id == id);
    let misses =
        |id: &str| probe(id).is_some_and(|probe| !matches!((probe.judge)(&with_unasked(probe, &answers)), Finding::Broken(_)));
    let (is_elsewhere, leads_nowhere) = (misses("n.tcp"), misses("n.metadata"));
    let elsewhere = match is_elsewhere {
        true => Some(Elsewhere::open(twin, round.program, round.canaries).await?),
        false => None,
    };
    let mut seen = Seen { controls: Controls::from([(Lifted::Network, Ok(answers))]), elsewhere, ..Seen::default() };
    if !is_elsewhere && !leads_nowhere {
        return Ok(seen);
    }
    let ground = Ground { canaries: round.canaries, elsewhere: seen.elsewhere.as_ref(), leads: leads_nowhere };
    let again = probes(round.report, round.allow, &ground);
    let concerned = |probe: &&Probe| {
        let is_new = is_elsewhere || matches!(probe.control, Control::Twin(Lifted::Outside));
        is_new && network.iter().any(|known| known.id == probe.id)
    };
    let again: Vec<&Probe> = again.iter().filter(concerned).collect();
    let (more, inside) = tokio::join!(controls(round, &again), inside(round, network, &again));
    seen.leads = leads_nowhere && more.get(&Lifted::Outside).is_some_and(Result::is_ok);
    seen.inside = inside;
    add(&mut seen.controls, more);
    Ok(seen)
}

/// Asks the machines for what they were not asked for before.
async fn inside(round: &Round<'_>, before: &[&Probe], again: &[&Probe]) -> Vec<Result<Answers>> {
    fn of_machines(probes: &[&Probe]) -> Vec<String> {
        requests(probes.iter().copied().filter(|probe| matches!(probe.place, Place::Machine)))
    }
    let asked = of_machines(before);
    let mut new = of_machines(again);
    new.retain(|request| !asked.contains(request));
    if new.is_empty() { Vec::new() } else { ask_all(round, &new).await }
}

/// Adds what twins found to what twins of the same kind found before. One that found nothing at all counts alone.
pub(super) fn add(all: &mut Controls, more: Controls) {
    for (lifted, found) in more {
        match (all.get_mut(&lifted), found) {
            (Some(Ok(known)), Ok(found)) => known.extend(found),
            (_, found) => drop(all.insert(lifted, found)),
        }
    }
}
