//! The registers of the memory-mapped frames (Arm IHI 0069, "The GIC programmers' model").
//!
//! Layouts only: what a store does stands in [`distributor`](super::distributor) and [`redistributor`](super::redistributor).

pub mod distributor;
pub mod fields;
pub mod identification;
pub mod redistributor;
