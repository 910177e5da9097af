//! The interrupt calls of one kernel VM: one system call each, and counted.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MSI_VALID_DEVID, KVMIO, KvmIrqRouting, kvm_irq_level, kvm_irq_routing, kvm_irq_routing_entry, kvm_irqfd,
    kvm_msi,
};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::KernelRoute;
use crate::{Delivery, Error, MsiMessage, delivery::ChipId};

const CHECK_EXTENSION: Opcode = opcode::none(KVMIO as u8, 0x03);
const SET_GSI_ROUTING: Opcode = opcode::write::<kvm_irq_routing>(KVMIO as u8, 0x6a);
const IRQ_LINE_STATUS: Opcode = opcode::read_write::<kvm_irq_level>(KVMIO as u8, 0x67);
const IRQFD: Opcode = opcode::write::<kvm_irqfd>(KVMIO as u8, 0x76);
const SIGNAL_MSI: Opcode = opcode::write::<kvm_msi>(KVMIO as u8, 0xa5);

/// How often each call was made since the VM was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// `KVM_SET_GSI_ROUTING`.
    pub set_routing: u64,
    /// `KVM_IRQFD` that binds.
    pub assign: u64,
    /// `KVM_IRQFD` that unbinds.
    pub deassign: u64,
    /// `KVM_IRQ_LINE_STATUS`.
    pub line: u64,
    /// `KVM_SIGNAL_MSI`.
    pub signal_msi: u64,
}

#[derive(Debug, Default)]
struct Counters {
    set_routing: AtomicU64,
    assign: AtomicU64,
    deassign: AtomicU64,
    line: AtomicU64,
    signal_msi: AtomicU64,
}

/// The descriptor of a kernel VM, for its interrupt calls only: doorbell neither creates vCPUs nor maps memory by it.
///
/// System calls used, for seccomp filters: `ioctl` with `KVM_CHECK_EXTENSION`, `KVM_SET_GSI_ROUTING`, `KVM_IRQFD`,
/// `KVM_IRQ_LINE_STATUS` and `KVM_SIGNAL_MSI`.
#[derive(Debug)]
pub struct Vm {
    fd: OwnedFd,
    counters: Counters,
}

/// A call whose argument the kernel reads (and, for a line, writes).
struct Call<T> {
    opcode: Opcode,
    argument: *mut T,
}

// SAFETY: every `Call` is made below, from an opcode and the struct that this opcode takes; the pointer comes from a
// reference that outlives the call. The return value is the call's own, the struct is read back by its owner.
unsafe impl<T> Ioctl for Call<T> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        self.argument.cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut rustix::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

impl Vm {
    /// Keeps a duplicate of the descriptor of a VM (`KVM_CREATE_VM`).
    ///
    /// # Errors
    /// Where the descriptor cannot be duplicated.
    pub fn new(vm: BorrowedFd<'_>) -> Result<Self, Error> {
        let fd = rustix::io::fcntl_dupfd_cloexec(vm, 0)
            .map_err(|source| Error::Descriptor { what: "VM", source: source.into() })?;
        Ok(Self { fd, counters: Counters::default() })
    }

    /// What `KVM_CHECK_EXTENSION` says about a capability of this VM; 0 where it is missing.
    pub fn check(&self, capability: u32) -> i32 {
        let argument = capability as usize as *mut ();
        self.call(Call { opcode: CHECK_EXTENSION, argument }).unwrap_or(0)
    }

    /// How often each call was made so far.
    pub fn calls(&self) -> Calls {
        // Relaxed: plain statistics.
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { set_routing, assign, deassign, line, signal_msi } = &self.counters;
        Calls {
            set_routing: load(set_routing),
            assign: load(assign),
            deassign: load(deassign),
            line: load(line),
            signal_msi: load(signal_msi),
        }
    }

