//! From a message to the entry that says what becomes of it (48882 sections 2.2.2 and 2.2.5).

use super::{
    event::{ABORTED, Event, RESERVED_INTERRUPT},
    registers::{Control, DeviceTableBase},
    tables::{DEVICE_ENTRY, DOMAIN, DeviceInterrupts, ENTRY, Entry, INTERRUPTS, IntCtl, WIDE_ENTRY, WideHigh, WideLow},
};
use crate::{
    MsiMessage,
    chips::x86::message::{DeliveryMode, MessageAddress, MessageData},
    guest_ram::{GuestRam, GuestRamExt},
    remap::{Way, read_128},
};

/// Vector and delivery mode: the index of an entry.
const INDEX: u32 = MessageData::new().with_vector(0xff).with_delivery_mode(DeliveryMode::ExtInt).into_bits();

/// A message that goes nowhere, and what the event log is to say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked(pub Option<Event>);

/// What an entry in guest mode says, as the second word of [`Way::Post`]; the first is the entry's address, because whether
/// the virtual CPU runs is looked up each time.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Posted {
    pub vector: u8,
    /// The virtual APIC's backing page.
    #[bits(40)]
    pub page: u64,
    /// Who sends.
    pub device: u16,
}

/// One look-up.
pub struct LookUp<'a> {
    pub ram: &'a dyn GuestRam,
    pub control: Control,
    pub device_table: DeviceTableBase,
    pub device: u16,
    pub message: &'a MsiMessage,
}

