//! `doorbell check qemu`: the same random programs of register accesses and device actions on QEMU's chips and on
//! doorbell's, through QEMU's qtest protocol.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};

use super::failure::Failure;
use super::{progress, say, shard, shrink, tally};
use crate::run::stop;

mod compare;
mod coverage;
mod cripple;
mod differences;
mod ivshmem;
mod process;
mod program;
mod report;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod wire;

use compare::Pair;
use cripple::Fault;
use process::{Missing, Qemu};
use report::Report;
use wire::{CPUS, Doorbell, Error, VECTORS};

/// The fewest steps that a program may have.
const FEWEST_CALLS: u64 = 50;
/// After so many failures, the others would say the same.
const ENOUGH_FAILURES: usize = 10;
/// The exit status of a check that could not be made.
const SKIPPED: u8 = 77;

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
    /// Which programs: the same seed gives the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many programs
    #[arg(long, default_value_t = 200, conflicts_with = "only")]
    programs: u64,
    /// How many steps each has, at least 50
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(FEWEST_CALLS..=100_000))]
    calls: u64,
    /// Only each Nth program, from number I: for N machines, or N processors (`0/2` and `1/2`)
    #[arg(long, value_name = "I/N", value_parser = shard, default_value = "0/1")]
    shard: (u64, u64),
    /// Only the program with this number, as a failure names it
    #[arg(long, value_name = "NUMBER")]
    only: Option<u64>,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
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
        let lines = differences::DIFFERENCES.map(|(name, what)| format!("{name:<18} {what}\n"));
        return ExitCode::from(u8::from(say(&lines.concat()).is_err()));
    }
    match check(&args) {
        Ok(report) => {
            let failed = !report.tally.failures.is_empty();
            match report.print(&args) {
                Ok(()) => ExitCode::from(u8::from(failed)),
                Err(error) => {
                    eprintln!("doorbell: the report cannot be written: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(Missing::Program(why)) => {
            tally::skipped(args.json, &why);
            ExitCode::from(SKIPPED)
        }
        Err(Missing::Other(why)) => {
            eprintln!("doorbell: the check cannot go on: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Which remapping unit a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Vtd,
    Amd,
}

/// The options that both machines are started with.
fn options(unit: Unit) -> Vec<String> {
    let unit = match unit {
        Unit::Vtd => "intel-iommu",
        Unit::Amd => "amd-iommu",
    };
    let words = format!(
        "-M q35,kernel-irqchip=off,hpet=off,pit=off -cpu qemu64 -smp {CPUS} -m 64 -device {unit},intremap=on -device \
         edu,addr=3 -device ivshmem-doorbell,vectors={VECTORS},chardev=peer,addr=4"
    );
    words.split(' ').map(str::to_owned).collect()
}

/// Doorbell's machine: its events come from the check itself, so there is no server. Its 8259 is that of the data sheet,
/// which QEMU's is nearer to; KVM's is compared with the kernel's.
fn doorbell(unit: Unit, fault: Option<Fault>) -> Result<Doorbell, Error> {
    let ours = |word: String| word.replace(",chardev=peer", "").replace("q35,", "q35,8259=strict,");
    let words: Vec<_> = options(unit).into_iter().map(ours).collect();
    Doorbell::new(&words, fault)
}

/// The machines of both kinds, each started when it is first needed.
#[derive(Default)]
struct Pairs {
    vtd: Option<Pair>,
    amd: Option<Pair>,
}

impl Pairs {
    fn of(&mut self, unit: Unit, fault: Option<Fault>) -> Result<&mut Pair, Missing> {
        let pair = match unit {
            Unit::Vtd => &mut self.vtd,
            Unit::Amd => &mut self.amd,
        };
        match pair {
            Some(pair) => Ok(pair),
            None => {
                let qemu = Qemu::start(&options(unit))?;
                Ok(pair.insert(Pair { sides: [Box::new(qemu), Box::new(doorbell(unit, fault)?)] }))
            }
        }
    }
}

fn check(args: &Args) -> Result<Report, Missing> {
    stop::listen();
    let mut pairs = Pairs::default();
    // At once, so that a missing QEMU is noticed.
    pairs.of(Unit::Vtd, args.cripple)?;
    let (first, step) = args.shard;
    let numbers: Vec<u64> = match args.only {
        Some(number) => vec![number],
        None => (first..args.programs).step_by(step as usize).collect(),
    };
    let bar = progress(numbers.len() as u64);
    let start = Instant::now();
    let mut report = Report::default();
    report.tally.asked = numbers.len() as u64;
    for number in numbers {
        if stop::requested() || report.tally.failures.len() >= ENOUGH_FAILURES {
            break;
        }
        let program = program::generate(args.seed, number, args.calls as usize);
        let pair = pairs.of(program.unit, args.cripple)?;
        report.coverage.begin();
        let named = |error: Error| format!("program {number} of seed {}: {error}", args.seed);
        match pair.run(&program.steps, Some(&mut report.coverage)).map_err(named)? {
            None => report.tally.passed += 1,
            Some(found) => report.tally.failures.push(failure(pair, args, &program, found)?),
        }
        report.tally.seconds = start.elapsed().as_secs_f64();
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.tally.stopped = stop::requested();
    Ok(report)
}

fn failure(
    pair: &mut Pair,
    args: &Args,
    program: &program::Program,
    found: compare::Difference,
) -> Result<Failure, Error> {
    let repeats = pair.run(&program.steps, None)?.is_some();
    let (steps, difference) = if repeats {
        shrink::shrink(pair, &program.steps, found)?
    } else {
        (program.steps[..program.steps.len().min(found.at + 1)].to_vec(), found)
    };
    // As the machines took them.
    let mut model = differences::Model::default();
    let shown = steps.iter().map(|step| model.admit(step).unwrap_or_else(|| step.clone()).to_string());
    let mut answers = difference.answers.into_iter();
    let Args { seed, calls, .. } = args;
    Ok(Failure {
        number: program.number,
        from: program.steps.len(),
        repeats,
        at_the_end: false,
        steps: shown.map(|step| (step, answers.next().flatten())).collect(),
        items: difference.items,
        names: [pair.sides[0].name(), pair.sides[1].name()],
        again: format!("doorbell check qemu --machine q35 --seed {seed} --calls {calls} --only {}", program.number),
    })
}
