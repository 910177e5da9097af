//! Strategy S5-A in its shared form: mask and pending words in memory that the guest, the VMM and the device's process
//! map, the "couple of mmapped pages" of the 2009 thread.
//!
//! The device's process ([`SharedProducer`]) looks at the mask itself before it signals; while a vector is masked it
//! sets the pending bit and signals nobody, and polls until the vector is unmasked. So an event of a masked vector
//! costs no system call, and a guest that maps its mask words masks and unmasks without an exit.
//!
//! The memory has three areas ([`layout`]), by who may write them, so that each can be mapped apart:
//!
//! | area | written by | mapped by the guest |
//! |---|---|---|
//! | header and the host's mask words | VMM | no |
//! | the guest's mask words | guest | yes, to write |
//! | pending words | VMM and device | yes, to read |
//!
//! A vector is masked if either mask bit is set. The host's are those of the MSI-X table, Function Mask and Enable
//! included: a guest that knows nothing of the memory uses its table as ever. A guest that does sets and clears its
//! own bits by atomic stores; after clearing one it passes a full barrier and looks at the pending word, or leaves
//! that to the device, which polls.
//!
//! Nobody trusts anybody: sizes are fixed and sealed, contents are read once where they matter, and whatever the other
//! sides write can only mask, unmask or signal the vectors of this one device. The VMM's own mask holds against the
//! device in any case, since it is the GSI's.
//!
//! What this form cannot give is completion towards the guest: a device that looked at the mask just before the guest
//! set it without an exit may still signal (msix.md M15). A mask through the table is complete as always.

pub mod layout;
#[cfg(all(target_os = "linux", not(loom)))]
mod mapping;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod process;
#[cfg(all(target_os = "linux", not(loom)))]
mod producer;
#[cfg(all(target_os = "linux", not(loom)))]
mod region;
#[cfg(all(target_os = "linux", not(loom)))]
mod strategy;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests;
#[cfg(any(loom, target_os = "linux"))]
mod words;

#[cfg(all(target_os = "linux", not(loom)))]
pub use producer::{ProducerEvent, SharedProducer};
#[cfg(all(target_os = "linux", not(loom)))]
pub use strategy::{SharedMsix, SharedVector};
