//! Faults that the check must find: a check that finds nothing has to be able to find something.

use doorbell::kvm_abi::types::{CHIP_IOAPIC, IRQFD_DEASSIGN, regs};
use doorbell::kvm_abi::{
    Answer, Errno, GuestCalls, KvmCalls, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd, KvmLapicState, KvmMsi,
};

/// What is wrong with doorbell on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A deassign with the wrong GSI removes nothing, and says so.
    DeassignErrno,
    /// A refused table empties the old one.
    RefusedTable,
    /// Remote IRR is not shown.
    RemoteIrr,
    /// A level message leaves no mark in TMR.
    TriggerMode,
    /// A message to all is counted once.
    BroadcastCount,
    /// Lowering a line is forgotten.
    LineStaysHigh,
    /// The EOI does not reach the IOAPIC.
    EndBroadcast,
    /// The guest cannot raise the task priority. Only in programs with a guest, as the next two.
    TaskPriority,
    /// What is in service holds nothing back.
    InService,
    /// An IPI to the sender itself is lost.
    SelfIpi,
    /// The 8259 pair does not hear of ends.
    PicEnd,
    /// The timer does not start.
    Timer,
}

/// A VM with a fault.
pub struct Crippled<V> {
    vm: V,
    fault: Option<Fault>,
}

impl<V: GuestCalls> Crippled<V> {
    /// A VM with this fault, or none.
    pub fn new(vm: V, fault: Option<Fault>) -> Self {
        Self { vm, fault }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn levels(&self) -> Vec<u64> {
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        let _ = self.vm.get_irqchip(&mut chip);
        chip.ioapic().redirtbl.to_vec()
    }

    fn end_without_broadcast(&self, vcpu: u32) -> Result<(), Errno> {
        let mut state = KvmLapicState::default();
        self.vm.get_lapic(vcpu, &mut state)?;
        let mut in_service = state.bitmap(regs::ISR);
        if let Some(highest) = state.vectors(regs::ISR).pop() {
            in_service[usize::from(highest) / 32] &= !(1 << (highest % 32));
        }
        state.set_bitmap(regs::ISR, in_service);
        self.vm.set_lapic(vcpu, &state).map(drop)
    }
}

impl<V: GuestCalls> KvmCalls for Crippled<V> {
    fn check_extension(&self, capability: u32) -> Answer {
        self.vm.check_extension(capability)
    }

    fn create_irqchip(&self) -> Answer {
        self.vm.create_irqchip()
    }

    fn create_vcpu(&self, id: u32) -> Answer {
        self.vm.create_vcpu(id)
    }

    fn irqfd(&self, request: &KvmIrqfd) -> Answer {
        let answer = self.vm.irqfd(request);
        let wrong = request.flags & IRQFD_DEASSIGN != 0 && request.gsi > 31;
        if wrong && answer.is_ok() && self.has(Fault::DeassignErrno) { Err(Errno::NOENT) } else { answer }
    }

    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer {
        let answer = self.vm.set_gsi_routing(nr, flags, entries);
        if answer.is_err() && self.has(Fault::RefusedTable) {
            self.vm.set_gsi_routing(0, 0, &[])?;
        }
        answer
    }

    fn irq_line(&self, request: KvmIrqLevel) -> Answer {
        if request.level == 0 && self.has(Fault::LineStaysHigh) { Ok(0) } else { self.vm.irq_line(request) }
    }

    fn irq_line_status(&self, request: KvmIrqLevel) -> Answer {
        self.vm.irq_line_status(request)
    }

    fn signal_msi(&self, message: &KvmMsi) -> Answer {
        let answer = self.vm.signal_msi(message);
        if self.has(Fault::BroadcastCount) { answer.map(|taken| taken.min(1)) } else { answer }
    }

    fn get_irqchip(&self, chip: &mut KvmIrqchip) -> Answer {
        let answer = self.vm.get_irqchip(chip);
        if chip.chip_id == CHIP_IOAPIC && self.has(Fault::RemoteIrr) {
            let mut state = chip.ioapic();
            state.redirtbl.iter_mut().for_each(|entry| *entry &= !(1 << 14));
            chip.set_ioapic(&state);
        }
        answer
    }

    fn set_irqchip(&self, chip: &KvmIrqchip) -> Answer {
        self.vm.set_irqchip(chip)
    }

    fn get_lapic(&self, vcpu: u32, state: &mut KvmLapicState) -> Answer {
        let answer = self.vm.get_lapic(vcpu, state);
        if self.has(Fault::TriggerMode) {
            state.set_bitmap(regs::TMR, [0; 8]);
        }
        answer
    }

    fn set_lapic(&self, vcpu: u32, state: &KvmLapicState) -> Answer {
        self.vm.set_lapic(vcpu, state)
    }

    fn settle(&self) {
        self.vm.settle();
    }
}

impl<V: GuestCalls> GuestCalls for Crippled<V> {
    fn acknowledge(&self, vcpu: u32) -> Result<Option<u8>, Errno> {
        self.vm.acknowledge(vcpu)
    }

    fn load(&self, vcpu: u32, address: u64) -> Result<u32, Errno> {
        self.vm.load(vcpu, address)
    }

    fn store(&self, vcpu: u32, address: u64, value: u32) -> Result<(), Errno> {
        let is_end = address == 0xfee0_0000 + regs::EOI as u64;
        let level = || self.levels().iter().any(|entry| entry >> 14 & 1 == 1);
        if is_end && self.has(Fault::EndBroadcast) && level() {
            return self.end_without_broadcast(vcpu);
        }
        self.vm.store(vcpu, address, value)
    }

    fn port_load(&self, vcpu: u32, port: u16) -> Result<u8, Errno> {
        self.vm.port_load(vcpu, port)
    }

    fn port_store(&self, vcpu: u32, port: u16, value: u8) -> Result<(), Errno> {
        self.vm.port_store(vcpu, port, value)
    }
}
