//! One program on both machines, and where they first differ.

use super::super::super::shrink::Subject;
use super::super::{Difference, Error};
use super::coverage::Coverage;
use super::differences::Model;
use super::state::State;
use super::step::Step;
use super::wire::Wire;

/// The two sides of the comparison.
pub struct Pair {
    /// QEMU, then doorbell.
    pub sides: [Box<dyn Wire>; 2],
}

/// Takes one step; `tail` is the next free place of the unit's queue. What was loaded, if it loads.
///
/// # Errors
/// Where the machine is gone.
pub fn take(wire: &mut dyn Wire, tail: u16, step: &Step) -> Result<String, Error> {
    if let Step::Event { vector, times } = *step {
        wire.event(vector, times)?;
        return Ok(String::new());
    }
    let lines = step.lines(tail, |chip| wire.path(chip).to_owned());
    Ok(wire.say(&lines)?.pop().unwrap_or_default())
}

impl Pair {
    /// Runs a program. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// Where a machine is gone.
    pub fn run(&mut self, steps: &[Step], mut coverage: Option<&mut Coverage>) -> Result<Option<Difference>, Error> {
        for side in &mut self.sides {
            super::state::prelude(&mut **side)?;
        }
        let mut model = Model::default();
        let mut before = State::of(&mut *self.sides[0])?;
        let mut items = before.differences(&State::of(&mut *self.sides[1])?);
        let mut answers = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            let Some(step) = model.admit(step) else {
                answers.push(None);
                continue;
            };
            let [left, right] = &mut self.sides;
            let tail = model.take_tail(&step);
            let taken = [take(&mut **left, tail, &step)?, take(&mut **right, tail, &step)?];
            let answer = model.answered(&step, taken);
            let after = model.seen(State::of(&mut **left)?);
            if answer[0] != answer[1] {
                items.push(["the answer".into(), answer[0].clone(), answer[1].clone()]);
            }
            items.extend(after.differences(&model.seen(State::of(&mut **right)?)));
            if let Some(coverage) = &mut coverage {
                coverage.count(&step, &answer[0], &before, &after);
            }
            answers.push(Some(answer));
            if !items.is_empty() {
                return Ok(Some(Difference { at, at_the_end: false, answers, items }));
            }
            before = after;
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
