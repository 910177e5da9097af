use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    Cripple, RemapCache,
    rig::{BLOCK, NEW, OLD, POST, Rig, UNRESOLVED},
};
use crate::{Delivery, DeviceId, Target};

fn rig() -> Rig {
    Rig::new(1_024, RemapCache::MOST, Cripple::Nothing)
}

#[test]
fn an_entry_is_read_once_and_again_after_its_invalidation() {
    let rig = rig();
    let target = rig.prepare(7);
    assert_eq!(rig.reads(), 0, "prepared, not looked up");
    for _ in 0..3 {
        assert_eq!(rig.fire(target), Ok(Delivery::Delivered(OLD)));
    }
    assert_eq!(rig.reads(), 1);
    rig.table.entries[7].store(NEW, Ordering::Relaxed);
    assert_eq!(rig.fire(target), Ok(Delivery::Delivered(OLD)), "not invalidated yet");
    rig.change(7, NEW);
    assert_eq!(rig.fire(target), Ok(Delivery::Delivered(NEW)));
    assert_eq!(rig.fire(target), Ok(Delivery::Delivered(NEW)));
    assert_eq!(rig.reads(), 2);
}

/// Hazard H37.
#[test]
fn a_freed_entry_blocks_until_it_is_used_again() {
    let rig = rig();
    let target = rig.prepare(3);
    assert_eq!(rig.fire(target), Ok(Delivery::Delivered(OLD)));
    rig.change(3, BLOCK);
    assert_eq!(rig.fire(target), Err(()));
    assert_eq!(rig.fire(target), Err(()));
    assert_eq!(rig.reads(), 3, "that nothing is there is not remembered");
    rig.table.entries[3].store(NEW, Ordering::Relaxed);
    assert_eq!(
        rig.fire(target),
        Ok(Delivery::Delivered(NEW)),
        "no invalidation is needed for an entry that was absent"
    );
}

#[test]
fn every_kind_of_way_is_remembered_and_forgotten() {
    let rig = rig();
    let target = rig.prepare(0);
    for value in [UNRESOLVED, POST, OLD, POST, UNRESOLVED, NEW] {
        rig.change(0, value);
        let reads = rig.reads();
        for _ in 0..3 {
            assert_eq!(rig.fire(target), Ok(Delivery::Delivered(value)));
        }
        assert_eq!(rig.reads(), reads + 1, "{value}");
        assert_eq!(rig.send(0), Ok(Delivery::Delivered(value)), "the same, not prepared");
    }
    assert_eq!([OLD, NEW, UNRESOLVED, POST].map(|value| rig.count(value)), [4, 4, 8, 8]);
}

#[test]
fn an_invalidation_concerns_its_tags_only() {
    for (tags, gone) in [
        (5..=5, 5..=5),
        (4..=6, 4..=6),
        (0..=255, 0..=255),
        (255..=256, 255..=256),
        (300..=1_000, 300..=1_000),
        (1_023..=u32::MAX, 1_023..=1_023),
        (0..=u32::MAX, 0..=1_023),
        (u32::MAX - 1..=u32::MAX, 1_024..=1_024),
        #[expect(clippy::reversed_empty_ranges, reason = "it concerns nobody")]
        (5..=4, 1_024..=1_024),
    ] {
        let rig = rig();
        let targets: Vec<Target> = (0..1_024).map(|index| rig.prepare(index)).collect();
        let fire_all = || {
            for target in &targets {
                rig.fire(*target).unwrap();
            }
        };
        fire_all();
        for entry in &rig.table.entries {
            entry.store(NEW, Ordering::Relaxed);
        }
        rig.cache.invalidate(&rig.table, tags.clone());
        for (index, target) in (0..).zip(&targets) {
            let expected = if gone.contains(&index) { NEW } else { OLD };
            assert_eq!(rig.fire(*target), Ok(Delivery::Delivered(expected)), "{index} after {tags:?}");
        }
    }
}

