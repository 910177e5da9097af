//! `doorbell check`: doorbell's answers beside those of an oracle.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

mod failure;
pub mod kvm;
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

/// I/N, as `--shard` takes it.
fn shard(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(format!("`{text}` is not I/N with I below N, such as 0/2")),
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
