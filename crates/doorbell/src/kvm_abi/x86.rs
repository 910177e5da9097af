//! One VM of x86 by KVM's calls, and what its guest does.

use super::{Answer, Errno, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd, KvmLapicState, KvmMsi};

/// One VM and its vCPUs, by the calls of KVM.
///
/// A vCPU is named by the id with which it was created. Each method does what the `ioctl` of its name does, and fails
/// with the same number.
pub trait KvmCalls {
    /// `KVM_CHECK_EXTENSION` with one of the `CAP_…` numbers of [`types`](super::types): 0 if the VM cannot do it.
    fn check_extension(&self, capability: u32) -> Answer;

    /// `KVM_CREATE_IRQCHIP`: the full chip, with its default routes.
    ///
    /// # Errors
    /// `EEXIST` if there is one already, `EINVAL` once there are vCPUs.
    fn create_irqchip(&self) -> Answer;

    /// `KVM_CREATE_VCPU`. Answers 0.
    ///
    /// # Errors
    /// `EEXIST` if the id is taken, `EINVAL` if it is too high.
    fn create_vcpu(&self, id: u32) -> Answer;

    /// `KVM_IRQFD` (F1 to F9).
    ///
    /// # Errors
    /// `EINVAL`, `EBADF`, `EBUSY` as the pages say.
    fn irqfd(&self, request: &KvmIrqfd) -> Answer;

    /// `KVM_SET_GSI_ROUTING` with a header of this `nr` and these `flags`. The caller provides `nr` entries, or fewer
    /// where the header alone is refused.
    ///
    /// # Errors
    /// `EINVAL` (G1 to G6); `EFAULT` if there are fewer entries than `nr` says.
    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer;

    /// `KVM_IRQ_LINE`.
    ///
    /// # Errors
    /// `ENXIO` without a chip.
    fn irq_line(&self, request: KvmIrqLevel) -> Answer;

    /// `KVM_IRQ_LINE_STATUS`: the status that the kernel writes over `irq`: more than 0 delivered, 0 merged, -1 ignored.
    ///
    /// # Errors
    /// `ENXIO` without a chip.
    fn irq_line_status(&self, request: KvmIrqLevel) -> Answer;

    /// `KVM_SIGNAL_MSI` (Q1 to Q9): how many APICs took it.
    ///
    /// # Errors
    /// `EINVAL` for a flag other than bit 0, or without a chip.
    fn signal_msi(&self, message: &KvmMsi) -> Answer;

    /// `KVM_GET_IRQCHIP` of the chip that `chip.chip_id` names.
    ///
    /// # Errors
    /// `ENXIO` without a chip, `EINVAL` for another id.
    fn get_irqchip(&self, chip: &mut KvmIrqchip) -> Answer;

    /// `KVM_SET_IRQCHIP`.
    ///
    /// # Errors
    /// As [`get_irqchip`](Self::get_irqchip).
    fn set_irqchip(&self, chip: &KvmIrqchip) -> Answer;

    /// `KVM_GET_LAPIC` of one vCPU.
    ///
    /// # Errors
    /// `EINVAL` without a chip; `EBADF` if there is no such vCPU.
    fn get_lapic(&self, vcpu: u32, state: &mut KvmLapicState) -> Answer;

    /// `KVM_SET_LAPIC` of one vCPU.
    ///
    /// # Errors
    /// As [`get_lapic`](Self::get_lapic).
    fn set_lapic(&self, vcpu: u32, state: &KvmLapicState) -> Answer;

    /// Returns once everything that was signalled so far has arrived.
    ///
    /// The one method that is no call of KVM: the kernel injects some events from a worker, and doorbell from its
    /// dispatcher. The eventfds that were written must have been written by the calling thread.
    fn settle(&self);
}

/// What the code of a guest can do to the controllers, on command.
///
/// The local APIC is in xAPIC mode at 0xfee00000 and the IOAPIC at 0xfec00000, where they are after reset.
pub trait GuestCalls: KvmCalls {
    /// The vCPU takes its highest deliverable interrupt, if there is one, and its vector is returned; it stays in service
    /// until [`store`](Self::store) writes the EOI register.
    ///
    /// # Errors
    /// `EBADF` if there is no such vCPU.
    fn acknowledge(&self, vcpu: u32) -> Result<Option<u8>, Errno>;

    /// A 32-bit load from a register of either controller.
    ///
    /// # Errors
    /// `EINVAL` for an address outside of the two register pages; `EBADF` if there is no such vCPU; `EPROTO` if the vCPU
    /// does something else.
    fn load(&self, vcpu: u32, address: u64) -> Result<u32, Errno>;

    /// A 32-bit store to a register of either controller.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn store(&self, vcpu: u32, address: u64, value: u32) -> Result<(), Errno>;

    /// A load of one byte from a port of the 8259 pair.
    ///
    /// # Errors
    /// `EINVAL` for another port; else as [`load`](Self::load).
    fn port_load(&self, vcpu: u32, port: u16) -> Result<u8, Errno>;

    /// A store of one byte to one.
    ///
    /// # Errors
    /// As [`port_load`](Self::port_load).
    fn port_store(&self, vcpu: u32, port: u16, value: u8) -> Result<(), Errno>;
}
