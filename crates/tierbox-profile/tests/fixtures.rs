//! Profiles that must load, and profiles that must be refused with the very text beside them.
//!
//! `TIERBOX_TEST_BLESS=1` writes the texts anew.

mod support;

mod unit {
    use std::path::{Path, PathBuf};

    use tierbox_core::ErrorKind;
    use tierbox_profile::{Loader, Severity, Surroundings, schema};

    use crate::support::{fixtures, registry};

    fn loader(directory: &Path) -> Loader {
        Loader::new(&registry()).surroundings(Surroundings::empty(directory))
    }

    /// Everything that is said of a fixture, which is named by a relative path so that the text is the same everywhere.
    fn verdict(path: &Path) -> String {
        let directory = path.parent().unwrap();
        let name = format!("./{}", path.file_name().unwrap().to_str().unwrap());
        match loader(directory).validate(&name) {
            Ok(found) => found.iter().map(|diagnostic| format!("{diagnostic}\n")).collect(),
            Err(error) => format!("{error}\n"),
        }
    }

    fn agree(path: &Path, expected: PathBuf, actual: &str) {
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(&expected, actual).unwrap();
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(actual, wanted, "{}: run with TIERBOX_TEST_BLESS=1 if the new text is right", path.display());
    }

    #[test]
    fn valid_profiles_load() {
        let paths = fixtures("valid");
        assert!(paths.len() >= 4);
        for path in paths {
            let directory = path.parent().unwrap();
            let profile = loader(directory).load(path.to_str().unwrap()).unwrap();
            let values: String = profile
                .values()
                .iter()
                .map(|value| format!("{} = {}  # {}\n", value.key, value.value, value.provenance))
                .collect();
            let values = values.replace(&format!("{}/", directory.display()), "");
            agree(&path, path.with_extension("expected"), &values.replace(directory.to_str().unwrap(), "."));
        }
    }

    #[test]
    fn invalid_profiles_are_refused_with_the_place_and_the_remedy() {
        let paths = fixtures("invalid");
        assert!(paths.len() >= 25);
        for path in paths {
            let actual = verdict(&path);
            assert!(actual.contains("error: "), "{} was accepted", path.display());
            assert!(!actual.contains("hunter2"), "{}: a secret was shown", path.display());
            agree(&path, path.with_extension("expected"), &actual);
            let error = loader(path.parent().unwrap()).load(path.to_str().unwrap()).unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::InvalidProfile | ErrorKind::UnknownBackend | ErrorKind::UnknownProfile | ErrorKind::InvalidInput
                ),
                "{error:?}"
            );
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn warnings_ask_for_reasons() {
        let world = crate::support::World::new();
        for (tier, expected) in [("T0.H0.N0", "H0 without a reason"), ("T0.H1.N0", "N0 without a reason")] {
            world.write("here/p.toml", &format!("tier = \"{tier}\"\n"));
            let found = world.loader().validate("./p.toml").unwrap();
            assert!(found.iter().all(|diagnostic| diagnostic.severity == Severity::Warning));
            assert!(
                found.iter().any(|diagnostic| diagnostic.message == expected && diagnostic.place.line() == Some(1)),
                "{found:?}"
            );
        }
    }

    /// The schema is what the fixtures are held against: every word in it must be one that the checks understand.
    #[test]
    fn the_schema_uses_known_words_only() {
        const WORDS: &[&str] = &[
            "$schema",
            "$defs",
            "$ref",
            "title",
            "description",
            "type",
            "properties",
            "additionalProperties",
            "required",
            "items",
            "enum",
            "const",
            "anyOf",
            "oneOf",
            "minimum",
            "maximum",
            "pattern",
            "default",
            "examples",
            "format",
        ];
        fn walk(schema: &serde_json::Value, at: &str) {
            for (word, value) in schema.as_object().into_iter().flatten() {
                assert!(WORDS.contains(&word.as_str()) || word.starts_with("x-"), "{word} at {at}");
                match word.as_str() {
                    "properties" | "$defs" => {
                        value.as_object().unwrap().iter().for_each(|(key, inner)| walk(inner, &format!("{at}.{key}")))
                    }
                    "items" | "additionalProperties" => walk(value, at),
                    "anyOf" | "oneOf" => value.as_array().unwrap().iter().for_each(|inner| walk(inner, at)),
                    _ => {}
                }
            }
        }
        walk(&schema(&registry()), "");
    }
}
