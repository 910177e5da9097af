//! KVM's structs and constants: those that architectures share here, and x86's beside them.
//!
//! Layouts are those of the public header `linux/kvm.h`; tests pin sizes and offsets. Unions are plain words or bytes
//! with a reader and a writer per shape, so that no `unsafe` is needed to look at them.

#[cfg(feature = "x86")]
mod x86;

#[cfg(feature = "x86")]
pub use x86::*;

/// `KVM_IRQFD_FLAG_DEASSIGN`.
pub const IRQFD_DEASSIGN: u32 = 1 << 0;
/// `KVM_IRQFD_FLAG_RESAMPLE`.
pub const IRQFD_RESAMPLE: u32 = 1 << 1;

/// `KVM_MAX_IRQ_ROUTES`.
pub const MAX_IRQ_ROUTES: u32 = 4096;
/// `KVM_IRQ_ROUTING_IRQCHIP`: the entry is a pin.
pub const ROUTING_IRQCHIP: u32 = 1;
/// `KVM_IRQ_ROUTING_MSI`: the entry is a message.
pub const ROUTING_MSI: u32 = 2;
/// `KVM_IRQ_ROUTING_S390_ADAPTER`.
pub const ROUTING_S390_ADAPTER: u32 = 3;
/// `KVM_IRQ_ROUTING_HV_SINT`.
pub const ROUTING_HV_SINT: u32 = 4;
/// `KVM_IRQ_ROUTING_XEN_EVTCHN`.
pub const ROUTING_XEN_EVTCHN: u32 = 5;
/// `KVM_MSI_VALID_DEVID`: the `devid` of a message counts. x86 ignores it.
pub const MSI_VALID_DEVID: u32 = 1 << 0;

/// `KVM_CAP_IRQCHIP`.
pub const CAP_IRQCHIP: u32 = 0;
/// `KVM_CAP_IRQ_ROUTING`.
pub const CAP_IRQ_ROUTING: u32 = 25;
/// `KVM_CAP_IRQFD`.
pub const CAP_IRQFD: u32 = 32;
/// `KVM_CAP_SIGNAL_MSI`.
pub const CAP_SIGNAL_MSI: u32 = 77;
/// `KVM_CAP_IRQFD_RESAMPLE`.
pub const CAP_IRQFD_RESAMPLE: u32 = 82;
/// `KVM_CAP_MSI_DEVID`.
pub const CAP_MSI_DEVID: u32 = 131;

/// `struct kvm_irqfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmIrqfd {
    /// The eventfd; a negative number is written as its two's complement.
    pub fd: u32,
    /// The GSI it signals.
    pub gsi: u32,
    /// [`IRQFD_DEASSIGN`], [`IRQFD_RESAMPLE`].
    pub flags: u32,
    /// The eventfd that is signalled when a level interrupt ends.
    pub resamplefd: u32,
    /// Zero.
    pub pad: [u8; 16],
}

/// The header of `struct kvm_irq_routing`; the entries follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmIrqRouting {
    /// How many entries follow.
    pub nr: u32,
    /// Zero.
    pub flags: u32,
}

/// `struct kvm_irq_routing_entry`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmIrqRoutingEntry {
    /// The GSI this entry is for.
    pub gsi: u32,
    /// One of the `ROUTING_…` constants; KVM's field is called `type`.
    pub kind: u32,
    /// [`MSI_VALID_DEVID`] on a message, else 0.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// The union. Pin: chip, pin. Message: address low, address high, data, DeviceID.
    pub payload: [u32; 8],
}

impl KvmIrqRoutingEntry {
    /// A pin of a chip.
    pub const fn pin(gsi: u32, irqchip: u32, pin: u32) -> Self {
        Self { gsi, kind: ROUTING_IRQCHIP, flags: 0, pad: 0, payload: [irqchip, pin, 0, 0, 0, 0, 0, 0] }
    }

    /// A message.
    pub const fn msi(gsi: u32, address: u64, data: u32) -> Self {
        let payload = [address as u32, (address >> 32) as u32, data, 0, 0, 0, 0, 0];
        Self { gsi, kind: ROUTING_MSI, flags: 0, pad: 0, payload }
    }
}

/// `struct kvm_irq_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmIrqLevel {
    /// The GSI; `KVM_IRQ_LINE_STATUS` writes its status over it.
    pub irq: u32,
    /// 0 low, anything else high.
    pub level: u32,
}

/// `struct kvm_msi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmMsi {
    /// Bits 31:0 of the address.
    pub address_lo: u32,
    /// Bits 63:32 of the address.
    pub address_hi: u32,
    /// What is written there.
    pub data: u32,
    /// [`MSI_VALID_DEVID`].
    pub flags: u32,
    /// The DeviceID, if the flag says so.
    pub devid: u32,
    /// Zero.
    pub pad: [u8; 12],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of, size_of};

    #[test]
    fn sizes_are_those_of_the_kernels_header() {
        assert_eq!(size_of::<KvmIrqfd>(), 32);
        assert_eq!(size_of::<KvmIrqRouting>(), 8);
        assert_eq!((size_of::<KvmIrqRoutingEntry>(), align_of::<KvmIrqRoutingEntry>()), (48, 8));
        assert_eq!(offset_of!(KvmIrqRoutingEntry, payload), 16);
        assert_eq!(size_of::<KvmIrqLevel>(), 8);
        assert_eq!(size_of::<KvmMsi>(), 32);
    }
}
