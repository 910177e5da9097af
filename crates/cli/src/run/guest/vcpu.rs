//! One vCPU: its first state, and the loop of its thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use doorbell::kvm::VcpuKick;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::code::{ENTRY, STACK, block_base};

/// Index of the spurious-vector register in `kvm_lapic_state`, and the bit in its second byte that enables the APIC.
const SVR: usize = 0xf0;
const SVR_ENABLED: std::ffi::c_char = 1;

/// What one vCPU thread did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuReport {
    /// How often the guest left to user space.
    pub exits: u64,
    /// How often the kernel reported the end of a level interrupt (split chip).
    pub eoi_exits: u64,
}

/// What the kernel's local APIC of a vCPU has, by the registers of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalApicView {
    /// Pending.
    pub irr: [u32; 8],
    /// In service.
    pub isr: [u32; 8],
    /// The priority that a vector must exceed.
    pub ppr: u32,
}

/// Index of a register in `kvm_lapic_state`.
const PPR: usize = 0xa0;
const ISR: usize = 0x100;
const IRR: usize = 0x200;

impl LocalApicView {
    fn of(vcpu: &VcpuFd) -> Option<Self> {
        let registers = vcpu.get_lapic().ok()?.regs;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| registers[at + byte] as u8));
        let words = |at: usize| std::array::from_fn(|index| word(at + 16 * index));
        Some(Self { irr: words(IRR), isr: words(ISR), ppr: word(PPR) })
    }
}

/// Another thread's question to a vCPU's thread, which alone may ask the kernel: what its local APIC has.
#[derive(Debug, Default)]
pub struct Question {
    asked: AtomicBool,
    answer: Mutex<Option<LocalApicView>>,
}

impl Question {
    /// Asks, and waits so long for the answer. The vCPU must be kicked by `kick`.
    pub fn ask(&self, patience: Duration, kick: impl FnOnce()) -> Option<LocalApicView> {
        let answer = || self.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer();
        // Relaxed: the kick orders it before the vCPU's look.
        self.asked.store(true, Ordering::Relaxed);
        kick();
        let began = Instant::now();
        loop {
            match answer() {
                Some(view) => return Some(view),
                None if began.elapsed() > patience => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn reply(&self, vcpu: &VcpuFd) {
        if self.asked.swap(false, Ordering::Relaxed) {
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = LocalApicView::of(vcpu);
        }
    }
}

/// What a vCPU's exits mean to the chips in user space.
pub trait Exits: Send {
    /// Before each entry; false if the vCPU should sleep instead.
    fn before_entry(&mut self, vcpu: &mut VcpuFd) -> Result<bool, String>;
    /// The guest has ended an interrupt with this vector (split chip).
    fn ended(&mut self, vector: u8);
    /// The guest reads from where there is no memory.
    fn read(&mut self, address: u64, data: &mut [u8]);
    /// The guest writes to where there is no memory.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), String>;
    /// The guest halts.
    fn halt(&mut self);
}

/// Puts the vCPU at the guest's first instruction, with its local APIC, if the kernel has one, enabled.
pub fn prepare(vcpu: &VcpuFd, index: u32, kernel_apic: bool) -> Result<(), kvm_ioctls::Error> {
    let base = u64::from(block_base(index));
    let real_mode = |segment: &mut kvm_segment| {
        segment.base = base;
        segment.selector = (base >> 4) as u16;
    };
    let flat = |segment: &mut kvm_segment| {
        segment.base = 0;
        segment.selector = 0;
        segment.limit = u32::MAX;
        segment.g = 1;
    };
    let mut system = vcpu.get_sregs()?;
    real_mode(&mut system.cs);
    real_mode(&mut system.ss);
    flat(&mut system.ds);
    flat(&mut system.es);
    system.idt.base = base;
    system.idt.limit = 0x3ff;
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = u64::from(ENTRY);
    registers.rsp = u64::from(STACK);
    // Bit 1 is always set.
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    if kernel_apic {
        let mut apic = vcpu.get_lapic()?;
        apic.regs[SVR] = -1;
        apic.regs[SVR + 1] = SVR_ENABLED;
        vcpu.set_lapic(&apic)?;
        vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
    }
    Ok(())
}

/// The loop of one vCPU's thread, until `stop` and a kick.
pub fn run(
    mut vcpu: VcpuFd,
    kick: &Arc<VcpuKick>,
    stop: &AtomicBool,
    question: &Question,
    exits: &mut dyn Exits,
) -> Result<VcpuReport, String> {
    let mut report = VcpuReport::default();
    kick.begin();
    loop {
        kick.clear();
        // Relaxed: ordered by the kick that follows the store.
        if stop.load(Ordering::Relaxed) {
            return Ok(report);
        }
        question.reply(&vcpu);
        if !exits.before_entry(&mut vcpu)? {
            kick.sleep();
            continue;
        }
        report.exits += 1;
        match kick.enter(|| vcpu.run()) {
            Ok(VcpuExit::IoapicEoi(vector)) => {
                report.eoi_exits += 1;
                exits.ended(vector);
            }
            Ok(VcpuExit::MmioRead(address, data)) => exits.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => exits.write(address, data)?,
            Ok(VcpuExit::Hlt) => exits.halt(),
            // A port is written to for the sake of the exit (`AfterLevel`).
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoOut(..)) => {}
            Ok(exit) => return Err(format!("the guest stopped: {exit:?}")),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(format!("KVM_RUN: {error}")),
        }
    }
}
