//! Layers: their order, who may weaken, and where values come from.

mod support;

mod unit {
    use std::time::Duration;

    use proptest::prelude::*;
    use tierbox_core::{Enforce, ErrorKind, Hold, Limit, Limits, Network};
    use tierbox_profile::{Layer, Overrides, Profile, Secret, SecretRef, Surroundings};

    use crate::support::{World, registry};

    const BASE: &str = "tier = \"T0.H1.N2\"\n[limits]\nmemory = \"1GiB\"\nexec = \"10m\"\n";
    const USER: &str = "home/.config/tierbox/config.toml";

    fn provenance(profile: &Profile, key: &str) -> (Layer, String) {
        let value = profile.values().into_iter().find(|value| value.key == key).unwrap();
        (value.provenance.layer, value.provenance.place.to_string())
    }

    #[test]
    fn the_stronger_layer_wins_and_is_named() {
        let world = World::new();
        world.write("here/p.toml", BASE);
        let exec = |profile: &Profile| profile.limits().exec.unwrap().as_secs();

        let profile = world.loader().load("./p.toml").unwrap();
        assert_eq!((exec(&profile), provenance(&profile, "limits.exec").0), (600, Layer::Profile));
        assert_eq!(provenance(&profile, "limits.startup").0, Layer::Default);

        let file = world.write(USER, "[limits]\nexec = \"9m\"\n");
        let profile = world.loader().load("./p.toml").unwrap();
        assert_eq!(exec(&profile), 540);
        assert_eq!(provenance(&profile, "limits.exec"), (Layer::User, format!("{}:2:8", file.display())));

        let loader = world.loader_with(&[("TIERBOX__LIMITS__EXEC", "8m")]);
        let profile = loader.load("./p.toml").unwrap();
        assert_eq!(exec(&profile), 480);
        assert_eq!(provenance(&profile, "limits.exec").1, "environment variable TIERBOX__LIMITS__EXEC");

        let loader = loader.set("limits.exec=6m").unwrap().set("limits.exec=7m").unwrap();
        let profile = loader.load("./p.toml").unwrap();
        assert_eq!((exec(&profile), provenance(&profile, "limits.exec").1.as_str()), (420, "--set limits.exec"));

        let loader = loader.overrides(Overrides::new().limits(|limits| limits.exec = Some(Duration::from_secs(1))));
        let profile = loader.load("./p.toml").unwrap();
        assert_eq!((exec(&profile), provenance(&profile, "limits.exec").0), (1, Layer::Code));
        assert!(profile.weakened().is_empty());
    }

    #[test]
    fn a_chain_that_is_too_long_is_called_that() {
        let world = World::new();
        (0..17).for_each(|number| {
            drop(world.write(&format!("here/p{number}.toml"), &format!("extends = \"./p{}.toml\"\n", number + 1)))
        });
        world.write("here/p17.toml", BASE);
        let refused = world.loader().load("./p0.toml").unwrap_err();
        assert!(refused.to_string().contains("more than 16") && !refused.to_string().contains("circle"), "{refused}");
        assert!(world.loader().load("./p5.toml").is_ok());
    }

    #[test]
    fn the_working_directory_configures_nothing() {
        let world = World::new();
        world.write("here/config.toml", "[limits]\nexec = \"1s\"\n");
        world.write("here/tierbox/config.toml", "[limits]\nexec = \"1s\"\n");
        world.write("here/local.toml", "tier = \"T0.H0.N0\"\n");
        let profile = world.loader().load("local").unwrap();
        assert_eq!((profile.limits().exec, profile.path()), (None, None));
        let relative = world.loader_with(&[("XDG_CONFIG_HOME", "."), ("TIERBOX_PROFILES", ".")]);
        assert_eq!(relative.load("local").unwrap().limits().exec, None);
    }

