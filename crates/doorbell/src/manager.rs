//! `IrqManager`: what a VMM holds.
