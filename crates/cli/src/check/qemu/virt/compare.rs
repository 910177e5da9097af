//! One program on both machines, and where they first differ.

use super::super::super::shrink::Subject;
use super::super::{Difference, Error};
use super::coverage::Coverage;
use super::differences::Model;
use super::side::{Op, Side};
use super::state::{self, Seen};
use super::step::{self, Step};

/// The two sides of the comparison.
pub struct Pair {
    /// QEMU, then doorbell.
    pub sides: [Box<dyn Side>; 2],
}

/// What belongs to a step: its operations, and what is looked at behind them.
struct Piece {
    ops: Vec<Op>,
    /// How many of them are the step's own.
    own: usize,
    /// What doorbell gave.
    gave: Vec<u64>,
}

/// Parts of RAM that programs use: address and length.
const TABLES: [(u64, u64); 6] = [
    (step::QUEUE, step::QUEUE_BYTES),
    (step::DEVICES, 0x8_0000),
    (step::COLLECTIONS, 0x1_0000),
    (step::ITTS, 0x20 * step::ITT_STRIDE),
    (step::CONFIG, 0x1000),
    (step::PENDING[0], 0x2000),
];

/// Resets a machine and clears what programs use.
///
/// # Errors
/// Where it is gone.
pub fn prelude(side: &mut dyn Side) -> Result<(), Error> {
    side.reset()?;
    for (address, bytes) in TABLES.into_iter().chain([(step::PENDING[1], 0x2000)]) {
        side.clear(address, bytes)?;
    }
    let ops = step::prelude();
    let gave = side.run(&ops)?;
    let capability = ops.iter().zip(gave).find(|(op, _)| matches!(op, Op::Load(..)));
    match capability {
        Some((_, 0x05)) => Ok(()),
        _ => Err(format!("{}: the capability of the MSI function is elsewhere", side.name())),
    }
}

impl Pair {
    /// Runs a program. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// Where a machine is gone.
    pub fn run(&mut self, steps: &[Step], mut coverage: Option<&mut Coverage>) -> Result<Option<Difference>, Error> {
        for side in &mut self.sides {
            prelude(&mut **side)?;
        }
        let [qemu, doorbell] = &mut self.sides;
        let mut model = Model::default();
        // Doorbell first: what a step may do can depend on what was seen so far.
        let mut pieces: Vec<Option<Piece>> = Vec::with_capacity(steps.len() + 1);
        for step in steps {
            let Some(step) = model.admit(step) else {
                pieces.push(None);
                continue;
            };
            let mut ops = step.ops(model.take_tail(&step));
            let own = ops.len();
            ops.extend(state::after_each());
            let gave = doorbell.run(&ops)?;
            let piece = Piece { ops, own, gave };
            model.saw(&Seen::of(&piece.gave[own..]));
            if let Some(coverage) = &mut coverage {
                coverage.count(&step, &piece.gave[..own], &piece.gave[own..]);
            }
            pieces.push(Some(piece));
        }
        let ops = state::at_the_end();
        let gave = doorbell.run(&ops)?;
        pieces.push(Some(Piece { own: 0, ops, gave }));
        let all: Vec<_> = pieces.iter().flatten().flat_map(|piece| piece.ops.iter().copied()).collect();
        let mut theirs = qemu.run(&all)?.into_iter();
        let mut answers = Vec::with_capacity(steps.len());
        for (at, piece) in pieces.iter().enumerate() {
            let Some(Piece { ops, own, gave }) = piece else {
                answers.push(None);
                continue;
            };
            let mut items = Vec::new();
            let mut answer = None;
            for (place, (op, ours)) in ops.iter().zip(gave).enumerate() {
                let theirs = theirs.next().unwrap_or_default();
                if !op.reads() {
                    continue;
                }
                let [left, right] = model.alike(*op, [theirs, *ours]).map(|value| format!("{value:#x}"));
                if left != right {
                    items.push([op.to_string(), left.clone(), right.clone()]);
                }
                if place < *own {
                    answer = Some([left, right]);
                }
            }
            let at_the_end = at == steps.len();
            if !at_the_end {
                answers.push(Some(answer.unwrap_or_default()));
            }
            if !items.is_empty() {
                return Ok(Some(Difference { at, at_the_end, answers, items }));
            }
        }
        Ok(None)
    }
}

impl Subject for Pair {
    type Step = Step;
    type Difference = Difference;
    type Error = Error;

    fn differs(&mut self, steps: &[Step]) -> Result<Option<Difference>, Error> {
        self.run(steps, None)
    }

    fn step_of(difference: &Difference) -> usize {
        difference.at
    }

    fn simpler(step: &Step) -> Vec<Step> {
        step.simpler()
    }
}
