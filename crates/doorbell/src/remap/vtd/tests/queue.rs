//! The invalidation queue.

use super::*;
use crate::remap::vtd::queue::{Descriptor, QueueError, decode};

#[test]
fn an_invalidation_by_index_concerns_the_indices_under_its_mask() {
    let rig = Rig::remapping();
    for (index, mask, gone) in
        [(5, 0, 5..=5), (5, 1, 4..=5), (7, 2, 4..=7), (5, 3, 0..=7), (0x85, 7, 0x80..=0xff), (0, 15, 0..=255)]
    {
        for entry_index in 0..ENTRIES {
            rig.set_entry(entry_index, entry(0x41, 0));
        }
        rig.submit(&[INVALIDATE_ALL]);
        let targets: Vec<_> =
            (0..ENTRIES).map(|index| rig.unit.prepare(&MsiMessage::new(handle(index), 0)).unwrap()).collect();
        for target in &targets {
            rig.unit.fire(*target);
        }
        for entry_index in 0..ENTRIES {
            rig.set_entry(entry_index, entry(0x42, 0));
        }
        rig.submit(&[invalidate(index, mask)]);
        rig.sink.take();
        for (at, target) in (0..).zip(&targets) {
            rig.unit.fire(*target);
            let expected = if gone.contains(&at) { 0x42 } else { 0x41 };
            assert_eq!(rig.sink.take(), [arrives(expected, 0)], "{at} after {index} under {mask}");
        }
    }
}

#[test]
fn invalidations_of_everything_work_with_and_without_a_wait() {
    for wait in [None, Some(wait(3))] {
        let rig = Rig::remapping();
        rig.set_entry(5, entry(0x41, 0));
        rig.send(handle(5), 0, DEVICE);
        rig.set_entry(5, entry(0x42, 0));
        rig.submit(&[[INVALIDATE_ALL].as_slice(), wait.as_slice()].concat());
        assert_eq!(rig.send(handle(5), 0, DEVICE), both(arrives(0x42, 0)));
        assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(if wait.is_some() { 3 } else { 0 }));
    }
}

#[test]
fn the_head_follows_and_wraps() {
    let rig = Rig::remapping();
    for round in 0..600 {
        rig.submit(&[invalidate(round % 256, 0), wait(round)]);
        assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(round));
        assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), u64::from(2 * (round + 1) % 256) * 16);
    }
    assert_eq!(rig.read32(r::FAULT_STATUS), 0);
}

#[test]
fn a_queue_that_is_off_does_nothing_and_one_that_is_set_begins_at_its_start() {
    let rig = Rig::remapping();
    rig.command(REMAP);
    rig.submit(&[wait(1), wait(2)]);
    assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(0));
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0);
    rig.command(REMAP | USE_QUEUE);
    assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(2));
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0x20);
    rig.command(REMAP);
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0);
}

#[test]
fn the_largest_queue_has_32768_descriptors() {
    let rig = Rig::new(VtdOptions::default());
    // 0x2_0000 bytes of the memory are left behind the table: a queue of 2^7 pages does not fit, and stops there.
    rig.unit.write(r::QUEUE_ADDRESS, 8, 0x2_0000 | 7);
    for at in (0x2_0000..RAM as u64).step_by(16) {
        rig.ram.write_le(at, 0x11u64).unwrap();
        rig.ram.write_le(at + 8, 0u64).unwrap();
    }
    rig.command(USE_QUEUE);
    rig.unit.write(r::QUEUE_TAIL, 8, 0x7_fff0);
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0x2_0000, "as far as there is memory");
    assert_eq!(rig.unit.read(r::QUEUE_ERROR, 8), 2);
    assert_eq!(rig.read32(r::FAULT_STATUS), 0x10);
}

#[test]
fn pointers_beyond_the_queue_stop_it() {
    let rig = Rig::remapping();
    rig.unit.write(r::QUEUE_TAIL, 8, 0x1000);
    assert_eq!((rig.read32(r::FAULT_STATUS), rig.unit.read(r::QUEUE_ERROR, 8)), (0x10, 1));
    rig.unit.write(r::QUEUE_TAIL, 8, 0xff0);
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0, "stopped until it is cleared");
    // A larger queue, its head at 300, and then a smaller one again.
    rig.unit.write(r::QUEUE_ADDRESS, 8, QUEUE | 1);
    for at in 0..300 {
        rig.ram.write_le(QUEUE + 16 * at, 0x11u64).unwrap();
    }
    rig.unit.write(r::QUEUE_TAIL, 8, 300 * 16);
    rig.unit.write(r::FAULT_STATUS, 4, 0x10);
    assert_eq!((rig.read32(r::FAULT_STATUS), rig.unit.read(r::QUEUE_HEAD, 8)), (0, 300 * 16));
    rig.unit.write(r::QUEUE_ADDRESS, 8, QUEUE);
    rig.unit.write(r::QUEUE_TAIL, 8, 0);
    assert_eq!((rig.read32(r::FAULT_STATUS), rig.unit.read(r::QUEUE_ERROR, 8)), (0x10, 1));
}

