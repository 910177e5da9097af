//! Which GSIs have eventfds in the kernel, as everybody may ask without a lock.
//!
//! Two sides must not miss each other. A configuration call changes the table and then asks whether the GSI is held; a
//! promotion says that it is held and then looks at the table. A fence between the two steps on either side makes at least
//! one of them see the other: the call waits for the promotion, or the promotion finds the GSI as it is now.

use crate::sync::{AtomicU64, Ordering, fence};

#[cfg(all(test, loom))]
mod models;

/// A set of GSIs. Changed under the lock of the places, asked without.
pub(super) struct HeldSet(Box<[AtomicU64]>);

impl HeldSet {
    /// An empty set of numbers below `numbers`.
    pub(super) fn new(numbers: u32) -> Self {
        Self((0..numbers.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds these. To be followed by the look at the table, not preceded by it.
    pub(super) fn publish(&self, gsis: impl IntoIterator<Item = u32>) {
        for (word, bit) in gsis.into_iter().filter_map(|gsi| self.place(gsi)) {
            // Relaxed: the fence orders it before the look that follows.
            word.fetch_or(bit, Ordering::Relaxed);
        }
        // Pairs with the fence in `contains`.
        fence(Ordering::SeqCst);
    }

    /// Takes one out that has nothing in the kernel any more.
    pub(super) fn withdraw(&self, gsi: u32) {
        if let Some((word, bit)) = self.place(gsi) {
            // Relaxed: who still sees it set takes the lock and finds nothing to do.
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether `gsi` is in the set. To be asked after the table was changed.
    #[inline]
    pub(super) fn contains(&self, gsi: u32) -> bool {
        let Some((word, bit)) = self.place(gsi) else { return false };
        // Pairs with the fence in `publish`: who publishes after this sees the change that came before it.
        fence(Ordering::SeqCst);
        word.load(Ordering::Relaxed) & bit != 0
    }

    #[inline]
    fn place(&self, gsi: u32) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(gsi as usize / 64)?, 1 << (gsi % 64)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::HeldSet;

    #[test]
    fn a_number_is_held_from_its_publication_to_its_withdrawal() {
        let held = HeldSet::new(130);
        held.publish([63, 64, 129]);
        let all = |held: &HeldSet| (0..300).filter(|&gsi| held.contains(gsi)).collect::<Vec<_>>();
        assert_eq!(all(&held), [63, 64, 129]);
        held.withdraw(64);
        held.publish([64, 63, 192]);
        held.withdraw(63);
        held.withdraw(1_000);
        assert_eq!(all(&held), [64, 129], "192 is no number of the set");
    }
}
