//! Messages that go nowhere, and what the event log says.

use super::{
    super::registers::offset,
    rig::{DEVICE, DEVICES, Rig, TABLE, entry, message, wide},
};
use crate::{Delivery, DeviceId, MsiMessage, MsiTarget};

const DOMAIN: u64 = 0x1234 << 32;
const INTERRUPT: u64 = 1 << 51;
const PRESENT: u64 = 1 << 52;
const RESERVED: u64 = 1 << 55;
const MASTER_ABORT: u64 = 1 << 57;
/// The address of an interrupt with vector 7, destination 0, fixed, edge.
const SEVEN: u64 = 0xfd_f807_0000;

fn head(code: u64, device: u16) -> u64 {
    code << 60 | u64::from(device)
}

/// Sends index 7 and expects it blocked, with these events.
fn blocks(rig: &Rig, what: &str, expected: &[[u64; 2]]) {
    let before = rig.unit().blocked();
    assert_eq!(rig.send(&message(DEVICE, 7)), Delivery::Ignored, "{what}");
    assert_eq!(rig.taken(), [], "{what}");
    assert_eq!(rig.events(), expected, "{what}");
    assert_eq!(rig.unit().blocked(), before + 1, "{what}");
}

/// T22.
#[test]
fn an_index_beyond_the_table_and_an_entry_that_is_not_enabled() {
    let rig = Rig::new();
    let fault = [head(2, DEVICE) | DOMAIN | INTERRUPT, SEVEN];
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    for (length, inside) in [(0, false), (2, false), (3, true), (11, true)] {
        rig.device(DEVICE, TABLE, length);
        rig.invalidate(DEVICE);
        if inside {
            rig.send(&message(DEVICE, 7));
            assert_eq!(rig.taken(), [(0xfee0_1000, 0x41)], "2^{length} entries");
            assert_eq!(rig.events(), [[0; 2]; 0]);
        } else {
            blocks(&rig, "index", &[fault]);
        }
    }
    rig.store_entry(TABLE, 7, entry(0x41, 1) & !1);
    blocks(&rig, "RemapEn", &[fault]);
    rig.store_entry(TABLE, 7, 1 << 1);
    blocks(&rig, "SupIOPF", &[]);
    rig.store_entry(TABLE, 7, 0);
    rig.device_with(DEVICE, 1 | 8 << 1 | 1 << 5 | TABLE | 2 << 60);
    blocks(&rig, "IG", &[]);
}

#[test]
fn an_entry_that_holds_something_reserved() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    let fault = [head(2, DEVICE) | DOMAIN | INTERRUPT | PRESENT | RESERVED, SEVEN];
    for (what, bits) in
        [("type 2", 2 << 2), ("type 4", 4 << 2), ("guest mode", 1 << 7), ("bit 24", 1 << 24), ("bit 31", 1 << 31)]
    {
        rig.store_entry(TABLE, 7, entry(0x41, 1) | bits);
        blocks(&rig, what, &[fault]);
        rig.store_entry(TABLE, 7, entry(0x41, 1) | bits | 1 << 1);
        blocks(&rig, what, &[]);
    }
    rig.control(1 << 17);
    let [low, high] = wide(0x41, 1);
    // Guest mode is not enabled by GAMEn.
    for (what, bits) in [("wide, type 2", 2 << 2), ("wide, guest mode", 1 << 7)] {
        rig.store_wide(TABLE, 7, [low | bits, high]);
        blocks(&rig, what, &[fault]);
        rig.store_wide(TABLE, 7, [low | bits | 1 << 1, high]);
        blocks(&rig, what, &[]);
    }
    rig.store_wide(TABLE, 7, [low & !1, high]);
    blocks(&rig, "wide, RemapEn", &[[head(2, DEVICE) | DOMAIN | INTERRUPT, SEVEN]]);
    rig.store_wide(TABLE, 7, [low & !1 | 2, high]);
    blocks(&rig, "wide, SupIOPF", &[]);
}

#[test]
fn a_device_table_entry_that_holds_something_reserved() {
    let rig = Rig::new();
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    let good = 1 | 8 << 1 | TABLE | 2 << 60;
    let illegal = [head(1, DEVICE) | INTERRUPT | RESERVED, SEVEN];
    for (what, bits) in [("bit 52", 1u64 << 52), ("bit 55", 1 << 55), ("bit 59", 1 << 59), ("IntCtl 3", 3 << 60)] {
        rig.device_with(DEVICE, good | bits);
        blocks(&rig, what, &[illegal]);
        rig.device_with(DEVICE, (good | bits | 1 << 5) & !1);
        rig.send(&message(DEVICE, 7));
        assert_eq!(rig.taken(), [(0xfee0_0000, 7)], "{what} in an entry that is not valid");
        rig.invalidate(DEVICE);
    }
    for length in [12, 15] {
        rig.device(DEVICE, TABLE, length);
        blocks(&rig, "IntTabLen", &[[head(1, DEVICE) | INTERRUPT, SEVEN]]);
    }
    rig.device_with(DEVICE, (good | 12 << 1) & !(3 << 60) | 1 << 60);
    rig.send(&message(DEVICE, 7));
    assert_eq!(rig.taken(), [(0xfee0_0000, 7)], "the length of a table that is not used");
}

