//! The keys of a profile as they are written: the source of the JSON Schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A profile of tierbox: how to isolate code, and with what.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "tierbox profile")]
pub(crate) struct Document {
    /// Another profile whose values count where this one is silent: its name, or a path relative to this file.
    #[expect(dead_code, reason = "followed before the layers are merged")]
    pub extends: Option<String>,
    /// The isolation that must be enforced: tooling T0-T2, host H0-H3, network N0-N2; a higher digit is stricter.
    #[schemars(extend("pattern" = "^T[0-2]\\.H[0-3]\\.N[0-2]$", "x-expects" = "a tier such as \"T0.H1.N2\""))]
    pub tier: Option<String>,
    /// The backend that makes the machines. Default: "local".
    pub backend: Option<String>,
    /// One line for people.
    pub description: Option<String>,
    /// Why H0 or N0 is acceptable here. `tierbox config validate` asks for it, and the report shows it.
    pub reason: Option<String>,
    /// The directory where commands start and relative paths begin, inside. Default: the backend's own.
    pub workdir: Option<String>,
    /// The user of commands and files: a name or a number, inside. Default: the backend's own, unprivileged where it can be.
    pub user: Option<String>,
    /// Whether the command line may mount directories of the host writable (`--mount DIR:rw`). Default: false.
    pub writable_mounts: Option<bool>,
    /// When the isolation is verified from inside: "always", "once" (and reused while nothing of the profile, the host or
    /// tierbox changes) or "off". Default: "once" on local and docker, "always" elsewhere.
    #[schemars(extend("pattern" = "^(always|once|off)$", "x-expects" = "\"always\", \"once\" or \"off\""))]
    pub verify: Option<String>,
    /// Variables of every command. One whose name says that it is a secret takes a reference: env:NAME or file:PATH.
    #[schemars(extend("x-env" = true))]
    pub env: Option<BTreeMap<String, String>>,
    /// Limits of one environment.
    pub limits: Option<LimitsDocument>,
    /// Network rules.
    pub network: Option<NetworkDocument>,
    /// What the tooling axis allows.
    pub tools: Option<ToolsDocument>,
    /// Code tasks.
    pub code: Option<CodeDocument>,
    /// Directories of the host that are visible inside.
    pub mounts: Option<Vec<MountDocument>>,
    /// Files and directories of the host that are copied in after the start.
    pub files: Option<Vec<FileDocument>>,
}

/// Limits. One that is written as a plain value must be enforced, or the start is refused; written as
/// `{ max = VALUE, enforce = "best" }` it is enforced as well as the host can, and the report says how. "none" takes a
/// limit away.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub(crate) struct LimitsDocument {
    /// Memory of a machine, writable areas included. Default: none.
    #[schemars(schema_with = "limit_size")]
    pub memory: Option<LimitDocument>,
    /// CPUs of a machine: 1.5, or "1500m". Default: none.
    #[schemars(schema_with = "limit_cpu")]
    pub cpu: Option<LimitDocument>,
    /// Processes and threads of a machine. Default: none.
    #[schemars(schema_with = "limit_count")]
    pub pids: Option<LimitDocument>,
    /// Bytes that may be written to a machine's writable areas. Default: none.
    #[schemars(schema_with = "limit_size")]
    pub disk: Option<LimitDocument>,
    /// Files and directories that may be made in a machine's writable areas. Default: none.
    #[schemars(schema_with = "limit_count")]
    pub inodes: Option<LimitDocument>,
    /// The largest file that a process may write. Default: none.
    #[schemars(schema_with = "limit_size")]
    pub file_size: Option<LimitDocument>,
    /// Open files of a process. Default: the host's own.
    #[schemars(schema_with = "limit_count")]
    pub open_files: Option<LimitDocument>,
    /// The largest core dump. Default: 0.
    #[schemars(schema_with = "size")]
    pub core_size: Option<Written>,
    /// The time that a start may take. Default: 60s.
    #[schemars(schema_with = "duration")]
    pub startup: Option<Written>,
    /// The time that a command may take unless the call says otherwise. Default: none.
    #[schemars(schema_with = "duration_or_none")]
    pub exec: Option<Written>,
    /// Bytes of each output stream that a collected command retains. Default: 10MiB.
    #[schemars(schema_with = "size")]
    pub output: Option<Written>,
    /// The life of the whole environment. Default: none while its owner lives, 24h for `tierbox up`.
    #[schemars(schema_with = "duration_or_none")]
    pub lifetime: Option<Written>,
    /// Environments of this backend that may exist at once on this host. Default: none.
    #[schemars(schema_with = "count_or_none")]
    pub max_environments: Option<Written>,
}

