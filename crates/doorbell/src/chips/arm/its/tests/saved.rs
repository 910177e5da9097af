//! The tables in guest memory, byte for byte; what is restored, and what is refused.

use super::*;
use crate::{
    Errno, Error,
    chips::arm::its::{ItsOptions, ItsState},
    guest_ram::{GuestRamExt, RamBlock},
};

fn errno(result: Result<(), Error>) -> Result<(), Errno> {
    result.map_err(|error| error.errno())
}

/// Another ITS with the same memory.
fn another(rig: &Rig) -> Rig {
    let other = if rig.unit.nature().behaviour == crate::chips::arm::Behaviour::KVM { Rig::kvm() } else { Rig::spec() };
    let copy = RamBlock::new(RAM, RAM_BYTES);
    let mut bytes = vec![0; RAM_BYTES];
    crate::guest_ram::GuestRam::read(&*rig.ram, RAM, &mut bytes).unwrap();
    crate::guest_ram::GuestRam::write(&copy, RAM, &bytes).unwrap();
    other.ram.swap(std::sync::Arc::new(copy));
    other
}

#[test]
fn the_pages_example_byte_for_byte() {
    for rig in [Rig::spec(), Rig::kvm()] {
        rig.bring_up();
        rig.map_both();
        rig.run(&[movi(DEVICE, 4, 0), movall(0, 1)]);
        rig.unit.save_tables().unwrap();
        assert_eq!(rig.load(DEVICES + 64), 0x8000_0000_0800_8004, "save.device_8");
        assert_eq!(rig.load(ITT + 24), 0x0001_0000_2003_0000, "save.event_3");
        assert_eq!(rig.load(ITT + 32), 0x0000_0000_2008_0000, "save.event_4");
        assert_eq!(rig.load(COLLECTIONS), 0x8000_0000_0000_0000, "save.collection_0");
        assert_eq!(rig.load(COLLECTIONS + 8), 0x8000_0000_0001_0001, "save.collection_1");
        assert_eq!(rig.load(COLLECTIONS + 16), 0, "save.collection_2");
    }
}

#[test]
fn a_restored_its_is_the_saved_one() {
    for rig in [Rig::spec(), Rig::kvm()] {
        rig.bring_up();
        rig.map_both();
        rig.run(&[mapti(DEVICE, 30, 8230, 9), mapd(0x1000, 16, ITT + 0x2_0000, true), mapti(0x1000, 0xffff, 9000, 1)]);
        rig.unit.save_tables().unwrap();
        let state = rig.unit.save();
        let other = another(&rig);
        other.unit.restore(&state).unwrap();
        assert_eq!(other.unit.save(), state);
        for event in 0..32 {
            assert_eq!(other.ring(event), rig.ring(event), "event {event}");
        }
        assert_eq!(other.signal(0x1000, 0xffff), rig.signal(0x1000, 0xffff));
        assert_eq!(other.pending(), rig.pending());
        other.run(&[mapc(9, 0, true)]);
        assert_eq!(other.ring(30), Ok(1), "its collection was saved as one that is not mapped");
        // And what it saves is the same.
        let again = another(&rig);
        again.unit.restore(&state).unwrap();
        again.unit.save_tables().unwrap();
        for at in (0..RAM_BYTES as u64).step_by(8) {
            assert_eq!(again.load(RAM + at), rig.load(RAM + at), "at {at:#x}");
        }
    }
}

#[test]
fn distances_are_cut_to_their_fields() {
    let rig = Rig::spec();
    rig.write(offset::CBASER, VALID | QUEUE | 15);
    let devices = RAM + 0x20_0000;
    rig.write(offset::BASER0, VALID | devices | PAGES_64K | 7);
    rig.write(offset::BASER1, VALID | COLLECTIONS | PAGES_64K);
    rig.write(offset::CTLR, 1);
    rig.run(&[mapc(0, 0, true), mapd(1, 16, ITT, true), mapd(0xffff, 1, ITT + 0x10_0000, true)]);
    rig.run(&[mapti(1, 0, 8192, 0), mapti(1, 0xffff, 8193, 0)]);
    rig.unit.save_tables().unwrap();
    assert_eq!(rig.load(devices + 8) >> 49 & 0x3fff, 0x3fff, "65534 devices ahead");
    assert_eq!(rig.load(devices + 8 * 0xffff) >> 49, 1 << 14, "the last one");
    assert_eq!(rig.load(ITT) >> 48, 0xffff, "65535 events ahead");
    let other = another(&rig);
    other.unit.restore(&rig.unit.save()).unwrap();
    assert_eq!((other.signal(1, 0), other.signal(1, 0xffff)), (Ok(1), Ok(1)));
    other.run(&[mapti(0xffff, 1, 8194, 0)]);
    assert_eq!(other.signal(0xffff, 1), Ok(1));
}

