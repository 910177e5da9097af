//! The distributor's frame (Arm IHI 0069, "The GIC programmers' model", "The GIC Distributor register descriptions").
//!
//! What is missing here reads 0 and ignores stores: GICD_ITARGETSR, GICD_SGIR, GICD_CPENDSGIR and GICD_SPENDSGIR, which
//! affinity routing replaces; GICD_IGRPMODR, GICD_NSACR, GICD_SETSPI_SR and GICD_CLRSPI_SR, which take two Security states;
//! the extended SPIs.

use bitfield_struct::bitfield;

/// The size of the frame.
pub const FRAME: u64 = 0x1_0000;

/// GICD_CTLR.
pub const CTLR: u64 = 0x0000;
/// GICD_TYPER.
pub const TYPER: u64 = 0x0004;
/// GICD_IIDR.
pub const IIDR: u64 = 0x0008;
/// GICD_TYPER2.
pub const TYPER2: u64 = 0x000c;
/// GICD_STATUSR.
pub const STATUSR: u64 = 0x0010;
/// GICD_SETSPI_NSR.
pub const SETSPI_NSR: u64 = 0x0040;
/// GICD_CLRSPI_NSR.
pub const CLRSPI_NSR: u64 = 0x0048;
/// GICD_IROUTER of INTID 0, where there is none; 8 bytes for each INTID.
pub const IROUTER: u64 = 0x6000;

/// GICD_CTLR, with one Security state.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// Forward interrupts of Group 0.
    pub group0: bool,
    /// Forward interrupts of Group 1.
    pub group1: bool,
    #[bits(2)]
    __: u8,
    /// Affinity routing; read as one.
    pub affinity_routing: bool,
    __: bool,
    /// One Security state; read as one.
    pub one_security_state: bool,
    /// Wake-up of sleeping vCPUs by 1-of-N interrupts. Not offered: a store is forgotten.
    pub one_of_n_wakeup: bool,
    #[bits(23)]
    __: u32,
    /// A store has not taken effect yet. Here it always has.
    pub write_pending: bool,
}

impl Control {
    /// What a store can change.
    pub const WRITABLE: u32 = Self::new().with_group0(true).with_group1(true).into_bits();
    /// What always reads as one (C1).
    pub const FIXED: u32 = Self::new().with_affinity_routing(true).with_one_security_state(true).into_bits();
}

/// GICD_TYPER.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Type {
    /// INTIDs below the special ones: 32 (n + 1).
    #[bits(5)]
    pub lines: u8,
    /// vCPUs without affinity routing, less one.
    #[bits(3)]
    pub cpus: u8,
    /// Extended SPIs.
    pub extended_spis: bool,
    __: bool,
    /// Two Security states.
    pub security: bool,
    /// The number of LPIs, as 2^(n + 1); 0: what the bits of an INTID leave room for.
    #[bits(5)]
    pub lpi_bits: u8,
    /// Message-based SPIs.
    pub message_spis: bool,
    /// LPIs.
    pub lpis: bool,
    /// Direct injection of virtual LPIs.
    pub virtual_lpis: bool,
    /// Bits of an INTID, less one.
    #[bits(5)]
    pub id_bits: u8,
    /// Affinities with a level 3.
    pub level3: bool,
    /// No 1-of-N interrupts.
    pub no_one_of_n: bool,
    /// SGIs to Aff0 values above 15.
    pub range_selector: bool,
    /// Extended SPIs: 32 (n + 1) of them.
    #[bits(5)]
    pub extended_range: u8,
}

/// GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Message {
    /// The SPI.
    #[bits(13)]
    pub intid: u16,
    #[bits(19)]
    __: u32,
}

/// GICD_IROUTER.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Router {
    /// The vCPU's name, level 0.
    pub aff0: u8,
    /// Level 1.
    pub aff1: u8,
    /// Level 2.
    pub aff2: u8,
    #[bits(7)]
    __: u8,
    /// Interrupt_Routing_Mode: any one vCPU takes it.
    pub any: bool,
    /// Level 3.
    pub aff3: u8,
    #[bits(24)]
    __: u32,
}

impl Router {
    /// What a store can change. KVM's has neither Aff3 nor 1 of N (C8).
    pub const fn writable(short: bool) -> u64 {
        let names = Self::new().with_aff0(0xff).with_aff1(0xff).with_aff2(0xff);
        if short { names.into_bits() } else { names.with_aff3(0xff).with_any(true).into_bits() }
    }
}
