//! `doorbell bench`.

use std::process::ExitCode;

/// Nothing to choose yet.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn main(_: Args) -> ExitCode {
    eprintln!("doorbell: `bench` is not there yet");
    ExitCode::from(2)
}
