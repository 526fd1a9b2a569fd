//! The ready profiles, the template, and the schema.

mod support;

mod unit {
    use tierbox_core::{Enforce, ErrorKind, Hold};
    use tierbox_profile::{Overrides, Severity, template};

    use crate::support::{World, registry};

    #[test]
    fn ready_profiles_state_what_they_are_called_for() {
        let loader = World::new().loader();
        for (name, tier) in [
            ("local", "T0.H1.N2"),
            ("local-open", "T0.H1.N0"),
            ("local-process", "T0.H0.N0"),
            ("local-text", "T2.H1.N2"),
            ("local-browse", "T1.H1.N1"),
            ("local-tools", "T1.H1.N2"),
            ("local-web", "T0.H1.N1"),
        ] {
            let profile = loader.load(name).unwrap();
            assert_eq!(profile.tier().to_string(), tier, "{name}");
            let limits = profile.limits();
            for limit in [limits.memory, limits.cpu_millis, limits.pids] {
                assert_eq!(limit.unwrap().enforce, Enforce::Best, "{name}");
            }
            assert!(profile.description().is_some_and(|text| !text.is_empty()), "{name}");
            let unreasoned = profile.warnings().iter().any(|warning| warning.message.contains("without a reason"));
            assert!(!unreasoned, "{name}");
            profile.spec(&registry(), Hold::Process).unwrap();
        }
    }

    /// The tier that a file of profiles/ states, or the one it extends.
    fn stated(name: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ready").join(format!("{name}.toml"));
        let profile: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        let text = |key: &str| profile.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        text("tier").unwrap_or_else(|| stated(&text("extends").expect("a tier, or what it extends")))
    }

    #[test]
    fn every_ready_profile_has_the_tier_that_readme_says() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
        for listed in World::new().loader().list() {
            let name = if listed.name.starts_with("ec2-") && listed.name != "ec2-closed" { "ec2-default" } else { &listed.name };
            let row = format!("| `{name}` | {} |", stated(&listed.name));
            assert!(readme.contains(&row), "README has no row {row}");
        }
        for (name, tier) in [
            ("docker", "T0.H1.N2"),
            ("docker-web", "T0.H1.N1"),
            ("ec2", "T0.H3.N0"),
            ("ec2-closed", "T0.H3.N2"),
            ("ec2-default", "T0.H3.N0"),
            ("remote-container", "T0.H2.N1"),
            ("vagrant", "T0.H3.N2"),
        ] {
            assert_eq!(stated(name), tier, "{name}");
        }
    }

    #[test]
    fn the_list_holds_them_all() {
        let world = World::new();
        world.write("home/.config/tierbox/profiles/mine.toml", "tier = \"T0.H1.N2\"\ndescription = \"My own\"\n");
        world.write("home/.config/tierbox/profiles/bad.toml", "tier = 3\n");
        let list = world.loader().list();
        let names: Vec<&str> = list.iter().map(|listed| listed.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "bad",
                "docker",
                "docker-web",
                "ec2",
                "ec2-closed",
                "ec2-data-science",
                "ec2-default",
                "ec2-development",
                "ec2-education",
                "ec2-production",
                "ec2-web-development",
                "local",
                "local-browse",
                "local-open",
                "local-process",
                "local-text",
                "local-tools",
                "local-web",
                "mine",
                "remote-container",
                "vagrant"
            ]
        );
        assert!(list[0].summary.as_ref().unwrap_err().contains("bad.toml:1:8"), "{:?}", list[0]);
        let mine = list.iter().find(|listed| listed.name == "mine").unwrap();
        assert_eq!(mine.summary.as_ref().unwrap().description, "My own");
        assert!(list[1].path.is_none() && mine.path.is_some());
    }

    #[test]
    fn the_template_is_a_profile_with_every_comment_taken_out() {
        let world = World::new();
        std::fs::create_dir_all(world.path("data")).unwrap();
        world.write("here/task/x", "");
        world.write("here/as-is.toml", template());
        assert!(world.loader().validate("./as-is.toml").unwrap().is_empty());

        let is_key =
            |line: &str| line.starts_with("# [") || line.split_once(" = ").is_some_and(|(key, _)| !key[2..].contains(' '));
        let lines = template().lines().map(|line| if line.starts_with("# ") && is_key(line) { &line[2..] } else { line });
        let whole: String = lines.map(|line| format!("{line}\n")).collect();
        // What the template explains side by side does not all go together.
        let whole = whole.replace("T0.H1.N2\"\n\n# What", "T1.H1.N1\"\n\n# What");
        world.write("here/whole.toml", &whole);
        let found = world.loader().validate("./whole.toml").unwrap();
        assert!(found.iter().all(|diagnostic| diagnostic.severity == Severity::Warning), "{found:#?}\n{whole}");
        let profile = world.loader().load("./whole.toml").unwrap();
        assert_eq!(profile.limits().max_environments, Some(16));
    }

    #[test]
    fn an_override_may_weaken_and_is_listed() {
        let profile = World::new().loader().load("local").unwrap();
        let open = profile.with(&Overrides::new().tier("T0.H1.N0".parse().unwrap()).env("SEED", "1")).unwrap();
        let spec = open.spec(&registry(), Hold::Process).unwrap();
        assert_eq!(spec.weakened, ["tier: T0.H1.N2 -> T0.H1.N0 (code)"]);
        assert_eq!(spec.env["SEED"], "1");
        let seed = open.values().into_iter().find(|value| value.key == "env.SEED").unwrap();
        assert_eq!(seed.provenance.to_string(), "code");
    }

    #[test]
    fn the_backend_has_the_last_word() {
        let profile = World::new().loader().load("local").unwrap();
        let broken = profile.with(&Overrides::new().setting("mode", "broken")).unwrap();
        let error = broken.spec(&registry(), Hold::Process).unwrap_err();
        assert_eq!((error.kind(), error.backend()), (ErrorKind::InvalidProfile, Some("local")));
        assert!(profile.with(&Overrides::new().setting("mood", "broken")).unwrap_err().to_string().contains("mode"));
    }
}
