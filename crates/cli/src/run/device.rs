//! A device process: the producer loop that `run` starts in a process of its own.

use std::process::ExitCode;

/// The hidden command of a device process.
pub fn main() -> ExitCode {
    eprintln!("doorbell: `device` is started by `doorbell run` only");
    ExitCode::from(2)
}
