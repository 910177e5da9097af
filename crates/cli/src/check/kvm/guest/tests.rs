use doorbell::MsiMessage;
use doorbell::kvm::abi::{Kvm, bind_to_this_cpu};

use super::chips::{Kernel, Soft, Split};
use super::code::{Accepts, Event, LAPIC, Operation, Policy};
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
        Machine::new(Accepts::Vcpu, |_| Ok(Box::new(Soft::new(None)?))).unwrap(),
        Machine::new(accepts, |parts| Ok(Box::new(Split::new(parts.vm, parts.irqs)?))).unwrap(),
    ];
    machines.iter_mut().for_each(|machine| machine.reset().unwrap());
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
