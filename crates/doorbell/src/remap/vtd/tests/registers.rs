//! Registers, fault logging, and the events.

use super::*;
use crate::remap::vtd::{VtdState, VtdUnit};

#[test]
fn registers_after_reset() {
    let rig = Rig::new(VtdOptions::default());
    assert_eq!(rig.read32(r::VERSION), 0x10);
    // 16-bit domain ids, 8 records at 0x220, posting, and a new table invalidates; no address width.
    assert_eq!(rig.unit.read(r::CAPABILITY, 8), 1 << 62 | 1 << 59 | 7 << 40 | 0x22 << 24 | 6);
    // Coherent, queue, interrupt remapping, extended mode; IOTLB registers at 0xf0; masks up to 15.
    assert_eq!(rig.unit.read(r::EXTENDED_CAPABILITY, 8), 0xf0_0f1b);
    for offset in (0x18..r::WINDOW).step_by(4) {
        let expected = if matches!(offset, 0x38 | 0xa0) { 1 << 31 } else { 0 };
        assert_eq!(rig.read32(offset), expected, "{offset:#x}");
    }
    let plain = VtdOptions { extended_mode: false, posted: false, fault_records: 1, messages: 1 };
    let plain = Rig::new(plain);
    assert_eq!(plain.unit.read(r::CAPABILITY, 8), 1 << 62 | 0x22 << 24 | 6);
    assert_eq!(plain.unit.read(r::EXTENDED_CAPABILITY, 8), 0xf0_0f0b);
}

#[test]
fn there_are_never_more_records_than_the_window_has_room_for() {
    for (asked, there) in [(0, 1), (1, 1), (222, 222), (223, 222), (usize::MAX, 222)] {
        let rig = Rig::new(VtdOptions { fault_records: asked, ..VtdOptions::default() });
        assert_eq!((rig.unit.read(r::CAPABILITY, 8) >> 40 & 0xff) + 1, there);
    }
}

#[test]
fn stores_keep_what_the_registers_have() {
    let rig = Rig::new(VtdOptions::default());
    for (offset, kept) in [
        (r::VERSION, 0x10),
        (r::ROOT_TABLE, u64::MAX),
        (r::QUEUE_HEAD, 0),
        (r::QUEUE_TAIL, 0x7fff0),
        (r::QUEUE_ADDRESS, !0xff8),
        (r::QUEUE_ERROR, 0),
        (r::TABLE_ADDRESS, !0x7f0),
        (0x28, 0),
        (0x60, 0),
        (0xfe8, 0),
    ] {
        rig.unit.write(offset, 8, u64::MAX);
        assert_eq!(rig.unit.read(offset, 8), kept, "{offset:#x}");
        let low = kept as u32;
        rig.unit.write(offset, 4, 0);
        let expected = if offset == r::VERSION { kept } else { kept >> 32 << 32 };
        assert_eq!(rig.unit.read(offset, 8), expected, "{offset:#x}, low half");
        rig.unit.write(offset, 4, u64::from(low));
        rig.unit.write(offset + 4, 4, 0);
        assert_eq!(rig.unit.read(offset, 8), u64::from(low), "{offset:#x}, high half");
    }
    for (base, masked) in [(r::FAULT_EVENT, 1 << 31), (r::COMPLETION_EVENT, 1 << 31)] {
        for (at, kept) in [(0, masked), (4, 0xffff), (8, 0xffff_fffc), (12, u32::MAX)] {
            rig.unit.write(base + at, 4, u64::from(u32::MAX));
            assert_eq!(rig.read32(base + at), kept, "{base:#x} {at}");
        }
    }
}

