//! Interrupt controllers. No chip knows a station to its left, another architecture, or the operating system.
#[cfg(feature = "arm")]
pub mod arm;
#[cfg(feature = "x86")]
pub mod x86;
