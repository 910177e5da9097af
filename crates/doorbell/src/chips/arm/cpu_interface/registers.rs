//! The system registers of the CPU interface (Arm IHI 0069, GIC architecture specification for GICv3 and GICv4, chapter
//! "AArch64 System register descriptions"). The layouts are those of one Security state with 5 bits of priority.

use bitfield_struct::bitfield;

/// Bits of a priority, and as many of preemption: 32 levels.
pub const PRIORITY_BITS: u8 = 5;

/// The bits of a priority that there are.
pub const PRIORITY_MASK: u8 = !(0xff >> PRIORITY_BITS);

/// ICC_RPR_EL1 while no interrupt is active.
pub const IDLE_PRIORITY: u8 = 0xff;

/// A register of the CPU interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum IccRegister {
    Pmr,
    Iar0,
    Eoir0,
    Hppir0,
    Bpr0,
    /// Number 0 to 3.
    Ap0r(u8),
    /// Number 0 to 3.
    Ap1r(u8),
    Dir,
    Rpr,
    Sgi1r,
    Asgi1r,
    Sgi0r,
    Iar1,
    Eoir1,
    Hppir1,
    Bpr1,
    Ctlr,
    Sre,
    Igrpen0,
    Igrpen1,
}

/// How an instruction names a system register.
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash)]
pub struct Encoding {
    /// Op2.
    #[bits(3)]
    pub op2: u8,
    /// CRm.
    #[bits(4)]
    pub crm: u8,
    /// CRn.
    #[bits(4)]
    pub crn: u8,
    /// Op1.
    #[bits(3)]
    pub op1: u8,
    /// Op0.
    #[bits(2)]
    pub op0: u8,
}

impl Encoding {
    const fn icc(crn: u8, crm: u8, op2: u8) -> Self {
        Self::new().with_op0(3).with_op1(0).with_crn(crn).with_crm(crm).with_op2(op2)
    }
}

impl IccRegister {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Pmr,
        Self::Iar0,
        Self::Eoir0,
        Self::Hppir0,
        Self::Bpr0,
        Self::Ap0r(0),
        Self::Ap0r(1),
        Self::Ap0r(2),
        Self::Ap0r(3),
        Self::Ap1r(0),
        Self::Ap1r(1),
        Self::Ap1r(2),
        Self::Ap1r(3),
        Self::Dir,
        Self::Rpr,
        Self::Sgi1r,
        Self::Asgi1r,
        Self::Sgi0r,
        Self::Iar1,
        Self::Eoir1,
        Self::Hppir1,
        Self::Bpr1,
        Self::Ctlr,
        Self::Sre,
        Self::Igrpen0,
        Self::Igrpen1,
    ];

    /// How MRS and MSR name it. As 16 bits, this is the number that KVM's device attributes have for it.
    ///
    /// ```
    /// use doorbell::chips::arm::IccRegister;
    /// // ICC_IAR1_EL1 is S3_0_C12_C12_0.
    /// assert_eq!(IccRegister::Iar1.encoding().into_bits(), 0xc660);
    /// ```
    pub const fn encoding(self) -> Encoding {
        match self {
            Self::Pmr => Encoding::icc(4, 6, 0),
            Self::Iar0 => Encoding::icc(12, 8, 0),
            Self::Eoir0 => Encoding::icc(12, 8, 1),
            Self::Hppir0 => Encoding::icc(12, 8, 2),
            Self::Bpr0 => Encoding::icc(12, 8, 3),
            Self::Ap0r(number) => Encoding::icc(12, 8, 4 + (number & 3)),
            Self::Ap1r(number) => Encoding::icc(12, 9, number & 3),
            Self::Dir => Encoding::icc(12, 11, 1),
            Self::Rpr => Encoding::icc(12, 11, 3),
            Self::Sgi1r => Encoding::icc(12, 11, 5),
            Self::Asgi1r => Encoding::icc(12, 11, 6),
            Self::Sgi0r => Encoding::icc(12, 11, 7),
            Self::Iar1 => Encoding::icc(12, 12, 0),
            Self::Eoir1 => Encoding::icc(12, 12, 1),
            Self::Hppir1 => Encoding::icc(12, 12, 2),
            Self::Bpr1 => Encoding::icc(12, 12, 3),
            Self::Ctlr => Encoding::icc(12, 12, 4),
            Self::Sre => Encoding::icc(12, 12, 5),
            Self::Igrpen0 => Encoding::icc(12, 12, 6),
            Self::Igrpen1 => Encoding::icc(12, 12, 7),
        }
    }

    /// The register that an instruction names, if it is one of the CPU interface's.
    ///
    /// ```
    /// use doorbell::chips::arm::{Encoding, IccRegister};
    /// let pmr = Encoding::new().with_op0(3).with_crn(4).with_crm(6);
    /// assert_eq!(IccRegister::from_encoding(pmr), Some(IccRegister::Pmr));
    /// assert_eq!(IccRegister::from_encoding(pmr.with_op2(1)), None);
    /// ```
    pub fn from_encoding(encoding: Encoding) -> Option<Self> {
        Self::ALL.into_iter().find(|register| register.encoding() == encoding)
    }

    /// Whether MRS of it is defined.
    pub const fn is_readable(self) -> bool {
        !matches!(self, Self::Eoir0 | Self::Eoir1 | Self::Dir | Self::Sgi0r | Self::Sgi1r | Self::Asgi1r)
    }

    /// Whether MSR to it is defined.
    pub const fn is_writable(self) -> bool {
        !matches!(self, Self::Iar0 | Self::Iar1 | Self::Hppir0 | Self::Hppir1 | Self::Rpr)
    }
}

