//! The tables `[tools]` and `[code]`: what binds the agent, and code tasks.

use std::time::Duration;

use tierbox_core::{AgentSettings, Approval, ApprovalRule, CodeSettings, Error, Preset, ProgramRule, Runtime, Sensitive};

use crate::document::{ApprovalDocument, ApprovalsDocument, CodeDocument, RuleDocument, Written};
use crate::settings::{Complaint, parse_count};
use crate::units;

/// Gives the rules and approvals their types. Words outside their lists were refused by the schema.
pub(crate) fn agent(
    rules: Option<Vec<RuleDocument>>,
    approvals: Option<ApprovalsDocument>,
    complaints: &mut Vec<Complaint>,
) -> AgentSettings {
    let default = AgentSettings::default();
    let approvals = approvals.unwrap_or_default();
    AgentSettings {
        rules: rules.unwrap_or_default().into_iter().map(rule).collect(),
        preset: match approvals.preset.as_deref() {
            Some("prod") => Preset::Prod,
            Some("dev") => Preset::Dev,
            _ => default.preset,
        },
        approvals: approvals.rules.unwrap_or_default().into_iter().map(approval).collect(),
        approval_timeout: read(&["tools", "approvals", "timeout"], approvals.timeout, units::parse_duration, complaints)
            .unwrap_or(default.approval_timeout),
    }
}

fn rule(written: RuleDocument) -> ProgramRule {
    ProgramRule {
        program: written.program,
        first: written.first.unwrap_or_default(),
        flags: written.flags.unwrap_or_default(),
        options: written.options.unwrap_or_default(),
        operands: written.operands.unwrap_or_default(),
        min_operands: written.min_operands.unwrap_or(0),
        max_operands: written.max_operands,
        env: written.env.unwrap_or_default(),
        children: written.children.unwrap_or(false),
        allow: written.allow.unwrap_or_default(),
        refuse: written.refuse.unwrap_or_default(),
    }
}

fn approval(written: ApprovalDocument) -> ApprovalRule {
    let tool = match written.tool.as_deref() {
        Some("exec") => Some(Sensitive::Exec),
        Some("code") => Some(Sensitive::Code),
        Some("write") => Some(Sensitive::Write),
        _ => None,
    };
    let action = match written.action.as_str() {
        "allow" => Approval::Allow,
        "ask" => Approval::Ask,
        "reject" => Approval::Reject,
        // The strictest, should a word ever get past the schema.
        _ => Approval::Terminate,
    };
    ApprovalRule { tool, pattern: written.pattern, action }
}

/// Gives the settings of code tasks their types.
pub(crate) fn code(written: CodeDocument, complaints: &mut Vec<Complaint>) -> CodeSettings {
    let default = CodeSettings::default();
    let commands = written.commands.unwrap_or_default();
    let custom = |name: &String| {
        let known = commands.get(name)?;
        let mut command = known.command.iter().cloned();
        let programs = command.next().into_iter().collect();
        Some(Runtime {
            name: name.clone(),
            programs,
            args: command.collect(),
            extension: known.extension.clone().unwrap_or_default(),
        })
    };
    let listed =
        written.runtimes.map(|names| names.iter().map(|name| custom(name).unwrap_or_else(|| Runtime::named(name))).collect());
    // A command of one's own is a runtime, whether or not it is listed.
    let mut runtimes: Vec<Runtime> = listed.unwrap_or(default.runtimes);
    for name in commands.keys() {
        runtimes.retain(|runtime| runtime.name != *name);
        runtimes.extend(custom(name));
    }
    let time = units::parse_duration;
    let path = |key| ["code", key];
    CodeSettings {
        runtimes,
        base_dir: written.base_dir.unwrap_or(default.base_dir),
        expiry: read(&path("expiry"), written.expiry, time, complaints).unwrap_or(default.expiry),
        time: read(&path("time"), written.time, time, complaints),
        max_time: read(&path("max-time"), written.max_time, time, complaints),
        memory: read(&path("memory"), written.memory, units::parse_size, complaints),
        file_size: read(&path("file-size"), written.file_size, units::parse_size, complaints),
        open_files: read(&path("open-files"), written.open_files, parse_count, complaints),
    }
}

/// A value; `none` is no value.
fn read<T>(
    path: &[&str],
    written: Option<Written>,
    parse: impl Fn(&str) -> Result<T, Error>,
    complaints: &mut Vec<Complaint>,
) -> Option<T> {
    let text = written?.0;
    if text == "none" {
        return None;
    }
    match parse(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            complaints.push(Complaint {
                path: path.iter().map(|step| (*step).to_owned()).collect(),
                message: error.message().to_owned(),
                help: error.help().map(str::to_owned),
            });
            None
        }
    }
}

/// Both tables as `tierbox config show` prints them.
pub(crate) fn entries(agent: &AgentSettings, code: &CodeSettings) -> Vec<(&'static str, String)> {
    let duration = |time: Option<Duration>| time.map_or_else(|| "none".to_owned(), units::format_duration);
    let size = |size: Option<u64>| size.map_or_else(|| "none".to_owned(), units::format_size);
    let preset = match agent.preset {
        Preset::Ci => "ci",
        Preset::Dev => "dev",
        Preset::Prod => "prod",
    };
    let names = |items: Vec<String>| format!("[{}]", items.join(", "));
    vec![
        ("tools.rules", names(agent.rules.iter().map(shown_rule).collect())),
        ("tools.approvals.preset", preset.to_owned()),
        ("tools.approvals.timeout", units::format_duration(agent.approval_timeout)),
        ("tools.approvals.rules", names(agent.approvals.iter().map(shown_approval).collect())),
        ("code.runtimes", names(code.runtimes.iter().map(shown_runtime).collect())),
        ("code.base-dir", code.base_dir.clone()),
        ("code.expiry", units::format_duration(code.expiry)),
        ("code.time", duration(code.time)),
        ("code.max-time", duration(code.max_time)),
        ("code.memory", size(code.memory)),
        ("code.file-size", size(code.file_size)),
        ("code.open-files", code.open_files.map_or_else(|| "none".to_owned(), |count| count.to_string())),
    ]
}

/// A rule as people read it.
pub(crate) fn shown_rule(rule: &ProgramRule) -> String {
    let options = rule.flags.len() + rule.options.len();
    let children = if rule.children { ", may start programs" } else { "" };
    format!("{} with {options} options and {} patterns{children}", rule.program, rule.operands.len())
}

/// A rule on approvals as people read it.
pub(crate) fn shown_approval(rule: &ApprovalRule) -> String {
    format!("{} {:?}: {}", rule.tool.map_or("any", Sensitive::as_str), rule.pattern, rule.action.as_str())
}

fn shown_runtime(runtime: &Runtime) -> String {
    format!("{:?}", runtime.name)
}
