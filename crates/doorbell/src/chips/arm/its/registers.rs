//! The registers of an ITS (Arm IHI 0069, "The ITS registers").

use bitfield_struct::bitfield;

/// Where the registers are in the ITS's two frames of 64 KiB.
pub mod offset {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const CTLR: u64 = 0x0000;
    pub const IIDR: u64 = 0x0004;
    pub const TYPER: u64 = 0x0008;
    pub const CBASER: u64 = 0x0080;
    pub const CWRITER: u64 = 0x0088;
    pub const CREADR: u64 = 0x0090;
    /// GITS_BASER0, for devices.
    pub const BASER0: u64 = 0x0100;
    /// GITS_BASER1, for collections.
    pub const BASER1: u64 = 0x0108;
    /// The last of the eight.
    pub const BASER7: u64 = 0x0138;
    pub const PIDR4: u64 = 0xffd0;
    pub const PIDR0: u64 = 0xffe0;
    pub const PIDR1: u64 = 0xffe4;
    pub const PIDR2: u64 = 0xffe8;
    pub const CIDR0: u64 = 0xfff0;
    pub const CIDR1: u64 = 0xfff4;
    pub const CIDR2: u64 = 0xfff8;
    pub const CIDR3: u64 = 0xfffc;
    pub const TRANSLATER: u64 = 0x1_0040;
}

/// The size of both frames in bytes.
pub const FRAME: u64 = 0x2_0000;

/// GITS_CTLR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Ctlr {
    /// Doorbells are translated and commands are run.
    pub enabled: bool,
    #[bits(30)]
    __: u32,
    /// Read-only: nothing is under way.
    pub quiescent: bool,
}

/// GITS_TYPER.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Typer {
    /// Physical LPIs.
    pub physical: bool,
    #[bits(3)]
    __: u8,
    /// Bytes of an entry of an interrupt translation table, less one.
    #[bits(4)]
    pub itt_entry_size: u8,
    /// Bits of an EventID, less one.
    #[bits(5)]
    pub event_bits: u8,
    /// Bits of a DeviceID, less one.
    #[bits(5)]
    pub device_bits: u8,
    /// SEIS.
    pub system_error: bool,
    /// PTA: how commands name a redistributor; 0: by its processor number.
    pub physical_target: bool,
    #[bits(4)]
    __: u8,
    /// HCC: collections that need no memory.
    pub hardware_collections: u8,
    /// Bits of a collection's number, less one, if `collection_limit` is set; else there are 16.
    #[bits(4)]
    pub collection_bits: u8,
    /// CIL.
    pub collection_limit: bool,
    #[bits(27)]
    __: u32,
}

/// GITS_CBASER: where the command queue is.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cbaser {
    /// How many pages of 4 KiB it has, less one.
    pub pages: u8,
    #[bits(2)]
    reserved_low: u8,
    #[bits(2)]
    pub shareability: u8,
    /// Bits 51:12 of the address.
    #[bits(40)]
    pub page: u64,
    #[bits(1)]
    reserved_middle: u8,
    #[bits(3)]
    pub outer_cache: u8,
    #[bits(3)]
    reserved_high: u8,
    #[bits(3)]
    pub inner_cache: u8,
    #[bits(1)]
    reserved_top: u8,
    /// There is a queue.
    pub valid: bool,
}

impl Cbaser {
    /// The bits that mean something.
    pub const WRITABLE: u64 = Self::new()
        .with_pages(0xff)
        .with_shareability(3)
        .with_page((1 << 40) - 1)
        .with_outer_cache(7)
        .with_inner_cache(7)
        .with_valid(true)
        .into_bits();

    /// Where the queue begins.
    pub const fn address(self) -> u64 {
        self.page() << 12
    }

    /// Its size in bytes.
    pub const fn bytes(self) -> u64 {
        (self.pages() as u64 + 1) << 12
    }

    /// What KVM makes of a stored value: a queue begins at a multiple of 64 KiB, and memory attributes that it does not
    /// have become others.
    pub const fn as_kvm(self) -> Self {
        self.with_page(self.page() & !0xf)
            .with_shareability(kvm_shareability(self.shareability()))
            .with_outer_cache(kvm_outer_cache(self.outer_cache()))
            .with_inner_cache(kvm_inner_cache(self.inner_cache()))
    }
}

