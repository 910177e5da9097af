//! `doorbell check qemu`: the same random programs of register accesses and device actions on QEMU's chips and on
//! doorbell's.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use super::failure::Failure;
use super::programs::{self, FEWEST_CALLS, Selection};
use super::say;
use super::shrink::{self, Subject};

mod process;
mod q35;
mod report;
mod virt;

/// The exit status of wrong usage.
const WRONG_USAGE: u8 = 2;

/// Why the check cannot go on: one line.
type Error = String;
/// Why there is no QEMU.
type Missing = programs::Missing<Error>;

const AFTER_HELP: &str = "\
Each program runs on a machine of QEMU's and on doorbell's. The first difference is shrunk to the shortest program that \
shows it.

  --machine q35   QEMU's CPUs never run. After every step what it loaded, the IOAPIC's entries and the latches of its level \
pins, ISR and IRR of each local APIC, the 8259s, the MSI-X pending bits, and what messages left in RAM must be the same.
  --machine virt  Two CPUs of QEMU's run a program of the check's own, which does one access after the other: to \
distributor, redistributors and ITS, to tables in RAM, and to the system registers of their CPU interfaces, beside \
doorbell's CPU interfaces. After every step what it loaded, what either CPU is offered, running priorities, pending and \
active bits, the pending tables and how far the ITS is must be the same; at the end, every register.

Where doorbell differs from QEMU on purpose, programs keep clear of it; --differences lists these for each machine, and \
each has a test.

Exit status: 0 all programs passed; 1 a difference was found; 2 wrong usage; 77 there is no QEMU: nothing was compared.";

/// Which of QEMU's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MachineName {
    /// x86: IOAPIC, 8259s, messages, MSI-X, remapping units.
    Q35,
    /// Arm: GICv3 and ITS.
    Virt,
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
    #[arg(long, hide = true)]
    cripple: Option<String>,
}

/// Where two machines differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// After which step, counted from 0.
    pub at: usize,
    /// It is seen only at the end, when everything is looked at.
    pub at_the_end: bool,
    /// What the steps answered up to there; none for those that were left out.
    pub answers: Vec<Option<[String; 2]>>,
    /// What differs: what it is, and both values.
    pub items: Vec<[String; 3]>,
}

/// A program, and where it comes from.
#[derive(Clone, Debug)]
pub struct Program<S> {
    /// Its number under its seed.
    pub number: u64,
    /// What it does, in order.
    pub steps: Vec<S>,
}

/// What is said of a program that differed. `taken` is each step as both machines took it.
fn failure<P>(
    pair: &mut P,
    args: &Args,
    names: [&'static str; 2],
    program: &Program<P::Step>,
    found: Difference,
    mut taken: impl FnMut(&P::Step) -> P::Step,
) -> Result<Failure, Error>
where
    P: Subject<Difference = Difference, Error = Error>,
    P::Step: std::fmt::Display,
{
    let (repeats, (steps, difference)) = shrink::explain(pair, &program.steps, found)?;
    let mut answers = difference.answers.into_iter();
    let Args { selection: Selection { seed, .. }, calls, .. } = args;
    let machine = args.machine.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    Ok(Failure {
        number: program.number,
        from: program.steps.len(),
        repeats,
        at_the_end: difference.at_the_end,
        steps: steps.iter().map(|step| (taken(step).to_string(), answers.next().flatten())).collect(),
        items: difference.items,
        names,
        again: format!(
            "doorbell check qemu --machine {machine} --seed {seed} --calls {calls} --only {}",
            program.number
        ),
    })
}

/// A fault by its name, or one line with the names that there are.
fn fault<F: ValueEnum>(name: Option<&str>) -> Result<Option<F>, String> {
    let Some(name) = name else { return Ok(None) };
    F::from_str(name, false).map(Some).map_err(|_| {
        let names = F::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = names.map(|name| name.get_name().to_owned()).collect();
        format!("--cripple `{name}`: {} are what there is", names.join(", "))
    })
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    if args.differences {
        let differences = match args.machine {
            MachineName::Q35 => &q35::DIFFERENCES[..],
            MachineName::Virt => &virt::DIFFERENCES[..],
        };
        let lines: String = differences.iter().map(|(name, what)| format!("{name:<18} {what}\n")).collect();
        return ExitCode::from(u8::from(say(&lines).is_err()));
    }
    let cripple = args.cripple.as_deref();
    let checked = match args.machine {
        MachineName::Q35 => fault(cripple).map(|fault| q35::check(&args, fault)),
        MachineName::Virt => fault(cripple).map(|fault| virt::check(&args, fault)),
    };
    match checked {
        Ok(checked) => args.selection.end(checked, |report| report.print(&args), |error| error),
        Err(wrong) => {
            eprintln!("doorbell: {wrong}");
            ExitCode::from(WRONG_USAGE)
        }
    }
}
