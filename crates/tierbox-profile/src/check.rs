//! What a schema cannot say: whether values make sense, and make sense together.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tierbox_core::{
    AgentPolicy, AllowRule, Error, ErrorKind, HostIsolation, Limits, Network, Tooling, looks_like_a_secret, names_a_secret,
};

use crate::diagnostic::Diagnostic;
use crate::hostpath;
use crate::inspect::{Mark, inspect, shown};
use crate::node::{Node, Place};
use crate::secret::SecretRef;
use crate::settings::{EnvValue, Settings};
use crate::surroundings::Surroundings;

/// What the supervisor and its own files need beside the writable areas.
pub(crate) const MEMORY_BESIDE_DISK: u64 = 64 << 20;

/// Finds what is wrong (errors) and doubtful (warnings); `place` tells where a key's value was written.
pub(crate) fn check(settings: &Settings, surroundings: &Surroundings, place: &dyn Fn(&str) -> Place) -> Vec<Diagnostic> {
    let mut checker = Checker { settings, surroundings, place, found: Vec::new() };
    checker.tier();
    checker.limits();
    checker.names();
    checker.environment();
    checker.network();
    checker.tools();
    checker.host_paths();
    checker.found
}

struct Checker<'a> {
    settings: &'a Settings,
    surroundings: &'a Surroundings,
    place: &'a dyn Fn(&str) -> Place,
    found: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn error(&mut self, key: &str, message: impl Into<String>, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        self.found.push(Diagnostic::error((self.place)(key), &[key.to_owned()], message).with_help(help));
    }

    fn warn(&mut self, key: &str, message: impl Into<String>, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        self.found.push(Diagnostic::warning((self.place)(key), key, message).with_help(help));
    }

    fn tier(&mut self) {
        let tier = self.settings.tier;
        let open = tier.host() == HostIsolation::H0 || tier.network() == Network::N0;
        if open && self.settings.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
            let axis = if tier.host() == HostIsolation::H0 { "H0" } else { "N0" };
            self.warn("tier", format!("{axis} without a reason"), "say in `reason` why this is acceptable; the report shows it");
        }
        for note in tier.notes() {
            self.warn("tier", note, "");
        }
    }

    fn limits(&mut self) {
        let limits = &self.settings.limits;
        for (key, is_zero) in zero_limits(limits) {
            if is_zero {
                self.error(
                    &format!("limits.{key}"),
                    format!("`{key}` of zero lets nothing run"),
                    "leave it out, or give it a value",
                );
            }
        }
        self.disk_in_memory();
    }

    /// Up to H1 the writable areas are kept in memory and count towards its limit. A machine of its own has a disk.
    fn disk_in_memory(&mut self) {
        let limits = &self.settings.limits;
        let (Some(memory), Some(disk)) = (limits.memory, limits.disk) else { return };
        let needed = disk.max.saturating_add(MEMORY_BESIDE_DISK);
        if self.settings.tier.host() <= HostIsolation::H1 && needed > memory.max {
            let show = crate::units::format_size;
            let message = format!(
                "a disk of {} does not fit into {} of memory: writable areas are kept in memory, and 64MiB must be left",
                show(disk.max),
                show(memory.max)
            );
            let help = match memory.max.checked_sub(MEMORY_BESIDE_DISK) {
                Some(most) if most > 0 => {
                    format!("lower limits.disk to {}, or raise limits.memory to {}", show(most), show(needed))
                }
                _ => format!("raise limits.memory to {}", show(needed)),
            };
            self.error("limits.disk", message, &help);
        }
    }

    fn names(&mut self) {
        if let Some(workdir) = &self.settings.workdir
            && let Err(why) = guest_path(workdir, true)
        {
            self.error("workdir", format!("{} {why}", shown(workdir)), "");
        }
        if let Some(user) = &self.settings.user
            && (user.is_empty() || user.len() > 64 || user.contains([':', '/', ' ']) || user.contains(char::is_control))
        {
            self.error("user", format!("{} is not a user's name or number", shown(user)), "");
        }
        for (key, text) in [("description", &self.settings.description), ("reason", &self.settings.reason)] {
            if text.as_deref().is_some_and(|text| text.contains(|c: char| c.is_control() && c != '\n')) {
                self.error(key, format!("`{key}` holds control characters"), "");
            }
        }
    }

    fn environment(&mut self) {
        let settings = self.settings;
        for (key, value) in &settings.env {
            let dotted = format!("env.{key}");
            if let Err(why) = env_key(key) {
                self.error(&dotted, format!("{} {why}", shown(key)), "");
            }
            if let EnvValue::Plain(text) = value {
                if text.contains('\0') {
                    self.error(&dotted, format!("the value of `{key}` holds a NUL byte"), "");
                }
                if SecretRef::parse(text).is_some_and(|reference| matches!(reference, SecretRef::Variable(_))) {
                    let message = format!("`{key}` does not look like a secret, so its value is taken as it stands");
                    self.warn(&dotted, message, "give the variable a name that ends in _KEY, _TOKEN, _SECRET or _PASSWORD");
                }
            }
        }
    }

    fn network(&mut self) {
        let settings = self.settings;
        for (index, name) in settings.allow.iter().enumerate() {
            if let Err(error) = network_name(name) {
                let help = error.help().unwrap_or_default();
                self.error(&format!("network.allow.{index}"), error.message(), help);
            }
        }
        let level = settings.tier.network();
        if !settings.allow.is_empty() && level != Network::N1 {
            let message = format!("{level} is {}, which leaves no use for `allow`", level.meaning());
            self.error("network.allow", message, "state N1 to allow these names only, or leave them out");
        }
        if settings.allow.is_empty() && level == Network::N1 {
            self.warn("network.allow", "N1 that allows no name reaches nothing", "name what is needed, or state N2");
        }
    }

    fn tools(&mut self) {
        let settings = self.settings;
        for (index, program) in settings.programs.iter().enumerate() {
            if let Err(why) = guest_path(program, true) {
                let help = "name the program by its absolute path inside, such as /usr/bin/ls";
                self.error(&format!("tools.programs.{index}"), format!("{} {why}", shown(program)), help);
            }
        }
        for (index, program) in settings.programs.iter().enumerate() {
            self.agree(&format!("tools.programs.{index}"), AgentPolicy::new(Tooling::T1, vec![program.clone()]).validate());
        }
        for (index, rule) in settings.agent.rules.iter().enumerate() {
            self.agree(&format!("tools.rules.{index}"), rule.validate());
        }
        self.agree("code", settings.code.validate());
        match (settings.tier.tooling(), settings.programs.is_empty() && settings.agent.rules.is_empty()) {
            (Tooling::T1, true) => self.warn("tools.programs", "T1 that names no program lets the agent run nothing", ""),
            (Tooling::T0, false) => self.warn("tools.programs", "T0 allows every program, so the list has no effect", ""),
            (Tooling::T2, false) => self.warn("tools.programs", "T2 allows no program, so the list has no effect", ""),
            _ => {}
        }
    }

    fn agree(&mut self, key: &str, result: tierbox_core::Result<()>) {
        if let Err(error) = result {
            self.error(key, error.message(), error.help().unwrap_or_default());
        }
    }

    fn host_paths(&mut self) {
        let settings = self.settings;
        for (index, mount) in settings.mounts.iter().enumerate() {
            self.host_path(&format!("mounts.{index}.host"), &mount.host);
            let key = format!("mounts.{index}.guest");
            if let Err(why) = guest_path(&mount.guest, true) {
                self.error(&key, format!("{} {why}", shown(&mount.guest)), "");
            } else if mount.guest.trim_end_matches('/').is_empty() {
                self.error(&key, "nothing can be mounted over the sandbox's root", "name a directory inside, such as /data");
            }
        }
        for (index, file) in settings.files.iter().enumerate() {
            self.host_path(&format!("files.{index}.host"), &file.host);
            if let Err(why) = guest_path(file.guest.as_bytes(), false) {
                self.error(&format!("files.{index}.guest"), format!("{:?} {why}", file.guest), "");
            }
        }
    }

    fn host_path(&mut self, key: &str, host: &Path) {
        if !host.is_absolute() {
            return self.error(key, format!("{} is not an absolute path", host.display()), "");
        }
        if let Err(refused) = hostpath::check_exposed(host, self.surroundings.home()) {
            return self.error(key, refused.message(), refused.help().unwrap_or_default());
        }
        if !host.exists() {
            self.warn(key, format!("{} does not exist on this host", host.display()), "");
        }
    }
}

