//! What the programs with a guest reached.

use doorbell::kvm_abi::types::regs;

use super::call::{Answer, Call};
use super::chips::EXTERNAL;
use super::code::{Event, Operation};
use super::compare::State;
use super::machine::Rest;
use crate::check::kvm::compare;
use crate::check::kvm::coverage::Coverage;

/// The vector of an NMI. In programs where the 8259 pair is heard, those below 16 are its own.
const NMI: u8 = 2;

/// Counts one step by the kernel's answer.
pub fn count(coverage: &mut Coverage, call: &Call, answer: &Answer, before: &State, after: &State) {
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
    match answer {
        Answer::Host(Ok(value)) => host(coverage, call, *value, before, after),
        Answer::Host(Err(_)) => {}
        Answer::Guest(rest, events) => guest(coverage, call, matches!(rest, Rest::Idle(_)), events, before, after),
    }
}

fn host(coverage: &mut Coverage, call: &Call, answer: i64, before: &State, after: &State) {
    let Call::Line { gsi, level } = *call else { return };
    if let Some(pin) = gsi.checked_sub(EXTERNAL) {
        let (chip, bit) = (&before.pics[pin as usize / 8], 1 << (pin % 8));
        let edge = level && chip.elcr & bit == 0;
        coverage.reach("P3", edge && answer > 0);
        coverage.reach("P4", edge && answer == 0);
        coverage.reach("P5", level && chip.imr & bit != 0 && answer == -1);
        return;
    }
    let pin = gsi as usize;
    let Some(entry) = before.vm.ioapic.redirtbl.get(pin) else { return };
    let (level_pin, masked, in_service) = (entry >> 15 & 1 == 1, entry >> 16 & 1 == 1, entry >> 14 & 1 == 1);
    coverage.reach("A2", level && level_pin && masked && answer == -1);
    coverage.reach("A4", level && level_pin && !masked && in_service && answer == -1);
    coverage.reach("A5", !level && before.vm.ioapic.irr >> pin & 1 == 1 && after.vm.ioapic.irr >> pin & 1 == 0);
    coverage.reach("A7", level && !level_pin && answer == 0);
}

fn guest(coverage: &mut Coverage, call: &Call, idle: bool, events: &[Event], before: &State, after: &State) {
    let (vcpu, told) = match *call {
        Call::Guest { vcpu, operation, arguments } => (vcpu, Some((operation, arguments))),
        Call::Timer { vcpu, periodic, .. } => {
            coverage.reach(if periodic { "periodic" } else { "once" }, !events.is_empty());
            (vcpu, None)
        }
        _ => return,
    };
    let (apic, later) = (&before.vm.lapics[vcpu as usize], &after.vm.lapics[vcpu as usize]);
    let took = |wanted: &dyn Fn(u8) -> bool| events.iter().any(|event| matches!(event, Event::Taken(v) if wanted(*v)));
    let external = before.pics.iter().any(|chip| chip.irq_base == 8);
    coverage.reach("L7", took(&|vector| vector >= 16));
    coverage.reach("P9", external && took(&|vector| vector < 16));
    coverage.reach("P7", external && took(&|vector| (8..16).contains(&vector)));
    coverage.reach("NMI", !external && took(&|vector| vector == NMI));
    coverage.reach("L6", idle && events.is_empty() && !later.vectors(regs::IRR).is_empty());
    coverage.reach("R2", after.readable & !before.readable != 0);
    coverage.reach("nesting", !events.is_empty() && later.vectors(regs::ISR).len() > 1);
    let in_service = apic.vectors(regs::ISR).pop();
    match told {
        Some(_) if call.stores(regs::EOI) && idle => {
            coverage.reach("L8", in_service.is_some());
            coverage.reach("A9", in_service.is_some_and(|vector| apic.vectors(regs::TMR).contains(&vector)));
        }
        Some((_, [_, value])) if call.stores(regs::ICR_LOW) => {
            coverage.reach("IPI", took(&|vector| vector == value as u8));
        }
        Some((Operation::SetCr8, [_, priority])) => {
            let held = |vector: &u8| u64::from(vector >> 4) <= priority && *vector >= 16;
            coverage.reach("CR8", priority > 0 && later.vectors(regs::IRR).iter().any(held));
        }
        Some((Operation::Out, [0x20 | 0xa0, value])) => {
            coverage.reach("P10", value & 0x10 != 0);
            coverage.reach("P11", value & 0x38 == 0x20 && before.pics.iter().any(|chip| chip.isr != 0));
        }
        _ => {}
    }
}
