//! The latch by itself, and the storm.

mod words;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{cripple::Cripple, *};

#[test]
fn a_payload_keeps_58_bits_and_no_more() {
    let latch = Latch::new(u64::MAX);
    assert_eq!(latch.peek(), Slot { payload: (1 << 58) - 1, masked: false, pending: false });
    latch.configure(|slot| slot.payload = u64::MAX - 1, |_| ());
    assert_eq!(latch.fire(|payload| payload), Fired::Ran((1 << 58) - 2));
}

#[test]
fn a_pending_bit_without_a_mask_is_not_kept() {
    let latch = Latch::masked(1);
    latch.fire(|_| ());
    let seen = latch.configure(
        |slot| {
            slot.masked = false;
            slot.pending
        },
        |_| (),
    );
    assert!(seen, "it is the caller's to deliver");
    assert!(!latch.peek().pending);
}

#[test]
fn a_delivery_that_panics_leaves_the_latch_free() {
    let latch = Latch::new(1);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| latch.fire(|_| panic!("delivery"))));
    assert!(result.is_err());
    assert_eq!(latch.fire(|payload| payload), Fired::Ran(1));
}

#[test]
fn a_change_that_panics_leaves_the_configuration_as_it_was() {
    let latch = Latch::masked(1);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        latch.configure(
            |slot| {
                *slot = Slot { payload: 2, masked: false, pending: false };
                panic!("change");
            },
            |_| (),
        )
    }));
    assert!(result.is_err());
    assert_eq!(latch.peek(), Slot { payload: 1, masked: true, pending: false });
    assert_eq!(latch.unmask(|_| ()), None);
    assert_eq!(latch.fire(|payload| payload), Fired::Ran(1));
}

#[test]
fn the_bias_comes_after_quiet_fires_and_goes_with_a_configuration() {
    let latch = Latch::new(1);
    let mut owner = latch.own(BiasPermit::request().ok()).unwrap();
    assert!(latch.own(None).is_none(), "there is one owner");
    for _ in 0..QUIET_FIRES {
        assert_eq!(latch.fire_owned(&mut owner, |payload| payload), Fired::Ran(1));
    }
    let biased = latch.word.load(Ordering::Relaxed) & BIAS != 0;
    assert_eq!(biased, owner.permit, "granted exactly if the machine has membarrier");
    assert_eq!(latch.fire_owned(&mut owner, |payload| payload), Fired::Ran(1));
    assert_eq!(latch.fire(|payload| payload), Fired::Ran(1), "others fire beside it");
    latch.mask(|_| ());
    assert_eq!(latch.word.load(Ordering::Relaxed) & BIAS, 0);
    assert_eq!(latch.fire_owned(&mut owner, |payload| payload), Fired::Pending { already: false });
    assert_eq!(latch.unmask(|payload| payload), Some(1));
    latch.disown(owner, |_| ());
    assert!(latch.own(None).is_some());
}

#[test]
fn an_owner_without_a_permit_gets_no_bias() {
    let latch = Latch::new(1);
    let mut owner = latch.own(None).unwrap();
    for _ in 0..4 * QUIET_FIRES {
        latch.fire_owned(&mut owner, |_| ());
    }
    assert_eq!(latch.word.load(Ordering::Relaxed) & BIAS, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Fire,
    FireOwned,
    FireIf(u64),
    Mask,
    Unmask,
    Configure(u64),
    Set { masked: bool, pending: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            4 => Just(Step::Fire),
            4 => Just(Step::FireOwned),
            2 => (1u64..4).prop_map(Step::FireIf),
            2 => Just(Step::Mask),
            2 => Just(Step::Unmask),
            2 => (1u64..4).prop_map(Step::Configure),
            1 => (any::<bool>(), any::<bool>()).prop_map(|(masked, pending)| Step::Set { masked, pending }),
        ],
        1..600,
    )
}

proptest! {
    /// One thread: the latch is a payload, a mask and a pending bit, whatever the bias does.
    #[test]
    fn the_latch_is_its_model(steps in steps()) {
        let latch = Latch::new(1);
        let mut owner = latch.own(BiasPermit::request().ok()).unwrap();
        let mut model = Slot { payload: 1, masked: false, pending: false };
        for step in steps {
            let mut fire = |fired: Option<Fired<u64>>| {
                let expected = if model.masked {
                    Fired::Pending { already: std::mem::replace(&mut model.pending, true) }
                } else {
                    Fired::Ran(model.payload)
                };
                (fired, Some(expected))
            };
            match step {
                Step::Fire => {
                    let (fired, expected) = fire(Some(latch.fire(|payload| payload)));
                    prop_assert_eq!(fired, expected);
                }
                Step::FireOwned => {
                    let (fired, expected) = fire(Some(latch.fire_owned(&mut owner, |payload| payload)));
                    prop_assert_eq!(fired, expected);
                }
                Step::FireIf(wanted) => {
                    let fired = latch.fire_if(|payload| payload == wanted, |payload| payload);
                    if wanted == model.payload {
                        let (fired, expected) = fire(fired);
                        prop_assert_eq!(fired, expected);
                    } else {
                        prop_assert_eq!(fired, None);
                    }
                }
                Step::Mask => {
                    let was = latch.mask(|_| unreachable!("nobody else fires"));
                    prop_assert_eq!(was, std::mem::replace(&mut model.masked, true));
                }
                Step::Unmask => {
                    let due = model.masked && model.pending;
                    model.masked = false;
                    model.pending = false;
                    prop_assert_eq!(latch.unmask(|payload| payload), due.then_some(model.payload));
                }
                Step::Configure(payload) => {
                    latch.configure(|slot| slot.payload = payload, |_| unreachable!("nobody else fires"));
                    model.payload = payload;
                }
                Step::Set { masked, pending } => {
                    model = Slot { payload: model.payload, masked, pending: pending && masked };
                    latch.configure(
                        |slot| *slot = Slot { payload: slot.payload, masked, pending },
                        |_| unreachable!("nobody else fires"),
                    );
                }
            }
            prop_assert_eq!(latch.peek(), model);
        }
        latch.disown(owner, |_| unreachable!("nobody else fires"));
    }
}

