//! All chips are doorbell's, and the kernel has none: vectors go in by `KVM_INTERRUPT`.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use doorbell::chips::x86::PcPins;
use doorbell::chips::x86::ioapic::{IoApic, IoApicOptions, Version};
use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
use doorbell::chips::x86::pic::{Pic, PicOptions};
use doorbell::kvm::{Entry, UserCpu};
use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmIoapicState, KvmLapicState, KvmPicState};
use doorbell::manager::{IrqManager, Irqfd, SoftOptions};
use doorbell::{MsiMessage, MsiTarget, PinInput, VcpuId};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Chips, Outcome, Pics, call, prelude, routes, state_of, status};
use crate::check::kvm::cripple::Fault;
use crate::check::kvm::guest::code::LAPIC;
use crate::check::kvm::guest::machine::VCPUS;

/// doorbell's chips.
pub struct Soft {
    ioapic: Arc<IoApic>,
    pic: Arc<Pic>,
    irqs: IrqManager,
    cpus: Vec<UserCpu>,
    bound: BTreeMap<(usize, u32), Irqfd>,
    fault: Option<Fault>,
}

impl Soft {
    /// Makes them, with a fault if one is wanted.
    ///
    /// # Errors
    /// Where the operating system has no more descriptors.
    pub fn new(fault: Option<Fault>, hears_pic: bool) -> Result<Self, Errno> {
        let apics = ApicSet::new(VCPUS, Arc::new(()), ApicOptions::default());
        let options = IoApicOptions { version: Version::V11, ..IoApicOptions::default() };
        let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, options));
        let msi = Arc::clone(&apics) as Arc<dyn MsiTarget>;
        let wire = Arc::clone(&apics);
        let intr = move |level| (0..VCPUS).for_each(|vcpu| wire.set_pic_output(VcpuId(vcpu), level));
        let pic = Arc::new(Pic::new(intr, PicOptions::default()));
        let pins = PcPins { pic: Arc::clone(&pic), ioapic: Arc::clone(&ioapic) };
        let irqs = call(IrqManager::soft(SoftOptions::new(msi, Arc::new(pins) as Arc<dyn PinInput>)))?;
        call(irqs.set_routes(&routes(true)))?;
        let mut cpus = Vec::new();
        for vcpu in 0..VCPUS {
            let mut apic = apics.local(VcpuId(vcpu)).ok_or(Errno::INVAL)?;
            let mut state = KvmLapicState { regs: apic.page() };
            prelude(vcpu, &mut state, hears_pic);
            call(apic.set_page(&state.regs))?;
            cpus.push(UserCpu::new(apic, Arc::clone(&ioapic), irqs.clone()).with_pic(Arc::clone(&pic)));
        }
        Ok(Self { ioapic, pic, irqs, cpus, bound: BTreeMap::new(), fault })
    }

    fn cpu(&mut self, vcpu: u32) -> &mut UserCpu {
        &mut self.cpus[vcpu as usize]
    }

    /// Takes the highest vector, or all, out of service, and nobody hears of it.
    fn forget_service(&mut self, vcpu: u32, all: bool) -> Result<(), Errno> {
        let apic = self.cpu(vcpu).apic();
        let mut state = KvmLapicState { regs: apic.page() };
        let mut in_service = state.bitmap(regs::ISR);
        if let Some(highest) = state.vectors(regs::ISR).pop() {
            in_service[usize::from(highest) / 32] &= !(1 << (highest % 32));
        }
        state.set_bitmap(regs::ISR, if all { [0; 8] } else { in_service });
        call(apic.set_page(&state.regs))
    }

    /// Whether a fault swallows a guest's store.
    fn swallows(&mut self, vcpu: u32, address: u64, data: &[u8]) -> Result<bool, Errno> {
        let register = address.wrapping_sub(LAPIC) as usize;
        let to_itself = |data: &[u8]| matches!(data, [_, _, high, _] if high >> 2 & 3 == 1);
        match self.fault {
            Some(Fault::TaskPriority) => Ok(register == regs::TPR),
            Some(Fault::Timer) => Ok(register == regs::TIMER_INITIAL),
            Some(Fault::SelfIpi) => Ok(register == regs::ICR_LOW && to_itself(data)),
            Some(Fault::EndBroadcast) if register == regs::EOI => {
                self.forget_service(vcpu, false)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl Chips for Soft {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn in_kernel(&self) -> bool {
        false
    }

    fn adopt(&mut self, _: &[&VcpuFd]) -> Result<(), Errno> {
        Ok(())
    }

    fn reset(&mut self, _: &VmFd, _: &[&VcpuFd], pic: bool) -> Result<(), Errno> {
        *self = Self::new(self.fault, pic)?;
        Ok(())
    }

    fn message(&mut self, message: &MsiMessage) -> Outcome {
        status(call(self.irqs.signal_msi(message))?)
    }

    fn line(&mut self, gsi: u32, level: bool) -> Outcome {
        if !level && self.fault == Some(Fault::LineStaysHigh) {
            return Ok(1);
        }
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

    fn before_entry(&mut self, vcpu: u32, port: &mut VcpuFd) -> Result<Entry, Errno> {
        let entry = call(self.cpu(vcpu).before_entry(port))?;
        if self.fault == Some(Fault::InService) {
            self.forget_service(vcpu, true)?;
        }
        Ok(entry)
    }

    fn mmio_read(&mut self, vcpu: u32, address: u64, data: &mut [u8]) {
        if !self.cpu(vcpu).mmio_read(address, data) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&mut self, vcpu: u32, address: u64, data: &[u8]) -> Result<(), Errno> {
        if !self.swallows(vcpu, address, data)? {
            self.cpu(vcpu).mmio_write(address, data);
        }
        Ok(())
    }

    fn port_read(&mut self, vcpu: u32, port: u16, data: &mut [u8]) {
        if !self.cpu(vcpu).port_read(port, data) {
            data.fill(0xff);
        }
    }

    fn port_write(&mut self, vcpu: u32, port: u16, data: &[u8]) {
        let is_end = matches!((port, data), (0x20 | 0xa0, [byte]) if byte >> 5 & 1 == 1 && byte & 0x18 == 0);
        if !(is_end && self.fault == Some(Fault::PicEnd)) {
            self.cpu(vcpu).port_write(port, data);
        }
    }

    fn ended(&mut self, _: u8) {}

    fn halt(&mut self, vcpu: u32) {
        self.cpu(vcpu).halt();
    }

    fn lapic(&mut self, vcpu: u32, _: &VcpuFd) -> Result<KvmLapicState, Errno> {
        Ok(KvmLapicState { regs: self.cpu(vcpu).apic().page() })
    }

    fn pics(&mut self, _: &VmFd) -> Result<Pics, Errno> {
        Ok([0, 1].map(|chip| {
            let state = self.pic.state(chip);
            KvmPicState {
                last_irr: state.last_irr,
                irr: state.irr,
                imr: state.imr,
                isr: state.isr,
                priority_add: state.priority_add,
                irq_base: state.irq_base,
                special_mask: state.special_mask.into(),
                auto_eoi: state.auto_eoi.into(),
                elcr: state.elcr,
                ..KvmPicState::default()
            }
        }))
    }

    fn ioapic(&mut self, _: &VmFd) -> Result<KvmIoapicState, Errno> {
        Ok(state_of(&self.ioapic))
    }
}
