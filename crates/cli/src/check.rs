//! `doorbell check`: doorbell's answers beside those of an oracle.

use std::process::ExitCode;

use clap::Subcommand;

pub mod kvm;

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
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    match args.oracle {
        Oracle::Kvm(args) => kvm::main(args),
    }
}
