//! The registers of MSI-X: PCI Local Bus Specification 3.0, section 6.8.2; PCI Express Base, section 7.7.2.

use bitfield_struct::bitfield;

/// The capability id of MSI-X.
pub const CAPABILITY_ID: u8 = 0x11;
/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 2048;
/// Bytes of a table entry.
pub const ENTRY_BYTES: u64 = 16;
/// Bytes of the capability in configuration space.
pub const CAPABILITY_BYTES: u8 = 12;

/// Offset of Message Control in the capability.
pub const CONTROL: usize = 2;
/// Offset of the Table register in the capability.
pub const TABLE: usize = 4;
/// Offset of the PBA register in the capability.
pub const PBA: usize = 8;

/// Offset of the lower half of the address in a table entry.
pub const ADDRESS_LOW: u64 = 0;
/// Offset of the upper half of the address in a table entry.
pub const ADDRESS_HIGH: u64 = 4;
/// Offset of the data in a table entry.
pub const DATA: u64 = 8;
/// Offset of Vector Control in a table entry.
pub const VECTOR_CONTROL: u64 = 12;

/// Message Control (section 6.8.2.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct MessageControl {
    /// The number of vectors minus one; read-only.
    #[bits(11)]
    pub table_size: u16,
    #[bits(3)]
    __: u16,
    /// Masks all vectors, whatever their own mask bits are.
    pub function_mask: bool,
    /// MSI-X is on, and INTx and MSI are off.
    pub enable: bool,
}

impl MessageControl {
    /// The bits that a guest can write.
    pub const WRITABLE: Self = Self::new().with_function_mask(true).with_enable(true);

    /// Whether vectors that are not masked by themselves send messages.
    pub const fn is_open(self) -> bool {
        self.enable() && !self.function_mask()
    }
}

/// Where the table or the PBA lies: the Table and PBA registers (sections 6.8.2.4 and 6.8.2.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct BarOffset {
    /// Which base address register, 0 to 5.
    #[bits(3)]
    pub bar: u8,
    /// The offset in that BAR, in units of 8 bytes.
    #[bits(29)]
    pub qwords: u32,
}

/// The lower half of a message address (section 6.8.2.6): a dword address.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AddressLow {
    #[bits(2)]
    __: u8,
    /// Bits 31:2 of the address.
    #[bits(30)]
    pub dword: u32,
}

/// Vector Control (section 6.8.2.9).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VectorControl {
    /// The vector is masked.
    pub masked: bool,
    #[bits(31)]
    __: u32,
}

impl VectorControl {
    /// Its value at reset, and the only bit that a guest can write.
    pub const RESET: Self = Self::new().with_masked(true);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The positions of the specification, bit by bit.
    #[test]
    fn layouts_are_those_of_the_specification() {
        assert_eq!(MessageControl::new().with_table_size(0x7ff).into_bits(), 0x07ff);
        assert_eq!(MessageControl::new().with_function_mask(true).into_bits(), 1 << 14);
        assert_eq!(MessageControl::new().with_enable(true).into_bits(), 1 << 15);
        assert_eq!(BarOffset::new().with_bar(5).with_qwords(0x100).into_bits(), 0x805);
        assert_eq!(VectorControl::RESET.into_bits(), 1);
        assert_eq!(AddressLow::new().with_dword(0x3fff_ffff).into_bits(), 0xffff_fffc);
    }
}
