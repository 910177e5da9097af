//! The registers with a field for each interrupt. The distributor has them for SPIs, the second frame of a redistributor
//! for SGIs and PPIs, at the same offsets.

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IGROUPR: 1 for Group 1.
    Group,
    /// ISENABLER.
    SetEnable,
    /// ICENABLER.
    ClearEnable,
    /// ISPENDR.
    SetPending,
    /// ICPENDR.
    ClearPending,
    /// ISACTIVER.
    SetActive,
    /// ICACTIVER.
    ClearActive,
    /// IPRIORITYR: a byte, and accessible as one.
    Priority,
    /// ICFGR: two bits, of which the higher one says edge.
    Trigger,
}

/// The fields that one access covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Which register.
    pub kind: Kind,
    /// The INTID of the lowest field.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// How many bits each has.
    pub bits: u32,
}

impl Fields {
    /// What an access of so many bytes covers; `None` if there are no such registers, or if they do not take such an access.
    /// The offset is one in the distributor's frame, or in the second frame of a redistributor.
    pub fn at(offset: u64, bytes: u8) -> Option<Self> {
        let (kind, start, bits) = match offset {
            0x080..0x100 => (Kind::Group, 0x080, 1),
            0x100..0x180 => (Kind::SetEnable, 0x100, 1),
            0x180..0x200 => (Kind::ClearEnable, 0x180, 1),
            0x200..0x280 => (Kind::SetPending, 0x200, 1),
            0x280..0x300 => (Kind::ClearPending, 0x280, 1),
            0x300..0x380 => (Kind::SetActive, 0x300, 1),
            0x380..0x400 => (Kind::ClearActive, 0x380, 1),
            0x400..0x800 => (Kind::Priority, 0x400, 8),
            0xc00..0xd00 => (Kind::Trigger, 0xc00, 2),
            _ => return None,
        };
        if !(bytes == 4 || bytes == 1 && kind == Kind::Priority) || offset % u64::from(bytes) != 0 {
            return None;
        }
        // At most 0x400 bytes of at most 8 fields each.
        let first = (offset - start) as u32 * 8 / bits;
        Some(Self { kind, first, count: u32::from(bytes) * 8 / bits, bits })
    }

    /// The INTIDs, each with the place of its field.
    pub fn places(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.count).map(move |n| (self.first + n, n * self.bits))
    }

    /// The bits of one field.
    pub fn mask(self) -> u32 {
        (1 << self.bits) - 1
    }
}