fn zero_limits(limits: &Limits) -> [(&'static str, bool); 10] {
    let zero = |limit: Option<tierbox_core::Limit<u64>>| limit.is_some_and(|limit| limit.max == 0);
    let no_time = |limit: Option<Duration>| limit.is_some_and(|limit| limit.is_zero());
    [
        ("memory", zero(limits.memory)),
        ("cpu", zero(limits.cpu_millis)),
        ("pids", zero(limits.pids)),
        ("disk", zero(limits.disk)),
        ("inodes", zero(limits.inodes)),
        ("open-files", zero(limits.open_files)),
        ("startup", limits.startup.is_zero()),
        ("exec", no_time(limits.exec)),
        ("lifetime", no_time(limits.lifetime)),
        ("max-environments", limits.max_environments == Some(0)),
    ]
}

/// A path inside: text without NUL and `..`, at most 4096 bytes.
fn guest_path(path: impl AsRef<[u8]>, absolute: bool) -> Result<(), &'static str> {
    let path = path.as_ref();
    if path.is_empty() || path.len() > 4096 || path.contains(&0) {
        return Err("is not a path");
    }
    if absolute && !path.starts_with(b"/") {
        return Err("is not an absolute path");
    }
    if path.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err("must not contain `..`");
    }
    Ok(())
}

