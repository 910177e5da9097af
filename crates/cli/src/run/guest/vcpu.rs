//! One vCPU: its first state, and the loop of its thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
