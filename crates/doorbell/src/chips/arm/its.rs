//! The Interrupt Translation Service (Arm IHI 0069, "The ITS"): messages of devices become LPIs.
//!
//! A message is a pair of DeviceID and EventID. A guest says by commands, in a queue in its memory, which LPI an event is
//! (MAPTI), in which collection, and to which redistributor the collection goes (MAPC).
//!
//! | file | holds |
//! |---|---|
//! | [`registers`], [`command`], `tables` | layouts: registers, commands, tables in guest memory |
//! | `unit`, `bank` | one ITS: its locks; its registers and what a store does |
//! | `execute`, `mappings`, `blocks` | what each command does; devices, collections, events; where their entries are |
//! | `translation`, `targets`, `arena` | the hot path: from an event to its LPI without a lock |
//! | `save`, `state`, `user` | tables, state and registers, saved and restored |
//! | `counters` | what happened, and what did not and why |
//! | `sink`, `frame` | what an ITS needs of the GIC; the ITS among the frames that take messages |
//!
//! # When a command is complete
//!
//! Commands are run by whoever stores to GITS_CWRITER, in their order, under one lock (H27). Once GITS_CREADR has passed a
//! command, or a store that disables the ITS has returned, no event is delivered by what was before (H20): a mapping that is
//! taken away is taken out of the translation first, waiting for who is inside, and out of the GIC then.
//!
//! The work of one access is bounded. If a guest's queue holds more (thousands of commands that each concern all events),
//! GITS_CREADR stays behind GITS_CWRITER, GITS_CTLR.Quiescent reads 0, and the next access to a register goes on.
//!
//! # Choices that the architecture leaves
//!
//! * An erroneous command does nothing and is [counted](ItsCounters); the ITS never stalls and raises no system error (I6).
//! * Mappings are kept here, not in the guest's tables: these are written when they are saved, and an entry is made invalid
//!   when its mapping goes (H28). A device or an event whose entry would not be in guest memory cannot be mapped (H30).
//! * An event of a collection that is not mapped is dropped, and comes through once the collection is mapped (I18, I23).
//! * MAPTI of a mapped event maps it anew, as after a DISCARD (I22).
//! * [`Behaviour`](super::Behaviour) has KVM's ways where they differ.

use std::sync::Arc;

use super::Gic;
use crate::{Delivery, DeviceId, Errno, Error, Target};

mod arena;
mod bank;
mod blocks;
pub mod command;
mod counters;
#[cfg(test)]
mod cripple;
mod execute;
mod frame;
#[cfg(all(test, not(loom)))]
mod machine;
mod mappings;
#[cfg(all(test, loom))]
mod models;
pub mod registers;
#[cfg(all(test, not(loom)))]
mod rig;
mod save;
mod sink;
mod state;
mod tables;
mod targets;
#[cfg(all(test, not(loom)))]
mod tests;
mod translation;
mod unit;
mod user;

use bank::Nature;
pub use counters::ItsCounters;
pub use state::ItsState;
use translation::{Dropped, Sent};
use unit::Unit;

/// How an ITS is built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ItsOptions {
    /// How many events can be mapped at once, 16 to [`MOST_EVENTS`](Self::MOST_EVENTS). They are counted in groups of 16 of
    /// one device, of which one is mapped. A MAPTI beyond does nothing, and is counted as
    /// [`full`](ItsCounters::full).
    pub max_events: u32,
    /// How many events can be [prepared](Its::prepare), at most 2^20.
    pub max_targets: u32,
}

impl ItsOptions {
    /// The largest number of events.
    pub const MOST_EVENTS: u32 = 1 << 20;
}

impl Default for ItsOptions {
    /// 2^18 of both.
    fn default() -> Self {
        Self { max_events: 1 << 18, max_targets: 1 << 18 }
    }
}

