//! The spec's rows (x86, T1 to T10) and hazards, a register and a table at a time.

mod queue;
mod registers;
mod storm;

use super::{VtdOptions, registers as r, rig::*};
use crate::{
    Delivery, DeviceId, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId,
    chips::x86::{
        ioapic::{CHIP, Effect, IoApic, IoApicOptions, RedirectionEntry},
        lapic::{ApicOptions, ApicSet},
    },
    guest_ram::GuestRamExt,
};

fn both(message: (u64, u32)) -> [Vec<(u64, u32)>; 2] {
    [vec![message], vec![message]]
}

const BLOCKED: [Vec<(u64, u32)>; 2] = [Vec::new(), Vec::new()];

/// What both ways of sending it leave behind: two records, which is all there are.
fn fault(reason: u8, index: u16) -> Vec<(u8, u16, u16)> {
    vec![(reason, index, DEVICE); 2]
}

#[test]
fn t1_without_a_valid_subhandle_the_data_are_ignored() {
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 1));
    for data in [0, 4, 0xffff, u32::MAX] {
        assert_eq!(rig.send(handle(5), data, DEVICE), both(arrives(0x41, 1)), "{data:#x}");
    }
}

/// T10: one block for a device, the data say which of its entries.
#[test]
fn t2_a_valid_subhandle_is_added_to_the_handle() {
    let rig = Rig::remapping();
    rig.set_entry(9, entry(0x42, 1));
    rig.set_entry(8, entry(0x43, 2));
    assert_eq!(rig.send(handle_with_subhandle(5), 4, DEVICE), both(arrives(0x42, 1)));
    assert_eq!(rig.send(handle_with_subhandle(8), 0, DEVICE), both(arrives(0x43, 2)));
}

#[test]
fn t3_an_entry_that_is_not_present_blocks_and_is_recorded() {
    let rig = Rig::remapping();
    rig.set_entry(6, [0x41 << 16, 0]);
    assert_eq!(rig.send(handle(6), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x22, 6));
}

#[test]
fn t4_a_quiet_entry_that_is_not_present_blocks_and_is_not_recorded() {
    let rig = Rig::remapping();
    rig.set_entry(6, [2, 0]);
    assert_eq!(rig.send(handle(6), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), []);
}

#[test]
fn t5_a_sender_is_compared_under_the_qualifier() {
    let rig = Rig::remapping();
    let source = 0x1230u64;
    for (qualifier, ignored) in [(0, 0), (1, 4), (2, 6), (3, 7)] {
        let [low, _] = entry(0x44, 0);
        rig.set_entry(7, [low, source | qualifier << 16 | 1 << 18]);
        for difference in [0, 1, 2, 4, 6, 7, 8, 0x100, 0x8000] {
            rig.submit(&[INVALIDATE_ALL]);
            let requester = source as u16 ^ difference;
            let admitted = difference & !ignored == 0;
            let expected = if admitted { both(arrives(0x44, 0)) } else { BLOCKED };
            assert_eq!(rig.send(handle(7), 0, requester), expected, "{qualifier} {difference:#x}");
            let recorded = if admitted { vec![] } else { vec![(0x26, 7, requester); 2] };
            assert_eq!(rig.faults(), recorded, "{qualifier} {difference:#x}");
        }
    }
}

#[test]
fn t5_a_sender_s_bus_is_compared_with_a_range() {
    let rig = Rig::remapping();
    let [low, _] = entry(0x44, 0);
    // Buses 0x12 to 0x14.
    rig.set_entry(7, [low, 0x1214 | 2 << 18]);
    for (requester, admitted) in
        [(0x11ff, false), (0x1200, true), (0x13a5, true), (0x14ff, true), (0x1500, false), (0xffff, false)]
    {
        let expected = if admitted { both(arrives(0x44, 0)) } else { BLOCKED };
        assert_eq!(rig.send(handle(7), 0, requester), expected, "{requester:#x}");
        assert_eq!(rig.faults().is_empty(), admitted, "{requester:#x}");
    }
}

