//! Rows, the table, and JSON.

use std::fmt;

use serde::Serialize;

use crate::machine::Machine;
use crate::stats::Summary;

/// How a row came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Within its bar.
    Met,
    /// Over its bar, by less than twice.
    Missed,
    /// Over twice its bar.
    Over,
    /// It could not be measured.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Over => "OVER TWICE THE BAR",
            Self::Failed => "FAILED",
        })
    }
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub name: String,
    /// What tierbox took, or gave.
    pub measured: Option<Summary>,
    /// What the floor or peer took, or gave; or the fixed bound.
    pub reference: Option<Summary>,
    /// What the reference is.
    pub against: String,
    pub unit: &'static str,
    /// How many times worse than the reference: of times theirs goes below, of rates above.
    pub ratio: f64,
    /// The greatest ratio that is promised.
    pub bar: f64,
    pub verdict: Verdict,
    /// Where the time goes, and what else is worth knowing.
    pub notes: Vec<String>,
}

impl Row {
    /// A row of times, or of anything of which less is better.
    pub fn less_is_better(
        name: &str,
        unit: &'static str,
        measured: Summary,
        against: &str,
        reference: Summary,
        bar: f64,
    ) -> Self {
        Self::new(name, unit, measured, against, reference, measured.median / reference.median, bar)
    }

    /// A row of rates.
    pub fn more_is_better(
        name: &str,
        unit: &'static str,
        measured: Summary,
        against: &str,
        reference: Summary,
        bar: f64,
    ) -> Self {
        Self::new(name, unit, measured, against, reference, reference.median / measured.median, bar)
    }

    fn new(name: &str, unit: &'static str, measured: Summary, against: &str, reference: Summary, ratio: f64, bar: f64) -> Self {
        let verdict = match ratio / bar {
            share if share <= 1.0 => Verdict::Met,
            share if share <= 2.0 => Verdict::Missed,
            _ => Verdict::Over,
        };
        Self {
            name: name.to_owned(),
            measured: Some(measured),
            reference: Some(reference),
            against: against.to_owned(),
            unit,
            ratio,
            bar,
            verdict,
            notes: Vec::new(),
        }
    }

    /// A row that could not be measured.
    pub fn failed(name: &str, bar: f64, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            measured: None,
            reference: None,
            against: String::new(),
            unit: "",
            ratio: f64::NAN,
            bar,
            verdict: Verdict::Failed,
            notes: vec![why.replace('\n', "; ")],
        }
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    fn cells(&self) -> [String; 6] {
        let shown = |summary: Option<Summary>| {
            summary.map_or("-".to_owned(), |summary| format!("{} {}", short(summary.median), self.unit).trim_end().to_owned())
        };
        let against = if self.against.is_empty() { String::new() } else { format!(" ({})", self.against) };
        [
            self.name.clone(),
            shown(self.measured),
            format!("{}{against}", shown(self.reference)),
            self.ratio_shown(),
            self.bar_shown(),
            self.verdict.to_string(),
        ]
    }

    /// The ratio with as many digits as tell it from its bar.
    pub fn ratio_shown(&self) -> String {
        match self.ratio {
            ratio if !ratio.is_finite() => "-".to_owned(),
            ratio if ratio < 0.1 => format!("{ratio:.4}"),
            ratio => format!("{ratio:.2}"),
        }
    }

    /// All digits of the bar, and one after the point.
    pub fn bar_shown(&self) -> String {
        format!("{:?}", self.bar)
    }
}

/// A number with three digits or so.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub machine: Machine,
    pub quick: bool,
    pub rows: Vec<Row>,
}

impl Run {
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// The table is Markdown that reads well as it stands.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what", "tierbox", "against", "ratio", "bar", "verdict"].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let widths: Vec<usize> =
            (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()).collect();
        for (index, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if index == 0 {
                let rules = widths.iter().map(|width| "-".repeat(*width));
                writeln!(f, "| {} |", rules.collect::<Vec<_>>().join(" | "))?;
            }
        }
        writeln!(f)?;
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            writeln!(f, "{}: {}", row.name, row.notes.join("; "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn verdict(measured: f64, reference: f64, bar: f64) -> Verdict {
        Row::less_is_better("x", "ms", Summary::one(measured), "y", Summary::one(reference), bar).verdict
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(2.0, 1.0, 2.0), Verdict::Met);
        assert_eq!(verdict(2.1, 1.0, 2.0), Verdict::Missed);
        assert_eq!(verdict(4.1, 1.0, 2.0), Verdict::Over);
        assert_eq!(verdict(0.0, 0.0, 2.0), Verdict::Over, "nothing measured is not good");
        let rate = Row::more_is_better("x", "GiB/s", Summary::one(1.0), "y", Summary::one(2.0), 2.0);
        assert_eq!((rate.ratio, rate.verdict), (2.0, Verdict::Met));
    }

    #[test]
    fn the_table_is_aligned() {
        let rows = vec![
            Row::less_is_better("one", "ms", Summary::one(1.5), "bwrap", Summary::one(3.0), 1.0).note("half of it in the kernel"),
            Row::failed("a longer name", 2.0, "no\nway"),
        ];
        let run = Run { machine: Machine::read(), quick: true, rows };
        let text = run.to_string();
        let lengths: Vec<usize> = text.lines().take(4).map(|line| line.chars().count()).collect();
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("one: half of it in the kernel\na longer name: no; way\n"), "{text}");
        assert!(run.to_json().unwrap().contains("\"verdict\": \"failed\""));
    }
}
