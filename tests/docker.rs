//! What only containers of an engine have: images of every kind, compose files, builds, and engines that fail.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "docker/compose.rs"]
mod compose;
#[cfg(target_os = "linux")]
#[path = "docker/detached.rs"]
mod detached;
#[cfg(target_os = "linux")]
#[path = "docker/engine.rs"]
mod engine;
#[cfg(target_os = "linux")]
#[path = "docker/failing.rs"]
mod failing;
#[cfg(target_os = "linux")]
#[path = "serve/http.rs"]
mod http;
#[cfg(target_os = "linux")]
#[path = "docker/images.rs"]
mod images;
#[cfg(target_os = "linux")]
#[path = "docker/links.rs"]
mod links;
#[cfg(target_os = "linux")]
#[path = "docker/lying.rs"]
mod lying;
#[cfg(target_os = "linux")]
#[path = "docker/names.rs"]
mod names;
#[cfg(target_os = "linux")]
#[path = "docker/outside.rs"]
mod outside;
#[cfg(target_os = "linux")]
#[path = "docker/plain.rs"]
mod plain;
#[cfg(target_os = "linux")]
#[path = "../crates/tierbox/tests/sabotaged/mod.rs"]
mod sabotaged;
#[cfg(target_os = "linux")]
#[path = "docker/served.rs"]
mod served;
#[cfg(target_os = "linux")]
#[path = "docker/streams.rs"]
mod streams;
#[cfg(target_os = "linux")]
#[path = "docker/verified.rs"]
mod verified;
#[cfg(target_os = "linux")]
#[path = "docker/world.rs"]
mod world;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    // The gateway of an environment that is detached.
    if let Some(code) = tierbox::egress::run_if_asked() {
        return code;
    }
    match support::again::role().as_deref() {
        Some(detached::STARTER) => return detached::starter(),
        Some(verified::PROBED) => return verified::probed(),
        Some(engine::CLOSED) => return engine::closed(),
        _ => {}
    }
    let trials = [
        images::all(),
        compose::all(),
        engine::all(),
        failing::all(),
        links::all(),
        lying::all(),
        names::all(),
        outside::all(),
        plain::all(),
        streams::all(),
        detached::all(),
        served::all(),
        verified::all(),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials.into_iter().flatten().collect()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
