//! [`KvmCalls`] answered by the kernel itself: each method is one `ioctl` on `/dev/kvm`.
//!
//! Nothing is checked, kept or repaired on the way, because this is what doorbell's own answers are compared with.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use crate::kvm_abi::{
    Answer, Errno, GuestCalls, KvmCalls, KvmIrqLevel, KvmIrqRouting, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd,
    KvmLapicState, KvmMsi, routing, types, types::regs,
};

use barrier::Barrier;
pub use barrier::{bind_to_cpu, bind_to_this_cpu};
use guest::{Guest, Memory};

mod barrier;
mod guest;

/// The letter of KVM's calls.
const KVM: u8 = 0xae;
const GET_API_VERSION: Opcode = opcode::none(KVM, 0x00);
const CREATE_VM: Opcode = opcode::none(KVM, 0x01);
const CHECK_EXTENSION: Opcode = opcode::none(KVM, 0x03);
const CREATE_VCPU: Opcode = opcode::none(KVM, 0x41);
const CREATE_IRQCHIP: Opcode = opcode::none(KVM, 0x60);
const IRQ_LINE: Opcode = opcode::write::<KvmIrqLevel>(KVM, 0x61);
const GET_IRQCHIP: Opcode = opcode::read_write::<KvmIrqchip>(KVM, 0x62);
/// Its direction is the wrong way round in the header, for ever.
const SET_IRQCHIP: Opcode = opcode::read::<KvmIrqchip>(KVM, 0x63);
const IRQ_LINE_STATUS: Opcode = opcode::read_write::<KvmIrqLevel>(KVM, 0x67);
const SET_GSI_ROUTING: Opcode = opcode::write::<KvmIrqRouting>(KVM, 0x6a);
const IRQFD: Opcode = opcode::write::<KvmIrqfd>(KVM, 0x76);
const GET_LAPIC: Opcode = opcode::read::<KvmLapicState>(KVM, 0x8e);
const SET_LAPIC: Opcode = opcode::write::<KvmLapicState>(KVM, 0x8f);
const SIGNAL_MSI: Opcode = opcode::write::<KvmMsi>(KVM, 0xa5);

/// One `ioctl` whose answer is its return value.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: the opcode belongs to the argument, for which each caller of `call` answers.
unsafe impl Ioctl for Call {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

/// # Safety
/// `argument` is what `opcode` takes: a number, or a pointer to a struct that the kernel may read and write.
unsafe fn call(fd: impl AsFd, opcode: Opcode, argument: *mut c_void) -> Answer {
    // SAFETY: passed on to the caller.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument }) }?)
}

fn call_number(fd: impl AsFd, opcode: Opcode, argument: u32) -> Answer {
    // SAFETY: the opcodes used with a number are those whose argument is a number.
    unsafe { call(fd, opcode, argument as usize as *mut c_void) }
}

/// # Safety
/// `T` is the struct that `opcode` takes.
unsafe fn call_with<T>(fd: impl AsFd, opcode: Opcode, argument: &mut T) -> Answer {
    // SAFETY: a valid, exclusive reference to the right struct.
    unsafe { call(fd, opcode, std::ptr::from_mut(argument).cast()) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned it as a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `/dev/kvm`, opened.
#[derive(Debug)]
pub struct Kvm {
    fd: OwnedFd,
    barrier: Barrier,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// `ENOENT` or `EACCES` where there is none for us; `ENODEV` for an interface other than version 12.
    pub fn open() -> Result<Arc<Self>, Errno> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/kvm", flags, rustix::fs::Mode::empty())?;
        if call_number(&fd, GET_API_VERSION, 0)? != 12 {
            return Err(Errno::NODEV);
        }
        let barrier = Barrier::new(&fd)?;
        Ok(Arc::new(Self { fd, barrier }))
    }

    /// `KVM_CHECK_EXTENSION`, for any VM.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn check_extension(&self, capability: u32) -> Answer {
        call_number(&self.fd, CHECK_EXTENSION, capability)
    }

    /// `KVM_CREATE_VM`: a VM with no chip, no vCPU and no memory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create_vm(self: &Arc<Self>) -> Result<KernelVm, Errno> {
        let vm = owned(call_number(&self.fd, CREATE_VM, 0)?);
        Ok(KernelVm { kvm: self.clone(), vcpus: Mutex::new(BTreeMap::new()), memory: Mutex::new(None), vm })
    }
}

