//! KVM's structs and constants for Arm.
//!
//! Numbers and layouts are those of the public headers `linux/kvm.h` and `asm/kvm.h` of arm64.

use bitfield_struct::bitfield;

use crate::chips::arm::IccRegister;

/// `KVM_CAP_NR_MEMSLOTS`.
pub const CAP_NR_MEMSLOTS: u32 = 10;
/// `KVM_CAP_DEVICE_CTRL`.
pub const CAP_DEVICE_CTRL: u32 = 89;
/// `KVM_CAP_MAX_VCPUS`.
pub const CAP_MAX_VCPUS: u32 = 66;
/// `KVM_CAP_VCPU_ATTRIBUTES`.
pub const CAP_VCPU_ATTRIBUTES: u32 = 127;
/// `KVM_CAP_ARM_USER_IRQ`.
pub const CAP_ARM_USER_IRQ: u32 = 144;
/// `KVM_CAP_ARM_VM_IPA_SIZE`: how many bits a guest-physical address has.
pub const CAP_ARM_VM_IPA_SIZE: u32 = 165;
/// `KVM_CAP_ARM_IRQ_LINE_LAYOUT_2`: line calls name a vCPU by 12 bits.
pub const CAP_ARM_IRQ_LINE_LAYOUT_2: u32 = 174;

/// `KVM_CREATE_DEVICE_TEST`: only says whether the device could be made.
pub const CREATE_DEVICE_TEST: u32 = 1;

/// `KVM_VGIC_V3_DIST_SIZE`: bytes of the distributor's frame.
pub const DIST_BYTES: u64 = 0x1_0000;
/// `KVM_VGIC_V3_REDIST_SIZE`: bytes of the two frames of one redistributor.
pub const REDIST_BYTES: u64 = 0x2_0000;
/// `KVM_VGIC_V3_ITS_SIZE`: bytes of the two frames of an ITS.
pub const ITS_BYTES: u64 = 0x2_0000;
/// What [`CAP_ARM_VM_IPA_SIZE`] was seen to answer: more bits than a VM has unless it asks for them.
pub const MOST_IPA_BITS: i32 = 44;
/// What [`CAP_NR_MEMSLOTS`] was seen to answer.
pub const MEMSLOTS: i32 = 32_767;
/// Pins of the only irqchip in a route: SPI n is pin n - 32.
pub const SPI_PINS: u16 = 988;

/// Kinds of devices (`enum kvm_device_type`).
pub mod device {
    /// `KVM_DEV_TYPE_ARM_VGIC_V2`.
    pub const VGIC_V2: u32 = 5;
    /// `KVM_DEV_TYPE_ARM_VGIC_V3`.
    pub const VGIC_V3: u32 = 7;
    /// `KVM_DEV_TYPE_ARM_VGIC_ITS`.
    pub const ITS: u32 = 8;
}

/// Groups of attributes (`KVM_DEV_ARM_VGIC_GRP_…`).
pub mod group {
    /// Where the guest finds a frame; attributes [`addr`](super::addr), 64 bits.
    pub const ADDR: u32 = 0;
    /// Registers of the distributor; [`RegisterAttr`](super::RegisterAttr), 32 bits.
    pub const DIST_REGS: u32 = 1;
    /// Registers of a GICv2's CPU interface; not on a GICv3.
    pub const CPU_REGS: u32 = 2;
    /// How many INTIDs there are; attribute 0, 32 bits.
    pub const NR_IRQS: u32 = 3;
    /// Actions; attributes [`ctrl`](super::ctrl), no value.
    pub const CTRL: u32 = 4;
    /// Registers of a redistributor; [`RegisterAttr`](super::RegisterAttr), 32 bits.
    pub const REDIST_REGS: u32 = 5;
    /// System registers of a vCPU's CPU interface; [`RegisterAttr`](super::RegisterAttr), 64 bits.
    pub const CPU_SYSREGS: u32 = 6;
    /// Levels of input lines, 32 at once; [`LevelAttr`](super::LevelAttr), 32 bits.
    pub const LEVEL_INFO: u32 = 7;
    /// Registers of an ITS; the attribute is the offset, 64 bits.
    pub const ITS_REGS: u32 = 8;
    /// The maintenance interrupt of a guest hypervisor; attribute 0, 32 bits.
    pub const MAINT_IRQ: u32 = 9;
}

