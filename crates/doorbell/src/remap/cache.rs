//! What a remapper remembers of its tables: for each message that was prepared, where it goes.
//!
//! The promise (hazards H18 and H37; spec rows T10, T23, T24): once [`RemapCache::invalidate`] has returned, no message is
//! delivered by what the tables said before; a message in flight meets the old or the new entry, never a mixture; one
//! whose entry is gone is blocked.
//!
//! A slot belongs to one message: its address, its data and its sender. So the sender is checked when a slot is filled
//! and two devices never share one. The 24 bits of a [`Target`] are the number of a slot.
//!
//! | who | takes |
//! |---|---|
//! | a message that finds its slot filled | the slot's [`Latch`], for the time of one delivery |
//! | one that finds it empty, or was not prepared | the bucket's lock; reads the tables, fills the slot, delivers, all inside |
//! | an invalidation | the bucket's lock, then the latch of each filled slot |
//!
//! Who reads the tables holds the bucket, so an invalidation is either before it, and it reads the new entry, or after
//! it, and finds the slot filled. An event that meets the invalidation in the latch is left with it and delivered by the
//! old entry before the invalidation returns: its sender was checked against that entry and against no other.
//!
//! In the lock order a bucket comes after the registers of its unit and before the latch of its slots and the inner
//! target. Which messages are concerned by an invalidation is said by a tag, a number that depends on the message alone:
//! VT-d takes the index of the entry; AMD-Vi the requester and the index.

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod rig;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use crate::{
    Delivery, DeviceId, Error, MsiMessage, MsiTarget, Target,
    inflight::{Fired, Latch, PAYLOAD_BITS},
    sync::{AtomicU64, Mutex, Ordering},
};

/// What is particular to one kind of remapping.
pub trait Remapper {
    /// Why a message is blocked.
    type Fault;

    /// The tag of a message. It must not depend on anything that can change.
    fn tag(&self, message: &MsiMessage) -> u32;

    /// Looks the message up in the tables. It may be called at any time, with a lock of the cache held, and must neither
    /// come back to the cache nor send anything.
    ///
    /// # Errors
    /// If the message is to be blocked. That is not remembered: the next one is looked up again.
    fn remap(&self, message: &MsiMessage) -> Result<Way, Self::Fault>;

    /// Delivers a [`Way::Post`]. It runs inside the slot's latch: it must be short and must not come back to the cache.
    fn post(&self, words: [u64; 2]) -> Delivery;
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// This is sent to the inner target instead, as a message of the same sender.
    Message {
        /// The new address.
        address: u64,
        /// The new data.
        data: u32,
    },
    /// The remapper delivers it itself, by two words that mean something to it ([`Remapper::post`]).
    Post([u64; 2]),
}

/// The kinds of a filled slot; an empty one has payload 0.
const TARGET: u64 = 1;
const MESSAGE: u64 = 2;
const POST: u64 = 3;
const KIND_BITS: u32 = 2;
const KIND: u64 = (1 << KIND_BITS) - 1;
const EMPTY: u64 = 0;

const _: () = assert!(KIND_BITS + Target::BITS <= PAYLOAD_BITS, "kind and target fit into a latch");

/// Bits of a slot's number within its chunk.
const CHUNK_BITS: u32 = if cfg!(loom) { 1 } else { 8 };
const CHUNK: usize = 1 << CHUNK_BITS;
/// A power of two. Neighbouring tags are in different buckets.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 256 };

/// A message that was prepared; it stays.
#[derive(Debug)]
struct Prepared {
    address: u64,
    data: u32,
    device_id: Option<DeviceId>,
    tag: u32,
}

impl Prepared {
    fn message(&self) -> MsiMessage {
        MsiMessage { address: self.address, data: self.data, device_id: self.device_id }
    }
}

/// One message and where it goes.
#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    /// The kind, above it the inner target of kind `TARGET`. Changed only by who holds the bucket of the message.
    latch: Latch,
    /// Address and data of kind `MESSAGE` or the words of kind `POST`. Written with the bucket held, while the latch's payload
    /// says `EMPTY`; read inside the latch or with the bucket held. So Relaxed is enough.
    words: [AtomicU64; 2],
    /// The message to be looked up, for who finds the slot empty.
    prepared: OnceLock<Prepared>,
}