impl LookUp<'_> {
    /// What becomes of the message.
    pub fn run(&self) -> Result<Way, Blocked> {
        if !self.control.enable() {
            return Ok(self.unmapped());
        }
        if u32::from(self.device) >= self.device_table.entries() {
            return Err(self.fault(0, false, false));
        }
        let at = self.device_entry() + INTERRUPTS;
        let Ok(bits) = self.ram.read_le(at) else {
            return Err(Blocked(Some(Event::device_table_error(self.device, self.device_entry()))));
        };
        let entry = DeviceInterrupts::from_bits(bits);
        if !entry.valid() {
            return Ok(self.unmapped()); // T20
        }
        if entry.has_reserved_bits() {
            return Err(self.illegal(true));
        }
        let address = MessageAddress::from_bits(self.message.address);
        if address.prefix() != MessageAddress::PREFIX || self.message.address >> 32 != 0 {
            return Err(Blocked(None));
        }
        match self.data().delivery_mode() {
            _ if self.control.indexes_all() => self.controlled(entry),
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.controlled(entry),
            // Filters, which would block some, are not claimed.
            DeliveryMode::Smi => Ok(self.unmapped()),
            DeliveryMode::Nmi => self.passes(entry, entry.nmi_pass()),
            DeliveryMode::Init => self.passes(entry, entry.init_pass()),
            DeliveryMode::ExtInt => self.passes(entry, entry.ext_int_pass()),
            DeliveryMode::RemoteRead | DeliveryMode::Startup => Err(self.invalid(RESERVED_INTERRUPT)),
        }
    }

    fn data(&self) -> MessageData {
        MessageData::from_bits(self.message.data)
    }

    fn device_entry(&self) -> u64 {
        self.device_table.address() + u64::from(self.device) * DEVICE_ENTRY
    }

    fn unmapped(&self) -> Way {
        Way::Message { address: self.message.address, data: self.message.data }
    }

    fn passes(&self, entry: DeviceInterrupts, passes: bool) -> Result<Way, Blocked> {
        if passes { Ok(self.unmapped()) } else { Err(self.blocked(entry, false, false, false)) }
    }

    /// A fixed or arbitrated interrupt (T21).
    fn controlled(&self, entry: DeviceInterrupts) -> Result<Way, Blocked> {
        match entry.control() {
            IntCtl::Abort => Err(self.invalid(ABORTED)),
            IntCtl::Pass => Ok(self.unmapped()),
            IntCtl::Reserved => Err(self.illegal(true)),
            IntCtl::Remap if entry.length() > DeviceInterrupts::LONGEST => Err(self.illegal(false)),
            IntCtl::Remap => {
                let index = self.message.data & INDEX;
                if index >> entry.length() != 0 {
                    return Err(self.blocked(entry, false, false, false)); // T22
                }
                if self.control.wide_entries() {
                    self.by_wide_entry(entry, entry.table_address() + u64::from(index) * WIDE_ENTRY)
                } else {
                    self.by_entry(entry, entry.table_address() + u64::from(index) * ENTRY)
                }
            }
        }
    }

    fn by_entry(&self, table: DeviceInterrupts, at: u64) -> Result<Way, Blocked> {
        let Ok(bits) = self.ram.read_le(at) else { return Err(self.unreadable(at)) };
        let entry = Entry::from_bits(bits);
        if !entry.enable() {
            return Err(self.blocked(table, entry.suppress_fault(), false, false));
        }
        if entry.kind() > 1 || entry.guest_mode() || entry.reserved() != 0 {
            return Err(self.blocked(table, entry.suppress_fault(), true, true));
        }
        let address = MessageAddress::to(entry.destination().into(), entry.logical());
        Ok(self.remapped(address, entry.vector(), entry.kind(), entry.request_eoi()))
    }

    fn by_wide_entry(&self, table: DeviceInterrupts, at: u64) -> Result<Way, Blocked> {
        let Ok([low, high]) = read_128(self.ram, at) else { return Err(self.unreadable(at)) };
        let (low, high) = (WideLow::from_bits(low), WideHigh::from_bits(high));
        if !low.enable() {
            return Err(self.blocked(table, low.suppress_fault(), false, false));
        }
        if low.guest_mode() && self.control.guest_mode() == 1 {
            let posted = Posted::new().with_vector(high.vector()).with_page(high.page()).with_device(self.device);
            return Ok(Way::Post([at, posted.into_bits()]));
        }
        if low.guest_mode() || low.kind() > 1 {
            return Err(self.blocked(table, low.suppress_fault(), true, true));
        }
        let destination = if self.control.x2apic() {
            low.destination() | u32::from(high.destination()) << 24
        } else {
            low.destination() & 0xff
        };
        let address = MessageAddress::to(destination, low.logical());
        Ok(self.remapped(address, high.vector(), low.kind(), low.request_eoi()))
    }

    /// The trigger mode is the sender's, unless the entry says level: an IOAPIC's level interrupt stays one.
    fn remapped(&self, address: MessageAddress, vector: u8, kind: u8, level: bool) -> Way {
        let sent = self.data();
        let level = sent.level() || level;
        let data = MessageData::new()
            .with_vector(vector)
            .with_delivery_mode(DeliveryMode::from_bits(kind))
            .with_level(level)
            .with_assert(level || sent.assert());
        Way::Message { address: address.into_bits(), data: data.into_bits() }
    }

    fn blocked(&self, table: DeviceInterrupts, suppressed: bool, present: bool, reserved: bool) -> Blocked {
        if table.ignore_unmapped() || suppressed {
            return Blocked(None);
        }
        self.fault(self.domain(), present, reserved)
    }

    fn fault(&self, domain: u16, present: bool, reserved: bool) -> Blocked {
        Blocked(Some(Event::page_fault(self.device, domain, self.message, present, reserved)))
    }

    fn illegal(&self, reserved: bool) -> Blocked {
        Blocked(Some(Event::illegal_device_entry(self.device, self.message, reserved)))
    }

    fn invalid(&self, kind: u8) -> Blocked {
        Blocked(Some(Event::invalid_request(self.device, self.message, kind)))
    }

    fn unreadable(&self, at: u64) -> Blocked {
        Blocked(Some(Event::page_table_error(self.device, self.domain(), at)))
    }

    /// The domain, for an event.
    fn domain(&self) -> u16 {
        self.ram.read_le::<u64>(self.device_entry() + DOMAIN).unwrap_or(0) as u16
    }
}
