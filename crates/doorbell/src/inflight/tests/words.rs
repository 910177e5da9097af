//! The protocol step by step: what stands in the words of a latch at each moment, without any luck of the scheduler.

use super::*;

fn word(latch: &Latch) -> u64 {
    latch.word.load(Ordering::Relaxed)
}

fn queue(latch: &Latch) -> u32 {
    latch.queue.load(Ordering::Relaxed)
}

/// A latch whose words are these.
fn latch(word: u64, queue: u32, passage: u32) -> Latch {
    let latch = Latch::new(0);
    latch.word.store(word, Ordering::Relaxed);
    latch.queue.store(queue, Ordering::Relaxed);
    latch.passage.store(passage, Ordering::Relaxed);
    latch
}

fn eventually(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happened for 30 s");
        thread::yield_now();
    }
}

/// What `call` returns on another thread, which must not be before `release` was called.
fn waits<R: Send>(call: impl FnOnce() -> R + Send, release: impl FnOnce()) -> R {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let result = call();
            done.store(true, Ordering::Release);
            result
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!done.load(Ordering::Acquire), "it did not wait");
        release();
        caller.join().unwrap()
    })
}

#[test]
fn an_event_is_delivered_inside_the_latch() {
    for flags in [0, BIAS] {
        let latch = latch(flags | 1, 0, 0);
        assert_eq!(latch.fire(|payload| (payload, word(&latch))), Fired::Ran((1, flags | BUSY | 1)));
        assert_eq!(word(&latch), flags | 1);
    }
}

#[test]
fn an_event_beside_a_waiting_configurer_is_left_with_him() {
    for (waiters, flags) in [(WAITER, 0), (2 * WAITER, 0), (WAITER, MASK), (WAITER | OWNED, 0)] {
        let latch = latch(flags | 1, waiters, 0);
        for _ in 0..2 {
            assert_eq!(latch.fire(|payload| payload), Fired::HandedOver);
            assert_eq!((word(&latch), queue(&latch)), (flags | 1, waiters | QUEUE_HANDED));
        }
    }
}

#[test]
fn a_picky_event_stands_back_for_a_waiting_configurer_and_then_goes_on() {
    let latch = latch(1, WAITER, 0);
    let asked = std::cell::Cell::new(0);
    let admit = |payload| {
        asked.set(asked.get() + 1);
        payload == 1
    };
    let fired = latch.fire_if(admit, |payload| (payload, word(&latch)));
    assert_eq!(fired, Some(Fired::Ran((1, BUSY | 1))));
    assert_eq!((word(&latch), queue(&latch)), (1, WAITER));
    assert!(asked.get() > 32, "it went on after {} looks", asked.get());
}

#[test]
fn an_event_during_a_change_is_delivered_by_the_new_configuration() {
    for (flags, payload) in [(0, 1), (MASK, 1), (MASK, 0)] {
        let latch = latch(flags | payload, OWNED, 0);
        let mut delivered = Vec::new();
        let change = |slot: &mut Slot| {
            assert_eq!(word(&latch), flags | payload | BUSY | CONFIG);
            assert_eq!([latch.fire(|_| ()), latch.fire(|_| ())], [Fired::HandedOver; 2]);
            assert_eq!(word(&latch), flags | payload | BUSY | CONFIG | HANDED);
            slot.payload = 2;
        };
        latch.configure(change, |payload| delivered.push(payload));
        let pending = if flags == 0 { 0 } else { PEND };
        assert_eq!((word(&latch), queue(&latch)), (flags | pending | 2, OWNED));
        assert_eq!(delivered, if flags == 0 { vec![2] } else { vec![] });
    }
}

#[test]
fn a_configurer_that_waits_long_is_counted_once_and_takes_what_was_left_with_him() {
    for event in [false, true] {
        let latch = latch(BUSY | 1, OWNED, 0);
        let delivered = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let deliver = |payload| delivered.fetch_add(payload, Ordering::Relaxed);
                latch.configure(|slot| slot.payload = 0x20, deliver);
            });
            eventually(|| queue(&latch) & !OWNED != 0);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(queue(&latch), OWNED | WAITER);
            // The firer that was inside leaves, and another one comes before the configurer looks again.
            if event {
                assert!(latch.hand_to_waiter());
            }
            latch.word.store(1, Ordering::Release);
        });
        assert_eq!((word(&latch), queue(&latch)), (0x20, OWNED));
        assert_eq!(delivered.into_inner(), if event { 0x20 } else { 0 });
    }
    assert!(!latch(1, OWNED, 0).hand_to_waiter(), "nobody waits");
}

