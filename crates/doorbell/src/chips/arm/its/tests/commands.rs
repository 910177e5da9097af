//! Each command, and each of its errors.

use super::*;
use crate::{
    chips::arm::its::command::{Command, CommandError, Event},
    guest_ram::GuestRamExt,
};

#[test]
fn commands_are_laid_out_as_in_the_manual() {
    let decode = |words: Words| {
        let mut bytes = [0; 32];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        Command::decode(&bytes)
    };
    let event = Event { device: 0x89ab_cdef, event: 0x1234_5678 };
    let at = |opcode: u64| [0x89ab_cdef_ffff_ff00 | opcode, 0xdead_beef_1234_5678, u64::MAX, u64::MAX];
    assert_eq!(decode(at(0x01)), Some(Command::Movi { event, icid: 0xffff }));
    assert_eq!(decode(at(0x03)), Some(Command::Int(event)));
    assert_eq!(decode(at(0x04)), Some(Command::Clear(event)));
    assert_eq!(decode(at(0x05)), Some(Command::Sync));
    let mapd = Command::Mapd { device: event.device, event_bits: 25, itt: 0x000f_ffff_ffff_ff00, valid: true };
    assert_eq!(decode(at(0x08)), Some(mapd));
    assert_eq!(decode(at(0x09)), Some(Command::Mapc { icid: 0xffff, redistributor: (1 << 35) - 1, valid: true }));
    assert_eq!(decode(at(0x0a)), Some(Command::Mapti { event, lpi: 0xdead_beef, icid: 0xffff }));
    assert_eq!(decode(at(0x0b)), Some(Command::Mapti { event, lpi: 0x1234_5678, icid: 0xffff }));
    assert_eq!(decode(at(0x0c)), Some(Command::Inv(event)));
    assert_eq!(decode(at(0x0d)), Some(Command::Invall { icid: 0xffff }));
    assert_eq!(decode([0x0e, 0, 5 << 16, 7 << 16]), Some(Command::Movall { from: 5, to: 7 }));
    assert_eq!(decode(at(0x0f)), Some(Command::Discard(event)));
    for opcode in (0..=0xff).filter(|opcode| !matches!(opcode, 1 | 3..=5 | 8..=15)) {
        assert_eq!(decode([opcode, 0, 0, 0]), None, "{opcode:#x}");
    }
}

#[test]
fn codes_are_the_pages() {
    let codes: Vec<u32> = CommandError::ALL.iter().map(|error| error.code()).collect();
    let expected = [
        0x01_0107, 0x01_0109, 0x01_0307, 0x01_0507, 0x01_0801, 0x01_0802, 0x01_0902, 0x01_0903, 0x01_0a04, 0x01_0a05,
        0x01_0a06, 0x01_0c07, 0x01_0d09, 0x01_0e01, 0x01_0f07,
    ];
    assert_eq!(codes, expected);
}

/// I6: what each mistake is counted as; none of them stalls (`Rig::run` looks).
#[test]
fn every_mistake_is_counted_by_its_code_and_does_nothing() {
    let beyond_table = 0x2000;
    for (command, code) in [
        (movi(DEVICE, 9, 0), 0x01_0107),
        (movi(99, 3, 0), 0x01_0107),
        (movi(DEVICE, 3, 9), 0x01_0109),
        (int(9), 0x01_0307),
        (clear(9), 0x01_0507),
        (event_command(0x04, 0x1_0008, 3), 0x01_0507),
        (event_command(0x04, DEVICE, 0x1_0003), 0x01_0507),
        (mapd(beyond_table, 5, ITT, true), 0x01_0801),
        (mapd(beyond_table, 5, ITT, false), 0x01_0801),
        (mapd(0x1_0008, 5, ITT, false), 0x01_0801),
        (mapd(DEVICE, 17, ITT, true), 0x01_0802),
        (mapc(0, 2, true), 0x01_0902),
        (mapc(0, 0x1_0000, true), 0x01_0902),
        (mapc(0x2000, 0, true), 0x01_0903),
        (mapti(9, 0, 8195, 0), 0x01_0a04),
        (mapti(0x1_0008, 0, 8195, 0), 0x01_0a04),
        (mapti(DEVICE, 40, 8201, 0), 0x01_0a05),
        (mapti(DEVICE, 6, 100, 0), 0x01_0a06),
        (mapti(DEVICE, 6, 8191, 0), 0x01_0a06),
        (mapti(DEVICE, 6, 0x1_0000, 0), 0x01_0a06),
        (mapti(DEVICE, 6, 8201, 0x2000), 0x01_0903),
        ([0x0b | u64::from(DEVICE) << 32, 6, 0, 0], 0x01_0a06),
        (inv(9), 0x01_0c07),
        ([0x0d, 0, 9, 0], 0x01_0d09),
        (movall(0, 2), 0x01_0e01),
        (movall(2, 0), 0x01_0e01),
        (discard(9), 0x01_0f07),
    ] {
        for rig in [Rig::spec(), Rig::kvm()] {
            rig.bring_up();
            rig.map_both();
            rig.ring(3).unwrap();
            let lpis = rig.unit.lpis.lpis.lock().clone();
            rig.run(&[command]);
            assert_eq!(rig.errors(), [(code, 1)], "{command:x?}");
            assert_eq!(*rig.unit.lpis.lpis.lock(), lpis, "{command:x?}");
            assert_eq!((rig.ring(3), rig.ring(4)), (Ok(1), Ok(1)), "{command:x?}");
        }
    }
}

