//! Mask, unmask and pending of a GSI, whatever its source.
//!
//! The third design of the 2009 thread (S5-C): not the device's table but the injector masks. A masked GSI keeps one
//! pending bit; unmask injects once if it is set, and clears it; a level line is looked at again. An unrouted GSI can
//! be masked and still latches.

use std::ops::Range;

use crate::{Delivery, Error, inflight::Slot, route::RouteTable};

/// The masks of a table's GSIs. See the [module](self).
///
/// Each call is complete when it returns: after [`mask`](Self::mask) nothing of that GSI is delivered any more.
#[derive(Clone, Copy)]
pub struct Gate<'a>(&'a RouteTable);

impl<'a> Gate<'a> {
    /// The gate of this table.
    pub fn new(table: &'a RouteTable) -> Self {
        Self(table)
    }

    /// Makes the events of `gsi` pending and takes its line off the pins. Returns whether it was masked before.
    ///
    /// # Errors
    /// [`Error::NoSuchGsi`]; [`Error::Busy`] if a device has it on loan, whose mask it is.
    pub fn mask(self, gsi: u32) -> Result<bool, Error> {
        self.change(gsi, |at, slot| {
            let was = slot.masked;
            if !was {
                self.0.present(at, slot, false);
            }
            slot.masked = true;
            was
        })
    }

    /// Lets the events of `gsi` through: the pending one is delivered, its line shown to the pins again. `None` if
    /// there was neither.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn unmask(self, gsi: u32) -> Result<Option<Delivery>, Error> {
        self.change(gsi, |at, slot| {
            if !slot.masked {
                return None;
            }
            slot.masked = false;
            let event = std::mem::take(&mut slot.pending).then(|| self.0.deliver_at(at, slot));
            // After the pulse of the event, which ends with the user's source low.
            let line = self.0.present(at, slot, true);
            match (event, line) {
                (Some(event), Some(line)) => Some(event.and(line)),
                (event, line) => event.or(line),
            }
        })
    }

    /// Whether an event waits behind the mask of `gsi`, or its line is high behind it. Does not clear it.
    pub fn is_pending(self, gsi: u32) -> bool {
        self.0.is_pending_at(gsi)
    }

    /// Masks the GSIs of a set: bit b of word w stands for `first + 64 * w + b`.
    ///
    /// # Errors
    /// As [`mask`](Self::mask); checked for the whole set before anything is masked.
    pub fn mask_set(self, first: u32, set: &[u64]) -> Result<(), Error> {
        self.check(first, set)?;
        members(first, set).try_for_each(|gsi| self.mask(gsi).map(drop))
    }

    /// Unmasks the GSIs of a set, as [`mask_set`](Self::mask_set) masks them.
    ///
    /// # Errors
    /// As [`mask_set`](Self::mask_set).
    pub fn unmask_set(self, first: u32, set: &[u64]) -> Result<(), Error> {
        self.check(first, set)?;
        members(first, set).try_for_each(|gsi| self.unmask(gsi).map(drop))
    }

    /// Writes the pending bits of a range of GSIs: bit b of word w stands for `range.start + 64 * w + b`. GSIs beyond
    /// the table or beyond `bits` are left out; nothing is cleared in the gate.
    pub fn pending(self, range: Range<u32>, bits: &mut [u64]) {
        bits.fill(0);
        let room = u32::try_from(bits.len().saturating_mul(64)).unwrap_or(u32::MAX);
        let end = range.end.min(RouteTable::GSIS).min(range.start.saturating_add(room));
        for gsi in range.start..end {
            let at = gsi - range.start;
            bits[at as usize / 64] |= u64::from(self.is_pending(gsi)) << (at % 64);
        }
    }

    fn change<T>(self, gsi: u32, change: impl FnOnce(usize, &mut Slot) -> T) -> Result<T, Error> {
        self.0.change_unlent(gsi, change)
    }

    fn check(self, first: u32, set: &[u64]) -> Result<(), Error> {
        members(first, set).try_for_each(|gsi| self.0.check_unlent(gsi))
    }
}

/// The GSIs of a set; numbers that do not fit are reported as the highest one, which no table has.
fn members(first: u32, set: &[u64]) -> impl Iterator<Item = u32> + '_ {
    set.iter().enumerate().flat_map(move |(at, &word)| {
        (0..64u64)
            .filter(move |bit| word >> bit & 1 != 0)
            .map(move |bit| u32::try_from(u64::from(first) + at as u64 * 64 + bit).unwrap_or(u32::MAX))
    })
}