    #[test]
    fn directories_are_searched_in_order() {
        let world = World::new();
        for (directory, seconds) in [("one", 1), ("two", 2), ("home/.config/tierbox/profiles", 3)] {
            world.write(&format!("{directory}/mine.toml"), &format!("tier = \"T0.H1.N2\"\nlimits.exec = \"{seconds}s\"\n"));
        }
        let exec = |loader: tierbox_profile::Loader| loader.load("mine").unwrap().limits().exec.unwrap().as_secs();
        let list = format!("{}:{}", world.path("one").display(), world.path("two").display());
        assert_eq!(exec(world.loader_with(&[("TIERBOX_PROFILES", &list)])), 1);
        assert_eq!(exec(world.loader()), 3);
        let first = world.surroundings().with_profile_directory(world.path("two"));
        assert_eq!(exec(world.loader().surroundings(first)), 2);
        let none = world.surroundings().without_user_files();
        assert_eq!(world.loader().surroundings(none).load("mine").unwrap_err().kind(), ErrorKind::UnknownProfile);
    }

    #[test]
    fn a_profile_may_extend_the_ready_one_that_it_shadows() {
        let world = World::new();
        world.write("home/.config/tierbox/profiles/local.toml", "extends = \"local\"\n[limits]\nexec = \"5s\"\n");
        let profile = world.loader().load("local").unwrap();
        assert_eq!(profile.limits().exec, Some(Duration::from_secs(5)));
        assert_eq!(profile.limits().disk, Some(Limit::required(1 << 30)));
    }

