//! The conformance suite: what every backend promises, made from its capabilities.

use std::collections::BTreeSet;

use tierbox_core::Capabilities;

use crate::case::{Case, Need};

macro_rules! cases {
    ($area:literal: $($id:ident [$($need:ident),*] $clause:literal;)*) => {
        pub(super) fn cases() -> Vec<crate::case::Case> {
            vec![$(crate::case::Case::new(
                concat!("conformance::", $area, "::", stringify!($id)),
                $clause,
                &[$(crate::case::Need::$need),*],
                $id,
            )),*]
        }
    };
}

mod archives;
mod cancellation;
mod concurrency;
mod confine;
mod cwd;
mod detached;
mod dial;
mod env;
mod exec;
mod files;
mod files_edges;
mod leftovers;
mod lifecycle;
mod limits;
mod outcome;
mod output;
mod pty;
mod signals;
mod stdin;
mod streaming;
mod timeouts;
mod undeclared;
mod users;

pub(crate) use archives::{archive, entry};

pub(crate) use limits::{hold, memory as limit_memory};

/// Every case there is, whatever it needs.
pub fn all() -> Vec<Case> {
    [
        exec::cases(),
        outcome::cases(),
        streaming::cases(),
        stdin::cases(),
        env::cases(),
        cwd::cases(),
        users::cases(),
        confine::cases(),
        timeouts::cases(),
        cancellation::cases(),
        leftovers::cases(),
        signals::cases(),
        pty::cases(),
        output::cases(),
        files::cases(),
        files_edges::cases(),
        archives::cases(),
        limits::cases(),
        lifecycle::cases(),
        concurrency::cases(),
        dial::cases(),
        detached::cases(),
    ]
    .concat()
}

/// The cases for a set of capabilities: those whose needs are declared, and for each capability that is not declared the
/// case that it is refused before any side effect.
///
/// Where a sandbox declares more than the set, the refusal's case runs the positive cases of that capability instead, so
/// nothing that is declared goes untested.
pub fn cases(capabilities: &Capabilities) -> Vec<Case> {
    let mut cases: Vec<Case> = all().into_iter().filter(|case| case.is_met(capabilities)).collect();
    let missing: BTreeSet<Need> = Need::ALL.iter().copied().filter(|need| !need.is_met(capabilities)).collect();
    cases.extend(missing.iter().filter_map(|need| undeclared::case(*need, missing.clone())));
    cases
}

/// The cases that a capability which is not declared is refused, for every capability that can be refused.
pub fn refusals() -> Vec<Case> {
    let every: BTreeSet<Need> = Need::ALL.iter().copied().collect();
    Need::ALL.iter().filter_map(|need| undeclared::case(*need, every.clone())).collect()
}
