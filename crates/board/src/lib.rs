//! What a guest needs around its interrupt controllers, so that a kernel boots: small devices whose interrupts go
//! through [`doorbell`].
//!
//! | module | device | documentation |
//! |---|---|---|
//! | [`pl011`] | UART of Arm machines | Arm DDI 0183 |
//! | [`pl031`] | real-time clock of Arm machines | Arm DDI 0224 |
//! | [`uart16550`] | UART of PCs | data sheet of the PC16550D |
//! | [`pci`] | PCI host bridge with ECAM, and the header of its functions | PCI Express Base Specification 5.0 |
//! | [`virtio`] | disk, console, random numbers, network card with a loop-back | VIRTIO 1.2 |
//!
//! A device is a [`Mmio`]: registers at offsets, behind a lock of its own, that any vCPU's thread may access. It drives an
//! interrupt line through a [`Wire`]: any closure that takes the level, such as one around `IrqManager::irq_line` or a
//! [`PinInput`](doorbell::PinInput). A wire is told only changes, in their order, while the device's lock is held: it must
//! not come back to the device.
//!
//! Whatever a guest writes: no panic, no unbounded work, and no memory that it sizes.
#![forbid(unsafe_code)]

pub mod mmio;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod uart16550;
pub mod virtio;
mod wire;

pub use mmio::Mmio;
pub use wire::Wire;