#[test]
fn two_levels_are_saved_and_restored() {
    let rig = Rig::spec();
    rig.write(offset::CBASER, VALID | QUEUE | 15);
    rig.write(offset::BASER0, VALID | 1 << 62 | DEVICES);
    rig.write(offset::BASER1, VALID | COLLECTIONS | PAGES_64K);
    rig.write(offset::CTLR, 1);
    let page = |n: u64| RAM + 0x20_0000 + n * 0x1000;
    for (first, to) in [(0, 0), (3, 1), (7, 2)] {
        rig.ram.write_le(DEVICES + 8 * first, VALID | page(to)).unwrap();
    }
    let devices = [511, 3 * 512, 3 * 512 + 5, 7 * 512 + 511];
    rig.run(&[mapc(0, 0, true)]);
    for (at, device) in devices.into_iter().enumerate() {
        rig.run(&[mapd(device, 1, ITT + 0x100 * at as u64, true), mapti(device, 1, 8192 + at as u32, 0)]);
    }
    rig.unit.save_tables().unwrap();
    assert_eq!(rig.load(page(0) + 511 * 8) >> 49, 1 << 14 | 1025, "to the next page but two");
    let other = another(&rig);
    other.unit.restore(&rig.unit.save()).unwrap();
    for device in devices {
        assert_eq!(other.signal(device, 1), Ok(1), "device {device}");
    }
}

/// H28.
#[test]
fn what_was_unmapped_after_a_save_does_not_come_back() {
    for rig in [Rig::spec(), Rig::kvm()] {
        rig.bring_up();
        rig.map_both();
        rig.unit.save_tables().unwrap();
        rig.run(&[discard(3)]);
        rig.unit.save_tables().unwrap();
        let other = another(&rig);
        other.unit.restore(&rig.unit.save()).unwrap();
        assert_eq!((other.ring(3), other.ring(4)), (Ok(0), Ok(1)));
    }
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.unit.save_tables().unwrap();
    rig.run(&[mapd(DEVICE, 5, ITT, true), mapti(DEVICE, 6, 8206, 0)]);
    rig.unit.save_tables().unwrap();
    let other = another(&rig);
    other.unit.restore(&rig.unit.save()).unwrap();
    assert_eq!((other.ring(3), other.ring(4), other.ring(6)), (Ok(0), Ok(0), Ok(1)));
}

/// H28: KVM's writer follows the pointer to the collection.
#[test]
fn an_event_that_lost_its_collection_is_not_saved() {
    let rig = Rig::kvm();
    rig.bring_up();
    rig.map_both();
    rig.unit.save_tables().unwrap();
    rig.run(&[mapc(0, 0, false)]);
    rig.unit.save_tables().unwrap();
    assert_eq!((rig.load(ITT + 24), rig.load(ITT + 32)), (0, 0x2008_0001));
    assert_eq!((rig.load(COLLECTIONS), rig.load(COLLECTIONS + 8)), (0x8000_0000_0001_0001, 0));
    let other = another(&rig);
    other.unit.restore(&rig.unit.save()).unwrap();
    assert_eq!((other.ring(3), other.ring(4)), (Ok(0), Ok(1)));
}

#[test]
fn an_unmapped_collection_comes_back_unmapped() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.run(&[mapc(0, 0, false)]);
    rig.unit.save_tables().unwrap();
    assert_eq!(rig.load(COLLECTIONS), 0x8000_ffff_ffff_0000);
    let other = another(&rig);
    other.unit.restore(&rig.unit.save()).unwrap();
    assert_eq!(other.ring(3), Ok(0));
    other.run(&[mapc(0, 1, true)]);
    assert_eq!(other.ring(3), Ok(1));
    assert_eq!(other.pending(), [(1, 8195)]);
}

