//! The machine under /dev/kvm: a guest whose handlers keep the ledger, on the kernel's chips, on half of them, or on
//! doorbell's.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use doorbell::{
    irqfd::DispatchThread,
    kvm::{KvmOptions, Promotion},
    manager::Irqfd,
    route::{Pin, Route, RouteEntry},
};

use super::{
    coordinator::{Ended, Running},
    guest::{Chips, KernelMachine},
    ledger::{Ledger, Slot},
    plan::{Plan, Vector, Wire, message, redirection},
    process::Doorbell,
    report::Problem,
};

/// The kernel's number of the IOAPIC.
const IOAPIC: u8 = 2;
/// The first GSI of the MSI-X vectors: those below are the IOAPIC's pins.
const FIRST_MESSAGE: u32 = 24;

/// A machine under /dev/kvm.
pub struct Kernel {
    chips: Chips,
    gsis: Vec<u32>,
    // Dropped in this order: no event arrives once the thread has gone.
    dispatching: DispatchThread,
    irqfds: Vec<Irqfd>,
    machine: KernelMachine,
}

impl Kernel {
    /// Makes the VM, routes and binds every vector, and starts the guest. Where the kernel has local APICs, all eventfds
    /// that it can take go to it, with one routing call.
    ///
    /// # Errors
    /// One line.
    pub fn start(
        chips: Chips,
        plan: &Plan,
        ledger: &Arc<Ledger>,
        memory: BorrowedFd<'_>,
        doorbells: &[Doorbell],
    ) -> Result<Self, String> {
        let options = KvmOptions::default().promotion(Promotion::Manual);
        let mut machine = KernelMachine::new(chips, ledger, memory, options)?;
        let mut routes = Vec::new();
        let mut gsis = Vec::new();
        let mut next = FIRST_MESSAGE;
        for vector in &plan.vectors {
            match vector.wire {
                Wire::MsiX { .. } => {
                    routes.push(RouteEntry { gsi: next, route: Route::Msi(message(vector.slot)) });
                    gsis.push(next);
                    next += 1;
                }
                Wire::Line(line) => {
                    let gsi = u32::from(line.pin);
                    if !gsis.contains(&gsi) {
                        routes.push(RouteEntry { gsi, route: Route::Pin(Pin { chip: IOAPIC, pin: line.pin }) });
                        machine.set_redirection(line.pin, redirection(vector.slot.vcpu, line))?;
                    }
                    gsis.push(gsi);
                }
            }
        }
        let irqs = machine.manager().clone();
        irqs.set_routes(&routes).map_err(|error| format!("the routes: {error}"))?;
        machine.start(ledger)?;
        let mut irqfds = Vec::new();
        for (doorbell, &gsi) in doorbells.iter().zip(&gsis) {
            let bound = irqs.routed(gsi).and_then(|routed| match &doorbell.resample {
                Some(resample) => irqs.irqfd_resample(routed, doorbell.eventfd.as_fd(), resample.as_fd()),
                None => irqs.irqfd(routed, doorbell.eventfd.as_fd()),
            });
            irqfds.push(bound.map_err(|error| format!("an irqfd for GSI {gsi}: {error}"))?);
        }
        if let Some(kernel) = machine.kernel_irqs() {
            kernel.promote().map_err(|error| format!("the kernel's routes: {error}"))?;
        }
        let thread = irqs.dispatcher().spawn("dispatcher");
        let dispatching = thread.map_err(|error| format!("the dispatcher's thread: {error}"))?;
        Ok(Self { chips, gsis, dispatching, irqfds, machine })
    }
}

impl Running for Kernel {
    fn path(&self, index: usize, vector: &Vector) -> String {
        let Slot { vcpu, .. } = vector.slot;
        let (gsi, arrives) = (self.gsis[index], vector.arrives_as());
        let (ioapic, apic) = match self.chips {
            Chips::Kernel => ("KVM IOAPIC", "KVM local APIC"),
            Chips::Split => ("IOAPIC", "KVM local APIC"),
            Chips::None => ("IOAPIC", "local APIC"),
        };
        match vector.wire {
            Wire::MsiX { .. } => format!("irqfd → GSI {gsi} → {apic} {vcpu} → {arrives:#x}"),
            Wire::Line(line) => {
                let (pin, end) = (line.pin, if line.resample { " → resample" } else { "" });
                format!("irqfd → GSI {gsi} → {ioapic} pin {pin} → {apic} {vcpu} → {arrives:#x}{end}")
            }
        }
    }

    fn stop(self: Box<Self>) -> Ended {
        let Self { dispatching, irqfds, machine, .. } = *self;
        let mut ended = Ended::default();
        if let Err(error) = dispatching.stop() {
            ended.problems.push(Problem(format!("the dispatcher: {error}")));
        }
        drop(irqfds);
        for (vcpu, report) in machine.stop().into_iter().enumerate() {
            if let Err(error) = report {
                ended.problems.push(Problem(format!("vCPU {vcpu}: {error}")));
            }
        }
        ended
    }
}
