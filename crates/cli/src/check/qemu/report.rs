//! What the check says at its end.

use std::fmt::Write;

use serde_json::json;

use super::super::tally::{Tally, write_rows};
use super::coverage::{Coverage, ROWS};
use super::{Args, say};

/// The result of a check.
#[derive(Default)]
pub struct Report {
    /// How the programs ended.
    pub tally: Tally,
    /// What was reached.
    pub coverage: Coverage,
}

impl Report {
    /// Prints it, as text or as JSON.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(&self, args: &Args) -> std::io::Result<()> {
        if args.json { say(&self.json(args)) } else { say(&self.text(args)) }
    }

    fn text(&self, args: &Args) -> String {
        let mut text = String::new();
        self.tally.write_failures(&mut text);
        let _ = writeln!(text, "step                   times");
        for (step, times) in &self.coverage.steps {
            let _ = writeln!(text, "{step:<22} {times}");
        }
        write_rows(&mut text, &self.coverage.rows, &ROWS);
        let _ = writeln!(text, "kept clear of: what differs on purpose (see --differences)");
        self.tally.write_end(&mut text, &format!("seed {}, {} steps a program", args.seed, args.calls));
        text
    }

    fn json(&self, args: &Args) -> String {
        let report = self.tally.json(json!({
            "seed": args.seed,
            "calls": args.calls,
            "shard": format!("{}/{}", args.shard.0, args.shard.1),
            "steps": self.coverage.steps,
            "reached": self.coverage.rows,
            "not_reached": self.coverage.missed(),
        }));
        format!("{report:#}\n")
    }
}