/// GITS_CWRITER and GITS_CREADR: a place in the command queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueuePointer {
    #[bits(5)]
    __: u8,
    /// In units of a command, 32 bytes.
    #[bits(15)]
    pub command: u16,
    #[bits(44)]
    __: u64,
}

impl QueuePointer {
    /// The bits that mean something; bit 0, Retry and Stalled, is for an ITS that stalls.
    pub const WRITABLE: u64 = Self::new().with_command(0x7fff).into_bits();
}

/// GITS_BASERn: where a table is.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Baser {
    /// How many pages it has, less one.
    pub pages: u8,
    /// 0: 4 KiB, 1: 16 KiB, 2 and 3: 64 KiB.
    #[bits(2)]
    pub page_size: u8,
    #[bits(2)]
    pub shareability: u8,
    /// Bits 47:12 of the address; with pages of 64 KiB, bits 3:0 are bits 51:48 of the address.
    #[bits(36)]
    pub page: u64,
    /// Read-only: bytes of an entry, less one.
    #[bits(5)]
    pub entry_size: u8,
    #[bits(3)]
    pub outer_cache: u8,
    /// Read-only: what is in the table.
    #[bits(3)]
    pub kind: u8,
    #[bits(3)]
    pub inner_cache: u8,
    /// Two levels: the table holds addresses of pages with entries.
    pub indirect: bool,
    /// There is a table.
    pub valid: bool,
}

impl Baser {
    /// The kind of GITS_BASER0.
    pub const DEVICES: u8 = 1;
    /// The kind of GITS_BASER1.
    pub const COLLECTIONS: u8 = 4;
    /// The bits that a guest cannot change.
    const FIXED: u64 = Self::new().with_entry_size(0x1f).with_kind(7).into_bits();

    /// After reset: no table; entries of 8 bytes, and pages of 64 KiB, of which the largest table fits.
    pub const fn reset(kind: u8, attributes: bool) -> Self {
        let (shareability, inner_cache) = if attributes { (1, 3) } else { (0, 0) };
        Self::new()
            .with_kind(kind)
            .with_entry_size(7)
            .with_page_size(2)
            .with_shareability(shareability)
            .with_inner_cache(inner_cache)
    }

    /// What a store makes of it.
    pub const fn stored(self, value: u64) -> Self {
        Self::from_bits(value & !Self::FIXED | self.into_bits() & Self::FIXED)
    }

    /// What KVM makes of a stored value: pages have 64 KiB, and memory attributes that it does not have become others.
    pub const fn as_kvm(self) -> Self {
        self.with_page_size(2)
            .with_shareability(kvm_shareability(self.shareability()))
            .with_outer_cache(kvm_outer_cache(self.outer_cache()))
            .with_inner_cache(kvm_inner_cache(self.inner_cache()))
    }

    /// Bytes of a page.
    pub const fn page_bytes(self) -> u64 {
        match self.page_size() {
            0 => 0x1000,
            1 => 0x4000,
            _ => 0x1_0000,
        }
    }

    /// Bytes of the table, or of its first level.
    pub const fn bytes(self) -> u64 {
        (self.pages() as u64 + 1) * self.page_bytes()
    }

    /// Where it begins.
    pub const fn address(self) -> u64 {
        let address = self.page() << 12;
        match self.page_size() {
            0 => address,
            1 => address & !0x3fff,
            _ => address & !0xffff | (self.page() & 0xf) << 48,
        }
    }
}

/// KVM knows no outer shareability; it takes the inner one.
const fn kvm_shareability(field: u8) -> u8 {
    if field == 2 { 1 } else { field }
}

/// KVM's tables are always cached: what is not becomes read-allocate, write-back.
const fn kvm_inner_cache(field: u8) -> u8 {
    if field <= 1 { 3 } else { field }
}

/// The outer cache is as the inner one, or not used.
const fn kvm_outer_cache(field: u8) -> u8 {
    if field == 0 { 0 } else { 1 }
}