#[test]
fn other_widths_and_places_read_zero_and_store_nothing() {
    let rig = Rig::new(VtdOptions::default());
    for (offset, size) in [(0, 1), (0, 2), (0, 3), (0, 16), (2, 4), (4, 8), (1, 4)] {
        assert_eq!(rig.unit.read(offset, size), 0, "{offset} {size}");
    }
    for (offset, size) in
        [(r::TABLE_ADDRESS, 1), (r::TABLE_ADDRESS, 2), (r::TABLE_ADDRESS + 2, 4), (r::TABLE_ADDRESS + 4, 8)]
    {
        rig.unit.write(offset, size, u64::MAX);
        assert_eq!(rig.unit.read(r::TABLE_ADDRESS, 8), 0, "{offset:#x} {size}");
    }
    for offset in [r::WINDOW, r::WINDOW - 4, u64::MAX - 7, u64::MAX - 3] {
        rig.unit.write(offset, 4, 0xffff_ffff);
        assert_eq!(rig.read32(offset), 0);
    }
}

#[test]
fn commands_show_in_the_status_and_unknown_ones_do_not() {
    let rig = Rig::new(VtdOptions::default());
    rig.command(u32::MAX);
    assert_eq!(rig.read32(r::GLOBAL_STATUS), 1 << 30 | USE_QUEUE | REMAP | SET_TABLE | COMPATIBILITY);
    rig.command(0);
    assert_eq!(rig.read32(r::GLOBAL_STATUS), 1 << 30 | SET_TABLE, "the one-shot ones stay done");
    for bit in [USE_QUEUE, REMAP, COMPATIBILITY] {
        rig.command(bit);
        assert_eq!(rig.read32(r::GLOBAL_STATUS), 1 << 30 | SET_TABLE | bit);
    }
}

#[test]
fn a_table_is_in_use_from_the_command_on() {
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 0));
    rig.unit.write(r::TABLE_ADDRESS, 8, (TABLE + 0x1000) | 7);
    assert_eq!(rig.send(handle(5), 0, DEVICE), both(arrives(0x41, 0)), "the old one is");
    rig.ram.write_le(TABLE + 0x1050, entry(0x42, 0)[0]).unwrap();
    rig.command(REMAP | USE_QUEUE | SET_TABLE);
    assert_eq!(rig.send(handle(5), 0, DEVICE), both(arrives(0x42, 0)), "without an invalidation");
}

const EVENT: (u64, u32) = (0x0000_0100_fee0_2000, 0x33);

/// Fault event to vector 0x33 of CPU 0x102.
fn with_event(rig: &Rig, base: u64, masked: bool) {
    rig.unit.write(base + 4, 4, 0x33);
    rig.unit.write(base + 8, 4, 0xfee0_2000);
    rig.unit.write(base + 12, 4, 0x100);
    rig.unit.write(base, 4, u64::from(masked) << 31);
}

fn blocked(rig: &Rig, index: u32) {
    assert_eq!(rig.unit.send(&MsiMessage::new(handle(index), 0)).unwrap(), Delivery::Ignored);
}

