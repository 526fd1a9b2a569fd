//! The Vagrant backend on real Vagrant: conformance and escapes on a machine of libvirt that all cases share, and what only whole
//! environments show.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "vagrant/around.rs"]
mod around;
#[cfg(target_os = "linux")]
#[path = "code_tasks/mod.rs"]
mod cases;
#[cfg(target_os = "linux")]
#[path = "vagrant/code.rs"]
mod code;
#[cfg(target_os = "linux")]
#[path = "vagrant/keeper.rs"]
mod keeper;
#[cfg(target_os = "linux")]
#[path = "vagrant/lifecycle.rs"]
mod lifecycle;
#[cfg(target_os = "linux")]
#[path = "vagrant/lxc.rs"]
mod lxc;
#[cfg(target_os = "linux")]
#[path = "vagrant/machines.rs"]
mod machines;
#[cfg(target_os = "linux")]
#[path = "vagrant/named.rs"]
mod named;
#[cfg(target_os = "linux")]
#[path = "vagrant/world.rs"]
mod world;

/// What takes minutes on an emulated processor.
#[cfg(target_os = "linux")]
const SLOW: &[&str] = &["load::e27_a_line_of_a_gibibyte"];

/// A case mostly waits, and the machine has one processor.
#[cfg(target_os = "linux")]
const AT_ONCE: usize = 3;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with};

    match support::again::role().as_deref() {
        Some("keeper") => return keeper::main(),
        Some("starter") => return lifecycle::starter(),
        Some("named") => return named::main(),
        Some("around") => return around::main(),
        _ => {}
    }
    let factory = Arc::new(keeper::Shared::default());
    let escapes = || Suite::escape(minimum::vagrant_libvirt(), factory.clone());
    let suites = [
        Suite::conformance(minimum::vagrant_libvirt(), factory.clone()).variant("vm_required"),
        escapes().without(SLOW).variant("vm_required"),
        escapes().only(SLOW).variant("slow::vm_required"),
    ]
    .map(|suite| suite.by_area(AT_ONCE).required(support::REQUIRED).expected(include_str!("vagrant/expected.toml")));
    let others = [machines::all(), lifecycle::all(), code::all(), named::all(), lxc::all(), around::all()].concat_trials();
    run_with(&Arguments::from_args(), &suites, others).exit_code()
}

#[cfg(target_os = "linux")]
trait ConcatTrials {
    fn concat_trials(self) -> Vec<libtest_mimic::Trial>;
}

#[cfg(target_os = "linux")]
impl<const N: usize> ConcatTrials for [Vec<libtest_mimic::Trial>; N] {
    fn concat_trials(self) -> Vec<libtest_mimic::Trial> {
        self.into_iter().flatten().collect()
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
