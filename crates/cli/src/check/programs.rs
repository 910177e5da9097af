//! Which programs a check runs, and how it goes through them.

use std::process::ExitCode;
use std::time::Instant;

use super::failure::Failure;
use super::progress;
use super::tally::{self, Tally};
use crate::run::stop;

/// The fewest steps that a program may have.
pub const FEWEST_CALLS: u64 = 50;
/// After so many failures, the others would say the same.
const ENOUGH_FAILURES: usize = 10;
/// The exit status of a check that could not be made.
const SKIPPED: u8 = 77;

/// What every check takes. The command around it has `--programs` and `--calls`, with defaults of its own.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Which programs: the same seed gives the same ones
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only each Nth program, from number I: for N machines, or N processors (`0/2` and `1/2`)
    #[arg(long, value_name = "I/N", value_parser = shard, default_value = "0/1")]
    pub shard: (u64, u64),
    /// Only the program with this number, as a failure names it
    #[arg(long, value_name = "NUMBER", conflicts_with = "programs")]
    pub only: Option<u64>,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// Why nothing is compared.
pub enum Missing<E> {
    /// The oracle is not here: one line.
    Oracle(String),
    /// Anything else.
    Other(E),
}

impl<E> From<E> for Missing<E> {
    fn from(error: E) -> Self {
        Self::Other(error)
    }
}

/// I/N, as `--shard` takes it.
fn shard(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(format!("`{text}` is not I/N with I below N, such as 0/2")),
    }
}

impl Selection {
    /// The numbers of the chosen ones of `programs`, in order.
    pub fn numbers(&self, programs: u64) -> Vec<u64> {
        let (first, step) = self.shard;
        match self.only {
            Some(number) => vec![number],
            None => (first..programs).step_by(step as usize).collect(),
        }
    }

    /// Runs the chosen ones of `programs`, each by its number, until one cannot be run, somebody presses Ctrl-C, or enough
    /// have failed.
    ///
    /// # Errors
    /// The first of `run`.
    pub fn run<E>(
        &self,
        programs: u64,
        tally: &mut Tally,
        mut run: impl FnMut(u64) -> Result<Option<Failure>, E>,
    ) -> Result<(), E> {
        let numbers = self.numbers(programs);
        let bar = progress(numbers.len() as u64);
        let start = Instant::now();
        tally.asked = numbers.len() as u64;
        for number in numbers {
            if stop::requested() || tally.failures.len() >= ENOUGH_FAILURES {
                break;
            }
            match run(number)? {
                None => tally.passed += 1,
                Some(failure) => tally.failures.push(failure),
            }
            tally.seconds = start.elapsed().as_secs_f64();
            bar.inc(1);
        }
        bar.finish_and_clear();
        tally.stopped = stop::requested();
        Ok(())
    }

    /// How a check ends: its report is printed, or why there is none. `print` says whether any program failed.
    pub fn end<R, E>(
        &self,
        checked: Result<R, Missing<E>>,
        print: impl FnOnce(&R) -> std::io::Result<bool>,
        say: impl FnOnce(E) -> String,
    ) -> ExitCode {
        match checked {
            Ok(report) => match print(&report) {
                Ok(failed) => ExitCode::from(u8::from(failed)),
                Err(error) => {
                    eprintln!("doorbell: the report cannot be written: {error}");
                    ExitCode::FAILURE
                }
            },
            Err(Missing::Oracle(why)) => {
                tally::skipped(self.json, &why);
                ExitCode::from(SKIPPED)
            }
            Err(Missing::Other(error)) => {
                eprintln!("doorbell: the check cannot go on: {}", say(error));
                ExitCode::FAILURE
            }
        }
    }
}
