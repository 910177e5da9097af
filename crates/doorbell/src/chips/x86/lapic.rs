//! The local APICs: [`ApicSet`], the half that anyone may send to, and [`LocalApic`], the half that a vCPU's thread owns.
//!
//! Answers are KVM's (spec: x86, rows L1 to L10; routing, rows Q1 to Q9); where KVM departs from the manual (Intel SDM
//! volume 3, chapter 11), [`ApicOptions::strict`] follows the manual.
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
//!
//! The timer has no thread. A vCPU's loop asks for [`next_deadline`](LocalApic::next_deadline), sleeps no longer than
//! that, and lets the timer [`tick`](LocalApic::tick) before it looks at what there is. While it runs the guest, something
//! must bring it back by then: a timer signal, or whatever else the VMM wakes its vCPUs by.
//!
//! ```
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet, LocalApic};
//! use doorbell::VcpuId;
//! use std::{sync::Arc, thread, time::Duration};
//!
//! /// Waits for the next interrupt, as a halted CPU does.
//! fn wait(cpu: &mut LocalApic) -> u8 {
//!     let clock = Arc::clone(cpu.set());
//!     loop {
//!         cpu.disarm();
//!         cpu.tick();
//!         // From here on a sender calls the kick, and `park` below returns at once.
//!         if !cpu.arm().is_idle() {
//!             cpu.disarm();
//!             return cpu.acknowledge().unwrap();
//!         }
//!         match cpu.next_deadline() {
//!             None => thread::park(),
//!             Some(at) => thread::park_timeout(Duration::from_nanos(at.saturating_sub(clock.clock().now_ns()))),
//!         }
//!     }
//! }
//!
//! let vcpu_thread = thread::current();
//! let apics = ApicSet::new(1, Arc::new(move |_: VcpuId| vcpu_thread.unpark()), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(0)).unwrap();
//! cpu.write(0xf0, 0x1ff); // software enable
//! cpu.write(0x3e0, 0xb); // the bus clock, undivided
//! cpu.write(0x320, 0x42); // one-shot, vector 0x42
//! cpu.write(0x380, 1_000_000); // 1 ms
//! assert_eq!(wait(&mut cpu), 0x42);
//! ```

mod access;
mod destination;
mod interrupt;
mod lint;
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
mod timer;

pub use super::message::{DeliveryMode, MessageAddress, MessageData};
pub use access::GeneralProtection;
pub use lint::Lint;
pub use local::{Eoi, LocalApic, Work};
pub use registers::{
    ApicBase, DivideConfiguration, Esr, Icr, LvtEntry, Shorthand, Svr, TimerMode, VersionRegister, slot,
};
pub use set::ApicSet;
pub use state::{LAPIC_PAGE, LocalApicState};
pub use timer::{TSC_DEADLINE_MSR, TimerModes, TimerOptions, TimerState};

/// How the local APICs of a machine behave.
#[derive(Clone, Copy, Debug)]
pub struct ApicOptions {
    /// As the manual says and not as KVM does: messages outside 0xFEExxxxx are refused, vectors below 16 are errors and
    /// not delivered, ExtINT messages are delivered, errors are recorded in ESR, read-only bits of the local vector table
    /// are read-only, reserved bits in x2APIC mode fault.
    pub strict: bool,
    /// x2APIC ids above 255 can be addressed (`KVM_X2APIC_API_USE_32BIT_IDS`).
    pub extended_ids: bool,
    /// Bits 11:5 of a message's address are bits 14:8 of its destination, and so are bits 55:49 of an IOAPIC's entry: what
    /// KVM calls `KVM_FEATURE_MSI_EXT_DEST_ID`, and Xen and Hyper-V offer too. Without interrupt remapping, a guest can so
    /// send devices' interrupts to 32,768 CPUs.
    pub ext_dest_id: bool,
    /// Destination 0xff of a message is not a broadcast in x2APIC mode (`KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`).
    pub no_broadcast_quirk: bool,
    /// Guests may suppress the broadcast of ends of interrupt. Needs an IOAPIC with an EOI register; KVM offers it only
    /// without its own IOAPIC.
    pub eoi_suppression: bool,
    /// How wide physical addresses are, in bits, 36 to 52.
    pub physical_address_bits: u32,
    /// The timers.
    pub timer: TimerOptions,
}

impl Default for ApicOptions {
    /// As KVM with its own IOAPIC and no `KVM_CAP_X2APIC_API`.
    fn default() -> Self {
        Self {
            strict: false,
            extended_ids: false,
            ext_dest_id: false,
            no_broadcast_quirk: false,
            eoi_suppression: false,
            physical_address_bits: 46,
            timer: TimerOptions::default(),
        }
    }
}
