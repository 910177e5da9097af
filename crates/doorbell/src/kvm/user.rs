//! No chip in the kernel: doorbell's local APICs, whose vectors a vCPU's loop hands over by `KVM_INTERRUPT`.
//!
//! ```text
//! loop {
//!     kick.clear();
//!     match cpu.before_entry(&mut port)? {
//!         Entry::Run => kick.enter(|| KVM_RUN), then pass loads and stores to mmio_read and mmio_write, HLT to halt
//!         Entry::Sleep => kick.sleep(),
//!         // Both no longer than until cpu.next_deadline(): by then, somebody calls kick.kick().
//!         Entry::Init | Entry::StartUp(_) => set the registers that the architecture says
//!     }
//! }
//! ```

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use rustix::ioctl::{NoArg, Opcode, Setter, opcode};

use super::VcpuKick;
use crate::chips::x86::ioapic::{CHIP, DEFAULT_BASE, Effect, IoApic};
use crate::chips::x86::lapic::{Eoi, GeneralProtection, LocalApic};
use crate::chips::x86::pic::{Ended, PORTS, Pic};
use crate::manager::IrqManager;
use crate::{Error, Kick, VcpuId};

const INTERRUPT: Opcode = opcode::write::<kvm_interrupt>(KVMIO as u8, 0x86);
const NMI: Opcode = opcode::none(KVMIO as u8, 0x9a);

/// What the loop needs of a vCPU of the kernel; implemented for `kvm_ioctls::VcpuFd`.
pub trait VcpuPort {
    /// Injects a vector at the next entry (`KVM_INTERRUPT`).
    ///
    /// # Errors
    /// What the kernel says.
    fn interrupt(&mut self, vector: u8) -> Result<(), Error>;
    /// Injects an NMI (`KVM_NMI`).
    ///
    /// # Errors
    /// What the kernel says.
    fn nmi(&mut self) -> Result<(), Error>;
    /// Whether a vector can be injected now (`ready_for_interrupt_injection`).
    fn is_ready(&mut self) -> bool;
    /// Whether the guest must come back as soon as it can take a vector (`request_interrupt_window`).
    fn request_window(&mut self, wanted: bool);
    /// The guest's CR8, as of the last exit.
    fn cr8(&mut self) -> u64;
    /// Its CR8 from the next entry on.
    fn set_cr8(&mut self, value: u64);
    /// The guest's IA32_APIC_BASE, as of the last exit.
    fn apic_base(&mut self) -> u64;
}

/// What a vCPU's thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `KVM_RUN`.
    Run,
    /// Sleep: the guest has halted and nothing is pending. A kick ends it.
    Sleep,
    /// INIT: the vCPU's registers go to their reset state.
    Init,
    /// SIPI: the vCPU starts in real mode at this page.
    StartUp(u8),
}

/// One vCPU with doorbell's local APIC.
pub struct UserCpu {
    apic: LocalApic,
    ioapic: Arc<IoApic>,
    pic: Option<Arc<Pic>>,
    irqs: IrqManager,
    halted: bool,
    /// CR8 and the APIC base that the guest was last entered with, once it was.
    entered: Option<(u64, u64)>,
}

impl UserCpu {
    /// A vCPU whose APIC is `apic`, in a machine with this IOAPIC; `irqs` is the manager over both
    /// ([`IrqManager::soft`]).
    pub fn new(apic: LocalApic, ioapic: Arc<IoApic>, irqs: IrqManager) -> Self {
        Self { apic, ioapic, pic: None, irqs, halted: false, entered: None }
    }

    /// The machine has an 8259 pair too, whose INTR reaches the vCPUs by
    /// [`ApicSet::set_pic_output`](crate::chips::x86::lapic::ApicSet::set_pic_output); it is one of the manager's chips with
    /// pins.
    pub fn with_pic(self, pic: Arc<Pic>) -> Self {
        Self { pic: Some(pic), ..self }
    }

    /// The local APIC.
    pub fn apic(&mut self) -> &mut LocalApic {
        &mut self.apic
    }