/// One ITS. Everything may be called from any thread.
///
/// ```
/// use std::sync::Arc;
/// use doorbell::{Delivery, DeviceId, chips::arm::{Gic, GicOptions, its::{Its, ItsOptions, registers::offset}}};
/// use doorbell::guest_ram::{GuestRam, GuestRamExt, NoMemory, RamBlock};
/// let ram = Arc::new(RamBlock::new(0x4000_0000, 0x10_0000));
/// let gic = Gic::new(GicOptions::new(1), ram.clone(), Arc::new(()))?;
/// let its = Its::new(gic, ItsOptions::default());
/// its.write(offset::BASER0, 8, 1 << 63 | 0x4001_0000);
/// its.write(offset::BASER1, 8, 1 << 63 | 0x4002_0000);
/// its.write(offset::CBASER, 8, 1 << 63 | 0x4000_0000);
/// its.write(offset::CTLR, 4, 1);
/// // MAPC collection 0 to vCPU 0; MAPD device 8, 5 bits of events.
/// for (at, word) in [0x09u64, 0, 1 << 63, 0, 0x08 | 8 << 32, 4, 1 << 63 | 0x4003_0000, 0].into_iter().enumerate() {
///     ram.write_le(0x4000_0000 + 8 * at as u64, word)?;
/// }
/// its.write(offset::CWRITER, 8, 0x40);
/// assert_eq!(its.read(offset::CREADR, 8), 0x40);
/// assert_eq!(its.counters().commands, 2);
/// assert_eq!(its.send(DeviceId(8), 3)?, Delivery::Coalesced, "event 3 is not mapped");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Its {
    unit: Unit<Gic>,
}

impl std::fmt::Debug for Its {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Its").field("state", &self.save()).finish_non_exhaustive()
    }
}

impl Its {
    /// An ITS after reset. Its identity and its behaviour are those of the GIC; several may share one.
    pub fn new(gic: Arc<Gic>, options: ItsOptions) -> Arc<Self> {
        let nature = Nature { identity: gic.options.identity, behaviour: gic.options.behaviour };
        let ram = Arc::clone(&gic.ram);
        gic.attach_its();
        Arc::new(Self { unit: Unit::new(gic, ram, nature, &options) })
    }

    /// The GIC whose LPIs it raises.
    pub fn gic(&self) -> &Arc<Gic> {
        &self.unit.lpis
    }

