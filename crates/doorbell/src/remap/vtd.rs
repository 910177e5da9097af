//! VT-d interrupt remapping: a table in guest memory, indexed by the message (Intel VT-d specification, revisions 3 and 4).
//!
//! A [`VtdUnit`] is an [`MsiTarget`] around the local APICs and a window of registers. The guest puts the address of its
//! table into a register, enables remapping, and from then on a message names an entry instead of a CPU. Entries are
//! remembered until the guest invalidates them by the queue in its memory; the wait descriptor behind an invalidation is
//! written when no message can be delivered by the old entry any more.
//!
//! What is offered: remappable and compatibility format, subhandles, source validation, extended (x2APIC) mode, posted
//! entries, queued invalidation, primary fault logging with its event. DMA is not translated, and no address width is
//! claimed; a guest's driver must take that as a unit for interrupts only. Descriptors are of 128 bits, as in every unit
//! without scalable mode.
//!
//! A message that is not blocked costs one lock of its own cache line and no access to guest memory.
//!
//! ```
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
//! use doorbell::guest_ram::{GuestRamExt, RamBlock};
//! use doorbell::remap::vtd::{VtdOptions, VtdUnit, registers};
//! use doorbell::{Delivery, DeviceId, MsiMessage, MsiTarget, VcpuId};
//! use std::sync::Arc;
//!
//! let apics = ApicSet::new(2, Arc::new(()), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(1)).unwrap();
//! cpu.write(0xf0, 0x1ff); // software enable
//! let ram = Arc::new(RamBlock::new(0, 0x10_0000));
//! let unit = VtdUnit::new(VtdOptions::default(), apics, ram.clone());
//!
//! // The guest: a table of 256 entries at 0x2000. Entry 5 is vector 0x41 for CPU 1.
//! unit.write(registers::TABLE_ADDRESS, 8, 0x2007);
//! unit.write(registers::GLOBAL_COMMAND, 4, 1 << 24); // take the table
//! unit.write(registers::GLOBAL_COMMAND, 4, 1 << 25); // remap
//! ram.write_le(0x2000 + 16 * 5, 1u64 << 40 | 0x41 << 16 | 1)?;
//! ram.write_le(0x2008 + 16 * 5, 0u64)?;
//!
//! let message = MsiMessage::new(0xfee0_0010 | 5 << 5, 0).from_device(DeviceId(0x18));
//! assert_eq!(unit.send(&message).unwrap(), Delivery::Delivered(1));
//! assert_eq!(cpu.acknowledge(), Some(0x41));
//! # Ok::<(), doorbell::guest_ram::NoMemory>(())
//! ```

mod entry;
mod event;
mod faults;
#[cfg(all(test, not(loom)))]
mod machine;
mod queue;
pub mod registers;
#[cfg(all(test, not(loom)))]
mod rig;
mod state;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;
mod unit;

use std::sync::Arc;

pub use state::{EventState, VtdState};

use self::{faults::Faults, registers::Global, tables::Tables, unit::Registers};
use super::cache::RemapCache;
use crate::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    guest_ram::GuestRam,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// How to build a [`VtdUnit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtdOptions {
    /// Extended interrupt mode is offered: destinations of 32 bits, for machines with more than 255 vCPUs. The local APICs
    /// behind must know [`extended_ids`](crate::chips::x86::lapic::ApicOptions::extended_ids).
    pub extended_mode: bool,
    /// Posted entries are offered.
    pub posted: bool,
    /// How many fault recording registers there are, 1 to 222, which is what the window has room for.
    pub fault_records: usize,
    /// For how many messages there is room in the cache; more are still remapped, but slowly. The host's bound: a guest
    /// that uses more of them takes no more memory.
    pub messages: u32,
}

impl Default for VtdOptions {
    /// Extended mode and posting, 8 records, [`RemapCache::MOST`] messages.
    fn default() -> Self {
        Self { extended_mode: true, posted: true, fault_records: 8, messages: RemapCache::MOST }
    }
}

/// As many records as fit between their offset and the end of the window.
const MOST_RECORDS: usize = ((registers::WINDOW - registers::FAULT_RECORDS) / 16) as usize;

/// One remapping unit. See the [module](self).
pub struct VtdUnit {
    tables: Tables,
    cache: RemapCache,
    /// Lock order: before the cache and the faults.
    registers: Mutex<Registers>,
}

impl std::fmt::Debug for VtdUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VtdUnit").field("options", &self.tables.options).field("state", &self.save()).finish()
    }
}

impl VtdUnit {
    /// A unit after reset, which lets every message pass to `inner`.
    pub fn new(options: VtdOptions, inner: Arc<dyn MsiTarget>, ram: Arc<dyn GuestRam>) -> Self {
        let faults = Faults::new(options.fault_records.min(MOST_RECORDS));
        let cache = RemapCache::new(Arc::clone(&inner), options.messages);
        let tables = Tables {
            options,
            ram,
            inner,
            mode: AtomicU32::new(Global::new().into_bits()),
            table: AtomicU64::new(0),
            faults: Mutex::new(faults),
        };
        Self { tables, cache, registers: Mutex::new(Registers::new()) }
    }

    /// Back to the state after reset: messages pass again. When it returns, none is remapped any more.
    pub fn reset(&self) {
        let registers = &mut *self.registers.lock();
        *registers = Registers::new();
        // Relaxed and Release: as in `command`.
        self.tables.table.store(0, Ordering::Relaxed);
        self.tables.mode.store(unit::mode(registers.status), Ordering::Release);
        {
            let faults = &mut *self.tables.faults.lock();
            *faults = Faults::new(faults.records.len());
        }
        self.cache.invalidate(&self.tables, queue::EVERYTHING);
    }

    /// How it was built.
    pub fn options(&self) -> &VtdOptions {
        &self.tables.options
    }
}

impl MsiTarget for VtdUnit {
    /// A message that is blocked answers `Ignored`, and the reason is recorded in the unit.
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.cache.send(&self.tables, message).unwrap_or_else(|fault| Ok(self.tables.block(fault)))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        self.cache.prepare(&self.tables, message)
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        self.cache.fire(&self.tables, target).unwrap_or_else(|fault| self.tables.block(fault))
    }
}
