//! What events and the ITS's commands do.

use super::*;

#[test]
fn i11_an_event_makes_its_lpi_pending_also_when_it_is_disabled() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.map_lpi(8200, Some(1)).unwrap();
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Already);
    assert_eq!(rig.gic.pend_lpi(8200), LpiSent::Pended);
    assert_eq!(rig.saved(), [(0, 8195), (1, 8200)]);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![8195], vec![]), "8200 is disabled");
    assert_eq!(rig.saved(), [(1, 8200)], "C30: the acknowledge clears it");
}

#[test]
fn an_lpi_that_no_event_is_mapped_to_is_nowhere() {
    let rig = Rig::new(1, Behaviour::SPEC);
    rig.mapped(8195, 0);
    for lpi in [0, 1023, 8191, 8192, 8194, 65_535, 65_536, u32::MAX] {
        assert_eq!(rig.gic.pend_lpi(lpi), LpiSent::Nowhere, "{lpi}");
        rig.gic.clear_lpi(lpi);
        rig.gic.target_lpi(lpi, Some(0));
        rig.gic.rehome_lpi(lpi, Some(0));
        rig.gic.unmap_lpi(lpi, false);
        assert_eq!(rig.gic.invalidate_lpi(lpi), Ok(()));
    }
    assert_eq!(rig.gic.map_lpi(65_536, Some(0)), Ok(()), "beyond id_bits there is none");
    assert_eq!(rig.gic.pend_lpi(65_536), LpiSent::Nowhere);
    assert!(rig.gic.lpi_in_range(8192) && rig.gic.lpi_in_range(65_535));
    assert!(!rig.gic.lpi_in_range(8191) && !rig.gic.lpi_in_range(65_536));
}

#[test]
fn a_vcpu_that_there_is_not_takes_nothing() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.configure(8195, 0xa1);
    for cpu in [Some(2), Some(0x3ff), Some(0xffff), None] {
        rig.gic.map_lpi(8195, cpu).unwrap();
        assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Nowhere);
        rig.gic.unmap_lpi(8195, false);
    }
    rig.gic.map_lpi(8195, Some(1)).unwrap();
    rig.gic.pend_lpi(8195);
    rig.gic.move_all_lpis(1, 2, false);
    rig.gic.move_all_lpis(2, 1, true);
    rig.gic.move_all_lpis(1, 0xffff, true);
    assert_eq!(rig.taken(1), [8195]);
}

#[test]
fn i12_clear_drops_what_is_pending() {
    let rig = Rig::new(1, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.clear_lpi(8195);
    assert_eq!(rig.take(0), None);
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.taken(0), [8195]);
}

#[test]
fn i13_what_is_pending_moves_with_its_event_and_is_there_at_once() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.target_lpi(8195, Some(1));
    assert_eq!(rig.saved(), [(1, 8195)]);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![], vec![8195]));
    rig.gic.pend_lpi(8195);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![], vec![8195]));
}

#[test]
fn i14_a_changed_configuration_counts_after_inv_and_a_pending_lpi_fires_then() {
    let rig = Rig::new(1, Behaviour::SPEC);
    for lpi in [8195, 8196] {
        rig.gic.map_lpi(lpi, Some(0)).unwrap();
        rig.gic.pend_lpi(lpi);
        rig.configure(lpi, 0xa1);
    }
    assert_eq!(rig.take(0), None, "the table is not looked at");
    rig.gic.invalidate_lpi(8196).unwrap();
    assert_eq!(rig.taken(0), [8196], "H24");
    rig.configure(8196, 0xa0);
    rig.gic.pend_lpi(8196);
    assert_eq!(rig.taken(0), [8196]);
    rig.gic.invalidate_all_lpis(0);
    assert_eq!(rig.taken(0), [8195]);
    rig.gic.pend_lpi(8196);
    assert_eq!(rig.take(0), None, "disabled by INVALL");
}

#[test]
fn invall_is_for_the_lpis_of_one_vcpu() {
    let rig = Rig::new(2, Behaviour::SPEC);
    for (lpi, cpu) in [(8195, 0), (8196, 1)] {
        rig.gic.map_lpi(lpi, Some(cpu)).unwrap();
        rig.configure(lpi, 0xa1);
        rig.gic.pend_lpi(lpi);
    }
    rig.gic.invalidate_all_lpis(1);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![], vec![8196]));
}

#[test]
fn the_priority_has_five_bits_and_orders_lpis_that_wait() {
    let rig = Rig::new(1, Behaviour::SPEC);
    for (lpi, byte) in [(8192, 0xa7), (8193, 0xa1), (8194, 0x41), (8195, 0xfd)] {
        rig.configure(lpi, byte);
        rig.gic.map_lpi(lpi, Some(0)).unwrap();
        rig.gic.pend_lpi(lpi);
    }
    // 0xa7 and 0xa1 are both 0xa0 with five bits, and come in the order in which they came.
    assert_eq!(rig.taken(0), [8194, 8192, 8193, 8195]);
    rig.gic.pend_lpi(8193);
    rig.gic.pend_lpi(8192);
    assert_eq!(rig.taken(0), [8193, 8192]);
}

