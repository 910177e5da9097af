//! MSI and MSI-X: capability, table, PBA, and the strategies behind the mask bit.
//!
//! ```text
//!  guest ──► MsixCapability, MsixTable ─┐ masked, unmasked, message
//!            MsiCapability ─────────────┴──► MaskStrategy ──► VectorPath
//!  device ─► MsixVector, MsixTrigger ─ event ──┘ (S5-A)
//! ```
//!
//! The registers ([`msix`], [`msi`]) know what the guest wrote; a [`MaskStrategy`] knows what becomes of the events of
//! a masked vector. [`InjectorMask`] is strategy S5-A, the mask bit beside the injector, with GSIs taken only for
//! vectors that are unmasked; [`SharedMsix`](shared::SharedMsix) is its form for a device in another process.
//!
//! ```
//! use doorbell::pci::{InjectorMask, InjectorOptions, MsixTable, VectorPool};
//! # fn device(path: std::sync::Arc<dyn doorbell::VectorPath>) -> Result<(), doorbell::Error> {
//! let pool = VectorPool::new(path); // one for the whole machine
//! let mut table = MsixTable::new(InjectorMask::new(&pool, 64, InjectorOptions::default())?)?;
//! let receive_queue = table.strategy().vector(3).expect("there are 64");
//! receive_queue.fire(); // from any thread; pending, as the guest has not unmasked it
//! assert!(table.is_pending(3));
//! # Ok(()) }
//! ```

pub mod injector;
pub mod msi;
pub mod msix;
pub mod shared;
mod strategy;

pub use injector::{InjectorMask, InjectorOptions, MsixTrigger, MsixVector, VectorEvent, VectorPool};
pub use msi::{MsiCapability, MsiOptions};
pub use msix::{MsixCapability, MsixTable};
pub use strategy::{MaskStrategy, WhileDisabled};

#[cfg(test)]
mod fake_path;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod rig;
