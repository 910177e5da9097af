//! What the manager stands on: the soft controllers, or the kernel's.

use std::{ops::Range, os::fd::BorrowedFd, sync::Arc};

use super::{Capability, Irqfd, ManagerState};
use crate::{
    Delivery, Error, LineSource, MsiMessage, Pins, VectorPath,
    delivery::ChipId,
    irqfd::Dispatcher,
    route::{GsiRoutes, RouteEntry, RouteTable, RouteUpdate},
};

/// The calls of [`IrqManager`](super::IrqManager), which documents them.
pub(crate) trait Backend: Send + Sync {
    /// The table that a trigger of this process fires through; `None` if events leave the process.
    fn table(&self) -> Option<Arc<RouteTable>>;
    fn set_routes(&self, entries: &[RouteEntry]) -> Result<(), Error>;
    fn update_routes(&self, updates: &[RouteUpdate]) -> Result<(), Error>;
    fn routes(&self, gsi: u32) -> GsiRoutes;
    fn irqfd(&self, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Result<Irqfd, Error>;
    fn dispatcher(&self) -> &Dispatcher;
    fn fire(&self, gsi: u32) -> Delivery;
    fn irq_line(&self, gsi: u32, source: LineSource, level: bool) -> Delivery;
    fn signal_msi(&self, message: &MsiMessage) -> Result<Delivery, Error>;
    fn mask(&self, gsi: u32) -> Result<bool, Error>;
    fn unmask(&self, gsi: u32) -> Result<Option<Delivery>, Error>;
    fn pending(&self, range: Range<u32>, bits: &mut [u64]);
    fn vectors(&self) -> Arc<dyn VectorPath>;
    fn capability(&self, capability: Capability) -> u32;
    fn end(&self, chip: ChipId, pins: &Pins);
    fn unmasked(&self, chip: ChipId, pins: &Pins);
    fn save(&self) -> ManagerState;
    fn restore(&self, state: &ManagerState) -> Result<(), Error>;
}
