//! Every request there is: one table for the dispatcher, for what agents may do, and for the OpenAPI document.

use hyper::Method;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    About,
    OpenApi,
    Metrics,
    Events,
    List,
    Create,
    Show,
    Destroy,
    Renew,
    RenewMine,
    AgentToken,
    Connect,
    Exec,
    Stream,
    Execs,
    Output,
    SignalExec,
    KillExec,
    ReadFile,
    WriteFile,
    RemoveFile,
    StatFile,
    ListDir,
    MakeDir,
    Pack,
    Unpack,
    RunCode,
    CodeFiles,
    CodeFile,
    CleanCode,
    CodeStatus,
    Verify,
    Attestation,
    Log,
    Decisions,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// None.
    Nothing,
    /// A document of `wire`, by its name.
    Json(&'static str),
    /// Some JSON object.
    Object,
    /// A command: a document, or a line with one and stdin behind it.
    Command,
    /// A document in the first line, and bytes.
    WithBytes,
    /// Frames.
    Frames,
    /// Raw bytes.
    Bytes,
    /// A tar archive.
    Tar,
    /// Metrics as text.
    Text,
    /// Documents `Event`, one a line.
    Lines,
    /// Entries of an operation log, one a line.
    Entries,
    /// What a gateway decided, one document a line.
    Decisions,
}

/// A value in the query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    pub name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub kind: &'static str,
    pub required: bool,
    pub about: &'static str,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Route {
    pub op: Op,
    pub method: Method,
    pub path: &'static str,
    /// Whether an agent may ask it of its own environment.
    pub agent: bool,
    pub about: &'static str,
    pub query: &'static [Param],
    pub takes: Content,
    pub gives: Content,
}

const MACHINE: Param =
    Param { name: "machine", kind: "string", required: false, about: "In which machine; the primary one where it is missing." };
const PATH: Param = Param {
    name: "path",
    kind: "string",
    required: true,
    about: "A path inside, percent-encoded bytes; relative to the working directory.",
};
const PROFILE: Param =
    Param { name: "profile", kind: "string", required: false, about: "Tell what this profile comes to, without starting it." };

macro_rules! param {
    ($name:literal, $kind:literal, $about:literal) => {
        Param { name: $name, kind: $kind, required: false, about: $about }
    };
}

macro_rules! route {
    ($op:ident, $method:ident $path:literal, $agent:literal, $takes:expr => $gives:expr, [$($query:expr),*], $about:literal) => {
        Route {
            op: Op::$op,
            method: Method::$method,
            path: $path,
            agent: $agent,
            about: $about,
            query: &[$($query),*],
            takes: $takes,
            gives: $gives,
        }
    };
}

use Content::{Bytes, Command, Decisions, Entries, Frames, Json, Lines, Nothing, Object, Tar, Text, WithBytes};

