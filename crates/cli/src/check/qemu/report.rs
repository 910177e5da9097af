//! What the check says at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::json;

use super::super::tally::{Ending, Row, Tally};
use super::Args;

/// The result of a check.
pub struct Report {
    /// How the programs ended.
    pub tally: Tally,
    /// How often each step was taken.
    pub steps: BTreeMap<&'static str, u64>,
    /// The rows of the reference that were reached.
    pub reached: BTreeSet<&'static str>,
    /// All of them.
    pub rows: &'static [Row],
}

impl Report {
    /// Prints it. True if a program failed.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(&self, args: &Args) -> std::io::Result<bool> {
        let mut counted = "step                   times\n".to_owned();
        for (step, times) in &self.steps {
            let _ = writeln!(counted, "{step:<22} {times}");
        }
        let ending = Ending {
            tally: &self.tally,
            reached: &self.reached,
            rows: self.rows,
            counted,
            members: json!({ "steps": self.steps }),
            notes: "kept clear of: what differs on purpose (see --differences)\n".into(),
            calls: (args.calls, "steps"),
        };
        ending.print(&args.selection)
    }
}