/// T24 for VT-d: what one sender may do is not remembered for another.
#[test]
fn t5_the_check_holds_for_each_sender_of_a_remembered_entry() {
    let rig = Rig::remapping();
    let [low, _] = entry(0x44, 0);
    rig.set_entry(7, [low, u64::from(DEVICE) | 1 << 18]);
    assert_eq!(rig.send(handle(7), 0, DEVICE), both(arrives(0x44, 0)));
    assert_eq!(rig.send(handle(7), 0, 0x20), BLOCKED);
    assert_eq!(rig.faults(), vec![(0x26, 7, 0x20); 2]);
    let anonymous = MsiMessage::new(handle(7), 0);
    assert_eq!(rig.unit.send(&anonymous).unwrap(), Delivery::Ignored);
    assert_eq!(rig.unit.send(&anonymous.from_device(DeviceId(0x1_0018))).unwrap(), Delivery::Ignored);
    assert_eq!(rig.faults(), vec![(0x26, 7, 0xffff); 2], "no requester of this segment");
    assert_eq!(rig.send(handle(7), 0, DEVICE), both(arrives(0x44, 0)));
}

#[test]
fn t6_an_index_beyond_the_table_blocks() {
    let rig = Rig::remapping();
    rig.set_entry(ENTRIES - 1, entry(0x41, 0));
    assert_eq!(rig.send(handle(ENTRIES - 1), 0, DEVICE), both(arrives(0x41, 0)));
    assert_eq!(rig.send(handle(ENTRIES), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x21, 256));
    assert_eq!(rig.send(handle(0xffff), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x21, 0xffff));
    assert_eq!(rig.send(handle_with_subhandle(0xffff), 0xffff, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x21, 0xfffe), "the index has a bit more than its field in the record");
}

/// QEMU 7.2 delivers it: it is no oracle here.
#[test]
fn t7_a_message_in_compatibility_format_needs_the_guest_s_leave() {
    let rig = Rig::remapping();
    let (address, data) = (0xfee0_1000, 0x45);
    assert_eq!(rig.send(address, data, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x25, 0));
    rig.command(REMAP | USE_QUEUE | COMPATIBILITY);
    assert_eq!(rig.send(address, data, DEVICE), both((address, data)));
    rig.command(REMAP | USE_QUEUE);
    assert_eq!(rig.send(address, data, DEVICE), BLOCKED);
    rig.faults();
    // In extended mode nothing helps.
    rig.unit.write(r::TABLE_ADDRESS, 8, TABLE | 1 << 11 | 7);
    rig.command(REMAP | USE_QUEUE | COMPATIBILITY | SET_TABLE);
    assert_eq!(rig.send(address, data, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x25, 0));
}

#[test]
fn t8_reserved_bits_of_a_message_block() {
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 0));
    for data in [0x1_0000, 0x8000_0000] {
        assert_eq!(rig.send(handle_with_subhandle(5), data, DEVICE), BLOCKED);
        assert_eq!(rig.faults(), fault(0x20, 5), "{data:#x}");
    }
}

#[test]
fn t8_a_table_without_memory_blocks() {
    let rig = Rig::remapping();
    // The last entry of the table is the first behind the memory's end.
    rig.unit.write(r::TABLE_ADDRESS, 8, (RAM as u64 - 0x1000) | 8);
    rig.command(REMAP | USE_QUEUE | SET_TABLE);
    rig.ram.write_le(RAM as u64 - 16, entry(0x41, 0)[0]).unwrap();
    assert_eq!(rig.send(handle(255), 0, DEVICE), both(arrives(0x41, 0)));
    assert_eq!(rig.send(handle(256), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x23, 256));
}

#[test]
fn t8_reserved_bits_of_an_entry_block() {
    let rig = Rig::remapping();
    let [low, _] = entry(0x41, 1);
    let mut reserved: Vec<[u64; 2]> = (12..15).chain(24..40).chain(48..64).map(|bit| [low | 1 << bit, 0]).collect();
    reserved.extend((20..64).map(|bit| [low, 1 << bit]));
    reserved.extend([3, 6].map(|mode| [low | mode << 5, 0]));
    reserved.push([low, 3 << 18]);
    for entry in reserved {
        rig.set_entry(5, entry);
        assert_eq!(rig.send(handle(5), 0, DEVICE), BLOCKED, "{entry:x?}");
        assert_eq!(rig.faults(), fault(0x24, 5), "{entry:x?}");
    }
}

#[test]
fn every_field_of_an_entry_arrives() {
    let rig = Rig::remapping();
    let [low, _] = entry(0x41, 0xa5);
    let (address, data) = arrives(0x41, 0xa5);
    let cases = [
        (low | 1 << 2, address | 1 << 2, data),
        (low | 1 << 3, address | 1 << 3, data),
        (low | 1 << 4, address, data | 1 << 15),
        (low | 0xf << 8, address, data),
        (low | 2, address, data),
    ];
    let modes = [1, 2, 4, 5, 7].map(|mode: u32| (low | u64::from(mode) << 5, address, data | mode << 8));
    for (low, address, data) in cases.into_iter().chain(modes) {
        rig.set_entry(5, [low, 0]);
        rig.submit(&[INVALIDATE_ALL]);
        assert_eq!(rig.send(handle(5), 0, DEVICE), both((address, data)), "{low:#x}");
    }
    assert_eq!(rig.faults(), []);
}