#[test]
fn faults_are_recorded_in_turn_until_there_is_no_free_register() {
    let rig = Rig::remapping();
    let record = |number: u64| {
        let at = r::FAULT_RECORDS + 16 * number;
        (rig.unit.read(at, 8), rig.unit.read(at + 8, 8))
    };
    assert_eq!(rig.read32(r::FAULT_STATUS), 0);
    blocked(&rig, 1);
    assert_eq!(rig.read32(r::FAULT_STATUS), 2);
    assert_eq!(record(0), (1 << 48, 0x8000_0022_0000_ffff));
    blocked(&rig, 2);
    assert_eq!(rig.read32(r::FAULT_STATUS), 2);
    blocked(&rig, 3);
    assert_eq!(rig.read32(r::FAULT_STATUS), 3, "overflow");
    assert_eq!([record(0).0, record(1).0], [1 << 48, 2 << 48]);

    // The first is freed: nothing more is recorded before the overflow is cleared as well.
    rig.unit.write(r::FAULT_RECORDS + 12, 4, 1 << 31);
    assert_eq!(record(0), (1 << 48, 0x22_0000_ffff));
    assert_eq!(rig.read32(r::FAULT_STATUS), 0x103, "the second is the first now");
    blocked(&rig, 4);
    assert_eq!(record(0), (1 << 48, 0x22_0000_ffff));
    rig.unit.write(r::FAULT_STATUS, 4, 1);
    assert_eq!(rig.read32(r::FAULT_STATUS), 0x102);
    blocked(&rig, 5);
    assert_eq!(record(0), (5 << 48, 0x8000_0022_0000_ffff));
    assert_eq!(rig.read32(r::FAULT_STATUS), 0x102, "the oldest");
    for word in [0, 4, 8] {
        rig.unit.write(r::FAULT_RECORDS + word, 4, u64::from(u32::MAX));
    }
    rig.unit.write(r::FAULT_RECORDS + 12, 4, 0x7fff_ffff);
    assert_eq!(record(0), (5 << 48, 0x8000_0022_0000_ffff), "only a 1 in the highest bit frees it");
    rig.unit.write(r::FAULT_RECORDS + 28, 4, 1 << 31);
    assert_eq!(rig.read32(r::FAULT_STATUS), 2);
    rig.unit.write(r::FAULT_RECORDS + 12, 4, 1 << 31);
    assert_eq!(rig.read32(r::FAULT_STATUS), 0);
    assert_eq!(rig.read32(r::FAULT_RECORDS + 32), 0, "behind the last");
}

#[test]
fn the_fault_event_tells_of_the_first_fault() {
    let rig = Rig::remapping();
    with_event(&rig, r::FAULT_EVENT, false);
    blocked(&rig, 1);
    assert_eq!(rig.sink.take(), [EVENT]);
    assert_eq!(rig.read32(r::FAULT_EVENT), 0);
    blocked(&rig, 2);
    blocked(&rig, 3);
    assert_eq!(rig.sink.take(), [], "one condition has not been dealt with yet");
    rig.faults();
    blocked(&rig, 4);
    assert_eq!(rig.sink.take(), [EVENT], "dealt with");
}

#[test]
fn a_masked_event_waits_and_is_forgotten_when_dealt_with() {
    let rig = Rig::remapping();
    with_event(&rig, r::FAULT_EVENT, true);
    blocked(&rig, 1);
    assert_eq!(rig.sink.take(), []);
    assert_eq!(rig.read32(r::FAULT_EVENT), 3 << 30);
    rig.unit.write(r::FAULT_EVENT, 4, 1 << 31);
    assert_eq!(rig.read32(r::FAULT_EVENT), 3 << 30, "the pending bit cannot be stored");
    rig.unit.write(r::FAULT_EVENT, 4, 0);
    assert_eq!(rig.sink.take(), [EVENT]);
    assert_eq!(rig.read32(r::FAULT_EVENT), 0);
    rig.unit.write(r::FAULT_EVENT, 4, 1 << 31);
    rig.faults();
    blocked(&rig, 2);
    assert_eq!(rig.read32(r::FAULT_EVENT), 3 << 30);
    rig.faults();
    assert_eq!(rig.read32(r::FAULT_EVENT), 1 << 31, "dealt with by hand");
    rig.unit.write(r::FAULT_EVENT, 4, 0);
    assert_eq!(rig.sink.take(), []);
}

