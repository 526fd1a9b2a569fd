//! The conformance suite and the escape corpus over this backend.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use libtest_mimic::Arguments;
    use tierbox::{ErrorKind, Hold, Registry, StartOptions, Tierbox};
    use tierbox_backend_bubblewrap::{Bubblewrap, backend};
    use tierbox_testkit::{Absence, BackendFactory, Suite, run_with};

    let profiles = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles");
    let tierbox = Tierbox::builder().profile_dir(profiles).user_config(false).build().expect("the facade");
    let profile = tierbox.load("bubblewrap", &StartOptions::new()).expect("the profile");
    let spec = profile.spec(&Registry::linked(), Hold::Process).expect("its specification");
    let absent = backend::program().err().filter(|error| error.kind() == ErrorKind::MissingEngine);
    let absent = absent.map(|error| Absence { reason: error.to_string(), install: "sudo apt-get install bubblewrap".to_owned() });
    let factory = Arc::new(BackendFactory::new("bubblewrap", Arc::new(Bubblewrap), spec, absent));
    let suites = [
        Suite::conformance(backend::capabilities(), factory.clone()).variant("bubblewrap"),
        Suite::escape(backend::capabilities(), factory).variant("bubblewrap"),
    ]
    // The backend refuses root.
    .map(|suite| suite.required(include_str!("../../../tests/engines-required.txt")).as_plain_user());
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
