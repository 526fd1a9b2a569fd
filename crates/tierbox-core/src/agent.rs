//! What a profile says of its agent beside the tier: T1's rules for programs, and approvals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What T1 lets the agent do with one program: the options and operands that may be given, and examples of what is meant.
///
/// Patterns are compared with the whole text: `*` stands for any text, `?` for one character, `#` for a number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ProgramRule {
    /// The program's absolute path inside.
    pub program: String,
    /// Arguments that must come first, as they stand.
    pub first: Vec<String>,
    /// Options without a value, as they are written: `-s`, `--silent`. Single letters may be run together.
    pub flags: Vec<String>,
    /// Options with a value, and the pattern of the value: `--max-time = "#"`.
    pub options: BTreeMap<String, String>,
    /// Patterns of the other arguments; one of them must fit each.
    pub operands: Vec<String>,
    /// The fewest other arguments.
    pub min_operands: usize,
    /// The most other arguments; any number where `None`.
    pub max_operands: Option<usize>,
    /// Variables that the agent may set for it.
    pub env: Vec<String>,
    /// Whether it may start programs itself: named ones, and by their loader any other, which the kernel cannot tell apart. Weaker
    /// than a rule without it, under which the kernel lets it execute nothing.
    pub children: bool,
    /// Arguments that this rule must allow.
    pub allow: Vec<Vec<String>>,
    /// Arguments that this rule must refuse.
    pub refuse: Vec<Vec<String>>,
}

/// What the agent does that may need somebody's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// A command. Patterns see its arguments, joined by spaces.
    Exec,
    /// A code task. Patterns see its runtime.
    Code,
    /// A file that is written or removed. Patterns see its path.
    Write,
}

impl Sensitive {
    /// Its name, as in a profile.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Code => "code",
            Self::Write => "write",
        }
    }
}

/// What happens to a sensitive action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// It is done.
    Allow,
    /// Somebody is asked; without an answer in time it is refused.
    Ask,
    /// It is refused, and the agent may go on.
    Reject,
    /// It is refused, and so is everything that the agent does from now on.
    Terminate,
}

impl Approval {
    /// Its name, as in a profile.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Reject => "reject",
            Self::Terminate => "terminate",
        }
    }
}

/// What happens where no rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything that the tier allows is done. The default.
    #[default]
    Ci,
    /// Somebody is asked; refused without an answer.
    Dev,
    /// The run is terminated.
    Prod,
}

impl Preset {
    /// What it does to a sensitive action.
    pub fn approval(self) -> Approval {
        match self {
            Self::Ci => Approval::Allow,
            Self::Dev => Approval::Ask,
            Self::Prod => Approval::Terminate,
        }
    }
}

/// What happens to the actions that fit. The first rule that fits decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ApprovalRule {
    /// The kind of action; all of them where `None`.
    #[serde(default)]
    pub tool: Option<Sensitive>,
    /// A pattern over what is done (see [`Sensitive`]): `*` stands for any text, `?` for one character, `#` for a number. A rule that
    /// allows does not mean a command with variables of its own or as another user; every other rule means what comes along too:
    /// variables, user, directory, input, code, files and contents.
    pub pattern: String,
    /// What happens.
    pub action: Approval,
}

/// What binds the agent beside the tier and the named programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct AgentSettings {
    /// T1: programs with the arguments they may be given.
    pub rules: Vec<ProgramRule>,
    /// What happens to sensitive actions that no rule fits.
    pub preset: Preset,
    /// Rules on sensitive actions.
    pub approvals: Vec<ApprovalRule>,
    /// How long an answer is waited for. 60 s by default.
    pub approval_timeout: Duration,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self { rules: Vec::new(), preset: Preset::Ci, approvals: Vec::new(), approval_timeout: Duration::from_secs(60) }
    }
}
