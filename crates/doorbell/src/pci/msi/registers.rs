//! The registers of MSI: PCI Local Bus Specification 3.0, section 6.8.1; PCI Express Base, section 7.7.1.

use bitfield_struct::bitfield;

/// The capability id of MSI.
pub const CAPABILITY_ID: u8 = 0x05;
/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 32;
/// Bytes of the largest form of the capability: 64-bit address and per-vector masking.
pub const MAX_CAPABILITY_BYTES: usize = 24;

/// Offset of Message Control in the capability.
pub const CONTROL: usize = 2;
/// Offset of the lower half of the address in the capability.
pub const ADDRESS_LOW: usize = 4;

/// Message Control (section 6.8.1.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct MessageControl {
    /// MSI is on, and INTx is off.
    pub enable: bool,
    /// Multiple Message Capable: the function has two to this power of vectors, 0 to 5; read-only.
    #[bits(3)]
    pub capable: u8,
    /// Multiple Message Enable: the guest allots it two to this power.
    #[bits(3)]
    pub enabled: u8,
    /// The address has 64 bits; read-only.
    pub address_64: bool,
    /// There are mask and pending bits; read-only.
    pub per_vector_masking: bool,
    #[bits(7)]
    __: u8,
}

impl MessageControl {
    /// The bits that a guest can write.
    pub const WRITABLE: Self = Self::new().with_enable(true).with_enabled(7);
}

/// Where the registers behind the address lie, which depends on the form of the capability (section 6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// The upper half of the address, if there is one.
    pub address_high: Option<usize>,
    /// The data, 16 bits.
    pub data: usize,
    /// The mask bits, if there are any; the pending bits follow.
    pub mask: Option<usize>,
    /// Bytes of the capability.
    pub bytes: usize,
}

impl Offsets {
    /// The registers of a capability of this form.
    pub const fn of(control: MessageControl) -> Self {
        let data = if control.address_64() { 12 } else { 8 };
        let mask = if control.per_vector_masking() { Some(data + 4) } else { None };
        Self {
            address_high: if control.address_64() { Some(8) } else { None },
            data,
            mask,
            bytes: if mask.is_some() { data + 12 } else { data + 2 },
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The figures of section 6.8.1: four forms of 10, 14, 20 and 24 bytes.
    #[test]
    fn layouts_are_those_of_the_specification() {
        let form = |address_64, masking| {
            Offsets::of(MessageControl::new().with_address_64(address_64).with_per_vector_masking(masking))
        };
        assert_eq!(form(false, false), Offsets { address_high: None, data: 8, mask: None, bytes: 10 });
        assert_eq!(form(true, false), Offsets { address_high: Some(8), data: 12, mask: None, bytes: 14 });
        assert_eq!(form(false, true), Offsets { address_high: None, data: 8, mask: Some(12), bytes: 20 });
        assert_eq!(form(true, true), Offsets { address_high: Some(8), data: 12, mask: Some(16), bytes: 24 });
        assert_eq!(MessageControl::new().with_capable(5).into_bits(), 0x000a);
        assert_eq!(MessageControl::new().with_enabled(5).into_bits(), 0x0050);
        assert_eq!(MessageControl::new().with_address_64(true).into_bits(), 0x0080);
        assert_eq!(MessageControl::new().with_per_vector_masking(true).into_bits(), 0x0100);
    }
}
