//! Chores of this repository: `cargo xtask …`.

mod command;
mod fuzz;
mod licences;
mod metadata;
mod mutants;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Installs what the tests need and runs them all; stops at the first failure.
    Test(test::Options),
    /// Builds the fuzz targets and runs each for a bounded time.
    Fuzz(fuzz::Options),
    /// Looks for mistakes that no test would notice.
    Mutants(mutants::Options),
    /// Measures each operation: `doorbell bench`, built for release.
    Bench {
        /// Passed on to `doorbell bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test(options) => return test::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Mutants(options) => mutants::run(&options),
        Chore::Bench { arguments } => {
            let mut cargo = command::cargo(["run", "--release", "--quiet", "--package", "doorbell-cli", "--", "bench"]);
            command::status(cargo.args(arguments))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
