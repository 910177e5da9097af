//! What a run has to say, and the forms it is said in: a table, JSON, a page.

mod html;
mod table;

use serde::Serialize;

use super::{histogram::Histogram, tally::Tally};

pub use html::page;
pub use table::{brief, text};

/// One vector of a run.
#[derive(Clone, Debug, Serialize)]
pub struct VectorReport {
    /// The device and which of its vectors, as `storage/17`.
    pub source: String,
    /// The stations that its interrupts pass.
    pub path: String,
    /// The device waited for the handler after each signal.
    pub lockstep: bool,
    /// The figures.
    #[serde(flatten)]
    pub tally: Tally,
    /// The median of the times from a signal to the handler that saw it, in ns.
    pub p50_ns: Option<u64>,
    /// The time that 99 of 100 did not exceed, in ns.
    pub p99_ns: Option<u64>,
    /// All of the times.
    #[serde(skip)]
    pub latency: Histogram,
}

/// What went wrong beside lost interrupts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problem(pub String);

/// What the Arm chips and their guest counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArmCounters {
    /// Commands that the ITSs ran.
    pub commands: u64,
    /// Commands that they refused.
    pub refused_commands: u64,
    /// Events that they dropped, as the specification demands, while they were disabled.
    pub dropped_disabled: u64,
    /// The same, while device or event were not mapped.
    pub dropped_unmapped: u64,
    /// The same, while the collection was not mapped.
    pub dropped_collection: u64,
    /// The same, while a redistributor's LPIs were off.
    pub dropped_lpis_off: u64,
    /// The same, while the mapping was being taken away.
    pub dropped_meanwhile: u64,
    /// Events that the driver had sent again with INT.
    pub replayed: u64,
    /// Numbers that it found by looking at its devices.
    pub fetched: u64,
    /// What the guest did meanwhile: events moved to another collection.
    pub movi: u64,
    /// Collections moved to another vCPU, with what was pending.
    pub mapc_movall: u64,
    /// Collections unmapped and mapped again.
    pub mapc_off: u64,
    /// Devices unmapped and mapped again.
    pub mapd: u64,
    /// Events discarded and mapped again.
    pub discard: u64,
    /// LPIs disabled and enabled again.
    pub inv: u64,
    /// ITSs disabled and enabled again.
    pub its_off: u64,
    /// SPIs routed to another vCPU.
    pub irouter: u64,
    /// SPIs disabled and enabled again.
    pub icenabler: u64,
}

/// A sample of the parity check.
#[derive(Clone, Debug, Serialize)]
pub struct Parity {
    /// Which oracle.
    pub oracle: String,
    /// Programs with the same answers.
    pub passed: u64,
    /// Programs with different ones.
    pub failed: u64,
}

/// One run of one machine on one set of chips.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine: `x86` or a file.
    pub machine: String,
    /// Whose chips.
    pub chips: &'static str,
    /// How many vCPUs.
    pub vcpus: u32,
    /// How many device processes.
    pub processes: usize,
    /// The sum of all vectors.
    #[serde(flatten)]
    pub total: Tally,
    /// From the first signal to the last handler.
    pub seconds: f64,
    /// Stopped before its end by the user.
    pub interrupted: bool,
    /// What went wrong beside lost interrupts.
    pub problems: Vec<Problem>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// What the Arm chips and their guest counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<ArmCounters>,
    /// Every vector.
    pub vectors: Vec<VectorReport>,
    /// The same work on other chips.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Report>,
    /// A sample of the parity check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parity: Option<Parity>,
}

impl Report {
    /// Everything arrived, once, and nothing went wrong.
    pub fn is_good(&self) -> bool {
        let clean = self.total.lost == 0 && self.total.held == 0 && self.total.duplicated == 0;
        let parity = self.parity.as_ref().is_none_or(|parity| parity.failed == 0);
        clean && self.problems.is_empty() && parity && self.beside.iter().all(Self::is_good)
    }

