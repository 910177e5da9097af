//! What every check counts, and how it says that at its end.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::programs::Selection;
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
    /// The last lines, the first of which begins with `what`.
    fn write_end(&self, text: &mut String, what: &str) {
        let _ = writeln!(text, "\n{what}, {:.1} s", self.seconds);
        let ran = self.passed + self.failures.len() as u64;
        if ran < self.asked {
            let why = if self.stopped { "interrupted" } else { "enough failures" };
            let _ = writeln!(text, "{why}: {ran} of {} programs ran", self.asked);
        }
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failures.len());
    }

    /// As JSON.
    fn json(&self) -> Value {
        let failures: Vec<_> = self.failures.iter().map(Failure::json).collect();
        json!({
            "programs": self.asked,
            "passed": self.passed,
            "failed": self.failures.len(),
            "stopped": self.stopped,
            "seconds": self.seconds,
            "failures": failures,
        })
    }
}

/// What a check says at its end.
pub struct Ending<'a> {
    /// How the programs ended.
    pub tally: &'a Tally,
    /// The rows of the reference that were reached, of those that can be.
    pub reached: &'a BTreeSet<&'static str>,
    /// All of them.
    pub rows: &'a [Row],
    /// What the check counted on its way, in lines.
    pub counted: String,
    /// The same as JSON, as members of the report.
    pub members: Value,
    /// What is to be said below the rows, in lines.
    pub notes: String,
    /// How many of what a program had: `50` and `steps`.
    pub calls: (u64, &'static str),
}

impl Ending<'_> {
    /// Prints it, as text or as JSON. True if a program failed.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(self, selection: &Selection) -> std::io::Result<bool> {
        let failed = !self.tally.failures.is_empty();
        say(&if selection.json { self.json(selection) } else { self.text(selection) })?;
        Ok(failed)
    }

    fn text(&self, selection: &Selection) -> String {
        let mut text = String::new();
        self.tally.failures.iter().for_each(|failure| failure.write(&mut text));
        text.push_str(&self.counted);
        let names: Vec<_> = self.reached.iter().copied().collect();
        let _ = writeln!(text, "\nreached {} of {} rows: {}", names.len(), self.rows.len(), names.join(" "));
        for (row, meaning) in self.missed() {
            let _ = writeln!(text, "not reached: {row}, {meaning}");
        }
        text.push_str(&self.notes);
        let (calls, unit) = self.calls;
        self.tally.write_end(&mut text, &format!("seed {}, {calls} {unit} a program", selection.seed));
        text
    }

    fn missed(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|(row, _)| !self.reached.contains(row))
    }

    fn json(&self, selection: &Selection) -> String {
        let Selection { seed, shard: (first, step), only: _, json: _ } = selection;
        let missed: Vec<_> = self.missed().map(|(row, _)| *row).collect();
        let all = json!({
            "seed": seed,
            "calls": self.calls.0,
            "shard": format!("{first}/{step}"),
            "reached": self.reached,
            "not_reached": missed,
        });
        let members = [self.tally.json(), all, self.members.clone()].into_iter().filter_map(|part| match part {
            Value::Object(members) => Some(members),
            _ => None,
        });
        let report = Value::Object(members.flatten().collect::<Map<_, _>>());
        format!("{report:#}\n")
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
