//! `tierbox ec2`, `config import` and `config auth`, on a server that imitates AWS.
#![cfg(all(feature = "ec2", target_os = "linux"))]

mod support;

mod aws {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use serde_json::Value;

    use crate::support::{skip, tierbox};

    /// Somebody with an account of his own on the server.
    struct Account {
        directory: tempfile::TempDir,
        key: String,
        url: String,
    }

    impl Account {
        fn new(name: &str) -> Option<Self> {
            let Ok(url) = std::env::var("TIERBOX_TEST_AWS") else {
                skip("aws", "TIERBOX_TEST_AWS names no server that imitates AWS", "cargo xtask test --engine aws");
                return None;
            };
            let key = format!("{name}{}", std::process::id());
            Some(Self { directory: tempfile::tempdir().unwrap(), key, url })
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn tierbox(&self, arguments: &[&str]) -> Output {
            self.tierbox_with(arguments, &[])
        }

        fn tierbox_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
            let mut command: Command = tierbox(&self.at("state"));
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
                command.env_remove(name);
            }
            command
                .env("AWS_ACCESS_KEY_ID", &self.key)
                .env("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
                .current_dir(self.directory.path());
            command.envs(variables.iter().copied()).args(arguments).output().unwrap()
        }

        /// The flags that name the account and its stack.
        fn flags(&self) -> [&str; 6] {
            ["--stack", &self.key, "--region", "us-east-1", "--endpoint-url", &self.url]
        }
    }

