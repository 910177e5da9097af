//! What the check says at its end.

use std::collections::BTreeMap;
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
        let mut answers: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for ((call, answer), times) in &self.coverage.answers {
            answers.entry(call).or_default().insert(answer, *times);
        }
        let mut counted = "call                         answers of the kernel\n".to_owned();
        for (call, answers) in &answers {
            let answers: Vec<_> = answers.iter().map(|(answer, times)| format!("{answer}: {times}")).collect();
            let _ = writeln!(counted, "{call:<28} {}", answers.join(", "));
        }
        let ending = Ending {
            tally: &self.tally,
            reached: &self.coverage.rows,
            rows: &ROWS,
            counted,
            members: json!({ "arch": "arm", "answers": answers }),
            notes: "not part of it: equal priorities, a fifth interrupt of a vCPU (see --help)\n".to_owned(),
            calls: (args.calls, "calls"),
        };
        ending.print(&args.selection)
    }
}
