//! The x86 controllers.
#![forbid(unsafe_code)]

pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pic;
mod pins;

pub use pins::PcPins;
