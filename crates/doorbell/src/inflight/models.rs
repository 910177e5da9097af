//! loom models of the protocol: every interleaving of two or three threads.
//!
//! Run by `cargo xtask test`, or `RUSTFLAGS="--cfg loom" cargo test -p doorbell --lib --release inflight::models`.

use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use super::{BiasPermit, Fired, Latch, cripple::Cripple};

const OLD: u64 = 1;
const NEW: u64 = 2;

/// Deliveries by payload.
#[derive(Default)]
struct Seen([AtomicU32; 3]);

impl Seen {
    fn deliver(&self, payload: u64) {
        self.0[payload as usize].fetch_add(1, Ordering::Relaxed);
    }
    fn count(&self, payload: u64) -> u32 {
        self.0[payload as usize].load(Ordering::Relaxed)
    }
    fn all(&self) -> u32 {
        self.count(OLD) + self.count(NEW)
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn fire_against_configure(cripple: Cripple) {
    check(4, move || {
        let state = Arc::new((Latch::crippled(OLD, cripple), Seen::default()));
        let firer = {
            let state = state.clone();
            thread::spawn(move || state.0.fire(|payload| state.1.deliver(payload)))
        };
        let (latch, seen) = &*state;
        latch.configure(|slot| slot.payload = NEW, |payload| seen.deliver(payload));
        let old = seen.count(OLD);
        firer.join().unwrap();
        assert_eq!(seen.count(OLD), old, "a late delivery by the old configuration");
        assert_eq!(seen.all(), 1, "delivered once");
    });
}

#[test]
fn an_event_meets_the_old_or_the_new_configuration() {
    fire_against_configure(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "delivered once")]
fn an_event_handed_over_and_dropped_is_noticed() {
    fire_against_configure(Cripple::HandedIsDropped);
}

fn biased_owner_against_configure(cripple: Cripple, configurers: usize) {
    check(3, move || {
        let state = Arc::new((Latch::crippled(OLD, cripple), Seen::default()));
        let mut owner = state.0.own(Some(BiasPermit(()))).unwrap();
        // The first fire is quiet and earns the bias.
        state.0.fire_owned(&mut owner, |_| ());
        let firer = {
            let state = state.clone();
            thread::spawn(move || {
                state.0.fire_owned(&mut owner, |payload| state.1.deliver(payload));
                owner
            })
        };
        let second = (configurers == 2).then(|| {
            let state = state.clone();
            thread::spawn(move || {
                let (latch, seen) = &*state;
                latch.configure(|slot| slot.payload = NEW, |payload| seen.deliver(payload));
                let old = seen.count(OLD);
                move || old
            })
        });
        let (latch, seen) = &*state;
        latch.configure(|slot| slot.payload = NEW, |payload| seen.deliver(payload));
        let old = seen.count(OLD);
        let owner = firer.join().unwrap();
        assert_eq!(seen.count(OLD), old, "a late delivery by the old configuration");
        if let Some(second) = second {
            assert_eq!(second.join().unwrap()(), old, "late for the other configurer");
        }
        assert_eq!(seen.all(), 1, "delivered once");
        latch.disown(owner, |_| ());
    });
}

#[test]
fn a_biased_owner_meets_the_old_or_the_new_configuration() {
    biased_owner_against_configure(Cripple::Nothing, 1);
}

#[test]
fn two_configurers_against_one_bias() {
    biased_owner_against_configure(Cripple::Nothing, 2);
}

#[test]
#[should_panic(expected = "late delivery")]
fn a_bias_taken_without_a_barrier_is_noticed() {
    biased_owner_against_configure(Cripple::NoBarrier, 1);
}

#[test]
#[should_panic(expected = "late delivery")]
fn a_bias_taken_without_waiting_is_noticed() {
    biased_owner_against_configure(Cripple::NoWaitForOwner, 1);
}

fn fire_against_mask(cripple: Cripple) {
    check(4, move || {
        let state = Arc::new((Latch::crippled(OLD, cripple), Seen::default()));
        let firer = {
            let state = state.clone();
            thread::spawn(move || state.0.fire(|payload| state.1.deliver(payload)))
        };
        let (latch, seen) = &*state;
        latch.mask(|payload| seen.deliver(payload));
        let masked = seen.all();
        firer.join().unwrap();
        assert_eq!(seen.all(), masked, "a late delivery behind the mask");
        let delivered = latch.unmask(|payload| seen.deliver(payload));
        assert_eq!(delivered.is_some(), masked == 0, "what was pending");
        assert_eq!(seen.all(), 1, "delivered once");
    });
}

#[test]
fn an_event_is_before_the_mask_or_pending() {
    fire_against_mask(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "late delivery")]
fn a_mask_that_waits_for_nobody_is_noticed() {
    fire_against_mask(Cripple::MaskWaitsForNobody);
}

#[test]
fn an_event_against_mask_and_unmask_is_delivered_once() {
    check(4, || {
        let state = Arc::new((Latch::new(OLD), Seen::default()));
        let firer = {
            let state = state.clone();
            thread::spawn(move || state.0.fire(|payload| state.1.deliver(payload)))
        };
        let (latch, seen) = &*state;
        latch.mask(|payload| seen.deliver(payload));
        latch.unmask(|payload| seen.deliver(payload));
        firer.join().unwrap();
        assert_eq!(seen.all(), 1, "delivered once");
        assert!(!latch.peek().pending);
    });
}

#[test]
fn a_biased_owner_against_mask_and_unmask() {
    check(3, || {
        let state = Arc::new((Latch::new(OLD), Seen::default()));
        let mut owner = state.0.own(Some(BiasPermit(()))).unwrap();
        state.0.fire_owned(&mut owner, |_| ());
        let firer = {
            let state = state.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    state.0.fire_owned(&mut owner, |payload| state.1.deliver(payload));
                }
            })
        };
        let (latch, seen) = &*state;
        latch.mask(|payload| seen.deliver(payload));
        let masked = seen.all();
        latch.peek();
        assert_eq!(seen.all(), masked, "a late delivery behind the mask");
        latch.unmask(|payload| seen.deliver(payload));
        firer.join().unwrap();
        assert!((1..=2).contains(&seen.all()), "never more than events, and one after the last");
        assert!(!latch.peek().pending);
    });
}