/// Attributes of [`group::ADDR`].
pub mod addr {
    /// `KVM_VGIC_V2_ADDR_TYPE_DIST`.
    pub const V2_DIST: u64 = 0;
    /// `KVM_VGIC_V2_ADDR_TYPE_CPU`.
    pub const V2_CPU: u64 = 1;
    /// `KVM_VGIC_V3_ADDR_TYPE_DIST`.
    pub const V3_DIST: u64 = 2;
    /// `KVM_VGIC_V3_ADDR_TYPE_REDIST`: the redistributors of all vCPUs, in one run.
    pub const V3_REDIST: u64 = 3;
    /// `KVM_VGIC_ITS_ADDR_TYPE`.
    pub const ITS: u64 = 4;
    /// `KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION`: a run of redistributors; the value is a [`RedistRegion`](super::RedistRegion).
    pub const V3_REDIST_REGION: u64 = 5;
}

/// Attributes of [`group::CTRL`].
pub mod ctrl {
    /// `KVM_DEV_ARM_VGIC_CTRL_INIT`, of either device.
    pub const INIT: u64 = 0;
    /// `KVM_DEV_ARM_ITS_SAVE_TABLES`.
    pub const ITS_SAVE_TABLES: u64 = 1;
    /// `KVM_DEV_ARM_ITS_RESTORE_TABLES`.
    pub const ITS_RESTORE_TABLES: u64 = 2;
    /// `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`, of the GIC.
    pub const SAVE_PENDING_TABLES: u64 = 3;
    /// `KVM_DEV_ARM_ITS_CTRL_RESET`.
    pub const ITS_RESET: u64 = 4;
}

/// The attribute of a register: which vCPU's, and where.
///
/// ```
/// use doorbell::kvm_abi::arm::types::{Mpidr, RegisterAttr};
/// // GICR_WAKER of the vCPU whose affinity is 0.0.1.2.
/// let attr = RegisterAttr::new().with_offset(0x14).with_mpidr(Mpidr::new().with_aff1(1).with_aff0(2));
/// assert_eq!(attr.into_bits(), 0x0000_0102_0000_0014);
/// ```
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RegisterAttr {
    /// The offset in the frame, or a [`SystemRegister`].
    pub offset: u32,
    /// The vCPU; not used by registers of the distributor.
    #[bits(32)]
    pub mpidr: Mpidr,
}

/// The affinity of a vCPU, as attributes name it.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Mpidr {
    /// Affinity level 0.
    pub aff0: u8,
    /// Affinity level 1.
    pub aff1: u8,
    /// Affinity level 2.
    pub aff2: u8,
    /// Affinity level 3.
    pub aff3: u8,
}

/// The attribute of [`group::LEVEL_INFO`].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct LevelAttr {
    /// The first of 32 INTIDs, a multiple of 32.
    #[bits(10)]
    pub intid: u16,
    /// What is asked for: 0, the level of the input.
    #[bits(22)]
    pub info: u32,
    /// The vCPU whose private lines are meant.
    #[bits(32)]
    pub mpidr: Mpidr,
}

/// The value of [`addr::V3_REDIST_REGION`].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RedistRegion {
    /// Its number; regions are made in ascending order.
    #[bits(12)]
    pub index: u16,
    /// Zero.
    #[bits(4)]
    pub flags: u8,
    /// Bits 51:16 of its address.
    #[bits(36)]
    pub base: u64,
    /// How many redistributors it holds.
    #[bits(12)]
    pub count: u16,
}