/// Network rules.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Network")]
pub(crate) struct NetworkDocument {
    /// For N1: the names that can be reached, as `[scheme://]NAME[:PORT]` or `*.NAME` for all below it, such as
    /// "index.example.org", "https://*.files.example.org:8443" or "tcp://git.example.org:22"; "@GROUP" stands for the names
    /// of a group.
    pub allow: Option<Vec<String>>,
    /// A TOML file in which each key is a group's name and each value a list of names: `python = ["index.example.org"]`.
    #[schemars(extend("x-path" = true))]
    pub groups: Option<String>,
    /// Whether the machines of one environment may reach each other, as far as the backend's own files (a compose file, a
    /// Vagrantfile) join them. `false` is refused where it cannot be enforced. Default: true.
    pub between_machines: Option<bool>,
}

/// What the tooling axis allows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Tools")]
pub(crate) struct ToolsDocument {
    /// For T1: absolute paths of the programs that the agent may run. Name only programs that cannot start others.
    pub programs: Option<Vec<String>>,
    /// For T1: programs that the agent may run with certain arguments, each with examples that are checked.
    pub rules: Option<Vec<RuleDocument>>,
    /// Consent to what the agent does: commands, code, writes.
    pub approvals: Option<ApprovalsDocument>,
}

/// What T1 lets the agent do with one program. In patterns `*` stands for any text, `?` for one character, `#` for a number.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Rule")]
pub(crate) struct RuleDocument {
    /// The program's absolute path inside.
    pub program: String,
    /// Arguments that must come first, as they stand.
    pub first: Option<Vec<String>>,
    /// Options without a value, such as "-s" or "--silent". Single letters may be run together.
    pub flags: Option<Vec<String>>,
    /// Options with a value, and the pattern of the value.
    pub options: Option<BTreeMap<String, String>>,
    /// Patterns of the other arguments. Default: none may be given.
    pub operands: Option<Vec<String>>,
    /// The fewest other arguments. Default: 0.
    #[serde(default)]
    #[schemars(schema_with = "any_count")]
    pub min_operands: Option<usize>,
    /// The most other arguments. Default: any number.
    #[serde(default)]
    #[schemars(schema_with = "any_count")]
    pub max_operands: Option<usize>,
    /// Variables that the agent may set for it.
    pub env: Option<Vec<String>>,
    /// Whether the program may start programs itself. The kernel then lets it execute the named programs and their loader, and by the
    /// loader any other file: weaker than without. Default: false, it executes nothing.
    pub children: Option<bool>,
    /// Examples: arguments that the rule must allow. At least one.
    pub allow: Option<Vec<Vec<String>>>,
    /// Examples: arguments that the rule must refuse. At least one.
    pub refuse: Option<Vec<Vec<String>>>,
}

/// Consent to what the agent does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Approvals")]
pub(crate) struct ApprovalsDocument {
    /// Where no rule fits: "ci" allows, "dev" asks and refuses without an answer, "prod" terminates the run. Default: "ci".
    #[schemars(extend("enum" = ["ci", "dev", "prod"], "x-expects" = "\"ci\", \"dev\" or \"prod\""))]
    pub preset: Option<String>,
    /// How long an answer is waited for. Default: 60s.
    #[schemars(schema_with = "duration")]
    pub timeout: Option<Written>,
    /// The first rule that fits decides.
    pub rules: Option<Vec<ApprovalDocument>>,
}

/// What happens to the actions that fit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Approval")]
pub(crate) struct ApprovalDocument {
    /// The kind of action: a command, a code task, a file that is changed. Default: all of them.
    #[schemars(extend("enum" = ["exec", "code", "write"], "x-expects" = "\"exec\", \"code\" or \"write\""))]
    pub tool: Option<String>,
    /// Over the command with its arguments joined by spaces, the task's runtime, or the path. `*` stands for any text.
    pub pattern: String,
    /// What happens.
    #[schemars(extend("enum" = ["allow", "ask", "reject", "terminate"], "x-expects" = "\"allow\", \"ask\", \"reject\" or \"terminate\""))]
    pub action: String,
}