    /// After [`VcpuKick::clear`] and before each entry: takes over what the guest did to CR8 and the APIC base, and
    /// injects what is deliverable. From here on senders kick.
    ///
    /// # Errors
    /// What the kernel says to an injection.
    pub fn before_entry(&mut self, port: &mut impl VcpuPort) -> Result<Entry, Error> {
        if let Some(entered) = self.entered.take() {
            self.follow_registers(port, entered);
        }
        self.apic.tick();
        let work = self.apic.arm();
        if work.init {
            self.apic.take_init();
            // All but the boot CPU wait for a start-up interrupt, and for nothing else.
            self.halted = !self.apic.base().bootstrap();
            return Ok(Entry::Init);
        }
        if work.sipi.is_some() {
            if let Some(page) = self.apic.take_sipi() {
                self.halted = false;
                return Ok(Entry::StartUp(page));
            }
        }
        let nmi = work.nmi && self.apic.take_nmi();
        if nmi {
            self.halted = false;
            port.nmi()?;
        }
        let extint = work.extint && self.pic.is_some();
        let mut waiting = extint || work.interrupt.is_some();
        // An NMI goes first, but a vector that the kernel has would overtake it.
        if waiting && !nmi && port.is_ready() {
            self.halted = false;
            if let Some(vector) = if extint { self.take_external() } else { self.apic.acknowledge() } {
                port.interrupt(vector)?;
            }
            let left = self.apic.next();
            waiting = left.interrupt.is_some() || left.extint && self.pic.is_some();
        }
        if self.halted {
            return Ok(Entry::Sleep);
        }
        port.request_window(waiting);
        port.set_cr8(self.apic.cr8());
        self.entered = Some((self.apic.cr8(), port.apic_base()));
        Ok(Entry::Run)
    }

    /// What the guest changed by itself. A register that is as it was at the entry says nothing: a store through the
    /// window, which came after the exit, may have changed it here.
    fn follow_registers(&mut self, port: &mut impl VcpuPort, (old_cr8, old_base): (u64, u64)) {
        let (cr8, base) = (port.cr8(), port.apic_base());
        if cr8 != old_cr8 {
            // The kernel has refused what is above 15.
            let _ = self.apic.set_cr8(cr8);
        }
        // 0 until the first exit has written it.
        if base != old_base && base != 0 && base != self.apic.base().into_bits() {
            if let Err(GeneralProtection) = self.apic.set_base(base) {
                tracing::debug!(base, "the kernel took an APIC base that this APIC does not have");
            }
        }
    }

    /// Takes what the 8259 pair asks for.
    fn take_external(&mut self) -> Option<u8> {
        let taken = self.pic.as_ref()?.acknowledge();
        self.end_external(taken.ended);
        Some(taken.vector)
    }

    fn end_external(&self, ended: Ended) {
        for (chip, pins) in ended.chips() {
            self.irqs.end(chip, &pins);
        }
    }

    /// A guest's IN; false if the port is not the 8259 pair's.
    pub fn port_read(&mut self, port: u16, data: &mut [u8]) -> bool {
        let Some(pic) = self.pic.as_ref().filter(|_| PORTS.contains(&port)) else { return false };
        let ended = pic.read(port, data);
        self.end_external(ended);
        true
    }

    /// A guest's OUT; false if the port is not the 8259 pair's.
    pub fn port_write(&mut self, port: u16, data: &[u8]) -> bool {
        let Some(pic) = self.pic.as_ref().filter(|_| PORTS.contains(&port)) else { return false };
        let ended = pic.write(port, data);
        self.end_external(ended);
        true
    }

    /// When the vCPU must be back in [`before_entry`](Self::before_entry) at the latest, for its timer:
    /// [`LocalApic::next_deadline`]. Read after each entry's exit, as the guest may have set it.
    pub fn next_deadline(&self) -> Option<u64> {
        self.apic.next_deadline()
    }

    /// The guest executed HLT.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// A guest's load; false if the address belongs to neither APIC.
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> bool {
        match self.window(address) {
            Some(Window::Local(offset)) => self.apic.mmio_read(offset, data),
            Some(Window::IoApic(offset)) => self.ioapic.mmio_read(offset, data),
            None => return false,
        }
        true
    }

