//! The figures as lines, as JSON and as a drawing.

use std::fmt::Write;

use serde::Serialize;

use super::measure::Measured;

/// Prints one row; `rmw` is the cost of one locked instruction, the unit of the last column.
pub fn line(row: &Measured, rmw: f64) {
    if row.id == "rmw" {
        println!("{:<22} {:>10} {:>10} {:>7} {:>10} {:>8}", "", "doorbell", "kernel", "ratio", "target", "in rmw");
    }
    let optional = |value: Option<f64>| value.map_or("–".into(), time);
    println!(
        "{:<22} {:>10} {:>10} {:>7} {:>10} {:>8}  {}",
        row.id,
        row.shown(row.value),
        optional(row.kernel_ns),
        row.ratio().map_or("–".into(), |ratio| format!("{ratio:.1}")),
        row.target.map_or("–".into(), |target| format!("≤ {}", row.shown(target))),
        if row.bytes { "–".into() } else { format!("{:.1}", row.value / rmw) },
        row.what,
    );
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 1_000_000.0 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

fn bytes(bytes: f64) -> String {
    format!("{:.2} MiB", bytes / f64::from(1 << 20))
}

impl Measured {
    /// How many times as long the kernel took.
    fn ratio(&self) -> Option<f64> {
        self.kernel_ns.map(|kernel| kernel / self.value)
    }

    /// A value with its unit.
    fn shown(&self, value: f64) -> String {
        if self.bytes { bytes(value) } else { time(value) }
    }
}

/// One element of the array that `--json` prints.
#[derive(Serialize)]
struct Entry {
    id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

/// The figures as a JSON array.
pub fn json(rows: &[Measured]) -> String {
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    let entries: Vec<Entry> = rows
        .iter()
        .map(|row| Entry {
            id: row.id,
            ns: (!row.bytes).then(|| hundredths(row.value)),
            bytes: row.bytes.then_some(row.value as u64),
            kernel_ns: row.kernel_ns.map(hundredths),
            ratio: row.ratio().map(hundredths),
        })
        .collect();
    serde_json::to_string_pretty(&entries).expect("plain numbers and strings")
}

/// The figures as bars on a logarithmic scale.
pub fn svg(rows: &[Measured]) -> String {
    // Bytes have no place on an axis of times.
    let rows: Vec<_> = rows.iter().filter(|row| !row.bytes).collect();
    const LEFT: f64 = 170.0;
    const DECADE: f64 = 75.0;
    const LINE: f64 = 26.0;
    let x = |ns: f64| LEFT + DECADE * ns.max(1.0).log10();
    let height = LINE * (rows.len() as f64 + 2.0);
    let width = x(1e9) + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut put = |element: String| writeln!(svg, "{element}").expect("writing to a string");
    for (decade, label) in ["1 ns", "10", "100", "1 µs", "10", "100", "1 ms", "10", "100", "1 s"].iter().enumerate() {
        let at = x(10f64.powi(decade as i32));
        put(format!("<line x1=\"{at}\" y1=\"20\" x2=\"{at}\" y2=\"{height}\" stroke=\"#ddd\"/>"));
        put(format!("<text x=\"{at}\" y=\"14\" text-anchor=\"middle\">{label}</text>"));
    }
    for (place, row) in rows.iter().enumerate() {
        let top = LINE * (place as f64 + 1.0);
        put(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, top + 15.0, row.id));
        let mut bar = |y: f64, ns: f64, colour: &str, whose: &str| {
            let (width, end) = (x(ns) - LEFT, x(ns) + 4.0);
            put(format!("<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"9\" fill=\"{colour}\"/>"));
            put(format!("<text x=\"{end:.1}\" y=\"{}\" font-size=\"9\">{}{whose}</text>", y + 8.0, time(ns)));
        };
        bar(top + 2.0, row.value, "#2a78b8", "");
        if let Some(kernel) = row.kernel_ns {
            bar(top + 12.0, kernel, "#c0c0c0", " (kernel)");
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &'static str, value: f64, kernel_ns: Option<f64>) -> Measured {
        Measured { id, what: "", target: None, bytes: false, value, kernel_ns }
    }

    fn memory(id: &'static str, value: f64) -> Measured {
        Measured { bytes: true, ..row(id, value, None) }
    }

    #[test]
    fn json_has_the_kernel_only_where_it_was_measured() {
        let text = json(&[row("rmw", 8.0, None), row("msi-pending", 10.0, Some(220.0)), memory("lpi-memory", 65536.0)]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!([
                { "id": "rmw", "ns": 8.0 },
                { "id": "msi-pending", "ns": 10.0, "kernel_ns": 220.0, "ratio": 22.0 },
                { "id": "lpi-memory", "bytes": 65536 },
            ])
        );
    }

    #[test]
    fn figures_have_a_unit_that_suits_them() {
        assert_eq!(memory("lpi-memory", 3.0 * 1048576.0).shown(4_194_304.0), "4.00 MiB");
        assert_eq!(time(8.04), "8.0 ns");
        assert_eq!(time(282.0), "282 ns");
        assert_eq!(time(12_345.0), "12.3 µs");
        assert_eq!(time(115e6), "115.00 ms");
    }

    #[test]
    fn the_drawing_names_every_row() {
        let svg = svg(&[row("rmw", 8.0, None), row("route-update", 40.0, Some(500_000.0)), memory("lpi-memory", 1.0)]);
        assert!(!svg.contains("lpi-memory"), "an axis of times");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains(">rmw<") && svg.contains(">route-update<") && svg.contains("500.0 µs (kernel)"));
    }
}
