//! The JSON Schema of profiles, with one table per backend.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tierbox_core::Registry;

/// The paths on the host that a backend's settings name, as its schema marks them (`x-path`); relative ones start from
/// `base_dir`.
pub fn host_paths(settings_schema: &Value, settings: &Value, base_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    crate::inspect::host_paths(settings_schema, settings_schema, settings, &mut found);
    found.into_iter().map(|path| base_dir.join(path)).collect()
}

/// The JSON Schema (draft 2020-12) of a profile, with the settings table of every backend in the registry.
///
/// Beside the standard words it uses these, which a backend's own schema may use too:
///
/// | word | meaning |
/// |---|---|
/// | `x-secret` | the value is a reference to a secret: `env:NAME` or `file:PATH` |
/// | `x-env` | a table of environment variables: values whose key names a secret are references |
/// | `x-path` | a path on the host, relative to the file that states it; it reaches the backend absolute |
/// | `x-tunable` | layers above the profile may change it freely; any other setting counts as weakening when they change it |
/// | `x-weakest-first` | the values of a setting in the order of their strictness; with a `default`; moving to a later one is no weakening |
/// | `x-alternatives` | at a backend's table: lists of keys of which one makes sense at a time; a layer that states the first key of one replaces what weaker layers state of the others |
/// | `x-variable` | a plain environment variable that sets it |
/// | `x-expects` | what to write, for messages |
pub fn schema(registry: &Registry) -> Value {
    let mut root = common().clone();
    for backend in registry.iter() {
        let mut table = backend.settings_schema();
        let prefix = format!("{}-", backend.name());
        let definitions = table.as_object_mut().and_then(|map| {
            map.remove("$schema");
            map.remove("$defs")
        });
        strip_null(&mut table);
        point_to(&mut table, &prefix);
        root["properties"][backend.name()] = table;
        if let Some(Value::Object(definitions)) = definitions {
            for (name, mut definition) in definitions {
                strip_null(&mut definition);
                point_to(&mut definition, &prefix);
                root["$defs"][format!("{prefix}{name}")] = definition;
            }
        }
    }
    if let Some(Value::Object(backend)) = root["properties"].get_mut("backend")
        && !registry.names().is_empty()
    {
        backend.insert("examples".to_owned(), json!(registry.names()));
    }
    root
}

/// The schema of what all profiles have in common, as `Document` says it. Every start reads it, and to generate it takes several times
/// as long, so the text is part of the program; a test compares the two.
const COMMON: &str = include_str!("common.schema.json");

fn common() -> &'static Value {
    static PARSED: OnceLock<Value> = OnceLock::new();
    PARSED.get_or_init(|| serde_json::from_str(COMMON).expect("a test reads it"))
}

/// The keys that all profiles have in common.
pub(crate) fn common_keys() -> impl Iterator<Item = &'static str> {
    common()["properties"].as_object().into_iter().flat_map(|map| map.keys().map(String::as_str))
}

/// An optional key is left out, never null: TOML has no null.
fn strip_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if let Some(Value::Array(names)) = map.get_mut("type") {
                names.retain(|name| name != "null");
                if let [only] = names.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(branches)) = map.get_mut("anyOf") {
                branches.retain(|branch| !is_null(branch));
                if let [Value::Object(only)] = branches.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    map.extend(only);
                }
            }
            map.values_mut().for_each(strip_null);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_null),
        _ => {}
    }
}

/// Whether a schema is `{"type": "null"}`.
fn is_null(schema: &Value) -> bool {
    schema.as_object().is_some_and(|map| map.len() == 1 && map.get("type").is_some_and(|kind| kind == "null"))
}

/// Gives every reference to a definition the backend's prefix.
fn point_to(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/$defs/")
            {
                *reference = format!("#/$defs/{prefix}{name}");
            }
            map.values_mut().for_each(|value| point_to(value, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| point_to(value, prefix)),
        _ => {}
    }
}

#[cfg(test)]
mod unit {
    use schemars::generate::SchemaSettings;

    use super::*;
    use crate::document::Document;

    #[test]
    fn the_committed_common_schema_is_the_generated_one() {
        let generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
        let mut generated = generator.into_root_schema_for::<Document>().to_value();
        strip_null(&mut generated);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/common.schema.json");
        if std::env::var_os("TIERBOX_WRITE_SCHEMA").is_some() {
            std::fs::write(path, format!("{generated}\n")).unwrap();
        }
        let committed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(committed == generated, "write it anew: TIERBOX_WRITE_SCHEMA=1 cargo test -p tierbox-profile common_schema");
        assert!(std::env::var_os("TIERBOX_WRITE_SCHEMA").is_some() || common() == &generated);
    }
}
