//! The MMIO window.

use super::{
    super::registers::offset,
    rig::{DEVICE, Rig, TABLE, entry, message},
};
use crate::{
    MsiMessage, MsiTarget,
    remap::amd::{AmdUnitOptions, registers::WINDOW},
};

const EVERY: [u64; 22] = [
    0x0, 0x8, 0x10, 0x18, 0x20, 0x28, 0x30, 0xe0, 0xe8, 0x158, 0x160, 0x170, 0x178, 0x180, 0x1a0, 0x2000, 0x2008,
    0x2010, 0x2018, 0x2020, 0x2040, 0x2048,
];

fn plain() -> AmdUnitOptions {
    AmdUnitOptions { x2apic: false, guest_apic: false, wide_index: false, ..AmdUnitOptions::default() }
}

/// Registers after reset: nothing but the claims and the capability's header.
#[test]
fn after_reset() {
    let rig = Rig::disabled();
    rig.unit().write(offset::CONTROL, 8, 0xc_0000);
    rig.unit().reset();
    for at in (0..WINDOW).step_by(8) {
        let expected = match at {
            // XTSup, IASup, GASup, GAMSup 1, MsiCapMmioSup.
            0x30 => 1 << 2 | 1 << 6 | 1 << 7 | 1 << 21 | 1 << 46,
            // MSI capability, 64-bit addresses.
            0x158 => 0x80_0005,
            0x1a0 => 1 << 8,
            _ => 0,
        };
        assert_eq!(rig.read(at), expected, "{at:#x}");
    }
    assert_eq!(Rig::with(&[plain()]).read(0x30), 1 << 6 | 1 << 46);
    assert_eq!(Rig::with(&[plain()]).read(0x1a0), 0);
}

/// What each register keeps of all ones. The command buffer's tail comes last: nothing runs while the unit is disabled.
#[test]
fn the_bits_that_a_guest_can_set() {
    let rig = Rig::disabled();
    let kept = |at| {
        rig.unit().write(at, 8, u64::MAX);
        rig.read(at)
    };
    for at in EVERY {
        let expected = match at {
            0x0 => 0x000f_ffff_ffff_f1ff,
            0x8 | 0x10 | 0xe0 => 0x0f0f_ffff_ffff_f000,
            0x18 => continue,
            0x20 => 0x000f_ffff_ffff_f003,
            0x28 => 0x000f_ffff_ffff_f000,
            0x30 => 0x4000_0020_00c4,
            0xe8 => 0x000f_ffff_ffff_fff8,
            0x158 => 0xffff_fffc_0081_0005,
            0x160 => 0x0000_ffff_ffff_ffff,
            0x170..=0x180 => 0xff00_01ff_ffff_ff04,
            0x1a0 => 0x100,
            0x2020 => 0,
            0x2040 | 0x2048 => 0xfff8,
            _ => 0x7_fff0,
        };
        assert_eq!(kept(at), expected, "{at:#x}");
    }
    assert_eq!(kept(0x18), 0x000c_1800_3e02_1fff);

    let rig = Rig::with(&[plain()]);
    for at in EVERY {
        rig.unit().write(at, 8, u64::MAX);
        match at {
            0x18 => assert_eq!(rig.read(at), 0x1fff),
            0xe0 | 0xe8 | 0x170..=0x180 | 0x2040 | 0x2048 => assert_eq!(rig.read(at), 0, "{at:#x}"),
            _ => {}
        }
    }
}

#[test]
fn halves_are_stored_and_loaded_alone() {
    let rig = Rig::disabled();
    let unit = rig.unit();
    unit.write(0, 8, 0x000a_bbbb_cccc_c1dd);
    unit.write(4, 4, 0x5_1234);
    assert_eq!((unit.read(0, 8), unit.read(0, 4), unit.read(4, 4)), (0x0005_1234_cccc_c1dd, 0xcccc_c1dd, 0x5_1234));
    unit.write(0, 4, 0x9999_9099);
    assert_eq!(unit.read(0, 8), 0x0005_1234_9999_9099);
    let mut bytes = [0; 8];
    unit.mmio_read(0, &mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), 0x0005_1234_9999_9099);
    unit.mmio_write(4, &0x7_7777u32.to_le_bytes());
    unit.mmio_read(4, &mut bytes[..4]);
    assert_eq!(bytes[..4], 0x7_7777u32.to_le_bytes());
}

