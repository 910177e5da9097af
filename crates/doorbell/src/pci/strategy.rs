//! The seam behind the mask bit: how a masked vector keeps its events.

use super::msix::state::refuse;
use crate::{Error, MsiMessage};

/// What a device does with an event while its MSI or MSI-X is off (msix.md M11). The specification leaves it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhileDisabled {
    /// The event is pending and is sent when the guest enables and unmasks the vector.
    #[default]
    Keep,
    /// The event is dropped and counted, as QEMU's devices do. What was pending before stays pending (M9).
    Drop,
}

/// One way to mask the vectors of a function: the strategies S5-A to S5-C of the 2009 thread.
///
/// The registers in front ([`MsixTable`](super::MsixTable), [`MsiCapability`](super::MsiCapability)) combine a
/// vector's own mask bit, the Function Mask and Enable, and report only the result: each vector is *masked* or
/// *unmasked*. All are masked at first. Events come to the strategy by a way of its own.
///
/// The promise of every strategy, for each vector: deliveries never exceed events; an event that comes while masked is
/// pending and sends nothing; any number of them send one message on unmask, with the message given there; after the
/// last event, if the vector is finally unmasked, at least one delivery follows. Each call is complete when it
/// returns: nothing is delivered later by what was before.
///
/// Vectors beyond [`vectors`](Self::vectors) are ignored.
pub trait MaskStrategy: Send {
    /// How many vectors the function has, 1 to 2,048.
    fn vectors(&self) -> u16;

    /// The function's Enable bit. `false` masks every vector, and the strategy gives back what it holds for them
    /// (pending bits stay, M9); `true` unmasks none by itself.
    fn set_enabled(&mut self, enabled: bool);

    /// Masks a vector. Masking twice is masking once.
    fn mask(&mut self, vector: u16);

    /// Masks many: one commit where a commit is dear.
    fn mask_many(&mut self, vectors: &[u16]) {
        for &vector in vectors {
            self.mask(vector);
        }
    }

    /// Unmasks a vector, whose events carry `message` from now on; a pending event is sent now, once. Called only
    /// while enabled. For an unmasked vector: changes the message (M12).
    fn unmask(&mut self, vector: u16, message: &MsiMessage);

    /// Unmasks many: one commit where a commit is dear.
    fn unmask_many(&mut self, batch: &[(u16, MsiMessage)]) {
        for (vector, message) in batch {
            self.unmask(*vector, message);
        }
    }

    /// Whether an event waits behind the mask.
    fn is_pending(&self, vector: u16) -> bool;

    /// 64 pending bits: those of the vectors from 64 times `word`.
    fn pending_word(&self, word: u16) -> u64 {
        let first = word.saturating_mul(64);
        (0..64).fold(0, |bits, bit| {
            let vector = first.saturating_add(bit);
            bits | u64::from(vector < self.vectors() && self.is_pending(vector)) << bit
        })
    }

    /// Makes an event pending as if it had just come (restore), or takes it back, as a device may whose condition is
    /// gone (M16). An unmasked vector sends it, and has nothing to take back.
    fn set_pending(&mut self, vector: u16, pending: bool);

    /// The function is reset: every vector masked, nothing pending, nothing held, not enabled.
    fn reset(&mut self);

    /// What is to be saved beyond the pending bits: words that only this strategy understands.
    fn save(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Whether [`restore`](Self::restore) could take these words. It must assume that a guest has written them.
    ///
    /// # Errors
    /// [`Error::Snapshot`].
    fn validate(&self, saved: &[u64]) -> Result<(), Error> {
        if saved.is_empty() { Ok(()) } else { refuse(format!("{} words for a strategy that saves none", saved.len())) }
    }

    /// Puts back what [`save`](Self::save) gave and [`validate`](Self::validate) accepted. Comes after a reset and
    /// before the pending bits.
    fn restore(&mut self, saved: &[u64]) {
        let _ = saved;
    }
}

impl<S: MaskStrategy + ?Sized> MaskStrategy for Box<S> {
    fn vectors(&self) -> u16 {
        (**self).vectors()
    }

    fn set_enabled(&mut self, enabled: bool) {
        (**self).set_enabled(enabled);
    }

    fn mask(&mut self, vector: u16) {
        (**self).mask(vector);
    }

    fn mask_many(&mut self, vectors: &[u16]) {
        (**self).mask_many(vectors);
    }

    fn unmask(&mut self, vector: u16, message: &MsiMessage) {
        (**self).unmask(vector, message);
    }

    fn unmask_many(&mut self, batch: &[(u16, MsiMessage)]) {
        (**self).unmask_many(batch);
    }

    fn is_pending(&self, vector: u16) -> bool {
        (**self).is_pending(vector)
    }

    fn pending_word(&self, word: u16) -> u64 {
        (**self).pending_word(word)
    }

    fn set_pending(&mut self, vector: u16, pending: bool) {
        (**self).set_pending(vector, pending);
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn save(&self) -> Vec<u64> {
        (**self).save()
    }

    fn validate(&self, saved: &[u64]) -> Result<(), Error> {
        (**self).validate(saved)
    }

    fn restore(&mut self, saved: &[u64]) {
        (**self).restore(saved);
    }
}
