//! The tables in guest memory, in revision 0 of KVM's format: entries of 8 bytes, little-endian.
//!
//! The format of these tables is an implementation's own (Arm IHI 0069, "The ITS tables"); a guest only provides the memory.

use bitfield_struct::bitfield;

use super::registers::Baser;
use crate::guest_ram::{GuestRam, GuestRamExt};

/// Bytes of every entry.
pub const ENTRY: u64 = 8;

/// An entry of the device table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceEntry {
    /// Bits of an EventID of the device, less one.
    #[bits(5)]
    pub event_bits: u8,
    /// Bits 51:8 of the address of its interrupt translation table.
    #[bits(44)]
    pub itt: u64,
    /// The distance to the next valid entry, or less; 0: there is none.
    #[bits(14)]
    pub next: u16,
    /// V.
    pub valid: bool,
}

impl DeviceEntry {
    /// The greatest distance that `next` can say.
    pub const FARTHEST: u32 = (1 << 14) - 1;
}

/// An entry of the collection table, which ends at the first one that is not valid.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CollectionEntry {
    /// The collection.
    pub icid: u16,
    /// The processor number of its redistributor, or [`NOWHERE`](Self::NOWHERE).
    #[bits(36)]
    pub redistributor: u64,
    #[bits(11)]
    __: u16,
    /// V.
    pub valid: bool,
}

impl CollectionEntry {
    /// A collection that events name, and that is not mapped.
    pub const NOWHERE: u64 = 0xffff_ffff;
}

/// An entry of an interrupt translation table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventEntry {
    /// The collection.
    pub icid: u16,
    /// The LPI; 0: not a valid entry.
    pub lpi: u32,
    /// The distance to the next valid entry, or less; 0: there is none.
    pub next: u16,
}

impl EventEntry {
    /// The greatest distance that `next` can say.
    pub const FARTHEST: u32 = (1 << 16) - 1;
}

/// An entry of the first level of a table in two levels.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct LevelOne {
    #[bits(12)]
    __: u16,
    /// Bits 51:12 of the address of a page of entries.
    #[bits(40)]
    pub page: u64,
    #[bits(11)]
    __: u16,
    /// V.
    pub valid: bool,
}

impl LevelOne {
    /// Where its page of `bytes` begins.
    pub const fn address(self, bytes: u64) -> u64 {
        (self.page() << 12) & !(bytes - 1)
    }
}

/// Whether there is memory for an entry.
pub fn is_memory(ram: &dyn GuestRam, address: u64) -> bool {
    ram.read_le::<u64>(address).is_ok()
}

/// Where the entry of `id` is in a table; `None` if it has none, or none in memory.
pub fn entry_address(ram: &dyn GuestRam, baser: Baser, id: u32) -> Option<u64> {
    if !baser.valid() || id > 0xffff {
        return None;
    }
    let at = u64::from(id) * ENTRY;
    let address = if baser.indirect() {
        let page = baser.page_bytes();
        let first = at / page * ENTRY;
        if first >= baser.bytes() {
            return None;
        }
        let level = LevelOne::from_bits(ram.read_le(baser.address().wrapping_add(first)).ok()?);
        if !level.valid() {
            return None;
        }
        level.address(page) + at % page
    } else {
        if at >= baser.bytes() {
            return None;
        }
        baser.address().wrapping_add(at)
    };
    is_memory(ram, address).then_some(address)
}
