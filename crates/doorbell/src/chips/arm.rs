//! The Arm controllers: a GICv3 (Arm IHI 0069) with its ITS, and GICv2m.
//!
//! | file | holds |
//! |---|---|
//! | [`intid`], [`affinity`], [`options`] | interrupt numbers, the names of vCPUs, how a GIC is built |
//! | [`gic`] | [`Gic`]: what all threads share |
//! | [`cpu_interface`], `sgi` | [`CpuInterface`]: a vCPU's own half, by system registers |
//! | `participation` | interrupts that any one vCPU may take |
//! | `lpi` | LPIs: their table, and what guest memory says of them |
//! | [`distributor`], [`redistributor`], `bank` | their registers, whose layouts are in [`registers`] |
//! | `user` | the registers as a VMM saves and restores them through KVM's device |
//! | [`its`] | the ITS: messages of devices become LPIs |
//! | `line` | SPIs as pins, PPIs, messages |
//! | `state` | reset, save and restore |
//! | [`msi_frames`], [`gicv2m`] | where messages go; messages that are SPIs |
//! | `irq`, `queue` | one interrupt's state, and what waits for one vCPU |
//!
//! An interrupt is one atomic word. Who makes it deliverable also puts it into the inbox of its vCPU, without a lock; the
//! vCPU files what came by priority and takes the most urgent. A configuration call that moves an interrupt elsewhere
//! takes it out of the queue that it waits in, so that it is visible at its new vCPU at once.
//!
//! Numbers in parentheses (C12, I13, H23, …) are those of the project's specification pages.
#![forbid(unsafe_code)]

pub mod affinity;
mod bank;
pub mod cpu_interface;
#[cfg(test)]
mod cripple;
pub mod distributor;
pub mod gic;
pub mod gicv2m;
pub mod intid;
mod irq;
pub mod its;
pub mod line;
mod lpi;
#[cfg(all(test, not(loom)))]
mod machine;
#[cfg(all(test, loom))]
mod models;
pub mod msi_frames;
pub mod options;
mod participation;
mod queue;
pub mod redistributor;
pub mod registers;
mod sgi;
mod state;
mod user;

pub use affinity::Affinity;
pub use cpu_interface::{
    CpuInterface, CpuInterfaceState, Ended, Group, Lines,
    registers::{Encoding, IccRegister},
};
pub use distributor::Distributor;
pub use gic::Gic;
pub use gicv2m::Gicv2m;
pub use lpi::{DirectInjection, DirectLpi, LpisState, PendingLpi, RedistributorLpisState};
pub use msi_frames::{DataIsNumber, MessageSpis, MsiFrame, MsiFrames};
pub use options::{Behaviour, GicOptions, Identity};
pub use redistributor::Redistributor;
pub use state::{GicState, InterruptState, RedistributorState, SpiState};
