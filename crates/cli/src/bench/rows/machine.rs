//! The machine that the rows use.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target};

/// A controller that resolves every message and only remembers that something came.
#[derive(Default)]
pub struct Sink(AtomicU64);

impl Sink {
    /// A new one.
    pub fn target() -> Arc<dyn MsiTarget> {
        Arc::new(Self::default())
    }
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.prepare(message).map_or(Delivery::Ignored, |target| self.fire(target)))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        Target::new(message.data)
    }

    fn fire(&self, target: Target) -> Delivery {
        // Relaxed: only a count.
        self.0.fetch_add(u64::from(target.bits()), Ordering::Relaxed);
        Delivery::Delivered(1)
    }
}