    #[test]
    fn the_stronger_layers_alternative_replaces_the_others() {
        let world = World::new();
        let base = "tier = \"T0.H3.N2\"\nbackend = \"vm\"\n[vm]\nrecipe = \"r\"\nstage = \"s\"\nmax-startups = 2\n";
        world.write("here/base.toml", base);
        let settings = |file: &str, text: &str| {
            world.write(&format!("here/{file}.toml"), text);
            let profile = world.loader().load(&format!("./{file}.toml")).unwrap();
            let keys: Vec<String> =
                profile.values().into_iter().map(|value| value.key).filter(|key| key.starts_with("vm.")).collect();
            (profile.spec(&registry(), Hold::Process).unwrap().settings, keys)
        };
        let (image, keys) = settings("image", "extends = \"./base.toml\"\n[vm]\nimage = \"i\"\n");
        assert_eq!(image, serde_json::json!({"image": world.path("here/i"), "max-startups": 2}));
        assert_eq!(keys, ["vm.image", "vm.max-startups"]);
        let (back, _) = settings("back", "extends = \"./image.toml\"\n[vm]\nrecipe = \"q\"\n");
        assert_eq!(back, serde_json::json!({"recipe": world.path("here/q"), "max-startups": 2}));
        // What makes no choice displaces nothing, and who chooses both keeps both.
        let (stage, _) = settings("stage", "extends = \"./base.toml\"\n[vm]\nstage = \"t\"\n");
        assert_eq!((stage["recipe"].is_string(), stage["stage"].as_str()), (true, Some("t")));
        let (both, _) = settings("both", "extends = \"./base.toml\"\n[vm]\nimage = \"i\"\nrecipe = \"q\"\n");
        assert!(both["recipe"].is_string() && both["image"].is_string());
        // Above the profile it is a change like any other.
        let error = world.loader().set("vm.image=other").unwrap().load("./base.toml").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WeakerRefused);
        let allowed = world.loader().set("vm.image=other").unwrap().allow_weaker(true).load("./base.toml").unwrap();
        assert!(allowed.weakened().iter().any(|weakening| weakening.key.starts_with("vm.")), "{:?}", allowed.weakened());
    }

    #[test]
    fn what_is_set_may_weaken_without_leave_for_the_layers_below() {
        let world = World::new();
        world.write("here/p.toml", "tier = \"T0.H1.N2\"\n[limits]\npids = 32\nexec = \"10s\"\n");
        let loader = || world.loader().set("limits.pids=64").unwrap();
        assert_eq!(loader().load("./p.toml").unwrap_err().kind(), ErrorKind::WeakerRefused);
        let weakened = loader().weaker_set(true).load("./p.toml").unwrap().weakened().to_vec();
        assert_eq!((weakened.len(), weakened[0].key.as_str()), (1, "limits.pids"));
        world.write(USER, "[limits]\nexec = \"1m\"\n");
        let refused = loader().weaker_set(true).load("./p.toml").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WeakerRefused);
        assert!(refused.to_string().contains("limits.exec"), "{refused}");
    }

    #[test]
    fn relative_paths_start_from_the_file_that_states_them() {
        let world = World::new();
        world.write("base/data/x", "");
        let base = "tier = \"T0.H1.N2\"\n[[mounts]]\nhost = \"data\"\nguest = \"/d\"\n[local]\nbinds = [\"data\", \"~/tools\"]\n";
        world.write("base/base.toml", base);
        world.write("here/child.toml", "extends = \"../base/base.toml\"\n[[files]]\nhost = \"task\"\n");
        let spec = world.loader().load("./child.toml").unwrap().spec(&registry(), Hold::Process).unwrap();
        assert_eq!(spec.mounts[0].host, world.path("base/data"));
        assert_eq!((spec.files[0].host.clone(), spec.files[0].guest.as_bytes()), (world.path("here/task"), b"task".as_slice()));
        let binds = [world.path("base/data"), world.path("home/tools")].map(|path| path.display().to_string());
        assert_eq!(spec.settings["binds"], serde_json::json!(binds));
        assert_eq!(spec.base_dir, world.path("here"));
    }

    /// Every way to weaken is refused by name, allowed on demand, and then listed.
    #[test]
    fn layers_above_the_profile_only_tighten() {
        let world = World::new();
        let profile = "tier = \"T1.H1.N1\"\nuser = \"agent\"\nnetwork.allow = [\"*.example.org\"]\nnetwork.between-machines = false\ntools.programs = [\"/bin/ls\"]\n\
                       [limits]\nmemory = \"1GiB\"\npids = { max = 10, enforce = \"best\" }\nlifetime = \"1h\"\n\
                       [[mounts]]\nhost = \"/opt\"\nguest = \"/opt\"\n";
        world.write("here/p.toml", profile);
        for (key, flag) in [
            ("tier", "tier=T0.H1.N1"),
            ("tier", "tier=T2.H1.N0"),
            ("limits.memory", "limits.memory=2GiB"),
            ("limits.memory", "limits.memory={ max = \"1GiB\", enforce = \"best\" }"),
            ("limits.memory", "limits.memory=none"),
            ("limits.pids", "limits.pids=11"),
            ("limits.lifetime", "limits.lifetime=none"),
            ("limits.startup", "limits.startup=10m"),
            ("limits.output", "limits.output=1GiB"),
            ("limits.core-size", "limits.core-size=1"),
            ("user", "user=root"),
            ("user", "user=other"),
            ("writable-mounts", "writable-mounts=true"),
            ("network.allow", "network.allow=[\"example.com\"]"),
            ("network.allow", "network.allow=[\"*.example.com\"]"),
            ("network.between-machines", "network.between-machines=true"),
            ("tools.programs", "tools.programs=[\"/bin/true\"]"),
            ("mounts", "mounts=[{ host = \"/opt\", guest = \"/opt\", writable = true }]"),
            ("mounts", "mounts=[{ host = \"/srv\", guest = \"/opt\" }]"),
            ("files", "files=[{ host = \"/opt/x\" }]"),
            ("env.LD_PRELOAD", "env.LD_PRELOAD=/workspace/x.so"),
            ("local.binds", "local.binds=[\"/opt\"]"),
            ("local.users", "local.users=single"),
        ] {
            let loader = world.loader().set(flag).unwrap();
            let error = loader.load("./p.toml").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WeakerRefused, "{flag}: {error}");
            assert!(error.message().contains(&format!("would weaken `{key}` from ")), "{error}");
            // N0 leaves the names without a use: what they were is not the point here.
            if flag.contains("N0") {
                continue;
            }
            let profile = loader.allow_weaker(true).load("./p.toml").unwrap_or_else(|error| panic!("{flag}: {error}"));
            let keys: Vec<&str> = profile.weakened().iter().map(|weakening| weakening.key.as_str()).collect();
            assert_eq!(keys, [key], "{flag}");
            let spec = profile.spec(&registry(), Hold::Process).unwrap();
            assert!(spec.weakened[0].contains("--set"), "{:?}", spec.weakened);
        }
        for flag in [
            "tier=T2.H1.N2",
            "limits.memory=512MiB",
            "limits.pids={ max = 10 }",
            "limits.exec=1m",
            "limits.startup=10s",
            "network.allow=[\"a.example.org\"]",
            "network.allow=[]",
            "tools.programs=[]",
            "mounts=[]",
            "env.LANG=C",
            "workdir=/w",
            "reason=because",
            "vm.max-startups=9",
            "local.users=range",
            "local.users=auto",
        ] {
            let profile = world.loader().set(flag).unwrap().load("./p.toml").unwrap_or_else(|error| panic!("{flag}: {error}"));
            assert!(profile.weakened().is_empty(), "{flag}");
        }
    }

    /// What is remembered of a ready profile is the profile alone: layers that come or go between two loads count.
    #[test]
    fn a_ready_profile_that_was_read_before_takes_new_layers() {
        let world = World::new();
        let loader = world.loader();
        let plain = loader.load("local").unwrap();
        world.write(USER, "[limits]\nexec = \"7s\"\n");
        let tightened = loader.load("local").unwrap();
        assert_eq!(tightened.limits().exec, Some(std::time::Duration::from_secs(7)));
        let set = loader.clone().set("limits.pids=3").unwrap().load("local").unwrap();
        assert_eq!(set.limits().pids, Some(Limit::required(3)));
        std::fs::remove_file(world.path(USER)).unwrap();
        let again = loader.load("local").unwrap();
        assert_eq!((again.limits(), again.values()), (plain.limits(), plain.values()));
    }

    #[test]
    fn a_user_who_shuts_the_network_needs_not_empty_the_list() {
        let world = World::new();
        world.write("here/p.toml", "tier = \"T0.H1.N1\"\nnetwork.allow = [\"example.org\"]\n");
        world.write(USER, "tier = \"T0.H1.N2\"\n");
        let profile = world.loader().load("./p.toml").unwrap();
        assert_eq!(profile.tier().network(), Network::N2);
        assert!(profile.spec(&registry(), Hold::Process).unwrap().network.allow.is_empty());
        let in_code = world.surroundings().without_user_files();
        let profile = world.loader().surroundings(in_code).load("./p.toml").unwrap();
        profile.with(&Overrides::new().tier("T0.H1.N2".parse().unwrap())).unwrap();
    }

    #[test]
    fn variables_are_read_as_the_schema_wants_them() {
        let world = World::new();
        world.write("here/p.toml", "tier = \"T0.H3.N2\"\nbackend = \"vm\"\n");
        let loader = world.loader_with(&[
            ("TIERBOX__LIMITS__FILE_SIZE", "1MiB"),
            ("TIERBOX__LIMITS__CPU", "1.5"),
            ("TIERBOX__LIMITS__PIDS", "{ max = 5, enforce = \"best\" }"),
            ("TIERBOX__ENV__LANG", "1"),
            ("TIERBOX__DESCRIPTION", "3"),
            ("TIERBOX_MAX_VM_STARTUPS", "3"),
            ("TIERBOX_LOG", "debug"),
            ("TIERBOX_STATE_DIR", "/x"),
            ("TIERBOXX", "ignored"),
        ]);
        let profile = loader.load("./p.toml").unwrap();
        let spec = profile.spec(&registry(), Hold::Process).unwrap();
        assert_eq!(spec.limits.file_size, Some(Limit::required(1 << 20)));
        assert_eq!(spec.limits.cpu_millis, Some(Limit::required(1500)));
        assert_eq!(spec.limits.pids, Some(Limit::best(5)));
        assert_eq!((spec.env["LANG"].as_str(), profile.description()), ("1", Some("3")));
        assert_eq!(spec.settings, serde_json::json!({ "max-startups": 3 }));
    }

    #[test]
    fn variables_that_mean_nothing_are_refused() {
        let world = World::new();
        for (name, value, expected) in [
            ("TIERBOX__LIMITS__MEMROY", "1GiB", "did you mean `memory`?"),
            ("TIERBOX__LIMITS", "1GiB", "`limits` should be a table, not a string"),
            ("TIERBOX__LIMITS__MEMORY", "much", "\"much\" is not a size"),
            ("TIERBOX_LIMITS_MEMORY", "1GiB", "TIERBOX__SECTION__KEY_NAME"),
            ("TIERBOX_LOGS", "debug", "did you mean TIERBOX_LOG?"),
            ("TIERBOX__", "1", "names no key"),
            ("TIERBOX__LIMITS____MEMORY", "1", "names no key"),
            ("TIERBOX__EXTENDS", "local", "only a profile can extend"),
        ] {
            let error = world.loader_with(&[(name, value)]).load("local").unwrap_err();
            assert!(error.to_string().contains(expected), "{name}: {error}");
            assert!(error.to_string().contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn hostile_names_are_refused_and_unknown_ones_explained() {
        let loader = World::new().loader();
        let long = "x".repeat(65);
        for name in ["", "..", ".hidden", "a b", "a\0b", "-x", "$(id)", "a\nb", "é", long.as_str(), "../a\0b", "./a\nb.toml"] {
            assert_eq!(loader.load(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        }
        for name in ["locla", "./nothing.toml", "../nothing", "/nothing/at/all"] {
            assert_eq!(loader.load(name).unwrap_err().kind(), ErrorKind::UnknownProfile, "{name:?}");
        }
        let text = loader.load("locla").unwrap_err().to_string();
        assert!(text.contains("local, local-browse") && text.contains("did you mean local?"), "{text}");
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let world = World::new();
        world.write("here/latin.toml", "");
        std::fs::write(world.path("here/latin.toml"), b"tier = \"T0.H1.N2\"\n# \xe9\n").unwrap();
        std::fs::create_dir(world.path("here/dir.toml")).unwrap();
        world.write("here/big.toml", &"#\n".repeat(600_000));
        assert!(std::process::Command::new("mkfifo").arg(world.path("here/fifo.toml")).status().unwrap().success());
        for (name, expected) in [
            ("./latin.toml", "line 2 is not UTF-8"),
            ("./dir.toml", "not a regular file"),
            ("./fifo.toml", "not a regular file"),
            ("./big.toml", "larger than 1MiB"),
        ] {
            let error = world.loader().load(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidProfile, "{name}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let world = World::new();
        world.write("here/deep.toml", &format!("tier = {}1{}\n", "[".repeat(100_000), "]".repeat(100_000)));
        assert_eq!(world.loader().load("./deep.toml").unwrap_err().kind(), ErrorKind::InvalidProfile);
    }

    #[test]
    fn secrets_are_read_at_the_start_and_never_shown() {
        let world = World::new();
        world.write("here/key", "file-hunter2\n");
        let text = "tier = \"T0.H3.N2\"\nbackend = \"vm\"\n[env]\nA_TOKEN = \"env:MINE\"\nB_KEY = \"file:key\"\nPLAIN = \"env:MINE\"\n\
                    [vm]\ntoken = \"env:MINE\"\nenv = { C_SECRET = \"env:MINE\" }\n";
        world.write("here/p.toml", text);
        let profile = world.loader_with(&[("MINE", "env-hunter2")]).load("./p.toml").unwrap();
        assert!(profile.warnings().iter().any(|warning| warning.key == "env.PLAIN"), "{:?}", profile.warnings());
        let spec = profile.spec(&registry(), Hold::Process).unwrap();
        assert_eq!((spec.env["A_TOKEN"].as_str(), spec.env["B_KEY"].as_str()), ("env-hunter2", "file-hunter2"));
        assert_eq!(spec.env["PLAIN"], "env:MINE");
        assert_eq!(spec.settings["token"], "env-hunter2");
        assert_eq!(spec.settings["env"]["C_SECRET"], "env-hunter2");
        assert!(!format!("{profile:?} {:?} {spec:?}", profile.values()).contains("hunter2"));

        let error = world.loader().load("./p.toml").unwrap().spec(&registry(), Hold::Process).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Credentials);
        assert!(error.message().contains("`env.A_TOKEN` refers to env:MINE, which is not set"), "{error}");
    }

    #[test]
    fn literal_secrets_are_refused_in_every_layer() {
        let world = World::new();
        let by_set = world.loader().set("env.API_KEY=hunter2").unwrap().load("local").unwrap_err();
        let by_variable = world.loader_with(&[("TIERBOX__ENV__API_KEY", "hunter2")]).load("local").unwrap_err();
        let in_code = world.loader().load("local").unwrap().with(&Overrides::new().env("API_KEY", "hunter2")).unwrap_err();
        let table = Overrides::new().backend("vm").setting("token", "hunter2");
        let in_table = world.loader().load("local").unwrap().with(&table).unwrap_err();
        for error in [by_set, by_variable, in_code, in_table] {
            assert_eq!(error.kind(), ErrorKind::InvalidProfile);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            assert!(error.help().is_some());
        }
        let overrides = Overrides::new()
            .secret_env("API_KEY", Secret::new("hunter2"))
            .secret_env_from("B_KEY", SecretRef::parse("env:MINE").unwrap());
        let around = world.surroundings().with_variable("MINE", "hunter3");
        let profile = world.loader().surroundings(around).load("local").unwrap().with(&overrides).unwrap();
        assert!(!format!("{profile:?} {:?} {overrides:?}", profile.values()).contains("hunter"));
        let spec = profile.spec(&registry(), Hold::Process).unwrap();
        assert_eq!((spec.env["API_KEY"].as_str(), spec.env["B_KEY"].as_str()), ("hunter2", "hunter3"));
    }

    #[test]
    fn a_profile_in_code_is_checked_like_a_file() {
        let tier = || "T0.H1.N2".parse().unwrap();
        let around = || Surroundings::empty("/opt");
        let built = |builder: tierbox_profile::ProfileBuilder| builder.surroundings(around()).build(&registry());
        let profile =
            built(Profile::builder("mine", tier()).mount("data", "/d", false).env("A", "1").setting("mode", "container"))
                .unwrap();
        let spec = profile.spec(&registry(), Hold::Kept).unwrap();
        assert_eq!((spec.mounts[0].host.to_str(), spec.hold), (Some("/opt/data"), Hold::Kept));
        assert_eq!(provenance(&profile, "tier").0, Layer::Code);

        let disk =
            |limits: &mut Limits| (limits.memory, limits.disk) = (Some(Limit::best(1 << 30)), Some(Limit::required(1 << 30)));
        for (what, builder, kind) in [
            ("name", Profile::builder("../x", tier()), ErrorKind::InvalidInput),
            ("disk", Profile::builder("x", tier()).limits(disk), ErrorKind::InvalidProfile),
            ("mount", Profile::builder("x", tier()).mount("/", "/h", false), ErrorKind::InvalidProfile),
            ("backend", Profile::builder("x", tier()).backend("docker"), ErrorKind::UnknownBackend),
            ("setting", Profile::builder("x", tier()).setting("mood", 1), ErrorKind::InvalidProfile),
            ("names", Profile::builder("x", tier()).allow(["example.org"]), ErrorKind::InvalidProfile),
            ("user", Profile::builder("x", tier()).user("a b"), ErrorKind::InvalidProfile),
        ] {
            assert_eq!(built(builder).unwrap_err().kind(), kind, "{what}");
        }
    }

    fn tier() -> impl Strategy<Value = String> {
        (0u8..3, 1u8..4, 0u8..3).prop_map(|(t, h, n)| format!("T{t}.H{h}.N{n}"))
    }

    fn limit() -> impl Strategy<Value = Option<(u64, bool)>> {
        proptest::option::of((1u64..6, any::<bool>()))
    }

    fn written(tier: &str, pids: Option<(u64, bool)>, exec: Option<u64>) -> String {
        let mut text = format!("tier = \"{tier}\"\n[limits]\n");
        if let Some((max, best)) = pids {
            text.push_str(&format!("pids = {{ max = {max}, enforce = \"{}\" }}\n", if best { "best" } else { "required" }));
        }
        if let Some(seconds) = exec {
            text.push_str(&format!("exec = \"{seconds}s\"\n"));
        }
        text
    }

    fn as_strict<T: Ord + Copy>(before: Option<Limit<T>>, after: Option<Limit<T>>) -> bool {
        match (before, after) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(before), Some(after)) => {
                after.max <= before.max && (before.enforce == Enforce::Best || after.enforce == Enforce::Required)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Whatever the user's file says: what comes out is at least as strict as the profile, or the load is refused.
        #[test]
        fn nothing_above_a_profile_weakens_it_in_silence(
            base in (tier(), limit(), proptest::option::of(1u64..6)),
            user in (tier(), limit(), proptest::option::of(1u64..6)),
        ) {
            let world = World::new();
            world.write("here/p.toml", &written(&base.0, base.1, base.2));
            let profile = world.loader().load("./p.toml").unwrap();
            world.write(USER, &written(&user.0, user.1, user.2));
            let loader = world.loader();
            match loader.load("./p.toml") {
                Ok(after) => {
                    prop_assert!(after.tier().is_at_least(profile.tier()));
                    prop_assert!(as_strict(profile.limits().pids, after.limits().pids));
                    let exec = |profile: &Profile| profile.limits().exec.map(Limit::required);
                    prop_assert!(as_strict(exec(&profile), exec(&after)));
                    prop_assert!(after.weakened().is_empty());
                }
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::WeakerRefused);
                    let allowed = loader.allow_weaker(true).load("./p.toml").unwrap();
                    prop_assert!(!allowed.weakened().is_empty());
                }
            }
        }

        /// The last layer that says something is the one that counts and the one that is named.
        #[test]
        fn the_last_layer_that_speaks_is_heard(said in proptest::collection::vec(proptest::option::of("[a-z]{1,8}"), 4)) {
            let world = World::new();
            let line = |word: &Option<String>| word.as_ref().map(|word| format!("workdir = \"/{word}\"\n")).unwrap_or_default();
            world.write("here/base.toml", &format!("tier = \"T0.H1.N2\"\n{}", line(&said[0])));
            world.write("here/p.toml", &format!("extends = \"./base.toml\"\n{}", line(&said[1])));
            world.write(USER, &line(&said[2]));
            let mut loader = world.loader();
            if let Some(word) = &said[3] {
                loader = loader.set(&format!("workdir=/{word}")).unwrap();
            }
            let profile = loader.load("./p.toml").unwrap();
            let layers = [Layer::Extended, Layer::Profile, Layer::User, Layer::Set];
            let expected = said.iter().zip(layers).rev().find_map(|(word, layer)| Some((format!("/{}", word.as_ref()?), layer)));
            let shown = profile.values().into_iter().find(|value| value.key == "workdir").unwrap();
            match expected {
                Some((word, layer)) => prop_assert_eq!((shown.value, shown.provenance.layer), (word, layer)),
                None => prop_assert_eq!((shown.value.as_str(), shown.provenance.layer), ("none", Layer::Default)),
            }
        }

        /// Any bytes in a profile get an answer.
        #[test]
        fn any_text_gets_an_answer(text in "(tier = \"T0.H1.N2\"\n)?(\\[(limits|env|network|local|vm)\\]\n)?[a-z_.-]{0,8} ?= ?.{0,24}\n?") {
            let world = World::new();
            world.write("here/p.toml", &text);
            if let Ok(profile) = world.loader().load("./p.toml") {
                prop_assert_eq!(profile.name(), "p");
            }
        }
    }
}
