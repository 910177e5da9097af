//! A program that differed, as every check shows it.

use std::fmt::Write;

use serde_json::{Value, json};

/// A program that differed.
pub struct Failure {
    /// Its number under the seed.
    pub number: u64,
    /// How many steps it had.
    pub from: usize,
    /// Whether it differed a second time.
    pub repeats: bool,
    /// What is left of it: each step, and what the two sides answered, as far as they got.
    pub steps: Vec<(String, Option<[String; 2]>)>,
    /// It shows only when all steps are done.
    pub at_the_end: bool,
    /// What differs: what it is, and both values.
    pub items: Vec<[String; 3]>,
    /// The names of the two sides.
    pub names: [&'static str; 2],
    /// The command that runs the program again.
    pub again: String,
}

impl Failure {
    /// As text.
    pub fn write(&self, text: &mut String) {
        let Self { number, from, repeats, steps, at_the_end, items, names: [oracle, doorbell], again } = self;
        let _ = writeln!(text, "program {number} differs, shrunk from {from} calls to {}:", steps.len());
        let width = steps.iter().map(|(step, _)| step.chars().count()).max().unwrap_or(0).min(90);
        for (at, (step, answers)) in steps.iter().enumerate() {
            let Some([left, right]) = answers else { continue };
            let _ = writeln!(text, "{:>4}. {step:<width$}  {oracle}: {left}, {doorbell}: {right}", at + 1);
        }
        let _ = writeln!(text, "  {}:", if *at_the_end { "at the end" } else { "after the last call" });
        for [name, left, right] in items {
            let _ = writeln!(text, "      {name}: {oracle} {left}, {doorbell} {right}");
        }
        if !repeats {
            let _ = writeln!(text, "  It did not differ when it ran again.");
        }
        let _ = writeln!(text, "  again: {again}\n");
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let Self { number, from: _, repeats, steps, at_the_end: _, items, names: [oracle, doorbell], again: _ } = self;
        let answered = steps.iter().filter_map(|(step, answers)| Some((step, answers.as_ref()?)));
        let calls: Vec<_> =
            answered.map(|(step, [left, right])| json!({ "call": step, *oracle: left, *doorbell: right })).collect();
        let items = items.iter().map(|[name, left, right]| json!({ "what": name, *oracle: left, *doorbell: right }));
        let items: Vec<_> = items.collect();
        json!({ "program": number, "repeats": repeats, "calls": calls, "differs": items })
    }
}