fn env_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() || key.len() > 256 || key.contains(['=', '\0']) || key.contains(char::is_control) {
        return Err("is not a variable's name");
    }
    Ok(())
}

fn network_name(entry: &str) -> tierbox_core::Result<()> {
    match entry.strip_prefix('@') {
        None => entry.parse::<AllowRule>().map(drop),
        Some(group) if group.is_empty() || group.contains(char::is_control) => {
            Err(Error::new(ErrorKind::InvalidProfile, "read allowed name", "\"@\" names no group"))
        }
        Some(_) => Ok(()),
    }
}

/// What a prepared layer's secrets and variables must look like. Every reference and host path is made absolute.
pub(crate) fn settle_marks(
    root: &mut Node,
    marks: &[(Vec<String>, Mark)],
    base: &Path,
    surroundings: &Surroundings,
) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    for (path, mark) in marks {
        let Some(node) = root.find_mut(path) else { continue };
        match mark {
            Mark::Secret => settle_secret(node, path, base, surroundings, &mut problems),
            Mark::HostPath => settle_path(node, path, base, surroundings, &mut problems),
            Mark::Env => {
                for (key, entry) in node.table_mut().into_iter().flatten() {
                    let by_value = entry.node.text().is_some_and(looks_like_a_secret);
                    if by_value || (names_a_secret(key) && entry.node.text() != Some("")) {
                        let path: Vec<String> = path.iter().chain([key]).cloned().collect();
                        settle_secret(&mut entry.node, &path, base, surroundings, &mut problems);
                    }
                }
            }
        }
    }
    problems
}

fn settle_secret(node: &mut Node, path: &[String], base: &Path, surroundings: &Surroundings, problems: &mut Vec<Diagnostic>) {
    let Some(text) = node.text() else { return };
    let refuse = |message: String| Diagnostic::error(node.place.clone(), path, message).with_kind(ErrorKind::InvalidProfile);
    match SecretRef::parse(text) {
        None => {
            let message = format!("`{}` holds a secret, and a profile must not: only a reference is allowed", path.join("."));
            let help = "write \"env:NAME\" for an environment variable or \"file:PATH\" for a file, and keep the secret there";
            problems.push(refuse(message).with_help(help.to_owned()));
        }
        Some(SecretRef::Variable(_)) => {}
        Some(SecretRef::File(file)) => match hostpath::absolute(file, base, surroundings) {
            Ok(file) => node.value = crate::node::Content::Text(format!("file:{}", file.display())),
            Err(why) => problems.push(refuse(format!("the file of `{}` {why}", path.join(".")))),
        },
    }
}

fn settle_path(node: &mut Node, path: &[String], base: &Path, surroundings: &Surroundings, problems: &mut Vec<Diagnostic>) {
    let Some(text) = node.text() else { return };
    match hostpath::absolute(text, base, surroundings) {
        Ok(absolute) => node.value = crate::node::Content::Text(absolute.display().to_string()),
        Err(why) => problems.push(Diagnostic::error(node.place.clone(), path, format!("{} {why}", shown(text)))),
    }
}

/// Checks a settings table that was made in code, and makes its paths absolute.
pub(crate) fn check_table(
    schema: &Value,
    backend: &str,
    table: &mut Value,
    base: &Path,
    surroundings: &Surroundings,
) -> Vec<Diagnostic> {
    let Some(inner) = schema["properties"].get(backend) else { return Vec::new() };
    let Some(mut node) = Node::from_json(table, &Place::Code) else { return Vec::new() };
    let findings = inspect(schema, inner, &node);
    let mut problems = findings.problems;
    problems.extend(settle_marks(&mut node, &findings.marks, base, surroundings));
    if let Ok(settled) = node.to_figment().deserialize::<Value>() {
        *table = settled;
    }
    for problem in &mut problems {
        problem.key = format!("{backend}.{}", problem.key);
    }
    problems
}
