//! The VMM's side.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use super::{
    layout::{WORDS, valid},
    region::Region,
};
use crate::{
    Delivery, Error, EventSink, MsiMessage, VectorPath,
    pci::{
        InjectorMask, InjectorOptions, MaskStrategy, MsixVector, VectorEvent, VectorPool, WhileDisabled,
        msix::state::validate_bits,
    },
    sync::Ordering,
};

/// The vectors of one function under the shared form of strategy S5-A. See the [module](super).
///
/// Behind the shared words each vector also has what [`InjectorMask`] gives it: a GSI of its own, with a mask that the
/// other processes cannot reach.
pub struct SharedMsix<P: VectorPath + ?Sized = dyn VectorPath> {
    region: Arc<Region>,
    inner: InjectorMask<P>,
    while_disabled: WhileDisabled,
}

impl<P: VectorPath + ?Sized> SharedMsix<P> {
    /// `vectors` vectors, all masked, and the memory for them.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless there are 1 to 2,048; [`Error::Os`] where no sealed memory file can be made.
    pub fn new(pool: &Arc<VectorPool<P>>, vectors: u16, options: InjectorOptions) -> Result<Self, Error> {
        let InjectorOptions { while_disabled } = options;
        let region = Arc::new(Region::create(vectors)?);
        region.set_dropping(while_disabled == WhileDisabled::Drop);
        Ok(Self { region, inner: InjectorMask::new(pool, vectors, options)?, while_disabled })
    }

    /// The memory, to be sent to the device's process, and whose guest areas ([`layout`](super::layout)) may be mapped
    /// into the guest.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.region.fd().as_fd()
    }

    /// Where the events of the device's eventfd of `vector` go, or `None` beyond the last vector.
    pub fn vector(&self, vector: u16) -> Option<SharedVector<P>> {
        let inner = self.inner.vector(vector)?;
        Some(SharedVector { region: self.region.clone(), inner, vector })
    }

    /// Sends what is pending and has been unmasked by the guest without an exit; for a VMM that polls in place of the
    /// device, or whose guest asks it to.
    pub fn poll(&self) {
        self.region.poll(|vector| {
            if let Some(vector) = self.inner.vector(vector) {
                vector.fire();
            }
        });
    }

    fn place(vector: u16) -> (usize, u64) {
        (usize::from(vector / 64), 1 << (vector % 64))
    }

    /// Unmasks for the host; an event that waited is handed to the GSI, which is still masked, so that it meets
    /// there what else may wait.
    fn unmask_words(&mut self, vector: u16) {
        let (word, bit) = Self::place(vector);
        if self.region.words(word).unmask(bit) != 0 {
            self.inner.set_pending(vector, true);
        }
    }
}

impl<P: VectorPath + ?Sized> MaskStrategy for SharedMsix<P> {
    fn vectors(&self) -> u16 {
        self.inner.vectors()
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.region.set_dropping(!enabled && self.while_disabled == WhileDisabled::Drop);
        if !enabled {
            for word in 0..WORDS {
                self.region.words(word).mask(valid(word, self.vectors()));
            }
        }
        self.inner.set_enabled(enabled);
    }

    fn mask(&mut self, vector: u16) {
        if vector < self.vectors() {
            let (word, bit) = Self::place(vector);
            self.region.words(word).mask(bit);
            self.inner.mask(vector);
        }
    }

    fn unmask(&mut self, vector: u16, message: &MsiMessage) {
        if vector < self.vectors() {
            self.unmask_words(vector);
            self.inner.unmask(vector, message);
        }
    }

    fn unmask_many(&mut self, batch: &[(u16, MsiMessage)]) {
        for &(vector, _) in batch {
            if vector < self.vectors() {
                self.unmask_words(vector);
            }
        }
        self.inner.unmask_many(batch);
    }

    fn is_pending(&self, vector: u16) -> bool {
        self.pending_word(vector / 64) >> (vector % 64) & 1 != 0
    }

    fn pending_word(&self, word: u16) -> u64 {
        let at = usize::from(word);
        let shared = if at < WORDS { self.region.words(at).pending.load(Ordering::Relaxed) } else { 0 };
        shared & valid(at, self.vectors()) | self.inner.pending_word(word)
    }

    fn set_pending(&mut self, vector: u16, pending: bool) {
        if vector >= self.vectors() {
            return;
        }
        let (word, bit) = Self::place(vector);
        let words = self.region.words(word);
        if !pending {
            words.take(bit);
            self.inner.set_pending(vector, false);
        } else if words.signal(bit) {
            self.inner.set_pending(vector, true);
        }
    }

    fn reset(&mut self) {
        self.set_enabled(false);
        for word in 0..WORDS {
            let words = self.region.words(word);
            // Release: the host's mask bits, set just now, come first.
            words.guest.store(0, Ordering::Release);
            words.take(u64::MAX);
        }
        self.inner.reset();
    }

    /// The guest's own mask words.
    fn save(&self) -> Vec<u64> {
        let words = 0..usize::from(self.vectors().div_ceil(64));
        words.map(|word| self.region.words(word).guest.load(Ordering::Relaxed) & valid(word, self.vectors())).collect()
    }

    fn validate(&self, saved: &[u64]) -> Result<(), Error> {
        validate_bits("mask bits of the guest", saved, self.vectors())
    }

    fn restore(&mut self, saved: &[u64]) {
        for (word, bits) in saved.iter().enumerate().take(WORDS) {
            // Release: as in `reset`.
            self.region.words(word).guest.store(*bits, Ordering::Release);
        }
    }
}

/// One vector of a function in the VMM: where its eventfd's events go.
pub struct SharedVector<P: VectorPath + ?Sized = dyn VectorPath> {
    region: Arc<Region>,
    inner: MsixVector<P>,
    vector: u16,
}

impl<P: VectorPath + ?Sized> SharedVector<P> {
    /// An event. The mask is looked at again: the guest may have set it since the device looked.
    pub fn fire(&self) -> VectorEvent {
        let (word, bit) = SharedMsix::<P>::place(self.vector);
        if self.region.is_dropping() || self.region.words(word).signal(bit) {
            self.inner.fire()
        } else {
            VectorEvent::Pending
        }
    }
}

impl<P: VectorPath + ?Sized> EventSink for SharedVector<P> {
    fn signal(&self) -> Delivery {
        self.fire().delivery()
    }
}
