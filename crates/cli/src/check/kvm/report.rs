//! What the check says at its end.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;

use super::super::tally::{Ending, Tally};
use super::Args;
use super::coverage::{Coverage, ROWS};
use super::guest::Accepts;

/// The result of a check.
#[derive(Default)]
pub struct Report {
    /// How the programs ended.
    pub tally: Tally,
    /// Who took interrupts out of the kernel's local APICs, if programs with a guest ran.
    pub accepts: Option<Accepts>,
    /// What was reached.
    pub coverage: Coverage,
}

impl Report {
    /// Prints it. True if a program failed.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub fn print(&self, args: &Args) -> std::io::Result<bool> {
        let answers = self.answers();
        let mut counted = "call                   answers of the kernel\n".to_owned();
        for (call, answers) in &answers {
            let answers: Vec<_> = answers.iter().map(|(answer, times)| format!("{answer}: {times}")).collect();
            let _ = writeln!(counted, "{call:<22} {}", answers.join(", "));
        }
        let mut notes =
            "not part of it: pin 8, the TSC deadline, x2APIC, the last close of a bound eventfd (see --help)\n"
                .to_owned();
        if self.accepts == Some(Accepts::Host) {
            notes += "this host's KVM ends an interrupt as it is taken: the check took them in its place\n";
        }
        let accepted_by = self.accepts.map(|accepts| match accepts {
            Accepts::Vcpu => "vcpu",
            Accepts::Host => "host",
        });
        let ending = Ending {
            tally: &self.tally,
            reached: &self.coverage.rows,
            rows: &ROWS,
            counted,
            members: json!({ "accepted_by": accepted_by, "answers": answers }),
            notes,
            calls: (args.calls, "calls"),
        };
        ending.print(&args.selection)
    }

    fn answers(&self) -> BTreeMap<&'static str, BTreeMap<&str, u64>> {
        let mut calls: BTreeMap<&'static str, BTreeMap<&str, u64>> = BTreeMap::new();
        for ((call, answer), times) in &self.coverage.answers {
            calls.entry(call).or_default().insert(answer, *times);
        }
        calls
    }
}