#[test]
fn tables_that_are_no_memory() {
    let rig = Rig::new();
    rig.device(DEVICE, 0x12_0000, 8);
    blocks(&rig, "table", &[[head(4, DEVICE) | DOMAIN | INTERRUPT | MASTER_ABORT, 0x12_001c]]);
    rig.control(1 << 17);
    blocks(&rig, "wide table", &[[head(4, DEVICE) | DOMAIN | INTERRUPT | MASTER_ABORT, 0x12_0070]]);
    rig.unit().write(offset::DEVICE_TABLE_BASE, 8, 0x4000_0000);
    let entry = 0x4000_0000 + 32 * u64::from(DEVICE);
    blocks(&rig, "device table", &[[head(3, DEVICE) | INTERRUPT | MASTER_ABORT, entry]]);
}

#[test]
fn a_requester_beyond_the_device_table() {
    let rig = Rig::new();
    rig.unit().write(offset::DEVICE_TABLE_BASE, 8, DEVICES);
    // 4 KiB hold 128 entries.
    assert_eq!(rig.send(&message(0x7f, 7)), Delivery::Delivered(1), "its entry is not valid");
    assert_eq!(rig.taken(), [(0xfee0_0000, 7)]);
    assert_eq!(rig.send(&message(0x80, 7)), Delivery::Ignored);
    assert_eq!(rig.taken(), []);
    assert_eq!(rig.events(), [[head(2, 0x80) | INTERRUPT, SEVEN]]);
}

#[test]
fn interrupts_that_a_device_may_not_send() {
    let rig = Rig::new();
    rig.device_with(DEVICE, 1 | 8 << 1 | TABLE);
    blocks(&rig, "IntCtl 0", &[[head(8, DEVICE) | 5 << 57, SEVEN]]);
    rig.device_with(DEVICE, 1 | 8 << 1 | 1 << 5 | TABLE);
    blocks(&rig, "IG concerns page faults only", &[[head(8, DEVICE) | 5 << 57, SEVEN]]);
    rig.device(DEVICE, TABLE, 11);
    for mode in [3u32, 6] {
        assert_eq!(rig.send(&message(DEVICE, mode << 8 | 7)), Delivery::Ignored);
        let address = SEVEN | u64::from(mode) << 2;
        assert_eq!(rig.events(), [[head(8, DEVICE) | 6 << 57, address]], "mode {mode}");
    }
    for mode in [4u32, 5, 7] {
        rig.device(DEVICE, TABLE, 11);
        assert_eq!(rig.send(&message(DEVICE, mode << 8 | 7)), Delivery::Ignored);
        let address = SEVEN | u64::from(mode) << 2;
        assert_eq!(rig.events(), [[head(2, DEVICE) | DOMAIN | INTERRUPT, address]], "mode {mode}");
        rig.device_with(DEVICE, 1 | 11 << 1 | 1 << 5 | TABLE | 2 << 60);
        assert_eq!(rig.send(&message(DEVICE, mode << 8 | 7)), Delivery::Ignored);
        assert_eq!(rig.events(), [[0; 2]; 0], "mode {mode}, IG");
    }
    assert_eq!(rig.taken(), []);
}

#[test]
fn an_event_names_the_interrupt_as_hypertransport_does() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 0);
    let sent = MsiMessage::new(0xfeea_b004, 1 << 15 | 0x1c3).from_device(DeviceId(DEVICE.into()));
    rig.send(&sent);
    // Vector c3, destination ab, logical, EOI, arbitrated.
    assert_eq!(rig.events(), [[head(2, DEVICE) | DOMAIN | INTERRUPT, 0xfd_f8c3_ab64]]);
}

#[test]
fn what_is_not_sent_to_0xfee_is_no_interrupt() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, 0x100_fee0_0000] {
        let sent = MsiMessage::new(address, 7).from_device(DeviceId(DEVICE.into()));
        assert_eq!(rig.send(&sent), Delivery::Ignored, "{address:#x}");
    }
    assert_eq!(rig.taken(), []);
    assert_eq!(rig.events(), [[0; 2]; 0]);
    assert_eq!(rig.unit().blocked(), 5);
}

#[test]
fn a_prepared_message_is_blocked_and_let_through_as_the_tables_say() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
    let fault = [head(2, DEVICE) | DOMAIN | INTERRUPT, SEVEN];
    for _ in 0..2 {
        assert_eq!(rig.remap.fire(target), Delivery::Ignored);
        assert_eq!(rig.events(), [fault], "each of them is logged");
    }
    // What was blocked is not remembered, so no invalidation is needed.
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    assert_eq!(rig.remap.fire(target), Delivery::Delivered(1));
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x41)]);
}