#[test]
fn other_widths_and_places_are_zero_and_change_nothing() {
    let rig = Rig::disabled();
    let unit = rig.unit();
    unit.write(0, 8, 0x0001_2345_6789_a0bc);
    for (at, size) in
        [(0, 1), (0, 2), (0, 3), (0, 16), (0, 0), (2, 4), (4, 8), (1, 4), (WINDOW, 8), (WINDOW, 4), (!7, 8)]
    {
        assert_eq!(unit.read(at, size), 0, "{size} at {at:#x}");
        unit.write(at, size, 0);
        unit.mmio_write(at, &vec![0; size]);
        let mut data = vec![0xff; size];
        unit.mmio_read(at, &mut data);
        assert_eq!(data, vec![0; size]);
    }
    assert_eq!(unit.read(0, 8), 0x0001_2345_6789_a0bc);
    assert_eq!((unit.read(WINDOW - 8, 8), unit.read(0x4, 4)), (0, 0x0001_2345));
}

#[test]
fn the_read_only_status_follows_the_control_register() {
    let rig = Rig::disabled();
    // (control, EventLogRun 3, CmdBufRun 4, GALogRun 8)
    for (control, expected) in [
        (0, 0),
        (1, 0),
        (1 << 2 | 1 << 12 | 1 << 28, 0),
        (1 | 1 << 2, 1 << 3),
        (1 | 1 << 12, 1 << 4),
        (1 | 1 << 28, 1 << 8),
        (1 | 1 << 2 | 1 << 12 | 1 << 28, 0x118),
    ] {
        rig.unit().write(offset::CONTROL, 8, control);
        assert_eq!(rig.read(offset::STATUS), expected, "{control:#x}");
    }
}

#[test]
fn the_msi_capability_is_in_the_window() {
    let rig = Rig::disabled();
    let unit = rig.unit();
    unit.set_own_message(None);
    assert_eq!(unit.own_message(), None);
    unit.write(0x15c, 4, 0xfee0_1003);
    unit.write(0x160, 4, 0x12);
    unit.write(0x164, 4, 0x7_0041);
    assert_eq!(unit.own_message(), None);
    unit.write(0x158, 4, 0x1_0000);
    assert_eq!(unit.own_message(), Some(MsiMessage::new(0x12_fee0_1000, 0x41)));
    unit.set_own_message(Some(&MsiMessage::new(0x34_fee0_2000, 0x42)));
    assert_eq!((unit.read(0x158, 8), unit.read(0x160, 8)), (0xfee0_2000_0081_0005, 0x42_0000_0034));
    unit.write(0x158, 4, 0);
    assert_eq!(unit.own_message(), None);
}

/// What was remembered is void when the registers say otherwise.
#[test]
fn a_new_device_table_or_control_is_used_at_once() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
    rig.remap.fire(target);
    // Another device table, where the device has no entry.
    rig.unit().write(offset::DEVICE_TABLE_BASE, 8, 0xc_0000 | 31);
    rig.remap.fire(target);
    rig.unit().write(offset::DEVICE_TABLE_BASE, 8, super::rig::DEVICES | 31);
    rig.remap.fire(target);
    rig.unit().write(offset::CONTROL, 8, 0);
    rig.remap.fire(target);
    rig.control(0);
    rig.remap.fire(target);
    let (passed, remapped) = ((0xfee0_0000, 7), (0xfee0_1000, 0x41));
    assert_eq!(rig.taken(), [remapped, passed, remapped, passed, remapped]);
    assert!(rig.unit().is_enabled());
    rig.unit().reset();
    rig.remap.fire(target);
    assert_eq!(rig.taken(), [passed]);
    assert!(!rig.unit().is_enabled());
}
