//! Entries in guest mode: posts to a virtual APIC's backing page, the doorbell, the guest virtual APIC log.

use super::{
    super::registers::offset,
    rig::{DEVICE, GUESTS, OWN, Rig, TABLE, message},
};
use crate::{Delivery, MsiTarget};

const PAGE: u64 = 0x6_0000;
const RUNS: u64 = 1 << 8;
const OVERFLOW: u64 = 1 << 9;
const LOGGED: u64 = 1 << 10;
/// GAEn, GAMEn 1, GALogEn, GAIntEn.
const CONTROL: u64 = 1 << 17 | 1 << 25 | 1 << 28 | 1 << 29;
const RUNNING: u64 = 1 << 6;
const LOGS: u64 = 1 << 2;
const TAG: u64 = 0xcafe_f00d;

/// An entry in guest mode for APIC 0x12345678, with these bits.
fn guest(vector: u64, bits: u64) -> [u64; 2] {
    [1 | 1 << 7 | bits | 0x34_5678 << 8 | TAG << 32, vector | PAGE | 0x12 << 56]
}

fn rig(bits: u64) -> Rig {
    let rig = Rig::new();
    rig.control(CONTROL);
    rig.device(DEVICE, TABLE, 8);
    rig.store_wide(TABLE, 7, guest(0x41, bits));
    rig
}

fn rung(rig: &Rig) -> Vec<u32> {
    std::mem::take(&mut *rig.rung.lock().unwrap())
}

#[test]
fn a_post_sets_the_irr_and_rings_a_running_cpu() {
    let rig = rig(RUNNING | LOGS);
    // Vector 0x41 is bit 1 of the third word of the IRR.
    rig.store(PAGE + 0x220, [0x8000_0000]);
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Delivered(1));
    assert_eq!(rig.load(PAGE + 0x220), [0x8000_0002]);
    assert_eq!(rung(&rig), [0x1234_5678]);
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Coalesced);
    assert_eq!(rung(&rig), [0x1234_5678]);
    assert_eq!(rig.read(offset::GA_LOG_TAIL), 0, "a CPU that runs is not logged");
    assert_eq!(rig.taken(), []);
}

#[test]
fn every_vector_has_its_bit() {
    let rig = rig(0);
    for vector in 0..=255 {
        rig.store_wide(TABLE, 7, guest(vector, 0));
        rig.invalidate(DEVICE);
        assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Delivered(1));
        let word = PAGE + 0x200 + vector / 32 * 0x10;
        assert_eq!(rig.load(word), [(1u64 << (vector % 32 + 1)) - 1], "vector {vector}");
    }
}

#[test]
fn the_log_hears_of_a_cpu_that_does_not_run() {
    let rig = rig(LOGS);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.load(GUESTS), [1 << 60 | u64::from(DEVICE) << 32 | TAG]);
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.read(offset::STATUS)), (8, 0x18 | RUNS | LOGGED));
    assert_eq!((rig.taken(), rung(&rig)), (vec![OWN], vec![]));
    rig.send(&message(DEVICE, 7));
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.taken()), (16, vec![]));
    rig.unit().write(offset::STATUS, 8, LOGGED);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.taken(), [OWN]);
}

#[test]
fn nobody_hears_of_it_without_ga_log_intr() {
    let rig = rig(0);
    rig.send(&message(DEVICE, 7));
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.read(offset::STATUS)), (0, 0x18 | RUNS));
    assert_eq!((rig.taken(), rung(&rig)), (vec![], vec![]));
    assert_eq!(rig.load(PAGE + 0x220), [2]);
}

/// Software moves a virtual CPU by the low half of the entry alone, without an invalidation.
#[test]
fn whether_it_runs_and_where_is_read_each_time() {
    let rig = rig(LOGS);
    let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
    rig.remap.fire(target);
    assert_eq!((rung(&rig), rig.read(offset::GA_LOG_TAIL)), (vec![], 8));
    rig.store_wide(TABLE, 7, [1 | 1 << 7 | RUNNING | 0x99 << 8, PAGE | 0x42]);
    rig.remap.fire(target);
    assert_eq!((rung(&rig), rig.read(offset::GA_LOG_TAIL)), (vec![0x99], 8));
    assert_eq!(rig.load(PAGE + 0x220), [2], "but the vector is that which was remembered");
    rig.invalidate(DEVICE);
    rig.remap.fire(target);
    assert_eq!(rig.load(PAGE + 0x220), [6]);
}

#[test]
fn the_guest_log_overflows_and_starts_anew() {
    let rig = rig(LOGS);
    for _ in 0..255 {
        rig.send(&message(DEVICE, 7));
    }
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.taken().len()), (0x7f8, 1));
    rig.send(&message(DEVICE, 7));
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.read(offset::STATUS)), (0x7f8, 0x18 | OVERFLOW | LOGGED));
    assert_eq!(rig.taken(), [OWN]);
    rig.unit().write(offset::GA_LOG_HEAD, 8, 0x7f8);
    rig.unit().write(offset::STATUS, 8, OVERFLOW | LOGGED);
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Coalesced);
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.read(offset::STATUS)), (0x7f8, 0x18), "posted, not logged");
    rig.control(CONTROL & !(1 << 28));
    rig.control(CONTROL);
    rig.send(&message(DEVICE, 7));
    assert_eq!((rig.read(offset::GA_LOG_TAIL), rig.read(offset::STATUS)), (0, 0x18 | RUNS | LOGGED));
}

#[test]
fn a_backing_page_that_is_no_memory_is_an_error() {
    let rig = rig(RUNNING);
    let [low, _] = guest(0x41, RUNNING);
    rig.store_wide(TABLE, 7, [low, 0x41 | 0x7000_0000]);
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Ignored);
    assert_eq!(rig.events(), [[4 << 60 | 1 << 57 | 1 << 51 | u64::from(DEVICE), 0x7000_0220]]);
    assert_eq!(rung(&rig), []);
}

#[test]
fn the_interrupts_of_the_guest_log_have_their_own_xt_register() {
    let rig = rig(LOGS);
    rig.control(CONTROL | 1 << 51);
    rig.unit().write(offset::XT_GA_LOG, 8, 0x21 << 8 | 0xe7 << 32);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.taken(), [(0xfee2_1000, 0xe7)]);
}

/// The pointers of this log reach 8192 entries, however long the base register says it is.
#[test]
fn the_guest_log_is_at_most_64_kib() {
    let rig = rig(LOGS);
    rig.unit().write(offset::GA_LOG_BASE, 8, GUESTS | 15 << 56);
    rig.unit().write(offset::GA_LOG_TAIL, 8, 0xfff8);
    rig.unit().write(offset::GA_LOG_HEAD, 8, 0x8);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.read(offset::GA_LOG_TAIL), 0);
}