impl Slot {
    fn new() -> Self {
        Self { latch: Latch::new(EMPTY), words: [AtomicU64::new(0), AtomicU64::new(0)], prepared: OnceLock::new() }
    }

    fn words(&self) -> [u64; 2] {
        [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)]
    }
}

type Chunk = Box<[Slot]>;

/// The slots of the messages whose tags fall into one bucket.
#[derive(Default)]
struct Bucket {
    slots: Vec<u32>,
    /// How many of them are filled: an invalidation that has nothing to do costs a lock and no more.
    filled: u32,
}

/// The cache of one remapping unit, in front of the unit's inner target. See the [module](self).
///
/// ```
/// use doorbell::remap::{RemapCache, Remapper, Way};
/// use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target};
/// use std::sync::{Arc, Mutex, atomic::{AtomicU32, Ordering}};
///
/// /// Local APICs that only write down the vectors.
/// #[derive(Default)]
/// struct Sink(Mutex<Vec<u32>>);
/// impl MsiTarget for Sink {
///     fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
///         self.0.lock().unwrap().push(message.data);
///         Ok(Delivery::Delivered(1))
///     }
///     fn prepare(&self, _: &MsiMessage) -> Option<Target> { None }
///     fn fire(&self, _: Target) -> Delivery { Delivery::Ignored }
/// }
///
/// /// A table of one entry, the vector; 0 is none.
/// struct OneEntry(AtomicU32);
/// impl Remapper for OneEntry {
///     type Fault = &'static str;
///     fn tag(&self, message: &MsiMessage) -> u32 { message.data }
///     fn remap(&self, _: &MsiMessage) -> Result<Way, Self::Fault> {
///         match self.0.load(Ordering::Relaxed) {
///             0 => Err("not present"),
///             vector => Ok(Way::Message { address: 0xfee0_0000, data: vector }),
///         }
///     }
///     fn post(&self, _: [u64; 2]) -> Delivery { Delivery::Ignored }
/// }
///
/// let (sink, table) = (Arc::new(Sink::default()), OneEntry(AtomicU32::new(0x41)));
/// let cache = RemapCache::new(sink.clone(), RemapCache::MOST);
/// let target = cache.prepare(&table, &MsiMessage::new(0xfee0_0010, 0)).unwrap();
/// cache.fire(&table, target)?;
/// table.0.store(0, Ordering::Relaxed); // the guest takes the entry away…
/// cache.invalidate(&table, 0..=0);     // …and says so
/// assert_eq!(cache.fire(&table, target), Err("not present"));
/// assert_eq!(*sink.0.lock().unwrap(), [0x41]);
/// # Ok::<(), &'static str>(())
/// ```
pub struct RemapCache {
    inner: Arc<dyn MsiTarget>,
    /// By the number of a slot. Chunks appear as they are needed and stay.
    chunks: Box<[OnceLock<Chunk>]>,
    /// Lock order: after the registers of the unit, before the latch of a slot. An invalidation takes one at a time.
    buckets: Box<[Mutex<Bucket>]>,
    /// How many slots are taken. Lock order: after a bucket; nothing else is taken while it is held.
    taken: Mutex<u32>,
    most: u32,
    /// What is left out of the protocol, to see that the tests notice.
    #[cfg(test)]
    cripple: Cripple,
}

impl std::fmt::Debug for RemapCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemapCache").field("most", &self.most).finish_non_exhaustive()
    }
}

impl RemapCache {
    /// The usual number of messages that a cache has room for: 4 MiB, if they are all used.
    pub const MOST: u32 = 1 << 16;

    /// A cache in front of `inner` with room for `most` messages, at most 2^24. Memory is taken as messages are prepared,
    /// 16 KiB for each 256.
    pub fn new(inner: Arc<dyn MsiTarget>, most: u32) -> Self {
        let most = most.min(1 << Target::BITS);
        Self {
            inner,
            chunks: (0..most.div_ceil(1 << CHUNK_BITS)).map(|_| OnceLock::new()).collect(),
            buckets: (0..BUCKETS).map(|_| Mutex::new(Bucket::default())).collect(),
            taken: Mutex::new(0),
            most,
            #[cfg(test)]
            cripple: Cripple::Nothing,
        }
    }

