//! `tierbox shell` in a machine of Vagrant's: LXC, since it is quick.
#![cfg(all(feature = "vagrant", target_os = "linux"))]

mod support;

mod vm_required {
    use std::io::Write;
    use std::path::Path;
    use std::process::{Output, Stdio};

    use crate::support::{skip, tierbox};

    const PROFILE: &str = "tier = \"T0.H0.N0\"\nbackend = \"vagrant\"\nreason = \"a test\"\n[vagrant]\nprovider = \"lxc\"\n";

    fn shell(directory: &Path, more: &[&str]) -> Output {
        let mut command = tierbox(&directory.join("state"));
        command.args(["shell", "--quiet", "--profile", "./lxc.toml"]).args(more).current_dir(directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"echo $(id -un) $((6*7)); exit 5\n").unwrap();
        child.wait_with_output().unwrap()
    }

    /// Over the channel, and where scripts alone serve it by Vagrant's own login.
    #[test]
    fn a_shell_opens_in_a_machine() {
        if !std::env::var("TIERBOX_TEST_VAGRANT").is_ok_and(|providers| providers.split(',').any(|provider| provider == "lxc")) {
            return skip("vagrant", "TIERBOX_TEST_VAGRANT does not name lxc", "cargo xtask test --engine vagrant");
        }
        let directory = tempfile::tempdir().unwrap();
        let vagrantfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vagrantfiles/basic/Vagrantfile");
        let settings = format!("{PROFILE}vagrantfile = {vagrantfile:?}\n");
        for (more, help) in [("", &[][..]), ("supervisor = \"never\"\n", &["--as-harness"][..])] {
            std::fs::write(directory.path().join("lxc.toml"), format!("{settings}{more}")).unwrap();
            let said = shell(directory.path(), help);
            let shown = String::from_utf8_lossy(&said.stdout);
            assert!(shown.contains("vagrant 42") && said.status.code() == Some(5), "{more}{said:?}");
        }
    }
}
