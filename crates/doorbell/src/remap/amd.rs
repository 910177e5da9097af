//! AMD-Vi interrupt remapping (AMD publication 48882, "I/O Virtualization Technology (IOMMU) Specification", revision
//! 3.x; sections in the files beside this one).
//!
//! The scheme: a device table in guest memory, indexed by who sends (bus, device, function), and in its entry a table of
//! that device's own, indexed by the low 11 bits of the message's data. So two devices that send the same data have
//! different entries (spec T24). The guest changes a table and then tells the unit by commands in a buffer; when a
//! COMPLETION_WAIT behind an invalidation has been carried out, no later message meets the old entry (spec T23).
//!
//! # What becomes of a message
//!
//! | while | the message |
//! |---|---|
//! | no unit has its sender in [`requesters`](AmdUnitOptions::requesters) | passes as it is: it is not behind a unit |
//! | it does not say who sent it, and a unit is enabled | is blocked: no table says anything of it. An IOAPIC and an HPET need a [`DeviceId`](crate::DeviceId) of their own |
//! | the unit is disabled (IommuEn = 0), or the device table entry has IV = 0 (T20) | passes as it is |
//! | the sender is beyond the device table | IO_PAGE_FAULT |
//! | the device table entry is no memory, or holds something reserved | DEV_TAB_HARDWARE_ERROR, ILLEGAL_DEV_TABLE_ENTRY |
//! | its address is not 0xFEExxxxx | is no interrupt, and goes nowhere |
//! | it is fixed or arbitrated | IntCtl decides (T21): abort (INVALID_DEVICE_REQUEST), pass, remap |
//! | it is NMI, INIT or ExtINT | passes if NMIPass, InitPass or EIntPass is set, else IO_PAGE_FAULT |
//! | it is SMI | passes (filters for SMI are not claimed) |
//! | it is of a reserved mode (3, 6) | INVALID_DEVICE_REQUEST |
//! | it is remapped: the index is beyond the table, RemapEn = 0, or the entry holds something reserved | IO_PAGE_FAULT (T22) |
//! | the entry is no memory | PAGE_TAB_HARDWARE_ERROR |
//!
//! A message with an event beside it in this table is blocked. An IO_PAGE_FAULT is logged unless IG of the device table entry
//! or SupIOPF of the remapping entry suppresses it. Events name an interrupt by its address in HyperTransport's form
//! ([`event::InterruptAddress`]), as the hardware does.
//!
//! Bits 10:8 of the data are the delivery mode as well as bits 10:8 of the index. So a device has 512 entries, those of the
//! modes fixed and arbitrated, until the guest sets NumIntRemapMode, which makes all 2048 indices.
//!
//! # Interrupts of an IOAPIC
//!
//! An IOAPIC sends its entry's vector and delivery mode as bits 10:0 of the data, so a guest stores the index there, and
//! the destination means nothing. The trigger mode stays that of the IOAPIC's entry. When the interrupt ends, the local APIC
//! names the *remapped* vector, which is not in the IOAPIC's entry: the guest ends a level interrupt by the IOAPIC's EOI
//! register (version 0x20) with the entry's vector, or by making the entry edge for a moment, as on hardware; Linux does so
//! whenever interrupts are remapped. A unit keeps no list of interrupts to end.
//!
//! # Virtual APICs of guests
//!
//! With GAEn and GAMEn = 001b, an entry in guest mode posts: its bit is set in the IRR of the backing page, then, if IsRun is
//! set, the [`Doorbell`] of the destination is rung; if not, and GALogIntr is set, the guest virtual APIC log hears of it.
//! RemapEn, vector and backing page are remembered until an invalidation; IsRun, the destination, GALogIntr and GATag are read
//! each time, because software changes them without one. Not there, because the manual leaves them to later revisions or other
//! features: GAPPIDis, the other modes of GAMEn, and a memory copy of the log's tail (the register of its address only
//! keeps what was stored). Virtual CPUs clear bits of the same IRR, so the guest's memory must have an atomic
//! [`fetch_or`](GuestRam::fetch_or).
//!
//! # Locks and memory
//!
//! A message that was [prepared](crate::MsiTarget::prepare) takes nothing but the latch of its slot in the
//! [`RemapCache`]. The registers have a lock of their own, which a message takes that is blocked or written to a log. What a
//! guest can make the units allocate is bounded by [`messages`](AmdUnitOptions::messages).
//!
//! ```
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
//! use doorbell::guest_ram::{GuestRamExt, RamBlock};
//! use doorbell::remap::amd::{AmdVi, AmdUnitOptions, registers::offset};
//! use doorbell::{Delivery, DeviceId, MsiMessage, MsiTarget, VcpuId};
//! use std::sync::Arc;
//!
//! let apics = ApicSet::new(2, Arc::new(()), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(1)).unwrap();
//! cpu.write(0xf0, 0x1ff); // software enable
//! let ram = Arc::new(RamBlock::new(0, 0x10000));
//! let remap = AmdVi::new(apics, ram.clone(), Arc::new(()), &[AmdUnitOptions::default()])?;
//! let unit = remap.unit(0).unwrap();
//!
//! // What a guest does: a device table at 0x1000; device 00:03.0 has a table of 256 entries at 0x4000.
//! let device = DeviceId(3 << 3);
//! ram.write_le(0x1000 + 32 * 24 + 16, 1 | 8 << 1 | 0x4000u64 | 2 << 60)?;
//! ram.write_le(0x4000 + 4 * 7, 1 | 1 << 8 | 0x41u32 << 16)?; // entry 7: vector 0x41 for CPU 1
//! unit.write(offset::DEVICE_TABLE_BASE, 8, 0x1000);
//! unit.write(offset::CONTROL, 8, 1);
//!
//! let message = MsiMessage::new(0xfee0_0000, 7).from_device(device);
//! assert_eq!(remap.send(&message)?, Delivery::Delivered(1));
//! assert_eq!(cpu.acknowledge(), Some(0x41));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bank;
pub mod command;
pub mod event;
mod filled;
mod look_up;
#[cfg(all(test, loom))]
mod models;
pub mod registers;
mod state;
pub mod tables;
#[cfg(all(test, not(loom)))]
mod tests;
mod unit;

