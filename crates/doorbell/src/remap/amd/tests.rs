//! What a unit does, a behaviour at a time. Expected values are the manual's, written out.

mod blocked;
mod commands;
mod guests;
mod logs;
mod machine;
mod registers;
mod rig;
mod saved;
mod storm;
mod units;

use rig::{DEVICE, Rig, TABLE, entry, message, wide};

use super::registers::offset;
use crate::{Delivery, DeviceId, MsiMessage, MsiTarget};

const FEE: u64 = 0xfee0_0000;

#[test]
fn nothing_is_remapped_while_the_unit_is_disabled() {
    let rig = Rig::disabled();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 0x41, entry(0x99, 1));
    let sent = MsiMessage::new(0xfee0_3004, 0x41).from_device(DeviceId(DEVICE.into()));
    assert_eq!(rig.send(&sent), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(0xfee0_3004, 0x41)]);
}

/// T20.
#[test]
fn a_device_without_a_valid_table_passes_unmapped() {
    let rig = Rig::new();
    assert_eq!(rig.send(&message(DEVICE, 0x41)), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(FEE, 0x41)]);
}

/// T21.
#[test]
fn int_ctl_aborts_passes_or_remaps() {
    for (control, expected) in [(0, vec![]), (1, vec![(FEE, 7)]), (2, vec![(FEE | 5 << 12, 0x99)]), (3, vec![])] {
        let rig = Rig::new();
        rig.device_with(DEVICE, 1 | 8 << 1 | TABLE | control << 60);
        rig.store_entry(TABLE, 7, entry(0x99, 5));
        rig.send(&message(DEVICE, 7));
        assert_eq!(rig.taken(), expected, "IntCtl {control}");
    }
}

#[test]
fn an_entry_gives_vector_destination_mode_and_kind() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    // Arbitrated, logical, destination 0x0f, vector 0x81.
    rig.store_entry(TABLE, 3, 1 | 1 << 2 | 1 << 6 | 0x0f << 8 | 0x81 << 16);
    rig.send(&message(DEVICE, 3));
    assert_eq!(rig.taken(), [(0xfee0_f004, 0x181)]);
}

#[test]
fn the_destination_of_the_message_means_nothing() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 3, entry(0x81, 2));
    for address in [FEE, 0xfee0_7000, 0xfeef_f00c] {
        rig.send(&MsiMessage::new(address, 3).from_device(DeviceId(DEVICE.into())));
        assert_eq!(rig.taken(), [(0xfee0_2000, 0x81)], "{address:#x}");
    }
}

#[test]
fn the_index_is_the_vector_and_the_mode_of_fixed_and_arbitrated_messages() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 9);
    rig.store_entry(TABLE, 0x1fe, entry(0x71, 2));
    rig.store_entry(TABLE, 0xfe, entry(0x72, 2));
    rig.send(&message(DEVICE, 0x1fe));
    rig.send(&message(DEVICE, 0xfe));
    // Bits above 10 are no part of it.
    rig.send(&message(DEVICE, 0xf000_08fe & !0xc000));
    assert_eq!(rig.taken(), [(0xfee0_2000, 0x71), (0xfee0_2000, 0x72), (0xfee0_2000, 0x72)]);
}

#[test]
fn a_level_interrupt_stays_one_and_an_entry_can_make_one() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 3, entry(0x81, 2));
    rig.store_entry(TABLE, 4, entry(0x82, 2) | 1 << 5);
    rig.send(&message(DEVICE, 3 | 1 << 15 | 1 << 14));
    rig.send(&message(DEVICE, 3 | 1 << 14));
    rig.send(&message(DEVICE, 4));
    assert_eq!(rig.taken(), [(0xfee0_2000, 0xc081), (0xfee0_2000, 0x4081), (0xfee0_2000, 0xc082)]);
}

#[test]
fn other_kinds_pass_by_the_bits_of_the_device_table() {
    // (delivery mode, the bit that lets it pass)
    for (mode, bit) in [(4, Some(58)), (5, Some(56)), (7, Some(57)), (2, None)] {
        let rig = Rig::new();
        let sent = message(DEVICE, mode << 8 | 0x41);
        let all: u64 = 1 << 56 | 1 << 57 | 1 << 58 | 1 << 62 | 1 << 63;
        let without = all & !bit.map_or(0, |bit| 1 << bit);
        rig.device_with(DEVICE, 1 | 11 << 1 | TABLE | 2 << 60 | without);
        rig.send(&sent);
        assert_eq!(rig.taken().len(), usize::from(bit.is_none()), "mode {mode}, all but its bit");
        rig.device_with(DEVICE, 1 | 11 << 1 | TABLE | 2 << 60 | bit.map_or(0, |bit| 1 << bit));
        rig.invalidate(DEVICE);
        rig.send(&sent);
        assert_eq!(rig.taken(), [(FEE, mode << 8 | 0x41)], "mode {mode}, only its bit");
    }
}

