//! Sizes, durations and CPU shares as people write them, and back.
//!
//! Reading is strict: a duration without a unit is an error, and so is a unit whose meaning could be guessed in two
//! ways. What [`format_size`], [`format_duration`] and [`format_cpu`] write is read back as the same value.

use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};

const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Milliseconds of each unit, greatest first.
const TIME_UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a size: `10MiB`, `1GB`, `1.5GiB`, `512B`, or a bare number of bytes.
///
/// ```
/// use tierbox_profile::units::parse_size;
///
/// assert_eq!(parse_size("10MiB")?, 10 * 1024 * 1024);
/// assert_eq!(parse_size("1GB")?, 1_000_000_000);
/// assert!(parse_size("10M").is_err()); // MB or MiB?
/// # Ok::<(), tierbox_core::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` that says what to write instead.
pub fn parse_size(text: &str) -> Result<u64> {
    let (number, unit) = split_number(text);
    if number.is_empty() || unit.is_empty() {
        return number.parse().map_err(|_| bad_size(text, "is not a size"));
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(bad_size(text, &format!("has the unknown unit {}", shown(unit))));
    };
    scaled(number, *factor).map_err(|why| bad_size(text, why))
}

/// Writes a size exactly, in the greatest binary unit that needs no fraction.
pub fn format_size(bytes: u64) -> String {
    let unit = SIZE_UNITS[..4].iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    let (name, factor) = unit.copied().unwrap_or(("B", 1));
    format!("{}{name}", bytes / factor)
}

/// Writes a size for a glance, with three digits or fewer and a rounded last one: `1.4 GiB`. It is not read back.
pub fn approximate_size(bytes: u64) -> String {
    let Some((name, factor)) = SIZE_UNITS[..4].iter().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    let value = bytes as f64 / *factor as f64;
    if value < 9.95 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

/// Reads a duration: `500ms`, `90s`, `10m`, `1h30m`, `2d`. Units go from great to small, each once; a number without a
/// unit is refused.
///
/// ```
/// use std::time::Duration;
/// use tierbox_profile::units::parse_duration;
///
/// assert_eq!(parse_duration("1h30m")?, Duration::from_secs(5400));
/// assert!(parse_duration("90").is_err()); // seconds? milliseconds?
/// # Ok::<(), tierbox_core::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` that says what to write instead.
pub fn parse_duration(text: &str) -> Result<Duration> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(bad_duration(text, "is not a duration"));
    }
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let unit = &after[..after.find(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').unwrap_or(after.len())];
        rest = after[unit.len()..].trim_start_matches(' ');
        if unit.is_empty() {
            return Err(bad_duration(text, "has a number without a unit"));
        }
        let Some((_, factor)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(bad_duration(text, &format!("has the unknown unit {}", shown(unit))));
        };
        if *factor >= smallest {
            return Err(bad_duration(text, "has its units out of order"));
        }
        smallest = *factor;
        let part = scaled(number, *factor).map_err(|why| bad_duration(text, why))?;
        total = total.checked_add(part).ok_or_else(|| bad_duration(text, "is too long"))?;
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration exactly to the millisecond: `1h30m`, `500ms`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, factor) in TIME_UNITS {
        let count = rest / factor;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            rest %= factor;
        }
    }
    text
}

/// Reads a share of CPUs, in thousandths of one: `1.5`, `2` or `1500m`.
///
/// # Errors
/// `InvalidInput` that says what to write instead.
pub fn parse_cpu(text: &str) -> Result<u64> {
    let (number, unit) = split_number(text);
    let factor = match unit {
        _ if number.is_empty() => return Err(bad_cpu(text, "is not a share of CPUs")),
        "" => 1000,
        "m" => 1,
        _ => return Err(bad_cpu(text, &format!("has the unknown unit {}", shown(unit)))),
    };
    scaled(number, factor).map_err(|why| bad_cpu(text, why))
}

/// Writes a share of CPUs: `1.5` for 1500 thousandths.
pub fn format_cpu(millis: u64) -> String {
    let (whole, part) = (millis / 1000, millis % 1000);
    if part == 0 { whole.to_string() } else { format!("{whole}.{part:03}").trim_end_matches('0').to_owned() }
}

