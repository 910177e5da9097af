//! What an interrupt message says to local APICs: the layout that IOAPIC, remapping units and local APICs share.

use bitfield_struct::bitfield;

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum DeliveryMode {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    RemoteRead = 3,
    Nmi = 4,
    Init = 5,
    Startup = 6,
    ExtInt = 7,
}

impl DeliveryMode {
    /// Its number.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }

    /// The mode with this number, of which the low three bits count.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::RemoteRead,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => Self::ExtInt,
        }
    }
}

/// The address of a message (Intel SDM volume 3, section 11.11.1), with the two ways of hypervisors to name more than 255 CPUs.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MessageAddress {
    #[bits(2)]
    __: u8,
    /// The destination is logical.
    pub logical: bool,
    /// Redirection hint: exactly one CPU of those that match.
    pub hint: bool,
    /// The message is in the remappable format (VT-d, section 5.1.2.2), whose bits mean something else.
    pub remappable: bool,
    /// Bits 14:8 of the destination, as hypervisors have it ([`ext_dest_id`](super::lapic::ApicOptions::ext_dest_id)).
    #[bits(7)]
    pub destination_ext: u8,
    /// The destination.
    pub destination: u8,
    /// 0xfee.
    #[bits(12)]
    pub prefix: u16,
    __: u8,
    /// Bits 31:8 of the destination, if such ids are enabled.
    #[bits(24)]
    pub destination_high: u32,
}

impl MessageAddress {
    /// What makes an address one of interrupts: 0xfee0_0000 to 0xfeef_ffff.
    pub const PREFIX: u16 = 0xfee;

    /// The address of the local APICs with this destination, bits 31:8 of it where `extended_ids` has them.
    pub const fn to(destination: u32, logical: bool) -> Self {
        Self::new()
            .with_prefix(Self::PREFIX)
            .with_logical(logical)
            .with_destination(destination as u8)
            .with_destination_high(destination >> 8)
    }

    /// The whole destination.
    pub(super) fn wide_destination(self, extended_ids: bool, ext_dest_id: bool) -> u32 {
        let high = if extended_ids { self.destination_high() << 8 } else { 0 };
        let ext = if ext_dest_id && !self.remappable() { u32::from(self.destination_ext()) << 8 } else { 0 };
        high | ext | u32::from(self.destination())
    }
}

/// The data of a message (Intel SDM volume 3, section 11.11.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MessageData {
    /// The vector.
    pub vector: u8,
    /// What is delivered.
    #[bits(3)]
    pub delivery_mode: DeliveryMode,
    #[bits(3)]
    __: u8,
    /// Assert; KVM takes every message as asserted.
    pub assert: bool,
    /// Level-triggered.
    pub level: bool,
    __: u16,
}
