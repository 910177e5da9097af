//! Strategy S5-A: the mask bit beside the injector.
//!
//! A vector takes a GSI from the machine's [`VectorPool`] when the guest first unmasks it with MSI-X on; from then on
//! its mask and its pending bit are those of the GSI, and an event costs one load more than the GSI's own. A vector
//! without a GSI has a pending bit of its own, in the word that otherwise names the GSI, so that no event falls
//! between the two. A function whose vectors stay masked uses no GSI.
//!
//! GSIs go back when the function is disabled or reset, and from masked vectors when another vector of any device
//! finds none free. A vector that the guest unmasks although no GSI is left is *starved*: its events are pending, a
//! warning is logged, and the next GSI that any device gives back is its.

mod cell;
#[cfg(all(test, loom))]
mod models;
mod pool;
#[cfg(all(test, not(loom)))]
mod tests;
mod vector;
mod vectors;

use std::sync::Arc;

pub use pool::VectorPool;
pub use vector::{MsixTrigger, MsixVector, VectorEvent};
use vectors::Vectors;

use super::{MaskStrategy, WhileDisabled, msix::registers::MAX_VECTORS};
use crate::{Error, MsiMessage, VectorPath, VectorSlot, sync::Ordering};

/// What a device can choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct InjectorOptions {
    /// What becomes of an event while the function is disabled (M11).
    pub while_disabled: WhileDisabled,
}

/// What the guest has made of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Masked,
    Open,
    /// Unmasked, but in the list of the starved, unless another thread has fed it since.
    Starved,
}

/// What only the owner of the registers knows of a vector.
#[derive(Clone, Copy)]
struct Owned {
    phase: Phase,
    /// The message that the vector's GSI has, if it is known.
    installed: Option<MsiMessage>,
}

impl Owned {
    const RESET: Self = Self { phase: Phase::Masked, installed: None };
}

/// Counts of what a guest or a configuration got wrong; events are never lost by it, other than the dropped ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InjectorCounters {
    /// Events dropped while disabled ([`WhileDisabled::Drop`]).
    pub dropped: u64,
    /// How often a vector was unmasked and no GSI was left.
    pub starved: u64,
    /// How often the controller refused a message; the vector stays masked.
    pub refused: u64,
}

/// The vectors of one function under strategy S5-A. See the [module](self).
pub struct InjectorMask<P: VectorPath + ?Sized = dyn VectorPath> {
    pool: Arc<VectorPool<P>>,
    vectors: Arc<Vectors<P>>,
    owned: Box<[Owned]>,
    /// Where the search for a masked vector with a GSI goes on.
    next_parked: usize,
    starved: u64,
    refused: u64,
}