impl AsFd for Kvm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A VM of the kernel.
///
/// Lock order: `vcpus` is a leaf; it is held over the call on the vCPU, so that the descriptor stays open.
#[derive(Debug)]
pub struct KernelVm {
    kvm: Arc<Kvm>,
    vcpus: Mutex<BTreeMap<u32, Vcpu>>,
    /// Before `vcpus` in the lock order. The VM is closed first, then its memory goes.
    vm: OwnedFd,
    memory: Mutex<Option<Memory>>,
}

#[derive(Debug)]
struct Vcpu {
    fd: OwnedFd,
    /// Made when the guest is first told something.
    guest: Option<Guest>,
}

impl AsFd for KernelVm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vm.as_fd()
    }
}

impl KernelVm {
    fn on_vcpu<R>(&self, vcpu: u32, act: impl FnOnce(BorrowedFd<'_>) -> Result<R, Errno>) -> Result<R, Errno> {
        act(self.vcpus.lock().get(&vcpu).ok_or(Errno::BADF)?.fd.as_fd())
    }

    fn on_guest<R>(&self, vcpu: u32, act: impl FnOnce(&Guest, &OwnedFd) -> Result<R, Errno>) -> Result<R, Errno> {
        let mut memory = self.memory.lock();
        if memory.is_none() {
            *memory = Some(Memory::new(&self.vm)?);
        }
        let mut vcpus = self.vcpus.lock();
        let Vcpu { fd, guest } = vcpus.get_mut(&vcpu).ok_or(Errno::BADF)?;
        let guest = match guest {
            Some(guest) => guest,
            none => none.insert(Guest::new(&self.kvm.fd, fd)?),
        };
        act(guest, fd)
    }

    /// Clears what a guest may have left in a vCPU outside of its local APIC: a pending NMI, INIT or SIPI.
    ///
    /// # Errors
    /// What the kernel says; `EBADF` if there is no such vCPU.
    pub fn reset_vcpu(&self, vcpu: u32) -> Result<(), Errno> {
        self.on_guest(vcpu, |guest, fd| guest.reset(fd))
    }
}

impl KvmCalls for KernelVm {
    fn check_extension(&self, capability: u32) -> Answer {
        call_number(&self.vm, CHECK_EXTENSION, capability)
    }

    fn create_irqchip(&self) -> Answer {
        call_number(&self.vm, CREATE_IRQCHIP, 0)
    }

    fn create_vcpu(&self, id: u32) -> Answer {
        let vcpu = owned(call_number(&self.vm, CREATE_VCPU, id)?);
        self.vcpus.lock().insert(id, Vcpu { fd: vcpu, guest: None });
        Ok(0)
    }

    fn irqfd(&self, request: &KvmIrqfd) -> Answer {
        // SAFETY: KVM_IRQFD takes a kvm_irqfd; descriptors that it names are checked by the kernel.
        unsafe { call_with(&self.vm, IRQFD, &mut { *request }) }
    }

    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer {
        let table = RoutingBuffer::new(nr, flags, entries);
        routing::check_readable(nr, flags, entries)?;
        // SAFETY: KVM_SET_GSI_ROUTING reads the header, and `nr` entries behind it only if the header is accepted,
        // in which case the line above has seen that they are there.
        unsafe { call(&self.vm, SET_GSI_ROUTING, table.0.as_ptr().cast_mut().cast()) }
    }

    fn irq_line(&self, mut request: KvmIrqLevel) -> Answer {
        // SAFETY: KVM_IRQ_LINE takes a kvm_irq_level.
        unsafe { call_with(&self.vm, IRQ_LINE, &mut request) }
    }

    fn irq_line_status(&self, mut request: KvmIrqLevel) -> Answer {
        // SAFETY: KVM_IRQ_LINE_STATUS takes a kvm_irq_level and writes its status over the first word.
        unsafe { call_with(&self.vm, IRQ_LINE_STATUS, &mut request)? };
        Ok(request.irq as i32)
    }

    fn signal_msi(&self, message: &KvmMsi) -> Answer {
        // SAFETY: KVM_SIGNAL_MSI takes a kvm_msi.
        unsafe { call_with(&self.vm, SIGNAL_MSI, &mut { *message }) }
    }

    fn get_irqchip(&self, chip: &mut KvmIrqchip) -> Answer {
        // SAFETY: KVM_GET_IRQCHIP fills a kvm_irqchip.
        unsafe { call_with(&self.vm, GET_IRQCHIP, chip) }
    }

