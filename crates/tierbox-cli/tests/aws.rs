//! `tierbox ec2`, `config import` and `config auth`, on a server that imitates AWS.
#![cfg(all(feature = "ec2", target_os = "linux"))]

mod support;

mod aws {
    use std::io::{BufRead, BufReader, Write};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};

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
            self.command(arguments, variables).output().unwrap()
        }

        fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
            let mut command: Command = tierbox(&self.at("state"));
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
                command.env_remove(name);
            }
            command
                .env("AWS_ACCESS_KEY_ID", &self.key)
                .env("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
                .current_dir(self.directory.path());
            command.envs(variables.iter().copied()).args(arguments);
            command
        }

        /// A harness in whose sandbox a command runs for long, until somebody ends it.
        fn at_work(&self, profile: &str, variables: &[(&str, &str)]) -> Child {
            let arguments = ["run", "--quiet", "--profile", profile, "--", "sh", "-c", "echo up; exec sleep 1000"];
            let mut child = self.command(&arguments, variables).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "up\n");
            child
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

        reads_its_input(&account);
        logs_in(&account);
        asks_first(&account);

        let told = succeeds(&account.tierbox(&["ec2", "cleanup", "./made.toml", "--yes"]));
        assert!(told.contains("nothing to remove"), "{told}");
        let teardown = || account.tierbox(&[&["ec2", "teardown", "--yes"][..], &account.flags()].concat());
        let told = succeeds(&teardown());
        assert!(told.contains(&format!("removed: stack {}", account.key)), "{told}");
        assert!(succeeds(&teardown()).contains("nothing to remove"));
    }

    /// Input that comes by a pipe is given as a whole, since nothing reaches a command there while it runs.
    fn reads_its_input(account: &Account) {
        let arguments = ["run", "--quiet", "--profile", "./unverified.toml", "--", "sha256sum"];
        let mut command = account.command(&arguments, &[]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&[b'x'; 100_000]).unwrap();
        let told = succeeds(&child.wait_with_output().unwrap());
        assert!(told.starts_with("d69e689881578332"), "{told}");
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

    /// What somebody uses is not ended by mistake: without a terminal and without `--yes`, nothing is.
    fn asks_first(account: &Account) {
        let mut harness = account.at_work("./unverified.toml", &[]);
        let all = account.tierbox(&["ec2", "cleanup", "./made.toml", "--all"]);
        assert!(all.status.code() != Some(0) && text(&all).contains("--yes"), "{}", text(&all));
        // Others may work in that account too: whose it is stands in the lease.
        let listed = account.tierbox(&["--json", "ls"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let id = listed["environments"][0]["id"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
        assert!(text(&all).contains(&id), "{}", text(&all));
        let one = account.tierbox(&["ec2", "cleanup", "./made.toml", "--id", &id]);
        assert!(one.status.code() != Some(0) && text(&one).contains("--yes"), "{}", text(&one));
        assert_eq!(harness.try_wait().unwrap(), None, "it was ended");
        let told = succeeds(&account.tierbox(&["ec2", "cleanup", "./made.toml", "--id", &id, "--yes"]));
        assert!(told.contains("removed: instance") && told.contains(&id), "{told}");
        let again = succeeds(&account.tierbox(&["ec2", "cleanup", "./made.toml", "--id", &id]));
        assert!(again.contains("nothing to remove"), "{again}");
        harness.kill().unwrap();
        harness.wait().unwrap();
        succeeds(&account.tierbox(&["cleanup"]));
    }

    /// The variable alone says where AWS is: to every call, to the profile that is written, and to who cleans up later without it.
    #[test]
    fn an_endpoint_is_named_by_a_variable_alone() {
        let Some(account) = Account::new("var") else { return };
        let by = [("AWS_ENDPOINT_URL", account.url.as_str()), ("AWS_REGION", "us-east-1")];
        let setup = ["ec2", "setup", "--yes", "--output", "made.toml", "--stack", &account.key];
        succeeds(&account.tierbox_with(&setup, &by));
        let profile = std::fs::read_to_string(account.at("made.toml")).unwrap();
        assert!(profile.contains(&account.url) && profile.contains("region = \"us-east-1\""), "{profile}");
        succeeds(&account.tierbox(&["ec2", "check", "./made.toml"]));
        // A profile that does not say it, as people write theirs.
        let lines = profile.lines().filter(|line| !line.starts_with("endpoint-url") && !line.starts_with("region"));
        let own: String = lines.flat_map(|line| [line, "\n"]).collect();
        write(&account.at("own.toml"), &own.replace("[ec2]", "verify = \"off\"\nreason = \"a test\"\n\n[ec2]"));
        let told = succeeds(&account.tierbox_with(&["ec2", "check", "./own.toml"], &by));
        assert!(told.contains("N2") && told.contains("role"), "{told}");
        let mut harness = account.at_work("./own.toml", &by);
        harness.kill().unwrap();
        harness.wait().unwrap();
        let told = succeeds(&account.tierbox(&["cleanup"]));
        assert!(told.contains("instance i-"), "{told}");
        let teardown = ["ec2", "teardown", "--yes", "--stack", &account.key];
        let told = succeeds(&account.tierbox_with(&teardown, &by));
        assert!(told.contains(&format!("removed: stack {}", account.key)), "{told}");
    }

    /// Who asks is who the profile names, though there are keys in the environment; and what is told of it is so.
    #[test]
    fn a_profile_of_credentials_goes_before_keys_in_the_environment() {
        let Some(account) = Account::new("who") else { return };
        let keys = "[other]\naws_access_key_id = OTHR0123456789\naws_secret_access_key = hunter2other\n";
        write(&account.at("credentials"), keys);
        write(&account.at("config"), "[profile other]\nregion = us-east-1\n");
        let at = |name: &str| account.at(name).display().to_string();
        let (credentials, config) = (at("credentials"), at("config"));
        let files = [("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()), ("AWS_CONFIG_FILE", config.as_str())];
        let of =
            |profile: &str| format!("extends = \"ec2\"\n[ec2]\nbucket = \"b\"\nendpoint-url = \"{}\"\n{profile}", account.url);
        write(&account.at("named.toml"), &of("profile = \"other\"\n"));
        let checked = text(&account.tierbox_with(&["ec2", "check", "./named.toml"], &files));
        assert!(checked.contains("keys that begin with OTHR, from the profile other"), "{checked}");
        let told = succeeds(&account.tierbox_with(&["config", "auth", "./named.toml"], &files));
        assert!(told.contains("the profile other"), "{told}");
        // A variable that names a profile is of AWS's usual chain, in which keys go first: it is told so.
        write(&account.at("chain.toml"), &of(""));
        let variables = [files[0], files[1], ("AWS_PROFILE", "other")];
        let checked = text(&account.tierbox_with(&["ec2", "check", "./chain.toml"], &variables));
        let start: String = account.key.chars().take(4).collect();
        assert!(checked.contains(&format!("keys that begin with {start}, from AWS's usual chain")), "{checked}");
        let told = succeeds(&account.tierbox_with(&["config", "auth", "./chain.toml"], &variables));
        assert!(told.contains("AWS_ACCESS_KEY_ID, which go before AWS_PROFILE"), "{told}");
        // With an instance that exists the variable overrides the profile.
        write(&account.at("attach.toml"), &of("instance-id = \"i-0123456789abcdef0\"\n").replace("\"ec2\"", "\"ec2-default\""));
        let checked = text(&account.tierbox_with(&["ec2", "check", "./attach.toml"], &variables));
        assert!(checked.contains("keys that begin with OTHR, from the profile other"), "{checked}");
        // One that is not there is an error, whatever keys there are.
        write(&account.at("none.toml"), &of("profile = \"nobody\"\nregion = \"us-east-1\"\n"));
        let checked = account.tierbox_with(&["ec2", "check", "./none.toml"], &files);
        assert!(checked.status.code() == Some(69) && text(&checked).contains("nobody"), "{}", text(&checked));
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