#[test]
fn masks_and_unmasks_that_are_not_admitted_change_nothing() {
    let open = latch(1, 0, 0);
    assert_eq!(open.mask_if(|payload| payload != 1, |_| ()), None);
    assert_eq!(word(&open), 1);
    assert_eq!(open.mask_if(|payload| payload == 1, |_| ()), Some(false));
    assert_eq!(word(&open), MASK | 1);
    for flags in [MASK, MASK | PEND] {
        let masked = latch(flags | 1, 0, 0);
        assert_eq!(masked.unmask_if(|payload| payload != 1, |_| ()), None);
        assert_eq!(word(&masked), flags | 1);
    }
}

#[test]
fn the_pending_event_of_an_unmask_is_delivered_inside_the_latch() {
    let latch = latch(MASK | PEND | 1, 0, 0);
    assert_eq!(latch.unmask(|payload| (payload, word(&latch))), Some((1, BUSY | 1)));
    assert_eq!(word(&latch), 1);
}

#[test]
fn a_mask_waits_for_who_is_inside() {
    for inside in [BUSY, BUSY | BIAS, BUSY | 1, BUSY | CONFIG | 1] {
        let latch = latch(inside, 0, 0);
        let was = waits(|| latch.mask(|_| ()), || latch.word.store(1, Ordering::Release));
        assert_eq!((was, word(&latch), queue(&latch)), (false, MASK | 1, 0));
    }
}

#[test]
fn an_unmask_waits_for_a_configurer_and_sees_what_he_leaves() {
    for (left, delivered) in [(1, None), (MASK | 1, None), (MASK | PEND | 1, Some(1))] {
        let latch = latch(BUSY | CONFIG | MASK | 1, 0, 0);
        let release = || latch.word.store(left, Ordering::Release);
        assert_eq!(waits(|| latch.unmask(|payload| payload), release), delivered);
        assert_eq!((word(&latch), queue(&latch)), (1, 0));
    }
}

#[test]
fn a_configurer_that_takes_the_bias_waits_for_an_odd_passage_only() {
    if BiasPermit::request().is_err() {
        eprintln!("SKIPPED: no membarrier on this machine, so there is no bias to take away");
        return;
    }
    for passage in [0, 2] {
        let latch = latch(BIAS | 1, OWNED, passage);
        latch.configure(|slot| slot.payload = 2, |_| ());
        assert_eq!(word(&latch), 2);
    }
    for passage in [1, 3] {
        let latch = latch(BIAS | 1, OWNED, passage);
        let change = || latch.configure(|_| assert_eq!(latch.passage.load(Ordering::Relaxed), passage + 1), |_| ());
        waits(change, || latch.passage.store(passage + 1, Ordering::Release));
        assert_eq!(word(&latch), 1);
    }
}

#[test]
fn the_bias_is_granted_after_256_quiet_fires_and_given_up_with_the_ownership() {
    let Ok(permit) = BiasPermit::request() else {
        eprintln!("SKIPPED: no membarrier on this machine, so there is no bias");
        return;
    };
    for payload in [0, 1] {
        let latch = Latch::new(payload);
        let mut owner = latch.own(Some(permit)).unwrap();
        for _ in 1..QUIET_FIRES {
            latch.fire_owned(&mut owner, |_| ());
            assert_eq!(word(&latch), payload);
        }
        latch.fire_owned(&mut owner, |_| ());
        assert_eq!(word(&latch), BIAS | payload);
        let fired = latch.fire_owned_if(&mut owner, |it| it == payload, |payload| payload);
        assert_eq!(fired, Some(Fired::Ran(payload)));
        assert_eq!(latch.fire_owned_if(&mut owner, |it| it != payload, |payload| payload), None);
        latch.disown(owner, |_| ());
        assert_eq!((word(&latch), queue(&latch)), (payload, 0));
        let mut owner = latch.own(Some(permit)).unwrap();
        let fired = latch.fire_owned_if(&mut owner, |it| it == payload, |payload| payload);
        assert_eq!(fired, Some(Fired::Ran(payload)), "without the bias");
        latch.disown(owner, |_| ());
    }
}

#[test]
fn no_bias_is_granted_while_somebody_wants_the_word() {
    for (before, waiters, after) in [
        (1, OWNED, BIAS | 1),
        (BIAS | 1, OWNED, BIAS | 1),
        (1, OWNED | WAITER, 1),
        (1, WAITER, 1),
        (BUSY | 1, OWNED, BUSY | 1),
        (MASK | 1, OWNED, MASK | 1),
    ] {
        let latch = latch(before, waiters, 0);
        latch.grant_bias();
        assert_eq!(word(&latch), after, "{before:#x} {waiters}");
    }
}
