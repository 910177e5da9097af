//! The commands that a guest gives a unit (48882 section 2.4).

use bitfield_struct::bitfield;

use super::registers::ExtendedFeatures;

/// The size of a command in bytes.
pub const COMMAND: u64 = 16;

/// A command, as far as it concerns interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// COMPLETION_WAIT: all before it are complete, then this is done.
    CompletionWait {
        /// Where to store which number.
        store: Option<(u64, u64)>,
        /// The guest wants an interrupt.
        interrupt: bool,
    },
    /// INVALIDATE_DEVTAB_ENTRY.
    InvalidateDevice(u16),
    /// INVALIDATE_INTERRUPT_TABLE.
    InvalidateInterruptTable(u16),
    /// INVALIDATE_IOMMU_ALL.
    InvalidateAll,
    /// A command about address translation, of which nothing is remembered here.
    Translation,
}

/// The opcodes (bits 63:60).
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const COMPLETION_WAIT: u8 = 1;
    pub const INVALIDATE_DEVTAB_ENTRY: u8 = 2;
    pub const INVALIDATE_IOMMU_PAGES: u8 = 3;
    pub const INVALIDATE_IOTLB_PAGES: u8 = 4;
    pub const INVALIDATE_INTERRUPT_TABLE: u8 = 5;
    pub const INVALIDATE_IOMMU_ALL: u8 = 8;
}

/// Bits 63:0 of COMPLETION_WAIT.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CompletionWait {
    /// S: store the data.
    pub store: bool,
    /// I: set ComWaitInt.
    pub interrupt: bool,
    /// F: no other command may begin before; here none ever does.
    pub flush: bool,
    /// Bits 51:3 of the address.
    #[bits(49)]
    pub address: u64,
    #[bits(8)]
    reserved: u8,
    /// 1.
    #[bits(4)]
    pub opcode: u8,
}

/// Bits 63:0 of a command about one device.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ForDevice {
    /// Which device.
    pub device: u16,
    #[bits(44)]
    reserved: u64,
    /// 2 or 5.
    #[bits(4)]
    pub opcode: u8,
}

/// Bits 63:0 of INVALIDATE_IOMMU_PAGES.
#[bitfield(u64)]
struct ForDomain {
    #[bits(20)]
    pasid: u32,
    #[bits(12)]
    reserved: u16,
    domain: u16,
    #[bits(12)]
    reserved_high: u16,
    #[bits(4)]
    opcode: u8,
}

/// Bits 127:64 of INVALIDATE_IOMMU_PAGES.
#[bitfield(u64)]
struct Pages {
    #[bits(3)]
    flags: u8,
    #[bits(9)]
    reserved: u16,
    #[bits(52)]
    page: u64,
}

impl Command {
    /// What the two halves say; `None` if it is no command of a unit with these features, or a reserved bit is set.
    pub fn decode(low: u64, high: u64, features: ExtendedFeatures) -> Option<Self> {
        let device = ForDevice::from_bits(low);
        match device.opcode() {
            opcode::COMPLETION_WAIT => {
                let wait = CompletionWait::from_bits(low);
                let store = wait.store().then_some((wait.address() << 3, high));
                (wait.reserved() == 0).then_some(Self::CompletionWait { store, interrupt: wait.interrupt() })
            }
            opcode::INVALIDATE_DEVTAB_ENTRY if device.reserved() == 0 && high == 0 => {
                Some(Self::InvalidateDevice(device.device()))
            }
            opcode::INVALIDATE_INTERRUPT_TABLE if device.reserved() == 0 && high == 0 => {
                Some(Self::InvalidateInterruptTable(device.device()))
            }
            opcode::INVALIDATE_IOMMU_PAGES => {
                let (domain, pages) = (ForDomain::from_bits(low), Pages::from_bits(high));
                let reserved = domain.reserved() | domain.reserved_high() | pages.reserved();
                (reserved == 0).then_some(Self::Translation)
            }
            opcode::INVALIDATE_IOTLB_PAGES => Some(Self::Translation),
            opcode::INVALIDATE_IOMMU_ALL
                if features.invalidate_all() && device.device() == 0 && device.reserved() == 0 && high == 0 =>
            {
                Some(Self::InvalidateAll)
            }
            _ => None,
        }
    }
}
