//! The local APICs: [`ApicSet`], the half that anyone may send to, and [`LocalApic`], the half that a vCPU's thread owns.
//!
//! Answers are KVM's (spec: x86, rows L1 to L10; routing, rows Q1 to Q9); where KVM departs from the manual (Intel SDM
//! volume 3, chapter 11), [`ApicOptions::strict`] follows the manual. The timer's registers are there, the timer is not.
//!
//! A sender sets a bit in IRR and, if the vCPU has armed, wakes it. A vCPU arms before it sleeps or enters the guest:
//!
//! ```
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
//! use doorbell::{Delivery, MsiMessage, MsiTarget, VcpuId};
//! use std::sync::Arc;
//!
//! let kick = |vcpu: VcpuId| println!("wake {vcpu:?}");
//! let apics = ApicSet::new(2, Arc::new(kick), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(1)).unwrap();
//! cpu.write(0xf0, 0x1ff); // software enable
//!
//! assert!(cpu.arm().is_idle(), "nothing is pending: it may sleep, and will be woken");
//! assert_eq!(apics.send(&MsiMessage::new(0xfee0_1000, 0x41)).unwrap(), Delivery::Delivered(1));
//!
//! assert_eq!(cpu.next().interrupt, Some(0x41));
//! assert_eq!(cpu.acknowledge(), Some(0x41));
//! assert_eq!(cpu.acknowledge(), None, "in service");
//! assert!(!cpu.eoi().unwrap().level, "nothing to tell the IOAPIC");
//! ```

mod access;
mod interrupt;
mod local;
#[cfg(all(test, not(loom)))]
mod machine;
mod map;
#[cfg(all(test, loom))]
mod models;
mod registers;
mod set;
mod shared;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

pub use access::GeneralProtection;
pub use local::{Eoi, LocalApic, Work};
pub use registers::{
    ApicBase, DeliveryMode, Esr, Icr, LvtEntry, MessageAddress, MessageData, Shorthand, Svr, VersionRegister, slot,
};
pub use set::ApicSet;
pub use state::{LAPIC_PAGE, LocalApicState};

/// How the local APICs of a machine behave.
#[derive(Clone, Copy, Debug)]
pub struct ApicOptions {
    /// As the manual says and not as KVM does: messages outside 0xFEExxxxx are refused, vectors below 16 are errors and
    /// not delivered, ExtINT messages are delivered, errors are recorded in ESR, read-only bits of the local vector table
    /// are read-only, reserved bits in x2APIC mode fault.
    pub strict: bool,
    /// x2APIC ids above 255 can be addressed (`KVM_X2APIC_API_USE_32BIT_IDS`).
    pub extended_ids: bool,
    /// Destination 0xff of a message is not a broadcast in x2APIC mode (`KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`).
    pub no_broadcast_quirk: bool,
    /// Guests may suppress the broadcast of ends of interrupt. Needs an IOAPIC with an EOI register; KVM offers it only
    /// without its own IOAPIC.
    pub eoi_suppression: bool,
    /// How wide physical addresses are, in bits, 36 to 52.
    pub physical_address_bits: u32,
}

impl Default for ApicOptions {
    /// As KVM with its own IOAPIC and no `KVM_CAP_X2APIC_API`.
    fn default() -> Self {
        Self {
            strict: false,
            extended_ids: false,
            no_broadcast_quirk: false,
            eoi_suppression: false,
            physical_address_bits: 46,
        }
    }
}
