//! One word per vector: the GSI it holds, or its own pending bit. Never both, so that an event cannot fall between.

use crate::{
    VectorSlot,
    sync::{AtomicU64, Ordering},
};

/// What a vector's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// No GSI, and whether an event waits.
    Nothing {
        /// An event waits for the unmask.
        pending: bool,
    },
    /// This GSI, whose mask and pending bit are the vector's.
    Slot(VectorSlot),
}

/// A vector without a GSI and with an event waiting. No slot looks like this, as the number of a loan is never 0.
const PENDING: u64 = 1 << 32;

impl Holding {
    #[inline(always)]
    pub(super) fn of(word: u64) -> Self {
        let slot = VectorSlot { gsi: (word >> 32) as u32, tag: word as u32 };
        if slot.tag == 0 { Self::Nothing { pending: word == PENDING } } else { Self::Slot(slot) }
    }

    #[inline(always)]
    fn word(self) -> u64 {
        match self {
            Self::Nothing { pending } => u64::from(pending) * PENDING,
            Self::Slot(slot) => u64::from(slot.gsi) << 32 | u64::from(slot.tag),
        }
    }
}

/// The word of one vector.
///
/// | change | by | when |
/// |---|---|---|
/// | nothing → pending | an event | any time |
/// | slot → pending | an event | it found the slot stale: the loan has ended and the word is about to say so |
/// | nothing → slot | who unmasks the vector | the GSI has its message and is open; the pending bit found is fired |
/// | slot → nothing or pending | who ended the loan | the GSI has been released |
#[derive(Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(Holding::Nothing { pending: false }.word()))
    }

    #[inline(always)]
    pub(super) fn load(&self) -> Holding {
        // Acquire: pairs with the Release of `attach`; an event by the slot sees it open and with its message.
        Holding::of(self.0.load(Ordering::Acquire))
    }

    /// An event that met `seen`, nothing or a stale slot, becomes pending; or else what the word says now.
    ///
    /// A pending bit that is set already is set again: a load alone could be from before a replay whose handler does
    /// not see the data of this event.
    pub(super) fn pend(&self, seen: Holding) -> Result<(), Holding> {
        let pending = Holding::Nothing { pending: true }.word();
        // Release: pairs with the Acquire of `attach`, which fires for this event. Acquire: as `load`.
        match self.0.compare_exchange(seen.word(), pending, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(Holding::of(now)),
        }
    }

    /// What [`pend`](Self::pend) must not be, for the model that has to fail.
    #[cfg(all(test, loom))]
    pub(super) fn pend_blindly(&self) {
        self.0.store(Holding::Nothing { pending: true }.word(), Ordering::Release);
    }

    /// Gives the vector a GSI that is open; true if an event waits, which is the caller's to fire.
    pub(super) fn attach(&self, slot: VectorSlot) -> bool {
        // AcqRel: Release pairs with `load`, Acquire with the Release of `pend`.
        let old = Holding::of(self.0.swap(Holding::Slot(slot).word(), Ordering::AcqRel));
        old == Holding::Nothing { pending: true }
    }

    /// The loan of `slot` has ended, with an event pending behind it or not. False if the word no longer named it.
    pub(super) fn detach(&self, slot: VectorSlot, pending: bool) -> bool {
        let now = Holding::Nothing { pending }.word();
        // AcqRel, as `attach`: the events behind the slot belong to who attaches the next one.
        self.0.compare_exchange(Holding::Slot(slot).word(), now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes back the pending bit of a vector without a GSI.
    pub(super) fn withdraw(&self) {
        let pending = Holding::Nothing { pending: true }.word();
        let nothing = Holding::Nothing { pending: false }.word();
        // Relaxed: nothing is read or published through it.
        let _ = self.0.compare_exchange(pending, nothing, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn no_slot_looks_like_a_pending_bit() {
        for slot in [VectorSlot { gsi: 0, tag: 1 }, VectorSlot { gsi: 1, tag: 1 }, VectorSlot { gsi: !0, tag: !0 }] {
            assert_eq!(Holding::of(Holding::Slot(slot).word()), Holding::Slot(slot));
        }
        for pending in [false, true] {
            let nothing = Holding::Nothing { pending };
            assert_eq!(Holding::of(nothing.word()), nothing);
        }
    }
}
