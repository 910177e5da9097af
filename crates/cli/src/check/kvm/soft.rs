//! VMs of doorbell.

use doorbell::kvm_abi::{Errno, GuestCalls};

use super::cripple::Fault;
use super::machines::{Binding, Machines};

/// VMs of doorbell, made anew for each program.
pub struct Doorbell;

impl Doorbell {
    /// Makes them, with a fault if one is wanted.
    pub fn new(_: Option<Fault>) -> Result<Self, Errno> {
        Err(Errno::NOSYS)
    }
}

impl Machines for Doorbell {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn vm(&self, _: usize) -> &dyn GuestCalls {
        unreachable!()
    }

    fn reset(&mut self, _: &[Binding]) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }
}
