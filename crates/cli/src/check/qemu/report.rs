//! What the check says at its end.

use std::fmt::Write;

use serde_json::{Value, json};

use super::super::failure::Failure;
use super::coverage::{Coverage, ROWS};
use super::{Args, say};

/// The result of a check.
#[derive(Default)]
pub struct Report {
    /// How many programs there should have been.
    pub asked: u64,
    /// How many did not differ.
    pub passed: u64,
    /// Those that did.
    pub failures: Vec<Failure>,
    /// How long it took.
    pub seconds: f64,
    /// Somebody pressed Ctrl-C.
    pub stopped: bool,
    /// What was reached.
    pub coverage: Coverage,
}

/// Says that nothing was compared.
pub fn skipped(args: &Args, why: &str) {
    let text = if args.json {
        format!("{}\n", json!({ "skipped": why, "passed": 0, "failed": 0 }))
    } else {
        format!("SKIPPED, NOTHING WAS COMPARED: {why}\n0 passed, 0 failed\n")
    };
    let _ = say(&text);
}

impl Report {
    /// Prints it, as text or as JSON.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(&self, args: &Args) -> std::io::Result<()> {
        if args.json { say(&format!("{:#}\n", self.json(args))) } else { say(&self.text(args)) }
    }

    fn text(&self, args: &Args) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            failure.write(&mut text);
        }
        let _ = writeln!(text, "step                   times");
        for (step, times) in &self.coverage.steps {
            let _ = writeln!(text, "{step:<22} {times}");
        }
        let reached: Vec<_> = self.coverage.rows.iter().copied().collect();
        let _ = writeln!(text, "\nreached {} of {} rows: {}", reached.len(), ROWS.len(), reached.join(" "));
        for (row, meaning) in ROWS.iter().filter(|(row, _)| self.coverage.missed().contains(row)) {
            let _ = writeln!(text, "not reached: {row}, {meaning}");
        }
        let _ = writeln!(text, "kept clear of: what differs on purpose (see --differences)");
        let _ = writeln!(text, "\nseed {}, {} steps a program, {:.1} s", args.seed, args.calls, self.seconds);
        let ran = self.passed + self.failures.len() as u64;
        if ran < self.asked {
            let why = if self.stopped { "interrupted" } else { "enough failures" };
            let _ = writeln!(text, "{why}: {ran} of {} programs ran", self.asked);
        }
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failures.len());
        text
    }

    fn json(&self, args: &Args) -> Value {
        let failures: Vec<_> = self.failures.iter().map(Failure::json).collect();
        json!({
            "seed": args.seed,
            "calls": args.calls,
            "shard": format!("{}/{}", args.shard.0, args.shard.1),
            "programs": self.asked,
            "passed": self.passed,
            "failed": self.failures.len(),
            "stopped": self.stopped,
            "seconds": self.seconds,
            "steps": self.coverage.steps,
            "reached": self.coverage.rows,
            "not_reached": self.coverage.missed(),
            "failures": failures,
        })
    }
}
