//! What the tier rests on, for people.

use tierbox_core::{Applied, EnvironmentSpec, KillDomain, LimitReport, Locality, Mechanism, Report};

use crate::BACKEND;
use crate::guest::Prepared;
use crate::image::Image;
use crate::memory::Memory;
use crate::role::Role;
use crate::start::Plan;

/// The report of an environment.
pub(crate) fn make(
    spec: &EnvironmentSpec,
    plan: &Plan,
    image: &Image,
    memory: &Memory,
    facts: &[Prepared],
    role: Option<&Role>,
) -> Report {
    let machines: Vec<String> =
        memory.machines.iter().map(|machine| format!("{} is {}", machine.name, machine.instance)).collect();
    let mut notes: Vec<String> = spec.tier.notes().into_iter().map(str::to_owned).collect();
    notes.push(format!("image {}, {}", image.id, machines.join(", ")));
    notes.extend(role.map(Role::told));
    notes.extend(facts.iter().zip(&memory.machines).flat_map(|(facts, machine)| remarks(facts, &machine.name)));
    Report {
        profile: spec.profile.clone(),
        tier: spec.tier,
        backend: BACKEND.to_owned(),
        locality: Locality::Remote,
        kill_domain: KillDomain::Cgroup,
        mechanisms: mechanisms(plan, facts),
        limits: LimitReport::of_processes_alone(&spec.limits),
        mounts: Vec::new(),
        parts: Vec::new(),
        copied_in: Vec::new(),
        weakened: spec.weakened.clone(),
        reason: spec.reason.clone(),
        notes,
    }
}

fn mechanisms(plan: &Plan, facts: &[Prepared]) -> Vec<Mechanism> {
    let mechanism = |name: &str, applied, detail: String| Mechanism { name: name.to_owned(), applied, detail };
    let mut all = vec![
        mechanism("virtual machine", Applied::Enforced, "an instance of EC2".to_owned()),
        mechanism("commands by SSM", Applied::Enforced, format!("as {}, each in a cgroup of its own", plan.user)),
    ];
    let by: Vec<&str> = facts.iter().map(|facts| facts.door.by.as_str()).collect();
    let closed = facts.iter().all(|facts| facts.door.holds());
    all.push(match facts.iter().any(|facts| facts.door.is_root) {
        true => mechanism(
            "metadata closed",
            Applied::Absent,
            "the user can become root, whom nothing in the machine binds".to_owned(),
        ),
        false if closed => {
            mechanism("metadata closed", Applied::Enforced, format!("to everybody but root, by {}", by.join(", ")))
        }
        false => mechanism("metadata closed", Applied::Absent, "it answers the user".to_owned()),
    });
    all
}

fn remarks(facts: &Prepared, machine: &str) -> Vec<String> {
    let mut remarks = Vec::new();
    if !facts.door.has_metadata {
        remarks
            .push(format!("{machine}: the metadata service answers nobody, so that its closing could not be tested against it"));
    }
    if !facts.has_timer {
        remarks.push(format!(
            "{machine}: its timer does not run, so that only the tag ExpiresAt tells when it is not wanted any more"
        ));
    }
    remarks
}
