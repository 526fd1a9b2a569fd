//! The committed JSON Schema is the one that the program checks with. `TIERBOX_TEST_BLESS=1` writes it anew.

mod unit {
    use std::path::Path;

    use tierbox_core::Registry;
    use tierbox_docker as _;
    use tierbox_local as _;
    use tierbox_profile::{Loader, Surroundings, schema};
    use tierbox_vagrant as _;

    #[test]
    fn the_committed_schema_has_not_drifted() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../profiles/profile.schema.json");
        let current = format!("{:#}\n", schema(&Registry::linked()));
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(committed == current, "{} has drifted: run this test with TIERBOX_TEST_BLESS=1", path.display());
    }

    #[test]
    fn the_ready_profiles_suit_the_backends_they_name() {
        let registry = Registry::linked();
        let loader = Loader::new(&registry).surroundings(Surroundings::empty("/opt"));
        let list = loader.list();
        assert!(list.len() >= 4);
        for listed in list {
            // Its backend is another build's: it is refused, and by name.
            if listed.name == "remote-container" {
                let error = loader.load(&listed.name).unwrap_err();
                assert_eq!(error.kind(), tierbox_core::ErrorKind::UnknownBackend);
                assert!(error.message().contains("k8s"), "{error}");
                continue;
            }
            let profile = loader.load(&listed.name).unwrap();
            profile.spec(&registry, tierbox_core::Hold::Process).unwrap_or_else(|error| panic!("{}: {error}", listed.name));
        }
    }

    #[test]
    fn the_host_paths_of_local_start_from_the_file_that_states_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["base/rootfs", "base/tool", "base/other", "here", "home/.rustup"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        let table =
            "[local]\nroot = \"rootfs\"\nbinds = [\"tool\", \"~/.rustup\", { host = \"other\", guest = \"/opt/other\" }]\n";
        std::fs::write(path("base/base.toml"), format!("tier = \"T0.H1.N2\"\n{table}")).unwrap();
        std::fs::write(path("here/child.toml"), "extends = \"../base/base.toml\"\n").unwrap();
        let registry = Registry::linked();
        let surroundings = Surroundings::empty(path("here")).with_variable("HOME", path("home"));
        let profile = Loader::new(&registry).surroundings(surroundings).load("./child.toml").unwrap();
        let spec = profile.spec(&registry, tierbox_core::Hold::Process).unwrap();
        assert_eq!(spec.settings["root"], serde_json::json!(path("base/rootfs")));
        let other = serde_json::json!({ "host": path("base/other"), "guest": "/opt/other" });
        let binds = serde_json::json!([path("base/tool"), path("home/.rustup"), other]);
        assert_eq!(spec.settings["binds"], binds);
    }
}
