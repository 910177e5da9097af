//! loom models of the protocol on the words, one bit of it.

use std::sync::Arc;

use loom::thread;

use super::words::Words;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const BIT: u64 = 1;

/// The memory, with a count of what was sent by whomever.
struct Memory {
    host: AtomicU64,
    guest: AtomicU64,
    pending: AtomicU64,
    sent: AtomicU32,
}

impl Memory {
    fn masked_by(host: u64, guest: u64) -> Arc<Self> {
        Arc::new(Self {
            host: AtomicU64::new(host),
            guest: AtomicU64::new(guest),
            pending: AtomicU64::new(0),
            sent: AtomicU32::new(0),
        })
    }

    fn words(&self) -> Words<'_> {
        Words { host: &self.host, guest: &self.guest, pending: &self.pending }
    }

    fn send_if(&self, due: bool) {
        if due {
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn signal(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let memory = self.clone();
        thread::spawn(move || memory.send_if(memory.words().signal(BIT)))
    }

    fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }
}

#[test]
fn h14_signal_against_the_hosts_unmask() {
    loom::model(|| {
        let memory = Memory::masked_by(BIT, 0);
        let signal = memory.signal();
        memory.send_if(memory.words().unmask(BIT) != 0);
        signal.join().unwrap();
        assert_eq!(memory.sent(), 1);
    });
}

#[test]
fn two_signals_against_mask_and_unmask() {
    let mut builder = loom::model::Builder::new();
    // Three threads: all interleavings take a minute.
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let memory = Memory::masked_by(0, 0);
        let signals = [memory.signal(), memory.signal()];
        memory.words().mask(BIT);
        memory.send_if(memory.words().unmask(BIT) != 0);
        for signal in signals {
            signal.join().unwrap();
        }
        assert!((1..=2).contains(&memory.sent()));
        assert_eq!(memory.pending.load(Ordering::Relaxed), 0);
    });
}

/// The guest unmasks by a store and nothing else; device and VMM both poll, and one of the three sends.
#[test]
fn signal_against_the_guests_store_and_two_pollers() {
    loom::model(|| {
        let memory = Memory::masked_by(0, BIT);
        let signal = memory.signal();
        let poller = {
            let memory = memory.clone();
            thread::spawn(move || memory.send_if(memory.words().due(BIT) != 0))
        };
        memory.guest.store(0, Ordering::Release);
        memory.send_if(memory.words().due(BIT) != 0);
        signal.join().unwrap();
        poller.join().unwrap();
        // The next turn of a poller, which sees all of the above.
        memory.send_if(memory.words().due(BIT) != 0);
        assert_eq!(memory.sent(), 1);
    });
}

/// Without the second look at the mask an event is left behind: the models can see that.
#[test]
#[should_panic(expected = "lost")]
fn signal_without_the_second_look_is_seen_to_lose() {
    loom::model(|| {
        let memory = Memory::masked_by(BIT, 0);
        let signal = {
            let memory = memory.clone();
            thread::spawn(move || {
                if memory.words().masked() & BIT == 0 {
                    memory.send_if(true);
                } else {
                    memory.pending.fetch_or(BIT, Ordering::Release);
                }
            })
        };
        memory.send_if(memory.words().unmask(BIT) != 0);
        signal.join().unwrap();
        assert_eq!(memory.sent(), 1, "lost");
    });
}