    /// Replaces the whole routing table (routing.md G7); a refusal leaves the old one (G8).
    ///
    /// # Errors
    /// `EINVAL` for the table's limits (G1 to G6), and where there is no in-kernel chip.
    pub fn set_routes(&self, routes: &[KernelRoute]) -> Result<(), Error> {
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(entry).collect();
        let mut table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::TooManyRoutes { count: entries.len(), most: super::KERNEL_ROUTES as usize })?;
        count(&self.counters.set_routing);
        self.call(Call { opcode: SET_GSI_ROUTING, argument: table.as_mut_fam_struct_ptr() })
            .map_err(|source| Error::Os { what: "KVM_SET_GSI_ROUTING", source: source.into() })?;
        Ok(())
    }

    /// Binds an eventfd to a kernel GSI; with a resample descriptor, as a level source.
    ///
    /// # Errors
    /// Those of irqfd.md F1 to F5, as [`Error::Os`].
    pub fn assign(&self, fd: BorrowedFd<'_>, gsi: u32, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        count(&self.counters.assign);
        self.irqfd(kvm_irqfd {
            fd: fd.as_raw_fd() as u32,
            gsi,
            flags: if resample.is_some() { KVM_IRQFD_FLAG_RESAMPLE } else { 0 },
            resamplefd: resample.map_or(0, |fd| fd.as_raw_fd() as u32),
            ..Default::default()
        })
    }

    /// Unbinds it; when this returns nothing of that binding can arrive any more (F8a).
    ///
    /// # Errors
    /// Only for a descriptor that is not an eventfd: unbinding what is not bound succeeds (F8).
    pub fn deassign(&self, fd: BorrowedFd<'_>, gsi: u32) -> Result<(), Error> {
        count(&self.counters.deassign);
        self.irqfd(kvm_irqfd { fd: fd.as_raw_fd() as u32, gsi, flags: KVM_IRQFD_FLAG_DEASSIGN, ..Default::default() })
    }

    fn irqfd(&self, mut argument: kvm_irqfd) -> Result<(), Error> {
        self.call(Call { opcode: IRQFD, argument: &mut argument })
            .map_err(|source| Error::Os { what: "KVM_IRQFD", source: source.into() })?;
        Ok(())
    }

    /// Drives a line under KVM's user-space source.
    ///
    /// # Errors
    /// `ENXIO` without an in-kernel chip.
    pub fn line(&self, gsi: u32, level: bool) -> Result<Delivery, Error> {
        let mut argument = kvm_irq_level { level: u32::from(level), ..Default::default() };
        argument.__bindgen_anon_1.irq = gsi;
        count(&self.counters.line);
        self.call(Call { opcode: IRQ_LINE_STATUS, argument: &mut argument })
            .map_err(|source| Error::Os { what: "KVM_IRQ_LINE_STATUS", source: source.into() })?;
        // SAFETY: the kernel has written its status over the number; both are 32 bits.
        Ok(delivery(unsafe { argument.__bindgen_anon_1.status }))
    }

    /// Sends one message without any route.
    ///
    /// # Errors
    /// routing.md Q1 and Q10 to Q16.
    pub fn signal_msi(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        let mut argument = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            flags: if message.device_id.is_some() { KVM_MSI_VALID_DEVID } else { 0 },
            devid: message.device_id.map_or(0, |device| device.0),
            ..Default::default()
        };
        count(&self.counters.signal_msi);
        match self.call(Call { opcode: SIGNAL_MSI, argument: &mut argument }) {
            Ok(status) => Ok(delivery(status)),
            // The kernel hands its "nobody took it", -1, through as an error number.
            Err(Errno::PERM) => Ok(Delivery::Ignored),
            Err(source) => Err(Error::Os { what: "KVM_SIGNAL_MSI", source: source.into() }),
        }
    }

    fn call<T>(&self, call: Call<T>) -> rustix::io::Result<i32> {
        // SAFETY: see the implementation of `Ioctl` for `Call`: opcode and argument belong together.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn count(counter: &AtomicU64) {
    // Relaxed: plain statistics.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// KVM's status as an answer; its 0 is "merged" for a line and "no CPU matches" for a message.
fn delivery(status: i32) -> Delivery {
    match status {
        0 => Delivery::Coalesced,
        n if n > 0 => Delivery::Delivered(n as u32),
        _ => Delivery::Ignored,
    }
}

fn entry(route: &KernelRoute) -> kvm_irq_routing_entry {
    match route {
        KernelRoute::Msi { gsi, message } => {
            let mut entry = kvm_irq_routing_entry { gsi: *gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            if let Some(device) = message.device_id {
                entry.flags = KVM_MSI_VALID_DEVID;
                entry.u.msi.__bindgen_anon_1.devid = device.0;
            }
            entry
        }
        KernelRoute::Pin { gsi, chip, pin } => pin_entry(*gsi, *chip, *pin),
    }
}

fn pin_entry(gsi: u32, chip: ChipId, pin: u16) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = u32::from(chip);
    entry.u.irqchip.pin = u32::from(pin);
    entry
}
