//! `tierbox shell` in a container: over the channel, and by the engine's own login.
#![cfg(target_os = "linux")]

mod support;

mod docker {
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    use crate::support::{skip, tierbox};

    /// What a person types.
    const TYPED: &[u8] = b"echo $(id -un) $((6*7)); exit 5\n";

    /// A state directory with a profile.
    fn profile(directory: &Path, host: &str, more: &str) {
        let text = format!(
            "tier = \"T0.H1.N2\"\nbackend = \"docker\"\n[docker]\nhost = {host:?}\nimage = \"tierbox-test/debian:1\"\npull = \"never\"\n{more}"
        );
        std::fs::write(directory.join("docker.toml"), text).unwrap();
    }

    fn typed(mut command: Command) -> Output {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(TYPED).unwrap();
        child.wait_with_output().unwrap()
    }

    fn shell(directory: &Path) -> Command {
        let mut command = tierbox(&directory.join("state"));
        command.args(["shell", "--quiet", "--profile", "./docker.toml"]).current_dir(directory);
        command
    }

    /// The same command at a terminal, as `docker exec -it` needs one.
    fn at_a_terminal(command: &Command) -> Command {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut script = Command::new("script");
        script.args(["-qec", &quoted.join(" "), "/dev/null"]);
        script.current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        script
    }

    #[test]
    fn a_shell_opens_in_a_container() {
        let Ok(host) = std::env::var("TIERBOX_ENGINE_DOCKER") else {
            return skip("docker", "TIERBOX_ENGINE_DOCKER is not set", "cargo xtask test --engine docker");
        };
        let directory = tempfile::tempdir().unwrap();
        profile(directory.path(), &host, "");
        let said = typed(shell(directory.path()));
        let shown = String::from_utf8_lossy(&said.stdout);
        assert!(shown.contains("nobody 42") && said.status.code() == Some(5), "{said:?}");
        // Without a supervisor there is no terminal but the engine's: root's inside, and for the harness alone.
        profile(directory.path(), &host, "transport = \"plain\"\n");
        let refused = typed(shell(directory.path()));
        assert!(!refused.status.success() && !refused.stdout.windows(2).any(|shown| shown == b"42"), "{refused:?}");
        let mut login = shell(directory.path());
        login.arg("--as-harness");
        let said = typed(at_a_terminal(&login));
        let shown = String::from_utf8_lossy(&said.stdout);
        assert!(shown.contains("root 42") && said.status.code() == Some(5), "{said:?}");
    }
}
