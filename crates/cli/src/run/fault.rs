//! Faults made on purpose, which a run must find.

use std::{num::NonZeroU64, str::FromStr};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One event of so many is dropped on its way from the dispatcher to the route.
    Drop(NonZeroU64),
    /// This vCPU does not end one of its interrupts.
    StuckVcpu(u32),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| digits.parse().ok();
        match text.split_once('=') {
            Some(("drop", rest)) => rest.strip_prefix("1/").and_then(|digits| digits.parse().ok()).map(Self::Drop),
            Some(("stuck-vcpu", rest)) => number(rest).map(Self::StuckVcpu),
            _ => None,
        }
        .ok_or_else(|| "allowed are drop=1/N, N from 1, and stuck-vcpu=N, the number of a vCPU".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read_from_its_name() {
        assert_eq!("drop=1/1000".parse(), Ok(Fault::Drop(NonZeroU64::new(1000).unwrap())));
        assert_eq!("stuck-vcpu=2".parse(), Ok(Fault::StuckVcpu(2)));
        for bad in ["drop", "drop=1000", "drop=1/0", "drop=1/x", "stuck-vcpu=", "stuck-vcpu=-1", "lose=1/2", ""] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}
