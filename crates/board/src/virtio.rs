//! virtio devices on PCI (OASIS, "Virtual I/O Device (VIRTIO) Version 1.2"): modern only, split virtqueues, MSI-X.
//!
//! | module | device | section |
//! |---|---|---|
//! | [`block`] | a disk | 5.2 |
//! | [`console`] | a serial line | 5.3 |
//! | [`entropy`] | random numbers | 5.4 |
//! | [`net`] | a network card whose frames come back to it | 5.1 |
//!
//! A [`Device`] says what it is and does the work of its queues; [`VirtioPci`] is everything around it: configuration space,
//! BAR, feature negotiation, queues, interrupts by [`MsixTable`](doorbell::pci::MsixTable). Work is done by the thread that
//! notifies, a vCPU's, and is bounded: one notification, at most one turn of the queue.

pub mod block;
mod capabilities;
pub mod console;
pub mod entropy;
pub mod net;
mod pci;
mod queue;
#[cfg(test)]
mod tests;

pub use pci::VirtioPci;
pub use queue::{Chain, MOST_BYTES, QUEUE_SIZE, Rings, Span};

/// What a virtio device is, apart from its transport.
pub trait Device: Send {
    /// The device id of section 5.
    fn kind(&self) -> u16;

    /// The PCI class code: base class, sub-class, interface.
    fn class(&self) -> u32;

    /// The feature bits of its own that it offers, 0 to 23.
    fn features(&self) -> u32 {
        0
    }

    /// How many queues it has, 1 to 8.
    fn queues(&self) -> u16;

    /// Its configuration, which the driver can read.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver has notified a queue, or something happened outside ([`VirtioPci::with`]).
    fn work(&mut self, queue: u16, rings: &mut Rings<'_>);

    /// The driver has reset the device.
    fn reset(&mut self) {}
}
