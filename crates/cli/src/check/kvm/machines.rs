//! The two VMs of one side, in the state in which every program starts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use doorbell::kvm::abi::{KernelVm, Kvm};
use doorbell::kvm_abi::types::{
    CHIP_IOAPIC, CHIP_PIC_MASTER, CHIP_PIC_SLAVE, IOAPIC_PINS, IRQFD_DEASSIGN, IRQFD_RESAMPLE, PIC_PINS, regs,
};
use doorbell::kvm_abi::{
    Errno, GuestCalls, KvmCalls, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd, KvmLapicState, KvmPicState,
};
use rustix::event::{EventfdFlags, eventfd};

use super::call::VCPUS;
use super::program::{CLOCK, LEGACY_GSIS};

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
    pics: [KvmIrqchip; 2],
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
        let mut pics = [CHIP_PIC_MASTER, CHIP_PIC_SLAVE].map(KvmIrqchip::of);
        let mut lapics = [Vec::new(), Vec::new()];
        for (number, vm) in vms.iter().enumerate() {
            furnish(vm, number)?;
            vm.get_irqchip(&mut ioapics[number])?;
            pics.iter_mut().try_for_each(|pic| vm.get_irqchip(pic).map(drop))?;
            for vcpu in 0..VCPUS[number] {
                let mut state = KvmLapicState::default();
                vm.get_lapic(vcpu, &mut state)?;
                lapics[number].push(state);
            }
        }
        Ok(Self { vms, ioapics, pics, lapics, spare: [new_event()?, new_event()?] })
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
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        vm.get_irqchip(&mut chip)?;
        self.release(vm, chip.ioapic().irr)?;
        self.release_pics(vm)?;
        vm.set_irqchip(&self.ioapics[number])?;
        for (vcpu, state) in (0..).zip(&self.lapics[number]) {
            vm.set_lapic(vcpu, state)?;
        }
        vm.set_gsi_routing(0, 0, &[])?;
        Ok(())
    }

    /// Pins that are still high are held by the resample source: a binding that comes and goes lowers it.
    fn release(&self, vm: &KernelVm, gsis: u32) -> Result<(), Errno> {
        let [fd, resamplefd] = [&self.spare[0], &self.spare[1]].map(|fd| fd.as_raw_fd());
        for gsi in (0..32).filter(|gsi| gsis >> gsi & 1 == 1) {
            let flags = IRQFD_RESAMPLE;
            let (fd, resamplefd) = (fd as u32, resamplefd as u32);
            vm.irqfd(&KvmIrqfd { fd, gsi, flags, resamplefd, ..KvmIrqfd::default() })?;
            deassign(vm, fd as i32, gsi)?;
        }
        Ok(())
    }

    fn release_pics(&self, vm: &KernelVm) -> Result<(), Errno> {
        let pins = 2 * u32::from(PIC_PINS);
        let table: Vec<_> = (0..pins).map(|gsi| legacy_entry(gsi, gsi)).collect();
        vm.set_gsi_routing(pins, 0, &table)?;
        // While all pins are level, those whose line is still high after this ask.
        for mut chip in self.pics {
            chip.set_pic(&KvmPicState { elcr: 0xff, ..chip.pic() });
            vm.set_irqchip(&chip)?;
        }
        (0..pins).try_for_each(|irq| vm.irq_line(KvmIrqLevel { irq, level: 0 }).map(drop))?;
        let mut stuck = 0;
        for (at, mut chip) in self.pics.into_iter().enumerate() {
            vm.get_irqchip(&mut chip)?;
            stuck |= u32::from(chip.pic().irr) << (8 * at);
        }
        self.release(vm, stuck)?;
        self.pics.iter().try_for_each(|chip| vm.set_irqchip(chip).map(drop))
    }
}

/// An entry that leads to a pin of the 8259 pair, 0 to 15.
pub fn legacy_entry(gsi: u32, pin: u32) -> KvmIrqRoutingEntry {
    let (chip, pins) = ([CHIP_PIC_MASTER, CHIP_PIC_SLAVE], u32::from(PIC_PINS));
    KvmIrqRoutingEntry::pin(gsi, chip[(pin / pins) as usize], pin % pins)
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
/// pins of the IOAPIC, the first 16 of these on the 8259 pair too (but not the clock's), the next 8 as messages to vCPU 0 and
/// 1, and [`LEGACY_GSIS`] on the 8259 pair alone.
///
/// # Errors
/// A call that failed and may not.
pub fn prelude(machines: &dyn Machines) -> Result<(), Errno> {
    let mut table: Vec<_> = (0..IOAPIC_PINS as u32).map(|pin| KvmIrqRoutingEntry::pin(pin, CHIP_IOAPIC, pin)).collect();
    table.extend((24..32).map(|gsi| KvmIrqRoutingEntry::msi(gsi, 0xfee0_0000 | u64::from(gsi & 1) << 12, 0x30 + gsi)));
    table.extend((0..16).filter(|gsi| *gsi != CLOCK).map(|gsi| legacy_entry(gsi, gsi)));
    table.extend(LEGACY_GSIS.map(|gsi| legacy_entry(gsi, gsi - LEGACY_GSIS.start)));
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
