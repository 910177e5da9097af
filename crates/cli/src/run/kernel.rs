//! The machine on the kernel's chips: a guest under /dev/kvm whose handlers keep the ledger.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use doorbell::kvm::KernelRoute;

use super::{
    coordinator::{Ended, Running},
    guest::{self, KernelMachine},
    ledger::{Ledger, Slot},
    plan::{Plan, Vector, Wire, message, redirection},
    process::Doorbell,
    report::Problem,
};

/// The kernel's number of the IOAPIC.
const IOAPIC: u8 = 2;
/// The first GSI of the MSI-X vectors: those below are the IOAPIC's pins.
const FIRST_MESSAGE: u32 = 24;

/// A machine on the kernel's chips.
pub struct Kernel {
    machine: KernelMachine,
    gsis: Vec<u32>,
}

impl Kernel {
    /// Makes the VM, routes and binds every vector, and starts the guest.
    ///
    /// # Errors
    /// One line.
    pub fn start(
        plan: &Plan,
        ledger: &Arc<Ledger>,
        memory: BorrowedFd<'_>,
        doorbells: &[Doorbell],
    ) -> Result<Self, String> {
        let mut machine = KernelMachine::new(guest::Chips::Kernel, ledger, memory)?;
        let mut routes = Vec::new();
        let mut gsis = Vec::new();
        let mut next = FIRST_MESSAGE;
        for vector in &plan.vectors {
            match vector.wire {
                Wire::MsiX { .. } => {
                    routes.push(KernelRoute::Msi { gsi: next, message: message(vector.slot) });
                    gsis.push(next);
                    next += 1;
                }
                Wire::Line(line) => {
                    let gsi = u32::from(line.pin);
                    if !gsis.contains(&gsi) {
                        routes.push(KernelRoute::Pin { gsi, chip: IOAPIC, pin: line.pin });
                        machine.set_redirection(line.pin, redirection(vector.slot.vcpu, line))?;
                    }
                    gsis.push(gsi);
                }
            }
        }
        machine.irqs().set_routes(&routes).map_err(|error| format!("the kernel's routing table: {error}"))?;
        machine.start(ledger)?;
        for (doorbell, &gsi) in doorbells.iter().zip(&gsis) {
            let resample = doorbell.resample.as_ref().map(AsFd::as_fd);
            let bound = machine.irqs().assign(doorbell.eventfd.as_fd(), gsi, resample);
            bound.map_err(|error| format!("an irqfd for GSI {gsi}: {error}"))?;
        }
        Ok(Self { machine, gsis })
    }
}

impl Running for Kernel {
    fn path(&self, index: usize, vector: &Vector) -> String {
        let Slot { vcpu, .. } = vector.slot;
        let (gsi, arrives) = (self.gsis[index], vector.arrives_as());
        match vector.wire {
            Wire::MsiX { .. } => format!("irqfd → GSI {gsi} → KVM local APIC {vcpu} → {arrives:#x}"),
            Wire::Line(line) => {
                let (pin, end) = (line.pin, if line.resample { " → resample" } else { "" });
                format!("irqfd → GSI {gsi} → KVM IOAPIC pin {pin} → local APIC {vcpu} → {arrives:#x}{end}")
            }
        }
    }

    fn stop(self: Box<Self>) -> Ended {
        let mut ended = Ended::default();
        for (vcpu, report) in self.machine.stop().into_iter().enumerate() {
            match report {
                Ok(_) => {}
                Err(error) => ended.problems.push(Problem(format!("vCPU {vcpu}: {error}"))),
            }
        }
        ended
    }
}
