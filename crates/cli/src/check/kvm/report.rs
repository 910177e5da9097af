//! What a check says at its end.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::say;
use super::Args;
use super::coverage::{Coverage, ROWS};
use super::guest::Accepts;

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
    /// Who took interrupts out of the kernel's local APICs, if programs with a guest ran.
    pub accepts: Option<Accepts>,
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
        let _ = writeln!(text, "call                   answers of the kernel");
        for (call, answers) in self.answers() {
            let answers: Vec<_> = answers.into_iter().map(|(answer, times)| format!("{answer}: {times}")).collect();
            let _ = writeln!(text, "{call:<22} {}", answers.join(", "));
        }
        let reached: Vec<_> = self.coverage.rows.iter().copied().collect();
        let _ = writeln!(text, "\nreached {} of {} rows: {}", reached.len(), ROWS.len(), reached.join(" "));
        for (row, meaning) in ROWS.iter().filter(|(row, _)| self.coverage.missed().contains(row)) {
            let _ = writeln!(text, "not reached: {row}, {meaning}");
        }
        let _ = writeln!(
            text,
            "not part of it: pin 8, the TSC deadline, x2APIC, the last close of a bound eventfd (see --help)"
        );
        if self.accepts == Some(Accepts::Host) {
            let _ =
                writeln!(text, "this host's KVM ends an interrupt as it is taken: the check took them in its place");
        }
        let _ = writeln!(text, "\nseed {}, {} calls a program, {:.1} s", args.seed, args.calls, self.seconds);
        let ran = self.passed + self.failures.len() as u64;
        if ran < self.asked {
            let why = if self.stopped { "interrupted" } else { "enough failures" };
            let _ = writeln!(text, "{why}: {ran} of {} programs ran", self.asked);
        }
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failures.len());
        text
    }

    fn answers(&self) -> BTreeMap<&'static str, Vec<(&str, u64)>> {
        let mut calls: BTreeMap<&'static str, Vec<(&str, u64)>> = BTreeMap::new();
        for ((call, answer), times) in &self.coverage.answers {
            calls.entry(call).or_default().push((answer, *times));
        }
        calls
    }

    fn json(&self, args: &Args) -> Value {
        let failures: Vec<_> = self.failures.iter().map(|failure| failure.json()).collect();
        let answers: BTreeMap<_, BTreeMap<_, _>> =
            self.answers().into_iter().map(|(call, answers)| (call, answers.into_iter().collect())).collect();
        json!({
            "seed": args.seed,
            "calls": args.calls,
            "shard": format!("{}/{}", args.shard.0, args.shard.1),
            "programs": self.asked,
            "passed": self.passed,
            "failed": self.failures.len(),
            "stopped": self.stopped,
            "seconds": self.seconds,
            "accepted_by": match self.accepts {
                None => Value::Null,
                Some(Accepts::Vcpu) => "vcpu".into(),
                Some(Accepts::Host) => "host".into(),
            },
            "answers": answers,
            "reached": self.coverage.rows,
            "not_reached": self.coverage.missed(),
            "failures": failures,
        })
    }
}
