//! Offsets of registers, of the public specification of the GICv3 (Arm IHI 0069): the chapters on the distributor's, the
//! redistributor's and the ITS's register maps.

pub const GICD_CTLR: u64 = 0x0;
pub const GICD_TYPER: u64 = 0x4;
pub const GICD_IIDR: u64 = 0x8;
pub const GICD_TYPER2: u64 = 0xc;
pub const GICD_SETSPI_NSR: u64 = 0x40;
pub const GICD_CLRSPI_NSR: u64 = 0x48;
pub const IGROUPR: u64 = 0x80;
pub const ISENABLER: u64 = 0x100;
pub const ICENABLER: u64 = 0x180;
pub const ISPENDR: u64 = 0x200;
pub const ICPENDR: u64 = 0x280;
pub const ISACTIVER: u64 = 0x300;
pub const ICACTIVER: u64 = 0x380;
pub const IPRIORITYR: u64 = 0x400;
pub const ITARGETSR: u64 = 0x800;
pub const ICFGR: u64 = 0xc00;
pub const IGRPMODR: u64 = 0xd00;
pub const GICD_IROUTER: u64 = 0x6000;
pub const PIDR2: u64 = 0xffe8;

pub const GICR_CTLR: u64 = 0x0;
pub const GICR_IIDR: u64 = 0x4;
pub const GICR_TYPER: u64 = 0x8;
pub const GICR_WAKER: u64 = 0x14;
pub const GICR_PROPBASER: u64 = 0x70;
pub const GICR_PENDBASER: u64 = 0x78;
pub const GICR_INVLPIR: u64 = 0xa0;
pub const GICR_INVALLR: u64 = 0xb0;
pub const GICR_SYNCR: u64 = 0xc0;
/// The frame of the registers that are the distributor's for other INTIDs.
pub const SGI_FRAME: u64 = 0x1_0000;

pub const GITS_CTLR: u64 = 0x0;
pub const GITS_IIDR: u64 = 0x4;
pub const GITS_TYPER: u64 = 0x8;
pub const GITS_CBASER: u64 = 0x80;
pub const GITS_CWRITER: u64 = 0x88;
pub const GITS_CREADR: u64 = 0x90;
pub const GITS_BASER: u64 = 0x100;

/// CBASER, BASERn: it is there.
pub const VALID: u64 = 1 << 63;
/// BASERn: two levels.
pub const INDIRECT: u64 = 1 << 62;
/// BASERn: pages of 64 KiB.
pub const PAGES_64K: u64 = 2 << 8;