/// ICC_CTLR_EL1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccCtlr {
    /// CBPR: ICC_BPR0_EL1 is for both groups.
    pub common_binary_point: bool,
    /// EOImode: EOIR only drops the priority, DIR deactivates.
    pub split_end: bool,
    #[bits(4)]
    __: u8,
    /// PMHE: the priority mask as a hint to the distributor. Not implemented.
    pub priority_mask_hint: bool,
    __: bool,
    /// PRIbits: bits of a priority, minus one.
    #[bits(3)]
    pub priority_bits: u8,
    /// IDbits: 0 for 16 bits of INTID, 1 for 24.
    #[bits(3)]
    pub id_bits: u8,
    /// SEIS: local generation of SErrors. Not implemented.
    pub serror: bool,
    /// A3V: Aff3 may differ from 0.
    pub affinity_3: bool,
    #[bits(2)]
    __: u8,
    /// RSS: SGIs reach every Aff0, not only 0 to 15.
    pub range_selector: bool,
    /// ExtRange: extended PPIs and SPIs. Not implemented.
    pub extended_range: bool,
    #[bits(44)]
    __: u64,
}

impl IccCtlr {
    /// The bits that a guest can change.
    pub const WRITABLE: u64 = Self::new().with_common_binary_point(true).with_split_end(true).into_bits();
}

/// ICC_SRE_EL1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccSre {
    /// SRE: system registers are in use.
    pub enabled: bool,
    /// DFB: no FIQ bypass.
    pub no_fiq_bypass: bool,
    /// DIB: no IRQ bypass.
    pub no_irq_bypass: bool,
    #[bits(61)]
    __: u64,
}

impl IccSre {
    /// All that it can be: there is no memory-mapped CPU interface and no bypass, so that each bit is read as one and
    /// writes are ignored.
    pub const FIXED: Self = Self::new().with_enabled(true).with_no_fiq_bypass(true).with_no_irq_bypass(true);
}

/// ICC_SGI0R_EL1, ICC_SGI1R_EL1 and ICC_ASGI1R_EL1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccSgi {
    /// TargetList: bit n is the CPU with Aff0 = 16 * RS + n.
    pub targets: u16,
    /// Aff1.
    pub aff1: u8,
    /// The SGI.
    #[bits(4)]
    pub intid: u8,
    #[bits(4)]
    __: u8,
    /// Aff2.
    pub aff2: u8,
    /// IRM: every CPU but the sender.
    pub all_but_self: bool,
    #[bits(3)]
    __: u8,
    /// RS: which sixteen of Aff0.
    #[bits(4)]
    pub range: u8,
    /// Aff3.
    pub aff3: u8,
    __: u8,
}

/// ICC_BPR0_EL1 and ICC_BPR1_EL1, which differ in where they begin to count.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccBpr {
    /// BinaryPoint.
    #[bits(3)]
    pub binary_point: u8,
    #[bits(61)]
    __: u64,
}

impl IccBpr {
    /// The smallest of ICC_BPR0_EL1: every bit of the priority is one of preemption.
    pub const LEAST_0: u8 = 7 - PRIORITY_BITS;
    /// The same of ICC_BPR1_EL1, which counts from one more.
    pub const LEAST_1: u8 = Self::LEAST_0 + 1;
}

/// ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccIgrpen {
    /// Enable.
    pub enable: bool,
    #[bits(63)]
    __: u64,
}

/// What the registers that name an interrupt hold.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccIntid {
    /// INTID.
    #[bits(24)]
    pub intid: u32,
    #[bits(40)]
    __: u64,
}

/// ICC_PMR_EL1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IccPmr {
    /// Priority.
    pub priority: u8,
    #[bits(56)]
    __: u64,
}
