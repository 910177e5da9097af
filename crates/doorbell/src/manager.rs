//! `IrqManager`: what a VMM holds.
//!
//! One set of calls, over doorbell's own controllers ([`IrqManager::soft`]) or over the kernel's (`kvm`, a feature).
//! All of them are configuration calls in the sense of [`inflight`](crate::inflight): complete when they return. The
//! events themselves come from descriptors, from [`IrqTrigger`]s and from line calls.
//!
//! ```
//! use std::sync::Arc;
//! use doorbell::manager::{IrqManager, SoftOptions};
//! use doorbell::route::{NoPins, Route, RouteEntry};
//! use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target};
//! # struct Controller;
//! # impl MsiTarget for Controller {
//! #     fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> { Ok(Delivery::Delivered(1)) }
//! #     fn prepare(&self, _: &MsiMessage) -> Option<Target> { None }
//! #     fn fire(&self, _: Target) -> Delivery { Delivery::Ignored }
//! # }
//!
//! let irqs = IrqManager::soft(SoftOptions::new(Arc::new(Controller), Arc::new(NoPins)))?;
//! irqs.set_routes(&[RouteEntry { gsi: 24, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) }])?;
//! let mut trigger = irqs.trigger(24);
//! assert_eq!(trigger.fire(), Delivery::Delivered(1));
//! irqs.mask(24)?;
//! trigger.fire();
//! assert_eq!(irqs.unmask(24)?, Some(Delivery::Delivered(1)), "it was pending");
//! # Ok::<(), Error>(())
//! ```

mod backend;
mod soft;
#[cfg(all(test, feature = "x86", not(loom)))]
mod tests;
mod vectors;

use std::{ops::Range, os::fd::BorrowedFd, sync::Arc};

pub(crate) use backend::Backend;
pub use soft::SoftOptions;
pub use vectors::Vectors;

use crate::{
    Delivery, Error, LineSource, MsiMessage, Pins, VectorPath,
    delivery::ChipId,
    irqfd::{Dispatcher, ResamplersState},
    route::{self, RouteEntry, RouteTableState, RouteUpdate},
};

/// What can be asked of a manager (`KVM_CHECK_EXTENSION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// How many routes a table takes (`KVM_CAP_IRQ_ROUTING`).
    Routes,
    /// Descriptors can be bound to GSIs (`KVM_CAP_IRQFD`).
    Irqfd,
    /// They can be bound with a resample descriptor (`KVM_CAP_IRQFD_RESAMPLE`).
    IrqfdResample,
    /// Messages can be sent directly (`KVM_CAP_SIGNAL_MSI`).
    SignalMsi,
    /// Messages must name their device (`KVM_CAP_MSI_DEVID`).
    MsiDeviceId,
    /// GSIs can be masked without detaching anything.
    Mask,
}

/// The interrupts of one machine. Clones are handles of the same.
#[derive(Clone)]
pub struct IrqManager {
    backend: Arc<dyn Backend>,
}

/// A GSI that had a route when this was made: what a descriptor can be bound to, so that no early event is swallowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedGsi(u32);

impl RoutedGsi {
    /// The GSI.
    pub fn gsi(self) -> u32 {
        self.0
    }
}