    /// A guest's store; false if the address belongs to neither APIC.
    pub fn mmio_write(&mut self, address: u64, data: &[u8]) -> bool {
        match self.window(address) {
            Some(Window::Local(offset)) => {
                let ended = self.apic.mmio_write(offset, data);
                self.end(ended);
            }
            Some(Window::IoApic(offset)) => match self.ioapic.mmio_write(offset, data) {
                Effect::None => {}
                Effect::Ended(pins) => self.irqs.end(CHIP, &pins),
                Effect::Unmasked(pins) => self.irqs.unmasked(CHIP, &pins),
            },
            None => return false,
        }
        true
    }

    /// A guest's RDMSR of 0x6e0 or 0x800 to 0x8ff, where the VM hands these to user space (`KVM_CAP_X86_USER_SPACE_MSR`).
    ///
    /// # Errors
    /// #GP.
    pub fn msr_read(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        self.apic.msr_read(msr)
    }

    /// A guest's WRMSR to one of these.
    ///
    /// # Errors
    /// #GP.
    pub fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let ended = self.apic.msr_write(msr, value)?;
        self.end(ended);
        Ok(())
    }

    /// As in KVM, the end of an edge interrupt is told to the resamplers of the pins with its vector as well.
    fn end(&mut self, ended: Option<Eoi>) {
        let Some(Eoi { vector, level }) = ended else { return };
        let pins = if level { self.ioapic.end(vector) } else { self.ioapic.end_edge(vector) };
        if !pins.is_empty() {
            self.irqs.end(CHIP, &pins);
        }
    }

    fn window(&self, address: u64) -> Option<Window> {
        let base = self.apic.base();
        let local = base.page() << 12;
        match address {
            _ if base.enabled() && (local..local + 0x1000).contains(&address) => Some(Window::Local(address - local)),
            DEFAULT_BASE..=IOAPIC_END => Some(Window::IoApic(address - DEFAULT_BASE)),
            _ => None,
        }
    }
}

const IOAPIC_END: u64 = DEFAULT_BASE + 0xff;

/// A chip's window and an offset into it.
enum Window {
    Local(u64),
    IoApic(u64),
}

/// The kicks of a machine's vCPUs, in the order of their ids. For [`ApicSet::new`](crate::chips::x86::lapic::ApicSet::new).
impl Kick for Vec<Arc<VcpuKick>> {
    fn kick(&self, vcpu: VcpuId) {
        if let Some(kick) = self.get(vcpu.0 as usize) {
            kick.kick();
        }
    }
}

impl VcpuPort for VcpuFd {
    fn interrupt(&mut self, vector: u8) -> Result<(), Error> {
        let argument = kvm_interrupt { irq: vector.into() };
        // SAFETY: the descriptor is open as long as `self` is; KVM_INTERRUPT reads a `kvm_interrupt`.
        unsafe {
            let fd = BorrowedFd::borrow_raw(self.as_raw_fd());
            rustix::ioctl::ioctl(fd, Setter::<INTERRUPT, kvm_interrupt>::new(argument))
        }
        .map_err(|source| Error::Os { what: "KVM_INTERRUPT", source: source.into() })
    }

    fn nmi(&mut self) -> Result<(), Error> {
        // SAFETY: as above; KVM_NMI takes no argument.
        unsafe {
            let fd = BorrowedFd::borrow_raw(self.as_raw_fd());
            rustix::ioctl::ioctl(fd, NoArg::<NMI>::new())
        }
        .map_err(|source| Error::Os { what: "KVM_NMI", source: source.into() })
    }

    fn is_ready(&mut self) -> bool {
        self.get_kvm_run().ready_for_interrupt_injection != 0
    }

    fn request_window(&mut self, wanted: bool) {
        self.get_kvm_run().request_interrupt_window = wanted.into();
    }

    fn cr8(&mut self) -> u64 {
        self.get_kvm_run().cr8
    }

    fn set_cr8(&mut self, value: u64) {
        self.get_kvm_run().cr8 = value;
    }

    fn apic_base(&mut self) -> u64 {
        self.get_kvm_run().apic_base
    }
}
