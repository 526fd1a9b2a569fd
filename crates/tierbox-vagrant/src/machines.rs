//! The machines of a Vagrantfile: which there are, which are wanted, and how they are called.

use serde::{Deserialize, Serialize};
use tierbox_core::Result;

use crate::settings::{invalid, is_machine_name};

/// More machines than anybody boots on one host.
const MAX_MACHINES: usize = 256;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name in Vagrant.
    pub name: String,
    /// Its name for people: without the suffix that makes it unique, unless that would be another machine's.
    pub shown: String,
}

/// The machines to start, and the one that comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// What is named to `vagrant up`; empty for what it starts by itself.
    pub named: Vec<String>,
    /// The machine that commands go to.
    pub primary: Machine,
    /// Whether nobody said which one that is, and there are several.
    pub is_guess: bool,
}

/// The machines that a Vagrantfile defines, in its order.
///
/// # Errors
/// `InvalidProfile` if there is none, too many, or one with a name that tierbox cannot use.
pub fn defined(names: &[String], suffix: &str) -> Result<Vec<Machine>> {
    if names.is_empty() {
        return Err(invalid("the Vagrantfile defines no machine"));
    }
    if names.len() > MAX_MACHINES {
        return Err(invalid(format!("the Vagrantfile defines {} machines; at most {MAX_MACHINES} are taken", names.len())));
    }
    if let Some(name) = names.iter().find(|name| !is_machine_name(name)) {
        return Err(invalid(format!("the Vagrantfile defines a machine named {name:?}, which cannot be a name here")));
    }
    let short = |name: &str| name.strip_suffix(suffix).filter(|short| !short.is_empty()).map(str::to_owned);
    let shown = |name: &str| match short(name) {
        Some(cut) if !names.iter().any(|other| other != name && (*other == cut || short(other) == Some(cut.clone()))) => cut,
        _ => name.to_owned(),
    };
    Ok(names.iter().map(|name| Machine { name: name.clone(), shown: shown(name) }).collect())
}

/// A machine by a name that a person gave: an exact match wins, else the name without its suffix.
///
/// # Errors
/// `InvalidProfile`, listing the names there are.
fn find<'a>(machines: &'a [Machine], name: &str, suffix: &str, key: &str) -> Result<&'a Machine> {
    if let Some(exact) = machines.iter().find(|machine| machine.name == name) {
        return Ok(exact);
    }
    let matching: Vec<&Machine> =
        machines.iter().filter(|machine| machine.shown == name || machine.name.strip_suffix(suffix) == Some(name)).collect();
    let there = || machines.iter().map(|machine| machine.shown.as_str()).collect::<Vec<_>>().join(", ");
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(invalid(format!("{key} names {name:?}, and the Vagrantfile defines {}", there()))),
        several => {
            let names: Vec<&str> = several.iter().map(|machine| machine.name.as_str()).collect();
            Err(invalid(format!("{key} names {name:?}, which could be any of {}", names.join(", "))))
        }
    }
}

/// What a profile asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The machine that commands go to.
    pub primary: Option<&'a str>,
    /// The machines to start; empty for those that start by themselves.
    pub wanted: &'a [String],
    /// The suffix that makes names unique.
    pub suffix: &'a str,
}

/// What to start of the defined machines, of which those in `idle` start only when they are named (`autostart: false`).
///
/// # Errors
/// `InvalidProfile` for a name that is no machine's, or several's, and where the primary one would not start.
pub fn choose(machines: &[Machine], idle: &[String], asked: Asked<'_>) -> Result<Chosen> {
    let Asked { primary, wanted, suffix } = asked;
    let mut named: Vec<String> = Vec::new();
    for name in wanted {
        let machine = find(machines, name, suffix, "vagrant.machines")?;
        if !named.contains(&machine.name) {
            named.push(machine.name.clone());
        }
    }
    let starts = |machine: &&Machine| match named.as_slice() {
        [] => !idle.contains(&machine.name),
        named => named.contains(&machine.name),
    };
    let started: Vec<&Machine> = machines.iter().filter(starts).collect();
    let first = match (primary, started.first()) {
        (Some(name), _) => find(machines, name, suffix, "vagrant.primary")?,
        (None, Some(first)) => first,
        (None, None) => {
            let there: Vec<&str> = machines.iter().map(|machine| machine.shown.as_str()).collect();
            let there = there.join(", ");
            return Err(invalid(format!(
                "none of the Vagrantfile's machines starts by itself: name some of {there} in vagrant.machines"
            )));
        }
    };
    if !starts(&first) {
        let why = if named.is_empty() {
            "which the Vagrantfile starts only when it is named (`autostart: false`): name it in vagrant.machines"
        } else {
            "which vagrant.machines leaves out"
        };
        return Err(invalid(format!("vagrant.primary is {:?}, {why}", first.shown)));
    }
    Ok(Chosen { primary: first.clone(), is_guess: primary.is_none() && started.len() > 1, named })
}

