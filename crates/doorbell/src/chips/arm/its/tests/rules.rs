//! I11 to I25, in the order of the page; where KVM goes its own way, once as it does and once as we decided.

use super::*;
use crate::Errno;

fn rigs() -> [Rig; 2] {
    [Rig::spec(), Rig::kvm()].map(|rig| {
        rig.bring_up();
        rig.map_both();
        rig
    })
}

/// I12, I15.
#[test]
fn clear_drops_and_int_makes_pending() {
    for rig in rigs() {
        rig.ring(3).unwrap();
        rig.ring(4).unwrap();
        rig.run(&[clear(4)]);
        assert_eq!(rig.pending(), [(0, 8195)], "its.clear");
        rig.run(&[int(4)]);
        assert_eq!(rig.pending(), [(0, 8195), (1, 8200)], "its.int");
    }
}

/// I13, I13a: what is pending is at its new vCPU as soon as the command is done. (Whether a vCPU sees it at once is the
/// GIC's: in KVM, only after the old one has run.)
#[test]
fn movi_takes_what_is_pending_along() {
    for rig in rigs() {
        rig.ring(4).unwrap();
        rig.run(&[movi(DEVICE, 4, 0)]);
        assert_eq!(rig.pending(), [(0, 8200)], "its.movi");
        rig.run(&[clear(4)]);
        assert_eq!(rig.ring(4), Ok(1));
        assert_eq!(rig.pending(), [(0, 8200)]);
    }
}

/// I16, I16a, I16b.
#[test]
fn movall_moves_what_is_pending_and_in_kvm_what_comes_too() {
    for (rig, later) in rigs().into_iter().zip([0, 1]) {
        rig.ring(3).unwrap();
        rig.run(&[movall(0, 1)]);
        assert_eq!(rig.pending(), [(1, 8195)], "its.movall");
        rig.run(&[clear(3)]);
        assert_eq!(rig.ring(3), Ok(1));
        assert_eq!(rig.pending(), [(later, 8195)], "rules.doorbell_after_movall");
        rig.run(&[clear(3), mapc(0, 0, true)]);
        rig.ring(3).unwrap();
        assert_eq!(rig.pending(), [(0, 8195)], "rules.mapc_same_again");
    }
    for rig in rigs() {
        rig.ring(3).unwrap();
        rig.run(&[movall(1, 1)]);
        assert_eq!(rig.pending(), [(0, 8195)], "to itself");
    }
}

/// I17, I17a.
#[test]
fn discard_unmaps_and_drops_what_is_pending_but_not_in_kvm() {
    let [spec, kvm] = rigs();
    for rig in [&spec, &kvm] {
        rig.ring(4).unwrap();
        rig.run(&[discard(4)]);
        assert_eq!(rig.ring(4), Ok(0), "rules.discard_pending.doorbell");
    }
    assert_eq!(spec.pending(), [], "discard_pending_event1");
    assert_eq!(kvm.pending(), [(1, 8200)], "rules.discard_pending");
}

/// I18, I18a.
#[test]
fn events_of_an_unmapped_collection_are_dropped_and_come_back_with_it_but_not_in_kvm() {
    let [spec, kvm] = rigs();
    for rig in [&spec, &kvm] {
        rig.run(&[mapc(0, 0, false)]);
        assert_eq!(rig.ring(3), Ok(0), "rules.unmap_collection.doorbell");
        rig.run(&[int(3)]);
        assert_eq!(rig.errors(), [(0x01_0307, 1)]);
        rig.run(&[mapc(0, 1, true)]);
        assert_eq!(rig.unit.counters().dropped_collection, 1);
    }
    assert_eq!(spec.ring(3), Ok(1), "doorbell_event0_collection_now_on_pe1");
    assert_eq!(spec.pending(), [(1, 8195)]);
    assert_eq!(kvm.ring(3), Ok(0), "rules.map_collection_again.doorbell");
    kvm.run(&[movi(DEVICE, 3, 1), discard(3), mapti(DEVICE, 3, 8195, 1)]);
    assert_eq!(kvm.errors(), [(0x01_0109, 1), (0x01_0307, 1), (0x01_0f07, 1)], "it stays lost");
    assert_eq!(kvm.ring(3), Ok(0));
    kvm.run(&[mapd(DEVICE, 5, ITT, true), mapti(DEVICE, 3, 8195, 1)]);
    assert_eq!(kvm.ring(3), Ok(1), "until its device is mapped anew");
}

#[test]
fn what_is_pending_when_its_collection_is_unmapped_stays_so() {
    for rig in rigs() {
        rig.ring(3).unwrap();
        rig.run(&[mapc(0, 0, false)]);
        assert_eq!(rig.pending(), [(0, 8195)]);
        rig.run(&[clear(3)]);
        assert_eq!(rig.pending(), []);
    }
}

#[test]
fn an_event_of_an_unmapped_collection_can_be_moved_and_discarded() {
    let [rig, _] = rigs();
    rig.run(&[mapc(0, 0, false), movi(DEVICE, 3, 1)]);
    assert_eq!(rig.ring(3), Ok(1));
    assert_eq!(rig.pending(), [(1, 8195)]);
    rig.run(&[mapc(1, 0, false), discard(3)]);
    assert_eq!((rig.pending(), rig.errors()), (vec![], vec![]));
    rig.run(&[mapc(1, 0, true)]);
    assert_eq!((rig.ring(3), rig.ring(4)), (Ok(0), Ok(1)));
}