impl<P: VectorPath + ?Sized> InjectorMask<P> {
    /// `vectors` vectors, all masked and without a GSI.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless there are 1 to 2,048.
    pub fn new(pool: &Arc<VectorPool<P>>, vectors: u16, options: InjectorOptions) -> Result<Self, Error> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(Error::Invalid { what: "number of vectors", value: vectors.into(), allowed: "1 to 2,048" });
        }
        let InjectorOptions { while_disabled } = options;
        let shared = Arc::new(Vectors::new(pool.path().clone(), vectors, while_disabled));
        pool.join(&shared);
        Ok(Self {
            pool: pool.clone(),
            vectors: shared,
            owned: vec![Owned::RESET; vectors.into()].into(),
            next_parked: 0,
            starved: 0,
            refused: 0,
        })
    }

    /// The handle by which events of `vector` come, or `None` beyond the last vector.
    pub fn vector(&self, vector: u16) -> Option<MsixVector<P>> {
        (vector < self.vectors()).then(|| MsixVector::new(self.vectors.clone(), vector.into()))
    }

    /// A handle for the only source of `vector`, which fires without a read-modify-write of its own where the path
    /// allows that. With more than one for a vector, all but one fire as [`MsixVector`] does.
    pub fn trigger(&self, vector: u16) -> Option<MsixTrigger<P>> {
        (vector < self.vectors()).then(|| MsixTrigger::new(self.vectors.clone(), vector.into()))
    }

    /// What went wrong so far.
    pub fn counters(&self) -> InjectorCounters {
        InjectorCounters {
            dropped: self.vectors.dropped.load(Ordering::Relaxed),
            starved: self.starved,
            refused: self.refused,
        }
    }

    /// How many GSIs the vectors hold.
    pub fn held(&self) -> usize {
        (0..self.owned.len()).filter(|&at| self.vectors.slot(at).is_some()).count()
    }

    /// A GSI: a free one, one of an own masked vector, one of another device's.
    fn lease(&mut self) -> Result<VectorSlot, Error> {
        self.vectors.path.lease().or_else(|_| {
            match self.find_parked() {
                Some(parked) => {
                    self.detach(parked);
                    self.vectors.path.lease()
                }
                None => Err(Error::NoFreeGsi(0)),
            }
            .or_else(|_| self.pool.lease())
        })
    }

    /// A masked vector that holds a GSI.
    fn find_parked(&mut self) -> Option<usize> {
        let count = self.owned.len();
        let found = (0..count)
            .map(|step| (self.next_parked + step) % count)
            .find(|&at| self.owned[at].phase == Phase::Masked && self.vectors.slot(at).is_some())?;
        self.next_parked = (found + 1) % count;
        Some(found)
    }

    fn detach(&mut self, at: usize) {
        self.vectors.detach(at);
        self.owned[at].installed = None;
    }

    /// Gives a slot its message unless it has it; false if it is stale or refuses.
    fn install(&mut self, at: usize, slot: VectorSlot, message: &MsiMessage) -> bool {
        if self.owned[at].installed.as_ref() == Some(message) {
            return true;
        }
        let done = self.vectors.path.set_message(slot, message).is_ok();
        self.owned[at].installed = done.then_some(*message);
        done
    }

    /// Unmasks a masked vector by the GSI that it holds, with the message that this has; false if it holds none any
    /// more.
    #[inline]
    fn reopen(&mut self, at: usize) -> bool {
        let Some(slot) = self.vectors.slot(at) else { return false };
        self.vectors.path.unmask(slot);
        // A slot that is current now was so when it was unmasked, and an unmasked one is not reclaimed.
        let current = self.vectors.path.is_current(slot);
        if current {
            self.owned[at].phase = Phase::Open;
        }
        current
    }

    /// Unmasks a masked vector by the GSI that it holds; false if it holds none any more or refuses the message.
    fn open_held(&mut self, at: usize, message: &MsiMessage) -> bool {
        self.vectors.slot(at).is_some_and(|slot| self.install(at, slot, message)) && self.reopen(at)
    }

    /// Unmasks a masked vector by a new GSI; false if there is none.
    fn open_leased(&mut self, at: usize, message: &MsiMessage) -> bool {
        // What it held is stale or refuses this message.
        self.detach(at);
        let Ok(slot) = self.lease() else {
            self.starve(at, message);
            return false;
        };
        if self.install(at, slot, message) {
            self.owned[at].phase = Phase::Open;
            self.vectors.attach(at, slot);
        } else {
            self.vectors.path.release(slot);
            self.refuse(at, message);
        }
        true
    }

    #[cold]
    fn starve(&mut self, at: usize, message: &MsiMessage) {
        self.starved += 1;
        self.owned[at].phase = Phase::Starved;
        tracing::warn!(vector = at, "no GSI is left for an unmasked vector; its events stay pending");
        if self.vectors.starve(at as u16, message) {
            self.pool.add_starving();
        }
    }

    #[cold]
    fn refuse(&mut self, at: usize, message: &MsiMessage) {
        self.refused += 1;
        tracing::warn!(vector = at, ?message, "the interrupt controller refused a message; the vector stays masked");
    }

    /// Ends a starvation; a vector that was fed by another thread is open since then.
    fn settle(&mut self, at: usize) {
        if self.owned[at].phase == Phase::Starved {
            if self.vectors.unstarve(at as u16) {
                self.pool.sub_starving(1);
                self.owned[at] = Owned::RESET;
            } else {
                // Fed, or refused by the feeder, in which case it holds nothing.
                let phase = if self.vectors.slot(at).is_some() { Phase::Open } else { Phase::Masked };
                self.owned[at] = Owned { phase, installed: None };
            }
        }
    }

    /// Every vector masked, every GSI given back; pending bits stay.
    fn give_back(&mut self) {
        self.pool.sub_starving(self.vectors.unstarve_all());
        for at in 0..self.owned.len() {
            self.vectors.detach(at);
        }
        self.owned.fill(Owned::RESET);
        if self.pool.starving() != 0 {
            self.pool.relieve();
        }
    }

    /// Changes the message of an open vector.
    fn change(&mut self, at: usize, message: &MsiMessage) {
        let Some(slot) = self.vectors.slot(at) else { return };
        if !self.install(at, slot, message) {
            // It must not go on with the old message.
            self.vectors.path.mask(slot);
            self.detach(at);
            self.owned[at] = Owned::RESET;
            self.refuse(at, message);
        }
    }

    /// Unmasks where more is to do than to unmask the GSI.
    #[cold]
    fn unmask_slowly(&mut self, at: usize, message: &MsiMessage) {
        if !self.open(at, message) {
            // A vector that was masked while this one looked for a GSI did not know that one is wanted.
            self.pool.relieve();
        }
    }

    /// Masks a vector that was starved, or is so still.
    #[cold]
    fn mask_starved(&mut self, at: usize) {
        self.settle(at);
        self.mask(at as u16);
    }

    /// Gives the GSI of a vector that has just been masked to one that waits for it.
    #[cold]
    fn share(&mut self, at: usize) {
        self.detach(at);
        self.pool.relieve();
    }

    /// Unmasks; false if there was no GSI.
    fn open(&mut self, at: usize, message: &MsiMessage) -> bool {
        self.settle(at);
        if self.owned[at].phase == Phase::Open {
            self.change(at, message);
            return true;
        }
        self.open_held(at, message) || self.open_leased(at, message)
    }
}

