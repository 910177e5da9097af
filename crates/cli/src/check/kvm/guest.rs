//! A guest that acknowledges: the same random programs of calls *and of a guest's operations* on the kernel's chips and on
//! doorbell's, to compare what happens after an interrupt has arrived.

mod alarm;
mod call;
mod chips;
mod code;
mod compare;
mod coverage;
mod machine;
mod program;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use doorbell::kvm::abi::Kvm;
use doorbell::kvm_abi::Errno;

use super::super::random::Random;
use super::super::{failure::Failure, shrink};
use super::coverage::Coverage;
use super::{Args, Selection};
use chips::{Kernel, Soft, Split};
pub use code::Accepts;
use compare::{Difference, Pair, Side};
use machine::{Machine, ends_by_itself};
use program::Kind;

/// Which programs have a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Share {
    /// Half of them.
    Half,
    /// All of them.
    All,
    /// None of them.
    None,
}

impl Share {
    /// Whether program `number` of `seed` is one with a guest.
    pub fn takes(self, seed: u64, number: u64) -> bool {
        match self {
            Self::Half => Random::of(!seed, number).one_in(2),
            Self::All => true,
            Self::None => false,
        }
    }
}

/// The kernel's VM, and those of doorbell.
pub struct Guests {
    kernel: Side,
    soft: Side,
    split: Side,
    /// Who takes interrupts out of the kernel's local APICs.
    pub accepts: Accepts,
}

impl Guests {
    /// Makes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(kvm: &Arc<Kvm>, args: &Args) -> Result<Self, Errno> {
        let accepts = if ends_by_itself(kvm)? { Accepts::Host } else { Accepts::Vcpu };
        let kernel = || Machine::new(accepts, |parts| Ok(Box::new(Kernel::new(kvm, parts.vm, parts.irqs)?)));
        let soft = if args.itself {
            kernel()?
        } else {
            Machine::new(Accepts::Vcpu, |_| Ok(Box::new(Soft::new(args.cripple, false)?)))?
        };
        let split = Machine::new(accepts, |parts| Ok(Box::new(Split::new(parts.vm, parts.irqs)?)))?;
        Ok(Self { kernel: Side::new(kernel()?), soft: Side::new(soft), split: Side::new(split), accepts })
    }

    /// Runs program `number`. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// A call outside of the program that failed and may not.
    pub fn run(&mut self, args: &Args, number: u64, coverage: &mut Coverage) -> Result<Option<Failure>, Errno> {
        let kind = Kind::of(args.selection.seed, number);
        let calls = program::generate(args.selection.seed, number, args.calls as usize, kind);
        let other = if kind == Kind::Split && !args.itself { &mut self.split } else { &mut self.soft };
        let mut pair = Pair { sides: [&mut self.kernel, other], pic: kind == Kind::External };
        let Some(found) = pair.run(&calls, Some(coverage))? else { return Ok(None) };
        let (repeats, (shrunk, difference)) = shrink::explain(&mut pair, &calls, found)?;
        let names = pair.sides.each_mut().map(|side| side.machine.chips().name());
        let Difference { at, answers, items } = difference;
        let mut answers = answers.into_iter().map(|answers| answers.map(|answer| answer.to_string()));
        let Args { selection: Selection { seed, .. }, calls: count, .. } = args;
        Ok(Some(Failure {
            number,
            from: calls.len(),
            repeats,
            at_the_end: at >= shrunk.len(),
            steps: shrunk.iter().map(|call| (call.to_string(), answers.next())).collect(),
            items,
            names,
            again: format!("doorbell check kvm --guest all --seed {seed} --calls {count} --only {number}"),
        }))
    }
}
