//! `doorbell run`: devices in other processes raise interrupts, doorbell delivers them to vCPU threads, and a ledger in
//! shared memory accounts for each one.

use std::process::ExitCode;

#[allow(dead_code)]
mod coordinator;
#[allow(dead_code)]
pub mod device;
pub mod guest;
#[allow(dead_code)]
mod fault;
#[allow(dead_code)]
mod handover;
#[allow(dead_code)]
mod histogram;
#[allow(dead_code)]
pub mod ledger;
#[allow(dead_code)]
pub mod machine;
#[allow(dead_code)]
pub mod plan;
#[allow(dead_code)]
mod process;
#[allow(dead_code)]
mod report;
#[allow(dead_code)]
mod stop;
#[allow(dead_code)]
mod tally;
#[allow(dead_code)]
mod trace;
#[allow(dead_code)]
mod watch;

/// Nothing to choose yet.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn main(_: Args) -> ExitCode {
    eprintln!("doorbell: `run` is not there yet");
    ExitCode::from(2)
}
