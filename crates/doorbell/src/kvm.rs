//! The stations that the kernel takes over: full, split, none.
//!
//! | set-up | local APICs | IOAPIC | made by |
//! |---|---|---|---|
//! | full | kernel | kernel | [`KvmIrqs::full`] |
//! | split | kernel | [`IoApic`](crate::chips::x86::ioapic::IoApic) | [`SplitChip::new`] |
//! | none | [`ApicSet`](crate::chips::x86::lapic::ApicSet) | [`IoApic`](crate::chips::x86::ioapic::IoApic) | [`IrqManager::soft`](crate::manager::IrqManager::soft), and a [`UserCpu`] for each vCPU's loop |
//!
//! All three give an [`IrqManager`](crate::manager::IrqManager) with the same calls. Where the kernel has local APICs, the
//! table, the masks and the pending bits are doorbell's, and the kernel's table and irqfds are a faster way for the sources
//! that are worth it: see [`KvmIrqs`]. The embedder makes VM and vCPUs by whatever crate it likes and hands in
//! descriptors.
//!
//! ```no_run
//! use std::os::fd::{AsFd, BorrowedFd};
//! use std::sync::Arc;
//! use doorbell::kvm::{KvmIrqs, KvmOptions, Vm, X86_CHIPS};
//! use doorbell::route::{Route, RouteEntry};
//! use doorbell::MsiMessage;
//!
//! # fn example(vm: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<(), Box<dyn std::error::Error>> {
//! let kvm = KvmIrqs::full(Arc::new(Vm::new(vm)?), &X86_CHIPS, KvmOptions::default())?; // after KVM_CREATE_IRQCHIP
//! let irqs = kvm.manager();
//! irqs.set_routes(&[RouteEntry { gsi: 24, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) }])?;
//! let _irqfd = irqs.irqfd(irqs.routed(24)?, device)?; // lazy: no system call of KVM so far
//! let _dispatching = irqs.dispatcher().spawn("dispatcher")?;
//! let _promoting = kvm.spawn_promoter()?; // hot sources go to the kernel, a batch at a time
//! # Ok(())
//! # }
//! ```

pub mod abi;
pub mod chips;
mod heat;
mod held;
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
pub use irqfds::Standing;
pub use irqs::{KvmIrqs, KvmOptions, PromoterThread};
pub use kick::VcpuKick;
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