/// Each with the number that KVM returns. Nothing is mapped afterwards.
#[test]
fn hostile_tables_are_refused_and_nothing_is_mapped() {
    let device = |bits: u64, itt: u64, next: u64| VALID | next << 49 | itt >> 3 | (bits - 1);
    let event = |next: u64, lpi: u64, icid: u64| next << 48 | lpi << 16 | icid;
    let collection = |cpu: u64, icid: u64| VALID | cpu << 16 | icid;
    let last = RAM + RAM_BYTES as u64 - 0x100;
    let good = [(COLLECTIONS, collection(0, 0)), (DEVICES, device(5, ITT, 0)), (ITT, event(0, 8192, 0))];
    type Table = (u64, u64);
    let cases: &[(&[Table], Errno, &str)] = &[
        (&[(COLLECTIONS, collection(2, 0))], Errno::INVAL, "no such vCPU"),
        (&[(COLLECTIONS + 8, collection(1, 0))], Errno::EXIST, "twice"),
        (&[(COLLECTIONS + 8, collection(1, 0x2000))], Errno::INVAL, "a collection beyond the table"),
        (&[(ITT, event(0, 8191, 0))], Errno::INVAL, "no LPI"),
        (&[(ITT, event(0, 0x1_0000, 0))], Errno::INVAL, "no LPI"),
        (&[(ITT, event(0, 8192, 1))], Errno::INVAL, "no such collection"),
        (&[(ITT, event(32, 8192, 0))], Errno::INVAL, "the next event is none"),
        (&[(ITT, event(0xffff, 8192, 0))], Errno::INVAL, "the next event is none"),
        (&[(ITT, 0), (ITT + 31 * 8, event(1, 8192, 0))], Errno::INVAL, "the next event is none"),
        (&[(DEVICES, device(17, ITT, 0))], Errno::INVAL, "more bits than an EventID has"),
        (&[(DEVICES, device(32, ITT, 0))], Errno::INVAL, "more bits than an EventID has"),
        (&[(DEVICES, device(6, last, 0))], Errno::FAULT, "a table that reaches beyond memory"),
        (&[(DEVICES, device(5, 0xf_ffff_ffff_ff00, 0))], Errno::FAULT, "a table outside of memory"),
    ];
    for (changes, expected, what) in cases {
        let rig = Rig::spec();
        rig.bring_up();
        for (at, value) in good.iter().chain(*changes) {
            rig.ram.write_le(*at, *value).unwrap();
        }
        assert_eq!(errno(rig.unit.restore_tables()), Err(*expected), "{what}");
        let state = rig.unit.save();
        assert_eq!(errno(rig.unit.restore(&state)), Err(*expected), "{what}");
        assert_eq!(rig.signal(0, 0), Ok(0), "{what}");
        rig.run(&[mapc(0, 1, true), mapti(0, 0, 8192, 0)]);
        assert_eq!(rig.errors(), [(0x01_0a04, 1)], "{what}: no device is mapped");
    }
    let rig = Rig::spec();
    rig.bring_up();
    good.iter().for_each(|(at, value)| rig.ram.write_le(*at, *value).unwrap());
    assert_eq!(errno(rig.unit.restore_tables()), Ok(()));
    assert_eq!(rig.signal(0, 0), Ok(1));
    assert_eq!(errno(rig.unit.restore_tables()), Err(Errno::EXIST), "it is mapped already");
    assert_eq!(rig.signal(0, 0), Ok(1));
}

#[test]
fn a_distance_that_leaves_the_table_ends_it() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.ram.write_le(DEVICES + 8 * 0x1fff, VALID | 0x3fff << 49 | ITT >> 3).unwrap();
    assert_eq!(errno(rig.unit.restore_tables()), Ok(()));
    rig.run(&[mapc(0, 0, true), mapti(0x1fff, 1, 8192, 0)]);
    assert_eq!(rig.signal(0x1fff, 1), Ok(1));
}

#[test]
fn overlapping_tables_do_no_harm() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(1, 5, DEVICES, true), mapd(2, 13, COLLECTIONS & !0xff, true)]);
    rig.run(&[mapti(1, 0, 8192, 0), mapti(1, 1, 8193, 0), mapti(1, 2, 8194, 0), mapti(2, 0, 8195, 0)]);
    rig.unit.save_tables().unwrap();
    let other = another(&rig);
    // Whatever it says, it is answered.
    let _ = other.unit.restore(&rig.unit.save());
    let _ = other.unit.restore_tables();
    assert_eq!(rig.signal(1, 2), Ok(1));
}