    fn set_irqchip(&self, chip: &KvmIrqchip) -> Answer {
        // SAFETY: KVM_SET_IRQCHIP reads a kvm_irqchip.
        unsafe { call_with(&self.vm, SET_IRQCHIP, &mut { *chip }) }
    }

    fn get_lapic(&self, vcpu: u32, state: &mut KvmLapicState) -> Answer {
        // SAFETY: KVM_GET_LAPIC fills a kvm_lapic_state.
        self.on_vcpu(vcpu, |fd| unsafe { call_with(fd, GET_LAPIC, state) })
    }

    fn set_lapic(&self, vcpu: u32, state: &KvmLapicState) -> Answer {
        // SAFETY: KVM_SET_LAPIC reads a kvm_lapic_state.
        self.on_vcpu(vcpu, |fd| unsafe { call_with(fd, SET_LAPIC, &mut { *state }) })
    }

    fn settle(&self) {
        // A binding whose descriptor was closed is removed by another worker, and any deassign waits for that one.
        let unbound =
            KvmIrqfd { fd: self.kvm.barrier.event().as_raw_fd() as u32, gsi: u32::MAX, ..KvmIrqfd::default() };
        let _ = self.irqfd(&KvmIrqfd { flags: types::IRQFD_DEASSIGN, ..unbound });
        self.kvm.barrier.pass();
    }
}

impl GuestCalls for KernelVm {
    /// The CPU's part is done by the host, through the state of the local APIC: how a CPU without hardware support for
    /// it takes an interrupt inside the guest is the business of the machine below.
    fn acknowledge(&self, vcpu: u32) -> Result<Option<u8>, Errno> {
        let mut state = KvmLapicState::default();
        self.get_lapic(vcpu, &mut state)?;
        let Some(vector) = acknowledgeable(&state) else { return Ok(None) };
        let (word, bit) = (usize::from(vector) / 32, 1 << (vector % 32));
        let (mut requests, mut in_service) = (state.bitmap(regs::IRR), state.bitmap(regs::ISR));
        requests[word] &= !bit;
        in_service[word] |= bit;
        state.set_bitmap(regs::IRR, requests);
        state.set_bitmap(regs::ISR, in_service);
        self.set_lapic(vcpu, &state)?;
        Ok(Some(vector))
    }

    fn load(&self, vcpu: u32, address: u64) -> Result<u32, Errno> {
        self.on_guest(vcpu, |guest, fd| guest.load(fd, address))
    }

    fn store(&self, vcpu: u32, address: u64, value: u32) -> Result<(), Errno> {
        self.on_guest(vcpu, |guest, fd| guest.store(fd, address, value))
    }

    fn port_load(&self, vcpu: u32, port: u16) -> Result<u8, Errno> {
        self.on_guest(vcpu, |guest, fd| guest.port_load(fd, port))
    }

    fn port_store(&self, vcpu: u32, port: u16, value: u8) -> Result<(), Errno> {
        self.on_guest(vcpu, |guest, fd| guest.port_store(fd, port, value))
    }
}

/// The interrupt that a CPU would take: the highest request, if its priority class is above that of the task and of what
/// is in service (L6). As in KVM, the software enable does not matter any more.
fn acknowledgeable(state: &KvmLapicState) -> Option<u8> {
    let highest = state.vectors(regs::IRR).pop()?;
    let in_service = state.vectors(regs::ISR).pop().unwrap_or(0);
    let priority = (state.register(regs::TPR) as u8).max(in_service);
    (highest >> 4 > priority >> 4).then_some(highest)
}

/// A header and its entries in one piece, as the kernel reads them.
struct RoutingBuffer(Vec<u64>);

impl RoutingBuffer {
    fn new(nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Self {
        let pair = |low: u32, high: u32| {
            let [low, high] = [low, high].map(u32::to_ne_bytes);
            u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])
        };
        let mut words = Vec::with_capacity(1 + 6 * entries.len());
        words.push(pair(nr, flags));
        for KvmIrqRoutingEntry { gsi, kind, flags, pad, payload } in entries {
            words.extend([pair(*gsi, *kind), pair(*flags, *pad)]);
            words.extend(payload.chunks_exact(2).map(|two| pair(two[0], two[1])));
        }
        Self(words)
    }
}
