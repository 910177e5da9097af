use super::*;
use crate::Delivery;

/// The answers that the kernel's KVM gave to `signal_msi.*` of the reference driver.
#[test]
fn direct_messages_are_answered_as_by_kvm_q3_to_q9() {
    let (set, mut cpus) = machine(2);
    assert_eq!(send(&set, address(0), 0x51), 1, "Q3 first");
    assert_eq!(send(&set, address(0), 0x51), 1, "Q3 already in IRR");
    assert_eq!(arrived(&mut cpus[0]), [0x51]);
    assert_eq!(send(&set, address(5), 0x52), 0, "Q4 absent");
    assert_eq!(send(&set, 0x1000, 0x53), 1, "Q5 outside FEExxxxx");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![], vec![0x53]));
    assert_eq!(send(&set, address(1), 0x54), 1);
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![], vec![0x54]));
    assert_eq!(send(&set, address(0xff), 0x55), 2, "Q6 broadcast");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x55], vec![0x55]));

    cpus[0].write(LDR, 1 << 24);
    cpus[1].write(LDR, 2 << 24);
    assert_eq!(send(&set, address(3) | LOGICAL, 0x56), 2, "Q7 two bits");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x56], vec![0x56]));
    assert_eq!(send(&set, address(3) | LOGICAL | HINT, 0x5a), 1, "Q8 hint");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x5a], vec![]));
    assert_eq!(send(&set, address(4) | LOGICAL, 0x57), 0);
    assert_eq!(send(&set, address(3) | LOGICAL, 0x58 | LOWEST), 1, "Q8 lowest priority");
    let hit = [arrived(&mut cpus[0]), arrived(&mut cpus[1])].concat();
    assert_eq!(hit, [0x58], "exactly one");

    cpus[0].write(SVR, 0xff);
    assert_eq!(send(&set, address(0), 0x59), 0, "Q4 software-disabled");
    assert_eq!(arrived(&mut cpus[0]), []);
    cpus[0].write(SVR, 0x1ff);
    assert_eq!(send(&set, address(0), 0x05), 1, "Q9");
    assert_eq!(arrived(&mut cpus[0]), [0x05]);
}

#[test]
fn the_hint_to_all_makes_a_fixed_message_of_any_mode_as_in_kvm() {
    let (set, mut cpus) = machine(2);
    assert_eq!(send(&set, address(0xff) | HINT, 0x4_00), 1, "an NMI, but to all and to one of them");
    assert!(cpus.iter_mut().all(|cpu| !cpu.take_nmi()));
    assert_eq!(arrived(&mut cpus[0]), [0]);
}

#[test]
fn a_target_follows_changes_of_id_and_software_enable() {
    let (set, mut cpus) = machine(2);
    let target = set.prepare(&MsiMessage::new(address(1), 0x41)).unwrap();
    cpus[1].write(SVR, 0xff);
    assert_eq!(set.fire(target), Delivery::Coalesced, "disabled");
    cpus[1].write(SVR, 0x1ff);
    assert_eq!(set.fire(target), Delivery::Delivered(1));
    cpus[1].write(0x20, 7 << 24);
    assert_eq!(set.fire(target), Delivery::Coalesced, "nobody has this id now");
    cpus[0].write(0x20, 1 << 24);
    assert_eq!(set.fire(target), Delivery::Delivered(1));
    assert_eq!(arrived(&mut cpus[0]), [0x41], "who has it now takes it");
    cpus[1].write(0x20, 1 << 24);
    assert_eq!(set.fire(target), Delivery::Delivered(2), "two APICs with one id both take it");
    drop(cpus.pop());
    assert_eq!(set.fire(target), Delivery::Delivered(1), "an APIC that nobody has is absent");
    drop(cpus);
    assert_eq!(set.fire(target), Delivery::Coalesced);
}

#[test]
fn every_24_bit_target_is_harmless() {
    let (set, _cpus) = machine(2);
    for bits in (0..1 << 24).step_by(977) {
        set.fire(crate::Target::new(bits).unwrap());
    }
}

#[test]
fn messages_of_every_delivery_mode() {
    for (strict, extint) in [(false, 0), (true, 1)] {
        let (set, mut cpus) = machine_with(1, ApicOptions { strict, ..ApicOptions::default() });
        cpus[0].write(SVR, 0xff); // all but fixed ones are taken all the same
        let answers = [0x041, 0x141, 0x200, 0x300, 0x400, 0x500, 0x620, 0x700].map(|data| send(&set, address(0), data));
        assert_eq!(answers, [0, 0, 1, 1, 1, 1, 1, extint]);
        let work = cpus[0].next();
        assert_eq!((work.smi, work.nmi, work.init, work.extint), (true, true, true, strict));
        assert!(cpus[0].take_smi() && !cpus[0].take_smi());
        assert_eq!((cpus[0].take_extint(), cpus[0].take_extint()), (strict, false));
    }
}
