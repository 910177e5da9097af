//! The events that a unit logs (48882 section 2.5).

use bitfield_struct::bitfield;

use crate::{
    MsiMessage,
    chips::x86::message::{MessageAddress, MessageData},
};

/// An entry of the event log: what is said, and the address that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Bits 63:0.
    pub head: EventHead,
    /// Bits 127:64.
    pub address: u64,
}

/// The size of an event in bytes.
pub const EVENT: u64 = 16;

/// Bits 63:0 of an event. Which of the flags mean something depends on the code.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventHead {
    /// Who made the request.
    pub device: u16,
    __: u16,
    /// DomainID of its device table entry.
    pub domain: u16,
    #[bits(3)]
    __: u8,
    /// I: the request was an interrupt.
    pub interrupt: bool,
    /// PR: the remapping table entry was enabled.
    pub present: bool,
    #[bits(2)]
    __: u8,
    /// RZ: a reserved bit was set, or a reserved value.
    pub reserved: bool,
    /// TR: the request was for a translation, never here.
    pub translation: bool,
    /// Which access failed, or what was not allowed.
    #[bits(3)]
    pub kind: u8,
    /// What happened.
    #[bits(4)]
    pub code: EventCode,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum EventCode {
    /// No event of this unit.
    Reserved = 0,
    IllegalDeviceTableEntry = 1,
    IoPageFault = 2,
    DeviceTableHardwareError = 3,
    PageTableHardwareError = 4,
    IllegalCommandError = 5,
    CommandHardwareError = 6,
    InvalidDeviceRequest = 8,
}

impl EventCode {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::IllegalDeviceTableEntry,
            2 => Self::IoPageFault,
            3 => Self::DeviceTableHardwareError,
            4 => Self::PageTableHardwareError,
            5 => Self::IllegalCommandError,
            6 => Self::CommandHardwareError,
            8 => Self::InvalidDeviceRequest,
            _ => Self::Reserved,
        }
    }
}

/// [`EventHead::kind`] of a hardware error: nobody answered.
pub const MASTER_ABORT: u8 = 1;
/// [`EventHead::kind`] of an invalid request: an interrupt of a device whose IntCtl aborts them.
pub const ABORTED: u8 = 5;
/// [`EventHead::kind`] of an invalid request: an interrupt of a reserved kind.
pub const RESERVED_INTERRUPT: u8 = 6;

/// The address by which an event names an interrupt: that of HyperTransport's interrupt request, in whose form the unit
/// sees all of them. Bits 23:16 are the vector, 15:8 the destination, 6 its mode, 5 asks for an EOI, 4:2 are the type.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptAddress {
    #[bits(2)]
    __: u8,
    #[bits(3)]
    kind: u8,
    request_eoi: bool,
    logical: bool,
    __: bool,
    destination: u8,
    vector: u8,
    #[bits(40)]
    prefix: u64,
}

impl InterruptAddress {
    /// The interrupt that a message stands for.
    pub fn of(message: &MsiMessage) -> Self {
        let (address, data) = (MessageAddress::from_bits(message.address), MessageData::from_bits(message.data));
        Self::new()
            .with_kind(data.delivery_mode().into_bits())
            .with_request_eoi(data.level())
            .with_logical(address.logical())
            .with_destination(address.destination())
            .with_vector(data.vector())
            .with_prefix(0xfd_f8)
    }
}

impl Event {
    fn of_interrupt(code: EventCode, device: u16, message: &MsiMessage) -> Self {
        let head = EventHead::new().with_device(device).with_code(code);
        Self { head, address: InterruptAddress::of(message).into_bits() }
    }

    /// An interrupt was blocked: by its entry (`present` says whether that is enabled, `reserved` whether it holds something
    /// reserved), by the lack of one, or because its kind does not pass.
    pub fn page_fault(device: u16, domain: u16, message: &MsiMessage, present: bool, reserved: bool) -> Self {
        let event = Self::of_interrupt(EventCode::IoPageFault, device, message);
        let head = event.head.with_domain(domain).with_interrupt(true).with_present(present).with_reserved(reserved);
        Self { head, ..event }
    }

    /// The device table entry holds something reserved; `reserved` is false if it is the length of the table.
    pub fn illegal_device_entry(device: u16, message: &MsiMessage, reserved: bool) -> Self {
        let event = Self::of_interrupt(EventCode::IllegalDeviceTableEntry, device, message);
        Self { head: event.head.with_interrupt(true).with_reserved(reserved), ..event }
    }

    /// A device did what it may not.
    pub fn invalid_request(device: u16, message: &MsiMessage, kind: u8) -> Self {
        let event = Self::of_interrupt(EventCode::InvalidDeviceRequest, device, message);
        Self { head: event.head.with_kind(kind), ..event }
    }

    /// The device table entry at `address` is no memory.
    pub fn device_table_error(device: u16, address: u64) -> Self {
        let head = EventHead::new().with_device(device).with_interrupt(true).with_kind(MASTER_ABORT);
        Self { head: head.with_code(EventCode::DeviceTableHardwareError), address }
    }

    /// The interrupt remapping table entry, or the virtual APIC's backing page, at `address` is no memory.
    pub fn page_table_error(device: u16, domain: u16, address: u64) -> Self {
        let head = EventHead::new().with_device(device).with_domain(domain).with_interrupt(true);
        Self { head: head.with_kind(MASTER_ABORT).with_code(EventCode::PageTableHardwareError), address }
    }

    /// The command at `address` does not exist, or has a reserved bit set.
    pub fn illegal_command(address: u64) -> Self {
        Self { head: EventHead::new().with_code(EventCode::IllegalCommandError), address }
    }

    /// The command at `address`, or where a command was to store, is no memory.
    pub fn command_error(address: u64) -> Self {
        Self { head: EventHead::new().with_kind(MASTER_ABORT).with_code(EventCode::CommandHardwareError), address }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_manuals_numbers() {
        use EventCode::*;
        let codes = [
            Reserved,
            IllegalDeviceTableEntry,
            IoPageFault,
            DeviceTableHardwareError,
            PageTableHardwareError,
            IllegalCommandError,
            CommandHardwareError,
            Reserved,
            InvalidDeviceRequest,
            Reserved,
        ];
        for (number, code) in (0u64..).zip(codes) {
            assert_eq!(EventHead::from_bits(number << 60).code(), code, "{number}");
            if code != Reserved {
                assert_eq!(EventHead::new().with_code(code).into_bits(), number << 60);
            }
        }
    }
}