#[test]
fn what_is_no_command_is_counted() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[[0x7f, 0, 0, 0], [0, 0, 0, 0], [0x25, 0, 0, 0]]);
    let counters = rig.unit.counters();
    assert_eq!((counters.unknown, counters.commands), (3, 0));
}

#[test]
fn mapi_maps_the_lpi_of_the_events_number() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 1, true), mapd(DEVICE, 16, ITT, true), [0x0b | u64::from(DEVICE) << 32, 8300, 0, 0]]);
    assert_eq!(rig.ring(8300), Ok(1));
    assert_eq!(rig.pending(), [(1, 8300)]);
}

#[test]
fn inv_and_invall_ask_for_the_configuration() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.run(&[inv(4), [0x0d, 0, 1, 0]]);
    assert_eq!(*rig.unit.lpis.invalidated.lock(), [Ok(8195), Ok(8200), Err(1)], "I14");
}

/// H30: tables, and what is in them, outside of memory.
#[test]
fn what_has_no_entry_in_memory_cannot_be_mapped() {
    let rig = Rig::spec();
    rig.write(offset::CBASER, VALID | QUEUE | 15);
    // The last page of both tables is beyond the end of memory.
    let end = RAM + RAM_BYTES as u64;
    rig.write(offset::BASER0, VALID | (end - 0x1000) | 1);
    rig.write(offset::BASER1, VALID | (end - 0x1000) | 1);
    rig.write(offset::CTLR, 1);
    rig.run(&[mapd(0x1ff, 6, end - 0x100, true), mapd(0x200, 5, ITT, true), mapd(0x400, 5, ITT, true)]);
    assert_eq!(rig.errors(), [(0x01_0801, 2)]);
    rig.run(&[mapc(0x1ff, 0, true), mapc(0x200, 0, true)]);
    assert_eq!(rig.errors(), [(0x01_0801, 2), (0x01_0903, 1)]);
    rig.run(&[mapti(0x1ff, 31, 8192, 0x1ff), mapti(0x1ff, 32, 8193, 0x1ff)]);
    assert_eq!(rig.errors(), [(0x01_0801, 2), (0x01_0903, 1), (0x01_0a05, 1)]);
    assert_eq!((rig.signal(0x1ff, 31), rig.signal(0x1ff, 32)), (Ok(1), Ok(0)));
}

#[test]
fn a_device_table_can_have_two_levels() {
    for (size, page) in [(0u64, 0x1000u64), (1, 0x4000), (2, 0x1_0000)] {
        let rig = Rig::spec();
        rig.write(offset::CBASER, VALID | QUEUE | 15);
        rig.write(offset::BASER0, VALID | 1 << 62 | DEVICES | size << 8);
        rig.write(offset::BASER1, VALID | COLLECTIONS | PAGES_64K);
        rig.write(offset::CTLR, 1);
        let in_page = (page / 8) as u32;
        // The second page has memory, the third one is not there, the fourth one is outside of memory.
        rig.ram.write_le(DEVICES + 8, VALID | ITT).unwrap();
        rig.ram.write_le(DEVICES + 16, ITT).unwrap();
        rig.ram.write_le(DEVICES + 24, VALID | 1 << 40).unwrap();
        for (device, errors) in [(2 * in_page - 1, 0), (2 * in_page, 1), (3 * in_page, 2), (0, 3)] {
            rig.run(&[mapd(device, 5, ITT + 0x2_0000, true)]);
            assert_eq!(rig.unit.counters().errors_of(CommandError::MapdDevice), errors, "page size {size}");
        }
        if let Some(far) = in_page.checked_mul(in_page).filter(|device| *device <= 0xffff) {
            rig.run(&[mapd(far, 5, ITT, true)]);
            assert_eq!(rig.unit.counters().errors_of(CommandError::MapdDevice), 4, "beyond the first level");
        }
    }
}

