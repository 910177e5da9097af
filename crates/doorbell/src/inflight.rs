//! The one protocol by which a configuration call becomes complete.
//!
//! Each thing that can fire (a GSI, a binding, a pin) has a [`Latch`]: one 64-bit word with 58 bits that belong to its
//! owner, a mask, a pending bit and the latch itself. The promise:
//!
//! * an event that fires meets the old configuration or the new one, never neither and never a mixture;
//! * once [`Latch::configure`] or [`Latch::mask`] has returned, nothing is delivered by the old configuration;
//! * an event that fires while the latch is masked is pending; any number of them is one, delivered once on unmask.
//!
//! # Who may do what
//!
//! | who | takes the latch by | leaves by |
//! |---|---|---|
//! | a firer | compare-and-swap, `BUSY` | a plain store: nobody else may touch the word meanwhile |
//! | a configurer | compare-and-swap, `BUSY` and `CONFIG` | a swap, which also finds `HANDED` |
//! | mask, unmask of an idle latch | one compare-and-swap, no latch held | – |
//! | the single owner, biased | nothing: `BIAS` is a promise that the word will not change without a barrier | – |
//!
//! A firer that meets a configurer does not wait: it leaves its event as `HANDED` and the configurer delivers it by the
//! new configuration. A configurer that cannot get in announces itself in `queue`; firers then stand back and hand
//! their events over in that same word, so that none can be left behind. Two firers of one latch wait for each other,
//! for the few nanoseconds of one delivery.
//!
//! The bias: after [`QUIET_FIRES`] fires that met no configurer, the single owner fires without the latch. It marks
//! its passage in a word that only it writes; a configurer takes the bias away, makes every thread pass a barrier
//! (`membarrier`), and waits until that passage is over.
//!
//! The models are in `inflight/models.rs`, the storm in `tests/inflight_storm.rs`; both are run against crippled versions of
//! the protocol too, and must fail there.

use crate::sync::{
    AtomicU32, AtomicU64, Backoff, Ordering, crippled, heavy_barrier, light_barrier, register_heavy_barrier,
};

#[cfg(test)]
mod cripple;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

/// How many bits of the word belong to the latch's owner.
pub const PAYLOAD_BITS: u32 = 58;
/// After this many fires without a configurer in the way, a single owner is granted the bias.
pub const QUIET_FIRES: u32 = if cfg!(loom) { 1 } else { 256 };

const PAYLOAD: u64 = (1 << PAYLOAD_BITS) - 1;
/// Somebody is between taking the latch and leaving it.
const BUSY: u64 = 1 << 63;
/// With `BUSY`: it is a configurer, who will look for `HANDED` on leaving.
const CONFIG: u64 = 1 << 62;
/// The single owner may fire without the latch. Never set together with `MASK` or `CONFIG`.
const BIAS: u64 = 1 << 61;
/// Events become pending instead of being delivered.
const MASK: u64 = 1 << 60;
/// An event came while masked.
const PEND: u64 = 1 << 59;
/// An event came while a configurer was in. Only set while `CONFIG` is.
const HANDED: u64 = 1 << 58;

/// In `queue`: an event came while a configurer was waiting to get in. Only set while somebody waits.
const QUEUE_HANDED: u32 = 1;
/// In `queue`: the single owner exists.
const OWNED: u32 = 2;
/// In `queue`: one configurer that waits; the rest of the word counts them.
const WAITER: u32 = 4;

/// What became of one [`Latch::fire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired<R> {
    /// It was delivered, with this result.
    Ran(R),
    /// The latch is masked: it is pending. `already`: it was so before.
    Pending {
        /// Whether an earlier event was pending already.
        already: bool,
    },
    /// A configuration call is under way, which delivers it when it is done.
    HandedOver,
}

/// The part of a latch that a configuration call may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The owner's bits; only the low [`PAYLOAD_BITS`] are kept.
    pub payload: u64,
    /// Events become pending.
    pub masked: bool,
    /// An event waits for the unmask. Meaningless while not masked: an event is then delivered, not kept.
    pub pending: bool,
}

impl Slot {
    fn of(word: u64) -> Self {
        Self { payload: word & PAYLOAD, masked: word & MASK != 0, pending: word & PEND != 0 }
    }

    fn word(self) -> u64 {
        (self.payload & PAYLOAD)
            | if self.masked { MASK } else { 0 }
            | if self.pending && self.masked { PEND } else { 0 }
    }
}

