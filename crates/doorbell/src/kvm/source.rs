//! One eventfd of a VM, and what stands between it and its GSI while the dispatcher watches it.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::{Errno, ReadWriteFlags};

use super::heat::Heat;
use crate::{Delivery, EventSink};

/// Takes an eventfd's counter without waiting for one; 0 if there was none.
pub(super) fn take_counter(fd: impl AsFd) -> u64 {
    let mut counter = [0; 8];
    // NOWAIT, because the descriptor belongs to somebody who may want it to block. An eventfd has no position: -1.
    match rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(8) => u64::from_ne_bytes(counter),
        Ok(_) | Err(Errno::AGAIN) => 0,
        Err(error) => {
            tracing::warn!(%error, "an eventfd's counter cannot be taken; an event may be delivered twice");
            0
        }
    }
}

/// What the dispatcher calls for an eventfd that the kernel does not have.
pub(super) struct LazySink {
    pub(super) fd: OwnedFd,
    pub(super) target: Arc<dyn EventSink>,
    /// Events since it was last watched; `COLD` once that no longer matters.
    events: AtomicU32,
    /// Not signalled since it is watched.
    fresh: AtomicBool,
    heat: Arc<Heat>,
}

impl LazySink {
    pub(super) fn new(fd: OwnedFd, target: Arc<dyn EventSink>, heat: Arc<Heat>) -> Self {
        Self { fd, target, events: AtomicU32::new(0), fresh: AtomicBool::new(true), heat }
    }

    /// The dispatcher is about to watch the eventfd again.
    pub(super) fn renew(&self) {
        // Relaxed, as all accesses here: the dispatcher's binding, made after this, orders them.
        self.events.store(0, Ordering::Relaxed);
        self.fresh.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_hot(&self) -> bool {
        self.events.load(Ordering::Relaxed) >= self.heat.threshold()
    }
}

impl EventSink for LazySink {
    fn signal(&self) -> Delivery {
        if self.fresh.load(Ordering::Relaxed) {
            self.fresh.store(false, Ordering::Relaxed);
            // A counter that was not 0 when the dispatcher bound it is left as it is (F10). It is this event, and must
            // not be taken for another one when the kernel gets the eventfd.
            take_counter(&self.fd);
        }
        let threshold = self.heat.threshold();
        let events = self.events.load(Ordering::Relaxed);
        if events < threshold {
            // A count lost to another dispatching thread only puts the promotion off.
            self.events.store(events + 1, Ordering::Relaxed);
            if events + 1 == threshold {
                self.heat.add();
            }
        }
        self.target.signal()
    }
}
