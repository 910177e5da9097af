//! For the tests of the cache: a table of single words, and a target that counts what arrives.

use std::sync::Arc;

use super::{Cripple, RemapCache, Remapper, Way};
use crate::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    sync::{AtomicU32, Ordering},
};

/// Nothing goes there.
pub const BLOCK: u32 = 0;
pub const OLD: u32 = 2;
pub const NEW: u32 = 4;
/// Odd: the inner target cannot resolve it in advance.
#[cfg(not(loom))]
pub const UNRESOLVED: u32 = 3;
/// From here on the remapper delivers itself.
pub const POST: u32 = 5;
const VALUES: usize = 8;

/// Deliveries by what the entry said.
pub struct Sink([AtomicU32; VALUES]);

impl Sink {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }

    fn deliver(&self, value: u32) -> Delivery {
        // Relaxed: read after a join, or after what it is to be ordered by.
        self.0[value as usize].fetch_add(1, Ordering::Relaxed);
        Delivery::Delivered(value)
    }

    pub fn count(&self, value: u32) -> u32 {
        self.0[value as usize].load(Ordering::Relaxed)
    }

    pub fn all(&self) -> u32 {
        (0..VALUES as u32).map(|value| self.count(value)).sum()
    }
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.deliver(message.data))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if message.data & 1 == 0 { Target::new(message.data) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        self.deliver(target.bits())
    }
}

/// A table indexed by a message's data, which is also its tag.
pub struct Table {
    pub entries: Vec<AtomicU32>,
    pub sink: Arc<Sink>,
    /// How often it was read.
    pub reads: AtomicU32,
}

impl Remapper for Table {
    type Fault = ();

    fn tag(&self, message: &MsiMessage) -> u32 {
        message.data
    }

    fn remap(&self, message: &MsiMessage) -> Result<Way, ()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        // Relaxed, as guest memory is read: what makes it new is the lock of the bucket.
        match self.entries[message.data as usize].load(Ordering::Relaxed) {
            BLOCK => Err(()),
            POST.. => Ok(Way::Post([POST.into(), message.address])),
            value => Ok(Way::Message { address: message.address, data: value }),
        }
    }

    fn post(&self, words: [u64; 2]) -> Delivery {
        assert_eq!(words[1], ADDRESS, "the second word comes back as well");
        self.sink.deliver(words[0] as u32)
    }
}

const ADDRESS: u64 = 0xfee0_0010;

/// A cache over a table whose entries are all `OLD`.
pub struct Rig {
    pub cache: RemapCache,
    pub table: Table,
}

impl Rig {
    pub fn new(entries: usize, most: u32, cripple: Cripple) -> Self {
        let sink = Arc::new(Sink::new());
        let cache = RemapCache { cripple, ..RemapCache::new(sink.clone(), most) };
        let entries = (0..entries).map(|_| AtomicU32::new(OLD)).collect();
        Self { cache, table: Table { entries, sink, reads: AtomicU32::new(0) } }
    }

    pub fn message(index: u32) -> MsiMessage {
        MsiMessage::new(ADDRESS, index)
    }

    pub fn prepare(&self, index: u32) -> Target {
        self.cache.prepare(&self.table, &Self::message(index)).expect("there is room")
    }

    pub fn fire(&self, target: Target) -> Result<Delivery, ()> {
        self.cache.fire(&self.table, target)
    }

    pub fn send(&self, index: u32) -> Result<Delivery, ()> {
        self.cache.send(&self.table, &Self::message(index)).map(|sent| sent.expect("the sink takes everything"))
    }

    /// What a guest does: changes an entry and has it invalidated.
    pub fn change(&self, index: u32, value: u32) {
        self.table.entries[index as usize].store(value, Ordering::Relaxed);
        self.cache.invalidate(&self.table, index..=index);
    }

    #[cfg(not(loom))]
    pub fn reads(&self) -> u32 {
        self.table.reads.load(Ordering::Relaxed)
    }

    pub fn count(&self, value: u32) -> u32 {
        self.table.sink.count(value)
    }
}
