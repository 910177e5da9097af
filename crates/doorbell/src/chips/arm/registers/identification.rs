//! Who made it (Arm IHI 0069, "The GIC programmers' model", "GIC identification registers").

use bitfield_struct::bitfield;

use crate::chips::arm::Identity;

/// The offset of the first identification register (PIDR4) in each 64K frame that has them; the last one, CIDR3, ends the
/// frame.
pub const FIRST: u64 = 0xffd0;
/// GICD_PIDR4, and its like in other frames.
pub const PIDR4: u64 = FIRST;
/// GICD_PIDR2, and its like in other frames.
pub const PIDR2: u64 = 0xffe8;

/// GICD_IIDR, GICR_IIDR and GITS_IIDR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Implementer {
    /// The JEP106 code of who made it.
    #[bits(12)]
    pub implementer: u16,
    /// Of the implementation.
    #[bits(4)]
    pub revision: u8,
    /// Of the product.
    #[bits(4)]
    pub variant: u8,
    #[bits(4)]
    __: u8,
    /// The product: a letter.
    pub product: u8,
}

/// Arm's code, which every known software model shows.
const ARM: u16 = 0x43b;

/// Which frame is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The distributor's.
    Distributor,
    /// The first one of a redistributor.
    Redistributor,
    /// The first one of an ITS.
    Its,
}

impl Identity {
    /// GICR_IIDR; GICD_IIDR and GITS_IIDR are the same, with a revision where the model has one.
    pub const fn implementer(self) -> Implementer {
        let product = match self {
            Self::Doorbell => b'D',
            Self::Kvm => b'K',
            Self::Qemu => 0,
        };
        Implementer::new().with_implementer(ARM).with_product(product)
    }

    /// The identification register at this offset of a frame, 0 for offsets elsewhere. KVM has PIDR2 alone, but in the ITS.
    pub const fn register(self, frame: Frame, offset: u64) -> u32 {
        let part = match (self, frame) {
            (Self::Kvm | Self::Doorbell, Frame::Its) if offset == PIDR4 => return 0x40,
            (Self::Kvm | Self::Doorbell, Frame::Its) => 0x92,
            (Self::Kvm | Self::Doorbell, _) => return if offset == PIDR2 { 0x3b } else { 0 },
            (Self::Qemu, Frame::Distributor) => 0x92,
            (Self::Qemu, Frame::Redistributor) => 0x93,
            (Self::Qemu, Frame::Its) => 0x94,
        };
        match offset {
            PIDR4 => 0x44,
            0xffe0 => part,
            0xffe4 => 0xb4,
            PIDR2 => 0x3b,
            0xfff0 => 0x0d,
            0xfff4 => 0xf0,
            0xfff8 => 0x05,
            0xfffc => 0xb1,
            _ => 0,
        }
    }
}
