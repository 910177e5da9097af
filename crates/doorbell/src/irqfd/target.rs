//! Where the events of a binding go.

use std::sync::Arc;

use super::resample::Resampler;
use crate::{Delivery, Error, EventSink, MsiMessage, MsiTarget, Target, route::RouteTable};

/// A GSI that had a route when this was made: the proof that an irqfd comes after its route.
#[derive(Clone)]
pub struct RoutedGsi {
    table: Arc<RouteTable>,
    gsi: u32,
}

impl RoutedGsi {
    /// # Errors
    /// [`Error::NoSuchGsi`] beyond the table, [`Error::Unrouted`] if the GSI has no route: an event would be swallowed.
    pub fn new(table: &Arc<RouteTable>, gsi: u32) -> Result<Self, Error> {
        if gsi >= RouteTable::GSIS {
            return Err(Error::NoSuchGsi { gsi, last: RouteTable::GSIS - 1 });
        }
        if table.routes(gsi).is_empty() {
            return Err(Error::Unrouted(gsi));
        }
        Ok(Self { table: Arc::clone(table), gsi })
    }

    /// The GSI.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// Where the events of an [`Irqfd`](super::Irqfd) go.
#[derive(Clone)]
#[non_exhaustive]
pub enum IrqfdTarget {
    /// A GSI. Make it from a [`RoutedGsi`], or without that proof as [`IrqfdTarget::unrouted`].
    Gsi(RoutedGsi),
    /// A message with no table entry: DeviceID and EventID belong to the binding (S2-direct, the design of 2015 that
    /// needs no table).
    Message {
        /// The controller.
        target: Arc<dyn MsiTarget>,
        /// The message, with its device where the controller needs it.
        message: MsiMessage,
    },
    /// Something of the embedder's. It may drop irqfds, its own too, but must not dispatch.
    Sink(Arc<dyn EventSink>),
}

impl IrqfdTarget {
    /// A GSI that need not have a route, as `KVM_IRQFD` allows: an event without a route is swallowed, and not
    /// replayed when one appears (F7).
    pub fn unrouted(table: &Arc<RouteTable>, gsi: u32) -> Self {
        Self::Gsi(RoutedGsi { table: Arc::clone(table), gsi })
    }
}

impl From<RoutedGsi> for IrqfdTarget {
    fn from(gsi: RoutedGsi) -> Self {
        Self::Gsi(gsi)
    }
}

/// A target as a binding keeps it: what can be looked up in advance has been.
pub(super) enum Destination {
    Gsi(Arc<RouteTable>, u32),
    Resolved(Arc<dyn MsiTarget>, Target),
    Message(Arc<dyn MsiTarget>, MsiMessage),
    Sink(Arc<dyn EventSink>),
    Resample(Arc<Resampler>),
}

impl Destination {
    #[inline]
    pub(super) fn deliver(&self) -> Delivery {
        match self {
            Self::Gsi(table, gsi) => table.fire(*gsi),
            Self::Resolved(controller, target) => controller.fire(*target),
            Self::Message(controller, message) => controller.send(message).unwrap_or(Delivery::Ignored),
            Self::Sink(sink) => sink.signal(),
            Self::Resample(resampler) => resampler.raise(),
        }
    }
}

impl From<IrqfdTarget> for Destination {
    fn from(target: IrqfdTarget) -> Self {
        match target {
            IrqfdTarget::Gsi(RoutedGsi { table, gsi }) => Self::Gsi(table, gsi),
            IrqfdTarget::Message { target, message } => match target.prepare(&message) {
                Some(resolved) => Self::Resolved(target, resolved),
                None => Self::Message(target, message),
            },
            IrqfdTarget::Sink(sink) => Self::Sink(sink),
        }
    }
}
