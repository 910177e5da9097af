//! Several units, and senders that none of them has.

use super::{
    super::registers::offset,
    rig::{DEVICE, DEVICES, Rig, TABLE, entry, message},
};
use crate::{
    Delivery, DeviceId, MsiMessage, MsiTarget,
    remap::amd::{AmdUnitOptions, AmdVi},
};

fn range(requesters: std::ops::RangeInclusive<u32>) -> AmdUnitOptions {
    AmdUnitOptions { requesters, ..AmdUnitOptions::default() }
}

fn two() -> Rig {
    let rig = Rig::with(&[range(0..=0xff), range(0x100..=0x1ff)]);
    rig.device(DEVICE, TABLE, 8);
    rig.device(DEVICE + 0x100, TABLE + 0x1000, 8);
    rig.store_entry(TABLE, 7, entry(0x51, 1));
    rig.store_entry(TABLE + 0x1000, 7, entry(0x61, 2));
    rig
}

#[test]
fn each_unit_has_registers_of_its_own() {
    let rig = two();
    let messages = [message(DEVICE, 7), message(DEVICE + 0x100, 7)];
    let targets = messages.map(|it| rig.remap.prepare(&it).unwrap());
    for enabled in [[false, false], [true, false], [false, true], [true, true]] {
        for (unit, on) in rig.remap.units().iter().zip(enabled) {
            unit.write(offset::CONTROL, 8, u64::from(on));
            assert_eq!(unit.is_enabled(), on);
        }
        let mut expected = [(0xfee0_0000, 7); 2];
        if enabled[0] {
            expected[0] = (0xfee0_1000, 0x51);
        }
        if enabled[1] {
            expected[1] = (0xfee0_2000, 0x61);
        }
        for it in &messages {
            rig.send(it);
        }
        assert_eq!(rig.taken(), expected, "sent, {enabled:?}");
        rig.fire(&targets);
        assert_eq!(rig.taken(), expected, "prepared, {enabled:?}");
    }
}

#[test]
fn an_invalidation_in_one_unit_leaves_the_other_alone() {
    let rig = two();
    // Both units look at the same tables; each has its own commands.
    let targets = [message(DEVICE, 7), message(DEVICE + 0x100, 7)].map(|it| rig.remap.prepare(&it).unwrap());
    rig.remap.units().iter().for_each(|unit| unit.write(offset::CONTROL, 8, 1 | 1 << 12));
    rig.fire(&targets);
    rig.store_entry(TABLE, 7, entry(0x52, 1));
    rig.store_entry(TABLE + 0x1000, 7, entry(0x62, 2));
    rig.commands(&[[8 << 60, 0]]);
    rig.taken();
    rig.fire(&targets);
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x52), (0xfee0_2000, 0x61)]);
}

#[test]
fn a_device_behind_no_unit_passes() {
    let rig = two();
    rig.remap.units().iter().for_each(|unit| unit.write(offset::CONTROL, 8, 1));
    // The table has an entry for it, but no unit looks at it.
    rig.device(0x218, TABLE, 8);
    for it in [message(0x218, 7), MsiMessage::new(0xfee0_0000, 7).from_device(DeviceId(0x1_0018))] {
        assert_eq!(rig.send(&it), Delivery::Delivered(1));
        let target = rig.remap.prepare(&it).unwrap();
        assert_eq!(rig.remap.fire(target), Delivery::Delivered(1));
        assert_eq!(rig.taken(), [(0xfee0_0000, 7), (0xfee0_0000, 7)]);
    }
}

#[test]
fn a_message_without_a_sender_passes_only_while_all_units_are_disabled() {
    let rig = two();
    let nobody = MsiMessage::new(0xfee0_3000, 7);
    assert_eq!(rig.remap.prepare(&nobody), None);
    assert_eq!(rig.send(&nobody), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(0xfee0_3000, 7)]);
    rig.remap.unit(1).unwrap().write(offset::CONTROL, 8, 1);
    assert_eq!(rig.send(&nobody), Delivery::Ignored);
    assert_eq!((rig.taken(), rig.remap.prepare(&nobody)), (vec![], None));
    rig.remap.unit(1).unwrap().write(offset::CONTROL, 8, 0);
    assert_eq!(rig.send(&nobody), Delivery::Delivered(1));
}

/// Only bits 15:0 of a requester index the device table: above is the PCI segment group.
#[test]
fn a_unit_of_another_segment() {
    let rig = Rig::with(&[range(0x1_0000..=0x1_ffff)]);
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x51, 1));
    rig.control(0);
    let sent = MsiMessage::new(0xfee0_0000, 7).from_device(DeviceId(0x1_0000 + u32::from(DEVICE)));
    rig.send(&sent);
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x51)]);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.taken(), [(0xfee0_0000, 7)], "segment 0");
}

#[test]
fn a_requester_is_behind_one_unit() {
    let build = |units: &[AmdUnitOptions]| {
        let ram = std::sync::Arc::new(crate::guest_ram::RamBlock::new(DEVICES, 0x1000));
        let sink = std::sync::Arc::new(super::rig::Sink::default());
        AmdVi::new(sink, ram, std::sync::Arc::new(()), units).map(|remap| remap.units().len())
    };
    let says = |units: &[AmdUnitOptions]| build(units).unwrap_err().to_string();
    assert_eq!(build(&[]).unwrap(), 0);
    assert_eq!(build(&[range(0..=0xff), range(0x100..=0x1ff)]).unwrap(), 2);
    for second in [0..=0, 0xff..=0x1ff, 0x80..=0x8f, 0..=0xffff] {
        let start = second.start().to_owned();
        let expected = format!("range of requesters from {start:#x} is not allowed: each in one unit");
        assert_eq!(says(&[range(0..=0xff), range(second)]), expected);
    }
    let many: Vec<_> = (0..16).map(|n| range(n * 0x100..=n * 0x100 + 0xff)).collect();
    assert_eq!(build(&many[..15]).unwrap(), 15);
    assert_eq!(says(&many), "number of AMD-Vi units 0x10 is not allowed: at most 15");
}

/// A unit remembers no more messages than it was told; the others are looked up each time.
#[test]
fn a_full_cache_still_delivers() {
    let rig = Rig::with(&[AmdUnitOptions { messages: 2, ..AmdUnitOptions::default() }]);
    rig.control(0);
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x51, 1));
    let prepared: Vec<_> = (5..8).map(|data| rig.remap.prepare(&message(DEVICE, data)).is_some()).collect();
    assert_eq!(prepared, [true, true, false]);
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x51)]);
}
