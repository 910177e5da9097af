//! A bound eventfd, as its owner holds it.

use std::{fmt, sync::Arc};

use super::{EventfdId, IrqfdTarget, dispatcher::Inner, resample::Sharing, slots::Token, target::Destination};
use crate::Error;

/// One occupied slot; dropping it ends the occupancy and waits until no event of it is being delivered.
pub(super) struct Watch {
    inner: Arc<Inner>,
    token: Token,
}

impl Watch {
    pub(super) fn new(inner: &Arc<Inner>, token: Token) -> Self {
        Self { inner: Arc::clone(inner), token }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.inner.detach(self.token);
    }
}

/// A bound eventfd (`KVM_IRQFD`). Dropping it unbinds the eventfd.
///
/// When the drop is over, no event of this binding is being delivered, and none will be (F8a): what was written but not
/// yet dispatched stays in the eventfd's counter (F8b), where the next binding finds it. Only a target that drops the
/// irqfd whose event it is given does not wait: for its own return.
///
/// A target that drops *another* irqfd waits for that one's delivery; two that do so to each other wait for ever. No
/// target of a resample irqfd may drop it: its line is being driven.
#[must_use = "dropping it unbinds the eventfd"]
pub struct Irqfd {
    /// Before `sharing`: the last event must be over before the line is let go.
    watch: Watch,
    eventfd: EventfdId,
    sharing: Option<Sharing>,
}

impl Irqfd {
    pub(super) fn new(watch: Watch, eventfd: EventfdId, sharing: Option<Sharing>) -> Self {
        Self { watch, eventfd, sharing }
    }

    /// Which eventfd is bound.
    pub fn eventfd(&self) -> EventfdId {
        self.eventfd
    }

    pub(super) fn token(&self) -> Token {
        self.watch.token
    }

    pub(super) fn sharing(&self) -> Option<&Sharing> {
        self.sharing.as_ref()
    }

    /// Sends further events elsewhere. An event that comes meanwhile meets the old or the new target; when the call
    /// returns, none is being delivered to the old one.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own delivery, and for an irqfd with a resample descriptor.
    pub fn retarget(&self, target: impl Into<IrqfdTarget>) -> Result<(), Error> {
        if self.sharing.is_some() {
            return Err(Error::Busy("the irqfd's line, which other irqfds may share,"));
        }
        self.watch.inner.retarget(self.watch.token, Destination::from(target.into()))
    }

    /// Makes further events pending, once none is being delivered; whether they were so before. The counter is not
    /// taken meanwhile.
    ///
    /// For a binding that has no GSI whose [`Gate`](crate::gate::Gate) would do it.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own delivery.
    pub fn mask(&self) -> Result<bool, Error> {
        self.watch.inner.mask(self.watch.token)
    }

    /// Lets events through again, and delivers the pending one; whether there was one.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own delivery.
    pub fn unmask(&self) -> Result<bool, Error> {
        self.watch.inner.unmask(self.watch.token)
    }

    /// Whether an event waits behind [`mask`](Self::mask).
    pub fn is_pending(&self) -> bool {
        self.save().pending
    }

    /// Mask and pending bit. What was written and not yet dispatched is in the eventfd: dispatch until nothing is left
    /// before a save.
    pub fn save(&self) -> IrqfdState {
        self.watch.inner.save(self.watch.token)
    }

    /// Sets mask and pending bit, on a binding that has seen no event yet.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if it would be pending and not masked, [`Error::Busy`] from its own delivery; nothing is changed
    /// then.
    pub fn restore(&self, state: &IrqfdState) -> Result<(), Error> {
        self.watch.inner.restore(self.watch.token, state)
    }
}

/// What is saved of an irqfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IrqfdState {
    /// Its events become pending.
    pub masked: bool,
    /// One is.
    pub pending: bool,
}

impl fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Irqfd").field("eventfd", &self.eventfd).field("token", &self.watch.token).finish()
    }
}
