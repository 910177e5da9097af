//! The layouts of the local APIC (Intel SDM volume 3, chapter 11; x2APIC: section 11.12; messages: section 11.11).

use bitfield_struct::bitfield;

use crate::chips::x86::message::DeliveryMode;

/// The registers by number: the xAPIC offset is 16 times it, the x2APIC MSR is 0x800 plus it.
pub mod slot {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const ID: usize = 0x02;
    pub const VERSION: usize = 0x03;
    pub const TPR: usize = 0x08;
    pub const ARBITRATION: usize = 0x09;
    pub const PPR: usize = 0x0a;
    pub const EOI: usize = 0x0b;
    pub const LDR: usize = 0x0d;
    pub const DFR: usize = 0x0e;
    pub const SVR: usize = 0x0f;
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
    pub const ESR: usize = 0x28;
    pub const LVT_CMCI: usize = 0x2f;
    pub const ICR: usize = 0x30;
    pub const ICR_HIGH: usize = 0x31;
    pub const LVT_TIMER: usize = 0x32;
    pub const LVT_THERMAL: usize = 0x33;
    pub const LVT_PERFORMANCE: usize = 0x34;
    pub const LVT_LINT0: usize = 0x35;
    pub const LVT_LINT1: usize = 0x36;
    pub const LVT_ERROR: usize = 0x37;
    pub const TIMER_INITIAL: usize = 0x38;
    pub const TIMER_CURRENT: usize = 0x39;
    pub const TIMER_DIVIDE: usize = 0x3e;
    pub const SELF_IPI: usize = 0x3f;
    /// How many registers a page holds.
    pub const COUNT: usize = 0x40;
}

/// A destination that needs no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Shorthand {
    None = 0,
    This = 1,
    All = 2,
    AllButThis = 3,
}

impl Shorthand {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::This,
            2 => Self::All,
            _ => Self::AllButThis,
        }
    }
}

/// The low half of the interrupt command register (section 11.6.1).
#[bitfield(u32)]
pub struct Icr {
    /// The vector.
    pub vector: u8,
    /// What is sent.
    #[bits(3)]
    pub delivery_mode: DeliveryMode,
    /// The destination is logical.
    pub logical: bool,
    /// Read-only in xAPIC mode; always clear here, sending takes no time.
    pub busy: bool,
    __: bool,
    /// Assert; only a level-triggered INIT is ever de-asserted.
    pub assert: bool,
    /// Level-triggered.
    pub level: bool,
    #[bits(2)]
    __: u8,
    /// Whom it goes to, instead of the destination.
    #[bits(2)]
    pub shorthand: Shorthand,
    #[bits(12)]
    __: u16,
}

impl Icr {
    /// The bits that must be 0 in x2APIC mode.
    pub const X2APIC_RESERVED: u64 = 0xfff3_2000;
}

/// The spurious-interrupt vector register (section 11.9).
#[bitfield(u32)]
pub struct Svr {
    /// The vector of a spurious interrupt.
    pub vector: u8,
    /// Software enable.
    pub enabled: bool,
    /// Focus checking, without effect.
    pub focus: bool,
    #[bits(2)]
    __: u8,
    /// Ends of interrupt are not broadcast.
    pub suppress_eoi_broadcast: bool,
    #[bits(19)]
    __: u32,
}

/// The version register.
#[bitfield(u32)]
pub struct VersionRegister {
    /// 0x14.
    pub version: u8,
    __: u8,
    /// The number of the last entry of the local vector table.
    pub last_lvt: u8,
    /// [`Svr::suppress_eoi_broadcast`] can be set.
    pub can_suppress_eoi_broadcast: bool,
    #[bits(7)]
    __: u8,
}

/// How the timer counts (section 11.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimerMode {
    /// Once.
    OneShot = 0,
    /// Over and over.
    Periodic = 1,
    /// Until the time-stamp counter reaches IA32_TSC_DEADLINE.
    TscDeadline = 2,
    /// Reserved; as in KVM, nothing can be started in it.
    Reserved = 3,
}