#[test]
fn the_completion_event_tells_of_a_wait_that_asked_for_it() {
    let rig = Rig::remapping();
    with_event(&rig, r::COMPLETION_EVENT, false);
    let wait = [5 | 1 << 4, 0];
    rig.submit(&[wait]);
    assert_eq!(rig.sink.take(), [EVENT]);
    assert_eq!(rig.read32(r::COMPLETION_STATUS), 1);
    rig.submit(&[wait]);
    assert_eq!(rig.sink.take(), [], "not dealt with");
    rig.unit.write(r::COMPLETION_STATUS, 4, 0xffff_fffe);
    assert_eq!(rig.read32(r::COMPLETION_STATUS), 1);
    rig.unit.write(r::COMPLETION_STATUS, 4, 1);
    assert_eq!(rig.read32(r::COMPLETION_STATUS), 0);
    rig.unit.write(r::COMPLETION_EVENT, 4, 1 << 31);
    rig.submit(&[wait]);
    assert_eq!(rig.read32(r::COMPLETION_EVENT), 3 << 30);
    rig.unit.write(r::COMPLETION_STATUS, 4, 1);
    assert_eq!(rig.read32(r::COMPLETION_EVENT), 1 << 31);
    rig.submit(&[wait]);
    rig.unit.write(r::COMPLETION_EVENT, 4, 0);
    assert_eq!(rig.sink.take(), [EVENT]);
}

fn restored(state: &VtdState) -> Rig {
    let rig = Rig::new(VtdOptions { fault_records: 2, ..VtdOptions::default() });
    rig.unit.restore(state).unwrap();
    assert_eq!(rig.unit.save(), *state);
    rig
}

#[test]
fn a_faulted_unit_is_restored_with_its_faults_and_its_event() {
    let rig = Rig::remapping();
    with_event(&rig, r::FAULT_EVENT, true);
    for index in 1..4 {
        blocked(&rig, index);
    }
    rig.submit(&[[0, 0]]);
    let state = rig.unit.save();
    let other = restored(&state);
    assert_eq!(other.read32(r::FAULT_STATUS), 0x13);
    assert_eq!(other.unit.read(r::QUEUE_ERROR, 8), 3);
    assert_eq!(other.read32(r::GLOBAL_STATUS), USE_QUEUE | REMAP | SET_TABLE);
    assert_eq!(other.faults(), [(0x22, 1, 0xffff), (0x22, 2, 0xffff)]);
    other.unit.write(r::FAULT_EVENT, 4, 0);
    assert_eq!(other.sink.take(), [EVENT]);
    other.set_entry(5, entry(0x41, 0));
    assert_eq!(other.send(handle(5), 0, DEVICE), both(arrives(0x41, 0)), "the table is in use");
}

#[test]
fn a_reset_forgets_everything_and_lets_messages_pass() {
    let options = VtdOptions { fault_records: 2, ..VtdOptions::default() };
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 0));
    let target = rig.unit.prepare(&MsiMessage::new(handle(5), 0x61)).unwrap();
    rig.unit.fire(target);
    with_event(&rig, r::FAULT_EVENT, true);
    with_event(&rig, r::COMPLETION_EVENT, false);
    blocked(&rig, 1);
    rig.submit(&[[5 | 1 << 4, 0], [0, 0]]);
    rig.sink.take();
    rig.unit.reset();
    assert_eq!(rig.unit.save(), Rig::new(options).unit.save());
    rig.unit.fire(target);
    assert_eq!(rig.sink.take(), [(handle(5), 0x61)]);
}

#[test]
fn what_was_cached_before_a_restore_is_forgotten() {
    let rig = Rig::remapping();
    let off = Rig::new(VtdOptions { fault_records: 2, ..VtdOptions::default() }).unit.save();
    rig.set_entry(5, entry(0x41, 0));
    let target = rig.unit.prepare(&MsiMessage::new(handle(5), 0)).unwrap();
    rig.unit.fire(target);
    rig.unit.restore(&off).unwrap();
    rig.sink.take();
    rig.unit.fire(target);
    assert_eq!(rig.sink.take(), [(handle(5), 0)]);
}

