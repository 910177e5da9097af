//! The protocol on the words: no event falls between "it is masked" and "it is unmasked".
//!
//! Who signals writes the pending bit and then looks at the mask again; who unmasks writes the mask and then looks at
//! the pending bit. A full barrier stands between the two in both, so at least one of them sees the other, and the
//! pending bit, which is taken by a read-modify-write, says which of them sends.

use crate::sync::{AtomicU64, Ordering, fence};

/// 64 vectors: their mask bits and their pending bits.
///
/// Loads are relaxed, as the memory may be mapped read-only; the fences order them.
pub(super) struct Words<'a> {
    pub(super) host: &'a AtomicU64,
    pub(super) guest: &'a AtomicU64,
    pub(super) pending: &'a AtomicU64,
}

impl Words<'_> {
    /// The vectors that are masked.
    #[inline]
    pub(super) fn masked(&self) -> u64 {
        self.host.load(Ordering::Relaxed) | self.guest.load(Ordering::Relaxed)
    }

    /// An event of the vector with this bit: true if the caller has to send it, false if it is pending.
    #[inline]
    pub(super) fn signal(&self, bit: u64) -> bool {
        self.masked() & bit == 0 || self.signal_masked(bit)
    }

    #[cold]
    fn signal_masked(&self, bit: u64) -> bool {
        // Release: pairs with the Acquire of `take`; whoever sends sees what this event announces.
        self.pending.fetch_or(bit, Ordering::Release);
        // Pairs with the fence of `unmask`.
        fence(Ordering::SeqCst);
        self.masked() & bit == 0 && self.take(bit) != 0
    }

    /// Masks for the host.
    pub(super) fn mask(&self, bits: u64) {
        // Relaxed: a signal that does not see it yet meets the GSI's own mask.
        self.host.fetch_or(bits, Ordering::Relaxed);
    }

    /// Unmasks for the host; the vectors among `bits` that were pending are the caller's to send.
    pub(super) fn unmask(&self, bits: u64) -> u64 {
        // Release: what the configuration did before comes first.
        self.host.fetch_and(!bits, Ordering::Release);
        // Pairs with the fence of `signal_masked`.
        fence(Ordering::SeqCst);
        self.due(bits)
    }

    /// Takes the pending bits among `bits` that are not masked (any more): they are the caller's to send.
    pub(super) fn due(&self, bits: u64) -> u64 {
        let due = self.pending.load(Ordering::Relaxed) & bits;
        if due == 0 {
            return 0;
        }
        let due = due & !self.masked();
        if due == 0 { 0 } else { self.take(due) }
    }

    /// Takes those of the pending bits that are still there.
    pub(super) fn take(&self, bits: u64) -> u64 {
        // Acquire: pairs with the Release of `signal_masked`. Release: the next signal of it comes after.
        self.pending.fetch_and(!bits, Ordering::AcqRel) & bits
    }
}
