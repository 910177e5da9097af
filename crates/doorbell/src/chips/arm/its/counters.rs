//! What an ITS counts.

use super::{command::CommandError, translation::Dropped};
use crate::sync::{AtomicU64, Ordering};

/// What an ITS has done so far, and what it has not done. Counts survive a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ItsCounters {
    /// Commands that were done.
    pub commands: u64,
    /// Commands that did nothing, and why; only what occurred, in the order of the codes.
    pub errors: Vec<(CommandError, u64)>,
    /// Commands that are none, or not physical.
    pub unknown: u64,
    /// Commands, or what they needed, that guest memory did not hold.
    pub unreadable: u64,
    /// Events that were not mapped because [`ItsOptions::max_events`](super::ItsOptions::max_events) were.
    pub full: u64,
    /// Events dropped because the ITS was disabled (I8).
    pub dropped_disabled: u64,
    /// Events dropped because the device or the event was not mapped.
    pub dropped_unmapped: u64,
    /// Events dropped because their collection was not mapped (I18, I23).
    pub dropped_collection: u64,
    /// Events dropped because their redistributor had LPIs switched off.
    pub dropped_lpis_off: u64,
    /// Events dropped because a command that took their mapping away was under way.
    pub dropped_meanwhile: u64,
}

impl ItsCounters {
    /// How often commands failed for this reason.
    pub fn errors_of(&self, error: CommandError) -> u64 {
        self.errors.iter().find(|(other, _)| *other == error).map_or(0, |(_, count)| *count)
    }

    /// How many events were dropped, as the architecture demands.
    pub fn dropped(&self) -> u64 {
        self.dropped_disabled
            + self.dropped_unmapped
            + self.dropped_collection
            + self.dropped_lpis_off
            + self.dropped_meanwhile
    }
}

/// Events that were dropped; counted by any thread.
#[derive(Default)]
pub(super) struct Drops {
    disabled: AtomicU64,
    unmapped: AtomicU64,
    adrift: AtomicU64,
    lpis_off: AtomicU64,
    meanwhile: AtomicU64,
}

impl Drops {
    #[cold]
    pub fn count(&self, why: Dropped) {
        let counter = match why {
            Dropped::Disabled => &self.disabled,
            Dropped::Unmapped => &self.unmapped,
            Dropped::Adrift => &self.adrift,
            Dropped::LpisOff => &self.lpis_off,
        };
        // Relaxed: a count.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// An event that came while a command was under way, if it did.
    pub fn meanwhile(&self, came: bool) {
        if came {
            // Relaxed: a count.
            self.meanwhile.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn report(&self, counters: &mut ItsCounters) {
        // Relaxed: counts.
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        counters.dropped_disabled = of(&self.disabled);
        counters.dropped_unmapped = of(&self.unmapped);
        counters.dropped_collection = of(&self.adrift);
        counters.dropped_lpis_off = of(&self.lpis_off);
        counters.dropped_meanwhile = of(&self.meanwhile);
    }
}
