//! The documents in `cmd/` run as they stand, on the local backend.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

mod conformance {
    use crate::support::{able, home, tierbox};

    #[test]
    fn documented_commands_do_what_they_say() {
        let state = tempfile::tempdir().unwrap();
        if !able(state.path()) {
            return;
        }
        for document in ["run", "up", "keep", "files", "code", "help"] {
            let state = state.path().join(document);
            let cases = trycmd::TestCases::new();
            cases
                .env("TIERBOX_STATE_DIR", state.to_str().unwrap())
                .env("HOME", home(&state).to_str().unwrap())
                .env("NO_COLOR", "1");
            cases.register_bin("tierbox", std::path::Path::new(env!("CARGO_BIN_EXE_tierbox")));
            cases.case(format!("tests/cmd/{document}.md"));
            cases.run();
            let left = tierbox(&state).arg("ls").arg("--json").output().unwrap();
            let left = String::from_utf8_lossy(&left.stdout).into_owned();
            assert!(left.starts_with("{\"environments\":[],\"foreign\":[]"), "after {document}: {left}");
        }
    }
}
