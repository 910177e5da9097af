//! MSI-X: the capability, the table and the pending bit array (PCI Express Base, section 7.7.2).

mod capability;
pub mod registers;
#[cfg(all(test, not(loom)))]
mod rules;
mod state;
mod table;

pub use capability::{MsixCapability, RegisterPlace};
pub(in crate::pci) use state::refuse;
pub use state::{MsixEntryState, MsixState};
pub use table::MsixTable;
