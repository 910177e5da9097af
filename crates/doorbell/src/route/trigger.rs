//! Raising a GSI from this process, with no descriptor and no system call.

use std::sync::Arc;

use super::RouteTable;
use crate::{Delivery, inflight::OwnerState};

/// The single owner of a GSI's source in this process.
///
/// It fires with `&mut self`, which is what allows the fastest way there is: see [`inflight`](crate::inflight). Where
/// several threads raise one GSI, [`share`](Self::share) it.
pub struct IrqTrigger {
    table: Arc<RouteTable>,
    gsi: u32,
    /// `None` while another trigger owns the GSI: this one then fires as any thread may.
    owner: Option<OwnerState>,
}

impl IrqTrigger {
    /// A trigger for `gsi`; beyond the table it swallows its events, as an irqfd would.
    pub fn new(table: Arc<RouteTable>, gsi: u32) -> Self {
        let owner = table.own(gsi);
        Self { table, gsi, owner }
    }

    /// One event.
    #[inline]
    pub fn fire(&mut self) -> Delivery {
        match &mut self.owner {
            Some(owner) => self.table.fire_owned(self.gsi, owner),
            None => self.table.fire(self.gsi),
        }
    }

    /// The GSI.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// A trigger of the same GSI that any number of threads may use.
    pub fn share(&self) -> SharedTrigger {
        SharedTrigger { table: Arc::clone(&self.table), gsi: self.gsi }
    }
}

impl Drop for IrqTrigger {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            self.table.disown(self.gsi, owner);
        }
    }
}

/// A trigger that any number of threads may use at once.
#[derive(Clone)]
pub struct SharedTrigger {
    table: Arc<RouteTable>,
    gsi: u32,
}

impl SharedTrigger {
    /// A trigger for `gsi`.
    pub fn new(table: Arc<RouteTable>, gsi: u32) -> Self {
        Self { table, gsi }
    }

    /// One event.
    #[inline]
    pub fn fire(&self) -> Delivery {
        self.table.fire(self.gsi)
    }
}
