//! A VM with the guest in it, and its vCPUs, which run one at a time and only when they are told to.

mod accept;

use std::sync::Arc;
use std::time::{Duration, Instant};

use doorbell::MsiMessage;
use doorbell::kvm::{Entry, Vm};
use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmIoapicState, KvmLapicState};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SMM, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use accept::{Window, accept, errno, step, write_back};

use super::alarm::Alarm;
use super::chips::{Chips, Kernel, Pics, kernel_lapic};
use super::code::{self, Accepts, Event, Operation, Policy, mailbox};
use crate::run::guest::memory::Mapping;

/// How many vCPUs the VM has.
pub const VCPUS: u32 = 3;
/// How many interrupts the handlers of one vCPU end by themselves in one call; the next one stays in service. Without an
/// end to it, a line that stays high would keep the guest busy for ever.
pub const ENDS: u32 = 6;
/// How often a vCPU that may have halted is looked at.
const LOOK: Duration = Duration::from_micros(400);
/// A guest that has not come to rest after so many exits, or by then, is stuck.
const MOST_EXITS: u32 = 2_000;
/// See [`MOST_EXITS`].
const PATIENCE: Duration = Duration::from_secs(2);
/// Where KVM may keep three pages of its own.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What became of a vCPU that was told to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It has done it and waits in its idle loop; the operation's answer.
    Idle(u32),
    /// It has halted, now or earlier, and nothing has woken it.
    Halted,
    /// It was reset by an INIT and waits for a start-up interrupt.
    WaitsForStart,
    /// It did something that it should not be able to do.
    Stuck,
}

/// One VM.
///
/// Where the kernel has the local APICs, it also decides when a vCPU takes an interrupt. There are hosts that end it in
/// the same step: where guest code is emulated ([`ends_by_itself`]), the vector is in service at no time, and an IOAPIC
/// sends a level interrupt again before its handler has begun. On such a host the guest keeps its interrupt flag clear, and
/// the harness does what the CPU would do between two instructions: it moves the highest request above the priority into
/// service, through the state of the local APIC, and enters the handler. Everything after that is the guest's and the
/// kernel's again.
pub struct Machine {
    accepts: Accepts,
    vcpus: Vec<Vcpu>,
    chips: Box<dyn Chips>,
    memory: Mapping,
    alarm: Alarm,
    /// The host accepts interrupts, but those of the 8259 pair are left to the kernel.
    external: bool,
    vm: Arc<VmFd>,
}

struct Vcpu {
    fd: VcpuFd,
    first: (kvm_regs, kvm_sregs),
    /// The address up to which its log was read.
    read: u64,
    /// It has halted.
    halted: bool,
    /// Its interrupt flag, where the host accepts interrupts for it.
    enabled: bool,
}

/// The parts of a VM that its chips are made of.
pub struct Parts<'a> {
    /// The VM, for the calls of this crate.
    pub vm: &'a Arc<VmFd>,
    /// The same, for its interrupt calls.
    pub irqs: &'a Arc<Vm>,
}

