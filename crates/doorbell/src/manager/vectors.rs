//! A block of GSIs on loan to one device.

use std::sync::Arc;

use crate::{Error, VectorPath, VectorSlot};

/// GSIs borrowed by [`IrqManager::alloc_vectors`](super::IrqManager::alloc_vectors); given back on drop.
///
/// What is pending on them then is gone with the device.
#[must_use = "dropping it gives the GSIs back"]
pub struct Vectors {
    path: Arc<dyn VectorPath>,
    slots: Vec<VectorSlot>,
}

impl Vectors {
    pub(super) fn alloc(path: Arc<dyn VectorPath>, min: usize, max: usize) -> Result<Self, Error> {
        if max == 0 || min > max {
            return Err(Error::Invalid {
                what: "a minimum of",
                value: min as u64,
                allowed: "at most the maximum, and the maximum at least 1",
            });
        }
        let mut vectors = Self { path, slots: Vec::new() };
        while vectors.slots.len() < max {
            match vectors.path.lease() {
                Ok(slot) => vectors.slots.push(slot),
                Err(Error::NoFreeGsi(_)) if vectors.slots.len() >= min => break,
                // What was taken goes back with `vectors`.
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    /// The loans, one per vector.
    pub fn slots(&self) -> &[VectorSlot] {
        &self.slots
    }

    /// The way that they belong to.
    pub fn path(&self) -> &Arc<dyn VectorPath> {
        &self.path
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        for slot in self.slots.drain(..) {
            self.path.release(slot);
        }
    }
}
