//! QEMU's virt machine and doorbell's: GICv3 and ITS, through registers, tables and the CPU interfaces of two CPUs.

use super::super::tally::Tally;
use super::report::Report;
use super::{Args, Error, Missing, failure};
use crate::run::stop;

mod child;
mod code;
mod compare;
mod coverage;
mod cripple;
mod differences;
mod icc;
mod ours;
mod program;
mod side;
mod state;
mod step;
#[cfg(test)]
mod tests;

use child::Qemu;
use compare::Pair;
use coverage::{Coverage, ROWS};
pub use cripple::Fault;
pub use differences::DIFFERENCES;
use ours::Doorbell;

/// Runs the programs.
///
/// # Errors
/// Where there is no QEMU, or a machine is gone.
pub fn check(args: &Args, fault: Option<Fault>) -> Result<Report, Missing> {
    stop::listen();
    let mut pair = Pair { sides: [Box::new(Qemu::start()?), Box::new(Doorbell::new(fault)?)] };
    let (mut tally, mut coverage) = (Tally::default(), Coverage::default());
    args.selection.run(args.programs, &mut tally, |number| {
        let program = program::generate(args.selection.seed, number, args.calls as usize);
        coverage.begin();
        let named = |error: Error| format!("program {number} of seed {}: {error}", args.selection.seed);
        match pair.run(&program.steps, Some(&mut coverage)).map_err(named)? {
            None => Ok::<_, Missing>(None),
            Some(found) => {
                let (mut model, names) = (differences::Model::default(), pair.sides.each_ref().map(|side| side.name()));
                let taken = |step: &_| model.admit(step).unwrap_or_else(|| Clone::clone(step));
                Ok(Some(failure(&mut pair, args, names, &program, found, taken)?))
            }
        }
    })?;
    Ok(Report { tally, steps: coverage.steps, reached: coverage.rows, rows: &ROWS })
}
