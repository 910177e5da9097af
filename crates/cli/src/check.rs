//! `doorbell check`: doorbell's answers beside those of an oracle.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

mod failure;
pub mod kvm;
mod programs;
pub mod qemu;
mod random;
mod shrink;
mod tally;

/// What `doorbell check` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    oracle: Oracle,
}

#[derive(Debug, Subcommand)]
enum Oracle {
    /// The same random programs of calls on the kernel's KVM and on doorbell
    Kvm(kvm::Args),
    /// The same random programs of register accesses and device actions on QEMU's chips and on doorbell's
    Qemu(qemu::Args),
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    match args.oracle {
        Oracle::Kvm(args) => kvm::main(args),
        Oracle::Qemu(args) => qemu::main(args),
    }
}

fn progress(programs: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(programs), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} programs, {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Writes to standard output, where a closed pipe is no panic.
fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