impl Machine {
    /// A VM whose chips are made by `create`, before the vCPUs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(
        accepts: Accepts,
        create: impl FnOnce(Parts<'_>) -> Result<Box<dyn Chips>, Errno>,
    ) -> Result<Self, Errno> {
        let kvm = Kvm::new().map_err(errno)?;
        let vm = Arc::new(kvm.create_vm().map_err(errno)?);
        vm.set_tss_address(TSS_ADDRESS).map_err(errno)?;
        let mut memory = Mapping::anonymous(code::MEMORY)?;
        memory.copy_in(0, &code::image(accepts));
        memory.insert(&vm, 0, 0).map_err(errno)?;
        // SAFETY: `vm` is open for the length of the call, which keeps a duplicate.
        let irqs = Vm::new(unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&*vm)) })
            .map_err(|error| error.errno())?;
        let mut chips = create(Parts { vm: &vm, irqs: &Arc::new(irqs) })?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(errno)?;
        let vcpus = (0..VCPUS).map(|index| Vcpu::new(&vm, index, &cpuid, accepts)).collect::<Result<Vec<_>, _>>()?;
        chips.adopt(&vcpus.iter().map(|vcpu| &vcpu.fd).collect::<Vec<_>>())?;
        Ok(Self { accepts, vcpus, chips, memory, alarm: Alarm::new()?, external: false, vm })
    }

    /// Its chips, for the calls of the host.
    pub fn chips(&mut self) -> &mut dyn Chips {
        &mut *self.chips
    }

    /// The local APIC of a vCPU.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn lapic(&mut self, vcpu: u32) -> Result<KvmLapicState, Errno> {
        self.chips.lapic(vcpu, &self.vcpus[vcpu as usize].fd)
    }

    /// The 8259 pair.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pics(&mut self) -> Result<Pics, Errno> {
        self.chips.pics(&self.vm)
    }

    /// The IOAPIC.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ioapic(&mut self) -> Result<KvmIoapicState, Errno> {
        self.chips.ioapic(&self.vm)
    }

    /// Back to the state in which programs start, whatever the last one left; with the 8259 pair heard by the boot CPU or
    /// not.
    ///
    /// # Errors
    /// A call that failed and may not.
    pub fn reset(&mut self, pic: bool) -> Result<(), Errno> {
        self.external = pic && self.accepts == Accepts::Host;
        for (index, vcpu) in (0..).zip(&mut self.vcpus) {
            vcpu.reset(self.chips.in_kernel())?;
            let zeroes = [0; mailbox::POLICIES + 256];
            self.memory.copy_in(code::block(index), &zeroes);
        }
        let fds: Vec<_> = self.vcpus.iter().map(|vcpu| &vcpu.fd).collect();
        self.chips.reset(&self.vm, &fds, pic)
    }

    /// What the handler of a vector does from now on.
    pub fn set_policy(&mut self, vcpu: u32, vector: u8, policy: Policy) {
        self.memory.copy_in(code::block(vcpu) + mailbox::POLICIES + usize::from(vector), &[policy as u8]);
    }

    /// Tells a vCPU to do something and lets it run until it has nothing to do. Returns every event of its log.
    ///
    /// A vCPU that has halted goes on only if something wakes it, and otherwise stays as it is.
    ///
    /// # Errors
    /// What the kernel says to `KVM_RUN`.
    pub fn run(
        &mut self,
        vcpu: u32,
        operation: Operation,
        [first, second]: [u64; 2],
    ) -> Result<(Rest, Vec<Event>), Errno> {
        let mut events = Vec::new();
        self.memory.copy_in(code::block(vcpu) + mailbox::ENDS, &ENDS.to_le_bytes());
        // What is pending comes first: then nothing is in the way of the operation.
        let mut rest = self.settle(vcpu, &mut events)?;
        if !matches!(rest, Rest::Idle(_)) {
            return Ok((rest, events));
        }
        let state = &mut self.vcpus[vcpu as usize];
        if self.chips.in_kernel() && (operation, first) == (Operation::Store, code::LAPIC + regs::EOI as u64) {
            // KVM keeps, for each vCPU, which ends the IOAPIC has to hear of, and may be behind after a guest's store to an
            // entry. After this it looks again.
            write_back(&state.fd, &mut kernel_lapic(&state.fd)?)?;
        }
        let mut operation = operation;
        match (self.accepts, operation) {
            (Accepts::Host, Operation::Enable | Operation::Disable) => {
                state.enabled = operation == Operation::Enable;
                operation = Operation::Nothing;
            }
            (Accepts::Host, Operation::Halt) => {
                state.halted = true;
                operation = Operation::Nothing;
            }
            (Accepts::Vcpu, Operation::Halt) => state.halted = true,
            _ => {}
        }
        self.write_mailbox(vcpu, operation, first, second);
        rest = self.enter(vcpu)?;
        self.drain(vcpu, &mut events)?;
        if let Rest::Idle(answer) = rest {
            match self.settle(vcpu, &mut events)? {
                Rest::Idle(_) => rest = Rest::Idle(answer),
                other => rest = other,
            }
        }
        Ok((rest, events))
    }

    /// Lets a vCPU take what it can take.
    fn settle(&mut self, vcpu: u32, events: &mut Vec<Event>) -> Result<Rest, Errno> {
        loop {
            if !self.vcpus[vcpu as usize].halted {
                self.write_mailbox(vcpu, Operation::Nothing, 0, 0);
            }
            let before = events.len();
            let rest = self.enter(vcpu)?;
            self.drain(vcpu, events)?;
            if events.len() == before || !matches!(rest, Rest::Idle(_)) {
                return Ok(rest);
            }
        }
    }

    fn write_mailbox(&mut self, vcpu: u32, operation: Operation, first: u64, second: u64) {
        let mut bytes = [0; mailbox::ENDS];
        let words = [
            (mailbox::OPERATION, operation.address()),
            (mailbox::FIRST, first),
            (mailbox::SECOND, second),
            (mailbox::ANSWER, 0),
        ];
        for (at, word) in words {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        self.memory.copy_in(code::block(vcpu), &bytes);
    }

    /// Runs a vCPU until it waits in its idle loop, or cannot go on.
    fn enter(&mut self, vcpu: u32) -> Result<Rest, Errno> {
        let sleeps = self.accepts == Accepts::Vcpu && self.vcpus[vcpu as usize].halted;
        self.alarm.every(if sleeps { LOOK } else { PATIENCE });
        let rest = self.loop_until_rest(vcpu);
        self.alarm.off();
        rest
    }

    fn loop_until_rest(&mut self, vcpu: u32) -> Result<Rest, Errno> {
        let start = Instant::now();
        let mut caught_up = false;
        let external = self.external && vcpu == 0;
        let mut window: Option<Window> = None;
        let mut heard = false;
        let by_host = self.accepts == Accepts::Host;
        let Self { vcpus, chips, memory, .. } = self;
        let Vcpu { fd, halted, enabled, read, .. } = &mut vcpus[vcpu as usize];
        let mailbox = code::block(vcpu);
        for _ in 0..MOST_EXITS {
            match chips.before_entry(vcpu, fd)? {
                Entry::Run => {}
                Entry::Sleep => return Ok(Rest::Halted),
                Entry::Init | Entry::StartUp(_) => return Ok(Rest::WaitsForStart),
            }
            match fd.run() {
                Ok(VcpuExit::IoOut(code::IDLE, _)) => {
                    let answer = memory.load(mailbox + mailbox::ANSWER);
                    if by_host && chips.hears_of_ends() && !caught_up {
                        // An end that the kernel has yet to report would come before the next interrupt.
                        caught_up = true;
                        memory.copy_in(mailbox, &Operation::Nothing.address().to_le_bytes());
                        continue;
                    }
                    if let Some(open) = window.take() {
                        let taken = open.close(fd)?;
                        heard = !taken;
                        *halted &= !taken;
                    }
                    if external && *enabled && !heard {
                        // The pair goes first, whatever the priority.
                        memory.copy_in(mailbox, &Operation::Nothing.address().to_le_bytes());
                        window = Some(Window::open(fd)?);
                        continue;
                    }
                    if by_host && *enabled && accept(fd, memory)? {
                        (*halted, caught_up, heard) = (false, false, false);
                        // The handler comes back to the loop, and what was done is not done again.
                        memory.copy_in(mailbox, &Operation::Nothing.address().to_le_bytes());
                        continue;
                    }
                    // An NMI, which is the kernel's affair, wakes it too.
                    if by_host && *halted && fd.get_regs().map_err(errno)?.r13 == *read {
                        return Ok(Rest::Halted);
                    }
                    *halted = false;
                    return Ok(Rest::Idle(answer));
                }
                Ok(VcpuExit::IoOut(code::NEST, _)) => {
                    let again = u8::from(by_host && accept(fd, memory)?);
                    memory.copy_in(mailbox + mailbox::AGAIN, &[again]);
                }
                Ok(VcpuExit::IoOut(code::PASS, _)) => {}
                Ok(VcpuExit::IoOut(port, data)) => chips.port_write(vcpu, port, data),
                Ok(VcpuExit::IoIn(port, data)) => chips.port_read(vcpu, port, data),
                Ok(VcpuExit::MmioWrite(address, data)) => chips.mmio_write(vcpu, address, data)?,
                Ok(VcpuExit::MmioRead(address, data)) => chips.mmio_read(vcpu, address, data),
                Ok(VcpuExit::IoapicEoi(vector)) => chips.ended(vector),
                Ok(VcpuExit::Hlt) => chips.halt(vcpu),
                Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::Intr) => {}
                Ok(_) => return Ok(Rest::Stuck),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    if chips.in_kernel() {
                        match fd.get_mp_state().map_err(errno)?.mp_state {
                            KVM_MP_STATE_HALTED => return Ok(Rest::Halted),
                            KVM_MP_STATE_INIT_RECEIVED => return Ok(Rest::WaitsForStart),
                            _ => {}
                        }
                    }
                    if start.elapsed() >= PATIENCE {
                        return Ok(Rest::Stuck);
                    }
                }
                Err(error) => return Err(errno(error)),
            }
        }
        Ok(Rest::Stuck)
    }

    /// Takes what the guest has added to its log.
    fn drain(&mut self, vcpu: u32, events: &mut Vec<Event>) -> Result<(), Errno> {
        let start = code::log(vcpu) as u64;
        let vcpu = &mut self.vcpus[vcpu as usize];
        let mut registers = vcpu.fd.get_regs().map_err(errno)?;
        let end = registers.r13;
        if !(vcpu.read..=start + 2 * code::LOG_EVENTS as u64).contains(&end) {
            return Err(Errno::RANGE);
        }
        for at in (vcpu.read..end).step_by(2) {
            events.extend(Event::from_bits(self.memory.load(at as usize) as u16));
        }
        vcpu.read = end;
        if end > start + code::LOG_EVENTS as u64 {
            registers.r13 = start;
            vcpu.fd.set_regs(&registers).map_err(errno)?;
            vcpu.read = start;
        }
        Ok(())
    }
}

