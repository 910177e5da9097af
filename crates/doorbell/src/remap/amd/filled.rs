//! Whose entries have been looked at since they were last invalidated.
//!
//! An invalidation that finds its group not marked has nothing to forget, and needs not look for it: a guest that fills
//! its command buffer with invalidations costs next to nothing. Who looks at the tables marks the group first; an invalidation
//! takes the mark. The two are ordered by these swaps: either the mark is seen and the invalidation goes on to the cache, or
//! the look-up comes after the swap and so after the guest's stores to its tables.

use crate::sync::{AtomicU32, Ordering};

/// How many groups of requesters there are: requesters with the same device and function number are together.
pub const GROUPS: usize = if cfg!(loom) { 1 } else { 256 };

/// A mark for each group.
#[derive(Debug)]
pub struct Filled(Box<[AtomicU32]>);

impl Filled {
    pub fn new() -> Self {
        Self((0..GROUPS).map(|_| AtomicU32::new(0)).collect())
    }

    /// The group of a requester.
    pub const fn group(requester: u32) -> u32 {
        requester % GROUPS as u32
    }

    /// Its tables are about to be looked at.
    pub fn mark(&self, group: u32) {
        // AcqRel: Acquire pairs with the Release of `take`, after which the tables must be seen as they are then;
        // Release pairs with its Acquire, for who takes this mark.
        self.0[group as usize % GROUPS].swap(1, Ordering::AcqRel);
    }

    /// Takes the mark, and says whether it was there.
    pub fn take(&self, group: u32) -> bool {
        // AcqRel: see `mark`.
        self.0[group as usize % GROUPS].swap(0, Ordering::AcqRel) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once_and_concerns_its_group() {
        let filled = Filled::new();
        let all = || (0..GROUPS as u32).filter(|&group| filled.take(group)).collect::<Vec<_>>();
        assert_eq!(all(), []);
        for requester in [0x18, 0x118, 0xff] {
            filled.mark(Filled::group(requester));
        }
        assert_eq!(all(), [0x18, 0xff], "bus 0 and bus 1 are one group");
        assert_eq!(all(), []);
    }
}