    /// The latencies of all vectors together.
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::default();
        self.vectors.iter().for_each(|vector| all.add(&vector.latency));
        all
    }

    /// Interrupts delivered in a second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.total.delivered as f64 / self.seconds } else { 0.0 }
    }

    /// The names of the devices with their figures, in order.
    pub fn devices(&self) -> Vec<(&str, usize, Tally, Histogram)> {
        let mut devices: Vec<(&str, usize, Tally, Histogram)> = Vec::new();
        for vector in &self.vectors {
            let name = vector.source.split_once('/').map_or(vector.source.as_str(), |(name, _)| name);
            if devices.last().is_none_or(|(last, ..)| *last != name) {
                devices.push((name, 0, Tally::default(), Histogram::default()));
            }
            if let Some((_, vectors, tally, latency)) = devices.last_mut() {
                *vectors += 1;
                *tally += vector.tally;
                latency.add(&vector.latency);
            }
        }
        devices
    }
}

/// A time as a reader likes it: three digits and a unit.
pub fn nanoseconds(ns: Option<u64>) -> String {
    let Some(ns) = ns else { return "-".into() };
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// A number of things: `1 vCPU`, `4 vCPUs`.
pub fn count(number: u64, what: &str) -> String {
    let plural = match (number, what) {
        (1, _) => "",
        (_, word) if word.ends_with("process") => "es",
        _ => "s",
    };
    format!("{} {what}{plural}", grouped(number))
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with one vector that lost an interrupt.
    pub fn sample() -> Report {
        let tally = Tally { signalled: 1_000, delivered: 999, lost: 1, ..Tally::default() };
        let mut latency = Histogram::default();
        latency.record(4_200);
        let vector = VectorReport {
            source: "network/0".into(),
            path: "eventfd → MSI-X 0 → vCPU 1 0x41".into(),
            lockstep: true,
            tally,
            p50_ns: latency.quantile(0.5),
            p99_ns: latency.quantile(0.99),
            latency,
        };
        Report {
            machine: "x86".into(),
            chips: "soft",
            vcpus: 4,
            processes: 1,
            total: tally,
            seconds: 0.5,
            interrupted: false,
            problems: Vec::new(),
            notes: Vec::new(),
            arm: None,
            vectors: vec![vector],
            beside: Vec::new(),
            parity: None,
        }
    }

    #[test]
    fn json_has_the_keys_of_the_contract() {
        let json = serde_json::to_value(sample()).unwrap();
        let run = [
            "machine",
            "chips",
            "vcpus",
            "processes",
            "signalled",
            "delivered",
            "coalesced",
            "lost",
            "duplicated",
            "seconds",
            "vectors",
        ];
        run.iter().for_each(|key| assert!(json.get(key).is_some(), "{key}"));
        let vector = &json["vectors"][0];
        let keys = ["source", "path", "signalled", "delivered", "coalesced", "lost", "p50_ns", "p99_ns"];
        keys.iter().for_each(|key| assert!(vector.get(key).is_some(), "{key}"));
        assert_eq!((&json["lost"], &vector["lost"]), (&1.into(), &1.into()));
    }

    #[test]
    fn one_lost_interrupt_makes_the_run_bad_wherever_it_was_lost() {
        let mut report = sample();
        assert!(!report.is_good());
        report.total.lost = 0;
        assert!(report.is_good());
        report.beside.push(sample());
        assert!(!report.is_good());
        report.beside.clear();
        report.problems.push(Problem("a device died".into()));
        assert!(!report.is_good());
    }

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(
            [count(1, "vCPU"), count(4_000, "vCPU"), count(3, "device process")],
            ["1 vCPU", "4,000 vCPUs", "3 device processes"]
        );
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1_000, 1_234_567].map(grouped)[..]);
        let times = [None, Some(7), Some(4_200), Some(42_000), Some(420_000), Some(4_200_000), Some(42_000_000_000)];
        assert_eq!(times.map(nanoseconds), ["-", "7 ns", "4.20 µs", "42.0 µs", "420 µs", "4.20 ms", "42.0 s"]);
    }
}