/// As Linux does it: the descriptor at the head is replaced, the error cleared.
#[test]
fn a_queue_that_stopped_goes_on_when_its_error_is_cleared() {
    let rig = Rig::remapping();
    rig.unit.write(r::FAULT_EVENT + 4, 4, 0x33);
    rig.unit.write(r::FAULT_EVENT + 8, 4, 0xfee0_0000);
    rig.unit.write(r::FAULT_EVENT, 4, 0);
    rig.set_entry(5, entry(0x41, 0));
    rig.send(handle(5), 0, DEVICE);
    rig.set_entry(5, entry(0x42, 0));
    rig.submit(&[INVALIDATE_ALL, [6, 0], wait(9)]);
    assert_eq!(rig.sink.take(), [(0xfee0_0000, 0x33)], "the fault event");
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0x10, "at the descriptor in question");
    assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(0));
    assert_eq!(rig.send(handle(5), 0, DEVICE), both(arrives(0x42, 0)), "what came before it was done");
    rig.submit(&[wait(10)]);
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0x10);
    rig.ram.write_le(QUEUE + 0x10, wait(8)[0]).unwrap();
    rig.ram.write_le(QUEUE + 0x18, wait(8)[1]).unwrap();
    rig.unit.write(r::FAULT_STATUS, 4, 0x10);
    assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(10));
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0x40);
    assert_eq!(rig.read32(r::FAULT_STATUS), 0);
}

#[test]
fn a_status_that_cannot_be_written_stops_the_queue() {
    let rig = Rig::remapping();
    rig.submit(&[[5 | 1 << 5, RAM as u64]]);
    assert_eq!((rig.read32(r::FAULT_STATUS), rig.unit.read(r::QUEUE_ERROR, 8)), (0x10, 0));
    assert_eq!(rig.unit.read(r::QUEUE_HEAD, 8), 0);
}

#[test]
fn descriptors_are_understood_or_refused() {
    let all = u64::MAX;
    for (descriptor, expected) in [
        ([4, 0], Ok(Descriptor::All)),
        ([4 | 31 << 27, 0], Ok(Descriptor::All)),
        ([0x0000_0005_7800_0014, 0], Ok(Descriptor::Indices(0..=0x7fff))),
        ([0x0000_ffff_7800_0014, 0], Ok(Descriptor::Indices(0x8000..=0xffff))),
        ([0x0000_0005_8000_0014, 0], Err(QueueError::Reserved)),
        ([5, 0], Ok(Descriptor::Wait { status: None, interrupt: false })),
        ([5 | 1 << 4 | 1 << 6, all - 3], Ok(Descriptor::Wait { status: None, interrupt: true })),
        ([5 | 1 << 5 | 7 << 32, 0x1004], Ok(Descriptor::Wait { status: Some((0x1004, 7)), interrupt: false })),
        ([5 | 1 << 7, 0], Err(QueueError::Reserved)),
        ([5, 1], Err(QueueError::Reserved)),
        ([5, 2], Err(QueueError::Reserved)),
        ([0x0003_ffff_ffff_0011, 0], Ok(Descriptor::Nothing)),
        ([0x21, 0], Ok(Descriptor::Nothing)),
        ([0x31, 0], Ok(Descriptor::Nothing)),
        ([0x01, 0], Err(QueueError::Reserved)),
        ([0x11, 1], Err(QueueError::Reserved)),
        ([0xffff_00d2, !0xf80], Ok(Descriptor::Nothing)),
        ([0x02, 0], Err(QueueError::Reserved)),
        ([0x1_0000_0012, 0], Err(QueueError::Reserved)),
        ([0x12, 0x80], Err(QueueError::Reserved)),
    ] {
        assert_eq!(decode(descriptor), expected, "{descriptor:x?}");
    }
    for kind in [0, 3, 6, 7, 8, 9, 10, 15] {
        assert_eq!(decode([kind, 0]), Err(QueueError::Type), "{kind}");
    }
    for bit in 9..12 {
        assert_eq!(decode([4 | 1 << bit, 0]), Err(QueueError::Type), "the type's upper bits");
    }
    let reserved: [(u64, Vec<u32>); 4] = [
        (0x11, (6..9).chain(12..16).chain(50..64).collect()),
        (0x12, (8..9).chain(12..16).chain(32..64).collect()),
        (0x4, (5..9).chain(12..27).chain(48..64).collect()),
        (0x5, (7..9).chain(12..32).collect()),
    ];
    for (low, bits) in reserved {
        for bit in bits {
            assert_eq!(decode([low | 1 << bit, 0]), Err(QueueError::Reserved), "{low:#x} bit {bit}");
        }
    }
    for bit in 0..64 {
        assert_eq!(decode([4, 1 << bit]), Err(QueueError::Reserved), "high bit {bit}");
    }
}
