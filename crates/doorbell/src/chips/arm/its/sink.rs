//! What an ITS needs of the GIC: what happens to LPIs.

use crate::{
    chips::arm::{Gic, lpi::LpiSent},
    guest_ram::NoMemory,
};

/// The LPIs of a GIC. vCPUs are named by their index.
pub(super) trait LpiSink: Send + Sync {
    /// How many vCPUs there are.
    fn vcpus(&self) -> u32;
    /// Whether an event can be mapped to this INTID.
    fn in_range(&self, lpi: u32) -> bool;
    /// An event. Takes no lock and allocates nothing.
    fn pend(&self, lpi: u32) -> LpiSent;
    /// CLEAR.
    fn clear(&self, lpi: u32);
    /// One more event is mapped to it, whose collection is on `cpu`.
    ///
    /// # Errors
    /// If guest memory refuses its configuration or its pending bit; nothing has happened then.
    fn map(&self, lpi: u32, cpu: Option<u16>) -> Result<(), NoMemory>;
    /// One event less is mapped to it.
    fn unmap(&self, lpi: u32, keep_pending: bool);
    /// Events go to `cpu` from now on; what is pending moves there too, if `pending`.
    fn retarget(&self, lpi: u32, cpu: u16, pending: bool);
    /// MOVALL: what is pending, or with `every` all that waits or would wait.
    fn move_all(&self, from: u16, to: u16, every: bool);
    /// INV.
    ///
    /// # Errors
    /// If guest memory refuses the configuration.
    fn invalidate(&self, lpi: u32) -> Result<(), NoMemory>;
    /// INVALL, for the collections of one vCPU.
    fn invalidate_all(&self, cpu: u16);
}

impl LpiSink for Gic {
    fn vcpus(&self) -> u32 {
        self.vcpus()
    }

    fn in_range(&self, lpi: u32) -> bool {
        self.lpi_in_range(lpi)
    }

    #[inline]
    fn pend(&self, lpi: u32) -> LpiSent {
        self.pend_lpi(lpi)
    }

    fn clear(&self, lpi: u32) {
        self.clear_lpi(lpi);
    }

    fn map(&self, lpi: u32, cpu: Option<u16>) -> Result<(), NoMemory> {
        self.map_lpi(lpi, cpu)
    }

    fn unmap(&self, lpi: u32, keep_pending: bool) {
        self.unmap_lpi(lpi, keep_pending);
    }

    fn retarget(&self, lpi: u32, cpu: u16, pending: bool) {
        if pending {
            self.target_lpi(lpi, Some(cpu));
        } else {
            self.rehome_lpi(lpi, Some(cpu));
        }
    }

    fn move_all(&self, from: u16, to: u16, every: bool) {
        self.move_all_lpis(from, to, every);
    }

    fn invalidate(&self, lpi: u32) -> Result<(), NoMemory> {
        self.invalidate_lpi(lpi)
    }

    fn invalidate_all(&self, cpu: u16) {
        self.invalidate_all_lpis(cpu);
    }
}
