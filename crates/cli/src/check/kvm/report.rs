//! What the check says at its end.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;

use super::super::say;
use super::super::tally::{Tally, write_rows};
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
        let _ = writeln!(text, "call                   answers of the kernel");
        for (call, answers) in self.answers() {
            let answers: Vec<_> = answers.into_iter().map(|(answer, times)| format!("{answer}: {times}")).collect();
            let _ = writeln!(text, "{call:<22} {}", answers.join(", "));
        }
        write_rows(&mut text, &self.coverage.rows, &ROWS);
        let _ = writeln!(
            text,
            "not part of it: pin 8, the TSC deadline, x2APIC, the last close of a bound eventfd (see --help)"
        );
        if self.accepts == Some(Accepts::Host) {
            let _ =
                writeln!(text, "this host's KVM ends an interrupt as it is taken: the check took them in its place");
        }
        self.tally.write_end(&mut text, &format!("seed {}, {} calls a program", args.seed, args.calls));
        text
    }

    fn answers(&self) -> BTreeMap<&'static str, BTreeMap<&str, u64>> {
        let mut calls: BTreeMap<&'static str, BTreeMap<&str, u64>> = BTreeMap::new();
        for ((call, answer), times) in &self.coverage.answers {
            calls.entry(call).or_default().insert(answer, *times);
        }
        calls
    }

    fn json(&self, args: &Args) -> String {
        let report = self.tally.json(json!({
            "seed": args.seed,
            "calls": args.calls,
            "shard": format!("{}/{}", args.shard.0, args.shard.1),
            "accepted_by": self.accepts.map(|accepts| match accepts {
                Accepts::Vcpu => "vcpu",
                Accepts::Host => "host",
            }),
            "answers": self.answers(),
            "reached": self.coverage.rows,
            "not_reached": self.coverage.missed(),
        }));
        format!("{report:#}\n")
    }
}