#[test]
fn all_2048_indices_are_remapped_in_the_mode_for_it() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 11);
    rig.store_entry(TABLE, 0x7ff, entry(0x71, 2));
    rig.store_entry(TABLE, 0x400, entry(0x72, 3));
    rig.send(&message(DEVICE, 0x400));
    assert_eq!(rig.taken(), [], "an NMI, which does not pass");
    rig.control(1 << 43);
    rig.send(&message(DEVICE, 0x400));
    rig.send(&message(DEVICE, 0x7ff));
    assert_eq!(rig.taken(), [(0xfee0_3000, 0x72), (0xfee0_2000, 0x71)]);
}

#[test]
fn entries_have_128_bits_with_ga_en() {
    let rig = Rig::new();
    rig.control(1 << 17);
    rig.device(DEVICE, TABLE, 8);
    rig.store_wide(TABLE, 3, wide(0x91, 0x1234_5678));
    rig.send(&message(DEVICE, 3));
    assert_eq!(rig.taken(), [(0xfee7_8000, 0x91)], "8 bits of the destination without XTEn");
    rig.control(1 << 17 | 1 << 50);
    rig.send(&message(DEVICE, 3));
    assert_eq!(rig.taken(), [(0x1234_5600_fee7_8000, 0x91)], "all 32, above bit 39 as KVM has them");
    // Arbitrated, level, logical.
    let [low, high] = wide(0x92, 0xff);
    rig.store_wide(TABLE, 4, [low | 1 << 2 | 1 << 5 | 1 << 6, high]);
    rig.send(&message(DEVICE, 4));
    assert_eq!(rig.taken(), [(0xfeef_f004, 0xc192)]);
}

/// T24.
#[test]
fn two_devices_with_the_same_data_have_entries_of_their_own() {
    let rig = Rig::new();
    let (first, second) = (DEVICE, DEVICE + 0x100);
    rig.device(first, TABLE, 8);
    rig.device(second, TABLE + 0x1000, 8);
    rig.store_entry(TABLE, 7, entry(0x51, 1));
    rig.store_entry(TABLE + 0x1000, 7, entry(0x61, 2));
    for _ in 0..2 {
        rig.send(&message(first, 7));
        rig.send(&message(second, 7));
    }
    let (one, two) = ((0xfee0_1000, 0x51), (0xfee0_2000, 0x61));
    assert_eq!(rig.taken(), [one, two, one, two]);
}

#[test]
fn the_table_begins_at_bits_51_to_6() {
    let rig = Rig::new();
    rig.device_with(DEVICE, 1 | 8 << 1 | (TABLE + 0xc0) | 2 << 60);
    rig.store_entry(TABLE + 0xc0, 1, entry(0x51, 1));
    rig.send(&message(DEVICE, 1));
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x51)]);
}

/// An IOAPIC in front of the unit: a guest stores the index in the vector and the mode of its entry, and ends the
/// interrupt by that vector.
#[test]
fn an_ioapic_sends_its_entry_as_the_index_and_is_ended_by_it() {
    use crate::chips::x86::ioapic::{CHIP, EOI, Effect, INDEX, IoApic, IoApicOptions, WINDOW};
    use crate::{LineSource, PinInput};

    let rig = Rig::new();
    let southbridge = 0x00a0;
    rig.device(southbridge, TABLE, 9);
    rig.store_entry(TABLE, 0x105, entry(0x66, 3));
    let options = IoApicOptions { device_id: Some(DeviceId(southbridge.into())), ..IoApicOptions::default() };
    let ioapic = IoApic::new(rig.remap.clone(), options);
    assert_eq!(ioapic.write(INDEX, 0x10 + 2 * 9), Effect::None);
    // Level, index 0x105: vector 5, mode 1.
    assert_eq!(ioapic.write(WINDOW, 1 << 15 | 0x105), Effect::None);
    ioapic.set(CHIP, 9, LineSource::USER, true);
    assert_eq!(rig.taken(), [(0xfee0_3000, 0xc066)]);
    assert_eq!(ioapic.end(0x66)[..], [], "the local APIC's vector names no pin");
    let Effect::Ended(pins) = ioapic.write(EOI, 0x05) else { panic!("the entry's vector ends it") };
    assert_eq!(pins[..], [9]);
    ioapic.reevaluate(CHIP, &pins);
    assert_eq!(rig.taken(), [(0xfee0_3000, 0xc066)], "the line is still high");
}

#[test]
fn a_message_that_the_inner_target_cannot_prepare_is_sent() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    // The rig's target prepares fixed physical messages only.
    rig.store_entry(TABLE, 7, entry(0x51, 1) | 1 << 6);
    let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
    assert_eq!(rig.remap.fire(target), Delivery::Delivered(1));
    assert_eq!(rig.remap.fire(target), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(0xfee0_1004, 0x51); 2]);
}

#[test]
fn another_controllers_target_is_harmless() {
    let rig = Rig::new();
    for bits in [0, 1, 0xf_ffff, 0x10_0000, 0xf0_0000, 0xff_ffff] {
        assert_eq!(rig.remap.fire(crate::Target::new(bits).unwrap()), Delivery::Ignored, "{bits:#x}");
    }
    assert_eq!(rig.read(offset::STATUS), 0x18);
    assert_eq!(rig.taken(), []);
}
