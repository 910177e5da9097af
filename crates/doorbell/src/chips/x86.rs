//! The x86 controllers.
pub mod ioapic;
pub mod lapic;
