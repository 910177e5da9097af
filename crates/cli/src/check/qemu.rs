//! `doorbell check qemu`: the same random programs of register accesses and device actions on QEMU's chips and on
//! doorbell's, through QEMU's qtest protocol.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use super::programs::{self, FEWEST_CALLS, Selection};
use super::say;

mod process;
mod q35;

use q35::Fault;

/// Why the check cannot go on: one line.
type Error = String;
/// Why there is no QEMU.
type Missing = programs::Missing<Error>;

const AFTER_HELP: &str = "\
Each program runs on a machine of QEMU's, whose CPUs never run, and on doorbell's behind the same protocol. After every \
step what it loaded, the IOAPIC's entries and the latches of its level pins, ISR and IRR of each local APIC, the 8259s, \
the MSI-X pending bits, and what messages left in RAM must be the same. The first difference is shrunk to the shortest \
program that shows it.

Where doorbell differs from QEMU on purpose, programs keep clear of it; --differences lists these, and each has a test.

Exit status: 0 all programs passed; 1 a difference was found; 2 wrong usage; 77 there is no QEMU: nothing was compared.";

/// Which of QEMU's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MachineName {
    /// x86.
    Q35,
}

/// What `doorbell check qemu` takes.
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Which machine
    #[arg(long, value_enum, default_value = "q35")]
    machine: MachineName,
    #[command(flatten)]
    selection: Selection,
    /// How many programs
    #[arg(long, default_value_t = 200)]
    programs: u64,
    /// How many steps each has, at least 50
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(FEWEST_CALLS..=100_000))]
    calls: u64,
    /// List the differences that are on purpose, and do nothing else
    #[arg(long)]
    differences: bool,
    /// A fault in doorbell that the check must find
    #[arg(long, hide = true, value_enum)]
    cripple: Option<Fault>,
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    if args.differences {
        let lines = q35::DIFFERENCES.map(|(name, what)| format!("{name:<18} {what}\n"));
        return ExitCode::from(u8::from(say(&lines.concat()).is_err()));
    }
    args.selection.end(q35::check(&args), |report| report.print(&args), |error| error)
}
