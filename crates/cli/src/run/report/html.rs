//! The report as one page of HTML that needs nothing else.

use std::fmt::Write;

use super::{Report, count, grouped, nanoseconds};
use crate::run::histogram::Histogram;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c2330}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e3e6ec;white-space:nowrap}\
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}thead th{position:sticky;top:0;background:#fff}\
.bad{color:#b00020;font-weight:600}.good{color:#1b6e3a;font-weight:600}.sum td{font-weight:600;background:#f5f7fa}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#5a6372}";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page of a run and of those beside it.
pub fn page(report: &Report) -> String {
    let title = format!("doorbell run: {}", escaped(&report.machine));
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>\n"
    );
    section(report, &mut out);
    for beside in &report.beside {
        section(beside, &mut out);
    }
    if let Some(parity) = &report.parity {
        let _ = writeln!(
            out,
            "<h2>Parity</h2><p>{}: {} programs passed, {} failed.</p>",
            escaped(&parity.oracle),
            parity.passed,
            parity.failed
        );
    }
    out += "</html>\n";
    out
}

fn section(report: &Report, out: &mut String) {
    let total = &report.total;
    let _ = writeln!(
        out,
        "<h2>--chips {}</h2><p>{}, {}, {} delivered in {:.2} s ({} a second): \
         <span class=\"{}\">{} lost, {} duplicated, {} held</span>.</p>",
        escaped(report.chips),
        count(report.vcpus.into(), "vCPU"),
        count(report.processes as u64, "device process"),
        count(total.delivered, "interrupt"),
        report.seconds,
        grouped(report.rate() as u64),
        if report.is_good() { "good" } else { "bad" },
        grouped(total.lost),
        grouped(total.duplicated),
        grouped(total.held),
    );
    if report.interrupted {
        out.push_str("<p class=\"bad\">Interrupted: these are the figures up to then.</p>\n");
    }
    for problem in &report.problems {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", escaped(&problem.0));
    }
    for note in &report.notes {
        let _ = writeln!(out, "<p>{}</p>", escaped(note));
    }
    for (name, _, _, latency) in report.devices() {
        chart(name, &latency, out);
    }
    out.push_str(
        "<table><thead><tr><th>source<th>path<th>signalled<th>delivered<th>coalesced<th>lost<th>p50<th>p99</tr></thead>\n",
    );
    for (name, vectors, tally, latency) in report.devices() {
        let cells = [tally.signalled, tally.delivered, tally.coalesced, tally.lost];
        row("sum", name, &count(vectors as u64, "vector"), cells, &latency, out);
    }
    for vector in &report.vectors {
        let tally = &vector.tally;
        let cells = [tally.signalled, tally.delivered, tally.coalesced, tally.lost];
        row("", &vector.source, &vector.path, cells, &vector.latency, out);
    }
    out.push_str("</table>\n");
}

fn row(class: &str, source: &str, path: &str, cells: [u64; 4], latency: &Histogram, out: &mut String) {
    let _ = write!(out, "<tr class=\"{class}\"><td>{}<td>{}", escaped(source), escaped(path));
    for (column, cell) in cells.into_iter().enumerate() {
        let class = if column == 3 && cell > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(out, "<td{class}>{}", grouped(cell));
    }
    let (p50, p99) = (nanoseconds(latency.quantile(0.5)), nanoseconds(latency.quantile(0.99)));
    let _ = writeln!(out, "<td>{p50}<td>{p99}</tr>");
}

/// How the latencies of a device are spread, as bars over a logarithmic axis.
fn chart(name: &str, latency: &Histogram, out: &mut String) {
    let powers = latency.by_power();
    let Some(first) = powers.iter().position(|&count| count > 0) else { return };
    let last = powers.iter().rposition(|&count| count > 0).unwrap_or(first);
    let most = powers.iter().copied().max().unwrap_or(1).max(1);
    let (width, height) = (900.0, 120.0);
    let step = width / (last - first + 1) as f64;
    let _ = write!(
        out,
        "<figure><figcaption>{}: from signal to handler</figcaption><svg viewBox=\"0 0 {width} {}\" role=\"img\">",
        escaped(name),
        height + 18.0
    );
    for (index, &count) in powers[first..=last].iter().enumerate() {
        let (x, bar) = (index as f64 * step, height * count as f64 / most as f64);
        let from = nanoseconds(Some(1 << (first + index)));
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{bar:.1}\" fill=\"#3b6fb6\"><title>{} from {from} \
             on</title></rect><text x=\"{:.1}\" y=\"{}\">{from}</text>",
            x + 1.0,
            height - bar,
            step - 2.0,
            grouped(count),
            x + 2.0,
            height + 13.0
        );
    }
    out.push_str("</svg></figure>\n");
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn the_page_is_self_contained_and_escapes_what_it_is_given() {
        let mut report = sample();
        report.machine = "<script>.toml".into();
        let page = page(&report);
        assert!(page.contains("&lt;script&gt;.toml") && !page.contains("<script"), "{page}");
        assert!(!page.contains("http") && !page.contains("src="));
        assert!(page.contains("<td class=\"bad\">1"), "the loss is marked: {page}");
        assert_eq!(page.matches("<svg").count(), 1);
    }
}
