//! A value that belongs to whoever holds a [`Latch`].

use crate::{
    inflight::{Fired, Latch, Slot},
    sync::UnsafeCell,
};

/// A [`Latch`] and what it guards: the firer and the configurer that are inside have the value to themselves.
pub(crate) struct LatchCell<T> {
    /// Lock order: its user's. Never owned by a single owner (`Latch::own`), so that nobody fires without taking it.
    latch: Latch,
    /// Touched only between taking the latch and leaving it.
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached only through `latch`, which lets in one thread at a time and orders their accesses by
// its Acquire and Release; so sharing the cell moves the value between threads, which `Send` allows.
unsafe impl<T: Send> Sync for LatchCell<T> {}

impl<T> LatchCell<T> {
    pub(crate) fn new(payload: u64, value: T) -> Self {
        Self { latch: Latch::new(payload), value: UnsafeCell::new(value) }
    }

    /// The payload, mask and pending bit as they are now.
    pub(crate) fn peek(&self) -> Slot {
        self.latch.peek()
    }

    /// [`Latch::fire`]; `deliver` must not come back to this cell.
    #[inline]
    pub(crate) fn fire<R>(&self, deliver: impl FnOnce(u64, &mut T) -> R) -> Fired<R> {
        self.latch.fire(self.inside(deliver))
    }

    /// [`Latch::configure`]; neither closure may come back to this cell.
    pub(crate) fn configure<X, R>(
        &self,
        change: impl FnOnce(&mut Slot, &mut T) -> X,
        deliver: impl FnOnce(u64, &mut T) -> R,
    ) -> X {
        let change = |slot: &mut Slot| {
            // SAFETY: `configure` calls this with the latch taken.
            self.value.with_mut(|value| change(slot, unsafe { &mut *value }))
        };
        self.latch.configure(change, self.inside(deliver))
    }

    /// [`Latch::mask`].
    pub(crate) fn mask<R>(&self, deliver: impl FnOnce(u64, &mut T) -> R) -> bool {
        self.latch.mask(self.inside(deliver))
    }

    /// [`Latch::unmask`].
    pub(crate) fn unmask<R>(&self, mut deliver: impl FnMut(u64, &mut T) -> R) -> Option<R> {
        self.latch.unmask(|payload| {
            // SAFETY: as in `inside`.
            self.value.with_mut(|value| deliver(payload, unsafe { &mut *value }))
        })
    }

    /// What the latch calls for an event.
    #[inline]
    fn inside<R>(&self, deliver: impl FnOnce(u64, &mut T) -> R) -> impl FnOnce(u64) -> R {
        move |payload| {
            // SAFETY: the latch calls this with itself taken; without a single owner it never delivers otherwise.
            self.value.with_mut(|value| deliver(payload, unsafe { &mut *value }))
        }
    }
}
