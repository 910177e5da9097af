//! The IOAPIC.
