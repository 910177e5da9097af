//! The interrupt path of a virtual machine.
//!
//! ```text
//!  source ──► gate ──► route ──► remap ──► chip ──► vCPU
//! ```

pub mod chips;
pub mod clock;
pub mod delivery;
pub mod errno;
pub mod error;
pub mod gate;
pub mod guest_ram;
pub mod inflight;
pub mod irq_line;
pub mod irqfd;
#[cfg(feature = "kvm")]
pub mod kvm;
#[cfg(any(feature = "arm", feature = "x86"))]
pub mod kvm_abi;
pub mod list;
pub mod manager;
pub mod msi;
pub mod pci;
#[cfg(feature = "x86")]
pub mod remap;
pub mod route;
pub mod snapshot;
mod sync;
pub mod vcpu;

pub use delivery::{
    Delivery, EventSink, MsiTarget, PinInput, Pins, SlotFire, Target, VectorPath, VectorSlot, VectorSource,
};
pub use errno::Errno;
pub use error::Error;
pub use irq_line::{IrqLine, LineSource};
pub use msi::{DeviceId, MsiMessage};
pub use vcpu::{Kick, VcpuId};

/// The example of the README, which is compiled and run with the documentation's tests.
#[cfg(all(doctest, feature = "x86"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The example of the book's page about Arm, likewise.
#[cfg(all(doctest, feature = "arm"))]
#[doc = include_str!("../../../docs/src/arm-vmm.md")]
struct ArmVmm;
