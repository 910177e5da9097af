//! The kernel's own chips, asked to do the same work.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_lapic_state, kvm_msi,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rows::Work;

/// The address of the local APIC with id 0.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// How many vectors are brought up in `vectors-up`.
pub const VECTORS: u32 = 1024;

/// A machine with the kernel's full chip and one vCPU that never runs.
struct Vm {
    vm: VmFd,
    vcpu: VcpuFd,
}

impl Vm {
    /// A machine whose local APIC is enabled.
    fn new() -> Result<Self, String> {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(sentence)?;
        vm.create_irq_chip().map_err(sentence)?;
        let vcpu = vm.create_vcpu(0).map_err(sentence)?;
        let vm = Self { vm, vcpu };
        vm.enable()?;
        Ok(vm)
    }

    /// Enables the local APIC.
    fn enable(&self) -> Result<(), String> {
        let mut lapic = self.vcpu.get_lapic().map_err(sentence)?;
        // The spurious vector register's software-enable bit.
        lapic.regs[0xf1] |= 1;
        self.vcpu.set_lapic(&lapic).map_err(sentence)
    }

    /// Whether a vector is in the IRR.
    fn is_pending(&self, vector: usize) -> Result<bool, String> {
        let lapic: kvm_lapic_state = self.vcpu.get_lapic().map_err(sentence)?;
        Ok(lapic.regs[0x200 + 0x10 * (vector / 32) + vector % 32 / 8] as u8 >> (vector % 8) & 1 != 0)
    }
}

/// A VM with the kernel's full chip, for doorbell to work on.
pub fn new_vm() -> Result<Arc<doorbell::kvm::Vm>, String> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(sentence)?;
    vm.create_irq_chip().map_err(sentence)?;
    // SAFETY: `vm` is open for the length of this call, which keeps a duplicate.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    doorbell::kvm::Vm::new(fd).map(Arc::new).map_err(|error| error.to_string())
}

/// Why the kernel's figures cannot be had here, if so.
pub fn missing() -> Option<String> {
    Vm::new().err()
}

/// KVM_SIGNAL_MSI.
pub fn signal_msi() -> Result<Work, String> {
    let vm = Vm::new()?;
    let message = kvm_msi { address_lo: MSI_ADDRESS, data: 0x41, ..Default::default() };
    vm.vm.signal_msi(message).map_err(sentence)?;
    if !vm.is_pending(0x41)? {
        return Err("KVM_SIGNAL_MSI returned and the vector is not in the IRR".into());
    }
    Ok(timed(move || {
        let _ = vm.vm.signal_msi(message);
    }))
}

/// KVM_IRQ_LINE up and down on a pin of the IOAPIC.
pub fn irq_line_pulse() -> Result<Work, String> {
    let vm = Vm::new()?.vm;
    Ok(timed(move || {
        let _ = vm.set_irq_line(23, true);
        let _ = vm.set_irq_line(23, false);
    }))
}

/// KVM_SET_GSI_ROUTING of a full table.
pub fn set_routing() -> Result<Work, String> {
    let vm = Vm::new()?.vm;
    let mut table = routing(4096)?;
    let mut change = 0;
    Ok(timed(move || {
        change ^= 1;
        table.as_mut_slice()[100] = entry(100, 0x41 + change);
        let _ = vm.set_gsi_routing(&table);
    }))
}

/// A write to an eventfd that is bound to a GSI with a message: what it costs the writer until it is pending.
pub fn irqfd_write() -> Result<Work, String> {
    let vm = Vm::new()?;
    vm.vm.set_gsi_routing(&routing(64)?).map_err(sentence)?;
    let eventfd = EventFd::new(EFD_NONBLOCK).map_err(|error| error.to_string())?;
    vm.vm.register_irqfd(&eventfd, 32).map_err(sentence)?;
    eventfd.write(1).map_err(|error| error.to_string())?;
    if !vm.is_pending(0x41)? {
        return Err("an irqfd was written and the vector is not in the IRR".into());
    }
    Ok(timed(move || {
        let _ = eventfd.write(1);
    }))
}

/// An irqfd assigned and deassigned.
pub fn irqfd_assign() -> Result<Work, String> {
    let vm = Vm::new()?.vm;
    vm.set_gsi_routing(&routing(64)?).map_err(sentence)?;
    let eventfd = EventFd::new(EFD_NONBLOCK).map_err(|error| error.to_string())?;
    Ok(timed(move || {
        let _ = vm.register_irqfd(&eventfd, 32);
        let _ = vm.unregister_irqfd(&eventfd, 32);
    }))
}

/// Vectors brought up one by one, each with a whole table and an irqfd, as a VMM does that does not collect them.
pub fn vectors_up() -> Result<Work, String> {
    let vm = Vm::new()?.vm;
    let eventfds: Vec<EventFd> = (0..VECTORS)
        .map(|_| EventFd::new(EFD_NONBLOCK).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    Ok(Box::new(move |times| {
        (0..times).fold(Duration::ZERO, |sum, _| {
            let started = Instant::now();
            for (vector, eventfd) in (0..VECTORS).zip(&eventfds) {
                let table = routing(vector + 1).expect("1,024 entries fit");
                let _ = vm.set_gsi_routing(&table);
                let _ = vm.register_irqfd(eventfd, vector);
            }
            let took = started.elapsed();
            for (vector, eventfd) in (0..VECTORS).zip(&eventfds) {
                let _ = vm.unregister_irqfd(eventfd, vector);
            }
            sum + took
        })
    }))
}

/// Messages for GSIs 0 to `count` - 1.
fn routing(count: u32) -> Result<KvmIrqRouting, String> {
    let entries: Vec<_> = (0..count).map(|gsi| entry(gsi, 0x41)).collect();
    KvmIrqRouting::from_entries(&entries).map_err(|error| format!("{count} routes: {error:?}"))
}

fn entry(gsi: u32, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo: MSI_ADDRESS, data, ..Default::default() };
    entry
}

fn timed(mut call: impl FnMut() + 'static) -> Work {
    Box::new(move |times| {
        let started = Instant::now();
        for _ in 0..times {
            call();
        }
        started.elapsed()
    })
}

fn sentence(error: kvm_ioctls::Error) -> String {
    error.to_string()
}