#[test]
fn i16_movall_moves_what_is_pending_and_leaves_the_mappings_alone() {
    let rig = Rig::new(2, Behaviour::SPEC);
    for lpi in [8195, 8196, 8200] {
        rig.mapped(lpi, 0);
    }
    rig.mapped(8201, 1);
    rig.gic.pend_lpi(8195);
    rig.gic.pend_lpi(8200);
    rig.gic.pend_lpi(8201);
    rig.gic.move_all_lpis(0, 1, false);
    assert_eq!(rig.saved(), [(1, 8195), (1, 8200), (1, 8201)]);
    // I16a: the mapping is untouched, and the event brings the LPI home; it is pending once.
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Already);
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Pended);
    assert_eq!(rig.saved(), [(0, 8195), (0, 8196), (1, 8200), (1, 8201)]);
    assert_eq!(rig.taken(1), [8201, 8200]);
    assert_eq!(rig.taken(0), [8195, 8196]);
    rig.gic.pend_lpi(8200);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![8200], vec![]), "home again");
}

#[test]
fn i16b_movall_as_in_kvm_takes_every_lpi_of_the_first_vcpu_with_it() {
    let rig = Rig::new(3, Behaviour::KVM);
    rig.mapped(8195, 0);
    rig.mapped(8196, 0);
    rig.mapped(8197, 2);
    rig.gic.pend_lpi(8195);
    rig.gic.move_all_lpis(0, 1, true);
    for lpi in [8195, 8196, 8197] {
        rig.gic.pend_lpi(lpi);
    }
    assert_eq!(rig.saved(), [(1, 8195), (1, 8196), (2, 8197)]);
}

#[test]
fn i19_a_collection_that_moves_leaves_behind_what_is_pending() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.mapped(8196, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.rehome_lpi(8195, Some(1));
    rig.gic.rehome_lpi(8196, Some(1));
    rig.gic.pend_lpi(8196);
    assert_eq!(rig.saved(), [(0, 8195), (1, 8196)]);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![8195], vec![8196]));
    rig.gic.pend_lpi(8195);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![], vec![8195]));
}

#[test]
fn i18_the_events_of_a_collection_without_a_vcpu_are_dropped() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.mapped(8196, 0);
    rig.gic.pend_lpi(8195);
    for lpi in [8195, 8196] {
        rig.gic.rehome_lpi(lpi, None);
        assert_eq!(rig.gic.pend_lpi(lpi), LpiSent::Nowhere);
    }
    assert_eq!(rig.taken(0), [8195], "what was pending before still is");
    rig.gic.rehome_lpi(8195, Some(1));
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.taken(1), [8195]);
}

#[test]
fn i17_an_lpi_that_is_unmapped_is_not_pending_any_more() {
    let rig = Rig::new(1, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.unmap_lpi(8195, false);
    assert_eq!(rig.take(0), None);
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Nowhere);
    assert_eq!(rig.saved(), []);
    rig.gic.map_lpi(8195, Some(0)).unwrap();
    assert_eq!(rig.take(0), None, "the old event does not come back");
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.taken(0), [8195]);
}

#[test]
fn i17a_in_kvm_an_lpi_that_waits_for_its_vcpu_outlives_its_event() {
    let rig = Rig::new(2, Behaviour::KVM);
    rig.mapped(8195, 0);
    rig.gic.map_lpi(8200, Some(0)).unwrap();
    rig.gic.pend_lpi(8195);
    rig.gic.pend_lpi(8200);
    rig.gic.unmap_lpi(8195, true);
    rig.gic.unmap_lpi(8200, true);
    // The kernel forgets the disabled one, which is in no list, and says so by leaving its bit alone.
    assert_eq!(rig.saved(), [(0, 8195)]);
    // Mapped again while it waits, it is the same LPI: on its old vCPU.
    rig.gic.map_lpi(8195, Some(1)).unwrap();
    assert_eq!(rig.saved(), [(0, 8195)]);
    assert_eq!(rig.taken(0), [8195], "I20a");
    rig.gic.unmap_lpi(8195, true);
    rig.gic.map_lpi(8195, Some(1)).unwrap();
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.taken(1), [8195], "a new one by now");
}

#[test]
fn an_lpi_of_two_events_lives_as_long_as_one_of_them() {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.map_lpi(8195, Some(1)).unwrap();
    assert_eq!(rig.saved(), [(1, 8195)], "the last mapping says where it goes");
    rig.gic.unmap_lpi(8195, false);
    assert_eq!(rig.take(1), None, "I17");
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.taken(1), [8195]);
    rig.gic.unmap_lpi(8195, false);
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Nowhere);
}

#[test]
fn in_kvm_a_second_event_of_an_lpi_changes_nothing_about_it() {
    let rig = Rig::new(2, Behaviour::KVM);
    rig.mapped(8195, 0);
    rig.configure(8195, 0);
    rig.gic.map_lpi(8195, Some(1)).unwrap();
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.taken(0), [8195]);
}