/// The leading number of a text, and what follows it.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A decimal number times a factor, if that is a whole number that fits.
fn scaled(number: &str, factor: u64) -> Result<u64, &'static str> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let has_point = number.contains('.');
    if whole.is_empty() || (has_point && part.is_empty()) || part.contains('.') {
        return Err("has no proper number before its unit");
    }
    if part.len() > 9 {
        return Err("has too many digits");
    }
    let whole: u64 = whole.parse().map_err(|_| "is too great")?;
    let scale = 10_u128.pow(part.len() as u32);
    let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| "has no proper number before its unit")? };
    // Twenty digits, nine behind the point and a factor of twelve more are beyond even these.
    let product = (u128::from(whole) * scale + part).checked_mul(u128::from(factor)).ok_or("is too great")?;
    if !product.is_multiple_of(scale) {
        return Err("is not a whole number of its smallest unit");
    }
    u64::try_from(product / scale).map_err(|_| "is too great")
}

/// At most 40 characters of a text, quoted and escaped.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}

fn bad_size(text: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read size", format!("{} {why}", shown(text))).with_help(
        "write a number and KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000), such as \"512MiB\"",
    )
}

fn bad_duration(text: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read duration", format!("{} {why}", shown(text)))
        .with_help("write numbers with ms, s, m, h or d, greatest first, such as \"90s\" or \"1h30m\"")
}

fn bad_cpu(text: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read cpu share", format!("{} {why}", shown(text)))
        .with_help("write CPUs such as 1.5, or thousandths such as \"1500m\"")
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("1KiB", 1024),
            ("1.5GiB", 3 << 29),
            ("10MB", 10_000_000),
            ("2kB", 2000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn doubtful_sizes_are_refused() {
        for text in
            ["", "10M", "1gib", "1 GiB", "-1", "1.0001KiB", "1e3", "99999999TiB", ".5GiB", "1.GiB", "1GiB ", "0x10", "1..5KiB"]
        {
            assert_eq!(parse_size(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text:?}");
        }
    }

    /// Digits enough to pass 128 bits on the way: the last of the first three would come out as 3TiB.
    #[test]
    fn what_is_too_great_is_refused_and_not_taken_for_less() {
        for text in ["18446744073709551615TiB", "18446744073709551615.999999999TiB", "309485009821345071.724781056TiB"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.message().contains("is too great"), "{text}: {error}");
        }
        let most = format!("{}.999999999", u64::MAX);
        assert!(
            parse_duration(&format!("{most}d")).is_err()
                && parse_cpu(&most).is_err()
                && parse_size(&format!("{most}EiB")).is_err()
        );
        assert_eq!(parse_size("18446744073709551615").unwrap(), u64::MAX);
        assert_eq!(parse_size("18446744073709551615B").unwrap(), u64::MAX);
        for text in ["18446744073709551616", "1e309", "NaN", "inf", "-0", "+1", "١GiB"] {
            assert!(parse_size(text).is_err() && parse_cpu(text).is_err() && parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, millis) in [
            ("500ms", 500),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5s", 1500),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn doubtful_durations_are_refused() {
        for text in ["", "90", "10M", "1m1m", "30m1h", "1hour", "-1s", "1h30", "s", "9999999999999999d", "0.0001ms", " 1s"] {
            assert_eq!(parse_duration(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text:?}");
        }
    }

    #[test]
    fn cpu_shares() {
        for (text, millis) in [("1.5", 1500), ("2", 2000), ("1500m", 1500), ("0.25", 250)] {
            assert_eq!(parse_cpu(text).unwrap(), millis, "{text}");
        }
        for text in ["", "1.5m", "half", "-1", "1.00005", "2 cpus"] {
            assert!(parse_cpu(text).is_err(), "{text:?}");
        }
        assert_eq!(format_cpu(1500), "1.5");
    }

    #[test]
    fn a_glance_needs_few_digits() {
        assert_eq!(approximate_size(1_503_238_554), "1.4 GiB");
        assert_eq!(approximate_size(52 << 20), "52 MiB");
        assert_eq!(approximate_size(999), "999 B");
    }

    proptest! {
        #[test]
        fn sizes_come_back(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
        }

        #[test]
        fn round_sizes_come_back(count in 0u64..4096, shift in 0u32..50) {
            prop_assert_eq!(parse_size(&format_size(count << shift)).unwrap(), count << shift);
        }

        #[test]
        fn durations_come_back(millis in 0u64..=u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn cpu_shares_come_back(millis in 0u64..10_000_000) {
            prop_assert_eq!(parse_cpu(&format_cpu(millis)).unwrap(), millis);
        }

        #[test]
        fn any_text_gets_an_answer(text in ".{0,24}") {
            let _ = (parse_size(&text), parse_cpu(&text));
            if let Ok(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
            }
        }
    }
}
