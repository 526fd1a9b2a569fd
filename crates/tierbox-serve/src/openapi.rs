//! The OpenAPI document, made from the table of routes and the types of `wire`.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::answer::{BYTES, EVENTS, FRAMES, JSON, METRICS, TAR, WITH_BYTES};
use crate::routes::{Content, ROUTES, Route};
use crate::wire;

/// The OpenAPI 3.1 document of the API.
pub fn openapi() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tierbox",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Sandboxes with an enforced isolation tier. On the Unix socket its own user is the harness; over TCP, \
                            and to act as an agent, a token is sent. A client names itself in the header `tierbox-client`.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "security": [{}, { "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": format!("{:?}", route.op),
        "summary": route.about,
        "description": if route.agent { "An agent may ask this of its own environment, as far as its tier allows." } else { "For harnesses." },
        "responses": { "200": body("Done.", route.gives), "default": body("Refused, or failed.", Content::Json("Problem")) },
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if route.takes != Content::Nothing {
        let takes = if route.takes == Content::Tar { Content::Bytes } else { route.takes };
        operation["requestBody"] = body("", takes);
        // These have a default for everything.
        let optional = [Content::Json("Renew"), Content::Json("CleanCode"), Content::Json("AskToken")].contains(&route.takes);
        operation["requestBody"]["required"] = (!optional).into();
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let places = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> = places
        .map(|name| {
            let about = match name {
                "exec" => "A command's id: 32 hex digits.",
                "task" => "A code task's hash: 16 hex digits.",
                _ => "An environment's id or name.",
            };
            json!({ "name": name, "in": "path", "required": true, "description": about, "schema": { "type": "string", "minLength": 1 } })
        })
        .collect();
    for param in route.query {
        let mut schema = json!({ "type": param.kind });
        match param.kind {
            "integer" => schema["minimum"] = 0.into(),
            "string" => schema["minLength"] = 1.into(),
            _ => {}
        }
        all.push(json!({
            "name": param.name, "in": "query", "required": param.required, "description": param.about, "schema": schema,
        }));
    }
    all
}

fn body(about: &str, content: Content) -> Value {
    let document = |name: &str| json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
    let raw = |about: &str| json!({ "schema": { "type": "string", "format": "binary", "description": about } });
    let media = match content {
        Content::Nothing => json!({}),
        Content::Json(name) => json!({ JSON: document(name) }),
        Content::Object => json!({ JSON: { "schema": { "type": "object" } } }),
        Content::Command => json!({
            JSON: document("Exec"),
            WITH_BYTES: raw("The document `Exec` on one line, and behind it the bytes of stdin."),
        }),
        Content::WithBytes => json!({ WITH_BYTES: raw(
            "The document `Ended` on one line, and behind it bytes: stdout's first and last part, stderr's first and last part. \
             With `detach` the document `Detached` alone."
        ) }),
        Content::Frames => json!({ FRAMES: raw(
            "Frames of a kind (one byte), a length (four bytes, big-endian) and a payload. Kinds: 0 the document `Detached`, \
             once, first; 1 stdout; 2 stderr; 3 the document `Ended`, last; 4 the document `Problem`, last."
        ) }),
        Content::Bytes => json!({ BYTES: raw("Raw bytes.") }),
        Content::Tar => json!({ TAR: raw("A tar archive.") }),
        Content::Lines => {
            json!({ EVENTS: { "schema": { "type": "string", "description": "The document `Event`, one a line." } } })
        }
        Content::Entries => {
            json!({ EVENTS: { "schema": { "type": "string", "description": "Entries of the operation log, one a line." } } })
        }
        Content::Decisions => json!({ EVENTS: { "schema": { "type": "string", "description":
            "Decisions, oldest first, one a line: `time` in milliseconds since 1970, `sandbox`, `machine` where each has a gateway, `id`, \
             `protocol` (`dns`, `http`, `tls`, `tcp`), `name`, `address`, `port`, `verdict` (`allowed`, `refused`, `failed`, `ended`), \
             `rule`, bytes `sent` and `received` in `ended` ones, and `verification` where verification asked." } } }),
        Content::Text => json!({ METRICS: { "schema": { "type": "string" } } }),
    };
    let mut body = json!({ "content": media });
    if !about.is_empty() {
        body["description"] = about.into();
    }
    body
}

fn schemas() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    macro_rules! all {
        ($($name:ident),+ $(,)?) => { $( generator.subschema_for::<wire::$name>(); )+ };
    }
    all!(
        About,
        AskToken,
        Event,
        CleanCode,
        Code,
        CodeFiles,
        Connection,
        Create,
        Detached,
        Done,
        Ended,
        Entries,
        Environment,
        Environments,
        Exec,
        Execs,
        Problem,
        Removed,
        Renew,
        Renewed,
        Signal,
        Stat,
        Token,
    );
    Value::Object(generator.take_definitions(true))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_no_operation_is_named_twice() {
        let document = openapi();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        let mut names: Vec<String> = ROUTES.iter().map(|route| format!("{:?}", route.op)).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
