//! The local APICs.
