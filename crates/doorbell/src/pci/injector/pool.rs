//! The GSIs of one machine as its devices share them.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::vectors::{Relief, Vectors};
use crate::{
    Error, VectorPath, VectorSlot,
    sync::{AtomicU32, Ordering},
};

/// The devices that take GSIs from one [`VectorPath`]: a device that finds none free gets that of a vector that is
/// masked, of whatever device. One for each machine.
pub struct VectorPool<P: VectorPath + ?Sized = dyn VectorPath> {
    path: Arc<P>,
    /// Lock order: the last; held for a copy or a change of the list, and nothing is taken inside.
    members: Mutex<Vec<Weak<Vectors<P>>>>,
    /// How many vectors of all devices are unmasked without a GSI.
    starving: AtomicU32,
}

impl<P: VectorPath + ?Sized> VectorPool<P> {
    /// A pool without devices.
    pub fn new(path: Arc<P>) -> Arc<Self> {
        Arc::new(Self { path, members: Mutex::new(Vec::new()), starving: AtomicU32::new(0) })
    }

    /// The path that lends the GSIs.
    pub fn path(&self) -> &Arc<P> {
        &self.path
    }

    /// How many vectors are unmasked without a GSI at the moment. Their events are pending.
    pub fn starving(&self) -> u32 {
        // SeqCst: after the path's mask of a vector. Whoever starves writes this first and then looks at the masks
        // (read-modify-writes of the path), so one of the two sees the other.
        self.starving.load(Ordering::SeqCst)
    }

    /// Gives GSIs to vectors that found none. Devices of this pool call it when they give GSIs back; call it after
    /// others have, if [`starving`](Self::starving) is not 0.
    pub fn relieve(&self) {
        for member in self.members() {
            let fed = member.feed(
                || self.lease(),
                |relief| {
                    if matches!(relief, Relief::Refused) {
                        tracing::warn!("the interrupt controller refused the message of an MSI-X vector");
                    }
                    self.starving.fetch_sub(1, Ordering::SeqCst);
                },
            );
            if !fed {
                break;
            }
        }
    }

    /// A free GSI, or one that a masked vector had.
    pub(super) fn lease(&self) -> Result<VectorSlot, Error> {
        let error = match self.path.lease() {
            Ok(slot) => return Ok(slot),
            Err(error) => error,
        };
        for member in self.members() {
            for vector in 0..member.cells.len() {
                if member.reclaim(vector) {
                    // Somebody else may be quicker to lease it: then the next one.
                    if let Ok(slot) = self.path.lease() {
                        return Ok(slot);
                    }
                }
            }
        }
        Err(error)
    }

    pub(super) fn join(&self, member: &Arc<Vectors<P>>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() != 0);
        members.push(Arc::downgrade(member));
    }

    pub(super) fn add_starving(&self) {
        // SeqCst: see `starving`.
        self.starving.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn sub_starving(&self, count: u32) {
        self.starving.fetch_sub(count, Ordering::SeqCst);
    }

    fn members(&self) -> Vec<Arc<Vectors<P>>> {
        self.members.lock().iter().filter_map(Weak::upgrade).collect()
    }
}
