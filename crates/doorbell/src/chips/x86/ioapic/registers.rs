//! The layouts of the IOAPIC (Intel 82093AA data sheet, section 3; version 0x20: ICH9 data sheet, section 13.5).

use bitfield_struct::bitfield;

use crate::{
    DeviceId, MsiMessage,
    chips::x86::message::{DeliveryMode, MessageAddress, MessageData},
};

/// Offset of the index register in the MMIO window.
pub const INDEX: u64 = 0x00;
/// Offset of the window onto the register that the index names.
pub const WINDOW: u64 = 0x10;
/// Offset of the EOI register (version 0x20 only).
pub const EOI: u64 = 0x40;

/// Index of the identification register.
pub const ID: u32 = 0x00;
/// Index of the version register.
pub const VERSION: u32 = 0x01;
/// Index of the arbitration register.
pub const ARBITRATION: u32 = 0x02;
/// Index of the low half of the first redirection entry; each entry has two.
pub const FIRST_ENTRY: u32 = 0x10;

/// Where the IOAPIC sits after reset.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;

/// The identification and the arbitration register.
#[bitfield(u32)]
pub struct IdRegister {
    #[bits(24)]
    __: u32,
    /// The APIC id.
    #[bits(4)]
    pub id: u8,
    #[bits(4)]
    __: u8,
}

/// The version register, read-only.
#[bitfield(u32)]
pub struct VersionRegister {
    /// 0x11: 82093AA; 0x20: with an EOI register.
    pub version: u8,
    __: u8,
    /// The number of the last pin.
    pub last_pin: u8,
    __: u8,
}

/// One entry of the redirection table.
///
/// Reserved bits keep what was stored, as KVM keeps them.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RedirectionEntry {
    /// The vector.
    pub vector: u8,
    /// 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    #[bits(3)]
    pub delivery_mode: u8,
    /// The destination is logical.
    pub logical: bool,
    /// Read-only.
    pub delivery_status: bool,
    /// The line is active low. What drives the pins already speaks of levels, so this is only kept.
    pub active_low: bool,
    /// Read-only: a level interrupt was accepted and has not ended.
    pub remote_irr: bool,
    /// Level-triggered.
    pub level: bool,
    /// Masked.
    pub masked: bool,
    #[bits(31)]
    __: u32,
    /// With interrupt remapping: the format bit and bits 6:0 of the handle.
    pub extended: u8,
    /// The destination.
    pub destination: u8,
}

impl RedirectionEntry {
    /// An entry after reset: masked.
    pub const RESET: Self = Self::new().with_masked(true);

    /// The bits that a guest's store does not change.
    pub const READ_ONLY: u64 = Self::new().with_delivery_status(true).with_remote_irr(true).into_bits();

    /// The message that this entry sends.
    ///
    /// Bits 63:48 and bit 11 go to the address as they are, which also is the remappable format (VT-d, section 5.1.5.1).
    pub fn message(self, device_id: Option<DeviceId>) -> MsiMessage {
        let address = MessageAddress::new()
            .with_logical(self.logical())
            .with_remappable(self.extended() & 1 == 1)
            .with_destination_ext(self.extended() >> 1)
            .with_destination(self.destination())
            .with_prefix(MessageAddress::PREFIX);
        let data = MessageData::new()
            .with_vector(self.vector())
            .with_delivery_mode(DeliveryMode::from_bits(self.delivery_mode()))
            .with_assert(true)
            .with_level(self.level());
        MsiMessage { address: address.into_bits(), data: data.into_bits(), device_id }
    }
}
