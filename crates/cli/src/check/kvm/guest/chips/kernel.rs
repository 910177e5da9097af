//! All chips are the kernel's: what doorbell's are compared with.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use doorbell::MsiMessage;
use doorbell::kvm::abi::{KernelVm, Kvm};
use doorbell::kvm::{Entry, Vm};
use doorbell::kvm_abi::types::IOAPIC_PINS;
use doorbell::kvm_abi::{Errno, KvmCalls, KvmIoapicState, KvmLapicState, KvmPicState};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Chips, EXTERNAL, Outcome, Pics, call, kernel_lapic, kernel_routes, prelude, set_kernel_lapic, status};
use crate::check::kvm::machines::new_event;

/// The kernel's chips.
pub struct Kernel {
    irqs: Arc<Vm>,
    /// A VM that is only kept to wait for the kernel's workers.
    settler: KernelVm,
    /// What is bound: the number of the event, its GSI, and a duplicate of its descriptor.
    bound: Vec<(usize, u32, OwnedFd)>,
    ioapic: kvm_irqchip,
    pics: [kvm_irqchip; 2],
    lapics: Vec<KvmLapicState>,
    spare: [OwnedFd; 2],
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

fn get_ioapic(vm: &VmFd) -> Result<kvm_irqchip, Errno> {
    get(vm, KVM_IRQCHIP_IOAPIC)
}

fn get(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, Errno> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(errno)?;
    Ok(chip)
}

fn read(chip: &kvm_irqchip) -> KvmIoapicState {
    // SAFETY: the kernel wrote the state of an IOAPIC, as `chip_id` asked, and any bytes are a valid one; of an entry, the
    // whole word is read.
    unsafe {
        let kvm_bindings::kvm_ioapic_state { base_address, ioregsel, id, irr, pad, redirtbl } = chip.chip.ioapic;
        KvmIoapicState { base_address, ioregsel, id, irr, pad, redirtbl: redirtbl.map(|entry| entry.bits) }
    }
}

impl Kernel {
    /// Makes them, for a VM without vCPUs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(kvm: &Arc<Kvm>, vm: &VmFd, irqs: &Arc<Vm>) -> Result<Self, Errno> {
        vm.create_irq_chip().map_err(errno)?;
        Ok(Self {
            irqs: Arc::clone(irqs),
            settler: kvm.create_vm()?,
            bound: Vec::new(),
            ioapic: get_ioapic(vm)?,
            pics: [get(vm, KVM_IRQCHIP_PIC_MASTER)?, get(vm, KVM_IRQCHIP_PIC_SLAVE)?],
            lapics: Vec::new(),
            spare: [new_event()?, new_event()?],
        })
    }

    /// A pin that is still latched is held by the resample source: a binding that comes and goes lowers it.
    fn lower_resampled(&self, vm: &VmFd) -> Result<(), Errno> {
        let stuck = read(&get_ioapic(vm)?).irr;
        let [fd, resample] = [self.spare[0].as_fd(), self.spare[1].as_fd()];
        for gsi in (0..IOAPIC_PINS as u32).filter(|pin| stuck >> pin & 1 == 1) {
            call(self.irqs.assign(fd, gsi, Some(resample)))?;
            call(self.irqs.deassign(fd, gsi))?;
        }
        Ok(())
    }
}

impl Chips for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn in_kernel(&self) -> bool {
        true
    }

    fn adopt(&mut self, vcpus: &[&VcpuFd]) -> Result<(), Errno> {
        self.lapics = vcpus.iter().map(|fd| kernel_lapic(fd)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn reset(&mut self, vm: &VmFd, vcpus: &[&VcpuFd], pic: bool) -> Result<(), Errno> {
        for (_, gsi, fd) in self.bound.drain(..) {
            call(self.irqs.deassign(fd.as_fd(), gsi))?;
        }
        self.settler.settle();
        // All entries masked: what the lines do from here on arrives nowhere.
        vm.set_irqchip(&self.ioapic).map_err(errno)?;
        call(self.irqs.set_routes(&kernel_routes()))?;
        let lines = (0..IOAPIC_PINS as u32).chain(EXTERNAL..EXTERNAL + 16);
        lines.into_iter().try_for_each(|gsi| call(self.irqs.line(gsi, false)).map(drop))?;
        // Twice: while one is set, the other may still ask.
        for chip in self.pics.iter().rev().chain(&self.pics) {
            vm.set_irqchip(chip).map_err(errno)?;
        }
        self.lower_resampled(vm)?;
        vm.set_irqchip(&self.ioapic).map_err(errno)?;
        for ((vcpu, fd), state) in (0..).zip(vcpus).zip(&self.lapics) {
            let mut state = *state;
            prelude(vcpu, &mut state, pic);
            set_kernel_lapic(fd, &state)?;
        }
        Ok(())
    }

    fn message(&mut self, message: &MsiMessage) -> Outcome {
        status(call(self.irqs.signal_msi(message))?)
    }

    fn line(&mut self, gsi: u32, level: bool) -> Outcome {
        status(call(self.irqs.line(gsi, level))?)
    }

    fn bind(&mut self, event: usize, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Outcome {
        call(self.irqs.assign(fd, gsi, resample))?;
        self.bound.push((event, gsi, fd.try_clone_to_owned().map_err(|_| Errno::MFILE)?));
        Ok(0)
    }

    fn unbind(&mut self, event: usize, gsi: u32, fd: BorrowedFd<'_>) -> Outcome {
        call(self.irqs.deassign(fd, gsi))?;
        self.bound.retain(|bound| (bound.0, bound.1) != (event, gsi));
        Ok(0)
    }

    fn settle(&mut self) {
        self.settler.settle();
    }

    fn before_entry(&mut self, _: u32, _: &mut VcpuFd) -> Result<Entry, Errno> {
        Ok(Entry::Run)
    }

    fn mmio_read(&mut self, _: u32, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn ended(&mut self, _: u8) {}

    fn halt(&mut self, _: u32) {}

    fn lapic(&mut self, _: u32, fd: &VcpuFd) -> Result<KvmLapicState, Errno> {
        kernel_lapic(fd)
    }

    fn pics(&mut self, vm: &VmFd) -> Result<Pics, Errno> {
        let pic = |chip_id| -> Result<KvmPicState, Errno> {
            // SAFETY: the kernel wrote the state of an 8259, as `chip_id` asked, and any bytes are a valid one.
            let state = unsafe { get(vm, chip_id)?.chip.pic };
            Ok(KvmPicState {
                last_irr: state.last_irr,
                irr: state.irr,
                imr: state.imr,
                isr: state.isr,
                priority_add: state.priority_add,
                irq_base: state.irq_base,
                special_mask: state.special_mask,
                auto_eoi: state.auto_eoi,
                elcr: state.elcr,
                ..KvmPicState::default()
            })
        };
        Ok([pic(KVM_IRQCHIP_PIC_MASTER)?, pic(KVM_IRQCHIP_PIC_SLAVE)?])
    }

    fn ioapic(&mut self, vm: &VmFd) -> Result<KvmIoapicState, Errno> {
        Ok(read(&get_ioapic(vm)?))
    }
}
