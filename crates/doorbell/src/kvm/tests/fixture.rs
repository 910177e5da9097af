use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::event::{EventfdFlags, eventfd};

use crate::MsiMessage;
use crate::chips::x86::ioapic::IoApicOptions;
use crate::kvm::{Calls, KvmIrqs, KvmOptions, Promotion, SPLIT_PINS, SplitChip, Vm, X86_CHIPS};
use crate::manager::IrqManager;
use crate::route::{Route, RouteEntry};

/// Registers of `kvm_lapic_state`.
const SVR: usize = 0xf0;
const IRR: usize = 0x200;

/// A VM with one vCPU, which never runs, and the manager of its interrupts.
pub struct Machine {
    pub irqs: KvmIrqs,
    pub manager: IrqManager,
    pub vcpu: VcpuFd,
    pub vm: VmFd,
}

/// `None`, and a loud line, where there is no /dev/kvm.
pub fn new_vm() -> Option<VmFd> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm.create_vm().unwrap()),
        Err(error) => {
            eprintln!("SKIPPED, nothing was tested: no /dev/kvm here: {error}");
            None
        }
    }
}

/// A machine with all chips in the kernel.
pub fn full(promotion: Promotion) -> Option<Machine> {
    let vm = new_vm()?;
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    // SAFETY: `vm` is open.
    let calls = Arc::new(Vm::new(unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }).unwrap());
    let irqs = KvmIrqs::full(calls, &X86_CHIPS, KvmOptions::default().promotion(promotion)).unwrap();
    let machine = Machine { manager: irqs.manager(), irqs, vcpu, vm };
    machine.enable_apic();
    Some(machine)
}

/// A machine with a split chip.
pub fn split() -> Option<(Machine, SplitChip)> {
    let vm = new_vm()?;
    let args = [SPLIT_PINS, 0, 0, 0];
    let cap = kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
    vm.enable_cap(&kvm_bindings::kvm_enable_cap { cap, args, ..Default::default() }).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    // SAFETY: `vm` is open.
    let calls = Arc::new(Vm::new(unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }).unwrap());
    let chip = SplitChip::new(calls, IoApicOptions::default(), KvmOptions::default()).unwrap();
    let machine = Machine { manager: chip.irqs().manager(), irqs: chip.irqs().clone(), vcpu, vm };
    machine.enable_apic();
    Some((machine, chip))
}

impl Machine {
    fn enable_apic(&self) {
        let mut apic = self.vcpu.get_lapic().unwrap();
        apic.regs[SVR] = -1;
        apic.regs[SVR + 1] = 1;
        self.vcpu.set_lapic(&apic).unwrap();
    }

    /// Takes a vector out of the APIC; whether it was there.
    pub fn take(&self, vector: u8) -> bool {
        let mut apic = self.vcpu.get_lapic().unwrap();
        let byte = &mut apic.regs[IRR + usize::from(vector) / 32 * 16 + usize::from(vector) % 32 / 8];
        let bit = (1u8 << (vector % 8)) as std::ffi::c_char;
        let there = *byte & bit != 0;
        *byte &= !bit;
        if there {
            self.vcpu.set_lapic(&apic).unwrap();
        }
        there
    }

    /// Takes a vector that must come, if need be from the kernel's worker.
    #[track_caller]
    pub fn arrives(&self, vector: u8) {
        let start = Instant::now();
        while !self.take(vector) {
            assert!(start.elapsed() < Duration::from_secs(5), "vector {vector:#x} did not arrive");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Whether nothing at all is in the APIC, or comes within a while.
    #[track_caller]
    pub fn nothing_arrives(&self) {
        std::thread::sleep(Duration::from_millis(15));
        let apic = self.vcpu.get_lapic().unwrap();
        let words: Vec<_> = (0..8).map(|word| &apic.regs[IRR + word * 16..][..4]).collect();
        assert!(words.iter().all(|word| *word == [0; 4]), "IRR {words:x?}");
    }

    pub fn dispatch(&self) -> usize {
        self.irqs.dispatcher().dispatch().unwrap()
    }

    /// The calls made since `before`.
    pub fn calls_since(&self, before: Calls) -> Calls {
        let now = self.irqs.vm().calls();
        Calls {
            set_routing: now.set_routing - before.set_routing,
            assign: now.assign - before.assign,
            deassign: now.deassign - before.deassign,
            line: now.line - before.line,
            signal_msi: now.signal_msi - before.signal_msi,
        }
    }

    /// GSI 24 + n leads to vector 0x30 + n, for the first `count`.
    pub fn route(&self, count: u32) {
        let entry = |n: u32| RouteEntry { gsi: 24 + n, route: Route::Msi(to(0x30 + n as u8)) };
        self.manager.set_routes(&(0..count).map(entry).collect::<Vec<_>>()).unwrap();
    }
}

pub fn to(vector: u8) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, vector.into())
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn write(fd: &OwnedFd, value: u64) {
    rustix::io::write(fd, &value.to_ne_bytes()).unwrap();
}

/// The counter, taken; 0 if there is none.
pub fn counter(fd: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    rustix::io::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
}
