//! What a layer above the profile weakens.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use tierbox_core::{AllowRule, Approval, ApprovalRule, Enforce, Limit, Limits, MountSpec, Network, Preset, Tooling, Verify};

use crate::agent::{shown_approval, shown_rule};
use crate::inspect::{annotated, is_at_least_as_strict, schema_at};
use crate::layer::Provenance;
use crate::settings::{EnvValue, Settings, limit_entries, shown_mount};

/// A value by which a layer above the profile weakens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weakening {
    /// The dotted key.
    pub key: String,
    /// The value before.
    pub from: String,
    /// The weaker value.
    pub to: String,
    /// Who says so.
    pub provenance: Provenance,
}

impl fmt::Display for Weakening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {} ({})", self.key, self.from, self.to, self.provenance)
    }
}

/// A key that became weaker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: String,
    pub from: String,
    pub to: String,
}

/// What is weaker after than before. Empty where everything is as strict, or stricter.
pub(crate) fn weaker(before: &Settings, after: &Settings, schema: &Value) -> Vec<Change> {
    let mut changes = Changes(Vec::new());
    if !after.tier.is_at_least(before.tier) {
        changes.add("tier", before.tier, after.tier);
    }
    changes.limits(&before.limits, &after.limits);
    changes.user(before, after);
    if after.writable_mounts && !before.writable_mounts {
        changes.add("writable-mounts", false, true);
    }
    changes.verify(before, after);
    changes.network(before, after);
    changes.programs(before, after);
    changes.rules(before, after);
    changes.approvals(before, after);
    changes.code(before, after);
    changes.host_paths(before, after);
    changes.loader_variables(before, after);
    changes.table(before, after, schema);
    changes.0
}

struct Changes(Vec<Change>);

impl Changes {
    fn add(&mut self, key: impl Into<String>, from: impl fmt::Display, to: impl fmt::Display) {
        self.0.push(Change { key: key.into(), from: from.to_string(), to: to.to_string() });
    }

    fn limits(&mut self, before: &Limits, after: &Limits) {
        let weaker = [
            limit(before.memory, after.memory),
            limit(before.cpu_millis, after.cpu_millis),
            limit(before.pids, after.pids),
            limit(before.disk, after.disk),
            limit(before.inodes, after.inodes),
            limit(before.file_size, after.file_size),
            limit(before.open_files, after.open_files),
            after.core_size > before.core_size,
            after.startup > before.startup,
            duration(before.exec, after.exec),
            after.output > before.output,
            duration(before.lifetime, after.lifetime),
            limit(before.max_environments.map(Limit::required), after.max_environments.map(Limit::required)),
        ];
        for ((is_weaker, (name, from)), (_, to)) in weaker.into_iter().zip(limit_entries(before)).zip(limit_entries(after)) {
            if is_weaker {
                self.add(format!("limits.{name}"), from, to);
            }
        }
    }

    /// Only leaving root for somebody else is known to be stricter.
    fn user(&mut self, before: &Settings, after: &Settings) {
        let is_root = |user: &Option<String>| matches!(user.as_deref(), Some("root" | "0"));
        let leaves_root = is_root(&before.user) && !is_root(&after.user);
        if before.user != after.user && !leaves_root {
            let shown = |user: &Option<String>| user.clone().unwrap_or_else(|| "the backend's default".to_owned());
            self.add("user", shown(&before.user), shown(&after.user));
        }
    }

    /// What nobody states counts as `once`, which it is at least.
    fn verify(&mut self, before: &Settings, after: &Settings) {
        let strictness = |settings: &Settings| match settings.verify {
            Some(Verify::Off) => 0,
            None | Some(Verify::Once) => 1,
            Some(Verify::Always) => 2,
        };
        if strictness(after) < strictness(before) {
            let shown = |settings: &Settings| settings.verify.map_or("the backend's default", Verify::as_str);
            self.add("verify", shown(before), shown(after));
        }
    }

    fn network(&mut self, before: &Settings, after: &Settings) {
        let all_before = before.tier.network() == Network::N0;
        for name in &after.allow {
            if !all_before && !before.allow.iter().any(|old| covers(old, name)) {
                self.add("network.allow", "not allowed", name);
            }
        }
        if after.between_machines && !before.between_machines {
            self.add("network.between-machines", false, true);
        }
        let named = after.allow.iter().any(|name| name.starts_with('@'));
        if !all_before && named && before.groups != after.groups {
            let shown =
                |groups: &Option<std::path::PathBuf>| groups.as_ref().map_or("none".into(), |path| path.display().to_string());
            self.add("network.groups", shown(&before.groups), shown(&after.groups));
        }
    }

    fn programs(&mut self, before: &Settings, after: &Settings) {
        let all_before = before.tier.tooling() == Tooling::T0;
        for program in &after.programs {
            if !all_before && !before.programs.contains(program) {
                self.add("tools.programs", "not allowed", program);
            }
        }
    }

    fn rules(&mut self, before: &Settings, after: &Settings) {
        let all_before = before.tier.tooling() == Tooling::T0;
        for rule in &after.agent.rules {
            if !all_before && !before.agent.rules.contains(rule) {
                self.add("tools.rules", "not allowed", shown_rule(rule));
            }
        }
    }

