//! The layout of the shared memory, version 1. All words are 64 bits, little-endian, and atomic.
//!
//! | offset | words | content |
//! |---|---|---|
//! | 0 | 1 | [`MAGIC`] |
//! | 8 | 1 | [`Header`]: version and number of vectors |
//! | 16 | 1 | [`Flags`] |
//! | 64 | 32 | the host's mask words, a bit per vector |
//! | [`GUEST_AREA`] | 32 | the guest's mask words |
//! | [`PENDING_AREA`] | 32 | the pending words |
//!
//! Everything else is 0 and ignored, as are bits of vectors that there are not.

use bitfield_struct::bitfield;

/// The first word: "doorbell" in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"doorbell");
/// The version that is described here.
pub const VERSION: u32 = 1;

/// Bytes of an area: a multiple of every host's page size.
pub const AREA_BYTES: usize = 64 << 10;
/// Offset of the header and the host's mask words.
pub const HOST_AREA: usize = 0;
/// Offset of the guest's mask words.
pub const GUEST_AREA: usize = AREA_BYTES;
/// Offset of the pending words.
pub const PENDING_AREA: usize = 2 * AREA_BYTES;
/// Bytes of the whole.
pub const BYTES: usize = 3 * AREA_BYTES;

/// How many words hold a bit for each of 2,048 vectors.
pub const WORDS: usize = 32;

/// The second word.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// How many vectors there are, 1 to 2,048.
    pub vectors: u32,
}

/// The third word.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Flags {
    /// The function is disabled and drops events (msix.md M11).
    pub dropping: bool,
    #[bits(63)]
    __: u64,
}

/// The bits of word `word` that stand for vectors.
pub const fn valid(word: usize, vectors: u16) -> u64 {
    let first = word.saturating_mul(64);
    let vectors = vectors as usize;
    if first >= vectors {
        0
    } else if vectors - first >= 64 {
        u64::MAX
    } else {
        (1 << (vectors - first)) - 1
    }
}
