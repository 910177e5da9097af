//! When lazy sources have become so busy that a batch of them is worth a routing call.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::Thread;

/// When sources go to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// Only by [`promote`](super::KvmIrqs::promote).
    Manual,
    /// When `batch` sources have brought `events` events each since they were last in user space: then
    /// [`promote_hot`](super::KvmIrqs::promote_hot), called from the embedder's loop or by a thread of
    /// [`spawn_promoter`](super::KvmIrqs::spawn_promoter), finds something to do.
    Hot {
        /// From 1.
        events: u32,
        /// From 1.
        batch: u32,
    },
}

impl Default for Promotion {
    /// A delivery by the dispatcher costs some 4 µs more than one by the kernel, a routing call and an irqfd some 10 to
    /// 600 µs once.
    fn default() -> Self {
        Self::Hot { events: 64, batch: 16 }
    }
}

/// Counts sources that have become hot, and wakes who promotes them.
#[derive(Debug)]
pub(super) struct Heat {
    promotion: Promotion,
    hot: AtomicU32,
    promoter: OnceLock<Thread>,
}

impl Heat {
    pub(super) fn new(promotion: Promotion) -> Self {
        Self { promotion, hot: AtomicU32::new(0), promoter: OnceLock::new() }
    }

    /// How many events make a source hot.
    #[inline]
    pub(super) fn threshold(&self) -> u32 {
        match self.promotion {
            Promotion::Manual => u32::MAX,
            Promotion::Hot { events, .. } => events.max(1),
        }
    }

    fn batch(&self) -> u32 {
        match self.promotion {
            Promotion::Manual => u32::MAX,
            Promotion::Hot { batch, .. } => batch.max(1),
        }
    }

    /// One more source has become hot.
    #[cold]
    pub(super) fn add(&self) {
        // Relaxed: a hint. The promoter looks at the sources themselves, under their lock.
        let hot = self.hot.fetch_add(1, Ordering::Relaxed) + 1;
        if hot >= self.batch() {
            if let Some(promoter) = self.promoter.get() {
                promoter.unpark();
            }
        }
    }

    /// Whether a batch is there; the count begins again then.
    pub(super) fn take_batch(&self) -> bool {
        let enough = self.hot.load(Ordering::Relaxed) >= self.batch();
        if enough {
            self.hot.store(0, Ordering::Relaxed);
        }
        enough
    }

    /// This thread is woken when a batch is there; false if another one is already.
    pub(super) fn woken(&self, promoter: Thread) -> bool {
        self.promoter.set(promoter).is_ok()
    }
}
