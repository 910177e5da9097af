//! The calls of the kernel's KVM, with its structs and error numbers.
//!
//! [`KvmCalls`] is one VM of x86 as KVM shows it to user space, [`ArmCalls`] one of Arm: what goes in is what an `ioctl`
//! takes, what comes out is what it returns. These answer:
//!
//! * [`SoftVm`] and [`SoftArmVm`]: doorbell's own stations, behind the kernel's interface;
//! * `kvm::abi::KernelVm` (feature `kvm`): an x86 VM of `/dev/kvm`.
//!
//! A VMM that was written against KVM's calls can keep them; and `doorbell check kvm` gives both the same programs.
//!
//! | file | holds |
//! |---|---|
//! | [`types`] | KVM's structs and constants |
//! | [`routing`] | a routing table as KVM takes it, decoded |
//! | `bindings` | `KVM_IRQFD` of both VMs of doorbell |
//! | [`soft`] | [`SoftVm`] |
//! | [`arm`] | Arm's calls, constants and [`SoftArmVm`] |
//!
//! Numbers in parentheses (F1, G4, Q3, …) are those of the project's specification pages.

#[cfg(feature = "arm")]
pub mod arm;
mod bindings;
pub mod routing;
#[cfg(feature = "x86")]
pub mod soft;
pub mod types;
#[cfg(feature = "x86")]
mod x86;

pub use crate::Errno;
#[cfg(feature = "arm")]
pub use arm::{ArmCalls, ArmGuestCalls, SoftArmVm, SoftArmVmOptions};
#[cfg(feature = "x86")]
pub use soft::{SoftVm, SoftVmOptions};
#[cfg(feature = "x86")]
pub use types::{KvmIoapicState, KvmIrqchip, KvmLapicState, KvmPicState};
pub use types::{KvmIrqLevel, KvmIrqRouting, KvmIrqRoutingEntry, KvmIrqfd, KvmMsi};
#[cfg(feature = "x86")]
pub use x86::{GuestCalls, KvmCalls};

/// What an `ioctl` answers: its return value, or the number of its error.
pub type Answer = Result<i32, Errno>;

fn answer<T>(result: Result<T, crate::Error>, value: impl FnOnce(T) -> i32) -> Answer {
    result.map(value).map_err(|error| error.errno())
}
