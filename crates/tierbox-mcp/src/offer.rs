//! The tools that are offered, by what the agent may do.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};
use tierbox::code::CodeSettings;
use tierbox::{AgentSandbox, Sensitive, Tooling};

/// The tools for an agent. One whose every call would be refused is not offered.
pub(crate) fn tools(agent: &AgentSandbox, code: &CodeSettings) -> Vec<Tool> {
    let tooling = agent.tooling();
    let mut tools = Vec::new();
    if tooling == Tooling::T0 && agent.may(Sensitive::Code) {
        tools.push(run_code(code));
        tools.push(get_files());
    }
    if tooling == Tooling::T0 && agent.may(Sensitive::Write) {
        tools.push(write_file());
        tools.push(cleanup());
    }
    if tooling <= Tooling::T1 && agent.may(Sensitive::Exec) {
        tools.push(exec(agent));
    }
    if tooling <= Tooling::T1 {
        tools.extend([read_file(), list_directory(), status()]);
    }
    tools
}

fn tool(name: &'static str, description: String, schema: Value, annotations: ToolAnnotations) -> Tool {
    let schema: JsonObject = schema.as_object().cloned().unwrap_or_default();
    Tool::new(name, description, Arc::new(schema)).with_annotations(annotations)
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn looks() -> ToolAnnotations {
    ToolAnnotations::new().read_only(true).open_world(false)
}

fn acts() -> ToolAnnotations {
    ToolAnnotations::new().read_only(false).destructive(true).open_world(false)
}

fn contents() -> Value {
    json!({
        "description": "text, or {\"base64\": …} for bytes that are no text",
        "anyOf": [
            { "type": "string" },
            { "type": "object", "properties": { "base64": { "type": "string" } }, "required": ["base64"], "additionalProperties": false }
        ]
    })
}

fn timeout() -> Value {
    json!({ "type": "number", "exclusiveMinimum": 0, "description": "kill it after so many seconds" })
}

fn run_code(code: &CodeSettings) -> Tool {
    let runtimes: Vec<&str> = code.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
    let description = format!(
        "Runs code in a sandbox and returns what it printed, how it ended, and the files it made (name, size, SHA-256). Each \
         task has a directory of its own, in which it starts. Tasks of one session share a directory, which stays between \
         them. Read files that it made with get_files and the task_hash. Runtimes: {}.",
        runtimes.join(", ")
    );
    let properties = json!({
        "code": { "type": "string", "description": "the code" },
        "runtime": { "type": "string", "enum": runtimes, "default": "python" },
        "session": { "type": "string", "description": "a name; tasks of one session share their directory" },
        "files": { "type": "object", "additionalProperties": contents(), "description": "input files by their relative path" },
        "env": { "type": "object", "additionalProperties": { "type": "string" }, "description": "environment variables" },
        "stdin": { "type": "string", "description": "what it reads from standard input" },
        "timeout_seconds": timeout(),
        "cpu_seconds": { "type": "number", "exclusiveMinimum": 0, "description": "most CPU time of each process" },
        "memory_bytes": { "type": "integer", "minimum": 1, "description": "most address space of each process" },
        "private_dir": { "type": "boolean", "default": true, "description": "false: start in the sandbox's working directory" }
    });
    tool("run_code", description, object(&["code"], properties), acts())
}

fn get_files() -> Tool {
    let properties = json!({
        "task_hash": { "type": "string", "description": "as run_code returned it" },
        "name": { "type": "string", "description": "one file, by its path below the task's directory; all of them otherwise" }
    });
    let description = "Returns the files of a task that run_code ran, with their contents; names and sizes alone where they are too large together.".to_owned();
    tool("get_files", description, object(&["task_hash"], properties), looks())
}

fn cleanup() -> Tool {
    let properties = json!({
        "older_than_hours": { "type": "number", "minimum": 0, "description": "default: the profile's expiry; 0 removes all" }
    });
    tool("cleanup", "Removes the directories of old tasks and idle sessions.".to_owned(), object(&[], properties), acts())
}

fn exec(agent: &AgentSandbox) -> Tool {
    let named = match agent.tooling() {
        Tooling::T1 => {
            let programs = agent.policy().programs().join(", ");
            let examples = agent.policy().examples();
            let examples =
                if examples.is_empty() { String::new() } else { format!(" Allowed are, for example: {}.", examples.join("; ")) };
            format!(" Only these programs, by these very paths, and without writing files: {programs}.{examples}")
        }
        _ => " There is no shell between: to use one, run [\"/bin/sh\", \"-c\", …].".to_owned(),
    };
    let properties = json!({
        "argv": { "type": "array", "items": { "type": "string" }, "minItems": 1, "description": "the program and its arguments" },
        "cwd": { "type": "string", "description": "where it starts; default: the sandbox's working directory" },
        "env": { "type": "object", "additionalProperties": { "type": "string" } },
        "stdin": { "type": "string" },
        "timeout_seconds": timeout()
    });
    let description = format!("Runs a program in the sandbox and returns what it printed and how it ended.{named}");
    tool("exec", description, object(&["argv"], properties), acts())
}

fn read_file() -> Tool {
    let properties = json!({
        "path": { "type": "string", "description": "absolute, or relative to the working directory" },
        "max_bytes": { "type": "integer", "minimum": 1, "default": crate::call::MOST_READ }
    });
    tool("read_file", "Reads a file of the sandbox.".to_owned(), object(&["path"], properties), looks())
}

fn write_file() -> Tool {
    let properties = json!({
        "path": { "type": "string", "description": "absolute, or relative to the working directory; parents are made" },
        "contents": contents()
    });
    tool("write_file", "Writes a file in the sandbox.".to_owned(), object(&["path", "contents"], properties), acts())
}

fn list_directory() -> Tool {
    let properties = json!({ "path": { "type": "string", "default": "." } });
    tool("list_directory", "Lists a directory of the sandbox.".to_owned(), object(&[], properties), looks())
}

fn status() -> Tool {
    let description = "Says what the sandbox is: its tier, its runtimes, tasks, sessions, and free space.".to_owned();
    tool("status", description, object(&[], json!({})), looks())
}
