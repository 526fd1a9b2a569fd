//! Which names may leave an archive.

/// The steps of an entry's path, without `.` and empty ones. Empty for the root itself.
///
/// # Errors
/// What is wrong, for a path that is absolute, goes up, or cannot name anything.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.contains(&0) {
        return Err("holds a NUL byte in its name");
    }
    if path.starts_with(b"/") {
        return Err("has an absolute name");
    }
    let steps: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|step| !matches!(*step, b"" | b".")).collect();
    match () {
        () if steps.contains(&&b".."[..]) => Err("goes up with \"..\""),
        () if steps.iter().any(|step| step.len() > 255) => Err("has a name longer than 255 bytes"),
        () => Ok(steps),
    }
}

/// Whether a link in a directory `depth` levels below the root can only lead to something below the root.
///
/// Going up is allowed only at the start of the target, where the directories are those the link really lies in: after
/// a name, which may be a link that itself leads up, `..` can lead anywhere.
pub fn link_stays_inside(depth: usize, target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    let steps: Vec<&[u8]> = target.split(|&byte| byte == b'/').filter(|step| !matches!(*step, b"" | b".")).collect();
    let ups = steps.iter().take_while(|step| **step == b"..").count();
    ups <= depth && !steps[ups..].contains(&&b".."[..])
}

/// A name for people: printable on one line and of bounded length, whatever it holds.
pub fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let shown = name[..name.len().min(SHOWN)].escape_ascii().to_string();
    if name.len() > SHOWN { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn names_that_leave_are_refused() {
        for bad in [b"../x".as_slice(), b"a/../../x", b"a/..", b"/etc/passwd", b"..", b"a\0b", &[b'x'; 256]] {
            assert!(components(bad).is_err(), "{} passed", printable(bad));
        }
    }

    #[test]
    fn odd_names_that_stay_are_taken() {
        assert_eq!(components(b"./a//b/.\xff/...").unwrap(), [&b"a"[..], b"b", b".\xff", b"..."]);
        assert_eq!(components(b"./").unwrap(), Vec::<&[u8]>::new());
    }

    #[test]
    fn links_may_lead_only_inside() {
        for (depth, inside) in [(0, "a"), (0, "./a/b"), (1, ".."), (2, "../../x"), (1, "../a/b"), (0, "a..b")] {
            assert!(link_stays_inside(depth, inside.as_bytes()), "{inside} at {depth} refused");
        }
        for (depth, outside) in [(0, ".."), (1, "../.."), (0, "/x"), (3, "a/.."), (0, "a/../../x"), (0, ""), (1, "../a/../b")] {
            assert!(!link_stays_inside(depth, outside.as_bytes()), "{outside} at {depth} passed");
        }
    }

    #[test]
    fn printable_names_are_short_and_plain() {
        let shown = printable(&[0x1b; 5000]);
        assert!(shown.len() < 1000 && !shown.contains('\x1b'));
    }
}
