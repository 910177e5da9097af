//! Knowing when the kernel's workers have done what was asked of them.
//!
//! An irqfd whose GSI leads to a pin is injected by a worker of the CPU on which the eventfd was written (F15), in the
//! order of the writes. So one more irqfd, of a VM kept for this purpose, is written after them, on the same CPU: once
//! its effect shows, theirs have happened. The effect is the remote IRR of a level entry, which needs no vCPU to take
//! the interrupt.
//!
//! The order holds on one CPU only: a thread that uses this must be bound to one ([`bind_to_this_cpu`]).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::{
    CREATE_IRQCHIP, CREATE_VM, GET_IRQCHIP, IRQFD, RoutingBuffer, SET_GSI_ROUTING, SET_IRQCHIP, call, call_number,
    call_with, owned,
};
use crate::kvm_abi::{Errno, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd, types};

const GSI: u32 = 4;
const PIN: usize = 4;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Where a worker takes longer than this, the machine has other troubles; the comparison that follows will say so.
const PATIENCE: Duration = Duration::from_secs(2);

/// The VM and the eventfd of the barrier.
#[derive(Debug)]
pub(super) struct Barrier {
    vm: OwnedFd,
    event: OwnedFd,
    /// An eventfd that is never bound.
    unbound: OwnedFd,
    /// One passage at a time; a leaf in the lock order.
    passing: Mutex<()>,
}

impl Barrier {
    pub(super) fn new(kvm: impl AsFd) -> Result<Self, Errno> {
        let vm = owned(call_number(kvm, CREATE_VM, 0)?);
        call_number(&vm, CREATE_IRQCHIP, 0)?;
        let table = RoutingBuffer::new(1, 0, &[KvmIrqRoutingEntry::pin(GSI, types::CHIP_IOAPIC, PIN as u32)]);
        // SAFETY: the buffer holds the one entry that its header announces.
        unsafe { call(&vm, SET_GSI_ROUTING, table.0.as_ptr().cast_mut().cast())? };
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let unbound = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut request = KvmIrqfd { fd: event.as_raw_fd() as u32, gsi: GSI, ..KvmIrqfd::default() };
        // SAFETY: KVM_IRQFD takes a kvm_irqfd.
        unsafe { call_with(&vm, IRQFD, &mut request)? };
        let barrier = Self { vm, event, unbound, passing: Mutex::new(()) };
        barrier.arm()?;
        Ok(barrier)
    }

    /// An eventfd that no VM has bound.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.unbound.as_fd()
    }

    fn state(&self) -> Result<KvmIrqchip, Errno> {
        let mut chip = KvmIrqchip::of(types::CHIP_IOAPIC);
        // SAFETY: KVM_GET_IRQCHIP fills a kvm_irqchip.
        unsafe { call_with(&self.vm, GET_IRQCHIP, &mut chip)? };
        Ok(chip)
    }

    fn arm(&self) -> Result<(), Errno> {
        let mut chip = self.state()?;
        let mut ioapic = chip.ioapic();
        ioapic.redirtbl[PIN] = LEVEL | 0x31;
        chip.set_ioapic(&ioapic);
        // SAFETY: KVM_SET_IRQCHIP reads a kvm_irqchip.
        unsafe { call_with(&self.vm, SET_IRQCHIP, &mut chip)? };
        Ok(())
    }

    /// Returns when everything that this CPU's workers had to do for this thread is done.
    pub(super) fn pass(&self) {
        let _one = self.passing.lock();
        let start = Instant::now();
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        while start.elapsed() < PATIENCE {
            if self.state().is_ok_and(|chip| chip.ioapic().redirtbl[PIN] & REMOTE_IRR != 0) {
                break;
            }
            // The worker may need this very CPU.
            std::thread::yield_now();
        }
        let _ = self.arm();
    }
}

/// Binds the calling thread to the CPU that it is on, which [`KvmCalls::settle`](crate::kvm_abi::KvmCalls::settle) of
/// a [`KernelVm`](super::KernelVm) needs.
///
/// # Errors
/// What `sched_setaffinity` says.
pub fn bind_to_this_cpu() -> Result<usize, Errno> {
    let cpu = rustix::thread::sched_getcpu();
    bind_to_cpu(cpu)?;
    Ok(cpu)
}

/// Binds the calling thread to this CPU.
///
/// # Errors
/// What `sched_setaffinity` says.
pub fn bind_to_cpu(cpu: usize) -> Result<(), Errno> {
    let mut only = rustix::thread::CpuSet::new();
    only.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &only)?)
}
