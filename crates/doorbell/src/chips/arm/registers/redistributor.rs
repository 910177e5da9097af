//! The two frames of a redistributor (Arm IHI 0069, "The GIC programmers' model", "The GIC Redistributor register
//! descriptions").

use bitfield_struct::bitfield;

/// The size of both frames together: from one redistributor of a region to the next.
pub const STRIDE: u64 = 0x2_0000;
/// Where the second frame begins, with the registers of SGIs and PPIs.
pub const SGI_FRAME: u64 = 0x1_0000;

/// GICR_CTLR.
pub const CTLR: u64 = 0x0000;
/// GICR_IIDR.
pub const IIDR: u64 = 0x0004;
/// GICR_TYPER, 64 bits.
pub const TYPER: u64 = 0x0008;
/// GICR_WAKER.
pub const WAKER: u64 = 0x0014;
/// GICR_PROPBASER, 64 bits.
pub const PROPBASER: u64 = 0x0070;
/// GICR_PENDBASER, 64 bits.
pub const PENDBASER: u64 = 0x0078;
/// GICR_INVLPIR, 64 bits.
pub const INVLPIR: u64 = 0x00a0;
/// GICR_INVALLR, 64 bits.
pub const INVALLR: u64 = 0x00b0;
/// GICR_SYNCR.
pub const SYNCR: u64 = 0x00c0;

/// GICR_TYPER.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Type {
    /// Physical LPIs.
    pub lpis: bool,
    /// Virtual LPIs.
    pub virtual_lpis: bool,
    __: bool,
    /// GICR_SETLPIR and GICR_CLRLPIR.
    pub direct_lpis: bool,
    /// The last redistributor of a run of frames without a gap.
    pub last: bool,
    /// GICR_CTLR has bits that keep 1-of-N interrupts away.
    pub deselection: bool,
    #[bits(2)]
    __: u8,
    /// The number by which an ITS and INVALL name it.
    pub number: u16,
    /// Which redistributors share a configuration table: 0 all, 1 those of one Aff3.
    #[bits(2)]
    pub common: u8,
    #[bits(6)]
    __: u8,
    /// The name of its vCPU.
    pub affinity: u32,
}

/// GICR_WAKER.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Waker {
    __: bool,
    /// The vCPU sleeps: nothing is forwarded to it.
    pub processor_sleep: bool,
    /// Nothing is on its way to the vCPU either. Follows at once; read-only.
    pub children_asleep: bool,
    #[bits(29)]
    __: u32,
}

impl Waker {
    /// After reset (C7).
    pub const ASLEEP: Self = Self::new().with_processor_sleep(true).with_children_asleep(true);
}
