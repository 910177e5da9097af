//! The `doorbell` command: runs, checks and measures the interrupt stack.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use doorbell_cli::{bench, check, qtest, run};

/// The interrupt path of a virtual machine, from an eventfd in another process to a vCPU that acknowledges it.
///
/// Without a command, `doorbell` runs the built-in machine: `doorbell run`.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Args,
}

const EXIT_STATUS: &str = "Exit status: 0 done; 1 a check failed, an interrupt was lost, or a device or vCPU failed; \
                           2 wrong usage or bad input.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Raise interrupts from other processes, deliver them to vCPU threads, and account for each one
    Run(run::Args),
    /// Compare doorbell with an oracle, answer for answer
    Check(check::Args),
    /// Measure each operation, beside the kernel's for the same work
    Bench(bench::Args),
    /// Doorbell's chips behind QEMU's qtest protocol
    Qtest(qtest::Args),
    /// The device process that `run` starts
    #[command(hide = true)]
    Device,
}

fn main() -> ExitCode {
    let mut words = std::env::args();
    // A link in QEMU's place: the options are QEMU's.
    if words.next().is_some_and(|program| qtest::is_qemu(&program)) {
        return qtest::start(&words.collect::<Vec<_>>());
    }
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run::main(args),
        Command::Check(args) => check::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Qtest(args) => qtest::main(args),
        Command::Device => run::device::main(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
