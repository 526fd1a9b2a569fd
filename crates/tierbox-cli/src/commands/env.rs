//! `tierbox env`.

use tierbox::{StartOptions, Tooling};

use crate::interrupt::Failure;
use crate::{Context, output};

/// What switches Inspect's tools on, and the strictest level of T at which each may be on. Browsing has no side effects that
/// T1 forbids; running programs has.
const SWITCHES: [(&str, Tooling); 3] = [
    ("INSPECT_ENABLE_EXEC", Tooling::T0),
    ("INSPECT_ENABLE_WEB_SEARCH", Tooling::T1),
    ("INSPECT_ENABLE_WEB_BROWSER", Tooling::T1),
];

pub(crate) fn env(context: &Context, profile: &str) -> Result<u8, Failure> {
    let tooling = context.client.resolve(profile, &StartOptions::new())?.tier.tooling();
    let values = SWITCHES.map(|(name, strictest)| (name, u8::from(tooling <= strictest)));
    if context.global.json {
        output::json(
            &values.iter().map(|(name, value)| (*name, value.to_string())).collect::<std::collections::BTreeMap<_, _>>(),
        );
    } else {
        values.iter().for_each(|(name, value)| output::line(format!("export {name}={value}")));
    }
    Ok(0)
}
