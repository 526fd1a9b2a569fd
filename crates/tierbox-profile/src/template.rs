//! The commented profile that `tierbox config template` prints.

/// A profile with every common key explained, to start from.
pub fn template() -> &'static str {
    include_str!("template.toml")
}
