//! The kernel's routing table as doorbell lays it out: one system call per batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{KERNEL_ROUTES, KernelRoute, Vm};
use crate::Error;
use crate::route::{GsiRoutes, Route};

/// The kernel's table: fixed entries at the bottom (pins, or the messages of a user-space IOAPIC), and above them
/// GSIs that are taken and given back as bindings come and go.
///
/// Lock order: right of the chips (a split IOAPIC commits from inside a delivery); held over the system call, so that
/// two batches do not overtake each other.
#[derive(Debug)]
pub(super) struct KernelRoutes {
    vm: Arc<Vm>,
    table: Mutex<Table>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    fixed: Vec<KernelRoute>,
    taken: BTreeMap<u32, GsiRoutes>,
}

impl Table {
    fn entries(&self) -> Vec<KernelRoute> {
        let taken = self.taken.iter().flat_map(|(&gsi, routes)| {
            routes.iter().map(move |route| match *route {
                Route::Msi(message) => KernelRoute::Msi { gsi, message },
                Route::Pin(pin) => KernelRoute::Pin { gsi, chip: pin.chip, pin: pin.pin },
            })
        });
        self.fixed.iter().copied().chain(taken).collect()
    }
}

impl KernelRoutes {
    /// A table with these fixed entries, not yet committed; GSIs from `first` on are for bindings.
    pub(super) fn new(vm: Arc<Vm>, fixed: Vec<KernelRoute>) -> Self {
        Self { vm, table: Mutex::new(Table { fixed, taken: BTreeMap::new() }) }
    }

    /// Replaces the fixed entries and commits.
    pub(super) fn set_fixed(&self, fixed: Vec<KernelRoute>) -> Result<(), Error> {
        let mut table = self.table.lock();
        let next = Table { fixed, taken: table.taken.clone() };
        self.vm.set_routes(&next.entries())?;
        *table = next;
        Ok(())
    }

    /// Makes all changes with one system call; if it is refused, none of them.
    pub(super) fn commit(&self, changes: &[(u32, GsiRoutes)]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut table = self.table.lock();
        let mut next = table.clone();
        next.taken.extend(changes.iter().cloned());
        self.vm.set_routes(&next.entries())?;
        *table = next;
        Ok(())
    }
}

/// The kernel GSIs above the fixed ones.
///
/// A GSI that was given back keeps its entry in the kernel until the next batch: it is not worth a system call, and
/// nothing is bound to it.
#[derive(Debug)]
pub(super) struct KernelGsis {
    next: u32,
    free: Vec<u32>,
}

impl KernelGsis {
    pub(super) fn from(first: u32) -> Self {
        Self { next: first, free: Vec::new() }
    }

    /// A GSI that nothing is bound to; `None` if all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let gsi = self.next;
            (gsi < KERNEL_ROUTES).then(|| {
                self.next += 1;
                gsi
            })
        })
    }

    /// Gives one back, to which nothing is bound any more (H-G).
    pub(super) fn give_back(&mut self, gsi: u32) {
        self.free.push(gsi);
    }
}
