//! Any bytes as guest accesses to an MSI-X table, its PBA and its capability, with events in between, against a model.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    doorbell::pci::msix::program::fuzz(program);
});
