//! The manager over controllers in this process.

use std::{ops::Range, os::fd::BorrowedFd, sync::Arc};

use super::{Backend, Capability, Irqfd, ManagerState};
use crate::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, Pins, VectorPath,
    delivery::ChipId,
    gate::Gate,
    inflight::BiasPermit,
    irqfd::{Dispatcher, DispatcherOptions, IrqfdTarget, Resamplers},
    route::{GsiRoutes, RouteEntry, RoutePolicy, RouteTable, RouteUpdate},
};

/// What a soft manager is made of.
#[non_exhaustive]
pub struct SoftOptions {
    /// Where messages go.
    pub msi: Arc<dyn MsiTarget>,
    /// The chips with pins.
    pub pins: Arc<dyn PinInput>,
    /// How the table behaves where the designs differ.
    pub policy: RoutePolicy,
    /// With a permit, quiet single-owner triggers fire without the latch.
    pub bias: Option<BiasPermit>,
    /// How descriptors are watched.
    pub dispatcher: DispatcherOptions,
}

impl SoftOptions {
    /// An empty table in front of these controllers, and no bias.
    pub fn new(msi: Arc<dyn MsiTarget>, pins: Arc<dyn PinInput>) -> Self {
        Self { msi, pins, policy: RoutePolicy::S2_TABLE, bias: None, dispatcher: DispatcherOptions::default() }
    }

    /// With another policy.
    pub fn policy(self, policy: RoutePolicy) -> Self {
        Self { policy, ..self }
    }

    /// With descriptors watched in this way.
    pub fn dispatcher(self, dispatcher: DispatcherOptions) -> Self {
        Self { dispatcher, ..self }
    }

    /// With the bias for single-owner triggers.
    pub fn bias(self, permit: BiasPermit) -> Self {
        Self { bias: Some(permit), ..self }
    }
}

/// See [`IrqManager::soft`](super::IrqManager::soft).
pub(super) struct Soft {
    table: Arc<RouteTable>,
    dispatcher: Dispatcher,
    resamplers: Resamplers,
}

impl Soft {
    pub(super) fn new(options: SoftOptions) -> Result<Self, Error> {
        let SoftOptions { msi, pins, policy, bias, dispatcher } = options;
        let table = Arc::new(RouteTable::with_bias(msi, pins, policy, bias));
        let resamplers = Resamplers::new(Arc::clone(&table));
        Ok(Self { table, dispatcher: Dispatcher::new(dispatcher)?, resamplers })
    }
}

impl Backend for Soft {
    fn table(&self) -> Option<Arc<RouteTable>> {
        Some(Arc::clone(&self.table))
    }

    fn set_routes(&self, entries: &[RouteEntry]) -> Result<(), Error> {
        self.table.set(entries)
    }

    fn update_routes(&self, updates: &[RouteUpdate]) -> Result<(), Error> {
        self.table.update(updates)
    }

    fn routes(&self, gsi: u32) -> GsiRoutes {
        self.table.routes(gsi)
    }

    fn irqfd(&self, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Result<Irqfd, Error> {
        Ok(Irqfd::new(match resample {
            None => self.dispatcher.attach(fd, IrqfdTarget::unrouted(&self.table, gsi))?,
            Some(resample) => self.resamplers.attach_unrouted(&self.dispatcher, gsi, fd, resample)?,
        }))
    }

    fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    fn fire(&self, gsi: u32) -> Delivery {
        self.table.fire(gsi)
    }

    fn irq_line(&self, gsi: u32, source: LineSource, level: bool) -> Delivery {
        self.table.line(gsi, source, level)
    }

    fn signal_msi(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.table.msi_target().send(message)
    }

    fn mask(&self, gsi: u32) -> Result<bool, Error> {
        Gate::new(&self.table).mask(gsi)
    }

    fn unmask(&self, gsi: u32) -> Result<Option<Delivery>, Error> {
        Gate::new(&self.table).unmask(gsi)
    }

    fn pending(&self, range: Range<u32>, bits: &mut [u64]) {
        Gate::new(&self.table).pending(range, bits)
    }

    fn vectors(&self) -> Arc<dyn VectorPath> {
        Arc::clone(&self.table) as Arc<dyn VectorPath>
    }

    fn capability(&self, capability: Capability) -> u32 {
        match capability {
            Capability::Routes => RouteTable::GSIS,
            Capability::Irqfd | Capability::IrqfdResample | Capability::SignalMsi | Capability::Mask => 1,
            Capability::MsiDeviceId => self.table.msi_target().takes_device_ids().into(),
        }
    }

    fn end(&self, chip: ChipId, pins: &Pins) {
        self.resamplers.ended(chip, pins);
        self.table.pin_input().reevaluate(chip, pins);
    }

    fn unmasked(&self, chip: ChipId, pins: &Pins) {
        self.resamplers.unmasked(self.table.pin_input(), chip, pins);
    }

    fn save(&self) -> ManagerState {
        ManagerState { routes: self.table.save(), resamplers: self.resamplers.save() }
    }

    fn restore(&self, state: &ManagerState) -> Result<(), Error> {
        let ManagerState { routes, resamplers } = state;
        self.resamplers.check(resamplers)?;
        self.table.restore(routes)?;
        self.resamplers.restore(resamplers)
    }
}