#[cfg(test)]
mod unit {
    use super::*;

    const SUFFIX: &str = "-0a1b2c3d";

    fn choose(machines: &[Machine], primary: Option<&str>, wanted: &[String], suffix: &str) -> Result<Chosen> {
        super::choose(machines, &[], Asked { primary, wanted, suffix })
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn machines(names: &[&str]) -> Vec<Machine> {
        defined(&owned(names), SUFFIX).unwrap()
    }

    fn shown(names: &[&str]) -> Vec<String> {
        machines(names).into_iter().map(|machine| machine.shown).collect()
    }

    #[test]
    fn the_suffix_is_not_shown_unless_names_would_clash() {
        assert_eq!(shown(&["attacker-0a1b2c3d", "victim"]), ["attacker", "victim"]);
        assert_eq!(shown(&["web-0a1b2c3d", "web"]), ["web-0a1b2c3d", "web"]);
        assert_eq!(shown(&["-0a1b2c3d"].map(|_| "x-0a1b2c3d")), ["x"]);
    }

    #[test]
    fn an_exact_match_wins_and_what_is_not_there_lists_what_is() {
        let two = machines(&["web-0a1b2c3d", "web"]);
        assert_eq!(choose(&two, Some("web"), &[], SUFFIX).unwrap().primary.name, "web");
        assert_eq!(choose(&two, Some("web-0a1b2c3d"), &[], SUFFIX).unwrap().primary.name, "web-0a1b2c3d");
        let pair = machines(&["attacker", "victim"]);
        let error = choose(&pair, Some("gateway"), &[], SUFFIX).unwrap_err();
        assert!(error.message().contains("attacker, victim"), "{error}");
        let twice = [Machine { name: "a".into(), shown: "x".into() }, Machine { name: "b".into(), shown: "x".into() }];
        assert!(choose(&twice, Some("x"), &[], SUFFIX).unwrap_err().message().contains("any of a, b"));
    }

    #[test]
    fn the_first_is_primary_where_nobody_says_and_that_is_a_guess() {
        let pair = machines(&["attacker", "victim"]);
        let chosen = choose(&pair, None, &[], SUFFIX).unwrap();
        assert!(chosen.is_guess && chosen.primary.name == "attacker" && chosen.named.is_empty());
        assert!(!choose(&machines(&["default"]), None, &[], SUFFIX).unwrap().is_guess);
        let subset = choose(&pair, None, &["victim".into()], SUFFIX).unwrap();
        assert_eq!((subset.primary.name.as_str(), subset.named.len(), subset.is_guess), ("victim", 1, false));
        assert!(choose(&pair, Some("attacker"), &["victim".into()], SUFFIX).is_err());
    }

    #[test]
    fn machines_that_start_only_when_they_are_named_are_known_before_anything_boots() {
        let pair = machines(&["attacker", "victim"]);
        let idle = owned(&["attacker"]);
        let asked = |primary, wanted| super::choose(&pair, &idle, Asked { primary, wanted, suffix: SUFFIX });
        let chosen = asked(None, &[]).unwrap();
        assert_eq!((chosen.primary.name.as_str(), chosen.named.len(), chosen.is_guess), ("victim", 0, false));
        let error = asked(Some("attacker"), &[]).unwrap_err();
        assert!(error.message().contains("name it in vagrant.machines"), "{error}");
        assert_eq!(asked(Some("attacker"), &owned(&["attacker"])).unwrap().primary.name, "attacker");
        let error = super::choose(&pair, &owned(&["attacker", "victim"]), Asked::default()).unwrap_err();
        assert!(error.message().contains("attacker, victim"), "{error}");
    }

    #[test]
    fn hostile_and_empty_lists_are_refused() {
        assert!(defined(&[], SUFFIX).is_err());
        assert!(defined(&owned(&["--all"]), SUFFIX).is_err());
        let many: Vec<String> = (0..300).map(|number| format!("m{number}")).collect();
        assert!(defined(&many, SUFFIX).is_err());
    }
}