    /// A guest's load of `size` bytes at `offset` from the ITS's first frame. Registers of 64 bits take 4 and 8 bytes, others
    /// 4; all other accesses, and what is no register, are 0.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        self.unit.read(offset, size)
    }

    /// A guest's store, as [`read`](Self::read). Runs the commands that it releases.
    ///
    /// A store to GITS_TRANSLATER by a CPU does nothing: it carries no DeviceID. Those of devices go to
    /// [`translate`](Self::translate) or [`send`](Self::send).
    pub fn write(&self, offset: u64, size: u8, value: u64) {
        self.unit.write(offset, size, value);
    }

    /// A device's store of `size` bytes at `offset` from the ITS's first frame: an event if it is one of 2 or 4 bytes to
    /// GITS_TRANSLATER. Everything else does nothing: a device cannot configure the ITS.
    pub fn translate(&self, device: DeviceId, offset: u64, size: u8, value: u64) -> Delivery {
        if offset != registers::offset::TRANSLATER || !matches!(size, 2 | 4) {
            return Delivery::Ignored;
        }
        let event = if size == 2 { u32::from(value as u16) } else { value as u32 };
        delivery(self.signal(device, event))
    }

    /// An event of a device, by KVM's rules for KVM_SIGNAL_MSI (Q13 to Q15): [`Delivered`](Delivery::Delivered) also if its
    /// LPI was pending already or is disabled, [`Coalesced`](Delivery::Coalesced) (KVM's 0) if device, event or collection
    /// are not mapped. Takes no lock and allocates nothing.
    ///
    /// # Errors
    /// With errno `EBUSY`, if the ITS is disabled, or the redistributor's LPIs are.
    pub fn send(&self, device: DeviceId, event: u32) -> Result<Delivery, Error> {
        let busy = |what| Err(Error::Os { what, source: Errno::BUSY });
        match self.signal(device, event) {
            Sent::Dropped(Dropped::Disabled) => busy("the ITS is disabled"),
            Sent::Dropped(Dropped::LpisOff) => busy("the redistributor has LPIs switched off"),
            sent => Ok(delivery(sent)),
        }
    }

    fn signal(&self, device: DeviceId, event: u32) -> Sent {
        match (u16::try_from(device.0), u16::try_from(event)) {
            (Ok(device), Ok(event)) => self.unit.signal(device, event),
            _ => self.unit.signal_nothing(),
        }
    }

    /// Prepares an event for [`fire`](Self::fire), whether it is mapped or not. `None` if no ITS can map it, or if
    /// [`ItsOptions::max_targets`] are prepared: it goes through [`send`](Self::send) then. The number is below 2^20.
    pub fn prepare(&self, device: DeviceId, event: u32) -> Option<Target> {
        self.unit.prepare(u16::try_from(device.0).ok()?, u16::try_from(event).ok()?)
    }

    /// Sends a prepared event, by what is mapped now. Takes no lock and allocates nothing. A number that was not prepared
    /// here does nothing.
    #[inline]
    pub fn fire(&self, target: Target) -> Delivery {
        self.unit.fire(target).map_or(Delivery::Ignored, delivery)
    }

    /// Loads a register, as KVM's attribute group ITS_REGS does: `offset` names a whole register.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not aligned, `ENXIO` for one that is no register.
    pub fn user_read(&self, offset: u64) -> Result<u64, Errno> {
        self.unit.user_read(offset)
    }

    /// Stores to a register, as KVM's attribute group ITS_REGS does. GITS_CREADR can be stored to, GITS_IIDR selects the
    /// revision of the tables' format, and commands run as for a guest.
    ///
    /// # Errors
    /// As [`user_read`](Self::user_read); `EINVAL` for a GITS_CREADR outside the queue or a revision that does not exist,
    /// `EBUSY` for GITS_CREADR of an enabled ITS.
    pub fn user_write(&self, offset: u64, value: u64) -> Result<(), Errno> {
        self.unit.user_write(offset, value)
    }

    /// Back to the state after reset, as KVM's `KVM_DEV_ARM_ITS_CTRL_RESET`: nothing is mapped, tables and queue are not
    /// valid. Guest memory is left alone; counters and prepared events stay.
    pub fn reset(&self) {
        self.unit.reset();
    }

    /// Writes what is mapped to the tables in guest memory, in revision 0 of KVM's format, those whose GITS_BASERn is valid.
    ///
    /// # Errors
    /// With errno `EFAULT`, if a table of an event is not in guest memory; `EINVAL`, if there is no room for a device or a
    /// collection. Some tables are written then.
    pub fn save_tables(&self) -> Result<(), Error> {
        self.unit.save_tables()
    }

    /// Maps what the tables in guest memory say, in addition to what is mapped.
    ///
    /// # Errors
    /// With KVM's errno: `EINVAL` for what no ITS can have mapped, `EEXIST` for what is there twice or is mapped already,
    /// `EFAULT` for a table, a configuration or a pending bit outside guest memory, `ENOMEM` for more than
    /// [`ItsOptions::max_events`]. Nothing is mapped then (KVM unmaps everything).
    pub fn restore_tables(&self) -> Result<(), Error> {
        self.unit.restore_tables()
    }

    /// The registers. What is mapped is in the tables once [`save_tables`](Self::save_tables) has been called.
    pub fn save(&self) -> ItsState {
        self.unit.save()
    }

    /// Takes over saved registers and the tables that they name, after guest memory and the GIC have been restored.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no ITS can have such registers, or as [`restore_tables`](Self::restore_tables). Nothing is
    /// changed then; only if there is no room, or no configuration of an LPI, the ITS is disabled and nothing is mapped.
    pub fn restore(&self, state: &ItsState) -> Result<(), Error> {
        self.unit.restore(state)
    }

    /// What happened so far.
    pub fn counters(&self) -> ItsCounters {
        self.unit.counters()
    }

    /// How many bytes the translation takes: it grows with the events that are mapped or prepared.
    pub fn memory(&self) -> usize {
        self.unit.bytes()
    }
}

fn delivery(sent: Sent) -> Delivery {
    match sent {
        Sent::Pending => Delivery::Delivered(1),
        Sent::HandedOver | Sent::Dropped(Dropped::Unmapped | Dropped::Adrift) => Delivery::Coalesced,
        Sent::Dropped(Dropped::Disabled | Dropped::LpisOff) => Delivery::Ignored,
    }
}

const _: () = assert!(targets::MOST <= 1 << 20, "frames of messages have the other bits of a Target");
