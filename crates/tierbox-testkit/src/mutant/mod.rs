//! Sandboxes that are broken on purpose: each breaks one promise, and the cases that prove that promise must fail.
//!
//! A mutant is a layer over a real sandbox, so everything but the one promise is as real as under test.

mod catalogue;
mod environment;
mod handle;
mod sandbox;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use tierbox_core::Environment;

pub use catalogue::{Fault, mutants};

use crate::case::{Case, Fail, Verdict};
use crate::subject::{Factory, Subject};
use crate::{conformance, subject};

/// A way to break a promise, and the cases that must notice.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// What it does wrong.
    pub fault: Fault,
    /// Cases that it must fail, as `<area>::<id>`.
    pub breaks: &'static [&'static str],
}

impl Mutant {
    /// Its name, in snake case.
    pub fn name(&self) -> String {
        let mut name = String::new();
        for letter in format!("{:?}", self.fault).chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }

    /// Puts the layer over an environment.
    pub fn wrap(&self, environment: Arc<dyn Environment>) -> Arc<dyn Environment> {
        Arc::new(environment::Broken::new(environment, self.fault, true))
    }

    /// Puts the layer over everything that a factory starts. `first` is an environment that a fault may give out again.
    pub fn wrap_factory(&self, factory: Arc<dyn Factory>, first: Arc<dyn Environment>) -> Arc<dyn Factory> {
        Arc::new(environment::BrokenFactory::new(factory, first, self.fault))
    }

    /// Runs the cases that it must fail on a real environment.
    ///
    /// # Errors
    /// [`Fail::Broken`] naming a case that passed all the same: that case proves nothing. Skipped if none of the cases can be
    /// run on this environment.
    pub async fn prove(&self, environment: Arc<dyn Environment>, factory: Arc<dyn Factory>) -> Verdict {
        let real = environment.primary();
        let mut tried = 0;
        for case in self.cases() {
            if !case.is_met(real.capabilities()) {
                continue;
            }
            match self.verdict(&case, environment.clone(), factory.clone()).await? {
                Err(Fail::Broken(_)) => tried += 1,
                Ok(()) => {
                    return Err(Fail::Broken(format!(
                        "{} passes on a sandbox that breaks its promise: \"{}\"",
                        case.name, case.clause
                    )));
                }
                Err(Fail::Skipped { .. }) => (),
            }
        }
        if tried == 0 { crate::case::skip("no case of this mutant can be run here") } else { Ok(()) }
    }

    fn cases(&self) -> Vec<Case> {
        let mut all = conformance::all();
        all.extend(conformance::refusals());
        self.breaks.iter().filter_map(|name| all.iter().find(|case| case.local_name() == *name).cloned()).collect()
    }

    async fn verdict(&self, case: &Case, environment: Arc<dyn Environment>, factory: Arc<dyn Factory>) -> Verdict<Verdict> {
        // The directory is made by the real sandbox, so that no case fails for want of one.
        let mut subject = Subject::new(environment.clone(), factory.clone()).await?;
        subject.environment = self.wrap(environment.clone());
        subject.sandbox = subject.environment.primary();
        subject.factory = self.wrap_factory(factory, environment);
        subject.patience = Duration::from_secs(2);
        let limit = Duration::from_secs(20);
        Ok(match subject::within(limit, "the end of the case", case.run(subject)).await {
            Ok(verdict) => verdict,
            Err(fail) => Err(fail),
        })
    }
}

/// The cases, as `<area>::<id>`, that no mutant breaks.
pub fn unproved() -> Vec<String> {
    let broken: std::collections::BTreeSet<&str> = mutants().iter().flat_map(|mutant| mutant.breaks.iter().copied()).collect();
    let mut all = conformance::all();
    all.extend(conformance::refusals());
    all.iter().map(|case| case.local_name().to_owned()).filter(|name| !broken.contains(name.as_str())).collect()
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;

    use super::*;

    /// Cases that no mutant breaks. This list may only become shorter.
    const UNPROVED: &[&str] = &[];

    #[test]
    fn every_case_is_proved_by_a_mutant() {
        assert_eq!(unproved(), UNPROVED);
    }

    #[test]
    fn mutants_name_cases_that_exist() {
        let mut all = conformance::all();
        all.extend(conformance::refusals());
        let names: BTreeSet<&str> = all.iter().map(Case::local_name).collect();
        for mutant in mutants() {
            for case in mutant.breaks {
                assert!(names.contains(case), "{} breaks {case}, which is no case", mutant.name());
            }
        }
    }

    #[test]
    fn names_are_stable_and_unique() {
        let all = [conformance::all(), conformance::refusals(), crate::escape::all()].concat();
        let names: BTreeSet<&str> = all.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "two cases have one name");
        assert!(names.iter().all(|name| name.split("::").count() == 3), "a name is not <marker>::<area>::<id>");
        assert!(conformance::all().len() >= 80, "the suite has shrunk");
    }
}