#[test]
fn t9_a_quiet_entry_silences_what_is_found_in_it_and_nothing_else() {
    let rig = Rig::remapping();
    let quiet = 2;
    let [low, _] = entry(0x41, 0);
    for (index, entry) in [
        (1, [quiet, 0]),
        (2, [low | quiet | 1 << 12, 0]),
        (3, [low | quiet, 0x99 | 1 << 18]),
        (4, [low | quiet | 1 << 15, 1 << 32]),
    ] {
        rig.set_entry(index, entry);
        assert_eq!(rig.send(handle(index), 0, DEVICE), BLOCKED, "{index}");
        assert_eq!(rig.faults(), [], "{index}");
    }
    assert_eq!(rig.send(handle_with_subhandle(1), 0x1_0000, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x20, 1));
    assert_eq!(rig.send(handle(ENTRIES), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x21, 256));
}

#[test]
fn an_address_that_is_no_interrupt_does_not_pass_a_unit_that_remaps() {
    let rig = Rig::new(VtdOptions::default());
    let (address, data) = (0x1_fee0_0000, 0x41);
    assert_eq!(rig.send(address, data, DEVICE), both((address, data)), "not yet");
    rig.unit.write(r::TABLE_ADDRESS, 8, TABLE | 7);
    rig.command(SET_TABLE);
    rig.command(REMAP | COMPATIBILITY);
    for address in [0, 0xfed0_0000, 0xfef0_0010, 0x1_fee0_0010, address] {
        assert_eq!(rig.send(address, data, DEVICE), BLOCKED, "{address:#x}");
    }
    assert_eq!(rig.faults(), []);
}

#[test]
fn extended_mode_has_32_bits_of_destination() {
    let rig = Rig::remapping();
    rig.unit.write(r::TABLE_ADDRESS, 8, TABLE | 1 << 11 | 7);
    rig.command(REMAP | USE_QUEUE | SET_TABLE);
    rig.set_entry(5, [1 | 0x41 << 16 | 0x0102_0304 << 32, 0]);
    assert_eq!(rig.send(handle(5), 0, DEVICE), both((0x0102_0300_fee0_4000, 0x4041)));
    let plain = Rig::new(VtdOptions { extended_mode: false, ..VtdOptions::default() });
    plain.unit.write(r::TABLE_ADDRESS, 8, TABLE | 1 << 11 | 7);
    assert_eq!(plain.unit.read(r::TABLE_ADDRESS, 8), TABLE | 7, "where it is not offered, it cannot be set");
}

/// Hazard H18, T10: an entry is re-targeted, its message never changes, and the invalidation makes it so.
#[test]
fn h18_a_re_targeted_entry_is_used_when_its_invalidation_has_completed() {
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 0));
    let message = MsiMessage::new(handle(5), 0);
    let target = rig.unit.prepare(&message).unwrap();
    rig.unit.fire(target);
    assert_eq!(rig.sink.take(), [arrives(0x41, 0)]);
    rig.set_entry(5, entry(0x52, 1));
    rig.unit.fire(target);
    assert_eq!(rig.sink.take(), [arrives(0x41, 0)], "remembered");
    rig.submit(&[invalidate(5, 0), wait(7)]);
    assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(7));
    rig.unit.fire(target);
    assert_eq!(rig.sink.take(), [arrives(0x52, 1)]);
}

/// Hazard H37.
#[test]
fn h37_a_freed_entry_blocks_once_its_invalidation_has_completed() {
    let rig = Rig::remapping();
    rig.set_entry(5, entry(0x41, 0));
    let target = rig.unit.prepare(&MsiMessage::new(handle(5), 0)).unwrap();
    assert_eq!(rig.unit.fire(target), Delivery::Delivered(1));
    rig.set_entry(5, [0, 0]);
    rig.submit(&[invalidate(5, 0), wait(1)]);
    rig.sink.take();
    assert_eq!(rig.unit.fire(target), Delivery::Ignored);
    assert_eq!(rig.sink.take(), []);
    assert_eq!(rig.faults(), [(0x22, 5, 0xffff)]);
}

