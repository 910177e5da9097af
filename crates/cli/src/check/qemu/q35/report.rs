//! What the check says at its end.

use std::fmt::Write;

use serde_json::json;

use super::super::super::tally::{Ending, Tally};
use super::super::Args;
use super::coverage::{Coverage, ROWS};

/// The result of a check.
#[derive(Default)]
pub struct Report {
    /// How the programs ended.
    pub tally: Tally,
    /// What was reached.
    pub coverage: Coverage,
}

impl Report {
    /// Prints it. True if a program failed.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(&self, args: &Args) -> std::io::Result<bool> {
        let mut counted = "step                   times\n".to_owned();
        for (step, times) in &self.coverage.steps {
            let _ = writeln!(counted, "{step:<22} {times}");
        }
        let ending = Ending {
            tally: &self.tally,
            reached: &self.coverage.rows,
            rows: &ROWS,
            counted,
            members: json!({ "steps": self.coverage.steps }),
            notes: "kept clear of: what differs on purpose (see --differences)\n".into(),
            calls: (args.calls, "steps"),
        };
        ending.print(&args.selection)
    }
}
