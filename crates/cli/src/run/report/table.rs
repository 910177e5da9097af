//! The report as text.

use std::fmt::Write;

use super::{Report, count, grouped, nanoseconds};
use crate::run::{histogram::Histogram, tally::Tally};

const HEAD: [&str; 8] = ["source", "path", "signalled", "delivered", "coalesced", "lost", "p50", "p99"];
/// Columns from this one on are numbers, set to the right.
const NUMBERS: usize = 2;

fn figures(tally: &Tally, latency: &Histogram) -> [String; 6] {
    [
        grouped(tally.signalled),
        grouped(tally.delivered),
        grouped(tally.coalesced),
        grouped(tally.lost),
        nanoseconds(latency.quantile(0.5)),
        nanoseconds(latency.quantile(0.99)),
    ]
}

fn row(source: String, path: String, figures: [String; 6]) -> Vec<String> {
    [source, path].into_iter().chain(figures).collect()
}

fn aligned(rows: &[Vec<String>], out: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[column] - cell.chars().count());
            if column < NUMBERS {
                line += &format!("{cell}{fill}  ");
            } else {
                line += &format!("{fill}{cell}  ");
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// The table of a run: every vector, every device, the total, and what went wrong.
fn table(report: &Report, every_vector: bool) -> String {
    let mut rows = vec![HEAD.map(String::from).to_vec()];
    if every_vector {
        for vector in &report.vectors {
            let figures = figures(&vector.tally, &vector.latency);
            rows.push(row(vector.source.clone(), vector.path.clone(), figures));
        }
        rows.push(vec![String::new(); HEAD.len()]);
    }
    for (name, vectors, tally, latency) in report.devices() {
        rows.push(row(name.into(), count(vectors as u64, "vector"), figures(&tally, &latency)));
    }
    rows.push(row("total".into(), String::new(), figures(&report.total, &report.latency())));
    let mut out = String::new();
    aligned(&rows, &mut out);
    out.push('\n');
    out += &verdict(report);
    out
}

/// A run and those beside it, in full.
pub fn text(report: &Report) -> String {
    let mut out = table(report, true);
    for beside in &report.beside {
        let _ = writeln!(out, "\nBeside it, the same work with --chips {}:\n", beside.chips);
        out += &table(beside, false);
    }
    if let Some(parity) = &report.parity {
        let _ = writeln!(out, "\n{}: {} passed, {} failed", parity.oracle, parity.passed, parity.failed);
    }
    out
}

/// A run in a few lines.
pub fn brief(report: &Report) -> String {
    table(report, false)
}

fn verdict(report: &Report) -> String {
    let Report { machine, chips, vcpus, processes, total, seconds, .. } = report;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{machine} with --chips {chips}: {}, {}, {} delivered in {seconds:.2} s ({} a second).",
        count(u64::from(*vcpus), "vCPU"),
        count(*processes as u64, "device process"),
        count(total.delivered, "interrupt"),
        grouped(report.rate() as u64)
    );
    for note in &report.notes {
        let _ = writeln!(out, "{note}");
    }
    if report.interrupted {
        let _ = writeln!(out, "Interrupted: these are the figures up to then.");
    }
    for problem in &report.problems {
        let _ = writeln!(out, "PROBLEM: {}", problem.0);
    }
    if total.held > 0 {
        let _ = writeln!(out, "HELD: {} are pending at a vCPU that takes no more interrupts.", grouped(total.held));
    }
    if total.duplicated > 0 {
        let _ = writeln!(out, "DUPLICATED: {} arrived that nobody had signalled.", grouped(total.duplicated));
    }
    if total.lost == 0 {
        let _ = writeln!(out, "lost: 0, duplicated: {}", total.duplicated);
    } else {
        let worst: Vec<_> = report.vectors.iter().filter(|vector| vector.tally.lost > 0).collect();
        let names: Vec<_> =
            worst.iter().take(6).map(|vector| format!("{} ({})", vector.source, vector.tally.lost)).collect();
        let more = if worst.len() > 6 { format!(" and {} more vectors", worst.len() - 6) } else { String::new() };
        let _ = writeln!(out, "LOST: {}: {}{more}", grouped(total.lost), names.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn columns_line_up_and_the_loss_is_named() {
        let text = table(&sample(), true);
        let lines: Vec<_> = text.lines().collect();
        let end = |line: &str, word: &str| line.chars().count() - line.split(word).last().unwrap().chars().count();
        assert_eq!(end(lines[0], "signalled"), end(lines[1], "1,000"), "{text}");
        assert_eq!(end(lines[0], "delivered"), end(lines[1], "999"), "{text}");
        assert!(text.contains("LOST: 1: network/0 (1)"), "{text}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn a_good_run_says_so() {
        let mut report = sample();
        report.total.lost = 0;
        let text = brief(&report);
        assert!(text.contains("999 interrupts delivered in 0.50 s (1,998 a second)"), "{text}");
        assert!(text.ends_with("lost: 0, duplicated: 0\n"), "{text}");
    }
}
