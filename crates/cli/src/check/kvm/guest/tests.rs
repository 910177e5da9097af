use doorbell::MsiMessage;
use doorbell::kvm::abi::{Kvm, bind_to_this_cpu};

use super::call::Call;
use super::chips::{EXTERNAL, Kernel, Soft, Split};
use super::code::{Accepts, Event, LAPIC, Operation, Policy};
use super::compare::{Pair, Side};
use super::machine::{Machine, Rest, ends_by_itself};

fn machines() -> Option<Vec<Machine>> {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(errno) => {
            println!("SKIPPED, nothing was tested: no /dev/kvm here: {errno}");
            return None;
        }
    };
    bind_to_this_cpu().unwrap();
    let accepts = if ends_by_itself(&kvm).unwrap() { Accepts::Host } else { Accepts::Vcpu };
    println!("{accepts:?}");
    let mut machines = vec![
        Machine::new(accepts, |parts| Ok(Box::new(Kernel::new(&kvm, parts.vm, parts.irqs)?))).unwrap(),
        Machine::new(Accepts::Vcpu, |_| Ok(Box::new(Soft::new(None, false)?))).unwrap(),
        Machine::new(accepts, |parts| Ok(Box::new(Split::new(parts.vm, parts.irqs)?))).unwrap(),
    ];
    machines.iter_mut().for_each(|machine| machine.reset(false).unwrap());
    Some(machines)
}

fn to(vcpu: u64, vector: u32) -> MsiMessage {
    MsiMessage::new(LAPIC | vcpu << 12, vector)
}

const EOI: [u64; 2] = [LAPIC + 0xb0, 0];

/// Runs an operation on vCPU 0 and expects it to come back to its idle loop.
#[track_caller]
fn run(machine: &mut Machine, operation: Operation, arguments: [u64; 2]) -> (u32, Vec<Event>) {
    match machine.run(0, operation, arguments).unwrap() {
        (Rest::Idle(answer), events) => (answer, events),
        other => panic!("{}: {other:x?}", machine.chips().name()),
    }
}

#[test]
fn vectors_are_taken_in_the_order_of_their_priority_and_ended_one_by_one() {
    let Some(machines) = machines() else { return };
    for mut machine in machines {
        for vector in [0x41, 0x93, 0x62, 0x6f] {
            assert_eq!(machine.chips().message(&to(0, vector)), Ok(1));
        }
        assert_eq!(run(&mut machine, Operation::Nothing, [0, 0]).1, [Event::Taken(0x93)]);
        assert_eq!(run(&mut machine, Operation::Load, [LAPIC + 0xa0, 0]).0, 0x90, "the processor priority");
        assert_eq!(run(&mut machine, Operation::Store, EOI).1, [Event::Taken(0x6f)]);
        assert_eq!(run(&mut machine, Operation::Store, EOI).1, [Event::Taken(0x62)]);
        assert_eq!(run(&mut machine, Operation::Store, EOI).1, [Event::Taken(0x41)]);
        assert_eq!(run(&mut machine, Operation::Store, EOI).1, []);
        assert_eq!(run(&mut machine, Operation::Load, [LAPIC + 0xa0, 0]).0, 0);
    }
}

#[test]
fn a_handler_that_lets_others_in_is_interrupted_by_higher_classes_only() {
    let Some(machines) = machines() else { return };
    for mut machine in machines {
        for vector in [0x41, 0x62, 0x6f, 0x93, 0xa1] {
            machine.set_policy(0, vector, if vector == 0x62 { Policy::NestAndEnd } else { Policy::End });
        }
        // The handler of 0x62 is entered with everything else held back.
        run(&mut machine, Operation::SetCr8, [0, 15]);
        for vector in [0x41, 0x62] {
            machine.chips().message(&to(0, vector)).unwrap();
        }
        assert_eq!(run(&mut machine, Operation::GetCr8, [0, 0]), (15, vec![]));
        let (_, events) = run(&mut machine, Operation::SetCr8, [0, 0]);
        use Event::{Ended, Taken};
        assert_eq!(events, [Taken(0x62), Ended(0x62), Taken(0x41), Ended(0x41)], "{}", machine.chips().name());
    }
}