    /// The target behind this cache.
    pub fn inner(&self) -> &dyn MsiTarget {
        &*self.inner
    }

    #[inline]
    fn slot(&self, number: u32) -> Option<&Slot> {
        self.chunks.get((number >> CHUNK_BITS) as usize)?.get()?.get(number as usize % CHUNK)
    }

    fn bucket(&self, tag: u32) -> &Mutex<Bucket> {
        &self.buckets[tag as usize % BUCKETS]
    }

    /// A slot for the message: that which it has, or a free one. `None` when all are taken; such a message can still be
    /// [sent](Self::send).
    pub fn prepare(&self, remapper: &impl Remapper, message: &MsiMessage) -> Option<Target> {
        let tag = remapper.tag(message);
        let mut bucket = self.bucket(tag).lock();
        let mine = |number: &&u32| {
            self.slot(**number).and_then(|slot| slot.prepared.get()).is_some_and(|it| it.message() == *message)
        };
        if let Some(number) = bucket.slots.iter().find(mine) {
            return Target::new(*number);
        }
        let number = {
            let mut taken = self.taken.lock();
            if *taken == self.most {
                return None;
            }
            *taken += 1;
            *taken - 1
        };
        let chunk = self.chunks[(number >> CHUNK_BITS) as usize]
            .get_or_init(|| (0..CHUNK).map(|_| Slot::new()).collect::<Chunk>());
        chunk[number as usize % CHUNK].prepared.get_or_init(|| {
            let MsiMessage { address, data, device_id } = *message;
            Prepared { address, data, device_id, tag }
        });
        bucket.slots.push(number);
        Target::new(number)
    }

    /// Sends a prepared message. Nothing but the latch of its slot is taken while the slot is filled. An event that is
    /// left with an invalidation, which then delivers it, answers `Coalesced`, as everywhere here.
    ///
    /// # Errors
    /// Why it is blocked.
    #[inline]
    pub fn fire<R: Remapper>(&self, remapper: &R, target: Target) -> Result<Delivery, R::Fault> {
        let Some(slot) = self.slot(target.bits()) else { return Ok(Delivery::Ignored) };
        let fired =
            slot.latch.fire_if(|payload| payload & KIND != EMPTY, |payload| self.deliver(remapper, slot, payload));
        match fired {
            Some(Fired::Ran(delivery)) => Ok(delivery),
            // Never masked, so `Pending` does not occur.
            Some(Fired::HandedOver | Fired::Pending { .. }) => Ok(Delivery::Coalesced),
            None => self.fill(remapper, slot),
        }
    }

    /// A message whose slot is empty.
    #[cold]
    fn fill<R: Remapper>(&self, remapper: &R, slot: &Slot) -> Result<Delivery, R::Fault> {
        let Some(prepared) = slot.prepared.get() else { return Ok(Delivery::Ignored) };
        let message = prepared.message();
        #[cfg(test)]
        let early = (self.cripple == Cripple::FillReadsTooEarly).then(|| remapper.remap(&message));
        let mut bucket = self.bucket(prepared.tag).lock();
        let mut payload = slot.latch.peek().payload;
        if payload & KIND == EMPTY {
            #[cfg(test)]
            let way = early.unwrap_or_else(|| remapper.remap(&message))?;
            #[cfg(not(test))]
            let way = remapper.remap(&message)?;
            let words;
            (payload, words) = self.resolve(way, message.device_id);
            for (word, value) in slot.words.iter().zip(words) {
                word.store(value, Ordering::Relaxed);
            }
            let ((), handed) = slot.latch.configure_taking(|latch| latch.payload = payload);
            debug_assert!(!handed, "an empty slot admits nobody who could leave an event");
            bucket.filled += 1;
        }
        // With the bucket held, no invalidation can complete before this delivery.
        let delivery = self.deliver(remapper, slot, payload);
        drop(bucket);
        Ok(delivery)
    }

