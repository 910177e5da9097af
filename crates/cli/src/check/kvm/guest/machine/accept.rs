//! How a host takes an interrupt out of the kernel's local APIC in the place of a vCPU.

use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmLapicState};
use kvm_ioctls::VcpuFd;

use crate::check::kvm::guest::chips::{kernel_lapic, set_kernel_lapic};
use crate::check::kvm::guest::code;
use crate::run::guest::memory::Mapping;

pub fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

/// Takes the highest request above the priority out of the kernel's local APIC, as a CPU does, and enters its handler.
/// False if there is none.
pub fn accept(vcpu: &mut VcpuFd, memory: &mut Mapping) -> Result<bool, Errno> {
    let mut state = kernel_lapic(vcpu)?;
    let Some(vector) = acceptable(&state) else { return Ok(false) };
    let (word, bit) = (usize::from(vector) / 32, 1 << (vector % 32));
    let (mut requests, mut in_service) = (state.bitmap(regs::IRR), state.bitmap(regs::ISR));
    requests[word] &= !bit;
    in_service[word] |= bit;
    state.set_bitmap(regs::IRR, requests);
    state.set_bitmap(regs::ISR, in_service);
    write_back(vcpu, &mut state)?;
    enter_handler(vcpu, memory, vector)?;
    Ok(true)
}

/// `KVM_SET_LAPIC`, after which a one-shot timer that has expired would expire again: its count is taken away.
pub fn write_back(vcpu: &VcpuFd, state: &mut KvmLapicState) -> Result<(), Errno> {
    let one_shot = state.register(regs::LVT_TIMER) >> 17 & 3 == 0;
    if one_shot && state.register(regs::TIMER_CURRENT) == 0 {
        state.set_register(regs::TIMER_INITIAL, 0);
    }
    set_kernel_lapic(vcpu, state)
}

/// An entry with interrupts on and the task priority at its highest: only the 8259 pair's get through, and the kernel
/// takes them. What is in service in the local APIC is out of the way meanwhile, because the host may end that.
pub struct Window {
    priority: u32,
    in_service: [u32; 8],
    log: u64,
}

/// The interrupt flag.
const ENABLED: u64 = 1 << 9;

impl Window {
    pub fn open(vcpu: &mut VcpuFd) -> Result<Self, Errno> {
        step(vcpu);
        let mut state = kernel_lapic(vcpu)?;
        let priority = state.register(regs::TPR);
        let in_service = state.bitmap(regs::ISR);
        state.set_register(regs::TPR, 0xff);
        state.set_bitmap(regs::ISR, [0; 8]);
        write_back(vcpu, &mut state)?;
        let mut registers = vcpu.get_regs().map_err(errno)?;
        registers.rflags |= ENABLED;
        vcpu.set_regs(&registers).map_err(errno)?;
        Ok(Self { priority, in_service, log: registers.r13 })
    }

    /// Whether anything was taken.
    pub fn close(self, vcpu: &mut VcpuFd) -> Result<bool, Errno> {
        step(vcpu);
        let mut state = kernel_lapic(vcpu)?;
        state.set_register(regs::TPR, self.priority);
        state.set_bitmap(regs::ISR, self.in_service);
        write_back(vcpu, &mut state)?;
        let mut registers = vcpu.get_regs().map_err(errno)?;
        registers.rflags &= !ENABLED;
        vcpu.set_regs(&registers).map_err(errno)?;
        Ok(registers.r13 != self.log)
    }
}

/// What a CPU in 64-bit mode does to enter the handler of an interrupt (Intel SDM volume 3, section 7.14.2).
fn enter_handler(vcpu: &mut VcpuFd, memory: &mut Mapping, vector: u8) -> Result<(), Errno> {
    step(vcpu);
    let mut registers = vcpu.get_regs().map_err(errno)?;
    let frame = [registers.rip, code::CODE_SEGMENT.into(), registers.rflags, registers.rsp, code::DATA_SEGMENT.into()];
    let bytes: Vec<u8> = frame.iter().flat_map(|word| word.to_le_bytes()).collect();
    registers.rsp = (registers.rsp & !0xf) - bytes.len() as u64;
    memory.copy_in(registers.rsp as usize, &bytes);
    registers.rip = code::handler(vector);
    vcpu.set_regs(&registers).map_err(errno)
}

/// Completes what the last exit left open, and runs nothing.
pub fn step(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

/// The vector that a CPU would take (L6).
fn acceptable(state: &KvmLapicState) -> Option<u8> {
    let highest = state.vectors(regs::IRR).pop()?;
    let in_service = state.vectors(regs::ISR).pop().unwrap_or(0);
    let priority = (state.register(regs::TPR) as u8).max(in_service);
    (highest >> 4 > priority >> 4).then_some(highest)
}
