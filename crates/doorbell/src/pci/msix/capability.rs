//! The capability structure in configuration space.

use super::{
    MsixTable,
    registers::{BarOffset, CAPABILITY_BYTES, CAPABILITY_ID, CONTROL, ENTRY_BYTES, MessageControl, PBA, TABLE},
};
use crate::{Error, pci::MaskStrategy};

/// Where the table or the PBA lies in the function's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterPlace {
    /// Which base address register, 0 to 5.
    pub bar: u8,
    /// The offset in it in bytes, a multiple of 8.
    pub offset: u32,
}

/// The MSI-X capability: 12 bytes of configuration space, of which a guest can write two bits.
///
/// Message Control lives in the [`MsixTable`], so that there is one truth.
#[derive(Clone, Copy, Debug)]
pub struct MsixCapability {
    next: u8,
    table: BarOffset,
    pba: BarOffset,
}

impl MsixCapability {
    /// A capability for `vectors` vectors that points at `table` and `pba`; `next` is the offset of the next
    /// capability, or 0.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a place is not one a register can hold, or if the two overlap.
    pub fn new(vectors: u16, next: u8, table: RegisterPlace, pba: RegisterPlace) -> Result<Self, Error> {
        let capability = Self { next, table: bar_offset(table)?, pba: bar_offset(pba)? };
        let table_end = u64::from(table.offset) + ENTRY_BYTES * u64::from(vectors);
        let pba_end = u64::from(pba.offset) + 8 * u64::from(vectors.div_ceil(64));
        if table.bar == pba.bar && u64::from(pba.offset) < table_end && u64::from(table.offset) < pba_end {
            return Err(Error::Invalid {
                what: "the offset of the PBA",
                value: pba.offset.into(),
                allowed: "outside the table",
            });
        }
        Ok(capability)
    }

    /// A guest reads `data.len()` bytes at `offset` from the start of the capability; bytes beyond it are 0.
    pub fn read<S: MaskStrategy>(&self, table: &MsixTable<S>, offset: usize, data: &mut [u8]) {
        let mut image = [0; CAPABILITY_BYTES as usize];
        image[0] = CAPABILITY_ID;
        image[1] = self.next;
        image[CONTROL..TABLE].copy_from_slice(&table.control().into_bits().to_le_bytes());
        image[TABLE..PBA].copy_from_slice(&self.table.into_bits().to_le_bytes());
        image[PBA..].copy_from_slice(&self.pba.into_bits().to_le_bytes());
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(at).and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    /// A guest writes `data` at `offset` from the start of the capability. Everything but Enable and Function Mask is
    /// read-only; both change together (M14).
    pub fn write<S: MaskStrategy>(&self, table: &mut MsixTable<S>, offset: usize, data: &[u8]) {
        let mut control = table.control().into_bits().to_le_bytes();
        for (at, byte) in data.iter().enumerate() {
            let place = offset.checked_add(at).and_then(|at| at.checked_sub(CONTROL));
            if let Some(old) = place.and_then(|place| control.get_mut(place)) {
                *old = *byte;
            }
        }
        table.set_control(MessageControl::from_bits(u16::from_le_bytes(control)));
    }
}

fn bar_offset(place: RegisterPlace) -> Result<BarOffset, Error> {
    if place.bar > 5 {
        return Err(Error::Invalid { what: "BAR", value: place.bar.into(), allowed: "0 to 5" });
    }
    if place.offset % 8 != 0 {
        let allowed = "multiples of 8";
        return Err(Error::Invalid { what: "the offset in the BAR", value: place.offset.into(), allowed });
    }
    Ok(BarOffset::new().with_bar(place.bar).with_qwords(place.offset / 8))
}