#[test]
fn what_was_prepared_follows_the_enable_bit() {
    let rig = Rig::new(VtdOptions::default());
    let targets = [handle(5), 0xfee0_3000].map(|address| rig.unit.prepare(&MsiMessage::new(address, 0x61)).unwrap());
    let fire = || {
        targets.map(|target| {
            rig.unit.fire(target);
            rig.sink.take()
        })
    };
    let unmapped = [vec![(handle(5), 0x61)], vec![(0xfee0_3000, 0x61)]];
    assert_eq!(fire(), unmapped);
    rig.set_entry(5, entry(0x41, 0));
    rig.unit.write(r::TABLE_ADDRESS, 8, TABLE | 7);
    rig.command(SET_TABLE);
    assert_eq!(fire(), unmapped);
    rig.command(REMAP);
    assert_eq!(fire(), [vec![arrives(0x41, 0)], vec![]]);
    rig.command(REMAP | COMPATIBILITY);
    assert_eq!(fire(), [vec![arrives(0x41, 0)], vec![(0xfee0_3000, 0x61)]]);
    rig.command(0);
    assert_eq!(fire(), unmapped);
}

const DESCRIPTOR: u64 = 0x2_0040;

fn posted_entry(vector: u8, urgent: bool) -> [u64; 2] {
    [1 | u64::from(urgent) << 14 | 1 << 15 | u64::from(vector) << 16 | DESCRIPTOR << 32, DESCRIPTOR >> 32 << 32]
}

fn control(outstanding: bool, suppress: bool, vector: u8, destination: u32) -> u64 {
    u64::from(outstanding) | u64::from(suppress) << 1 | u64::from(vector) << 16 | u64::from(destination) << 32
}

#[test]
fn a_posted_interrupt_is_requested_and_notified_of_once() {
    let rig = Rig::remapping();
    rig.set_entry(5, posted_entry(0xb3, false));
    rig.ram.write_le(DESCRIPTOR + 32, control(false, false, 0xf2, 0x0300)).unwrap();
    let target = rig.unit.prepare(&MsiMessage::new(handle(5), 0)).unwrap();
    assert_eq!(rig.unit.fire(target), Delivery::Delivered(1));
    assert_eq!(rig.sink.take(), [arrives(0xf2, 3)]);
    assert_eq!(rig.ram.read_le::<u64>(DESCRIPTOR + 16), Ok(1 << (0xb3 - 128)));
    assert_eq!(rig.ram.read_le::<u64>(DESCRIPTOR + 32), Ok(control(true, false, 0xf2, 0x0300)));
    assert_eq!(rig.unit.fire(target), Delivery::Coalesced);
    assert_eq!(rig.sink.take(), [], "one is outstanding");
    // The CPU takes the requests.
    rig.ram.write_le(DESCRIPTOR + 16, 0u64).unwrap();
    assert_eq!(rig.unit.fire(target), Delivery::Delivered(1), "requested, though nobody is told");
    assert_eq!(rig.sink.take(), []);
}

#[test]
fn notifications_can_be_suppressed_unless_the_entry_is_urgent() {
    for (urgent, told) in [(false, false), (true, true)] {
        let rig = Rig::remapping();
        rig.set_entry(5, posted_entry(0x31, urgent));
        rig.ram.write_le(DESCRIPTOR + 32, control(false, true, 0xf2, 0)).unwrap();
        rig.unit.send(&MsiMessage::new(handle(5), 0)).unwrap();
        assert_eq!(rig.ram.read_le::<u64>(DESCRIPTOR), Ok(1 << 0x31));
        assert_eq!(rig.sink.take(), if told { vec![arrives(0xf2, 0)] } else { vec![] });
        assert_eq!(rig.ram.read_le::<u64>(DESCRIPTOR + 32), Ok(control(told, true, 0xf2, 0)));
    }
}

#[test]
fn a_posted_entry_whose_descriptor_is_wrong_blocks() {
    let rig = Rig::remapping();
    rig.set_entry(5, posted_entry(0x31, false));
    let words: Vec<u64> = (4..8).collect();
    for word in &words {
        for bit in if *word == 4 { vec![2, 15, 24, 31] } else { vec![0, 63] } {
            rig.ram.write_le(DESCRIPTOR + 8 * word, 1u64 << bit).unwrap();
            assert_eq!(rig.send(handle(5), 0, DEVICE), BLOCKED);
            assert_eq!(rig.faults(), fault(0x28, 5), "word {word} bit {bit}");
            assert_eq!(rig.ram.read_le::<u64>(DESCRIPTOR), Ok(0), "nothing was requested");
            rig.ram.write_le(DESCRIPTOR + 8 * word, 0u64).unwrap();
        }
    }
    let [low, _] = posted_entry(0x31, false);
    rig.set_entry(5, [low, 1 << 32]);
    rig.submit(&[INVALIDATE_ALL]);
    assert_eq!(rig.send(handle(5), 0, DEVICE), BLOCKED);
    assert_eq!(rig.faults(), fault(0x27, 5));
}