/// I19.
#[test]
fn a_collection_mapped_elsewhere_takes_its_doorbells_along_and_in_kvm_what_is_pending() {
    for (rig, pending) in rigs().into_iter().zip([0, 1]) {
        rig.ring(3).unwrap();
        rig.run(&[mapc(0, 1, true)]);
        assert_eq!(rig.pending(), [(pending, 8195)], "rules.mapc_to_cpu1");
        rig.run(&[clear(3)]);
        rig.ring(3).unwrap();
        assert_eq!(rig.pending(), [(1, 8195)]);
    }
}

/// I20, I20a.
#[test]
fn an_unmapped_device_has_no_events_and_its_entry_is_not_valid() {
    let [spec, kvm] = rigs();
    for rig in [&spec, &kvm] {
        rig.unit.save_tables().unwrap();
        assert_ne!(rig.load(DEVICES + 8 * u64::from(DEVICE)), 0);
        rig.ring(3).unwrap();
        rig.run(&[mapd(DEVICE, 5, ITT, false), mapd(DEVICE, 5, ITT, false)]);
        assert_eq!(rig.errors(), [], "harmless for an unmapped device");
        assert_eq!(rig.ring(3), Ok(0), "rules.unmap_device.doorbell");
        assert_eq!(rig.load(DEVICES + 8 * u64::from(DEVICE)), 0, "rules.unmap_device.entry");
    }
    assert_eq!(spec.pending(), []);
    assert_eq!(kvm.pending(), [(0, 8195)], "rules.unmap_device.cpu0_after_cpu1");
}

/// I21.
#[test]
fn a_device_mapped_again_has_lost_its_events() {
    for rig in rigs() {
        rig.run(&[mapd(DEVICE, 5, ITT, true)]);
        assert_eq!((rig.ring(3), rig.ring(4)), (Ok(0), Ok(0)));
        rig.run(&[mapti(DEVICE, 3, 8300, 1)]);
        rig.ring(3).unwrap();
        assert_eq!(rig.pending(), [(1, 8300)]);
    }
}

/// I22.
#[test]
fn mapti_of_a_mapped_event_maps_it_anew_but_not_in_kvm() {
    for (rig, pending) in rigs().into_iter().zip([(1, 8210), (0, 8195)]) {
        rig.run(&[mapti(DEVICE, 3, 8210, 1)]);
        assert_eq!(rig.ring(3), Ok(1), "rules.mapti_mapped_event.doorbell");
        assert_eq!(rig.pending(), [pending], "rules.mapti_mapped_event");
        assert_eq!(rig.errors(), []);
    }
    let [rig, _] = rigs();
    rig.ring(3).unwrap();
    rig.run(&[mapti(DEVICE, 3, 8195, 0)]);
    assert_eq!(rig.pending(), [(0, 8195)], "to the same LPI: what is pending is not lost");
    rig.run(&[mapti(DEVICE, 3, 8210, 0)]);
    assert_eq!(rig.pending(), [], "to another one: as after DISCARD");
}

/// I23.
#[test]
fn an_event_of_a_collection_that_is_not_mapped_yet_waits_for_it() {
    for rig in rigs() {
        rig.run(&[mapti(DEVICE, 7, 8211, 9)]);
        assert_eq!((rig.errors(), rig.ring(7)), (vec![], Ok(0)), "rules.mapti_unmapped_collection");
        rig.run(&[mapc(9, 1, true)]);
        assert_eq!(rig.ring(7), Ok(1));
        assert_eq!(rig.pending(), [(1, 8211)]);
    }
}

/// Q13: the redistributor's LPIs are off.
#[test]
fn an_event_whose_redistributor_has_lpis_off_is_dropped_and_the_sender_told() {
    for rig in rigs() {
        rig.unit.lpis.off.store(0b01, std::sync::atomic::Ordering::Relaxed);
        assert_eq!((rig.ring(3), rig.ring(4)), (Err(Errno::BUSY), Ok(1)));
        rig.run(&[int(3)]);
        assert_eq!(rig.unit.counters().dropped_lpis_off, 2);
    }
}

/// Q15.
#[test]
fn an_event_that_is_pending_already_counts_as_delivered() {
    for rig in rigs() {
        assert_eq!((rig.ring(3), rig.ring(3)), (Ok(1), Ok(1)));
    }
}

#[test]
fn two_events_may_go_to_one_lpi_and_one_of_them_may_go() {
    for rig in rigs() {
        rig.run(&[mapti(DEVICE, 5, 8195, 0), discard(3)]);
        assert_eq!((rig.ring(3), rig.ring(5)), (Ok(0), Ok(1)));
        assert_eq!(rig.pending(), [(0, 8195)]);
    }
}

/// A target follows what is mapped, and is nothing to anybody else.
#[test]
fn a_prepared_event_follows_its_mapping() {
    use super::super::translation::{Dropped, Sent};
    let [rig, other] = rigs();
    let target = rig.unit.prepare(20, 7).unwrap();
    assert_eq!(rig.unit.prepare(20, 7), Some(target), "once");
    assert_eq!(rig.unit.fire(target), Some(Sent::Dropped(Dropped::Unmapped)));
    rig.run(&[mapd(20, 4, ITT + 0x1_0000, true), mapti(20, 7, 8220, 0)]);
    assert_eq!(rig.unit.fire(target), Some(Sent::Pending));
    assert_eq!(rig.pending(), [(0, 8220)]);
    rig.run(&[event_command(0x0f, 20, 7), mapti(20, 7, 8221, 1)]);
    assert_eq!(rig.unit.fire(target), Some(Sent::Pending));
    assert_eq!(rig.pending(), [(1, 8221)]);
    rig.unit.reset();
    assert_eq!(rig.unit.fire(target), Some(Sent::Dropped(Dropped::Disabled)));
    assert_eq!(other.unit.fire(target), None, "not prepared there");
    assert!(target.bits() < 1 << 20);
}
