//! The pair's state, as every thread may enter it.
//!
//! The 16 pins share one resolver of priorities, so they share a word as well: [`Requests`], which a line call, an
//! acknowledge or an end replaces in one step by what [`Pair`] makes of it. Nobody waits for another source there, except
//! while INTR itself changes: who changes it holds the word until it has been told, so that the levels are told in their
//! order and INTR never rests low while something is deliverable. The other words change only with the guest's
//! configuration, by whoever holds the first one, and carry no more than that: each such change gives [`Requests`] another
//! generation, so that who computed by the old ones fails to replace it and computes again.

use super::{
    Intr,
    pair::{Modes, Pair, Requests, Setup},
    registers::ELCR_MASK,
};
use crate::sync::{AtomicU32, AtomicU64, Backoff, Ordering};

#[derive(Debug)]
#[repr(align(64))]
pub struct Shared {
    /// [`Requests`]. Replaced by anybody while it is not busy, else only by who made it busy.
    requests: AtomicU64,
    /// [`Modes`]. Written only by who holds the word above.
    modes: AtomicU64,
    /// [`Setup`]. Written and read only by who holds it.
    setup: AtomicU64,
    /// How many configurers wait for the word; the others then stand back.
    waiting: AtomicU32,
    strict: bool,
}

impl Shared {
    /// Both chips after reset: spec P1.
    pub fn new(strict: bool) -> Self {
        Self {
            requests: AtomicU64::new(0),
            modes: AtomicU64::new(0),
            setup: AtomicU64::new(Setup::new().with_elcr_mask(ELCR_MASK).into_bits()),
            waiting: AtomicU32::new(0),
            strict,
        }
    }

    /// What asks and what is in service, now. Acquire: pairs with the Release of who changed it.
    #[inline]
    pub fn requests(&self) -> Requests {
        Requests::from_bits(self.requests.load(Ordering::Acquire))
    }

    fn pair(&self, requests: Requests) -> Pair {
        // Relaxed: written before the Release of the generation that `requests` has, or else the word is another one.
        let modes = Modes::from_bits(self.modes.load(Ordering::Relaxed));
        Pair { requests, modes, strict: self.strict, ended: 0 }
    }

    /// Does something to the pair that configures nothing, usually. `op` may run several times; the last counts.
    #[inline]
    pub fn change<T>(&self, intr: &dyn Intr, op: impl Fn(&mut Pair) -> T) -> T {
        let before = self.requests();
        if !before.busy() && self.waiting.load(Ordering::Relaxed) == 0 {
            if let Some(result) = self.try_change(intr, before, &op) {
                return result;
            }
        }
        self.change_slowly(intr, &op)
    }

    /// `op` is not a type here, so that it is compiled into the fast path and once more, not four times.
    #[cold]
    fn change_slowly<T>(&self, intr: &dyn Intr, op: &dyn Fn(&mut Pair) -> T) -> T {
        let mut backoff = Backoff::new();
        loop {
            let before = self.requests();
            if before.busy() || self.waiting.load(Ordering::Relaxed) != 0 {
                backoff.wait();
                continue;
            }
            if self.configures(before, op) {
                return op(&mut self.configure(intr).pair);
            }
            // A failure is somebody else's success.
            if let Some(result) = self.try_change(intr, before, op) {
                return result;
            }
        }
    }

    fn configures<T>(&self, before: Requests, op: &dyn Fn(&mut Pair) -> T) -> bool {
        let mut pair = self.pair(before);
        let modes = pair.modes;
        op(&mut pair);
        pair.modes != modes
    }

