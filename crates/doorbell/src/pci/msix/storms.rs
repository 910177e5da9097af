//! Threads against each other: events that come while vectors are masked, unmasked, enabled, disabled and robbed.
//!
//! The ledger: a source publishes the number of its event before it fires; whoever receives a message notes the number
//! that is published then. A vector whose last number was never noted has lost its last event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{MsixTable, registers::MessageControl};
use crate::{
    MsiMessage,
    pci::{
        InjectorMask, InjectorOptions, MaskStrategy, VectorPool, WhileDisabled,
        fake_path::{FakePath, TestPath},
        rig::{self, Make, Rig, TablePath},
    },
};

const STORM: Duration = Duration::from_millis(150);

#[derive(Default)]
struct Entry {
    /// Events fired.
    published: AtomicU32,
    /// The number of the last event that a received message stood for.
    seen: AtomicU32,
    /// Messages received.
    received: AtomicU32,
}

struct Ledger(Vec<Entry>);

impl Ledger {
    /// Watches a path whose messages carry the number of an entry.
    fn over(path: &dyn TestPath, vectors: u16) -> Arc<Self> {
        let ledger = Arc::new(Self((0..vectors).map(|_| Entry::default()).collect()));
        let watched = ledger.clone();
        path.watch(Box::new(move |message| {
            let entry = &watched.0[message.data as usize];
            entry.received.fetch_add(1, Ordering::SeqCst);
            entry.seen.fetch_max(entry.published.load(Ordering::SeqCst), Ordering::SeqCst);
        }));
        ledger
    }

    fn publish(&self, vector: u16) {
        self.0[usize::from(vector)].published.fetch_add(1, Ordering::SeqCst);
    }

    fn received(&self, vector: u16) -> u32 {
        self.0[usize::from(vector)].received.load(Ordering::SeqCst)
    }

    fn received_by_all(&self) -> u32 {
        self.0.iter().map(|entry| entry.received.load(Ordering::SeqCst)).sum()
    }

    fn check(&self) {
        for (vector, entry) in self.0.iter().enumerate() {
            let Entry { published, seen, received } = entry;
            let (published, seen) = (published.load(Ordering::SeqCst), seen.load(Ordering::SeqCst));
            let received = received.load(Ordering::SeqCst);
            assert!(received <= published, "vector {vector}: {published} events, {received} messages");
            assert_eq!(seen, published, "vector {vector} lost its last event");
        }
    }
}

/// A table whose vectors carry their number, and threads that fire them.
struct Storm {
    table: MsixTable<Box<dyn MaskStrategy>>,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    sources: Vec<thread::JoinHandle<()>>,
}