impl RedistRegion {
    /// Its guest-physical address.
    pub const fn address(self) -> u64 {
        self.base() << 16
    }
}

/// A system register, by the fields of its encoding in an instruction, which are the low 16 bits of an attribute.
///
/// ```
/// use doorbell::kvm_abi::arm::SystemRegister;
/// assert_eq!(SystemRegister::ICC_IAR1_EL1.into_bits(), 0xc660, "S3_0_C12_C12_0");
/// ```
pub use crate::chips::arm::Encoding as SystemRegister;

macro_rules! registers {
    ($($name:ident = $register:expr;)*) => {
        impl SystemRegister {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub const $name: Self = $register.encoding();
            )*

            /// The registers of the CPU interface, with their names.
            pub const ICC: &'static [(&'static str, Self)] = &[$((stringify!($name), Self::$name)),*];
        }
    };
}

registers! {
    ICC_PMR_EL1 = IccRegister::Pmr;
    ICC_IAR0_EL1 = IccRegister::Iar0;
    ICC_EOIR0_EL1 = IccRegister::Eoir0;
    ICC_HPPIR0_EL1 = IccRegister::Hppir0;
    ICC_BPR0_EL1 = IccRegister::Bpr0;
    ICC_AP0R0_EL1 = IccRegister::Ap0r(0);
    ICC_AP0R1_EL1 = IccRegister::Ap0r(1);
    ICC_AP0R2_EL1 = IccRegister::Ap0r(2);
    ICC_AP0R3_EL1 = IccRegister::Ap0r(3);
    ICC_AP1R0_EL1 = IccRegister::Ap1r(0);
    ICC_AP1R1_EL1 = IccRegister::Ap1r(1);
    ICC_AP1R2_EL1 = IccRegister::Ap1r(2);
    ICC_AP1R3_EL1 = IccRegister::Ap1r(3);
    ICC_DIR_EL1 = IccRegister::Dir;
    ICC_RPR_EL1 = IccRegister::Rpr;
    ICC_SGI1R_EL1 = IccRegister::Sgi1r;
    ICC_ASGI1R_EL1 = IccRegister::Asgi1r;
    ICC_SGI0R_EL1 = IccRegister::Sgi0r;
    ICC_IAR1_EL1 = IccRegister::Iar1;
    ICC_EOIR1_EL1 = IccRegister::Eoir1;
    ICC_HPPIR1_EL1 = IccRegister::Hppir1;
    ICC_BPR1_EL1 = IccRegister::Bpr1;
    ICC_CTLR_EL1 = IccRegister::Ctlr;
    ICC_SRE_EL1 = IccRegister::Sre;
    ICC_IGRPEN0_EL1 = IccRegister::Igrpen0;
    ICC_IGRPEN1_EL1 = IccRegister::Igrpen1;
}

/// What a line call of [`LineCall`] drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// The IRQ (number 0) or FIQ (1) input of a vCPU, of a machine without a controller in KVM.
    Cpu,
    /// An SPI.
    Spi,
    /// A PPI of one vCPU.
    Ppi,
}

/// How `KVM_IRQ_LINE` packs what it drives into `irq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineLayout {
    /// Bits 31:28 vCPU, high part; 27:24 kind; 23:16 vCPU, low part; 15:0 number ([`CAP_ARM_IRQ_LINE_LAYOUT_2`]).
    #[default]
    Second,
    /// The layout before that: bits 31:24 kind; 23:16 vCPU; 15:0 number.
    First,
}

/// The `irq` of `KVM_IRQ_LINE`.
///
/// ```
/// use doorbell::kvm_abi::arm::types::{LineCall, LineKind, LineLayout};
/// let call = LineCall { kind: LineKind::Ppi, vcpu: 300, number: 20 };
/// assert_eq!(call.encode(LineLayout::Second), Some(0x122c_0014));
/// assert_eq!(call.encode(LineLayout::First), None, "names 256 vCPUs");
/// assert_eq!(LineCall::decode(0x122c_0014, LineLayout::Second), Some(call));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCall {
    /// What is driven.
    pub kind: LineKind,
    /// The vCPU, by the order in which vCPUs were created; does not matter for an SPI.
    pub vcpu: u32,
    /// The INTID, or which input of the vCPU.
    pub number: u16,
}

