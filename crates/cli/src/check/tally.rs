//! What every check counts, and how it says that at its end.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::say;

/// How the programs of a check ended.
#[derive(Default)]
pub struct Tally {
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
}

/// A statement of the reference, by its name, and what it says.
pub type Row = (&'static str, &'static str);

impl Tally {
    /// The failures, as text.
    pub fn write_failures(&self, text: &mut String) {
        self.failures.iter().for_each(|failure| failure.write(text));
    }

    /// The last lines, the first of which begins with `what`.
    pub fn write_end(&self, text: &mut String, what: &str) {
        let _ = writeln!(text, "\n{what}, {:.1} s", self.seconds);
        let ran = self.passed + self.failures.len() as u64;
        if ran < self.asked {
            let why = if self.stopped { "interrupted" } else { "enough failures" };
            let _ = writeln!(text, "{why}: {ran} of {} programs ran", self.asked);
        }
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failures.len());
    }

    /// The same as JSON, with what else there is to say.
    pub fn json(&self, more: Value) -> Value {
        let failures: Vec<_> = self.failures.iter().map(Failure::json).collect();
        let all = json!({
            "programs": self.asked,
            "passed": self.passed,
            "failed": self.failures.len(),
            "stopped": self.stopped,
            "seconds": self.seconds,
            "failures": failures,
        });
        let members = [all, more].into_iter().filter_map(|part| match part {
            Value::Object(members) => Some(members),
            _ => None,
        });
        Value::Object(members.flatten().collect::<Map<_, _>>())
    }
}

/// Which rows were reached, and what the others say.
pub fn write_rows(text: &mut String, reached: &BTreeSet<&'static str>, rows: &[Row]) {
    let names: Vec<_> = reached.iter().copied().collect();
    let _ = writeln!(text, "\nreached {} of {} rows: {}", names.len(), rows.len(), names.join(" "));
    for (row, meaning) in rows.iter().filter(|(row, _)| !reached.contains(row)) {
        let _ = writeln!(text, "not reached: {row}, {meaning}");
    }
}

/// Says that nothing was compared.
pub fn skipped(as_json: bool, why: &str) {
    let text = if as_json {
        format!("{}\n", json!({ "skipped": why, "passed": 0, "failed": 0 }))
    } else {
        format!("SKIPPED, NOTHING WAS COMPARED: {why}\n0 passed, 0 failed\n")
    };
    let _ = say(&text);
}