    #[inline(always)]
    fn try_change<T>(&self, intr: &dyn Intr, before: Requests, op: impl Fn(&mut Pair) -> T) -> Option<T> {
        let mut pair = self.pair(before);
        let modes = pair.modes;
        let result = op(&mut pair);
        if pair.modes != modes {
            return None;
        }
        // Also where nothing changes: a merged request orders what its device wrote before the acknowledge that takes it.
        let after = pair.requests;
        let tells = after.output() != before.output();
        let next = after.with_busy(tells).into_bits();
        // AcqRel: Release pairs with the Acquire of who acknowledges; Acquire pairs with it on the other side, and shows
        // the line's sources as all those left them who came here before.
        self.requests.compare_exchange(before.into_bits(), next, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if tells {
            let _telling = Leaving { word: &self.requests, next: after };
            intr.set(after.output());
        }
        // Relaxed: the Acquire above shows every configuration that came before.
        if self.modes.load(Ordering::Relaxed) != modes.into_bits() {
            self.follow_modes(intr);
        }
        Some(result)
    }

    /// The guest has configured the pair behind the back of who changed it: just afterwards, or before, so many times that
    /// the generation has come round. What was told of INTR may be wrong then.
    #[cold]
    fn follow_modes(&self, intr: &dyn Intr) {
        self.configure(intr).pair.update();
    }

    /// Brings INTR up to date if an end left that to be done.
    #[inline]
    pub fn reevaluate(&self, intr: &dyn Intr) {
        if self.requests().due() {
            self.change(intr, |pair| {
                if pair.requests.due() {
                    pair.update();
                }
            });
        }
    }

    /// Takes the word to configure the pair: until this is dropped, nobody changes anything.
    pub fn configure<'a>(&'a self, intr: &'a dyn Intr) -> Held<'a> {
        let mut backoff = Backoff::new();
        let mut waits = false;
        loop {
            let word = self.requests.load(Ordering::Relaxed);
            let before = Requests::from_bits(word);
            let busy = before.with_busy(true).into_bits();
            // Acquire: pairs with the Release of the last one who changed it.
            if !before.busy()
                && self.requests.compare_exchange(word, busy, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                if waits {
                    // Relaxed: a request to stand back; nothing is published by it.
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                // Relaxed: written under the same word.
                let setup = Setup::from_bits(self.setup.load(Ordering::Relaxed));
                return Held { shared: self, intr, output: before.output(), pair: self.pair(before), setup };
            }
            if backoff.is_long() && !waits {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                waits = true;
            }
            backoff.wait();
        }
    }
}

/// The whole pair, taken; what was done to it becomes visible on drop.
pub struct Held<'a> {
    shared: &'a Shared,
    intr: &'a dyn Intr,
    /// INTR, as it was last told.
    output: bool,
    pub pair: Pair,
    pub setup: Setup,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Self { shared, intr, output, pair, setup } = self;
        let Pair { requests, modes, strict: _, ended: _ } = *pair;
        let changed = requests.with_generation(requests.generation().wrapping_add(1) & Requests::LAST_GENERATION);
        // Relaxed: published by the Release of `Leaving`.
        shared.modes.store(modes.into_bits(), Ordering::Relaxed);
        shared.setup.store(setup.into_bits(), Ordering::Relaxed);
        let _leaving = Leaving { word: &shared.requests, next: changed };
        if requests.output() != *output {
            intr.set(requests.output());
        }
    }
}

/// Leaves the word on drop, even if a callback panics.
struct Leaving<'a> {
    word: &'a AtomicU64,
    next: Requests,
}

impl Drop for Leaving<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next one.
        self.word.store(self.next.into_bits(), Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use super::*;

    #[test]
    fn intr_follows_the_mask_though_the_generation_has_come_round() {
        let shared = Shared::new(false);
        let wire = Arc::new(AtomicU32::new(0));
        let intr = {
            let wire = wire.clone();
            move |level: bool| wire.store(level.into(), Ordering::Relaxed)
        };
        let before = shared.requests();
        let rounds = Cell::new(u32::from(Requests::LAST_GENERATION) + 1);
        shared.change(&intr, |pair| {
            // Between the look at the words and the replacement: the guest masks everything, and so often.
            for _ in 0..rounds.take() {
                shared.configure(&intr).pair.modes.set_imr(0xffff);
            }
            pair.drive(4, true);
            pair.update();
        });
        assert_eq!(shared.requests().irr(), 1 << 4, "it asks");
        assert_eq!(shared.requests().generation(), before.generation() + 1, "once more, by who looked again");
        assert!(!shared.requests().output(), "behind the mask");
        assert_eq!(wire.load(Ordering::Relaxed), 0);
    }
}