    /// Sends a message that was not prepared: the tables are read for it.
    ///
    /// # Errors
    /// Why it is blocked, or, inside, why the inner target refused it.
    pub fn send<R: Remapper>(&self, remapper: &R, message: &MsiMessage) -> Result<Result<Delivery, Error>, R::Fault> {
        let bucket = self.bucket(remapper.tag(message)).lock();
        let delivery = match remapper.remap(message)? {
            Way::Message { address, data } => {
                self.inner.send(&MsiMessage { address, data, device_id: message.device_id })
            }
            Way::Post(words) => Ok(remapper.post(words)),
        };
        drop(bucket);
        Ok(delivery)
    }

    /// Forgets what was found for the messages with these tags. When it returns, no delivery by the old entries is under
    /// way or will come.
    pub fn invalidate(&self, remapper: &impl Remapper, tags: RangeInclusive<u32>) {
        let (&first, &last) = (tags.start(), tags.end());
        let Some(span) = last.checked_sub(first) else { return };
        let buckets = (span as usize).saturating_add(1).min(BUCKETS);
        for offset in 0..buckets {
            // Also a bucket without a slot: somebody may be reading the tables there, for a message not prepared.
            let mut bucket = self.buckets[(first as usize).wrapping_add(offset) % BUCKETS].lock();
            let Bucket { slots, filled } = &mut *bucket;
            let mut left = slots.iter();
            while *filled > 0 {
                let Some(number) = left.next() else { break };
                let Some(slot) = self.slot(*number) else { continue };
                if slot.prepared.get().is_some_and(|it| tags.contains(&it.tag)) && self.empty(remapper, slot) {
                    *filled -= 1;
                }
            }
        }
    }

    /// Empties a slot, whose bucket is held; false if it was empty.
    fn empty(&self, remapper: &impl Remapper, slot: &Slot) -> bool {
        if slot.latch.peek().payload & KIND == EMPTY {
            return false;
        }
        let (old, handed) = slot.latch.configure_taking(|latch| std::mem::replace(&mut latch.payload, EMPTY));
        #[cfg(test)]
        let handed = handed && self.cripple != Cripple::HandedIsDropped;
        if handed {
            self.deliver(remapper, slot, old);
        }
        true
    }

    /// The payload of a filled slot and its words.
    fn resolve(&self, way: Way, device_id: Option<DeviceId>) -> (u64, [u64; 2]) {
        match way {
            Way::Message { address, data } => {
                let words = [address, u64::from(data)];
                match self.inner.prepare(&MsiMessage { address, data, device_id }) {
                    Some(target) => (TARGET | u64::from(target.bits()) << KIND_BITS, words),
                    None => (MESSAGE, words),
                }
            }
            Way::Post(words) => (POST, words),
        }
    }

    /// Delivers by a payload that the caller keeps from changing.
    #[inline]
    fn deliver(&self, remapper: &impl Remapper, slot: &Slot, payload: u64) -> Delivery {
        match inner_target(payload) {
            Some(target) => self.inner.fire(target),
            None => self.deliver_slowly(remapper, slot, payload),
        }
    }

    #[cold]
    fn deliver_slowly(&self, remapper: &impl Remapper, slot: &Slot, payload: u64) -> Delivery {
        let words = slot.words();
        if payload & KIND == POST {
            return remapper.post(words);
        }
        let [address, data] = words;
        let device_id = slot.prepared.get().and_then(|it| it.device_id);
        self.inner.send(&MsiMessage { address, data: data as u32, device_id }).unwrap_or_else(|error| {
            tracing::debug!(%error, "a remapped message was refused");
            Delivery::Ignored
        })
    }
}

/// The inner target of a payload of kind `TARGET`.
#[inline]
fn inner_target(payload: u64) -> Option<Target> {
    let bits = (payload >> KIND_BITS) as u32 & ((1 << Target::BITS) - 1);
    if payload & KIND == TARGET { Target::new(bits) } else { None }
}

/// The part of the protocol that is left out. Each test of the promise is run against these as well and must fail.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cripple {
    /// None.
    Nothing,
    /// Who finds its slot empty reads the tables before it holds the bucket.
    FillReadsTooEarly,
    /// An event that was left with an invalidation is forgotten.
    HandedIsDropped,
}

const _: () = assert!(cfg!(any(test, loom)) || size_of::<Slot>() == 64, "a cache line for each message");
