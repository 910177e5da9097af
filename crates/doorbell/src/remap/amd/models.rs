//! loom models: an invalidation that skips the cache because nobody has looked at the tables since the last one.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib remap::amd`

use loom::{sync::Arc, thread};

use super::filled::Filled;
use crate::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    remap::{RemapCache, Remapper, Way},
    sync::{AtomicU32, Ordering},
};

const OLD: u32 = 1;
const NEW: u32 = 2;
const MESSAGE: MsiMessage = MsiMessage::new(0xfee0_0000, 0);

/// Local APICs that count the vectors.
#[derive(Default)]
struct Sink([AtomicU32; 3]);

impl Sink {
    fn count(&self, vector: u32) -> u32 {
        self.0[vector as usize].load(Ordering::Relaxed)
    }
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0[message.data as usize].fetch_add(1, Ordering::Relaxed);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        Target::new(message.data)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.0[target.bits() as usize].fetch_add(1, Ordering::Relaxed);
        Delivery::Delivered(1)
    }
}

/// A unit's part of the protocol, with a table of one entry.
struct Unit {
    sink: std::sync::Arc<Sink>,
    cache: RemapCache,
    tables: Tables,
}

struct Tables {
    filled: Filled,
    entry: AtomicU32,
    /// Left out to see that the models notice: who looks marks afterwards.
    marks_late: bool,
}

impl Remapper for Tables {
    type Fault = ();

    fn tag(&self, _: &MsiMessage) -> u32 {
        0
    }

    fn remap(&self, message: &MsiMessage) -> Result<Way, ()> {
        if !self.marks_late {
            self.filled.mark(0);
        }
        // Relaxed: guest memory.
        let data = self.entry.load(Ordering::Relaxed);
        if self.marks_late {
            self.filled.mark(0);
        }
        Ok(Way::Message { address: message.address, data })
    }

    fn post(&self, _: [u64; 2]) -> Delivery {
        Delivery::Ignored
    }
}

impl Unit {
    fn new(marks_late: bool) -> Arc<Self> {
        let sink = std::sync::Arc::new(Sink::default());
        let tables = Tables { filled: Filled::new(), entry: AtomicU32::new(OLD), marks_late };
        Arc::new(Self { cache: RemapCache::new(sink.clone(), 2), sink, tables })
    }

    /// As `AmdUnit::forget`.
    fn forget(&self) {
        if self.tables.filled.take(0) {
            self.cache.invalidate(&self.tables, 0..=0);
        }
    }
}

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A message meets the guest that changes the entry and invalidates it; what comes after must be new.
fn a_message_against_an_invalidation(marks_late: bool, prepared: bool) {
    check(3, move || {
        let unit = Unit::new(marks_late);
        let target = prepared.then(|| unit.cache.prepare(&unit.tables, &MESSAGE).unwrap());
        let sender = {
            let unit = unit.clone();
            thread::spawn(move || {
                let fired = target.map(|target| unit.cache.fire(&unit.tables, target));
                if fired.is_none() {
                    unit.cache.send(&unit.tables, &MESSAGE).unwrap().unwrap();
                }
            })
        };
        unit.tables.entry.store(NEW, Ordering::Relaxed);
        unit.forget();
        let old = unit.sink.count(OLD);
        sender.join().unwrap();
        assert_eq!(unit.sink.count(OLD), old, "the old entry after its invalidation");
        assert_eq!(unit.sink.count(OLD) + unit.sink.count(NEW), 1, "delivered once");
        if let Some(target) = target {
            assert_eq!(unit.cache.fire(&unit.tables, target), Ok(Delivery::Delivered(1)));
            assert_eq!(unit.sink.count(OLD), old, "the old entry is still remembered");
        }
    });
}

#[test]
fn a_prepared_message_never_meets_an_old_entry_after_its_invalidation() {
    a_message_against_an_invalidation(false, true);
}

#[test]
fn a_message_that_is_not_prepared_never_meets_one_either() {
    a_message_against_an_invalidation(false, false);
}

#[test]
#[should_panic(expected = "the old entry")]
fn a_mark_set_after_the_look_is_noticed() {
    a_message_against_an_invalidation(true, true);
}

/// Two invalidations in turn, the second of which may find the mark taken.
#[test]
fn the_second_invalidation_is_as_complete_as_the_first() {
    check(2, || {
        let unit = Unit::new(false);
        let target = unit.cache.prepare(&unit.tables, &MESSAGE).unwrap();
        let sender = {
            let unit = unit.clone();
            thread::spawn(move || unit.cache.fire(&unit.tables, target).unwrap())
        };
        unit.forget();
        unit.tables.entry.store(NEW, Ordering::Relaxed);
        unit.forget();
        let old = unit.sink.count(OLD);
        sender.join().unwrap();
        unit.cache.fire(&unit.tables, target).unwrap();
        assert_eq!(unit.sink.count(OLD), old);
        assert_eq!(unit.sink.count(OLD) + unit.sink.count(NEW), 2);
    });
}
