//! The command buffer.

use super::{
    super::registers::offset,
    rig::{COMMANDS, DEVICE, FLAG, OWN, Rig, TABLE, entry, message},
};
use crate::MsiTarget;

const RUNS: u64 = 1 << 4;
const WAITED: u64 = 1 << 2;

fn wait(low: u64, data: u64) -> [u64; 2] {
    [1 << 60 | low, data]
}

/// T23 and hazard H37.
#[test]
fn after_an_invalidation_only_the_new_entry_is_used() {
    type Invalidation = fn(u16) -> u64;
    let by_table: Invalidation = |device| 5 << 60 | u64::from(device);
    let by_device: Invalidation = |device| 2 << 60 | u64::from(device);
    for command in [by_table, by_device, |_| 8 << 60] {
        let rig = Rig::new();
        rig.device(DEVICE, TABLE, 8);
        rig.store_entry(TABLE, 7, entry(0x41, 1));
        let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
        rig.remap.fire(target);
        rig.store_entry(TABLE, 7, entry(0x42, 2));
        rig.remap.fire(target);
        assert_eq!(rig.taken(), [(0xfee0_1000, 0x41), (0xfee0_1000, 0x41)], "remembered");
        rig.commands(&[[command(DEVICE), 0], wait(0, 0)]);
        rig.remap.fire(target);
        assert_eq!(rig.taken(), [(0xfee0_2000, 0x42)]);
        rig.store_entry(TABLE, 7, 0);
        rig.commands(&[[command(DEVICE), 0], wait(0, 0)]);
        rig.remap.fire(target);
        assert_eq!(rig.taken(), [], "a freed entry blocks");
    }
}

#[test]
fn an_invalidation_concerns_its_device() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.device(DEVICE + 1, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    let targets = [0, 1].map(|n| rig.remap.prepare(&message(DEVICE + n, 7)).unwrap());
    rig.fire(&targets);
    rig.store_entry(TABLE, 7, entry(0x42, 2));
    rig.invalidate(DEVICE);
    rig.taken();
    rig.fire(&targets);
    assert_eq!(rig.taken(), [(0xfee0_2000, 0x42), (0xfee0_1000, 0x41)]);
    // The second one again, now from memory, after an invalidation of all.
    rig.commands(&[[8 << 60, 0]]);
    rig.fire(&targets);
    assert_eq!(rig.taken(), [(0xfee0_2000, 0x42), (0xfee0_2000, 0x42)]);
}

#[test]
fn a_wait_stores_and_interrupts_as_asked() {
    let rig = Rig::new();
    rig.control(1 << 4);
    let cases: [(u64, u64, bool); 4] = [(0, 0, false), (1, 0xfeed, false), (2, 0, true), (7, 0xfeed, true)];
    for (flags, stored, interrupts) in cases {
        rig.store(FLAG, [0]);
        rig.commands(&[wait(FLAG | flags, 0xfeed)]);
        assert_eq!(rig.load(FLAG), [stored], "{flags:#b}");
        assert_eq!(rig.read(offset::STATUS) & WAITED, if interrupts { WAITED } else { 0 });
        assert_eq!(rig.taken(), if interrupts { vec![OWN] } else { vec![] }, "{flags:#b}");
        rig.unit().write(offset::STATUS, 8, WAITED);
        assert_eq!(rig.read(offset::STATUS) & WAITED, 0);
    }
    // Bits 2:0 of the address are flags.
    rig.commands(&[wait(FLAG | 8 | 5, 0xbeef)]);
    assert_eq!(rig.load(FLAG + 8), [0xbeef]);
}

#[test]
fn a_wait_interrupts_once_until_its_bit_is_cleared_and_only_if_enabled() {
    let rig = Rig::new();
    rig.commands(&[wait(2, 0)]);
    assert_eq!(rig.read(offset::STATUS) & WAITED, WAITED);
    assert_eq!(rig.taken(), []);
    rig.control(1 << 4);
    assert_eq!(rig.taken(), [OWN], "when it is enabled with the bit set");
    rig.commands(&[wait(2, 0), wait(2, 0)]);
    assert_eq!(rig.taken(), []);
    rig.unit().write(offset::STATUS, 4, WAITED);
    rig.commands(&[wait(2, 0), wait(2, 0)]);
    assert_eq!(rig.taken(), [OWN]);
}

#[test]
fn an_illegal_command_stops_the_buffer_at_it() {
    let illegal = [
        [0, 0],
        [6 << 60, 0],
        [7 << 60, 0],
        [9 << 60, 0],
        [15 << 60, 0],
        wait(1 << 52, 0),
        wait(1 << 59, 0),
        [2 << 60 | 1 << 16, 0],
        [2 << 60 | 1 << 59, 0],
        [2 << 60, 1],
        [5 << 60 | 1 << 16, 0],
        [5 << 60, 1 << 63],
        [8 << 60 | 1, 0],
        [8 << 60 | 1 << 16, 0],
        [8 << 60, 1],
        [3 << 60 | 1 << 20, 0],
        [3 << 60 | 1 << 48, 0],
        [3 << 60, 1 << 3],
        [3 << 60, 1 << 11],
    ];
    for command in illegal {
        let rig = Rig::new();
        rig.commands(&[wait(0, 0), command, wait(FLAG | 1, 1)]);
        assert_eq!(rig.read(offset::COMMAND_HEAD), 0x10, "{command:x?}");
        assert_eq!(rig.read(offset::STATUS) & RUNS, 0, "{command:x?}");
        assert_eq!(rig.events(), [[5 << 60, COMMANDS + 0x10]], "{command:x?}");
        assert_eq!(rig.load(FLAG), [0]);
        // It stays stopped, whatever the guest adds, until it is enabled anew.
        rig.unit().write(offset::COMMAND_TAIL, 8, 0x40);
        rig.control(0);
        assert_eq!(rig.read(offset::COMMAND_HEAD), 0x10);
        rig.store(COMMANDS + 0x10, wait(0, 0));
        rig.store(COMMANDS + 0x30, wait(FLAG | 1, 2));
        rig.unit().write(offset::CONTROL, 8, 1 | 1 << 2);
        rig.control(0);
        assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0x40, [2]), "{command:x?}");
        assert_eq!(rig.read(offset::STATUS) & RUNS, RUNS);
    }
}