/// Code tasks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Code")]
pub(crate) struct CodeDocument {
    /// The runtimes that tasks may use. Default: python3, python (python3 where only that exists), node, bash and sh.
    pub runtimes: Option<Vec<String>>,
    /// How to run a runtime that is not known: its name, and what runs it.
    pub commands: Option<BTreeMap<String, RuntimeDocument>>,
    /// The directory of the tasks' directories, inside. Default: .tierbox-code below the working directory.
    pub base_dir: Option<String>,
    /// The age, counted from its last run, at which a task's directory goes. Default: 24h.
    #[schemars(schema_with = "duration")]
    pub expiry: Option<Written>,
    /// The time of a task that sets none. Default: limits.exec.
    #[schemars(schema_with = "duration_or_none")]
    pub time: Option<Written>,
    /// The most time that a task may ask for. Default: none.
    #[schemars(schema_with = "duration_or_none")]
    pub max_time: Option<Written>,
    /// Address space of each process of a task that sets none. Default: none beside the machine's memory.
    #[schemars(schema_with = "size_or_none")]
    pub memory: Option<Written>,
    /// The largest file that a process of a task may write where the task sets none. Default: none beside the machine's.
    #[schemars(schema_with = "size_or_none")]
    pub file_size: Option<Written>,
    /// Open files of each process of a task that sets none. Default: none beside the machine's.
    #[schemars(schema_with = "count_or_none")]
    pub open_files: Option<Written>,
}

/// What runs a language.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Runtime")]
pub(crate) struct RuntimeDocument {
    /// The program and its arguments before the file with the code.
    pub command: Vec<String>,
    /// The extension of the file with the code, without the dot. Default: none.
    pub extension: Option<String>,
}

/// A directory of the host that is visible inside.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "Mount")]
pub(crate) struct MountDocument {
    /// The path on the host, relative to this file; `~/` is the home directory.
    #[schemars(extend("x-path" = true))]
    pub host: String,
    /// The absolute path inside.
    pub guest: String,
    /// Whether the sandbox may change it. Default: false.
    pub writable: Option<bool>,
}

/// A file or directory of the host that is copied in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "File")]
pub(crate) struct FileDocument {
    /// The path on the host, relative to this file; `~/` is the home directory.
    #[schemars(extend("x-path" = true))]
    pub host: String,
    /// The path inside, relative to the working directory. Default: the name it has on the host.
    pub guest: Option<String>,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum LimitDocument {
    /// Every limit that has a value: layers are brought to this form before they are merged.
    Table {
        /// The value.
        max: Written,
        /// `required` or `best`.
        enforce: Option<String>,
    },
    /// `none`, or a value from before the merge.
    Plain(Written),
}

/// A number or a text, as a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written(pub String);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WrittenVisitor)
    }
}

struct WrittenVisitor;

impl de::Visitor<'_> for WrittenVisitor {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a string")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
        Ok(Written(text.to_owned()))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }
}

// Only so that the derive has something to name; every field says its own schema.
impl JsonSchema for Written {
    fn schema_name() -> Cow<'static, str> {
        "Value".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number"] })
    }
}

impl JsonSchema for LimitDocument {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}

const SIZE: &str = "a size such as \"512MiB\"";
const DURATION: &str = "a duration such as \"10m\"";
const COUNT: &str = "a whole number";
const CPU: &str = "CPUs such as 1.5 or \"1500m\"";

fn size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"], "minimum": 0, "pattern": "^[0-9.]+([KMGT]i?B|kB|B)?$", "x-expects": SIZE })
}

fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^([0-9.]+(d|h|ms|m|s) ?)+$", "x-expects": DURATION })
}

fn duration_or_none(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^(none|([0-9.]+(d|h|ms|m|s) ?)+)$", "x-expects": format!("{DURATION} or \"none\"") })
}

fn any_count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "x-expects": COUNT })
}

fn size_or_none(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"], "minimum": 1, "pattern": "^(none|[0-9.]+([KMGT]i?B|kB|B)?)$", "x-expects": format!("{SIZE} or \"none\"") })
}

fn count_or_none(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string"], "minimum": 1, "pattern": "^none$", "x-expects": format!("{COUNT} or \"none\"") })
}

fn limit_size(generator: &mut SchemaGenerator) -> Schema {
    limit(size(generator), SIZE)
}

fn limit_cpu(_: &mut SchemaGenerator) -> Schema {
    limit(json_schema!({ "type": ["number", "string"], "minimum": 0, "pattern": "^[0-9.]+m?$", "x-expects": CPU }), CPU)
}

fn limit_count(_: &mut SchemaGenerator) -> Schema {
    limit(json_schema!({ "type": "integer", "minimum": 1, "x-expects": COUNT }), COUNT)
}

fn limit(value: Schema, expects: &str) -> Schema {
    let table = json_schema!({
        "type": "object",
        "properties": {
            "max": value,
            "enforce": {
                "description": "What happens where the host cannot enforce it: \"required\" refuses the start, \"best\" \
                                goes on and says so. Default: \"required\".",
                "type": "string",
                "enum": ["required", "best"]
            }
        },
        "required": ["max"],
        "additionalProperties": false
    });
    let none = json_schema!({ "const": "none" });
    json_schema!({ "anyOf": [value, none, table], "x-expects": format!("{expects}, a table with `max`, or \"none\"") })
}
