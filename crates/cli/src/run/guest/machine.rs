//! The VM of the guest: its memory, chips and vCPU threads.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use doorbell::kvm::{KvmIrqs, KvmOptions, VcpuKick, Vm};
use doorbell::manager::IrqManager;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::chips::{self, ChipSet, Chips};
use super::code::{self, BLOCK, LEDGER_BASE, MOST_VCPUS, block_base};
use super::memory::Mapping;
use super::vcpu::{self, Exits, LocalApicView, Question, VcpuReport};
use crate::run::ledger::{Ledger, SLOTS};

/// Three pages that KVM takes for itself in real mode on some CPUs: away from memory and chips.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// One VM that runs the guest.
pub struct KernelMachine {
    kicks: Vec<Arc<VcpuKick>>,
    questions: Vec<Arc<Question>>,
    stop: Arc<AtomicBool>,
    /// vCPUs that do not run yet.
    waiting: Vec<(VcpuFd, Box<dyn Exits>)>,
    threads: Vec<JoinHandle<Result<VcpuReport, String>>>,
    chips: ChipSet,
    low: Mapping,
    /// Held for the guest, until the threads have ended (see `Drop`).
    _shared: Mapping,
    vm: VmFd,
}

/// Why there is no VM, in one line.
fn refused(what: &str, error: kvm_ioctls::Error) -> String {
    format!("{what}: {error}")
}

impl KernelMachine {
    /// A VM with these chips and a guest that works on this ledger, one vCPU for each of its CPU pages. `memory` is the
    /// ledger's descriptor. Nothing runs yet.
    ///
    /// # Errors
    /// One line: there is no /dev/kvm, or what the kernel refused.
    pub fn new(chips: Chips, ledger: &Ledger, memory: BorrowedFd<'_>, options: KvmOptions) -> Result<Self, String> {
        let vcpus = ledger.vcpus() as u32;
        if vcpus > MOST_VCPUS {
            return Err(format!("{vcpus} vCPUs are too many for this guest: at most {MOST_VCPUS}"));
        }
        let kvm = Kvm::new().map_err(|error| format!("no virtual machine without /dev/kvm: {error}"))?;
        let vm = kvm.create_vm().map_err(|error| refused("KVM_CREATE_VM", error))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(|error| refused("KVM_SET_TSS_ADDR", error))?;
        chips::create(&vm, chips)?;

        let low = Mapping::anonymous((vcpus * BLOCK) as usize).map_err(|error| format!("guest memory: {error}"))?;
        let shared = Mapping::shared(memory, Ledger::cpu_page_offset(vcpus))
            .map_err(|error| format!("the ledger as guest memory: {error}"))?;
        low.insert(&vm, 0, 0).map_err(|error| refused("guest memory", error))?;
        shared.insert(&vm, 1, LEDGER_BASE.into()).map_err(|error| refused("the ledger as guest memory", error))?;

        // SAFETY: `vm` is open for the length of this call, which keeps a duplicate.
        let irqs = Vm::new(unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }).map_err(|error| error.to_string())?;
        let irqs = Arc::new(irqs);
        let mut vcpus_made = Vec::new();
        let mut kicks = Vec::new();
        for index in 0..vcpus {
            let vcpu = vm.create_vcpu(index.into()).map_err(|error| refused("KVM_CREATE_VCPU", error))?;
            vcpu::prepare(&vcpu, index, chips != Chips::None)
                .map_err(|error| refused("the vCPU's first state", error))?;
            // SAFETY: `vcpu` is open for the length of this call.
            let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
            kicks.push(Arc::new(VcpuKick::new(fd, None).map_err(|error| error.to_string())?));
            vcpus_made.push(vcpu);
        }
        let chips = ChipSet::new(chips, &irqs, &kicks, options).map_err(|error| error.to_string())?;
        let with_exits = |(index, vcpu)| chips.exits(index).map(|exits| (vcpu, exits));
        let waiting = (0..).zip(vcpus_made).map(with_exits).collect::<Result<_, _>>()?;
        let questions = kicks.iter().map(|_| Arc::default()).collect();
        Ok(Self {
            chips,
            kicks,
            questions,
            stop: Arc::default(),
            waiting,
            threads: Vec::new(),
            low,
            _shared: shared,
            vm,
        })
    }

    /// The interrupts of the machine.
    pub fn manager(&self) -> &IrqManager {
        self.chips.manager()
    }

    /// The eventfds of the VM, where the kernel has local APICs: it can take them.
    pub fn kernel_irqs(&self) -> Option<&KvmIrqs> {
        self.chips.kernel_irqs()
    }

    /// What the kernel's local APIC of a running vCPU has; `None` if it has none, or the vCPU does not leave the guest for so
    /// long.
    pub fn local_apic(&self, vcpu: u32, patience: Duration) -> Option<LocalApicView> {
        let index = vcpu as usize;
        self.questions.get(index)?.ask(patience, || self.kicks[index].kick())
    }

    /// Programs an entry of the IOAPIC, as a guest would through its registers.
    ///
    /// # Errors
    /// One line: there is no such pin, or what the kernel refused.
    pub fn set_redirection(&self, pin: u16, entry: u64) -> Result<(), String> {
        self.chips.set_redirection(&self.vm, pin, entry)
    }

    /// Writes the guest's handlers for the vectors that the ledger says are in use, and starts the vCPU threads.
    ///
    /// # Errors
    /// Where a thread cannot be started; those that were are ended by the drop.
    pub fn start(&mut self, ledger: &Ledger) -> Result<(), String> {
        for (index, (vcpu, mut exits)) in self.waiting.drain(..).enumerate() {
            let page = ledger.cpu(index as u32);
            let spans: [u8; SLOTS] = std::array::from_fn(|slot| page.span[slot].load(Ordering::Relaxed));
            self.low.copy_in(
                block_base(index as u32) as usize,
                &code::assemble(index as u32, &spans, self.chips.after_level()),
            );
            let (kick, stop) = (Arc::clone(&self.kicks[index]), Arc::clone(&self.stop));
            let question = Arc::clone(&self.questions[index]);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu-{index}"))
                .spawn(move || vcpu::run(vcpu, &kick, &stop, &question, &mut *exits))
                .map_err(|error| format!("a thread for vCPU {index}: {error}"))?;
            self.threads.push(thread);
        }
        Ok(())
    }

    /// Stops the vCPUs and returns what each did, or in one line how it failed.
    pub fn stop(mut self) -> Vec<Result<VcpuReport, String>> {
        self.end()
    }

    fn end(&mut self) -> Vec<Result<VcpuReport, String>> {
        // Relaxed: the kick orders it before the vCPU's look.
        self.stop.store(true, Ordering::Relaxed);
        self.kicks.iter().for_each(|kick| kick.kick());
        let join = |thread: JoinHandle<_>| thread.join().unwrap_or_else(|_| Err("its thread panicked".into()));
        self.threads.drain(..).map(join).collect()
    }
}

impl Drop for KernelMachine {
    fn drop(&mut self) {
        // The guest must not run when its memory goes.
        self.end();
    }
}
