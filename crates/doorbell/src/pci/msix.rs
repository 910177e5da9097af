//! MSI-X: the capability, the table and the pending bit array (PCI Express Base, section 7.7.2).

mod capability;
#[cfg(not(loom))]
pub mod program;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod properties;
pub mod registers;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod rules;
pub(in crate::pci) mod state;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod storms;
mod table;

pub use capability::{MsixCapability, RegisterPlace};
pub use state::{MsixEntryState, MsixState};
pub use table::MsixTable;
