//! The capabilities by which a driver finds the parts of a virtio device (section 4.1.4), and where the parts are in its BAR.

/// The BAR that holds everything.
pub(super) const BAR: u8 = 4;
/// Bytes of it.
pub(super) const BAR_BYTES: u64 = 0x8000;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

const PART_BYTES: u64 = 0x1000;
const PARTS: [Part; 6] = [Part::Common, Part::Isr, Part::Device, Part::Notify, Part::MsixTable, Part::MsixPending];

impl Part {
    /// The part that an offset of the BAR is in, and the offset there.
    pub fn at(offset: u64) -> Option<(Self, u64)> {
        let part = PARTS.get(usize::try_from(offset / PART_BYTES).ok()?)?;
        Some((*part, offset % PART_BYTES))
    }

    /// Where it begins.
    pub const fn offset(self) -> u32 {
        self as u32 * PART_BYTES as u32
    }
}

/// Where the capabilities are in configuration space. MSI-X is first and is answered by doorbell.
pub(super) const MSIX: u16 = 0x40;
const FIRST: u16 = 0x50;
/// The window through which configuration space reaches the BAR: its offset, its length, its data.
pub(super) const WINDOW: u16 = 0x94;
const END: u16 = 0xa8;
/// Bytes of a notification register apart, so that each queue has its own.
pub(super) const NOTIFY_STRIDE: u32 = 4;

const VENDOR_SPECIFIC: u8 = 0x09;

/// Capability types, section 4.1.4.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The offset of the capability behind MSI-X.
pub(super) const NEXT_OF_MSIX: u8 = FIRST as u8;

/// The capabilities from 0x50 on, without the window's registers.
pub(super) fn image() -> [u8; (END - FIRST) as usize] {
    let mut image = [0; (END - FIRST) as usize];
    let entries: [(u16, u8, u8, Part); 4] = [
        (0x50, 16, COMMON_CFG, Part::Common),
        (0x60, 20, NOTIFY_CFG, Part::Notify),
        (0x74, 16, ISR_CFG, Part::Isr),
        (0x84, 16, DEVICE_CFG, Part::Device),
    ];
    for (place, length, kind, part) in entries {
        let next = (place + u16::from(length)) as u8;
        let at = usize::from(place - FIRST);
        image[at..at + 5].copy_from_slice(&[VENDOR_SPECIFIC, next, length, kind, BAR]);
        image[at + 8..at + 12].copy_from_slice(&part.offset().to_le_bytes());
        image[at + 12..at + 16].copy_from_slice(&(PART_BYTES as u32).to_le_bytes());
        if kind == NOTIFY_CFG {
            image[at + 16..at + 20].copy_from_slice(&NOTIFY_STRIDE.to_le_bytes());
        }
    }
    let at = usize::from(WINDOW - FIRST);
    image[at..at + 4].copy_from_slice(&[VENDOR_SPECIFIC, 0, 20, PCI_CFG]);
    image
}

/// The word at a multiple of 4, if the capabilities have it.
pub(super) fn word(offset: u16) -> Option<u32> {
    let at = usize::from(offset.checked_sub(FIRST)?);
    let bytes = image().get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_follows_the_list_finds_every_part_once_and_then_its_end() {
        let byte = |at: u16| (word(at & !3).unwrap() >> (8 * (at & 3))) as u8;
        let (mut at, mut kinds) = (FIRST, Vec::new());
        while at != 0 {
            assert_eq!(byte(at), VENDOR_SPECIFIC, "{at:#x}");
            kinds.push((byte(at + 3), word(at + 8).unwrap()));
            at = byte(at + 1).into();
        }
        assert_eq!(kinds, [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000), (5, 0)]);
        assert_eq!(word(END), None);
    }
}
