//! What the programs with a guest reached.

use super::call::{Answer, Call};
use super::compare::State;
use super::machine::Rest;
use crate::check::kvm::compare;
use crate::check::kvm::coverage::Coverage;

/// Counts one step by the kernel's answer.
pub fn count(coverage: &mut Coverage, call: &Call, answer: &Answer, _before: &State, _after: &State) {
    let class = match answer {
        Answer::Host(Err(errno)) => compare::errno_name(*errno),
        Answer::Host(Ok(_)) if matches!(call, Call::Read { .. }) => "a value".into(),
        Answer::Host(Ok(value)) => value.to_string(),
        Answer::Guest(Rest::Idle(_), events) if events.is_empty() => "nothing taken".into(),
        Answer::Guest(Rest::Idle(_), _) => "taken".into(),
        Answer::Guest(Rest::Halted, _) => "halted".into(),
        Answer::Guest(Rest::WaitsForStart, _) => "waits for SIPI".into(),
        Answer::Guest(Rest::Stuck, _) => "stuck".into(),
    };
    *coverage.answers.entry((call.name(), class)).or_default() += 1;
}
