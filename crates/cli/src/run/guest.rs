//! A tiny guest under /dev/kvm that does the ledger's work: its handlers take interrupts, record what they saw, end
//! them, and halt in between.

mod chips;
mod code;
mod machine;
pub mod memory;
#[cfg(test)]
mod tests;
mod vcpu;

pub use chips::Chips;
pub use code::MOST_VCPUS;
pub use machine::KernelMachine;
pub use vcpu::VcpuReport;
