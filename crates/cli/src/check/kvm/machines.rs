//! The two VMs of one side, in the state in which every program starts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use doorbell::kvm::abi::{KernelVm, Kvm};
use doorbell::kvm_abi::types::{CHIP_IOAPIC, IOAPIC_PINS, IRQFD_DEASSIGN, IRQFD_RESAMPLE, regs};
use doorbell::kvm_abi::{
    Errno, GuestCalls, KvmCalls, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd, KvmLapicState,
};
use rustix::event::{EventfdFlags, eventfd};

use super::call::VCPUS;

/// A binding that a program made: VM, descriptor, GSI.
pub type Binding = (usize, i32, u32);

/// Two VMs that programs run on, one after the other.
pub trait Machines {
    /// How the side is called in a report.
    fn name(&self) -> &'static str;

    /// One of the two.
    fn vm(&self, number: usize) -> &dyn GuestCalls;

    /// Back to the state after reset, whatever a program left, with these bindings still there.
    ///
    /// # Errors
    /// A call that failed and may not.
    fn reset(&mut self, bindings: &[Binding]) -> Result<(), Errno>;
}

/// A new eventfd that does not block.
pub fn new_event() -> Result<OwnedFd, Errno> {
    Ok(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

fn deassign(vm: &dyn GuestCalls, fd: i32, gsi: u32) -> Result<i32, Errno> {
    vm.irqfd(&KvmIrqfd { fd: fd as u32, gsi, flags: IRQFD_DEASSIGN, ..KvmIrqfd::default() })
}

/// Makes the chips and the vCPUs of a new VM.
///
/// # Errors
/// A call that failed and may not.
pub fn furnish(vm: &dyn GuestCalls, number: usize) -> Result<(), Errno> {
    vm.create_irqchip()?;
    (0..VCPUS[number]).try_for_each(|vcpu| vm.create_vcpu(vcpu).map(drop))
}

/// VMs of the kernel. They are kept from program to program, because the kernel takes 15 ms to let go of one.
pub struct Kernel {
    vms: [KernelVm; 2],
    ioapics: [KvmIrqchip; 2],
    lapics: [Vec<KvmLapicState>; 2],
    spare: [OwnedFd; 2],
}

impl Kernel {
    /// Makes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(kvm: &Arc<Kvm>) -> Result<Self, Errno> {
        let vms = [kvm.create_vm()?, kvm.create_vm()?];
        let mut ioapics = [KvmIrqchip::of(CHIP_IOAPIC); 2];
        let mut lapics = [Vec::new(), Vec::new()];
        for (number, vm) in vms.iter().enumerate() {
            furnish(vm, number)?;
            vm.get_irqchip(&mut ioapics[number])?;
            for vcpu in 0..VCPUS[number] {
                let mut state = KvmLapicState::default();
                vm.get_lapic(vcpu, &mut state)?;
                lapics[number].push(state);
            }
        }
        Ok(Self { vms, ioapics, lapics, spare: [new_event()?, new_event()?] })
    }

    fn reset_vm(&self, number: usize) -> Result<(), Errno> {
        let vm = &self.vms[number];
        for vcpu in 0..VCPUS[number] {
            vm.reset_vcpu(vcpu)?;
        }
        // All entries masked: what the lines do from here on arrives nowhere.
        vm.set_irqchip(&self.ioapics[number])?;
        let identity: Vec<_> =
            (0..IOAPIC_PINS as u32).map(|pin| KvmIrqRoutingEntry::pin(pin, CHIP_IOAPIC, pin)).collect();
        vm.set_gsi_routing(identity.len() as u32, 0, &identity)?;
        for irq in 0..IOAPIC_PINS as u32 {
            vm.irq_line(KvmIrqLevel { irq, level: 0 })?;
        }
        // A pin that is still latched is held by the resample source: a binding that comes and goes lowers it.
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        vm.get_irqchip(&mut chip)?;
        let stuck = chip.ioapic().irr;
        let [fd, resamplefd] = [&self.spare[0], &self.spare[1]].map(|fd| fd.as_raw_fd());
        for gsi in (0..IOAPIC_PINS as u32).filter(|pin| stuck >> pin & 1 == 1) {
            let flags = IRQFD_RESAMPLE;
            let (fd, resamplefd) = (fd as u32, resamplefd as u32);
            vm.irqfd(&KvmIrqfd { fd, gsi, flags, resamplefd, ..KvmIrqfd::default() })?;
            deassign(vm, fd as i32, gsi)?;
        }
        vm.set_irqchip(&self.ioapics[number])?;
        for (vcpu, state) in (0..).zip(&self.lapics[number]) {
            vm.set_lapic(vcpu, state)?;
        }
        vm.set_gsi_routing(0, 0, &[])?;
        Ok(())
    }
}

impl Machines for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn vm(&self, number: usize) -> &dyn GuestCalls {
        &self.vms[number]
    }

    fn reset(&mut self, bindings: &[Binding]) -> Result<(), Errno> {
        for &(vm, fd, gsi) in bindings {
            deassign(&self.vms[vm], fd, gsi)?;
        }
        self.vms[0].settle();
        (0..self.vms.len()).try_for_each(|number| self.reset_vm(number))
    }
}

/// The start of every program: all local APICs enabled, vCPU n in the logical flat group n, the first 24 GSIs on their
/// pins of the IOAPIC, the next 8 as messages to vCPU 0 and 1.
///
/// # Errors
/// A call that failed and may not.
pub fn prelude(machines: &dyn Machines) -> Result<(), Errno> {
    let mut table: Vec<_> = (0..IOAPIC_PINS as u32).map(|pin| KvmIrqRoutingEntry::pin(pin, CHIP_IOAPIC, pin)).collect();
    table.extend((24..32).map(|gsi| KvmIrqRoutingEntry::msi(gsi, 0xfee0_0000 | u64::from(gsi & 1) << 12, 0x30 + gsi)));
    for (number, vcpus) in VCPUS.into_iter().enumerate() {
        let vm = machines.vm(number);
        for vcpu in 0..vcpus {
            let mut state = KvmLapicState::default();
            vm.get_lapic(vcpu, &mut state)?;
            state.set_register(regs::SVR, 0x1ff);
            state.set_register(regs::LDR, 1 << (24 + vcpu));
            vm.set_lapic(vcpu, &state)?;
        }
        vm.set_gsi_routing(table.len() as u32, 0, &table)?;
    }
    Ok(())
}