#[test]
fn states_that_cannot_be_are_refused_and_change_nothing() {
    let rig = Rig::remapping();
    let good = rig.unit.save();
    let mut bad: Vec<VtdState> = Vec::new();
    let mut with = |change: &dyn Fn(&mut VtdState)| {
        let mut state = good.clone();
        change(&mut state);
        bad.push(state);
    };
    for bit in (0..23).chain([27, 28, 29, 31]) {
        with(&|state| state.status |= 1 << bit);
    }
    for bit in [4, 10] {
        with(&|state| state.table |= 1 << bit);
        with(&|state| state.table_in_use |= 1 << bit);
    }
    for bit in [3, 11] {
        with(&|state| state.queue |= 1 << bit);
    }
    for bit in [0, 3, 19, 63] {
        with(&|state| state.head |= 1 << bit);
        with(&|state| state.tail |= 1 << bit);
    }
    with(&|state| state.queue_error = 16);
    with(&|state| state.completion = 2);
    for bit in [1, 2, 3, 5, 8, 31] {
        with(&|state| state.fault_status |= 1 << bit);
    }
    with(&|state| state.fault_event.control = 1 << 30);
    with(&|state| state.fault_event.control |= 1);
    with(&|state| state.fault_event.data = 1 << 16);
    with(&|state| state.fault_event.address = 2);
    with(&|state| state.completion_event.control = 1 << 30);
    with(&|state| state.records.push([0; 2]));
    with(&|state| state.records.truncate(1));
    with(&|state| state.next_record = 2);
    with(&|state| state.first_record = 2);
    for state in bad {
        assert!(rig.unit.restore(&state).is_err(), "{state:?}");
        assert_eq!(rig.unit.save(), good);
    }
    // Where extended mode is not offered, no table is in it.
    let plain = VtdOptions { extended_mode: false, fault_records: 2, ..VtdOptions::default() };
    let plain = VtdUnit::new(plain, rig.sink.clone(), rig.ram.clone());
    for change in [|state: &mut VtdState| state.table |= 1 << 11, |state: &mut VtdState| state.table_in_use |= 1 << 11]
    {
        let mut state = good.clone();
        change(&mut state);
        rig.unit.restore(&state).unwrap();
        assert!(plain.restore(&state).is_err());
    }
}

#[test]
fn a_load_across_registers_reads_nothing() {
    let rig = Rig::remapping();
    rig.unit.write(r::FAULT_EVENT + 4, 4, 0x41);
    rig.send(0xfee0_0010, 0, DEVICE);
    assert_eq!(rig.unit.read(r::FAULT_EVENT + 4, 4), 0x41);
    assert_ne!(rig.unit.read(r::FAULT_RECORDS + 12, 4), 0, "a fault is recorded");
    for offset in [1, 2, 3] {
        assert_eq!(rig.unit.read(r::FAULT_EVENT + offset, 4), 0, "offset {offset}");
        assert_eq!(rig.unit.read(r::FAULT_RECORDS + 8 + offset, 4), 0, "offset {offset}");
    }
    assert_eq!(rig.unit.read(r::FAULT_RECORDS + 4, 8), 0);
}

#[test]
fn a_store_across_registers_changes_nothing() {
    let options = VtdOptions { fault_records: 3, ..VtdOptions::default() };
    let rig = Rig::new(options);
    let before = rig.unit.save();
    for offset in [1, 2, 3] {
        rig.unit.write(r::FAULT_EVENT + 8 + offset, 4, 0xfee0_1000);
        rig.unit.write(r::COMPLETION_EVENT + 8 + offset, 4, 0xfee0_1000);
    }
    assert_eq!(rig.unit.save(), before);
    assert_eq!(rig.unit.options(), &options);
}

#[test]
fn the_highest_error_and_a_completion_are_restored_and_more_is_refused() {
    let rig = Rig::new(VtdOptions::default());
    let state = VtdState { queue_error: 0xf, completion: 1, ..rig.unit.save() };
    rig.unit.restore(&state).unwrap();
    assert_eq!(rig.unit.save(), state);
    for wrong in [VtdState { queue_error: 0x10, ..state.clone() }, VtdState { completion: 2, ..state.clone() }] {
        rig.unit.restore(&wrong).unwrap_err();
        assert_eq!(rig.unit.save(), state);
    }
}
