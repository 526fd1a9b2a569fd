//! A bar chart: how much of its bar each row uses.

use std::fmt::Write as _;

use crate::report::{Row, Run, Verdict, short};

const LEFT: f64 = 300.0;
const SCALE: f64 = 200.0;
const LINE: f64 = 26.0;
const TOP: f64 = 54.0;
/// Bars longer than this many times the promise are cut.
const MOST: f64 = 2.0;

/// The chart as an SVG document that needs no font or style of its own.
pub(crate) fn svg(run: &Run) -> String {
    let height = TOP + LINE * run.rows.len() as f64 + 40.0;
    let width = LEFT + SCALE * MOST + 220.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">Cost as a share of what is promised: less is better</text>"
    );
    for (share, label) in [(0.0, "0"), (0.5, "half"), (1.0, "the bar"), (2.0, "twice")] {
        let x = LEFT + SCALE * share;
        let (stroke, dash) = if share == 1.0 { ("#333333", "") } else { ("#cccccc", " stroke-dasharray=\"3 3\"") };
        let bottom = height - 34.0;
        let _ = writeln!(svg, "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"{stroke}\"{dash}/>", TOP - 8.0);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{label}</text>", TOP - 12.0);
    }
    for (index, row) in run.rows.iter().enumerate() {
        bar(&mut svg, row, TOP + LINE * index as f64);
    }
    let _ = writeln!(svg, "<text x=\"12\" y=\"{}\" fill=\"#555555\">{}</text>", height - 12.0, escape(&run.machine.to_string()));
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, row: &Row, y: f64) {
    let colour = match row.verdict {
        Verdict::Met => "#2e7d32",
        Verdict::Missed => "#ef6c00",
        Verdict::Over | Verdict::Failed => "#c62828",
    };
    let share = if row.ratio.is_finite() { (row.ratio / row.bar).clamp(0.0, MOST) } else { 0.0 };
    let length = (share * SCALE).max(1.0);
    let text = y + 15.0;
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, escape(&row.name));
    let _ = writeln!(svg, "<rect x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"16\" fill=\"{colour}\"/>", y + 2.0);
    let told = match row.measured {
        Some(measured) => {
            let amount = format!("{} {}", short(measured.median), row.unit);
            format!("{}, {} of {}", amount.trim_end(), row.ratio_shown(), row.bar_shown())
        }
        None => row.verdict.to_string(),
    };
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{text}\" fill=\"#333333\">{}</text>", LEFT + length + 8.0, escape(&told));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::machine::Machine;
    use crate::stats::Summary;

    #[test]
    fn every_row_has_a_bar_within_the_picture() {
        let row = |measured| Row::less_is_better("a <b> & c", "ms", Summary::one(measured), "y", Summary::one(1.0), 1.0);
        let rows = vec![row(0.5), row(1.5), row(900.0), Row::failed("d", 1.0, "no")];
        let text = svg(&Run { machine: Machine::read(), quick: true, rows });
        assert_eq!(text.matches("height=\"16\"").count(), 4);
        assert!(text.contains("a &lt;b&gt; &amp; c") && text.contains("width=\"400.0\"") && text.ends_with("</svg>\n"), "{text}");
    }
}
