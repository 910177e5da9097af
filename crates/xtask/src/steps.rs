//! A list of steps, each with its time; the first failure ends it.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use crate::command::{self, Output};

/// Why a step failed: a sentence. What was printed is in the step's log.
pub type Failure = String;

/// What came of one step.
pub enum Outcome {
    /// This many tests passed, this many are marked as ignored; 1 and 0 for a step that is one check.
    Passed {
        /// How many.
        passed: u64,
        /// How many were not run.
        ignored: u64,
    },
    /// An oracle that this machine does not have. Never counted as passed.
    Skipped(String),
}

impl Outcome {
    /// A step that is a single check.
    pub const CHECK: Self = Self::Passed { passed: 1, ignored: 0 };
}

/// The run of all steps.
pub struct Steps {
    started: Instant,
    only: Vec<String>,
    passed: u64,
    skipped: Vec<String>,
    log: PathBuf,
    failure: Option<Failure>,
}

/// How many lines of a failed step's output are shown.
const SHOWN: usize = 120;

impl Steps {
    /// A run of the steps whose names are in `only`, or of all if that is empty.
    pub fn new(only: &[String]) -> Self {
        Self {
            started: Instant::now(),
            only: only.to_vec(),
            passed: 0,
            skipped: Vec::new(),
            log: PathBuf::new(),
            failure: None,
        }
    }

    /// Runs one step, unless an earlier one failed or it was not asked for.
    pub fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<Outcome, Failure>) {
        if self.failure.is_some() || !(self.only.is_empty() || self.only.iter().any(|only| only == name)) {
            return;
        }
        print!("{name:<14} ");
        // The name should be seen while the step runs; a closed output is noticed by the next line.
        let _ = io::stdout().flush();
        self.log = command::root().join("target/xtask").join(format!("{name}.log"));
        let _ = fs::remove_file(&self.log);
        let started = Instant::now();
        let outcome = work(self);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(Outcome::Passed { passed, ignored }) => {
                self.passed += passed;
                let ignored = if ignored == 0 { String::new() } else { format!(", {ignored} ignored") };
                println!("{seconds:>7.1} s  {passed} passed{ignored}");
            }
            Ok(Outcome::Skipped(why)) => {
                println!("{seconds:>7.1} s  SKIPPED");
                self.skipped.push(format!("{name}: {why}"));
            }
            Err(failure) => {
                println!("{seconds:>7.1} s  FAILED");
                self.failure = Some(format!("{name}: {failure}"));
            }
        }
    }

    /// Runs a program as part of the current step.
    pub fn output(&self, command: &mut Command) -> Result<Output, Failure> {
        command::logged(command, &self.log)
    }

    /// The same; a failure of the program is one of the step.
    pub fn run(&self, command: &mut Command) -> Result<String, Failure> {
        let output = self.output(command)?;
        if output.success { Ok(output.text) } else { Err(format!("`{}` failed", command::words(command))) }
    }

    /// Runs `cargo test …` and counts.
    pub fn tests(&self, command: &mut Command) -> Result<Outcome, Failure> {
        let count = count_tests(&self.run(command)?);
        if count.0 == 0 {
            return Err(format!("`{}` ran no test", command::words(command)));
        }
        Ok(Outcome::Passed { passed: count.0, ignored: count.1 })
    }

    /// Prints what there is to say at the end. True if nothing failed.
    pub fn finish(self) -> bool {
        println!("{:<14} {:>7.1} s", "total", self.started.elapsed().as_secs_f64());
        for skipped in &self.skipped {
            println!("SKIPPED ORACLE, NOT PASSED: {skipped}");
        }
        if let Some(failure) = &self.failure {
            if let Ok(log) = fs::read(&self.log) {
                // The end says what failed; the whole is in the file.
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                println!("\n{}", lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
                println!("(the whole output: {})", self.log.display());
            }
            println!("FAILED: {failure}");
        }
        println!("{} passed, {} failed", self.passed, u8::from(self.failure.is_some()));
        self.failure.is_none()
    }
}

/// How many tests passed and how many were ignored, by the summaries of libtest.
fn count_tests(text: &str) -> (u64, u64) {
    let number = |line: &str, what: &str| -> u64 {
        let before = line.split(what).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    text.lines()
        .filter(|line| line.starts_with("test result:"))
        .fold((0, 0), |(passed, ignored), line| (passed + number(line, " passed"), ignored + number(line, " ignored")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_summaries_are_added_up() {
        let text = "\
running 3 tests
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 7 filtered out; finished in 1.50s
";
        assert_eq!(count_tests(text), (43, 3));
    }

    #[test]
    fn a_failure_ends_the_run_and_is_not_counted_as_passed() {
        let mut steps = Steps::new(&[]);
        steps.step("first", |_| Ok(Outcome::Passed { passed: 5, ignored: 0 }));
        steps.step("second", |_| Err("no".into()));
        steps.step("third", |_| panic!("must not run"));
        assert_eq!(steps.passed, 5);
        assert!(!steps.finish());
    }

    #[test]
    fn a_skipped_oracle_is_not_counted_as_passed() {
        let mut steps = Steps::new(&[]);
        steps.step("oracle", |_| Ok(Outcome::Skipped("not here".into())));
        assert_eq!(steps.passed, 0);
        assert_eq!(steps.skipped, ["oracle: not here"]);
    }
}