impl Storm {
    /// Two threads, each of which fires half of the vectors in turn.
    fn begin(make: Make, vectors: u16, masked: bool) -> Self {
        let Rig { strategy, path, fire } = make(vectors, WhileDisabled::Keep);
        let mut table = MsixTable::new(strategy).unwrap();
        for vector in 0..vectors {
            table.write(u64::from(vector) * 16 + 8, &(u64::from(masked) << 32 | u64::from(vector)).to_le_bytes());
        }
        let ledger = Ledger::over(&*path, vectors);
        let stop = Arc::new(AtomicBool::new(false));
        let sources: Vec<_> = (0..2)
            .map(|half| {
                let (ledger, stop, fire) = (ledger.clone(), stop.clone(), fire.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for vector in (half..vectors).step_by(2) {
                            ledger.publish(vector);
                            fire(vector);
                        }
                    }
                })
            })
            .collect();
        // On a busy machine a thread may start late.
        while ledger.0[..2].iter().any(|entry| entry.published.load(Ordering::SeqCst) == 0) {
            assert!(sources.iter().all(|source| !source.is_finished()));
            thread::yield_now();
        }
        Self { table, ledger, stop, sources }
    }

    fn control(&mut self, enable: bool, function_mask: bool) {
        self.table.set_control(MessageControl::new().with_enable(enable).with_function_mask(function_mask));
    }

    fn mask(&mut self, vector: u16, masked: bool) {
        self.table.write(u64::from(vector) * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn turns(&mut self, mut turn: impl FnMut(&mut Self)) -> u32 {
        let end = Instant::now() + STORM;
        let mut turns = 0;
        while turns < 3 || Instant::now() < end {
            turn(self);
            turns += 1;
        }
        turns
    }

    /// Unmasks everything, lets the sources end, and looks at the ledger.
    fn end(mut self) {
        for vector in 0..self.table.vectors() {
            self.mask(vector, false);
        }
        self.control(true, false);
        self.stop.store(true, Ordering::Relaxed);
        for source in self.sources.drain(..) {
            source.join().unwrap();
        }
        self.ledger.check();
        assert!(self.ledger.received_by_all() > 0);
    }
}

fn h14_events_against_the_mask_of_their_vector(make: Make) {
    let mut storm = Storm::begin(make, 4, false);
    storm.control(true, false);
    storm.turns(|storm| {
        for vector in 0..4 {
            storm.mask(vector, true);
            let before = storm.ledger.received(vector);
            thread::yield_now();
            assert_eq!(storm.ledger.received(vector), before, "vector {vector} sent while masked");
            storm.mask(vector, false);
        }
    });
    storm.end();
}

fn h16_early_events_while_the_function_comes_and_goes(make: Make) {
    let mut storm = Storm::begin(make, 16, true);
    storm.turns(|storm| {
        storm.control(true, true);
        storm.control(true, false);
        for vector in 0..16 {
            storm.mask(vector, false);
        }
        thread::yield_now();
        storm.control(false, false);
        let before = storm.ledger.received_by_all();
        thread::yield_now();
        assert_eq!(storm.ledger.received_by_all(), before, "sent while disabled");
        for vector in 0..16 {
            storm.mask(vector, true);
        }
    });
    storm.end();
}

fn h17_function_mask_with_2048_vectors_firing(make: Make) {
    let mut storm = Storm::begin(make, 2048, false);
    storm.control(true, false);
    storm.turns(|storm| {
        storm.control(true, true);
        let before = storm.ledger.received_by_all();
        thread::yield_now();
        assert_eq!(storm.ledger.received_by_all(), before, "sent under the function mask");
        storm.control(true, false);
        thread::yield_now();
    });
    storm.end();
}

/// M15: the message that is being sent while the vector is masked arrives before the store has returned, or after
/// the unmask; the read-back that a guest does sees the end of it.
fn m15_nothing_arrives_after_the_read_back(make: Make) {
    let mut storm = Storm::begin(make, 2, false);
    storm.control(true, false);
    storm.turns(|storm| {
        storm.mask(0, true);
        let mut control = [0; 4];
        storm.table.read(12, &mut control);
        let before = (storm.ledger.received(0), control);
        thread::sleep(Duration::from_micros(50));
        assert_eq!((storm.ledger.received(0), [1, 0, 0, 0]), before);
        storm.mask(0, false);
    });
    storm.end();
}

macro_rules! over {
    ($($rig:ident)*) => {
        $(
            mod $rig {
                #[test]
                fn h14() {
                    super::h14_events_against_the_mask_of_their_vector(super::rig::$rig);
                }
                #[test]
                fn h16() {
                    super::h16_early_events_while_the_function_comes_and_goes(super::rig::$rig);
                }
                #[test]
                fn h17() {
                    super::h17_function_mask_with_2048_vectors_firing(super::rig::$rig);
                }
                #[test]
                fn m15() {
                    super::m15_nothing_arrives_after_the_read_back(super::rig::$rig);
                }
            }
        )*
    };
}

over!(fake table biased shared producer);

/// Two devices of 8 vectors over 4 GSIs, unmasking and masking at random: GSIs are robbed and given back all the time.
fn devices_that_rob_each_other_lose_nothing<P: TestPath + 'static>(path: Arc<P>) {
    const VECTORS: u16 = 8;
    let ledger = Ledger::over(&*path, 2 * VECTORS);
    let pool = VectorPool::new(path.clone());
    let message = |device: u16, vector: u16| MsiMessage::new(0, (device * VECTORS + vector).into());
    let mut devices: Vec<_> = (0..2)
        .map(|_| {
            let mut device = InjectorMask::new(&pool, VECTORS, InjectorOptions::default()).unwrap();
            device.set_enabled(true);
            device
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let guests: Vec<_> = (0u16..)
            .zip(&mut devices)
            .map(|(at, device)| {
                let handles: Vec<_> = (0..VECTORS).map(|vector| device.vector(vector).unwrap()).collect();
                let (ledger, stop) = (&ledger, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for (vector, handle) in (0u16..).zip(&handles) {
                            ledger.publish(at * VECTORS + vector);
                            handle.fire();
                        }
                    }
                });
                scope.spawn(move || {
                    let end = Instant::now() + 2 * STORM;
                    let mut random = 0x9e37_79b9_u32 + u32::from(at);
                    let mut turns = 0;
                    while turns < 1000 || Instant::now() < end {
                        turns += 1;
                        random ^= random << 13;
                        random ^= random >> 17;
                        random ^= random << 5;
                        let vector = (random >> 8) as u16 % VECTORS;
                        match random % 16 {
                            0 => device.set_enabled(false),
                            1..=7 => device.mask(vector),
                            _ => {
                                device.set_enabled(true);
                                device.unmask(vector, &message(at, vector));
                            }
                        }
                    }
                })
            })
            .collect();
        for guest in guests {
            guest.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Until now the other one may have had them all.
    devices.iter_mut().for_each(|device| device.set_enabled(false));
    for (at, device) in (0u16..).zip(&mut devices) {
        device.set_enabled(true);
        for vector in 0..VECTORS {
            device.unmask(vector, &message(at, vector));
            assert!(!device.is_pending(vector));
            device.mask(vector);
        }
    }
    ledger.check();
    assert_eq!(pool.starving(), 0);
    assert!(devices.iter().any(|device| device.counters().starved > 0), "the GSIs were never short");
    drop(devices);
    assert_eq!(path.lent(), 0);
}

#[test]
fn devices_that_rob_each_other_lose_nothing_fake() {
    devices_that_rob_each_other_lose_nothing(FakePath::new(4));
}

#[test]
fn devices_that_rob_each_other_lose_nothing_table() {
    devices_that_rob_each_other_lose_nothing(TablePath::limited(4));
}
