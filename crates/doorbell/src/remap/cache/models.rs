//! loom models of the cache: every interleaving of messages and an invalidation.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib remap::cache`

use std::sync::Arc;

use loom::thread;

use super::{
    Cripple,
    rig::{BLOCK, NEW, OLD, Rig},
};

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// One message meets the re-targeting of its entry. `warm`: the slot is filled before.
fn fire_against_invalidate(cripple: Cripple, warm: bool) {
    check(4, move || {
        let rig = Arc::new(Rig::new(1, 2, cripple));
        let target = rig.prepare(0);
        let before = u32::from(warm);
        if warm {
            rig.fire(target).unwrap();
        }
        let firer = {
            let rig = rig.clone();
            thread::spawn(move || rig.fire(target).unwrap())
        };
        rig.change(0, NEW);
        let old = rig.count(OLD);
        firer.join().unwrap();
        assert_eq!(rig.count(OLD), old, "a late delivery by the old entry");
        assert_eq!(rig.table.sink.all(), before + 1, "delivered once");
        rig.fire(target).unwrap();
        assert_eq!(rig.count(OLD), old, "a stale entry stayed");
    });
}

/// Hazard H37: an entry is changed with a message in flight.
#[test]
fn a_message_in_flight_meets_the_old_or_the_new_entry() {
    fire_against_invalidate(Cripple::Nothing, true);
}

#[test]
#[should_panic(expected = "delivered once")]
fn a_message_left_with_an_invalidation_and_dropped_is_noticed() {
    fire_against_invalidate(Cripple::HandedIsDropped, true);
}

/// Hazard H37: the entry is read while it is changed.
#[test]
fn a_fill_meets_the_old_or_the_new_entry() {
    fire_against_invalidate(Cripple::Nothing, false);
}

#[test]
#[should_panic(expected = "old entry")]
fn a_fill_that_reads_too_early_is_noticed() {
    fire_against_invalidate(Cripple::FillReadsTooEarly, false);
}

/// A message that nobody prepared has no slot to be found by the invalidation.
#[test]
fn an_unprepared_message_meets_the_old_or_the_new_entry() {
    check(4, || {
        let rig = Arc::new(Rig::new(1, 2, Cripple::Nothing));
        let firer = {
            let rig = rig.clone();
            thread::spawn(move || rig.send(0).unwrap())
        };
        rig.change(0, NEW);
        let old = rig.count(OLD);
        firer.join().unwrap();
        assert_eq!(rig.count(OLD), old, "a late delivery by the old entry");
        assert_eq!(rig.table.sink.all(), 1, "delivered once");
    });
}

#[test]
fn two_fills_against_an_invalidation() {
    check(2, || {
        let rig = Arc::new(Rig::new(1, 2, Cripple::Nothing));
        let target = rig.prepare(0);
        let firers: Vec<_> = (0..2)
            .map(|_| {
                let rig = rig.clone();
                thread::spawn(move || rig.fire(target).unwrap())
            })
            .collect();
        rig.change(0, NEW);
        let old = rig.count(OLD);
        for firer in firers {
            firer.join().unwrap();
        }
        assert_eq!(rig.count(OLD), old, "a late delivery by the old entry");
        // Two that are left with the invalidation are one event, as in the APIC.
        assert!((1..=2).contains(&rig.table.sink.all()), "delivered");
        rig.fire(target).unwrap();
        assert_eq!(rig.count(OLD), old, "a stale entry stayed");
    });
}

/// Hazard H37: an entry is freed while its device still sends. Two invalidations of it: each promises for itself.
#[test]
fn a_freed_entry_blocks_once_either_invalidation_has_completed() {
    check(3, || {
        let rig = Arc::new(Rig::new(1, 2, Cripple::Nothing));
        let target = rig.prepare(0);
        rig.fire(target).unwrap();
        let other = {
            let rig = rig.clone();
            thread::spawn(move || {
                rig.change(0, BLOCK);
                let seen = rig.table.sink.all();
                move |rig: &Rig| assert_eq!(rig.table.sink.all(), seen, "late for the other one")
            })
        };
        let firer = {
            let rig = rig.clone();
            thread::spawn(move || rig.fire(target))
        };
        rig.change(0, BLOCK);
        let seen = rig.table.sink.all();
        firer.join().unwrap().ok();
        other.join().unwrap()(&rig);
        assert_eq!(rig.table.sink.all(), seen, "a late delivery by a freed entry");
        assert_eq!(rig.fire(target), Err(()), "freed");
    });
}