/// Whether this host's kernel ends an interrupt when a vCPU takes it: see [`Machine`].
///
/// # Errors
/// What the kernel says.
pub fn ends_by_itself(kvm: &Arc<doorbell::kvm::abi::Kvm>) -> Result<bool, Errno> {
    const VECTOR: u8 = 0x93;
    let mut machine = Machine::new(Accepts::Vcpu, |parts| Ok(Box::new(Kernel::new(kvm, parts.vm, parts.irqs)?)))?;
    machine.reset(false)?;
    machine.chips().message(&MsiMessage::new(code::LAPIC, VECTOR.into()))?;
    machine.run(0, Operation::Nothing, [0, 0])?;
    Ok(!machine.lapic(0)?.vectors(regs::ISR).contains(&VECTOR))
}

impl Vcpu {
    fn new(vm: &VmFd, index: u32, cpuid: &CpuId, accepts: Accepts) -> Result<Self, Errno> {
        let fd = vm.create_vcpu(index.into()).map_err(errno)?;
        fd.set_cpuid2(cpuid).map_err(errno)?;
        let mut system = fd.get_sregs().map_err(errno)?;
        let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
            limit: u32::MAX,
            selector,
            type_: kind,
            present: 1,
            s: 1,
            l: long,
            db: 1 - long,
            g: 1,
            ..kvm_segment::default()
        };
        system.cs = segment(code::CODE_SEGMENT, 0xb, 1);
        let data = segment(code::DATA_SEGMENT, 3, 0);
        (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
        system.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..kvm_segment::default() };
        (system.gdt.base, system.gdt.limit) = code::GDT;
        (system.idt.base, system.idt.limit) = code::IDT;
        system.cr3 = code::PAGE_TABLES;
        // PAE; protection, paging, and the bit that is always set; long mode enabled and active.
        system.cr4 = 1 << 5;
        system.cr0 = 1 << 31 | 1 << 4 | 1;
        system.efer = 1 << 10 | 1 << 8;
        let registers = kvm_regs {
            rip: code::ENTRY,
            rsp: code::log(index) as u64,
            r15: code::block(index) as u64,
            r14: code::LAPIC,
            r13: code::log(index) as u64,
            r12: code::IOAPIC,
            // Interrupts on, or not; bit 1 is always set.
            rflags: u64::from(accepts == Accepts::Vcpu) << 9 | 1 << 1,
            ..kvm_regs::default()
        };
        Ok(Self { fd, first: (registers, system), read: 0, halted: false, enabled: true })
    }

    fn reset(&mut self, in_kernel: bool) -> Result<(), Errno> {
        // The port access of the idle loop is completed before the registers are replaced.
        step(&mut self.fd);
        if in_kernel {
            // The kernel turns a pending INIT into a state when it is asked for the state.
            self.fd.get_mp_state().map_err(errno)?;
            self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(errno)?;
        }
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SMM;
        self.fd.set_vcpu_events(&kvm_vcpu_events { flags, ..kvm_vcpu_events::default() }).map_err(errno)?;
        let (registers, system) = self.first;
        self.fd.set_sregs(&system).map_err(errno)?;
        self.fd.set_regs(&registers).map_err(errno)?;
        // What the last exit says about the vCPU is about these registers.
        step(&mut self.fd);
        (self.read, self.halted, self.enabled) = (registers.r13, false, true);
        Ok(())
    }
}