/// H31: the guest's memory map changes while commands run: each sees the old or the new one.
#[test]
fn a_memory_map_swapped_under_commands_is_the_old_or_the_new_one() {
    use crate::guest_ram::RamBlock;
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(DEVICE, 5, ITT, true)]);
    let begin = rig.read(offset::CWRITER);
    let with = |lpi| {
        let ram = std::sync::Arc::new(RamBlock::new(RAM, RAM_BYTES));
        for at in 0..1000u64 {
            for (word, value) in (0..).zip(mapti(DEVICE, 3, lpi, 0)) {
                ram.write_le(QUEUE + begin + 32 * at + 8 * word, value).unwrap();
            }
        }
        ram
    };
    let (old, new) = (with(8195), with(8196));
    rig.ram.swap(old.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| rig.write(offset::CWRITER, begin + 32 * 1000));
        for _ in 0..200 {
            rig.ram.swap(new.clone());
            rig.ram.swap(old.clone());
        }
    });
    assert_eq!(rig.read(offset::CREADR), begin + 32 * 1000);
    let counters = rig.unit.counters();
    assert_eq!((counters.commands, counters.errors.len()), (1002, 0));
    assert_eq!(rig.ring(3), Ok(1));
    assert!(matches!(rig.pending()[..], [(0, 8195 | 8196)]));
}

#[test]
fn a_mapti_whose_configuration_is_not_in_memory_maps_nothing() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(DEVICE, 5, ITT, true)]);
    rig.unit.lpis.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.run(&[mapti(DEVICE, 3, 8195, 0)]);
    assert_eq!(rig.unit.counters().unreadable, 1);
    assert_eq!(rig.ring(3), Ok(0));
}

#[test]
fn there_is_room_for_so_many_events_and_it_comes_back() {
    use crate::chips::arm::{Behaviour, Identity, its::ItsOptions, its::bank::Nature};
    let options = ItsOptions { max_events: 64, ..ItsOptions::default() };
    let rig = Rig::new(Nature { identity: Identity::Doorbell, behaviour: Behaviour::SPEC }, &options);
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(1, 16, ITT, true), mapd(2, 4, ITT + 0x8_0000, true)]);
    // Four groups of 16, far from each other.
    rig.run(&[0, 0x1000, 0x8000, 0xfff0].map(|event| mapti(1, event, 8192 + event / 16, 0)));
    rig.run(&[mapti(2, 0, 9000, 0), mapti(1, 16, 9001, 0), mapti(1, 15, 9002, 0)]);
    assert_eq!((rig.unit.counters().full, rig.unit.counters().errors.len()), (2, 0));
    assert_eq!((rig.signal(2, 0), rig.signal(1, 16), rig.signal(1, 15)), (Ok(0), Ok(0), Ok(1)));
    assert_eq!(rig.signal(1, 0xfff0), Ok(1));
    for round in 0..10 {
        rig.run(&[mapd(1, 16, ITT, false), mapti(2, 0, 9000, 0)]);
        assert_eq!((rig.signal(2, 0), rig.signal(1, 0xfff0)), (Ok(1), Ok(0)));
        rig.run(&[mapd(2, 4, ITT + 0x8_0000, true), mapd(1, 16, ITT, true)]);
        rig.run(&[0, 0x1000, 0x8000, 0xfff0].map(|event| mapti(1, event, 8192 + event / 16, 0)));
        assert_eq!((rig.signal(2, 0), rig.signal(1, 0xfff0)), (Ok(0), Ok(1)), "round {round}");
    }
    assert_eq!(rig.unit.counters().full, 2, "what is given back can be had again");
}

#[test]
fn events_of_devices_of_every_size_are_found() {
    for bits in 1..=16 {
        let rig = Rig::spec();
        rig.bring_up();
        let last = (1 << bits) - 1;
        rig.run(&[mapc(0, 0, true), mapd(DEVICE, bits, ITT, true), mapti(DEVICE, last, 8192, 0)]);
        assert_eq!(rig.ring(last), Ok(1), "{bits} bits");
        assert_eq!(rig.ring(last ^ 1), Ok(0));
        assert_eq!(rig.ring((1 << bits) | last), Ok(0));
    }
}
