//! QEMU's virt machine and doorbell's: GICv3 and ITS, through registers, tables and the CPU interfaces of two CPUs.

use super::super::failure::Failure;
use super::super::programs::Selection;
use super::super::shrink;
use super::super::tally::Tally;
use super::report::Report;
use super::{Args, Error, Missing};
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
            Some(found) => Ok(Some(failure(&mut pair, args, &program, found)?)),
        }
    })?;
    Ok(Report { tally, steps: coverage.steps, reached: coverage.rows, rows: &ROWS })
}

fn failure(
    pair: &mut Pair,
    args: &Args,
    program: &program::Program,
    found: compare::Difference,
) -> Result<Failure, Error> {
    let (repeats, (steps, difference)) = shrink::explain(pair, &program.steps, found)?;
    // As the machines took them.
    let mut model = differences::Model::default();
    let shown = steps.iter().map(|step| model.admit(step).unwrap_or_else(|| step.clone()).to_string());
    let mut answers = difference.answers.into_iter();
    let Args { selection: Selection { seed, .. }, calls, .. } = args;
    Ok(Failure {
        number: program.number,
        from: program.steps.len(),
        repeats,
        at_the_end: difference.at_the_end,
        steps: shown.map(|step| (step, answers.next().flatten())).collect(),
        items: difference.items,
        names: [pair.sides[0].name(), pair.sides[1].name()],
        again: format!("doorbell check qemu --machine virt --seed {seed} --calls {calls} --only {}", program.number),
    })
}
