//! Columns for people.

/// Rows under headings, columns aligned, without trailing spaces. What sandboxes and people named is made harmless.
pub(crate) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| crate::neutral::line(cell.as_bytes())).collect()).collect();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&headings).chain(&rows);
    let widths: Vec<usize> =
        (0..headings.len()).map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let lines = all().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A time span in its two biggest units.
pub(crate) fn span(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match () {
        () if days > 0 => format!("{days}d {hours}h"),
        () if hours > 0 => format!("{hours}h {minutes}m"),
        () if minutes > 0 => format!("{minutes}m {}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod unit {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "b".into()], vec!["long\x1b".into(), String::new()]];
        assert_eq!(render(&["ID", "NAME"], &rows), "ID      NAME\na       b\nlong^[");
    }

    #[test]
    fn spans_are_short() {
        let shown: Vec<String> = [5, 65, 3700, 90000].iter().map(|seconds| span(Duration::from_secs(*seconds))).collect();
        assert_eq!(shown, ["5s", "1m 5s", "1h 1m", "1d 1h"]);
    }
}