#[test]
fn a_halted_vcpu_sleeps_until_it_can_take_something() {
    let Some(machines) = machines() else { return };
    for mut machine in machines {
        assert_eq!(machine.run(0, Operation::Halt, [0, 0]).unwrap(), (Rest::Halted, vec![]));
        assert_eq!(machine.run(0, Operation::Nothing, [0, 0]).unwrap(), (Rest::Halted, vec![]));
        machine.chips().message(&to(0, 0x77)).unwrap();
        assert_eq!(run(&mut machine, Operation::GetCr8, [0, 0]), (0, vec![Event::Taken(0x77)]));
        run(&mut machine, Operation::Store, EOI);
        run(&mut machine, Operation::Disable, [0, 0]);
        assert_eq!(machine.run(0, Operation::Halt, [0, 0]).unwrap().0, Rest::Halted);
        machine.chips().message(&to(0, 0x78)).unwrap();
        let name = machine.chips().name();
        assert_eq!(machine.run(0, Operation::Nothing, [0, 0]).unwrap(), (Rest::Halted, vec![]), "{name}");
    }
}

/// What differs between the kernel and `other`, by the names that a report has.
fn difference(machines: Vec<Machine>, other: usize, calls: &[Call]) -> Vec<String> {
    let mut sides: Vec<_> = machines.into_iter().map(Side::new).collect();
    let (kernel, others) = sides.split_at_mut(1);
    let mut pair = Pair { sides: [&mut kernel[0], &mut others[other]], pic: false };
    let found = pair.run(calls, None).unwrap().expect("a difference that is on purpose");
    assert_eq!(found.at + 1, calls.len(), "{:?}", found.items);
    found.items.into_iter().map(|[name, kernel, other]| format!("{name}: {kernel}, {other}")).collect()
}

fn entry(pin: u64, low: u64) -> Call {
    Call::Guest { vcpu: 0, operation: Operation::StoreIoApic, arguments: [0x10 + 2 * pin, low] }
}

#[test]
fn a_store_to_cr8_that_changes_only_the_low_half_of_tpr_is_not_seen_by_user_space() {
    let Some(machines) = machines() else { return };
    let cr8 = Call::Guest { vcpu: 0, operation: Operation::SetCr8, arguments: [0, 0] };
    let items = difference(machines, 0, &[Call::store(0, 0x80, 4), cr8]);
    assert_eq!(items, ["vm0 vcpu0 TPR: 0x0, 0x4"]);
}

#[test]
fn a_level_message_with_the_vector_of_an_edge_pin_takes_its_line_only_in_the_kernel() {
    let Some(machines) = machines() else { return };
    let calls = [
        entry(18, 0x7b),
        Call::Line { gsi: 18, level: true },
        Call::Bind { source: 2, gsi: 18, resample: true },
        Call::Message(to(1, 0x807b)),
        Call::store(1, 0xb0, 0),
    ];
    assert_eq!(difference(machines, 0, &calls), ["vm0 IOAPIC IRR: 0x0, 0x40000"]);
}

#[test]
fn a_split_chip_does_not_hear_of_the_end_of_an_edge_interrupt() {
    let Some(machines) = machines() else { return };
    let calls = [
        entry(4, 0x5b),
        Call::Bind { source: 1, gsi: 4, resample: true },
        Call::Message(MsiMessage::new(LAPIC, 0x5b)),
        Call::store(0, 0xb0, 0),
    ];
    assert_eq!(difference(machines, 1, &calls), ["counter of resample event 1: above 0, 0"]);
}

#[test]
fn the_8259s_interrupts_go_before_those_of_the_local_apic_whatever_the_priority() {
    let Some(machines) = machines() else { return };
    for mut machine in machines.into_iter().take(2) {
        machine.reset(true).unwrap();
        for (port, value) in [(0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0)] {
            run(&mut machine, Operation::Out, [port, value]);
        }
        run(&mut machine, Operation::SetCr8, [0, 15]);
        run(&mut machine, Operation::Disable, [0, 0]);
        machine.chips().message(&to(0, 0x93)).unwrap();
        assert_eq!(machine.chips().line(EXTERNAL + 3, true), Ok(1));
        assert_eq!(run(&mut machine, Operation::Enable, [0, 0]).1, [Event::Taken(0x0b)]);
        assert_eq!(machine.pics().unwrap()[0].isr, 0x08);
        assert_eq!(run(&mut machine, Operation::SetCr8, [0, 0]).1, [Event::Taken(0x93)]);
        run(&mut machine, Operation::Out, [0x20, 0x20]);
        assert_eq!(machine.pics().unwrap()[0].isr, 0);
        assert_eq!(machine.lapic(0).unwrap().vectors(0x100), [0x93]);
    }
}
