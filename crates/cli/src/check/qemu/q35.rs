//! QEMU's q35 and doorbell's: IOAPIC, 8259s, messages, MSI-X, and the remapping units of both makers.

use super::super::tally::Tally;
use super::report::Report;
use super::{Args, Error, Missing, failure};
use crate::run::stop;

mod child;
mod compare;
mod coverage;
mod cripple;
mod differences;
mod ivshmem;
mod program;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod wire;

use child::Qemu;
use compare::Pair;
use coverage::{Coverage, ROWS};
pub use cripple::Fault;
pub use differences::DIFFERENCES;
use wire::{CPUS, Doorbell, VECTORS};

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
        "-accel tcg -M q35,kernel-irqchip=off,hpet=off,pit=off -cpu qemu64 -smp {CPUS} -m 64 -device {unit},intremap=on -device \
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

/// Runs the programs.
///
/// # Errors
/// Where there is no QEMU, or a machine is gone.
pub fn check(args: &Args, fault: Option<Fault>) -> Result<Report, Missing> {
    stop::listen();
    let mut pairs = Pairs::default();
    // At once, so that a missing QEMU is noticed.
    pairs.of(Unit::Vtd, fault)?;
    let (mut tally, mut coverage) = (Tally::default(), Coverage::default());
    args.selection.run(args.programs, &mut tally, |number| {
        let program = program::generate(args.selection.seed, number, args.calls as usize);
        let pair = pairs.of(program.unit, fault)?;
        coverage.begin();
        let named = |error: Error| format!("program {number} of seed {}: {error}", args.selection.seed);
        match pair.run(&program.program.steps, Some(&mut coverage)).map_err(named)? {
            None => Ok::<_, Missing>(None),
            Some(found) => {
                let (mut model, names) = (differences::Model::default(), pair.sides.each_ref().map(|side| side.name()));
                let taken = |step: &_| model.admit(step).unwrap_or_else(|| Clone::clone(step));
                Ok(Some(failure(pair, args, names, &program.program, found, taken)?))
            }
        }
    })?;
    Ok(Report { tally, steps: coverage.steps, reached: coverage.rows, rows: &ROWS })
}