#[test]
fn two_firers_against_detach() {
    check(3, || {
        let state = Arc::new((Latch::new(OLD), Seen::default()));
        let firers: Vec<_> = (0..2)
            .map(|_| {
                let state = state.clone();
                thread::spawn(move || state.0.fire(|payload| state.1.deliver(payload)))
            })
            .collect();
        let (latch, seen) = &*state;
        let (_, handed) = latch.configure_taking(|slot| slot.payload = 0);
        let old = seen.count(OLD);
        let mut handed_over = 0;
        for firer in firers {
            if firer.join().unwrap() == Fired::HandedOver {
                handed_over += 1;
            }
        }
        assert_eq!(seen.count(OLD), old, "a late delivery by a detached source");
        assert_eq!(handed, handed_over > 0, "who hands over is heard");
    });
}

#[test]
fn an_event_for_a_slot_never_reaches_the_next_one() {
    check(3, || {
        let state = Arc::new((Latch::new(OLD), Seen::default()));
        let firer = {
            let state = state.clone();
            thread::spawn(move || state.0.fire_if(|payload| payload == OLD, |payload| state.1.deliver(payload)))
        };
        let (latch, seen) = &*state;
        let (_, taken) = latch.configure_taking(|slot| slot.payload = 0);
        latch.configure(|slot| slot.payload = NEW, |payload| seen.deliver(payload));
        let old = seen.count(OLD);
        let fired = firer.join().unwrap();
        assert_eq!(seen.count(OLD), old, "a late delivery by a slot that was taken back");
        assert_eq!(seen.count(NEW), 0, "somebody else's event");
        let accounted = u32::from(taken) + old + u32::from(fired.is_none());
        assert_eq!(accounted, 1, "delivered, taken back or refused: {fired:?}");
    });
}

#[test]
fn two_configurers_and_a_firer_lose_nothing() {
    check(3, || {
        let state = Arc::new((Latch::new(OLD), Seen::default()));
        let firer = {
            let state = state.clone();
            thread::spawn(move || state.0.fire(|payload| state.1.deliver(payload)))
        };
        let other = {
            let state = state.clone();
            thread::spawn(move || {
                state.0.configure(|slot| slot.payload = NEW, |payload| state.1.deliver(payload));
            })
        };
        let (latch, seen) = &*state;
        latch.configure(|slot| slot.payload = NEW, |payload| seen.deliver(payload));
        let old = seen.count(OLD);
        firer.join().unwrap();
        other.join().unwrap();
        assert_eq!(seen.count(OLD), old, "a late delivery by the old configuration");
        assert_eq!(seen.all(), 1, "delivered once");
    });
}
