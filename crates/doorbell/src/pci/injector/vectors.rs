//! The half of strategy S5-A that events share: the vectors' words and the path behind them.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    VectorEvent,
    cell::{Cell, Holding},
};
use crate::{
    Error, MsiMessage, SlotFire, VectorPath, VectorSlot,
    pci::WhileDisabled,
    sync::{AtomicU32, AtomicU64, Backoff, Mutex, Ordering},
};

/// The vectors of one function.
pub(super) struct Vectors<P: ?Sized> {
    pub(super) path: Arc<P>,
    pub(super) cells: Box<[Cell]>,
    /// Not 0 while MSI or MSI-X is on. Written by the owner of the registers only.
    enabled: AtomicU32,
    while_disabled: WhileDisabled,
    /// Events dropped because the function was disabled.
    pub(super) dropped: AtomicU64,
    /// Vectors that the guest has unmasked and for which there is no GSI, with their messages.
    ///
    /// Lock order: right of the device's own lock and of nothing else; the path's configuration lock is taken inside.
    starved: Mutex<BTreeMap<u16, MsiMessage>>,
}

/// What became of a starved vector that was looked at again.
pub(super) enum Relief {
    /// It has a GSI now.
    Fed,
    /// The controller does not take its message.
    Refused,
}

impl<P: VectorPath + ?Sized> Vectors<P> {
    pub(super) fn new(path: Arc<P>, vectors: u16, while_disabled: WhileDisabled) -> Self {
        Self {
            path,
            cells: (0..vectors).map(|_| Cell::new()).collect(),
            enabled: AtomicU32::new(0),
            while_disabled,
            dropped: AtomicU64::new(0),
            starved: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn set_enabled(&self, enabled: bool) {
        // Release: pairs with the Acquire in `is_dropping`: an event after this call meets this answer.
        self.enabled.store(enabled.into(), Ordering::Release);
    }

    fn is_dropping(&self) -> bool {
        self.while_disabled == WhileDisabled::Drop && self.enabled.load(Ordering::Acquire) == 0
    }

    /// An event: one load more than the GSI's own fire.
    #[inline]
    pub(super) fn fire(&self, vector: usize) -> VectorEvent {
        let cell = &self.cells[vector];
        let seen = cell.load();
        if let Holding::Slot(slot) = seen {
            match self.path.fire(slot) {
                SlotFire::Sent(delivery) => return VectorEvent::Sent(delivery),
                SlotFire::Pending => return VectorEvent::Pending,
                SlotFire::Stale => {}
            }
        }
        self.fire_without_slot(cell, seen)
    }

    /// An event of a vector without a GSI, or whose GSI has just been taken away.
    #[cold]
    pub(super) fn fire_without_slot(&self, cell: &Cell, seen: Holding) -> VectorEvent {
        if self.is_dropping() {
            // Relaxed: a count, nothing hangs on it.
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return VectorEvent::Dropped;
        }
        self.keep(cell, seen)
    }

    /// Makes an event pending, or sends it if the vector has got a GSI meanwhile. Each turn means that the vector's
    /// configuration has changed once.
    fn keep(&self, cell: &Cell, mut seen: Holding) -> VectorEvent {
        loop {
            match cell.pend(seen) {
                Ok(()) => return VectorEvent::Pending,
                Err(now) => seen = now,
            }
            if let Holding::Slot(slot) = seen {
                match self.path.fire(slot) {
                    SlotFire::Sent(delivery) => return VectorEvent::Sent(delivery),
                    SlotFire::Pending => return VectorEvent::Pending,
                    SlotFire::Stale => {}
                }
            }
        }
    }

    /// An event that is kept whatever the function's state: one that was accepted before.
    pub(super) fn renew(&self, vector: usize) {
        let cell = &self.cells[vector];
        let seen = cell.load();
        match seen {
            Holding::Slot(slot) if self.path.fire(slot) != SlotFire::Stale => {}
            seen => {
                self.keep(cell, seen);
            }
        }
    }

    /// Gives the vector a GSI that is leased, has its message and is masked: opens both.
    pub(super) fn attach(&self, vector: usize, slot: VectorSlot) {
        // Open before it is known: nobody reclaims an open GSI, and nothing can be pending in it.
        self.path.unmask(slot);
        if self.cells[vector].attach(slot) {
            // The events that waited, as one.
            self.renew(vector);
        }
    }

    /// Ends the loan of a vector that is masked, or whose function is disabled.
    pub(super) fn detach(&self, vector: usize) {
        if let Holding::Slot(slot) = self.cells[vector].load() {
            let pending = self.path.release(slot);
            self.ended(vector, slot, pending);
        }
    }

    /// Takes the vector's GSI from another device's thread, if it holds one and is masked.
    pub(super) fn reclaim(&self, vector: usize) -> bool {
        let Holding::Slot(slot) = self.cells[vector].load() else { return false };
        let Some(pending) = self.path.reclaim(slot) else { return false };
        self.ended(vector, slot, pending);
        true
    }

    fn ended(&self, vector: usize, slot: VectorSlot, pending: bool) {
        // If the word has changed, an event has put its pending bit there, or another thread that tried to end the
        // same loan has cleared it, without the pending bit that only this thread was told of.
        if !self.cells[vector].detach(slot, pending) && pending {
            self.renew(vector);
        }
    }

    pub(super) fn is_pending(&self, vector: usize) -> bool {
        let mut backoff = Backoff::new();
        loop {
            let Holding::Slot(slot) = self.cells[vector].load() else {
                return self.cells[vector].load() == Holding::Nothing { pending: true };
            };
            if self.path.is_pending(slot) {
                return true;
            }
            if self.path.is_current(slot) {
                return false;
            }
            // Another thread is between ending the loan and saying whether an event was pending.
            backoff.wait();
        }
    }

    /// The vector's slot, if it holds one that has not been taken away.
    pub(super) fn slot(&self, vector: usize) -> Option<VectorSlot> {
        match self.cells[vector].load() {
            Holding::Slot(slot) => Some(slot),
            Holding::Nothing { .. } => None,
        }
    }

    /// Notes that an unmasked vector has no GSI; true if it is new.
    pub(super) fn starve(&self, vector: u16, message: &MsiMessage) -> bool {
        self.starved.lock().insert(vector, *message).is_none()
    }

    /// Ends the starvation of a vector; false if it has been fed meanwhile.
    pub(super) fn unstarve(&self, vector: u16) -> bool {
        self.starved.lock().remove(&vector).is_some()
    }

    /// Ends the starvation of all and says how many there were.
    pub(super) fn unstarve_all(&self) -> u32 {
        let mut starved = self.starved.lock();
        let count = starved.len() as u32;
        starved.clear();
        count
    }

    /// Feeds starved vectors as long as `lease` finds GSIs; `done` is told of each that is no longer starved. False
    /// if some remain.
    pub(super) fn feed(&self, lease: impl Fn() -> Result<VectorSlot, Error>, mut done: impl FnMut(Relief)) -> bool {
        let mut starved = self.starved.lock();
        while let Some((&vector, message)) = starved.first_key_value() {
            let Ok(slot) = lease() else { return false };
            let relief = match self.path.set_message(slot, message) {
                Ok(()) => {
                    self.attach(vector.into(), slot);
                    Relief::Fed
                }
                Err(_) => {
                    self.path.release(slot);
                    Relief::Refused
                }
            };
            starved.remove(&vector);
            done(relief);
        }
        true
    }
}