/// A descriptor bound to a GSI. Dropping it unbinds, and returns when no event of it can arrive any more.
#[must_use = "dropping it unbinds the descriptor"]
pub struct Irqfd(#[expect(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>);

impl Irqfd {
    /// Wraps what unbinds on drop.
    pub(crate) fn new(binding: impl Send + Sync + 'static) -> Self {
        Self(Box::new(binding))
    }
}

/// The single owner of a GSI's source in this process. Where several threads raise one GSI, give each its own: one
/// of them owns it, the others fire as anybody may.
pub struct IrqTrigger(Source);

enum Source {
    Soft(route::IrqTrigger),
    Backend(Arc<dyn Backend>, u32),
}

impl IrqTrigger {
    /// One event. On soft controllers: no lock that another source takes, no allocation, no system call but the kick.
    #[inline]
    pub fn fire(&mut self) -> Delivery {
        match &mut self.0 {
            Source::Soft(trigger) => trigger.fire(),
            Source::Backend(backend, gsi) => backend.fire(*gsi),
        }
    }
}

impl IrqManager {
    /// Over controllers in this process.
    ///
    /// # Errors
    /// Where the dispatcher of its descriptors cannot be made.
    pub fn soft(options: SoftOptions) -> Result<Self, Error> {
        Ok(Self { backend: Arc::new(soft::Soft::new(options)?) })
    }

    /// Over another backend.
    #[cfg_attr(not(feature = "kvm"), expect(dead_code, reason = "the only other backend is KVM"))]
    pub(crate) fn over(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// Replaces the whole routing table.
    ///
    /// # Errors
    /// See [`RouteTable::set`](route::RouteTable::set). The old table is then untouched.
    pub fn set_routes(&self, entries: &[RouteEntry]) -> Result<(), Error> {
        self.backend.set_routes(entries)
    }

    /// Changes some GSIs in one go.
    ///
    /// # Errors
    /// See [`RouteTable::update`](route::RouteTable::update). A batch that fails changes nothing.
    pub fn update_routes(&self, updates: &[RouteUpdate]) -> Result<(), Error> {
        self.backend.update_routes(updates)
    }

    /// The entries of a GSI.
    pub fn routes(&self, gsi: u32) -> route::GsiRoutes {
        self.backend.routes(gsi)
    }

    /// Proof that a GSI has a route, to bind descriptors to it.
    ///
    /// # Errors
    /// [`Error::Unrouted`].
    pub fn routed(&self, gsi: u32) -> Result<RoutedGsi, Error> {
        if self.backend.routes(gsi).is_empty() { Err(Error::Unrouted(gsi)) } else { Ok(RoutedGsi(gsi)) }
    }

    /// Binds an eventfd to a GSI: each signal is one event. The descriptor is duplicated.
    ///
    /// # Errors
    /// `EBADF` or `EINVAL` in [`Error::Descriptor`] if it is no eventfd, [`Error::Busy`] if it is bound already.
    pub fn irqfd(&self, gsi: RoutedGsi, fd: BorrowedFd<'_>) -> Result<Irqfd, Error> {
        self.backend.irqfd(gsi.0, fd, None)
    }

    /// Binds an eventfd to a level line: a signal raises it, the end of the interrupt lowers it and signals
    /// `resample`, whose reader raises it again if its condition still holds.
    ///
    /// # Errors
    /// As [`irqfd`](Self::irqfd).
    pub fn irqfd_resample(&self, gsi: RoutedGsi, fd: BorrowedFd<'_>, resample: BorrowedFd<'_>) -> Result<Irqfd, Error> {
        self.backend.irqfd(gsi.0, fd, Some(resample))
    }

    /// [`irqfd`](Self::irqfd) to any number, as KVM allows: without a route the events are swallowed.
    ///
    /// # Errors
    /// As [`irqfd`](Self::irqfd).
    pub fn irqfd_unrouted(
        &self,
        gsi: u32,
        fd: BorrowedFd<'_>,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<Irqfd, Error> {
        self.backend.irqfd(gsi, fd, resample)
    }

    /// What watches the descriptors. It has no thread of its own: poll it from a loop, or let it
    /// [`spawn`](Dispatcher::spawn) one.
    pub fn dispatcher(&self) -> &Dispatcher {
        self.backend.dispatcher()
    }

    /// Drives the user's source of a line. `KVM_IRQ_LINE_STATUS`.
    pub fn irq_line(&self, gsi: u32, level: bool) -> Delivery {
        self.backend.irq_line(gsi, LineSource::USER, level)
    }

    /// Sends a message past the table. `KVM_SIGNAL_MSI`.
    ///
    /// # Errors
    /// Those of the controller: see [`MsiTarget::send`](crate::MsiTarget::send).
    pub fn signal_msi(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.backend.signal_msi(message)
    }

    /// Makes the events of a GSI pending. Returns whether it was masked before.
    ///
    /// # Errors
    /// See [`Gate::mask`](crate::gate::Gate::mask).
    pub fn mask(&self, gsi: u32) -> Result<bool, Error> {
        self.backend.mask(gsi)
    }

    /// Lets them through again and delivers what is pending.
    ///
    /// # Errors
    /// See [`Gate::unmask`](crate::gate::Gate::unmask).
    pub fn unmask(&self, gsi: u32) -> Result<Option<Delivery>, Error> {
        self.backend.unmask(gsi)
    }

    /// Writes the pending bits of a range of GSIs: see [`Gate::pending`](crate::gate::Gate::pending).
    pub fn pending(&self, range: Range<u32>, bits: &mut [u64]) {
        self.backend.pending(range, bits)
    }

    /// Borrows between `min` and `max` GSIs for the vectors of a device, masked and without messages.
    ///
    /// # Errors
    /// [`Error::NoFreeGsi`] if there are fewer than `min`; none is then taken.
    pub fn alloc_vectors(&self, min: usize, max: usize) -> Result<Vectors, Error> {
        Vectors::alloc(self.backend.vectors(), min, max)
    }

    /// The way for the vectors of devices, which take and give back GSIs as they need them (`pci`).
    pub fn vectors(&self) -> Arc<dyn VectorPath> {
        self.backend.vectors()
    }

    /// What this manager can do; 0 is no. See [`Capability`].
    pub fn capability(&self, capability: Capability) -> u32 {
        self.backend.capability(capability)
    }

    /// A way to raise a GSI from this process without a descriptor.
    pub fn trigger(&self, gsi: u32) -> IrqTrigger {
        IrqTrigger(match self.backend.table() {
            Some(table) => Source::Soft(route::IrqTrigger::new(table, gsi)),
            None => Source::Backend(Arc::clone(&self.backend), gsi),
        })
    }

    /// The interrupt of these pins has ended: their resampled lines are lowered, the devices told, and what is still
    /// high is sent again. `pins` is what the chip's `end` returned.
    pub fn end(&self, chip: ChipId, pins: &Pins) {
        self.backend.end(chip, pins)
    }

    /// The guest unmasked these pins while their latch was set: a device that can be asked is asked whether its line
    /// is still high (R6), the others are sent as they are. `pins` is what the chip's register write returned.
    pub fn unmasked(&self, chip: ChipId, pins: &Pins) {
        self.backend.unmasked(chip, pins)
    }

    /// Routes, masks, pending bits and lines, at a moment when the sources are quiet. The chips and the devices have
    /// states of their own ([`snapshot`](crate::snapshot)).
    pub fn save(&self) -> ManagerState {
        self.backend.save()
    }

    /// Takes over a saved state. Descriptors are bound before, devices and chips are restored after it.
    ///
    /// # Errors
    /// [`Error::Snapshot`] and whatever a route call would refuse; nothing is restored then.
    pub fn restore(&self, state: &ManagerState) -> Result<(), Error> {
        self.backend.restore(state)
    }
}

/// What is saved of a manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ManagerState {
    /// The routing table with its masks and lines.
    pub routes: RouteTableState,
    /// The lines that are up on behalf of resample descriptors.
    pub resamplers: ResamplersState,
}
