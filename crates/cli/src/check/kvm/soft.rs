//! VMs of doorbell.

use doorbell::kvm_abi::{Errno, GuestCalls, SoftVm, SoftVmOptions};

use super::call::VCPUS;
use super::cripple::{Crippled, Fault};
use super::machines::{Binding, Machines, furnish};

/// VMs of doorbell, made anew for each program.
pub struct Doorbell {
    vms: [Crippled<SoftVm>; 2],
    fault: Option<Fault>,
}

impl Doorbell {
    /// Makes them, with a fault if one is wanted.
    ///
    /// # Errors
    /// Where the operating system has no more descriptors.
    pub fn new(fault: Option<Fault>) -> Result<Self, Errno> {
        Ok(Self { vms: make(fault)?, fault })
    }
}

fn make(fault: Option<Fault>) -> Result<[Crippled<SoftVm>; 2], Errno> {
    let vms = VCPUS.map(|vcpus| SoftVm::new(SoftVmOptions { vcpus, ..SoftVmOptions::default() }));
    vms.iter().enumerate().try_for_each(|(number, vm)| furnish(vm, number))?;
    for vm in &vms {
        // As the kernel's VMs are after a reset: the prelude sets a table.
        doorbell::kvm_abi::KvmCalls::set_gsi_routing(vm, 0, 0, &[])?;
    }
    Ok(vms.map(|vm| Crippled::new(vm, fault)))
}

impl Machines for Doorbell {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn vm(&self, number: usize) -> &dyn GuestCalls {
        &self.vms[number]
    }

    fn reset(&mut self, _: &[Binding]) -> Result<(), Errno> {
        self.vms = make(self.fault)?;
        Ok(())
    }
}