impl<P: VectorPath + ?Sized> MaskStrategy for InjectorMask<P> {
    fn vectors(&self) -> u16 {
        self.owned.len() as u16
    }

    fn set_enabled(&mut self, enabled: bool) {
        // Before the GSIs go, so that no event is kept that came after.
        self.vectors.set_enabled(enabled);
        if !enabled {
            self.give_back();
        }
    }

    #[inline]
    fn mask(&mut self, vector: u16) {
        let at = usize::from(vector);
        match self.owned.get_mut(at) {
            Some(owned) if owned.phase == Phase::Open => owned.phase = Phase::Masked,
            Some(owned) if owned.phase == Phase::Starved => return self.mask_starved(at),
            _ => return,
        }
        if let Some(slot) = self.vectors.slot(at) {
            self.vectors.path.mask(slot);
        }
        if self.pool.starving() != 0 {
            self.share(at);
        }
    }

    #[inline]
    fn unmask(&mut self, vector: u16, message: &MsiMessage) {
        let at = usize::from(vector);
        let Some(owned) = self.owned.get(at) else { return };
        let ready = owned.phase == Phase::Masked && owned.installed.as_ref() == Some(message);
        if !(ready && self.reopen(at)) {
            self.unmask_slowly(at, message);
        }
    }

    fn unmask_many(&mut self, batch: &[(u16, MsiMessage)]) {
        let mut fresh: Vec<(usize, VectorSlot, MsiMessage)> = Vec::with_capacity(batch.len());
        let mut hungry = false;
        for (vector, message) in batch {
            let at = usize::from(*vector);
            if at >= self.owned.len() {
                continue;
            }
            self.settle(at);
            if self.owned[at].phase == Phase::Open {
                self.change(at, message);
            } else if self.owned[at].installed.as_ref() == Some(message) && self.open_held(at, message) {
                // Nothing to commit.
            } else {
                self.detach(at);
                // One search in vain is enough for the batch.
                match if hungry { self.vectors.path.lease() } else { self.lease() } {
                    Ok(slot) => fresh.push((at, slot, *message)),
                    Err(_) => {
                        hungry = true;
                        self.starve(at, message);
                    }
                }
            }
        }
        let commit: Vec<_> = fresh.iter().map(|(_, slot, message)| (*slot, *message)).collect();
        let committed = !commit.is_empty() && self.vectors.path.set_messages(&commit).is_ok();
        for (at, slot, message) in fresh {
            if self.owned[at].phase == Phase::Open {
                // The batch named it twice.
                self.vectors.path.release(slot);
                self.change(at, &message);
                continue;
            }
            self.owned[at].installed = committed.then_some(message);
            if self.install(at, slot, &message) {
                self.owned[at].phase = Phase::Open;
                self.vectors.attach(at, slot);
            } else {
                self.vectors.path.release(slot);
                self.refuse(at, &message);
            }
        }
        if hungry {
            self.pool.relieve();
        }
    }

    fn is_pending(&self, vector: u16) -> bool {
        vector < self.vectors() && self.vectors.is_pending(vector.into())
    }

    fn set_pending(&mut self, vector: u16, pending: bool) {
        let at = usize::from(vector);
        if at >= self.owned.len() {
            return;
        }
        if pending {
            self.vectors.renew(at);
        } else if self.owned[at].phase != Phase::Open {
            // The pending bit of a GSI goes with its loan.
            self.settle(at);
            if self.owned[at].phase == Phase::Masked {
                self.detach(at);
                self.vectors.cells[at].withdraw();
            }
        }
    }

    fn reset(&mut self) {
        self.set_enabled(false);
        for cell in &self.vectors.cells {
            cell.withdraw();
        }
    }
}

impl<P: VectorPath + ?Sized> Drop for InjectorMask<P> {
    fn drop(&mut self) {
        self.set_enabled(false);
    }
}