/// One thing that fires, its mask and pending bit, and 58 bits of configuration. See the [module](self).
///
/// ```
/// use doorbell::inflight::{Fired, Latch};
/// let latch = Latch::new(7);
/// assert_eq!(latch.fire(|payload| payload), Fired::Ran(7));
/// latch.mask(|_| ());
/// assert_eq!(latch.fire(|_| ()), Fired::Pending { already: false });
/// assert_eq!(latch.unmask(|payload| payload), Some(7), "delivered now, once");
/// ```
#[derive(Debug)]
pub struct Latch {
    /// Payload and state. While `BUSY` is set, written only by its holder, except that `HANDED` may be added while
    /// `CONFIG` is set too.
    word: AtomicU64,
    /// `QUEUE_HANDED`, `OWNED` and the number of waiting configurers. `QUEUE_HANDED` implies that the number is not 0.
    queue: AtomicU32,
    /// Odd while the single owner is inside a biased fire. Written by that owner only.
    passage: AtomicU32,
    /// What is left out of the protocol, to see that the tests notice.
    #[cfg(test)]
    cripple: cripple::Cripple,
}

/// Being inside as a firer; leaves on drop, so that a delivery that panics does not leave the latch taken.
struct Inside<'a> {
    latch: &'a Latch,
    word: u64,
}

impl Drop for Inside<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next one to enter, who must see what this delivery did.
        self.latch.word.store(self.word, Ordering::Release);
    }
}

impl Latch {
    /// An unmasked latch with this payload.
    pub fn new(payload: u64) -> Self {
        Self {
            word: AtomicU64::new(payload & PAYLOAD),
            queue: AtomicU32::new(0),
            passage: AtomicU32::new(0),
            #[cfg(test)]
            cripple: cripple::Cripple::Nothing,
        }
    }

    /// A masked latch with this payload.
    pub fn masked(payload: u64) -> Self {
        Self { word: AtomicU64::new(payload & PAYLOAD | MASK), ..Self::new(0) }
    }

    /// The configuration as it is now; another thread may change it at once.
    pub fn peek(&self) -> Slot {
        // Acquire: pairs with the Release of whoever set what is seen.
        Slot::of(self.word.load(Ordering::Acquire))
    }

    /// An event: calls `deliver` with the payload, or makes the event pending, or hands it to a configurer.
    ///
    /// `deliver` runs inside the latch: it must be short and must not come back to this latch.
    #[inline]
    pub fn fire<R>(&self, deliver: impl FnOnce(u64) -> R) -> Fired<R> {
        match self.fire_inner::<false, R>(|_| true, deliver) {
            Some(fired) => fired,
            None => unreachable!("everybody is admitted"),
        }
    }

    /// [`fire`](Self::fire), if the payload is one that `admit` accepts; else `None`, and nothing has happened.
    ///
    /// The event is made pending, or handed to a configurer, only while the payload is an admitted one. A configurer
    /// that turns an admitted payload into another must therefore use [`configure_taking`](Self::configure_taking).
    #[inline]
    pub fn fire_if<R>(&self, admit: impl Fn(u64) -> bool, deliver: impl FnOnce(u64) -> R) -> Option<Fired<R>> {
        self.fire_inner::<true, R>(admit, deliver)
    }