/// Spec T24: each message has a slot of its own, and keeps it.
#[test]
fn a_slot_belongs_to_one_address_one_datum_and_one_sender() {
    let rig = rig();
    let first = Rig::message(1);
    let others = [
        crate::MsiMessage { address: first.address + 4, ..first },
        crate::MsiMessage { data: 1 + 256, ..first },
        first.from_device(DeviceId(0)),
        first.from_device(DeviceId(1)),
    ];
    let prepare = |message: &crate::MsiMessage| rig.cache.prepare(&rig.table, message).map(Target::bits);
    assert_eq!(prepare(&first), Some(0));
    assert_eq!(others.each_ref().map(prepare), [1, 2, 3, 4].map(Some));
    assert_eq!(prepare(&first), Some(0));
    assert_eq!(others.each_ref().map(prepare), [1, 2, 3, 4].map(Some));
}

#[test]
fn a_full_cache_prepares_nothing_more_and_still_sends() {
    let rig = Rig::new(1_024, 257, Cripple::Nothing);
    for index in 0..257 {
        assert_eq!(rig.prepare(index).bits(), index);
    }
    assert_eq!(rig.cache.prepare(&rig.table, &Rig::message(257)), None);
    assert_eq!(rig.prepare(256).bits(), 256, "it has its slot");
    assert_eq!(rig.send(257), Ok(Delivery::Delivered(OLD)));
    rig.change(257, NEW);
    assert_eq!(rig.send(257), Ok(Delivery::Delivered(NEW)));
    rig.change(257, BLOCK);
    assert_eq!(rig.send(257), Err(()));
}

#[test]
fn a_target_of_somebody_else_delivers_nothing() {
    let rig = Rig::new(1, 300, Cripple::Nothing);
    for bits in [0, 1, 255, 256, 299, 300, 511, 512, (1 << 24) - 1] {
        assert_eq!(rig.fire(Target::new(bits).unwrap()), Ok(Delivery::Ignored), "{bits}, before any is prepared");
    }
    rig.prepare(0);
    assert_eq!(rig.fire(Target::new(1).unwrap()), Ok(Delivery::Ignored), "in the same chunk");
    assert_eq!(rig.table.sink.all(), 0);
}

#[test]
fn more_slots_than_a_target_can_name_are_not_made() {
    assert_eq!(Rig::new(1, u32::MAX, Cripple::Nothing).cache.most, 1 << 24);
}

/// An entry is re-targeted under fire, all the time. Stale is what arrives by an entry older than the last one whose
/// invalidation had completed before the fire began; lost is a fire that nothing followed.
#[test]
fn nothing_is_stale_or_lost_while_entries_change_under_fire() {
    let rig = rig();
    let targets: Vec<Target> = (0..4).map(|index| rig.prepare(index)).collect();
    let (stop, fired) = (AtomicBool::new(false), AtomicU64::new(0));
    // Entries go from OLD to BLOCK to NEW to BLOCK; while one blocks, nothing may arrive by it.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for target in &targets {
                        fired.fetch_add(u64::from(rig.fire(*target).is_ok()), Ordering::Relaxed);
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_millis(500);
        let mut rounds = 0u32;
        while Instant::now() < until || fired.load(Ordering::Relaxed) < 10_000 {
            let open = if rounds % 2 == 0 { NEW } else { OLD };
            for index in 0..4 {
                rig.change(index, BLOCK);
            }
            let (old, new) = (rig.count(OLD), rig.count(NEW));
            thread::yield_now();
            assert_eq!((rig.count(OLD), rig.count(NEW)), (old, new), "all are blocked");
            for index in 0..4 {
                rig.change(index, open);
            }
            let shut = OLD + NEW - open;
            let before = rig.count(shut);
            thread::yield_now();
            assert_eq!(rig.count(shut), before, "nothing goes there any more");
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(rounds > 10, "{rounds} rounds");
    });
    // An event that several left with one invalidation is delivered once.
    assert!(u64::from(rig.table.sink.all()) <= fired.load(Ordering::Relaxed));
}