/// What a storm found.
#[derive(Debug, Default)]
struct Storm {
    late: u64,
    lost: u64,
    more_than_events: u64,
    configurations: u64,
}

/// An owner and two other threads fire as fast as they can while two configurers re-target, mask and unmask, for
/// `time` or until something is wrong.
///
/// Each source writes a sequence number before it fires; a delivery copies all numbers, so what a configurer reads
/// after its call must not change by the old target any more.
fn storm(cripple: Cripple, time: Duration) -> Storm {
    const TARGETS: usize = 4;
    let latch = Latch::crippled(0, cripple);
    // Deliveries by target, and the highest number of each source that a delivery has seen.
    let delivered: [AtomicU64; TARGETS] = Default::default();
    let sent: [AtomicU64; 3] = Default::default();
    let seen: [AtomicU64; 3] = Default::default();
    let late = AtomicU64::new(0);
    let configurations = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let deliver = |payload: u64| {
        let numbers = [0, 1, 2].map(|source| sent[source].load(Ordering::SeqCst));
        // Time for a configurer to be wrong in.
        for _ in 0..8 {
            std::hint::spin_loop();
        }
        delivered[payload as usize % TARGETS].fetch_add(1, Ordering::SeqCst);
        for (seen, number) in seen.iter().zip(numbers) {
            seen.fetch_max(number, Ordering::SeqCst);
        }
    };
    // One configurer at a time knows which target is the old one.
    let configure = parking_lot::Mutex::new(0u64);
    thread::scope(|scope| {
        let (latch, deliver, stop, sent) = (&latch, &deliver, &stop, &sent);
        scope.spawn(move || {
            let mut owner = latch.own(BiasPermit::request().ok()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                sent[0].fetch_add(1, Ordering::Relaxed);
                latch.fire_owned(&mut owner, deliver);
            }
            latch.disown(owner, deliver);
        });
        for sent in &sent[1..] {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    sent.fetch_add(1, Ordering::Relaxed);
                    latch.fire(deliver);
                    thread::sleep(Duration::from_micros(20));
                }
            });
        }
        for _ in 0..2 {
            let (configure, delivered, late, configurations) = (&configure, &delivered, &late, &configurations);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut current = configure.lock();
                    let old = *current as usize % TARGETS;
                    *current += 1;
                    let target = *current % TARGETS as u64;
                    latch.configure(|slot| slot.payload = target, deliver);
                    let settled = delivered[old].load(Ordering::SeqCst);
                    late_if(late, delivered[old].load(Ordering::SeqCst) != settled, &delivered[old], settled);
                    latch.mask(deliver);
                    let all = || delivered.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>();
                    let settled = all();
                    for _ in 0..200 {
                        std::hint::spin_loop();
                    }
                    if all() != settled {
                        late.fetch_add(1, Ordering::Relaxed);
                    }
                    latch.unmask(deliver);
                    configurations.fetch_add(1, Ordering::Relaxed);
                    drop(current);
                    // Long enough for the owner to earn the bias again.
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let end = Instant::now() + time;
        while Instant::now() < end && late.load(Ordering::Relaxed) == 0 {
            thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    latch.unmask(deliver);
    let events: u64 = sent.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    let deliveries: u64 = delivered.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    Storm {
        late: late.into_inner(),
        lost: sent
            .iter()
            .zip(&seen)
            .filter(|(sent, seen)| sent.load(Ordering::SeqCst) != seen.load(Ordering::SeqCst))
            .count() as u64,
        more_than_events: deliveries.saturating_sub(events),
        configurations: configurations.into_inner(),
    }
}

/// Looks for a while whether deliveries by an old target still come.
fn late_if(late: &AtomicU64, already: bool, count: &AtomicU64, settled: u64) {
    for _ in 0..200 {
        std::hint::spin_loop();
    }
    if already || count.load(Ordering::SeqCst) != settled {
        late.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_storm_finds_nothing() {
    let storm = storm(Cripple::Nothing, Duration::from_secs(2));
    assert!(storm.configurations > 100, "the configurers were starved: {storm:?}");
    assert_eq!((storm.late, storm.lost, storm.more_than_events), (0, 0, 0), "{storm:?}");
}

#[test]
fn the_storm_is_seen_to_fail_without_waiting_for_the_owner() {
    if BiasPermit::request().is_err() {
        eprintln!("SKIPPED: no membarrier on this machine, so there is no bias to take away");
        return;
    }
    let storm = storm(Cripple::NoWaitForOwner, Duration::from_secs(30));
    assert!(storm.late > 0, "{storm:?}");
}

#[test]
fn the_storm_is_seen_to_fail_with_a_mask_that_waits_for_nobody() {
    let storm = storm(Cripple::MaskWaitsForNobody, Duration::from_secs(30));
    assert!(storm.late > 0, "{storm:?}");
}
