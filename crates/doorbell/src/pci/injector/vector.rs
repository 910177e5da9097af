//! How events come to a vector.

use std::sync::Arc;

use super::{cell::Holding, vectors::Vectors};
use crate::{Delivery, EventSink, SlotFire, VectorPath, VectorSlot, VectorSource, inflight::OwnerState};

/// What became of one event of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorEvent {
    /// Its message was sent, or is being sent by a configuration call that is under way.
    Sent(Delivery),
    /// The vector or the function is masked: the event is pending.
    Pending,
    /// The function is disabled and its device drops such events.
    Dropped,
}

impl VectorEvent {
    /// As a source sees it: a pending event is coalesced, a dropped one ignored.
    pub fn delivery(self) -> Delivery {
        match self {
            Self::Sent(delivery) => delivery,
            Self::Pending => Delivery::Coalesced,
            Self::Dropped => Delivery::Ignored,
        }
    }
}

/// One vector of a function, for any number of threads; also where an eventfd's events can go.
pub struct MsixVector<P: VectorPath + ?Sized = dyn VectorPath> {
    vectors: Arc<Vectors<P>>,
    at: usize,
}

impl<P: VectorPath + ?Sized> MsixVector<P> {
    pub(super) fn new(vectors: Arc<Vectors<P>>, at: usize) -> Self {
        Self { vectors, at }
    }

    /// An event. Takes no lock, allocates nothing and makes no system call but for the kick of a sleeping vCPU.
    #[inline]
    pub fn fire(&self) -> VectorEvent {
        self.vectors.fire(self.at)
    }

    /// The slot that an event would fire now; `None` while it would be pending or dropped in the device itself.
    pub fn slot(&self) -> Option<VectorSlot> {
        self.vectors.slot(self.at)
    }
}

impl<P: VectorPath + ?Sized> VectorSource for MsixVector<P> {
    fn slot(&self) -> Option<VectorSlot> {
        MsixVector::slot(self)
    }
}

impl<P: VectorPath + ?Sized> Clone for MsixVector<P> {
    fn clone(&self) -> Self {
        Self { vectors: self.vectors.clone(), at: self.at }
    }
}

impl<P: VectorPath + ?Sized> EventSink for MsixVector<P> {
    fn signal(&self) -> Delivery {
        self.fire().delivery()
    }
}

/// After this many fires without the ownership of the GSI, it is asked for again: its last owner may have gone.
const OWN_AGAIN: u32 = 256;

/// One vector of a function, for its single source.
pub struct MsixTrigger<P: VectorPath + ?Sized = dyn VectorPath> {
    vectors: Arc<Vectors<P>>,
    at: usize,
    /// The slot that this is the owner of.
    owned: Option<(VectorSlot, OwnerState)>,
    /// Fires left until the ownership of this slot is asked for again.
    patience: Option<(VectorSlot, u32)>,
}

impl<P: VectorPath + ?Sized> MsixTrigger<P> {
    pub(super) fn new(vectors: Arc<Vectors<P>>, at: usize) -> Self {
        Self { vectors, at, owned: None, patience: None }
    }

    /// An event, as [`MsixVector::fire`].
    #[inline]
    pub fn fire(&mut self) -> VectorEvent {
        let cell = &self.vectors.cells[self.at];
        let seen = cell.load();
        match (seen, &mut self.owned) {
            (Holding::Slot(slot), Some((owned, state))) if slot == *owned => {
                match self.vectors.path.fire_owned(slot, state) {
                    SlotFire::Sent(delivery) => VectorEvent::Sent(delivery),
                    SlotFire::Pending => VectorEvent::Pending,
                    SlotFire::Stale => self.vectors.fire_without_slot(cell, seen),
                }
            }
            _ => self.fire_unowned(seen),
        }
    }

    #[cold]
    fn fire_unowned(&mut self, seen: Holding) -> VectorEvent {
        if let Holding::Slot(slot) = seen {
            let wait = match &mut self.patience {
                Some((for_slot, left)) if *for_slot == slot && *left != 0 => {
                    *left -= 1;
                    true
                }
                _ => false,
            };
            if !wait {
                self.disown();
                self.owned = self.vectors.path.own(slot).map(|state| (slot, state));
                self.patience = Some((slot, OWN_AGAIN));
            }
        }
        self.vectors.fire(self.at)
    }

    fn disown(&mut self) {
        if let Some((slot, state)) = self.owned.take() {
            self.vectors.path.disown(slot, state);
        }
    }
}

impl<P: VectorPath + ?Sized> Drop for MsixTrigger<P> {
    fn drop(&mut self) {
        self.disown();
    }
}
