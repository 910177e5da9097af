//! The local APICs are the kernel's, the IOAPIC is doorbell's.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use doorbell::MsiMessage;
use doorbell::chips::x86::ioapic::{IoApicOptions, Version};
use doorbell::kvm::{Entry, KvmOptions, Promotion, SPLIT_PINS, SplitChip, Vm};
use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmIoapicState, KvmLapicState};
use doorbell::manager::{IrqManager, Irqfd};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Chips, Outcome, call, kernel_lapic, prelude, routes, set_kernel_lapic, state_of, status};
use crate::check::kvm::guest::code::IOAPIC;

const WINDOW: u64 = 0x100;
/// What the kernel's local APICs offer only without its IOAPIC: a guest may suppress the broadcast of ends.
const CAN_SUPPRESS: u32 = 1 << 24;

/// A split chip.
pub struct Split {
    vm: Arc<Vm>,
    chip: SplitChip,
    irqs: IrqManager,
    bound: BTreeMap<(usize, u32), Irqfd>,
    lapics: Vec<KvmLapicState>,
}

fn make(vm: &Arc<Vm>) -> Result<(SplitChip, IrqManager), Errno> {
    let ioapic = IoApicOptions { version: Version::V11, ..IoApicOptions::default() };
    let chip = call(SplitChip::new(Arc::clone(vm), ioapic, KvmOptions::default().promotion(Promotion::Manual)))?;
    let irqs = chip.irqs().manager();
    call(irqs.set_routes(&routes(false)))?;
    Ok((chip, irqs))
}

impl Split {
    /// Makes it, for a VM without vCPUs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(vm: &VmFd, irqs: &Arc<Vm>) -> Result<Self, Errno> {
        let args = [SPLIT_PINS, 0, 0, 0];
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args, ..Default::default() };
        vm.enable_cap(&split).map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        let (chip, manager) = make(irqs)?;
        Ok(Self { vm: Arc::clone(irqs), chip, irqs: manager, bound: BTreeMap::new(), lapics: Vec::new() })
    }

    fn offset(address: u64) -> Option<u64> {
        address.checked_sub(IOAPIC).filter(|&offset| offset < WINDOW)
    }
}

impl Chips for Split {
    fn name(&self) -> &'static str {
        "doorbell, split"
    }

    fn in_kernel(&self) -> bool {
        true
    }

    fn hears_of_ends(&self) -> bool {
        true
    }

    fn adopt(&mut self, vcpus: &[&VcpuFd]) -> Result<(), Errno> {
        self.lapics = vcpus.iter().map(|fd| kernel_lapic(fd)).collect::<Result<_, _>>()?;
        (0..).zip(&mut self.lapics).for_each(|(vcpu, state)| prelude(vcpu, state, false));
        Ok(())
    }

    fn reset(&mut self, _: &VmFd, vcpus: &[&VcpuFd], _: bool) -> Result<(), Errno> {
        self.bound.clear();
        (self.chip, self.irqs) = make(&self.vm)?;
        vcpus.iter().zip(&self.lapics).try_for_each(|(fd, state)| set_kernel_lapic(fd, state))
    }

    fn message(&mut self, message: &MsiMessage) -> Outcome {
        status(call(self.irqs.signal_msi(message))?)
    }

    fn line(&mut self, gsi: u32, level: bool) -> Outcome {
        status(self.irqs.irq_line(gsi, level))
    }

    fn bind(&mut self, event: usize, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Outcome {
        let irqfd = call(self.irqs.irqfd_unrouted(gsi, fd, resample))?;
        self.bound.insert((event, gsi), irqfd);
        Ok(0)
    }

    fn unbind(&mut self, event: usize, gsi: u32, _: BorrowedFd<'_>) -> Outcome {
        self.bound.remove(&(event, gsi));
        Ok(0)
    }

    fn settle(&mut self) {
        while self.irqs.dispatcher().dispatch().is_ok_and(|ready| ready > 0) {}
    }

    fn before_entry(&mut self, _: u32, _: &mut VcpuFd) -> Result<Entry, Errno> {
        Ok(Entry::Run)
    }

    fn mmio_read(&mut self, _: u32, address: u64, data: &mut [u8]) {
        match Self::offset(address) {
            Some(offset) => self.chip.mmio_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn mmio_write(&mut self, _: u32, address: u64, data: &[u8]) -> Result<(), Errno> {
        Self::offset(address).map_or(Ok(()), |offset| call(self.chip.mmio_write(offset, data)))
    }

    fn ended(&mut self, vector: u8) {
        self.chip.end_of_interrupt(vector);
    }

    fn halt(&mut self, _: u32) {}

    fn lapic(&mut self, _: u32, fd: &VcpuFd) -> Result<KvmLapicState, Errno> {
        let mut state = kernel_lapic(fd)?;
        state.set_register(regs::VERSION, state.register(regs::VERSION) & !CAN_SUPPRESS);
        Ok(state)
    }

    fn ioapic(&mut self, _: &VmFd) -> Result<KvmIoapicState, Errno> {
        Ok(state_of(self.chip.ioapic()))
    }
}