    #[inline]
    fn fire_inner<const PICKY: bool, R>(
        &self,
        admit: impl Fn(u64) -> bool,
        deliver: impl FnOnce(u64) -> R,
    ) -> Option<Fired<R>> {
        let mut backoff = Backoff::new();
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if PICKY && !admit(word & PAYLOAD) {
                return None;
            }
            if word & (BUSY | CONFIG | MASK) == 0 && self.queue.load(Ordering::Relaxed) < WAITER {
                // Acquire: pairs with the Release of the last one to leave.
                match self.word.compare_exchange_weak(word, word | BUSY, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return Some(self.run(word, deliver)),
                    Err(now) => word = now,
                }
            } else {
                match self.obstructed::<PICKY>(&mut word, &mut backoff) {
                    Obstructed::Pending { already } => return Some(Fired::Pending { already }),
                    Obstructed::HandedOver => return Some(Fired::HandedOver),
                    Obstructed::Inside => return Some(self.run(word, deliver)),
                    Obstructed::Again => {}
                }
            }
        }
    }

    /// Delivers, having taken the latch from `word`, and leaves.
    #[inline(always)]
    fn run<R>(&self, word: u64, deliver: impl FnOnce(u64) -> R) -> Fired<R> {
        let _inside = Inside { latch: self, word };
        Fired::Ran(deliver(word & PAYLOAD))
    }

    /// One attempt to get rid of an event that met a mask, a configurer or another firer.
    #[cold]
    fn obstructed<const PICKY: bool>(&self, word: &mut u64, backoff: &mut Backoff) -> Obstructed {
        if *word & CONFIG != 0 {
            // Release: pairs with the Acquire of the configurer's swap; its delivery sees what this event announces.
            return match self.word.compare_exchange(*word, *word | HANDED, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => Obstructed::HandedOver,
                Err(now) => {
                    *word = now;
                    Obstructed::Again
                }
            };
        }
        if *word & BUSY != 0 {
            backoff.wait();
            *word = self.word.load(Ordering::Relaxed);
            return Obstructed::Again;
        }
        if self.queue.load(Ordering::Relaxed) >= WAITER {
            // A picky event must not be left with whoever waits, who may come after the payload has changed. It
            // stands back for a while instead, long enough for the waiter to get in if it runs at all.
            if PICKY && !backoff.is_over() {
                backoff.wait();
                *word = self.word.load(Ordering::Relaxed);
                return Obstructed::Again;
            }
            if !PICKY && self.hand_to_waiter() {
                return Obstructed::HandedOver;
            }
        }
        let masked = *word & MASK != 0;
        let (next, order) = if masked {
            // Release: pairs with the Acquire of the unmask that delivers it.
            (*word | PEND, Ordering::Release)
        } else {
            // Acquire: pairs with the Release of the last one to leave.
            (*word | BUSY, Ordering::Acquire)
        };
        match self.word.compare_exchange(*word, next, order, Ordering::Relaxed) {
            Ok(_) if masked => Obstructed::Pending { already: *word & PEND != 0 },
            Ok(_) => Obstructed::Inside,
            Err(now) => {
                *word = now;
                Obstructed::Again
            }
        }
    }

    /// Leaves the event with a configurer that waits to get in; false if none does.
    fn hand_to_waiter(&self) -> bool {
        let mut queue = self.queue.load(Ordering::Relaxed);
        while queue >= WAITER {
            // Release: pairs with the Acquire in `leave`. Only while somebody waits, who will look.
            match self.queue.compare_exchange(queue, queue | QUEUE_HANDED, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => queue = now,
            }
        }
        false
    }

    /// Changes the configuration. When it returns, no delivery by the old one is under way or will come.
    ///
    /// `deliver` is called for an event that came meanwhile, by the new configuration. A pending bit that is no longer
    /// masked is the caller's to deliver: `change` sees it in the slot, and unmasking there drops it.
    pub fn configure<T, R>(&self, change: impl FnOnce(&mut Slot) -> T, deliver: impl FnOnce(u64) -> R) -> T {
        let (result, handed) = self.configure_taking(change);
        if handed {
            self.fire(deliver);
        }
        result
    }

    /// [`configure`](Self::configure) for a change after which the events of the old configuration must not be
    /// delivered by the new one: also returns whether an event came meanwhile. It is the caller's now.
    pub fn configure_taking<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> (T, bool) {
        let entered = self.enter();
        let mut slot = Slot::of(entered.word);
        let result = change(&mut slot);
        (result, entered.leave(slot.word()))
    }

    /// Makes further events pending. When it returns, no delivery is under way. Returns whether it was masked before.
    ///
    /// `deliver` is for an event that came while a configurer was in (see [`configure`](Self::configure)).
    #[inline]
    pub fn mask<R>(&self, deliver: impl FnOnce(u64) -> R) -> bool {
        self.mask_if(|_| true, deliver).unwrap_or(false)
    }

    /// [`mask`](Self::mask), if the payload is one that `admit` accepts; else `None`, and nothing has happened.
    #[inline]
    pub fn mask_if<R>(&self, admit: impl Fn(u64) -> bool, deliver: impl FnOnce(u64) -> R) -> Option<bool> {
        let word = self.word.load(Ordering::Relaxed);
        // An idle latch needs no more than this: without BUSY and BIAS nobody is inside.
        // AcqRel: Acquire pairs with the last firer's Release (it is over); Release for who sees the mask.
        let idle = word & (BUSY | BIAS) == 0 || crippled!(self, MaskWaitsForNobody);
        if idle
            && admit(word & PAYLOAD)
            && self.word.compare_exchange(word, word | MASK, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return Some(word & MASK != 0);
        }
        let change = |slot: &mut Slot| admit(slot.payload).then(|| std::mem::replace(&mut slot.masked, true));
        self.configure(change, deliver)
    }

    /// Lets events through again and delivers the pending one: `Some` of its result, `None` if there was none.
    #[inline]
    pub fn unmask<R>(&self, deliver: impl FnMut(u64) -> R) -> Option<R> {
        self.unmask_if(|_| true, deliver)
    }

    /// [`unmask`](Self::unmask), if the payload is one that `admit` accepts; else `None`, and nothing has happened.
    #[inline]
    pub fn unmask_if<R>(&self, admit: impl Fn(u64) -> bool, mut deliver: impl FnMut(u64) -> R) -> Option<R> {
        let word = self.word.load(Ordering::Relaxed);
        if word & (BUSY | MASK) == MASK && admit(word & PAYLOAD) {
            let open = word & !(MASK | PEND);
            if word & PEND == 0 {
                // AcqRel, as in `mask_if`.
                if self.word.compare_exchange(word, open, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return None;
                }
            } else if self.word.compare_exchange(word, open | BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                // From here on this is a firer like any other. Acquire: pairs with the Release that set PEND.
                let _inside = Inside { latch: self, word: open };
                return Some(deliver(word & PAYLOAD));
            }
        }
        let entered = self.enter();
        let mut slot = Slot::of(entered.word);
        let mut result = None;
        if admit(slot.payload) {
            let due = slot.masked && slot.pending;
            slot.masked = false;
            slot.pending = false;
            // Delivered before the latch is left: whoever sees it unmasked also sees the event.
            result = due.then(|| deliver(slot.payload));
        }
        if entered.leave(slot.word()) {
            self.fire(deliver);
        }
        result
    }

    /// Takes the latch as a configurer: firers stand back, the bias is gone and nobody is inside.
    fn enter(&self) -> Entered<'_> {
        let mut backoff = Backoff::new();
        let mut waited = false;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word & BUSY == 0 {
                let taken = (word & !BIAS) | BUSY | CONFIG;
                // Acquire: pairs with the Release of the last one to leave.
                if self.word.compare_exchange(word, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    if word & BIAS != 0 {
                        self.wait_for_owner();
                    }
                    return Entered { latch: self, word: word & !BIAS, waited };
                }
            }
            if backoff.is_long() && !waited {
                // Relaxed: it asks firers to stand back; what they hand over is ordered by their own Release.
                self.queue.fetch_add(WAITER, Ordering::Relaxed);
                waited = true;
            }
            backoff.wait();
        }
    }

    /// After BIAS was taken away: waits until the owner cannot be inside a fire that still saw it.
    #[cold]
    fn wait_for_owner(&self) {
        // Pairs with the light barrier of `fire_owned`: the owner sees BIAS gone, or its odd passage is seen here.
        if !crippled!(self, NoBarrier) {
            heavy_barrier();
        }
        // Acquire: pairs with the owner's Release at the end of its passage.
        let passage = self.passage.load(Ordering::Acquire);
        if passage & 1 == 1 && !crippled!(self, NoWaitForOwner) {
            let mut backoff = Backoff::new();
            while self.passage.load(Ordering::Acquire) == passage {
                backoff.wait();
            }
        }
    }

    /// Becomes the single owner, or `None` while there is one.
    ///
    /// With a permit, the owner is granted the bias once it has been quiet for [`QUIET_FIRES`] fires.
    pub fn own(&self, permit: Option<BiasPermit>) -> Option<OwnerState> {
        // Acquire: pairs with the Release in `disown`; the passage counter is handed from owner to owner.
        if self.queue.fetch_or(OWNED, Ordering::Acquire) & OWNED != 0 {
            return None;
        }
        let passage = self.passage.load(Ordering::Relaxed);
        Some(OwnerState { permit: permit.is_some(), passage, quiet: 0 })
    }

    /// Ends the ownership that `state` stands for. The bias, if any, is taken back.
    pub fn disown<R>(&self, state: OwnerState, deliver: impl FnOnce(u64) -> R) {
        debug_assert_eq!(state.passage & 1, 0);
        if self.word.load(Ordering::Relaxed) & BIAS != 0 {
            self.configure(|_| (), deliver);
        }
        // Release: pairs with the Acquire in `own`.
        self.queue.fetch_and(!OWNED, Ordering::Release);
    }

    /// [`fire`](Self::fire) by the single owner: without any read-modify-write while the bias holds.
    ///
    /// `owner` must come from this latch's [`own`](Self::own).
    #[inline]
    pub fn fire_owned<R>(&self, owner: &mut OwnerState, deliver: impl FnOnce(u64) -> R) -> Fired<R> {
        match self.fire_owned_inner::<false, R>(owner, |_| true, deliver) {
            Some(fired) => fired,
            None => unreachable!("everybody is admitted"),
        }
    }

    /// [`fire_if`](Self::fire_if) by the single owner.
    #[inline]
    pub fn fire_owned_if<R>(
        &self,
        owner: &mut OwnerState,
        admit: impl Fn(u64) -> bool,
        deliver: impl FnOnce(u64) -> R,
    ) -> Option<Fired<R>> {
        self.fire_owned_inner::<true, R>(owner, admit, deliver)
    }

    #[inline]
    fn fire_owned_inner<const PICKY: bool, R>(
        &self,
        owner: &mut OwnerState,
        admit: impl Fn(u64) -> bool,
        deliver: impl FnOnce(u64) -> R,
    ) -> Option<Fired<R>> {
        let odd = owner.passage.wrapping_add(1);
        // Relaxed: ordered before the load of the word by the two barriers.
        self.passage.store(odd, Ordering::Relaxed);
        light_barrier();
        // Acquire: pairs with the Release of who set the payload.
        let word = self.word.load(Ordering::Acquire);
        let passing = Passing { latch: self, even: odd.wrapping_add(1) };
        owner.passage = passing.even;
        if word & BIAS != 0 {
            if PICKY && !admit(word & PAYLOAD) {
                return None;
            }
            let result = deliver(word & PAYLOAD);
            drop(passing);
            return Some(Fired::Ran(result));
        }
        drop(passing);
        let fired = self.fire_inner::<PICKY, R>(admit, deliver);
        owner.quiet = if matches!(fired, Some(Fired::Ran(_))) { owner.quiet + 1 } else { 0 };
        if owner.permit && owner.quiet >= QUIET_FIRES {
            self.grant_bias();
            owner.quiet = 0;
        }
        fired
    }

    #[cold]
    fn grant_bias(&self) {
        let word = self.word.load(Ordering::Relaxed);
        // Not while somebody wants the word: the grant would be taken back at once, at the price of a membarrier.
        if word & (BUSY | MASK) == 0 && self.queue.load(Ordering::Relaxed) < WAITER {
            // Relaxed: the owner itself fired by this word; a failure only puts the grant off.
            let _ = self.word.compare_exchange(word, word | BIAS, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// A passage of the single owner; over on drop.
struct Passing<'a> {
    latch: &'a Latch,
    even: u32,
}

impl Drop for Passing<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `wait_for_owner`: the delivery is over.
        self.latch.passage.store(self.even, Ordering::Release);
    }
}