#[test]
fn reserved_bits_of_a_posted_entry_block_and_so_does_posting_that_is_not_offered() {
    let rig = Rig::remapping();
    let [low, high] = posted_entry(0x31, false);
    for bit in (2..8).chain(12..14).chain(24..38) {
        rig.set_entry(5, [low | 1 << bit, high]);
        assert_eq!(rig.send(handle(5), 0, DEVICE), BLOCKED, "bit {bit}");
        assert_eq!(rig.faults(), fault(0x24, 5), "bit {bit}");
    }
    let plain = Rig::new(VtdOptions { posted: false, ..VtdOptions::default() });
    plain.unit.write(r::TABLE_ADDRESS, 8, TABLE | 7);
    plain.command(SET_TABLE);
    plain.command(REMAP);
    plain.set_entry(5, [low, high]);
    assert_eq!(plain.unit.send(&MsiMessage::new(handle(5), 0)).unwrap(), Delivery::Ignored);
    assert_eq!(plain.unit.read(r::FAULT_RECORDS + 8, 8) >> 32, 0x8000_0024);
}

/// The last row of the spec's table: an IOAPIC entry in remappable format. The IOAPIC hears the end of the vector that its
/// own entry names.
#[test]
fn an_ioapic_entry_in_remappable_format() {
    let apics = ApicSet::new(2, std::sync::Arc::new(()), ApicOptions::default());
    let mut cpu = apics.local(VcpuId(1)).unwrap();
    cpu.write(0xf0, 0x1ff);
    let ram = std::sync::Arc::new(crate::guest_ram::RamBlock::new(0, 0x20_0000));
    let unit = std::sync::Arc::new(super::VtdUnit::new(VtdOptions::default(), apics, ram.clone()));
    unit.write(r::TABLE_ADDRESS, 8, TABLE | 0xf);
    unit.write(r::GLOBAL_COMMAND, 4, SET_TABLE.into());
    unit.write(r::GLOBAL_COMMAND, 4, REMAP.into());
    let bdf = DeviceId(0xf0f8);
    let options = IoApicOptions { device_id: Some(bdf), ..IoApicOptions::default() };
    let ioapic = IoApic::new(unit.clone(), options);
    // Index 0x9234: bits 14:0 in 63:49, bit 15 in bit 11; level, vector 0x41 as in the table.
    let index = 0x9234u64;
    let redirection = (index & 0x7fff) << 49 | 1 << 48 | (index >> 15) << 11 | 1 << 15 | 0x41;
    let write = |level: u64| {
        let at = TABLE + 16 * index;
        ram.write_le(at, 1 | level << 4 | 0x41 << 16 | 1u64 << 40).unwrap();
        ram.write_le(at + 8, u64::from(bdf.0) | 1 << 18).unwrap();
    };
    write(1);
    assert_eq!(ioapic.write_entry(4, RedirectionEntry::from_bits(redirection)), Effect::None);
    assert_eq!(ioapic.set(CHIP, 4, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(cpu.acknowledge(), Some(0x41));
    let eoi = cpu.eoi().unwrap();
    assert!(eoi.level, "as the entry of the table says");
    let ended = ioapic.end(eoi.vector);
    assert_eq!(ended[..], [4]);
    ioapic.set(CHIP, 4, LineSource::USER, false);
    ioapic.reevaluate(CHIP, &ended);

    // Linux keeps its entries edge and ends the interrupt at the IOAPIC itself.
    write(0);
    unit.write(r::GLOBAL_COMMAND, 4, (REMAP | SET_TABLE).into());
    assert_eq!(ioapic.set(CHIP, 4, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(ioapic.set(CHIP, 4, LineSource::USER, true), Delivery::Ignored, "remote IRR");
    assert_eq!(cpu.acknowledge(), Some(0x41));
    assert!(!cpu.eoi().unwrap().level);
    match ioapic.write(crate::chips::x86::ioapic::EOI, 0x41) {
        Effect::Ended(pins) => ioapic.reevaluate(CHIP, &pins),
        other => panic!("{other:?}"),
    }
    assert_eq!(cpu.acknowledge(), Some(0x41), "the line is still high");
}
