//! The event log, and the interrupts of the unit.

use super::{
    super::registers::offset,
    rig::{DEVICE, EVENTS, OWN, Rig, TABLE, entry, message},
};
use crate::MsiMessage;

const OVERFLOW: u64 = 1;
const LOGGED: u64 = 1 << 1;
const RUNS: u64 = 1 << 3;

/// A unit whose device's messages are all blocked, each with an event.
fn faulty(control: u64) -> Rig {
    let rig = Rig::new();
    rig.control(control);
    rig.device(DEVICE, TABLE, 11);
    rig
}

fn fault(rig: &Rig) {
    rig.send(&message(DEVICE, 0x21));
}

fn status(rig: &Rig) -> u64 {
    rig.read(offset::STATUS) & (OVERFLOW | LOGGED | RUNS)
}

#[test]
fn an_event_advances_the_tail_and_interrupts() {
    let rig = faulty(1 << 3);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0x10, LOGGED | RUNS));
    assert_eq!(rig.load(EVENTS), [2 << 60 | 1 << 51 | 0x1234 << 32 | u64::from(DEVICE), 0xfd_f821_0000]);
    assert_eq!(rig.taken(), [OWN]);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), rig.taken()), (0x20, vec![]), "not again until its bit is cleared");
    rig.unit().write(offset::STATUS, 8, LOGGED);
    assert_eq!((status(&rig), rig.taken()), (RUNS, vec![]));
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), rig.taken()), (0x30, vec![OWN]));
}

#[test]
fn events_interrupt_only_if_enabled() {
    let rig = faulty(0);
    fault(&rig);
    assert_eq!((status(&rig), rig.taken()), (LOGGED | RUNS, vec![]));
    rig.control(1 << 3);
    assert_eq!(rig.taken(), [OWN]);
}

#[test]
fn a_full_log_drops_events_until_it_is_started_anew() {
    let rig = faulty(1 << 3);
    for _ in 0..255 {
        fault(&rig);
    }
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0xff0, LOGGED | RUNS));
    assert_eq!(rig.taken(), [OWN]);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0xff0, OVERFLOW | LOGGED));
    assert_eq!(rig.taken(), [OWN], "the overflow has an interrupt of its own");
    // Room alone does not help.
    rig.unit().write(offset::EVENT_HEAD, 8, 0xff0);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0xff0, OVERFLOW | LOGGED));
    // Nor does clearing the bit.
    rig.unit().write(offset::STATUS, 8, OVERFLOW | LOGGED);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0xff0, 0));
    // As Linux does it: disable, enable.
    rig.unit().write(offset::CONTROL, 8, 1 | 1 << 12);
    rig.control(1 << 3);
    assert_eq!((status(&rig), rig.taken()), (RUNS, vec![]));
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0, LOGGED | RUNS));
    assert_eq!(rig.taken(), [OWN]);
}

#[test]
fn a_log_that_overflowed_starts_when_it_is_enabled_with_the_overflow_cleared() {
    let rig = faulty(0);
    (0..256).for_each(|_| fault(&rig));
    rig.control(0);
    assert_eq!(status(&rig), OVERFLOW | LOGGED, "not while the overflow stands");
    rig.unit().write(offset::STATUS, 8, OVERFLOW);
    assert_eq!(status(&rig), LOGGED);
    rig.control(0);
    assert_eq!(status(&rig), LOGGED | RUNS);
}

#[test]
fn nothing_is_logged_while_the_log_is_off() {
    for (control, base) in [(1 | 1 << 12, 8), (1 | 1 << 2, 7)] {
        let rig = faulty(0);
        rig.unit().write(offset::EVENT_LOG_BASE, 8, EVENTS | base << 56);
        rig.unit().write(offset::CONTROL, 8, control);
        fault(&rig);
        assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0, 0));
        assert_eq!(rig.unit().blocked(), 1);
    }
}

#[test]
fn a_log_outside_of_memory_swallows_events() {
    let rig = faulty(1 << 3);
    rig.unit().write(offset::EVENT_LOG_BASE, 8, 0x7000_0000 | 8 << 56);
    fault(&rig);
    assert_eq!((rig.read(offset::EVENT_TAIL), status(&rig)), (0x10, LOGGED | RUNS));
    assert_eq!(rig.taken(), [OWN]);
}

#[test]
fn a_new_base_empties_the_log() {
    let rig = faulty(0);
    fault(&rig);
    rig.unit().write(offset::EVENT_HEAD, 8, 0x10);
    rig.unit().write(offset::EVENT_LOG_BASE, 4, EVENTS);
    assert_eq!((rig.read(offset::EVENT_HEAD), rig.read(offset::EVENT_TAIL)), (0, 0));
}

#[test]
fn pointers_beyond_the_log_are_taken_inside() {
    let rig = faulty(0);
    rig.unit().write(offset::EVENT_TAIL, 8, 0x1_0ff0);
    rig.unit().write(offset::EVENT_HEAD, 8, 0x2_0010);
    fault(&rig);
    assert_eq!(rig.read(offset::EVENT_TAIL), 0);
    assert_eq!(rig.load(EVENTS + 0xff0), [2 << 60 | 1 << 51 | 0x1234 << 32 | u64::from(DEVICE), 0xfd_f821_0000]);
    fault(&rig);
    assert_eq!(rig.read(offset::STATUS) & OVERFLOW, OVERFLOW, "entry 1 is the head");
}

#[test]
fn without_a_message_of_its_own_the_unit_is_silent() {
    let rig = faulty(1 << 3);
    rig.unit().set_own_message(None);
    fault(&rig);
    assert_eq!((status(&rig), rig.taken()), (LOGGED | RUNS, vec![]));
}

/// The interrupts of a unit are never remapped: here they name the very device and index that would be.
#[test]
fn own_interrupts_go_to_the_inner_target() {
    let rig = faulty(1 << 3);
    rig.store_entry(TABLE, 0x22, entry(0x41, 1));
    rig.unit().set_own_message(Some(&MsiMessage::new(0xfee0_5000, 0x22)));
    fault(&rig);
    assert_eq!(rig.taken(), [(0xfee0_5000, 0x22)]);
}

#[test]
fn own_interrupts_have_x2apic_destinations_with_int_cap_xt_en() {
    let rig = faulty(1 << 3 | 1 << 4 | 1 << 51);
    // Logical destination 0x12345678, arbitrated, vector 0xe5.
    let general = 1 << 2 | 0x34_5678 << 8 | 0xe5 << 32 | 1 << 40 | 0x12 << 56;
    rig.unit().write(offset::XT_GENERAL, 8, general);
    fault(&rig);
    assert_eq!(rig.taken(), [(0x1234_5600_fee7_8004, 0x1e5)]);
    rig.commands(&[[1 << 60 | 2, 0]]);
    assert_eq!(rig.taken(), [(0x1234_5600_fee7_8004, 0x1e5)], "completed waits too");
}