#[test]
fn tables_that_are_gone_are_reported() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    for (hole, expected) in [
        (ITT..ITT + 0x100, Errno::FAULT),
        (DEVICES..DEVICES + 0x1000, Errno::INVAL),
        (COLLECTIONS..COLLECTIONS + 0x1000, Errno::INVAL),
    ] {
        *rig.ram.hole.lock() = hole;
        assert_eq!(errno(rig.unit.save_tables()), Err(expected));
    }
    *rig.ram.hole.lock() = 0..0;
    rig.write(offset::CTLR, 0);
    rig.write(offset::BASER1, VALID | COLLECTIONS);
    assert_eq!(errno(rig.unit.save_tables()), Ok(()), "two collections fit");
}

#[test]
fn more_events_than_there_is_room_for_are_refused_whole() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(1, 10, ITT, true), mapd(2, 4, ITT + 0x1_0000, true)]);
    rig.run(&(0..9).map(|at| mapti(1, at * 16, 8192 + at, 0)).collect::<Vec<_>>());
    rig.run(&[mapti(2, 3, 9000, 0)]);
    rig.unit.save_tables().unwrap();
    let small = rig.fresh(&ItsOptions { max_events: 128, ..ItsOptions::default() });
    assert_eq!(errno(small.restore(&rig.unit.save())), Err(Errno::NOMEM));
    assert_eq!(small.read(offset::CTLR, 4) & 1, 0);
    assert!(small.lpis.lpis.lock().values().all(|lpi| lpi.events == 0), "nothing stays mapped");
}

#[test]
fn a_configuration_that_is_gone_fails_the_restore_whole() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.unit.save_tables().unwrap();
    let other = another(&rig);
    other.unit.lpis.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(errno(other.unit.restore(&rig.unit.save())), Err(Errno::FAULT));
    other.unit.lpis.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(errno(other.unit.restore(&rig.unit.save())), Ok(()));
    assert_eq!(other.ring(3), Ok(1));
}

#[test]
fn registers_that_no_its_has_are_refused() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    let good = rig.unit.save();
    let wrong = |change: fn(&mut ItsState)| {
        let mut state = good.clone();
        change(&mut state);
        assert!(matches!(rig.unit.restore(&state), Err(Error::Snapshot(_))), "{state:x?}");
    };
    wrong(|it| it.cwriter = 0x1_0000);
    wrong(|it| it.cwriter = 0x10);
    wrong(|it| it.creadr = 0x1_0000);
    wrong(|it| it.creadr = 1);
    wrong(|it| it.cbaser |= 1 << 62);
    wrong(|it| it.cbaser &= !VALID);
    wrong(|it| it.devices &= !VALID);
    wrong(|it| it.devices ^= 1 << 48);
    wrong(|it| it.collections ^= 1 << 58);
    wrong(|it| it.collections |= 1 << 62);
    assert_eq!(rig.ring(3), Ok(1), "nothing has changed");
    for fresh in [Rig::spec(), Rig::kvm()] {
        let state = fresh.unit.save();
        assert!(fresh.unit.restore(&state).is_ok(), "an ITS that was never used");
    }
}

/// As KVM: of the tables' registers only the validity goes.
#[test]
fn reset_forgets_what_is_mapped_and_leaves_memory_alone() {
    let rig = Rig::kvm();
    rig.bring_up();
    rig.map_both();
    rig.unit.save_tables().unwrap();
    rig.unit.reset();
    assert_eq!((rig.read(offset::CTLR), rig.read(offset::CBASER)), (0x8000_0000, 0));
    assert_eq!((rig.read(offset::CWRITER), rig.read(offset::CREADR)), (0, 0));
    assert_eq!(rig.read(offset::BASER0), 0x1907_0000_4002_0200);
    assert_eq!(rig.load(DEVICES + 64), 0x8000_0000_0800_8004);
    rig.bring_up();
    assert_eq!(rig.ring(3), Ok(0));
    assert_eq!(errno(rig.unit.restore_tables()), Ok(()));
    assert_eq!(rig.ring(3), Ok(1));
}
