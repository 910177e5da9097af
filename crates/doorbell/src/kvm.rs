//! The stations that the kernel takes over: full, split, none.
pub mod abi;
