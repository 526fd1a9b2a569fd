//! What only containers of an engine have: images of every kind, compose files, builds, and engines that fail.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "docker/compose.rs"]
mod compose;
#[cfg(target_os = "linux")]
#[path = "docker/engine.rs"]
mod engine;
#[cfg(target_os = "linux")]
#[path = "docker/failing.rs"]
mod failing;
#[cfg(target_os = "linux")]
#[path = "docker/images.rs"]
mod images;
#[cfg(target_os = "linux")]
#[path = "docker/names.rs"]
mod names;
#[cfg(target_os = "linux")]
#[path = "docker/world.rs"]
mod world;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let trials =
        images::all().into_iter().chain(compose::all()).chain(engine::all()).chain(failing::all()).chain(names::all()).collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
