//! The escape corpus: what hostile programs try, and how it must end.
//!
//! After each attack the host's canaries are checked, and the sandbox must still work. An attack that cannot be tried is
//! skipped with the reason, never passed.

use std::future::Future;

use tierbox_core::Capabilities;

use crate::case::{Case, Need, Verdict, ensure_eq, skip};
use crate::subject::Subject;

mod between;
mod canary;
mod control;
mod egress;
mod files;
mod kernel;
mod load;
mod network;
mod processes;
mod quota;

pub use canary::Canary;

macro_rules! attacks {
    ($area:literal: $($id:ident [$($need:ident),*] $clause:literal;)*) => {
        pub(super) fn cases() -> Vec<crate::case::Case> {
            vec![$(super::attack(concat!("escape::", $area, "::", stringify!($id)), $clause, &[$(crate::case::Need::$need),*], $id)),*]
        }
    };
}
use attacks;

/// An attack with the checks that follow it.
fn attack<F, R>(name: &'static str, clause: &'static str, needs: &[Need], run: F) -> Case
where
    F: Fn(Subject, Canary) -> R + Send + Sync + Clone + 'static,
    R: Future<Output = Verdict> + Send + 'static,
{
    Case::new(name, clause, needs, move |subject: Subject| {
        let run = run.clone();
        async move {
            let canary = Canary::new()?;
            run(subject.clone(), canary.clone()).await?;
            canary.check()?;
            ensure_eq!(subject.text("echo works").await?, "works", "the next command after the attack");
            Ok(())
        }
    })
}

/// A virtual machine has a kernel of its own, and with it `/proc`, `/sys`, `/dev` and daemons: root there may use all of it, and its
/// terminals are its own.
fn needs_the_hosts_kernel(s: &Subject) -> Verdict {
    if s.has_own_kernel() { skip("the machine has a kernel of its own") } else { Ok(()) }
}

/// Every attack there is.
pub fn all() -> Vec<Case> {
    [
        files::cases(),
        quota::cases(),
        processes::cases(),
        load::cases(),
        kernel::cases(),
        between::cases(),
        network::cases(),
        egress::cases(),
        control::cases(),
    ]
    .concat()
}

/// The attacks for a set of capabilities.
pub fn cases(capabilities: &Capabilities) -> Vec<Case> {
    all().into_iter().filter(|case| case.is_met(capabilities)).collect()
}
