//! What is saved of an MSI-X table, and what is accepted when it comes back.

use super::registers::{AddressLow, MessageControl};
use crate::Error;

/// One entry of a saved table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsixEntryState {
    /// The message address; bits 1:0 are 0.
    pub address: u64,
    /// The message data.
    pub data: u32,
    /// The mask bit of Vector Control.
    pub masked: bool,
}

/// A saved [`MsixTable`](super::MsixTable).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsixState {
    /// Message Control, with the table size.
    pub control: u16,
    /// The entries, one for each vector.
    pub entries: Vec<MsixEntryState>,
    /// The pending bits, 64 to a word, as in the PBA; bits beyond the table are 0.
    pub pending: Vec<u64>,
    /// What the [`MaskStrategy`](crate::pci::MaskStrategy) keeps beyond that.
    pub strategy: Vec<u64>,
}

impl MsixState {
    /// Checks everything that a table of `vectors` vectors relies on.
    pub(super) fn validate(&self, vectors: u16) -> Result<MessageControl, Error> {
        // The strategy's words are checked by the strategy.
        let Self { control, entries, pending, strategy: _ } = self;
        let control = MessageControl::from_bits(*control);
        let allowed = MessageControl::WRITABLE.with_table_size(vectors - 1).into_bits();
        if control.table_size() != vectors - 1 || control.into_bits() & !allowed != 0 {
            return refuse(format!(
                "Message Control {:#06x} does not belong to a table of {vectors} vectors",
                control.into_bits()
            ));
        }
        if entries.len() != usize::from(vectors) {
            return refuse(format!("{} MSI-X entries for a table of {vectors}", entries.len()));
        }
        if let Some(entry) = entries.iter().find(|entry| {
            let low = AddressLow::from_bits(entry.address as u32);
            AddressLow::new().with_dword(low.dword()) != low
        }) {
            return refuse(format!("MSI-X address {:#x} is not a multiple of 4", entry.address));
        }
        validate_bits("pending bits", pending, vectors)?;
        Ok(control)
    }
}

/// Checks that there is a word for each 64 vectors and no bit beyond the last one.
pub(in crate::pci) fn validate_bits(what: &str, bits: &[u64], vectors: u16) -> Result<(), Error> {
    let words = usize::from(vectors.div_ceil(64));
    if bits.len() != words {
        return refuse(format!("{} words of {what} for {vectors} vectors, not {words}", bits.len()));
    }
    let used = vectors % 64;
    match bits.last() {
        Some(last) if used != 0 && last >> used != 0 => {
            refuse(format!("{what} {last:#x} beyond the last of {vectors} vectors"))
        }
        _ => Ok(()),
    }
}

pub(in crate::pci) fn refuse<T>(what: String) -> Result<T, Error> {
    Err(Error::Snapshot(what))
}
