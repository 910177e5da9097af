//! One VM of Arm by KVM's calls, and what its guest does.
//!
//! The interrupt controllers are *devices*: [`create_device`](ArmCalls::create_device) makes a GICv3 or an ITS, and all
//! else about them is an attribute of the device, named by a group and a number inside it ([`types`]).
//!
//! Numbers in parentheses (C9, I6, N3, Q12, …) are those of the project's specification pages.
//!
//! | file | holds |
//! |---|---|
//! | [`types`] | KVM's constants and layouts |
//! | [`soft`] | [`SoftArmVm`]: what there is of it, and its calls |
//! | `gic_device`, `its_device` | the attributes of both devices |
//! | `frames` | where the guest finds the frames of its GIC |
//! | `sysregs` | the CPU interface's registers as user space has them |
//! | `controller`, `guest` | the GIC in use: its lines and irqfds, and what a guest's code does |

mod controller;
mod frames;
mod gic_device;
mod guest;
mod its_device;
pub mod soft;
mod sysregs;
pub mod types;

use super::{Answer, Errno, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqfd, KvmMsi};
pub use soft::{SoftArmVm, SoftArmVmOptions};
pub use types::{LineCall, LineLayout, Mpidr, RedistRegion, SystemRegister};

/// A device of one VM: what the kernel returns as the descriptor of `KVM_CREATE_DEVICE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device(pub u32);

/// `struct kvm_device_attr`, but for the pointer to the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvmDeviceAttr {
    /// The group, one of [`types::group`].
    pub group: u32,
    /// The attribute inside the group; 64 bits, whose layout is the group's.
    pub attr: u64,
}

/// One VM and its vCPUs, by the calls of KVM on Arm.
///
/// A vCPU is named by the id with which it was created. Each method does what the `ioctl` of its name does, and fails
/// with the same number.
pub trait ArmCalls {
    /// `KVM_CHECK_EXTENSION` on the VM, with a `CAP_…` number: 0 if the VM cannot do it.
    fn check_extension(&self, capability: u32) -> Answer;

    /// `KVM_CREATE_VCPU`. Answers 0.
    ///
    /// # Errors
    /// `EEXIST` if the id is taken, `EINVAL` if it is too high, `EBUSY` once the GIC is initialised.
    fn create_vcpu(&self, id: u32) -> Answer;

    /// `KVM_ARM_PREFERRED_TARGET` and, with what that returned, `KVM_ARM_VCPU_INIT` of one vCPU: it is a CPU from then on.
    ///
    /// # Errors
    /// `EBADF` if there is no such vCPU.
    fn vcpu_init(&self, vcpu: u32) -> Answer;

    /// `KVM_CREATE_DEVICE` of one of the [`types::device`] kinds. `None` with [`types::CREATE_DEVICE_TEST`]: the device
    /// could be made, and was not.
    ///
    /// # Errors
    /// `ENODEV` for a kind that there is not, `EEXIST` for a second GIC.
    fn create_device(&self, kind: u32, flags: u32) -> Result<Option<Device>, Errno>;

    /// `KVM_SET_DEVICE_ATTR`. `value` is what `addr` points to; an attribute of 32 bits takes its low half, and an action
    /// takes nothing.
    ///
    /// # Errors
    /// As the tables of groups say; `EBADF` if there is no such device.
    fn set_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: u64) -> Answer;

    /// `KVM_GET_DEVICE_ATTR`. `value` is what `addr` points to, before and after: an attribute of 32 bits writes its low
    /// half and leaves the other, and a redistributor region is asked for by the index that stands there.
    ///
    /// # Errors
    /// As [`set_device_attr`](Self::set_device_attr); `value` is then as it was.
    fn get_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: &mut u64) -> Answer;

    /// `KVM_HAS_DEVICE_ATTR`: 0 if there is such an attribute.
    ///
    /// # Errors
    /// `ENXIO` if there is none.
    fn has_device_attr(&self, device: Device, attribute: KvmDeviceAttr) -> Answer;

    /// `KVM_IRQFD` (F1 to F9).
    ///
    /// # Errors
    /// `EINVAL`, `EBADF`, `EBUSY` as the pages say; `EAGAIN` before the GIC is initialised (F2).
    fn irqfd(&self, request: &KvmIrqfd) -> Answer;

    /// `KVM_SET_GSI_ROUTING` with a header of this `nr` and these `flags`. The caller provides `nr` entries, or fewer
    /// where the header alone is refused.
    ///
    /// # Errors
    /// `EINVAL` (G1 to G6a); `EFAULT` if there are fewer entries than `nr` says.
    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer;

    /// `KVM_IRQ_LINE`, whose `irq` is a [`LineCall`].
    ///
    /// # Errors
    /// `ENXIO` or `EINVAL` (N1 to N4); `EBUSY` before the GIC is initialised.
    fn irq_line(&self, request: KvmIrqLevel) -> Answer;

    /// `KVM_SIGNAL_MSI` (Q10 to Q16): 1 if it was delivered, 0 if nothing is mapped there.
    ///
    /// # Errors
    /// `EINVAL`, `ENODEV`, `EBUSY` as the page says.
    fn signal_msi(&self, message: &KvmMsi) -> Answer;

    /// Reads guest memory, in which tables and command queues lie. No call of KVM: its user space maps the memory.
    ///
    /// # Errors
    /// `EFAULT` if any of it is no memory; `bytes` may then be partly filled.
    fn read_ram(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno>;

    /// Writes guest memory.
    ///
    /// # Errors
    /// `EFAULT` if any of it is no memory; nothing beyond the start of the hole is then stored.
    fn write_ram(&self, address: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Returns once everything that was signalled so far has arrived.
    ///
    /// No call of KVM either: the kernel injects some events from a worker, and doorbell from its dispatcher. The
    /// eventfds that were written must have been written by the calling thread.
    fn settle(&self);
}

/// What the code of a guest can do to the controllers, on command.
pub trait ArmGuestCalls: ArmCalls {
    /// `MRS`: reads a system register of the CPU interface. Reading an acknowledge register acknowledges.
    ///
    /// # Errors
    /// `EBADF` if there is no such vCPU; `EINVAL` for a register that is none of the CPU interface's, or cannot be read;
    /// `ENXIO` or `EINVAL` while frames have no address or overlap, `EBUSY` before the GIC is initialised, `ENOEXEC` before
    /// the vCPU is.
    fn read_register(&self, vcpu: u32, register: SystemRegister) -> Result<u64, Errno>;

    /// `MSR`: writes one.
    ///
    /// # Errors
    /// As [`read_register`](Self::read_register).
    fn write_register(&self, vcpu: u32, register: SystemRegister, value: u64) -> Result<(), Errno>;

    /// A load of 1, 2, 4 or 8 bytes from a register of the distributor, a redistributor or an ITS.
    ///
    /// # Errors
    /// `EINVAL` for an address in none of their frames, or another number of bytes; else as
    /// [`read_register`](Self::read_register).
    fn load(&self, vcpu: u32, address: u64, bytes: u8) -> Result<u64, Errno>;

    /// A store to one.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn store(&self, vcpu: u32, address: u64, bytes: u8, value: u64) -> Result<(), Errno>;
}
