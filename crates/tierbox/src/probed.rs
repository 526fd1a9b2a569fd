//! Which decisions of a gateway verification caused, and not what runs inside.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tierbox_core::{Decision, Protocol};
#[cfg(target_os = "linux")]
use tierbox_verify::{is_own_name as is_own, names_asked};

/// What a lasting verification ends with until its end is known.
const LASTING: Duration = Duration::from_secs(3600);

/// When verification was under way, and what it asks for.
#[derive(Debug, Default)]
pub(crate) struct Probed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    times: Vec<RangeInclusive<SystemTime>>,
    /// Names of the profile's that it asks a resolver for, once in each machine.
    names: Vec<String>,
    machines: usize,
}

impl Probed {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifications that are over.
    pub fn add(&self, times: impl IntoIterator<Item = RangeInclusive<SystemTime>>) {
        self.state().times.extend(times);
    }

    /// What is asked of an environment with these names, in each of its machines.
    pub fn asks(&self, allow: &[String], machines: usize) {
        let mut state = self.state();
        (state.names, state.machines) = (names_asked(allow), machines);
    }

    /// When it was under way.
    pub fn times(&self) -> Vec<(SystemTime, SystemTime)> {
        self.state().times.iter().map(|time| (*time.start(), *time.end())).collect()
    }

    /// A verification begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> Lasting<'_> {
        let from = SystemTime::now();
        self.state().times.push(from..=from + LASTING);
        Lasting { probed: self, from }
    }

    /// Marks what verification asked for: names of its own, and each of the profile's as often as it asks.
    pub fn mark(&self, decisions: &mut [Decision]) {
        let state = self.state();
        let mut asked: BTreeMap<(usize, String, Option<String>), usize> = BTreeMap::new();
        for decision in decisions {
            decision.verification = state.time_of(decision.time).is_some_and(|time| {
                let most = if decision.machine.is_some() { 1 } else { state.machines };
                let is_asked = decision.protocol == Protocol::Dns && state.names.contains(&decision.name);
                is_own(&decision.name)
                    || (is_asked && {
                        let count = asked.entry((time, decision.name.clone(), decision.machine.clone())).or_default();
                        *count += 1;
                        *count <= most
                    })
            });
        }
    }
}

impl State {
    fn time_of(&self, time: SystemTime) -> Option<usize> {
        // Records have milliseconds.
        let brief = Duration::from_millis(1);
        self.times.iter().position(|range| (*range.start() - brief..=*range.end() + brief).contains(&time))
    }
}

/// Nothing is verified from here.
#[cfg(not(target_os = "linux"))]
fn is_own(_: &str) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn names_asked(_: &[String]) -> Vec<String> {
    Vec::new()
}

/// A verification that is under way.
pub(crate) struct Lasting<'a> {
    probed: &'a Probed,
    from: SystemTime,
}

impl Drop for Lasting<'_> {
    fn drop(&mut self) {
        let mut state = self.probed.state();
        if let Some(time) = state.times.iter_mut().rev().find(|time| *time.start() == self.from) {
            *time = self.from..=SystemTime::now();
        }
    }
}

#[cfg(test)]
mod unit {
    use tierbox_core::Verdict;

    use super::*;

    fn decision(name: &str, protocol: Protocol, at: SystemTime) -> Decision {
        Decision {
            time: at,
            sandbox: "e".to_owned(),
            machine: None,
            id: 1,
            protocol,
            name: name.to_owned(),
            address: None,
            port: 53,
            verdict: Verdict::Refused,
            rule: String::new(),
            sent: 0,
            received: 0,
            verification: false,
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_agent_asks_while_it_is_verified_is_the_agents() {
        let probed = Probed::default();
        probed.asks(&["index.test".to_owned(), "*.files.test:8080".to_owned()], 1);
        let now = SystemTime::now();
        probed.add(Some(now..=now + Duration::from_secs(2)));
        let cases = [
            ("index.test", Protocol::Dns, now, true),
            // Verification asks once.
            ("index.test", Protocol::Dns, now, false),
            ("tierbox.files.test", Protocol::Dns, now, true),
            ("secret.evil.test", Protocol::Dns, now, false),
            ("index.test", Protocol::Http, now, false),
            ("other.tierbox.invalid", Protocol::Tls, now, true),
            ("other.tierbox.invalid", Protocol::Tls, now + Duration::from_secs(9), false),
            ("127.0.0.1:8080", Protocol::Http, now, true),
            ("127.0.0.1.x.test", Protocol::Http, now, false),
        ];
        let mut decisions: Vec<_> = cases.iter().map(|(name, protocol, at, _)| decision(name, *protocol, *at)).collect();
        probed.mark(&mut decisions);
        for (decision, (name, _, _, is_probe)) in decisions.iter().zip(cases) {
            assert_eq!(decision.verification, is_probe, "{name}");
        }
    }

    #[test]
    fn a_verification_lasts_until_it_is_over() {
        let probed = Probed::default();
        let lasting = probed.begin();
        let later = SystemTime::now() + Duration::from_secs(60);
        assert!(probed.state().time_of(later).is_some());
        drop(lasting);
        assert!(probed.state().time_of(later).is_none() && probed.times().len() == 1);
    }
}