/// All of them.
pub(crate) static ROUTES: &[Route] = &[
    route!(About, GET "/v1", false, Nothing => Json("About"), [PROFILE], "About this daemon"),
    route!(OpenApi, GET "/v1/openapi.json", false, Nothing => Object, [], "This document"),
    route!(Metrics, GET "/metrics", false, Nothing => Text, [], "Counters and gauges for Prometheus"),
    route!(Events, GET "/v1/events", false, Nothing => Lines, [], "Follow what happens, one JSON document `Event` a line"),
    route!(List, GET "/v1/environments", false, Nothing => Json("Environments"), [], "All environments, and who waits for one"),
    route!(Create, POST "/v1/environments", false, Json("Create") => Json("Environment"), [], "Start an environment"),
    route!(RenewMine, POST "/v1/renew", false, Json("Renew") => Json("Renewed"), [], "Renew every lease of this client"),
    route!(Show, GET "/v1/environments/{environment}", true, Nothing => Json("Environment"), [], "An environment and its report"),
    route!(Destroy, DELETE "/v1/environments/{environment}", false, Nothing => Json("Removed"), [], "End an environment"),
    route!(Renew, POST "/v1/environments/{environment}/renew", false, Json("Renew") => Json("Renewed"), [], "Renew a lease, or keep the environment"),
    route!(AgentToken, POST "/v1/environments/{environment}/token", false, Json("AskToken") => Json("Token"), [], "A token for an agent in this environment alone, and there in the machines that it names"),
    route!(Connect, GET "/v1/environments/{environment}/connection", false, Nothing => Json("Connection"), [MACHINE], "How a person gets a shell"),
    route!(Exec, POST "/v1/environments/{environment}/exec", true, Command => WithBytes, [], "Run a command to its end and collect what it prints"),
    route!(Stream, POST "/v1/environments/{environment}/stream", true, Command => Frames, [], "Run a command and stream what it prints while it runs"),
    route!(Execs, GET "/v1/environments/{environment}/execs", false, Nothing => Json("Execs"), [MACHINE], "The commands that a machine knows"),
    route!(Output, GET "/v1/environments/{environment}/execs/{exec}/output", false, Nothing => Frames, [MACHINE, param!("stdout_from", "integer", "First byte of stdout."), param!("stderr_from", "integer", "First byte of stderr.")], "Follow what a command prints, to its end"),
    route!(SignalExec, POST "/v1/environments/{environment}/execs/{exec}/signal", false, Json("Signal") => Json("Done"), [MACHINE], "Send a signal to a command"),
    route!(KillExec, DELETE "/v1/environments/{environment}/execs/{exec}", false, Nothing => Json("Done"), [MACHINE], "Kill a command's whole tree"),
    route!(ReadFile, GET "/v1/environments/{environment}/files", true, Nothing => Bytes, [PATH, MACHINE, param!("offset", "integer", "First byte."), param!("length", "integer", "Bytes; to the end where it is missing."), param!("max", "integer", "Refuse to read more bytes than this.")], "Read a file"),
    route!(WriteFile, PUT "/v1/environments/{environment}/files", true, Bytes => Json("Done"), [PATH, MACHINE, param!("mode", "integer", "Permission bits."), param!("create_new", "boolean", "Refuse to replace a file.")], "Write a file atomically; its parents are made"),
    route!(RemoveFile, DELETE "/v1/environments/{environment}/files", false, Nothing => Json("Done"), [PATH, MACHINE, param!("recursive", "boolean", "A directory with all in it.")], "Remove a file or directory"),
    route!(StatFile, GET "/v1/environments/{environment}/stat", true, Nothing => Json("Stat"), [PATH, MACHINE, param!("follow", "boolean", "Follow a link at the end.")], "Facts about a path"),
    route!(ListDir, GET "/v1/environments/{environment}/directory", true, Nothing => Json("Entries"), [PATH, MACHINE], "The entries of a directory"),
    route!(MakeDir, PUT "/v1/environments/{environment}/directory", false, Nothing => Json("Done"), [PATH, MACHINE], "Make a directory and its parents"),
    route!(Pack, GET "/v1/environments/{environment}/archive", false, Nothing => Tar, [PATH, MACHINE], "A directory as a tar archive, to be treated as hostile"),
    route!(Unpack, PUT "/v1/environments/{environment}/archive", false, Tar => Json("Done"), [PATH, MACHINE], "Unpack a tar archive into a directory"),
    route!(Verify, POST "/v1/environments/{environment}/verify", false, Nothing => Object, [], "Probe from inside, with a control for each probe, whether the tier is what is there"),
    route!(Attestation, GET "/v1/environments/{environment}/attestation", false, Nothing => Object, [], "What was declared, enforced, shown and granted; of an environment that is gone as well, if it was logged"),
    route!(Log, GET "/v1/environments/{environment}/log", false, Nothing => Entries, [param!("after", "integer", "Only entries after the one of this number.")], "The operation log so far; of an environment that is gone as well"),
    route!(Decisions, GET "/v1/environments/{environment}/decisions", false, Nothing => Decisions, [], "What the gateway of N1 decided so far; of an environment that is gone as well, if it was logged"),
    route!(RunCode, POST "/v1/environments/{environment}/code", true, Json("Code") => Object, [], "Run a code task in the primary machine, and tell what came of it"),
    route!(CodeStatus, GET "/v1/environments/{environment}/code", true, Nothing => Object, [], "How code tasks stand: runtimes, room, sessions"),
    route!(CleanCode, POST "/v1/environments/{environment}/code/cleanup", true, Json("CleanCode") => Object, [], "Remove the directories of old code tasks"),
    route!(CodeFiles, GET "/v1/environments/{environment}/code/{task}/files", true, Nothing => Json("CodeFiles"), [], "The files of a code task"),
    route!(CodeFile, GET "/v1/environments/{environment}/code/{task}/file", true, Nothing => Bytes, [Param { name: "name", kind: "string", required: true, about: "Its path below the task's directory, percent-encoded bytes." }], "A file of a code task"),
];

/// What a path and a method come to.
pub(crate) enum Found {
    /// A route, and what stands in the places of its path.
    Route(&'static Route, Vec<String>),
    /// The path exists, with these methods.
    Methods(Vec<&'static str>),
    Nothing,
}

/// Finds the route of a request. `path` is still percent-encoded.
pub(crate) fn find(method: &Method, path: &str) -> Found {
    let mut methods = Vec::new();
    for route in ROUTES {
        if let Some(places) = matches(route.path, path) {
            if route.method == *method {
                return Found::Route(route, places);
            }
            methods.push(route.method.as_str());
        }
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
}

fn matches(template: &str, path: &str) -> Option<Vec<String>> {
    let mut places = Vec::new();
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(places),
            (Some(want), Some(have)) if want.starts_with('{') => places.push(decoded(have)?),
            (Some(want), Some(have)) if want == have => {}
            _ => return None,
        }
    }
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8().ok()?;
    (!text.is_empty()).then(|| text.into_owned())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_path_finds_its_route_or_its_methods() {
        let Found::Route(route, places) = find(&Method::GET, "/v1/environments/a%2Db/files") else { panic!("not found") };
        assert_eq!((route.op, places), (Op::ReadFile, vec!["a-b".to_owned()]));
        let Found::Methods(methods) = find(&Method::POST, "/v1/environments/a/files") else { panic!("no methods") };
        assert_eq!(methods, ["GET", "PUT", "DELETE"]);
        for none in [
            "/",
            "/v1/",
            "/v1/environments/",
            "/v1/environments//files",
            "/v1/environments/%ff",
            "//v1",
            "/v1/environments/a/files/",
        ] {
            assert!(matches!(find(&Method::GET, none), Found::Nothing), "{none}");
        }
    }
}
