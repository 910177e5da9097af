//! The GSI routing table: which message or pins a GSI stands for.
//!
//! A table has [`RouteTable::GSIS`] GSIs. Each is a [`Latch`](crate::inflight::Latch) with its target resolved when it
//! is configured, so that firing looks nothing up; mask and pending bit of the [`gate`](crate::gate) are in the same
//! word. Routes come from three sides: the VMM replaces the whole table ([`RouteTable::set`], `KVM_SET_GSI_ROUTING`),
//! it changes some ([`RouteTable::update`]), or a device borrows GSIs for its vectors
//! ([`VectorPath`](crate::VectorPath)).
//!
//! ```
//! use std::sync::Arc;
//! use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target};
//! use doorbell::route::{NoPins, Route, RouteEntry, RoutePolicy, RouteTable};
//!
//! struct Print;
//! impl MsiTarget for Print {
//!     fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
//!         println!("{:#x} to {:#x}", message.data, message.address);
//!         Ok(Delivery::Delivered(1))
//!     }
//!     fn prepare(&self, _: &MsiMessage) -> Option<Target> { None }
//!     fn fire(&self, _: Target) -> Delivery { Delivery::Ignored }
//! }
//!
//! let table = RouteTable::new(Arc::new(Print), Arc::new(NoPins), RoutePolicy::default());
//! table.set(&[RouteEntry { gsi: 30, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) }])?;
//! assert_eq!(table.fire(30), Delivery::Delivered(1));
//! assert_eq!(table.fire(31), Delivery::Ignored, "no route");
//! # Ok::<(), Error>(())
//! ```

mod cell;
mod lease;
mod lines;
#[cfg(all(test, not(loom)))]
mod machine;
#[cfg(any(feature = "kvm", all(test, not(loom))))]
mod open;
mod policy;
mod state;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;
mod trigger;

#[cfg(feature = "kvm")]
pub(crate) use open::OpenRoutes;
pub use policy::{Initial, LineCalls, PinRoutes, RoutePolicy};
pub use state::{GsiState, RouteTableState};
pub use table::RouteTable;
pub use trigger::{IrqTrigger, SharedTrigger};

use crate::{Delivery, LineSource, MsiMessage, PinInput, Pins, delivery::ChipId, list::List};

/// One input pin of one chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pin {
    /// The chip.
    pub chip: ChipId,
    /// Its pin.
    pub pin: u16,
}

/// Where one entry of the table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Route {
    /// A message (`KVM_IRQ_ROUTING_MSI`).
    Msi(MsiMessage),
    /// A pin (`KVM_IRQ_ROUTING_IRQCHIP`).
    Pin(Pin),
}

/// The entries of one GSI: none, one message, or pins of different chips.
pub type GsiRoutes = List<Route, MAX_PINS>;

/// To how many chips one GSI may fan out.
pub const MAX_PINS: usize = 3;

/// One entry of a whole table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RouteEntry {
    /// The GSI, below [`RouteTable::GSIS`].
    pub gsi: u32,
    /// Where it leads.
    pub route: Route,
}

/// A change to one GSI of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteUpdate {
    /// These are its entries from now on.
    Set {
        /// The GSI, below [`RouteTable::GSIS`].
        gsi: u32,
        /// Its entries; none removes the route.
        routes: GsiRoutes,
    },
    /// It has no route any more.
    Remove {
        /// The GSI, below [`RouteTable::GSIS`].
        gsi: u32,
    },
}

/// For a machine without pins.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPins;

impl PinInput for NoPins {
    fn pins(&self, _: ChipId) -> u16 {
        0
    }
    fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
        Delivery::Ignored
    }
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}
