//! loom models of a pin: who holds it owns it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib ioapic`

use loom::{sync::Arc, thread};

use super::{
    pin::{Due, Pin, Sent},
    registers::RedirectionEntry,
};
use crate::{
    Delivery, LineSource,
    sync::{AtomicU32, Ordering},
};

const LEVEL: RedirectionEntry = RedirectionEntry::new().with_level(true).with_vector(0x41);

struct Machine {
    pin: Pin,
    sent: AtomicU32,
}

impl Machine {
    fn new(entry: RedirectionEntry) -> Arc<Self> {
        let machine = Self { pin: Pin::new(), sent: AtomicU32::new(0) };
        machine.pin.take_for_configuration().entry = entry;
        Arc::new(machine)
    }

    fn send(&self, _: RedirectionEntry) -> Sent {
        self.sent.fetch_add(1, Ordering::Relaxed);
        Sent::To(Delivery::Delivered(1))
    }

    fn drive(&self, source: LineSource, level: bool) -> Delivery {
        self.pin.take().drive(source, level, |entry| self.send(entry))
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn two_sources_raise_a_level_that_is_sent_once() {
    check(|| {
        let machine = Machine::new(LEVEL);
        let other = machine.clone();
        let other = thread::spawn(move || other.drive(LineSource::RESAMPLE, true));
        let mine = machine.drive(LineSource::USER, true);
        let answers = [mine, other.join().unwrap()];
        assert!(answers.contains(&Delivery::Delivered(1)) && answers.contains(&Delivery::Ignored), "{answers:?}");
        assert_eq!(machine.sent.load(Ordering::Relaxed), 1);
        assert_eq!(machine.pin.take().line.bits(), 3);
    });
}

/// Hazard H-A: the end of an interrupt meets a new rise of its line.
#[test]
fn a_rise_that_meets_the_end_is_sent_once() {
    check(|| {
        let machine = Machine::new(LEVEL);
        machine.drive(LineSource::USER, true);
        machine.drive(LineSource::USER, false);
        let device = machine.clone();
        let device = thread::spawn(move || {
            device.drive(LineSource::USER, true);
        });
        machine.pin.take().end();
        machine.pin.take().reevaluate(false, |entry| machine.send(entry));
        device.join().unwrap();
        assert_eq!(machine.sent.load(Ordering::Relaxed), 2, "the first one, and the new one");
        assert!(machine.pin.take().entry.remote_irr());
    });
}

/// Hazard H12: a withdrawal takes back a stale latch, never a rise that came after the store.
#[test]
fn a_rise_that_meets_a_withdrawal_is_not_lost() {
    check(|| {
        let machine = Machine::new(LEVEL.with_masked(true));
        machine.drive(LineSource::RESAMPLE, true);
        assert!(machine.pin.take_for_configuration().store(LEVEL.into_bits()));
        let device = machine.clone();
        let device = thread::spawn(move || {
            device.drive(LineSource::RESAMPLE, true);
        });
        machine.pin.take_for_configuration().withdraw();
        device.join().unwrap();
        let state = *machine.pin.take();
        assert_eq!(machine.sent.load(Ordering::Relaxed), 1);
        assert!(state.flags.latched() && state.flags.due() == Due::No);
    });
}

#[test]
fn a_mask_that_has_returned_is_not_passed() {
    check(|| {
        let machine = Machine::new(RedirectionEntry::new().with_vector(0x41));
        let device = machine.clone();
        let device = thread::spawn(move || {
            for level in [true, false, true] {
                device.drive(LineSource::USER, level);
            }
        });
        machine.pin.take_for_configuration().entry.set_masked(true);
        let before = machine.sent.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(machine.sent.load(Ordering::Relaxed), before);
        device.join().unwrap();
        assert_eq!(machine.sent.load(Ordering::Relaxed), before);
    });
}
