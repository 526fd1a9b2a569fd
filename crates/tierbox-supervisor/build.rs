//! Tells the packages that depend on this one where its sources are, so that they can build the program from them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::metadata=source={directory}");
}