#[test]
fn commands_about_translation_are_done_without_effect() {
    let rig = Rig::new();
    let commands = [
        [3 << 60 | 0xffff << 32 | 0xf_ffff, 0x7fff_ffff_ffff_f007],
        [4 << 60 | 0x0fff_ffff_ffff_ffff, u64::MAX],
        wait(FLAG | 1, 3),
    ];
    rig.commands(&commands);
    assert_eq!((rig.events(), rig.load(FLAG)), (vec![], [3]));
}

#[test]
fn invalidations_name_any_device() {
    let rig = Rig::new();
    rig.commands(&[[5 << 60 | 0xffff, 0], [2 << 60 | 0xffff, 0], [8 << 60, 0], wait(FLAG | 1, 3)]);
    assert_eq!((rig.events(), rig.load(FLAG)), (vec![], [3]));
}

#[test]
fn commands_and_stores_outside_of_memory_are_hardware_errors() {
    const ERROR: u64 = 6 << 60 | 1 << 57;
    let rig = Rig::new();
    rig.commands(&[wait(0, 0), wait(0x4000_0001, 1)]);
    assert_eq!(rig.events(), [[ERROR, 0x4000_0000]]);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.read(offset::STATUS) & RUNS), (0x10, 0));

    let rig = Rig::new();
    rig.unit().write(offset::COMMAND_BUFFER_BASE, 8, 0x7000_0000 | 8 << 56);
    rig.unit().write(offset::COMMAND_TAIL, 8, 0x20);
    assert_eq!(rig.events(), [[ERROR, 0x7000_0000]]);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.read(offset::STATUS) & RUNS), (0, 0));
}

#[test]
fn the_buffer_wraps_and_pointers_beyond_it_are_taken_inside() {
    let rig = Rig::new();
    for n in 0..1000u64 {
        rig.commands(&[wait(FLAG | 1, n)]);
        assert_eq!(rig.load(FLAG), [n]);
    }
    assert_eq!(rig.read(offset::COMMAND_HEAD), 1000 % 256 * 16);
    let rig = Rig::new();
    for at in 0..256 {
        rig.store(COMMANDS + 16 * at, wait(FLAG | 1, at));
    }
    // 0x1010 is entry 1 of 256: everything but entry 0 has been run before.
    rig.unit().write(offset::COMMAND_HEAD, 8, 0x1010);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0, [255]));
    rig.unit().write(offset::COMMAND_TAIL, 8, 0x7_ffff);
    assert_eq!(rig.read(offset::COMMAND_TAIL), 0x7_fff0);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0xff0, [254]));
}

#[test]
fn a_reserved_length_runs_nothing() {
    let rig = Rig::new();
    rig.store(COMMANDS, wait(FLAG | 1, 1));
    for (length, runs) in [(0, 0), (7, 0), (8, RUNS), (15, RUNS)] {
        rig.unit().write(offset::COMMAND_BUFFER_BASE, 8, COMMANDS | length << 56);
        assert_eq!(rig.read(offset::STATUS) & RUNS, runs, "{length}");
        rig.unit().write(offset::COMMAND_TAIL, 8, 0x10);
        assert_eq!(rig.read(offset::COMMAND_HEAD), if runs == 0 { 0 } else { 0x10 }, "{length}");
    }
}

#[test]
fn the_largest_buffer_has_32768_commands() {
    let rig = Rig::new();
    rig.unit().write(offset::COMMAND_BUFFER_BASE, 8, COMMANDS | 15 << 56);
    rig.store(COMMANDS + 0x7_fff0, wait(FLAG | 1, 9));
    rig.unit().write(offset::COMMAND_HEAD, 8, 0);
    rig.unit().write(offset::CONTROL, 8, 0);
    rig.unit().write(offset::COMMAND_HEAD, 8, 0x7_fff0);
    rig.control(0);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0, [9]));
}

#[test]
fn commands_given_before_the_buffer_is_enabled_are_run_then() {
    for first in [0, 1, 1 << 12] {
        let rig = Rig::disabled();
        rig.unit().write(offset::CONTROL, 8, first);
        rig.commands(&[wait(FLAG | 1, 1)]);
        assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0, [0]), "{first:#x}");
        rig.control(0);
        assert_eq!((rig.read(offset::COMMAND_HEAD), rig.load(FLAG)), (0x10, [1]), "{first:#x}");
    }
}

/// A guest that fills its buffer with invalidations of a full cache: only the first has something to forget.
#[test]
fn a_buffer_full_of_invalidations_is_run_to_its_end() {
    let rig = Rig::new();
    for device in 0..256 {
        for data in 0..64 {
            rig.fire(&[rig.remap.prepare(&message(device, data)).unwrap()]);
        }
    }
    for at in 0..0x1000 {
        rig.store(COMMANDS + 16 * at, [8 << 60, 0]);
    }
    rig.unit().write(offset::COMMAND_BUFFER_BASE, 8, COMMANDS | 12 << 56);
    rig.unit().write(offset::COMMAND_TAIL, 8, 0xfff0);
    assert_eq!((rig.read(offset::COMMAND_HEAD), rig.events()), (0xfff0, vec![]));
}