impl LineCall {
    /// SPI `number`, an INTID from 32 on.
    pub const fn spi(number: u16) -> Self {
        Self { kind: LineKind::Spi, vcpu: 0, number }
    }

    /// PPI `number`, an INTID from 16 to 31, of one vCPU.
    pub const fn ppi(vcpu: u32, number: u16) -> Self {
        Self { kind: LineKind::Ppi, vcpu, number }
    }

    /// What `irq` says; `None` for a kind that there is not (N4).
    pub fn decode(irq: u32, layout: LineLayout) -> Option<Self> {
        let (kind, high) = match layout {
            LineLayout::Second => (irq >> 24 & 0xf, irq >> 28),
            LineLayout::First => (irq >> 24, 0),
        };
        let kind = match kind {
            0 => LineKind::Cpu,
            1 => LineKind::Spi,
            2 => LineKind::Ppi,
            _ => return None,
        };
        Some(Self { kind, vcpu: high << 8 | irq >> 16 & 0xff, number: irq as u16 })
    }

    /// The `irq` that says this; `None` if the vCPU does not fit.
    pub fn encode(self, layout: LineLayout) -> Option<u32> {
        let Self { kind, vcpu, number } = self;
        let kind = match kind {
            LineKind::Cpu => 0,
            LineKind::Spi => 1,
            LineKind::Ppi => 2,
        };
        let most = match layout {
            LineLayout::Second => 0xfff,
            LineLayout::First => 0xff,
        };
        (vcpu <= most).then_some((vcpu >> 8) << 28 | kind << 24 | (vcpu & 0xff) << 16 | u32::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_in_the_kernels_header() {
        let attr = RegisterAttr::from_bits(0x0403_0201_0001_0080);
        assert_eq!(attr.offset(), 0x1_0080);
        let mpidr = attr.mpidr();
        assert_eq!([mpidr.aff3(), mpidr.aff2(), mpidr.aff1(), mpidr.aff0()], [4, 3, 2, 1]);
        let level = LevelAttr::from_bits(0x0000_0001_0000_0420);
        assert_eq!((level.intid(), level.info(), level.mpidr().aff0()), (32, 1, 1));
        let region = RedistRegion::from_bits(2 << 52 | 0x080a_0000 | 1);
        assert_eq!((region.count(), region.address(), region.flags(), region.index()), (2, 0x080a_0000, 0, 1));
    }

    #[test]
    fn system_registers_have_the_encodings_of_their_instructions() {
        assert_eq!(SystemRegister::ICC_PMR_EL1.into_bits(), 0xc230);
        assert_eq!(SystemRegister::ICC_SRE_EL1.into_bits(), 0xc665);
        assert_eq!(SystemRegister::ICC_AP0R0_EL1.into_bits(), 0xc644);
        assert_eq!(SystemRegister::ICC_SGI1R_EL1.into_bits(), 0xc65d);
        assert_eq!(SystemRegister::ICC.len(), 26);
    }

    #[test]
    fn the_older_line_layout_has_no_second_part_of_the_vcpu() {
        assert_eq!(LineCall::decode(0x1100_0025, LineLayout::First), None, "kind 0x11");
        let of_vcpu_256 = LineCall { kind: LineKind::Spi, vcpu: 256, number: 0x25 };
        assert_eq!(LineCall::decode(0x1100_0025, LineLayout::Second), Some(of_vcpu_256));
        assert_eq!(LineCall::decode(0x0100_0025, LineLayout::First), Some(LineCall::spi(37)));
        assert_eq!(LineCall::decode(0x0300_0025, LineLayout::Second), None, "N4");
    }
}
