//! EnableLPIs off and on.

use super::*;

#[test]
fn h26_what_is_pending_goes_to_the_table_and_comes_back_from_there() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.mapped(8196, 0);
    rig.mapped(8197, 1);
    rig.gic.pend_lpi(8195);
    rig.gic.pend_lpi(8197);
    rig.switch(0, false);
    assert_eq!(rig.take(0), None, "I31: it has left the vCPU");
    assert!(rig.bit(0, 8195) && !rig.bit(0, 8196));
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Off, "dropped, and counted by who sent it");
    assert_eq!(rig.taken(1), [8197], "another vCPU's");
    rig.gic.save_pending_tables().unwrap();
    assert!(rig.bit(0, 8195), "the table of one that is off is the guest's");
    rig.switch(0, true);
    assert!(!rig.bit(0, 8195), "taken over");
    assert_eq!(rig.taken(0), [8195]);
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Pended);
    assert_eq!(rig.taken(0), [8196]);
}

#[test]
fn i33_a_table_that_is_known_to_be_zero_is_not_read() {
    for behaviour in [Behaviour::SPEC, Behaviour::KVM] {
        let rig = Rig::off(1, behaviour);
        rig.mapped(8195, 0);
        rig.set_bit(0, 8195);
        rig.write(0, LpiRegister::Pending, PENDING | ZERO);
        rig.switch(0, true);
        assert_eq!(rig.take(0), None);
        assert!(rig.bit(0, 8195));
        rig.switch(0, false);
        rig.write(0, LpiRegister::Pending, PENDING);
        rig.set_bit(0, 8195);
        rig.switch(0, true);
        assert_eq!(rig.taken(0), [8195]);
        assert_eq!(rig.bit(0, 8195), behaviour == Behaviour::KVM, "KVM leaves it in memory");
    }
}

#[test]
fn in_kvm_the_table_replaces_what_was_pending() {
    let rig = Rig::new(1, Behaviour::KVM);
    rig.mapped(8195, 0);
    rig.mapped(8196, 0);
    rig.gic.pend_lpi(8195);
    rig.switch(0, false);
    assert_eq!(rig.take(0), None);
    assert!(!rig.bit(0, 8195), "not written");
    assert_eq!(rig.saved(), [(0, 8195)], "but still pending in the kernel");
    rig.ram.write_le(PENDING + 8192 / 8, 0x10u8).unwrap();
    rig.switch(0, true);
    assert_eq!(rig.taken(0), [8196]);
}

#[test]
fn by_the_architecture_the_configuration_is_read_when_lpis_are_switched_on() {
    let rig = Rig::off(1, Behaviour::SPEC);
    rig.gic.map_lpi(8195, Some(0)).unwrap();
    rig.configure(8195, 0xa1);
    rig.switch(0, true);
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.taken(0), [8195]);
}

#[test]
fn a_pending_lpi_that_is_moved_to_a_vcpu_with_lpis_off_waits_in_its_table() {
    let rig = Rig::new(2, Behaviour::SPEC);
    for lpi in [8195, 8196] {
        rig.mapped(lpi, 0);
        rig.gic.pend_lpi(lpi);
    }
    rig.switch(1, false);
    rig.gic.target_lpi(8195, Some(1));
    rig.gic.move_all_lpis(0, 1, false);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![], vec![]));
    assert!(rig.bit(1, 8195) && rig.bit(1, 8196));
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Off);
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Pended, "its home is vCPU 0, which has them on");
    assert_eq!(rig.taken(0), [8196]);
    rig.switch(1, true);
    // Both bits are vCPU 1's, wherever later events go.
    assert_eq!(rig.taken(1), [8195, 8196]);
}

#[test]
fn an_lpi_that_gets_a_vcpu_late_is_read_from_its_tables_then() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.configure(8195, 0xa1);
    rig.set_bit(1, 8195);
    rig.gic.map_lpi(8195, None).unwrap();
    assert!(rig.bit(1, 8195));
    rig.gic.target_lpi(8195, Some(1));
    assert_eq!(rig.taken(1), [8195]);
    assert!(!rig.bit(1, 8195));
}

#[test]
fn what_is_pending_and_nobodys_waits_in_the_table_of_the_vcpu_that_it_gets() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    // Another event maps it, in a collection that is not mapped; then that collection is, to a vCPU with LPIs off.
    rig.gic.map_lpi(8195, None).unwrap();
    rig.switch(1, false);
    rig.gic.rehome_lpi(8195, Some(1));
    assert!(rig.bit(1, 8195));
    assert_eq!((rig.take(0), rig.take(1)), (None, None));
    rig.switch(1, true);
    assert_eq!(rig.taken(1), [8195]);
}