impl TimerMode {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer's divide configuration (section 11.5.4).
#[bitfield(u32)]
pub struct DivideConfiguration {
    #[bits(2)]
    low: u8,
    __: bool,
    high: bool,
    #[bits(28)]
    __: u32,
}

impl DivideConfiguration {
    /// The bits that there are.
    pub const IMPLEMENTED: u32 = Self::new().with_low(3).with_high(true).into_bits();

    /// What the bus clock is divided by: 1 to 128, a power of two.
    pub const fn divisor(self) -> u32 {
        let exponent = self.low() as u32 | (self.high() as u32) << 2;
        // 0 is 2, 6 is 128, and 7 is 1.
        1 << ((exponent + 1) & 7)
    }
}

/// An entry of the local vector table (section 11.5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct LvtEntry {
    /// The vector.
    pub vector: u8,
    /// What is delivered.
    #[bits(3)]
    pub delivery_mode: DeliveryMode,
    __: bool,
    /// Read-only by the manual; KVM stores it.
    pub delivery_status: bool,
    /// The pin is active low.
    pub active_low: bool,
    /// Read-only by the manual; KVM stores it.
    pub remote_irr: bool,
    /// The pin is level-triggered.
    pub level: bool,
    /// Masked.
    pub masked: bool,
    /// Of the timer.
    #[bits(2)]
    pub timer_mode: TimerMode,
    #[bits(13)]
    __: u16,
}

impl LvtEntry {
    /// The bits that the manual makes read-only.
    pub const READ_ONLY: u32 = Self::new().with_delivery_status(true).with_remote_irr(true).into_bits();
    /// The bits of the timer's mode.
    pub(super) const TIMER_MODE: u32 = Self::new().with_timer_mode(TimerMode::Reserved).into_bits();
    const PLAIN: Self = Self::new().with_vector(0xff).with_delivery_status(true).with_masked(true);
    const WITH_MODE: Self = Self::PLAIN.with_delivery_mode(DeliveryMode::ExtInt);
    const PIN: Self = Self::WITH_MODE.with_active_low(true).with_remote_irr(true).with_level(true);

    /// The bits that the entry in register `slot` has; 0 if there is no entry.
    pub const fn implemented(slot: usize) -> u32 {
        match slot {
            slot::LVT_TIMER => Self::PLAIN.into_bits() | Self::TIMER_MODE,
            slot::LVT_ERROR => Self::PLAIN.into_bits(),
            slot::LVT_THERMAL | slot::LVT_PERFORMANCE => Self::WITH_MODE.into_bits(),
            slot::LVT_LINT0 | slot::LVT_LINT1 => Self::PIN.into_bits(),
            _ => 0,
        }
    }
}

/// The error status register (section 11.5.3).
#[bitfield(u32)]
pub struct Esr {
    #[bits(5)]
    __: u8,
    /// A vector below 16 was sent.
    pub send_illegal_vector: bool,
    /// A vector below 16 was received.
    pub receive_illegal_vector: bool,
    /// A register that does not exist was touched.
    pub illegal_register: bool,
    #[bits(24)]
    __: u32,
}

impl Esr {
    /// The errors that are ever recorded.
    pub const KNOWN: u32 = Self::new()
        .with_send_illegal_vector(true)
        .with_receive_illegal_vector(true)
        .with_illegal_register(true)
        .into_bits();
}

/// The MSR IA32_APIC_BASE (section 11.4.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ApicBase {
    __: u8,
    /// This is the boot CPU.
    pub bootstrap: bool,
    __: bool,
    /// x2APIC mode.
    pub x2apic: bool,
    /// The APIC is there at all.
    pub enabled: bool,
    /// The page of the xAPIC window.
    #[bits(52)]
    pub page: u64,
}

impl ApicBase {
    /// The MSR's number.
    pub const MSR: u32 = 0x1b;
    /// After reset, without the boot CPU's mark.
    pub const RESET: Self = Self::new().with_page(0xfee00).with_enabled(true);
    /// The bits that must be 0, apart from those above the physical address width.
    pub const RESERVED: u64 = 0x2ff;
}