use std::sync::Arc;

pub use state::{AmdRingState, AmdUnitState};
pub use unit::{AmdUnit, AmdUnitOptions};

use super::{RemapCache, Remapper, Way};
use crate::{Delivery, Error, MsiMessage, MsiTarget, Target, guest_ram::GuestRam};

/// Tells a CPU that the virtual APIC of the guest it runs has something new (AMD APM volume 2, section 15.29.6).
///
/// Called from the thread that sends the interrupt, inside its delivery: as with [`Kick`](crate::Kick), nothing must be
/// called back.
pub trait Doorbell: Send + Sync {
    /// Rings the CPU with this physical APIC id.
    fn ring(&self, apic_id: u32);
}

/// For machines whose guests have no virtual APICs to post to: nobody is rung.
impl Doorbell for () {
    fn ring(&self, _: u32) {}
}

impl<F: Fn(u32) + Send + Sync> Doorbell for F {
    fn ring(&self, apic_id: u32) {
        self(apic_id)
    }
}

/// The AMD-Vi units of a machine, as one station in front of its local APICs. See the [module](self).
#[derive(Debug)]
pub struct AmdVi {
    units: Box<[AmdUnit]>,
    /// Messages of devices that are behind no unit.
    others: RemapCache,
}

/// Bits of a [`Target`] that are the number of a slot; above it, the number of the unit.
const SLOT_BITS: u32 = 20;
const MOST_SLOTS: u32 = 1 << SLOT_BITS;
/// The number of the unit in a target of a device that is behind none.
const NO_UNIT: u32 = (1 << (Target::BITS - SLOT_BITS)) - 1;

/// Nothing is remapped.
struct Nothing;

impl Remapper for Nothing {
    type Fault = std::convert::Infallible;

    fn tag(&self, message: &MsiMessage) -> u32 {
        message.data
    }

