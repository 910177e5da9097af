//! The stations that the kernel takes over: full, split, none.

pub mod abi;
pub mod chips;
mod heat;
mod irqfds;
pub mod irqs;
pub mod kick;
mod path;
mod routes;
mod source;
pub mod split;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod user;
pub mod vm;

pub use chips::{KernelMsi, KernelPins, X86_CHIPS};
pub use heat::Promotion;
pub use irqs::{KvmIrqs, KvmOptions, PromoterThread};
pub use kick::VcpuKick;
pub use source::VectorSource;
pub use split::{SPLIT_PINS, SplitChip};
pub use user::{Entry, UserCpu, VcpuPort};
pub use vm::{Calls, Vm};

use crate::{MsiMessage, delivery::ChipId};

/// How many routes a kernel table takes, and how many GSIs it numbers (routing.md G1, G2).
pub const KERNEL_ROUTES: u32 = 4096;

/// One entry of the kernel's routing table. Its GSIs are the kernel's, a number space of its own: the GSIs of
/// [`RouteTable`](crate::route) get one of them only while they need one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelRoute {
    /// A message.
    Msi {
        /// The kernel's GSI.
        gsi: u32,
        /// What is sent.
        message: MsiMessage,
    },
    /// A pin of an in-kernel chip.
    Pin {
        /// The kernel's GSI.
        gsi: u32,
        /// The chip.
        chip: ChipId,
        /// Its pin.
        pin: u16,
    },
}