    fn text(output: &Output) -> String {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn succeeds(output: &Output) -> String {
        assert_eq!(output.status.code(), Some(0), "{}", text(output));
        assert!(!text(output).contains("hunter2"), "a secret is shown: {}", text(output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn an_account_is_set_up_checked_used_and_taken_down() {
        let Some(account) = Account::new("cli") else { return };
        let setup =
            |more: &[&str]| account.tierbox(&[&["ec2", "setup", "--output", "made.toml"], more, &account.flags()].concat());
        // Nobody is there to answer.
        let asked = setup(&[]);
        assert!(!account.at("made.toml").exists(), "{}", text(&asked));
        let told = succeeds(&setup(&["--yes"]));
        assert!(told.contains("profile: ") && told.contains("Billed while nothing runs"), "{told}");
        let profile = std::fs::read_to_string(account.at("made.toml")).unwrap();
        assert!(profile.contains("tier = \"T0.H3.N2\"") && !profile.contains(&format!("\"{}\"", "hunter2")), "{profile}");
        // A profile that is there stays.
        let again = setup(&["--yes"]);
        assert!(again.status.code() != Some(0) && text(&again).contains("is there already"), "{}", text(&again));

        let told = succeeds(&account.tierbox(&["ec2", "check", "./made.toml"]));
        for name in ["credentials", "region", "SSM", "bucket", "role", "endpoint s3", "N2"] {
            assert!(told.contains(name), "{name} is not in {told}");
        }
        let found = account.tierbox(&["--json", "ec2", "check", "./made.toml"]);
        let found: Value = serde_json::from_slice(&found.stdout).unwrap();
        assert!(found["checks"].as_array().is_some_and(|checks| checks.len() >= 9), "{found}");
        write(&account.at("broken.toml"), "extends = \"./made.toml\"\n[ec2]\nbucket = \"none-of-that-name\"\n");
        let broken = account.tierbox(&["ec2", "check", "./broken.toml"]);
        assert!(broken.status.code() == Some(69) && text(&broken).contains("none-of-that-name"), "{}", text(&broken));
        let told = succeeds(&account.tierbox(&["config", "auth", "./made.toml"]));
        assert!(told.contains("usual chain"), "{told}");

        // The server's machines have this host's kernel, and so are no machines: whoever verifies sees that.
        let refused = account.tierbox(&["run", "--profile", "./made.toml", "--", "true"]);
        assert!(refused.status.code() != Some(0) && text(&refused).contains("h.kernel.boot"), "{}", text(&refused));
        write(
            &account.at("unverified.toml"),
            "extends = \"./made.toml\"\nverify = \"off\"\nreason = \"the server's machines are none\"\n",
        );
        let ran = account.tierbox(&["run", "--quiet", "--profile", "./unverified.toml", "--", "echo", "here"]);
        assert_eq!(succeeds(&ran), "here\n", "{}", text(&ran));

        logs_in(&account);

        let told = succeeds(&account.tierbox(&["ec2", "cleanup", "./made.toml", "--yes"]));
        assert!(told.contains("nothing to remove"), "{told}");
        let teardown = || account.tierbox(&[&["ec2", "teardown", "--yes"][..], &account.flags()].concat());
        let told = succeeds(&teardown());
        assert!(told.contains(&format!("removed: stack {}", account.key)), "{told}");
        assert!(succeeds(&teardown()).contains("nothing to remove"));
    }

    /// A person's terminal is a session of SSM: the program that is missing is named, and what is run is what AWS documents. The server
    /// has no sessions.
    fn logs_in(account: &Account) {
        use std::os::unix::fs::PermissionsExt;
        let tools = account.at("tools");
        std::fs::create_dir(&tools).unwrap();
        let shell = |more: &[&str]| {
            let path = format!("{}:/usr/bin:/bin", tools.display());
            account.tierbox_with(&[&["shell", "--profile", "./unverified.toml"], more].concat(), &[("PATH", &path)])
        };
        let tool = |name: &str| {
            write(&tools.join(name), "#!/bin/sh\necho \"$0 $*\"; exit 7\n");
            std::fs::set_permissions(tools.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let refused = shell(&[]);
        assert!(refused.status.code() != Some(0) && text(&refused).contains("--as-harness"), "{}", text(&refused));
        let missing = shell(&["--as-harness"]);
        assert!(text(&missing).contains("aws is not installed"), "{}", text(&missing));
        tool("aws");
        let missing = shell(&["--as-harness"]);
        assert!(text(&missing).contains("session-manager-plugin is not installed"), "{}", text(&missing));
        tool("session-manager-plugin");
        let done = shell(&["--as-harness"]);
        let told = text(&done);
        assert_eq!(done.status.code(), Some(7), "{told}");
        for part in ["/aws ssm start-session --region us-east-1 --target i-", "AWS-StartInteractiveCommand", "sudo -i -u tierbox"]
        {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }

    #[test]
    fn a_configuration_becomes_profiles_without_its_secrets() {
        let Some(account) = Account::new("import") else { return };
        let file = r#"{
            "_comment": "ignored",
            "default": {"instance_id": "i-0123456789abcdef0", "region": "us-east-1", "access_key_id": "AKIAHIDDEN",
                        "secret_access_key": "hunter2", "max_execution_time": 300, "allowed_runtimes": ["python3", "bash"]},
            "education": {"instance_id": "i-0123456789abcdef0", "region": "us-east-1", "aws_profile": "school", "max_memory_mb": 256}
        }"#;
        write(&account.at("config.json"), file);
        std::fs::create_dir(account.at("profiles")).unwrap();
        let told = succeeds(&account.tierbox(&["config", "import", "config.json", "--output", "profiles"]));
        assert!(
            told.contains("default.toml, which takes its keys from AWS_ACCESS_KEY_ID") && told.contains("education.toml\n"),
            "{told}"
        );
        for name in ["default", "education"] {
            let path = account.at("profiles").join(format!("{name}.toml"));
            let profile = std::fs::read_to_string(&path).unwrap();
            assert!(!profile.contains("hunter2") && !profile.contains("AKIA"), "{profile}");
            succeeds(&account.tierbox(&["config", "validate", &path.to_string_lossy()]));
        }
        // The variables of who runs it come before what such a profile says.
        for name in ["default", "education"] {
            let told = succeeds(&account.tierbox(&["config", "auth", &format!("profiles/{name}.toml")]));
            assert!(told.contains("keys that the profile or its variables name"), "{told}");
        }
        // Nothing is written over, and nothing is written where one cannot be.
        std::fs::remove_file(account.at("profiles/default.toml")).unwrap();
        let again = account.tierbox(&["config", "import", "config.json", "--output", "profiles"]);
        assert!(again.status.code() != Some(0) && !account.at("profiles/default.toml").exists(), "{}", text(&again));
    }
}