    fn remap(&self, message: &MsiMessage) -> Result<Way, Self::Fault> {
        Ok(Way::Message { address: message.address, data: message.data })
    }

    fn post(&self, _: [u64; 2]) -> Delivery {
        Delivery::Ignored
    }
}

impl AmdVi {
    /// The most units there can be.
    pub const MOST_UNITS: usize = NO_UNIT as usize;

    /// Units with these options in front of `inner`, after reset; their tables, commands and logs are in `ram`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are more than [`MOST_UNITS`](Self::MOST_UNITS), or two have the same requester.
    pub fn new(
        inner: Arc<dyn MsiTarget>,
        ram: Arc<dyn GuestRam>,
        doorbell: Arc<dyn Doorbell>,
        units: &[AmdUnitOptions],
    ) -> Result<Arc<Self>, Error> {
        if units.len() > Self::MOST_UNITS {
            return Err(Error::Invalid {
                what: "number of AMD-Vi units",
                value: units.len() as u64,
                allowed: "at most 15",
            });
        }
        for (number, options) in units.iter().enumerate() {
            let range = &options.requesters;
            let meets = |other: &AmdUnitOptions| {
                range.contains(other.requesters.start()) || other.requesters.contains(range.start())
            };
            if units[..number].iter().any(meets) {
                let value = u64::from(*range.start());
                return Err(Error::Invalid { what: "range of requesters from", value, allowed: "each in one unit" });
            }
        }
        let unit = |options| AmdUnit::new(inner.clone(), ram.clone(), doorbell.clone(), options, MOST_SLOTS);
        let others = RemapCache::new(inner.clone(), RemapCache::MOST);
        Ok(Arc::new(Self { units: units.iter().map(unit).collect(), others }))
    }

    /// A unit, by its place among the options.
    pub fn unit(&self, number: usize) -> Option<&AmdUnit> {
        self.units.get(number)
    }

    /// All units, in the order of their options.
    pub fn units(&self) -> &[AmdUnit] {
        &self.units
    }

    /// The unit that the sender is behind.
    fn unit_of(&self, message: &MsiMessage) -> Option<(usize, &AmdUnit)> {
        let device = message.device_id?;
        self.units.iter().enumerate().find(|(_, unit)| unit.requesters().contains(&device.0))
    }

    /// The state of all units.
    pub fn save(&self) -> Vec<AmdUnitState> {
        self.units.iter().map(AmdUnit::save).collect()
    }

    /// Takes over a saved state; nothing is sent.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if these units cannot be in that state; nothing is changed then.
    pub fn restore(&self, states: &[AmdUnitState]) -> Result<(), Error> {
        if states.len() != self.units.len() {
            let (found, units) = (states.len(), self.units.len());
            return Err(Error::Snapshot(format!("{found} AMD-Vi units, but there are {units}")));
        }
        let new: Vec<_> =
            self.units.iter().zip(states).map(|(unit, state)| unit.check(state)).collect::<Result<_, _>>()?;
        self.units.iter().zip(new).for_each(|(unit, new)| unit.take_over(new));
        Ok(())
    }
}

impl MsiTarget for AmdVi {
    /// # Errors
    /// Where the inner target refuses what the message became.
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        match self.unit_of(message) {
            Some((_, unit)) => unit.send(message),
            None if message.device_id.is_none() && self.units.iter().any(AmdUnit::is_enabled) => Ok(Delivery::Ignored),
            None => self.others.inner().send(message),
        }
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let (number, target) = match self.unit_of(message) {
            Some((number, unit)) => (number as u32, unit.prepare(message)?),
            // Whether it passes can change at any time.
            None if message.device_id.is_none() => return None,
            None => (NO_UNIT, self.others.prepare(&Nothing, message)?),
        };
        Target::new(number << SLOT_BITS | target.bits())
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        let Some(slot) = Target::new(target.bits() & (MOST_SLOTS - 1)) else { return Delivery::Ignored };
        match self.units.get((target.bits() >> SLOT_BITS) as usize) {
            Some(unit) => unit.fire(slot),
            None => self.others.fire(&Nothing, slot).unwrap_or(Delivery::Ignored),
        }
    }
}
