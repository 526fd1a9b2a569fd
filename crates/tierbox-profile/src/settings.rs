//! A profile's values with their types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tierbox_core::{AgentSettings, CodeSettings, CopyIn, Enforce, Error, Limit, Limits, MountSpec, Tier, Verify, names_a_secret};

use crate::document::{Document, LimitDocument, LimitsDocument, Written};
use crate::secret::{Secret, SecretRef};
use crate::units;

/// The value of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvValue {
    Plain(String),
    Reference(SecretRef),
    Secret(Secret),
}

/// A profile's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub tier: Tier,
    pub backend: String,
    pub description: Option<String>,
    pub reason: Option<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub writable_mounts: bool,
    pub verify: Option<Verify>,
    pub limits: Limits,
    pub env: BTreeMap<String, EnvValue>,
    pub allow: Vec<String>,
    /// The file of the groups that `allow` names.
    pub groups: Option<PathBuf>,
    /// Whether machines of one environment may reach each other.
    pub between_machines: bool,
    pub programs: Vec<String>,
    pub agent: AgentSettings,
    pub code: CodeSettings,
    pub mounts: Vec<MountSpec>,
    pub files: Vec<CopyIn>,
    /// The table of every backend that has one.
    pub tables: BTreeMap<String, Value>,
}

/// Something wrong with the value at a path.
#[derive(Debug)]
pub(crate) struct Complaint {
    pub path: Vec<String>,
    pub message: String,
    pub help: Option<String>,
}

impl Settings {
    /// The defaults, with a tier.
    pub fn new(tier: Tier) -> Self {
        Self {
            tier,
            backend: "local".to_owned(),
            description: None,
            reason: None,
            workdir: None,
            user: None,
            writable_mounts: false,
            verify: None,
            limits: Limits::default(),
            env: BTreeMap::new(),
            allow: Vec::new(),
            groups: None,
            between_machines: true,
            programs: Vec::new(),
            agent: AgentSettings::default(),
            code: CodeSettings::default(),
            mounts: Vec::new(),
            files: Vec::new(),
            tables: BTreeMap::new(),
        }
    }

    /// The settings table of the chosen backend.
    pub fn table(&self) -> Value {
        self.tables.get(&self.backend).cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    }

    /// Every value as people write it, by dotted key.
    pub fn entries(&self) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        let mut add = |key: &str, value: String| entries.push((key.to_owned(), value));
        add("tier", self.tier.to_string());
        add("backend", self.backend.clone());
        for (key, value) in
            [("description", &self.description), ("reason", &self.reason), ("workdir", &self.workdir), ("user", &self.user)]
        {
            add(key, value.clone().unwrap_or_else(none));
        }
        add("writable-mounts", self.writable_mounts.to_string());
        add("verify", self.verify.map_or_else(none, |verify| verify.as_str().to_owned()));
        for (key, value) in limit_entries(&self.limits) {
            add(&format!("limits.{key}"), value);
        }
        for (key, value) in &self.env {
            add(&format!("env.{key}"), shown_env(value));
        }
        add("network.allow", list(&self.allow));
        add("network.groups", self.groups.as_ref().map_or_else(none, |path| path.display().to_string()));
        add("network.between-machines", self.between_machines.to_string());
        add("tools.programs", list(&self.programs));
        for (key, value) in crate::agent::entries(&self.agent, &self.code) {
            add(key, value);
        }
        add("mounts", list(self.mounts.iter().map(shown_mount)));
        add("files", list(self.files.iter().map(|file| format!("{} -> {}", file.host.display(), file.guest))));
        if let Some(table) = self.tables.get(&self.backend) {
            flatten(&self.backend, table, &mut entries);
        }
        entries
    }
}

fn none() -> String {
    "none".to_owned()
}

fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("{:?}", item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

fn shown_env(value: &EnvValue) -> String {
    match value {
        EnvValue::Plain(text) => text.clone(),
        EnvValue::Reference(reference) => reference.to_string(),
        EnvValue::Secret(secret) => secret.to_string(),
    }
}

/// A mount as people read it.
pub(crate) fn shown_mount(mount: &MountSpec) -> String {
    format!("{} -> {} ({})", mount.host.display(), mount.guest, if mount.writable { "rw" } else { "ro" })
}

fn flatten(prefix: &str, value: &Value, entries: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&format!("{prefix}.{key}"), value, entries)),
        Value::String(text) => entries.push((prefix.to_owned(), text.clone())),
        other => entries.push((prefix.to_owned(), other.to_string())),
    }
}

/// Every limit as people write it.
pub(crate) fn limit_entries(limits: &Limits) -> Vec<(&'static str, String)> {
    let limit = |limit: Option<Limit<u64>>, format: fn(u64) -> String| match limit {
        None => none(),
        Some(Limit { max, enforce: Enforce::Required }) => format(max),
        Some(Limit { max, enforce: Enforce::Best }) => format!("{} (best effort)", format(max)),
    };
    let count = |count: u64| count.to_string();
    let duration = |duration: Option<Duration>| duration.map_or_else(none, units::format_duration);
    vec![
        ("memory", limit(limits.memory, units::format_size)),
        ("cpu", limit(limits.cpu_millis, units::format_cpu)),
        ("pids", limit(limits.pids, count)),
        ("disk", limit(limits.disk, units::format_size)),
        ("inodes", limit(limits.inodes, count)),
        ("file-size", limit(limits.file_size, units::format_size)),
        ("open-files", limit(limits.open_files, count)),
        ("core-size", units::format_size(limits.core_size)),
        ("startup", units::format_duration(limits.startup)),
        ("exec", duration(limits.exec)),
        ("output", units::format_size(limits.output)),
        ("lifetime", duration(limits.lifetime)),
        ("max-environments", limits.max_environments.map_or_else(none, count)),
    ]
}

