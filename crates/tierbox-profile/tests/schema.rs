//! The ready profiles and the settings of the backends that this workspace builds without further help.

mod unit {
    use tierbox_core::Registry;
    use tierbox_docker as _;
    use tierbox_local as _;
    use tierbox_profile::{Loader, Surroundings};
    use tierbox_vagrant as _;

    #[test]
    fn the_ready_profiles_suit_the_backends_they_name() {
        let registry = Registry::linked();
        let loader = Loader::new(&registry).surroundings(Surroundings::empty("/opt"));
        let list = loader.list();
        assert!(list.len() >= 4);
        for listed in list {
            // Their backends are other builds': they are refused, and by name.
            if let Some((_, backend)) =
                [("remote-container", "k8s"), ("ec2", "ec2")].iter().find(|(name, _)| listed.name.starts_with(name))
            {
                let error = loader.load(&listed.name).unwrap_err();
                assert_eq!(error.kind(), tierbox_core::ErrorKind::UnknownBackend);
                assert!(error.message().contains(backend), "{error}");
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