/// What became of one attempt of an event that could not simply enter.
enum Obstructed {
    Pending { already: bool },
    HandedOver,
    Inside,
    Again,
}

/// Being inside as a configurer. A change that panics leaves the configuration as it was, and the latch free.
struct Entered<'a> {
    latch: &'a Latch,
    /// The word before, without `BUSY` and `BIAS`.
    word: u64,
    /// Whether it is counted in `queue`.
    waited: bool,
}

impl Entered<'_> {
    /// Leaves with this word; true if an event was handed over meanwhile, which the caller must fire.
    #[must_use]
    fn leave(self, word: u64) -> bool {
        std::mem::ManuallyDrop::new(self).out(word)
    }

    fn out(&self, word: u64) -> bool {
        let Self { latch, word: _, waited } = self;
        // AcqRel: Release publishes the configuration; Acquire pairs with the Release of who handed over.
        let mut handed = latch.word.swap(word, Ordering::AcqRel) & HANDED != 0;
        if *waited {
            let mut queue = latch.queue.load(Ordering::Relaxed);
            loop {
                let left = (queue - WAITER) & !QUEUE_HANDED;
                // Acquire: pairs with the Release in `hand_to_waiter`.
                match latch.queue.compare_exchange(queue, left, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => queue = now,
                }
            }
            handed |= queue & QUEUE_HANDED != 0;
        }
        handed && !crippled!(latch, HandedIsDropped)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // Only a panic comes here. What was handed over goes with the call that panicked.
        self.out(self.word);
    }
}

/// What the single owner of a latch carries: its passage counter and how quiet it has been.
///
/// Not `Clone`: there is one per [`Latch::own`].
#[derive(Debug)]
pub struct OwnerState {
    permit: bool,
    passage: u32,
    quiet: u32,
}

/// The right to fire without the latch, which costs configuration calls a `membarrier` system call.
///
/// Opt-in, because a seccomp filter that does not list `membarrier` may kill the process instead of refusing.
#[derive(Clone, Copy, Debug)]
pub struct BiasPermit(());

impl BiasPermit {
    /// Registers this process with `membarrier(2)`.
    ///
    /// # Errors
    /// Where the system call is missing or forbidden; sources then fire through the latch.
    pub fn request() -> std::io::Result<Self> {
        register_heavy_barrier().map(Self)
    }
}