/// Gives the written values their types. What is wrong is added to `complaints`; `None` if there is no tier.
pub(crate) fn resolve(document: Document, tables: BTreeMap<String, Value>, complaints: &mut Vec<Complaint>) -> Option<Settings> {
    let mut reader = Reader { complaints };
    let tier = document.tier.and_then(|text| reader.read(&["tier"], text.parse::<Tier>()));
    let verify = document.verify.and_then(|text| reader.read(&["verify"], text.parse::<Verify>()));
    let limits = reader.limits(document.limits.unwrap_or_default());
    let network = document.network.unwrap_or_default();
    let settings = Settings::new(tier?);
    let tools = document.tools.unwrap_or_default();
    Some(Settings {
        backend: document.backend.unwrap_or(settings.backend),
        description: document.description,
        reason: document.reason,
        workdir: document.workdir,
        user: document.user,
        writable_mounts: document.writable_mounts.unwrap_or(false),
        verify,
        limits,
        env: document.env.unwrap_or_default().into_iter().map(read_env).collect(),
        allow: network.allow.unwrap_or_default(),
        groups: network.groups.map(PathBuf::from),
        between_machines: network.between_machines.unwrap_or(true),
        programs: tools.programs.unwrap_or_default(),
        agent: crate::agent::agent(tools.rules, tools.approvals, reader.complaints),
        code: crate::agent::code(document.code.unwrap_or_default(), reader.complaints),
        mounts: document.mounts.unwrap_or_default().into_iter().map(read_mount).collect(),
        files: document.files.unwrap_or_default().into_iter().map(read_file).collect(),
        tables,
        ..settings
    })
}

/// References are only looked for where a secret belongs; literal secrets were refused before.
fn read_env((key, value): (String, String)) -> (String, EnvValue) {
    let reference = names_a_secret(&key).then(|| SecretRef::parse(&value)).flatten();
    (key, reference.map_or(EnvValue::Plain(value), EnvValue::Reference))
}

fn read_mount(mount: crate::document::MountDocument) -> MountSpec {
    MountSpec { host: PathBuf::from(mount.host), guest: mount.guest, writable: mount.writable.unwrap_or(false) }
}

fn read_file(file: crate::document::FileDocument) -> CopyIn {
    let host = PathBuf::from(file.host);
    let name = || host.file_name().map(Path::new).unwrap_or(Path::new("")).into();
    CopyIn { guest: file.guest.map_or_else(name, Into::into), host }
}

struct Reader<'a> {
    complaints: &'a mut Vec<Complaint>,
}

impl Reader<'_> {
    fn read<T>(&mut self, path: &[&str], result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.complain(path, &error)).ok()
    }

    fn complain(&mut self, path: &[&str], error: &Error) {
        self.complaints.push(Complaint {
            path: path.iter().map(|step| (*step).to_owned()).collect(),
            message: error.message().to_owned(),
            help: error.help().map(str::to_owned),
        });
    }

    fn limits(&mut self, written: LimitsDocument) -> Limits {
        let default = Limits::default();
        Limits {
            memory: self.limit("memory", written.memory, units::parse_size),
            cpu_millis: self.limit("cpu", written.cpu, units::parse_cpu),
            pids: self.limit("pids", written.pids, parse_count),
            disk: self.limit("disk", written.disk, units::parse_size),
            inodes: self.limit("inodes", written.inodes, parse_count),
            file_size: self.limit("file-size", written.file_size, units::parse_size),
            open_files: self.limit("open-files", written.open_files, parse_count),
            core_size: self.value("core-size", written.core_size, units::parse_size).unwrap_or(default.core_size),
            startup: self.value("startup", written.startup, units::parse_duration).unwrap_or(default.startup),
            exec: self.value("exec", written.exec, units::parse_duration),
            output: self.value("output", written.output, units::parse_size).unwrap_or(default.output),
            lifetime: self.value("lifetime", written.lifetime, units::parse_duration),
            max_environments: self.value("max-environments", written.max_environments, parse_count),
        }
    }

    fn limit(&mut self, name: &str, written: Option<LimitDocument>, parse: fn(&str) -> Result<u64, Error>) -> Option<Limit<u64>> {
        let (max, enforce) = match written? {
            LimitDocument::Table { max, enforce } => (max, enforce),
            LimitDocument::Plain(max) => (max, None),
        };
        let max = self.value(name, Some(max), parse)?;
        Some(if enforce.as_deref() == Some("best") { Limit::best(max) } else { Limit::required(max) })
    }

    /// A value; `none` is no value.
    fn value<T>(&mut self, name: &str, written: Option<Written>, parse: fn(&str) -> Result<T, Error>) -> Option<T> {
        let text = written?.0;
        if text == "none" { None } else { self.read(&["limits", name], parse(&text)) }
    }
}

pub(crate) fn parse_count(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| {
        Error::new(
            tierbox_core::ErrorKind::InvalidInput,
            "read count",
            format!("{} is not a whole number", crate::inspect::shown(text)),
        )
    })
}