    /// Rules are taken in order, so that a new one may let through what a later one stops: only the same ones, or new ones
    /// that refuse before all others, are known to be no weaker.
    fn approvals(&mut self, before: &Settings, after: &Settings) {
        let (old, new) = (&before.agent, &after.agent);
        let strictness = |preset| [Preset::Ci, Preset::Dev, Preset::Prod].iter().position(|known| *known == preset);
        if strictness(new.preset) < strictness(old.preset) {
            self.add(
                "tools.approvals.preset",
                format!("{:?}", old.preset).to_lowercase(),
                format!("{:?}", new.preset).to_lowercase(),
            );
        }
        let refusals = new.approvals.len().saturating_sub(old.approvals.len());
        let refuses = |rule: &ApprovalRule| matches!(rule.action, Approval::Reject | Approval::Terminate);
        if new.approvals[refusals..] != old.approvals || !new.approvals[..refusals].iter().all(refuses) {
            let shown = |rules: &[ApprovalRule]| format!("[{}]", rules.iter().map(shown_approval).collect::<Vec<_>>().join(", "));
            self.add("tools.approvals.rules", shown(&old.approvals), shown(&new.approvals));
        }
    }

    fn code(&mut self, before: &Settings, after: &Settings) {
        let (old, new) = (&before.code, &after.code);
        for runtime in new.runtimes.iter().filter(|runtime| !old.runtimes.contains(runtime)) {
            self.add("code.runtimes", "not allowed", &runtime.name);
        }
        let weaker = [
            ("code.max-time", duration(old.max_time, new.max_time)),
            ("code.memory", limit(old.memory.map(Limit::required), new.memory.map(Limit::required))),
            ("code.file-size", limit(old.file_size.map(Limit::required), new.file_size.map(Limit::required))),
            ("code.open-files", limit(old.open_files.map(Limit::required), new.open_files.map(Limit::required))),
        ];
        let entries = |settings: &Settings| crate::agent::entries(&settings.agent, &settings.code);
        let value =
            |settings: &Settings, key: &str| entries(settings).into_iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        for (key, _) in weaker.into_iter().filter(|(_, is_weaker)| *is_weaker) {
            self.add(key, value(before, key).unwrap_or_default(), value(after, key).unwrap_or_default());
        }
    }

    fn host_paths(&mut self, before: &Settings, after: &Settings) {
        let held =
            |new: &MountSpec, old: &MountSpec| new.host == old.host && new.guest == old.guest && (old.writable || !new.writable);
        for new in &after.mounts {
            if !before.mounts.iter().any(|old| held(new, old)) {
                let same = before.mounts.iter().find(|old| old.host == new.host && old.guest == new.guest);
                self.add("mounts", same.map_or("not mounted".to_owned(), shown_mount), shown_mount(new));
            }
        }
        for new in &after.files {
            if !before.files.iter().any(|old| old.host == new.host) {
                self.add("files", "not copied", new.host.display());
            }
        }
    }

    /// Under T1 a loader variable puts other code into an allowed program.
    fn loader_variables(&mut self, before: &Settings, after: &Settings) {
        if before.tier.tooling() == Tooling::T0 {
            return;
        }
        for (key, value) in after.env.iter().filter(|(key, _)| key.starts_with("LD_")) {
            if before.env.get(key) != Some(value) {
                let is_plain = matches!(value, EnvValue::Plain(_));
                self.add(format!("env.{key}"), "not set", if is_plain { "set" } else { "set to a secret" });
            }
        }
    }

    /// What a backend's setting means is the backend's to say: one that is neither marked tunable nor
    /// ranked may hold the wall up.
    fn table(&mut self, before: &Settings, after: &Settings, schema: &Value) {
        let backend = &after.backend;
        let empty = Value::Null;
        let old = before.tables.get(backend).unwrap_or(&empty);
        for (key, value) in after.tables.get(backend).and_then(Value::as_object).into_iter().flatten() {
            let path = [backend.clone(), key.clone()];
            let harmless = schema_at(schema, &path).is_some_and(|setting| {
                annotated(schema, setting, "x-tunable") || is_at_least_as_strict(schema, setting, old.get(key), value)
            });
            if old.get(key) != Some(value) && !harmless {
                let from = old.get(key).map_or("not set".to_owned(), Value::to_string);
                self.add(path.join("."), from, value);
            }
        }
    }
}

fn limit<T: Ord>(before: Option<Limit<T>>, after: Option<Limit<T>>) -> bool {
    match (before, after) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(before), Some(after)) => {
            after.max > before.max || (before.enforce == Enforce::Required && after.enforce == Enforce::Best)
        }
    }
}

fn duration(before: Option<Duration>, after: Option<Duration>) -> bool {
    limit(before.map(Limit::required), after.map(Limit::required))
}

/// Whether everything that `new` allows is allowed by `old`.
fn covers(old: &str, new: &str) -> bool {
    match (old.parse::<AllowRule>(), new.parse::<AllowRule>()) {
        (Ok(old), Ok(new)) => new.is_within(&old),
        // Groups, and what is refused elsewhere.
        _ => old == new,
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_wildcard_covers_what_is_below_it() {
        assert!(covers("*.example.org", "a.example.org"));
        assert!(covers("*.example.org", "*.b.example.org"));
        assert!(covers("*.example.org:443", "A.example.org:443"));
        for (old, new) in [
            ("*.example.org", "example.org"),
            ("*.example.org", "evilexample.org"),
            ("*.example.org", "*.org"),
            ("a.example.org", "a.example.org:22"),
            ("a.example.org", "*.example.org"),
        ] {
            assert!(!covers(old, new), "{old} {new}");
        }
    }
}
