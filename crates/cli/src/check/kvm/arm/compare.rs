//! One program on both sides, and where they first differ.
//!
//! A CPU has four list registers, and the kernel puts those of its interrupts that are in service there first. Which of more
//! than four a guest sees then is not what the architecture says: a program is compared up to there, and no further.

use doorbell::kvm_abi::arm::types::group;

use super::super::super::shrink::Subject;
use super::Error;
use super::call::Call;
use super::layout::GIC;
use super::program::{Kind, Program};
use super::registers::{ISACTIVER, SGI_FRAME};
use super::side::{Answer, Machine, Recording, View, Whole};

/// How many list registers there are.
const LIST_REGISTERS: u32 = 4;

/// Where two sides differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// After which call of the program, counted from 0; the number of calls if it shows at the end.
    pub at: usize,
    /// What the calls answered up to there.
    pub answers: Vec<[String; 2]>,
    /// What differs: what it is, and both values.
    pub items: Vec<[String; 3]>,
}

/// What is told about each call of a program on which both sides agree: the call, its answer, what was seen before and after.
pub type Told<'a> = dyn FnMut(&Call, &Answer, &View, &View) + 'a;

/// The two sides of the comparison, with the program that is on them.
pub struct Pair<'a> {
    /// The kernel, then doorbell.
    pub sides: [&'a mut dyn Machine; 2],
    /// The program; only its calls are changed.
    pub program: &'a Program,
}

impl Subject for Pair<'_> {
    type Step = Call;
    type Difference = Difference;
    type Error = Error;

    fn differs(&mut self, calls: &[Call]) -> Result<Option<Difference>, Error> {
        let [left, right] = &mut self.sides;
        let left = Whole::run(*left, self.program, calls)?;
        let right = Whole::run(*right, self.program, calls)?;
        Ok(compare(self.program, calls.len(), &left, &right, &mut |_, _, _, _| {}))
    }

    fn step_of(difference: &Difference) -> usize {
        difference.at
    }

    fn simpler(call: &Call) -> Vec<Call> {
        call.simpler()
    }
}

/// Where two recordings of a program of so many calls differ first.
pub fn compare(
    program: &Program,
    calls: usize,
    left: &Whole,
    right: &Whole,
    told: &mut Told<'_>,
) -> Option<Difference> {
    let first = program.prelude.len();
    let end = first + calls;
    let mut views = [View::of(&program.watch), View::of(&program.watch)];
    let mut answers = Vec::new();
    let steps = left.calls.iter().zip(left.recording.steps.iter().zip(&right.recording.steps));
    for (at, (call, (left, right))) in steps.enumerate() {
        let mut items = Vec::new();
        let own = (first..end).contains(&at);
        if left.answer != right.answer {
            let what = if own { "the answer".to_owned() } else { call.to_string() };
            items.push([what, left.answer.show(), right.answer.show()]);
        }
        let before = views[0].clone();
        for (view, step) in views.iter_mut().zip([left, right]) {
            step.changes.iter().for_each(|(watched, answer)| view.set(*watched, answer.clone()));
        }
        for (watched, call) in program.watch.iter().enumerate() {
            let [left, right] = [0, 1].map(|side| views[side].get(watched));
            if left != right {
                let show = |answer: Option<&Answer>| answer.map_or_else(|| "nothing".to_owned(), Answer::show);
                items.push([call.to_string(), show(left), show(right)]);
            }
        }
        if own {
            answers.push([left.answer.show(), right.answer.show()]);
        }
        if !items.is_empty() {
            return Some(Difference { at: at.clamp(first, end) - first, answers, items });
        }
        if at >= first {
            told(call, &left.answer, &before, &views[0]);
        }
        if program.kind == Kind::Guest && own && crowded(program, &views[0]) {
            return None;
        }
    }
    let (Some((calls, left)), Some((_, right))) = (&left.restored, &right.restored) else { return None };
    let items = differences(calls, left, right);
    (!items.is_empty()).then(|| Difference { at: end - first, answers, items })
}

/// What differs between two VMs that were restored.
fn differences(calls: &[Call], left: &Recording, right: &Recording) -> Vec<[String; 3]> {
    let steps = calls.iter().zip(left.steps.iter().zip(&right.steps));
    let differ = steps.filter(|(_, (left, right))| left.answer != right.answer);
    differ.map(|(call, (left, right))| [format!("restored: {call}"), left.answer.show(), right.answer.show()]).collect()
}

/// Whether some vCPU may have more interrupts than list registers: those in service, of which the ones of no vCPU in
/// particular are counted for all.
fn crowded(program: &Program, view: &View) -> bool {
    let mut shared = 0;
    let mut private = 0;
    for (at, call) in program.watch.iter().enumerate() {
        let Call::GetAttr { slot: GIC, group, attr, .. } = call else { continue };
        let Some([word]) = view.get(at).map(|answer| &answer.data[..]) else { continue };
        let in_service = (*word as u32).count_ones();
        let offset = attr & u64::from(u32::MAX);
        match *group {
            group::DIST_REGS if (ISACTIVER..ISACTIVER + 0x80).contains(&offset) => shared += in_service,
            group::REDIST_REGS if offset == SGI_FRAME + ISACTIVER => private = private.max(in_service),
            _ => {}
        }
    }
    shared + private >= LIST_REGISTERS
}
