//! The registers of a unit (AMD publication 48882, "I/O Virtualization Technology (IOMMU) Specification", section 3.4).

use bitfield_struct::bitfield;

use crate::{
    MsiMessage,
    chips::x86::message::{DeliveryMode, MessageAddress, MessageData},
};

/// Where the registers are in the unit's MMIO window.
pub mod offset {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const DEVICE_TABLE_BASE: u64 = 0x0000;
    pub const COMMAND_BUFFER_BASE: u64 = 0x0008;
    pub const EVENT_LOG_BASE: u64 = 0x0010;
    pub const CONTROL: u64 = 0x0018;
    pub const EXCLUSION_BASE: u64 = 0x0020;
    pub const EXCLUSION_LIMIT: u64 = 0x0028;
    pub const EXTENDED_FEATURES: u64 = 0x0030;
    pub const GA_LOG_BASE: u64 = 0x00e0;
    pub const GA_LOG_TAIL_ADDRESS: u64 = 0x00e8;
    /// The PCI capability's miscellaneous information, read-only.
    pub const MISCELLANEOUS: u64 = 0x0150;
    /// The MSI capability's header in the low half, the low half of its address in the high one.
    pub const MSI_HEADER: u64 = 0x0158;
    /// The high half of the MSI capability's address in the low half, its data in the high one.
    pub const MSI_DATA: u64 = 0x0160;
    /// The general interrupt (events, completed waits) in x2APIC form.
    pub const XT_GENERAL: u64 = 0x0170;
    pub const XT_PPR: u64 = 0x0178;
    pub const XT_GA_LOG: u64 = 0x0180;
    pub const EXTENDED_FEATURES_2: u64 = 0x01a0;
    pub const COMMAND_HEAD: u64 = 0x2000;
    pub const COMMAND_TAIL: u64 = 0x2008;
    pub const EVENT_HEAD: u64 = 0x2010;
    pub const EVENT_TAIL: u64 = 0x2018;
    pub const STATUS: u64 = 0x2020;
    pub const GA_LOG_HEAD: u64 = 0x2040;
    pub const GA_LOG_TAIL: u64 = 0x2048;
}

/// The size of the MMIO window; without performance counters it is 16 KiB (section 3.2.2).
pub const WINDOW: u64 = 0x4000;

/// Bits of a physical address from a 4 KiB page on.
const PAGE_SHIFT: u32 = 12;

/// The device table base address register (MMIO 0000h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTableBase {
    /// The size of the table in units of 4 KiB, less one.
    #[bits(9)]
    pub size: u16,
    #[bits(3)]
    __: u8,
    /// Bits 51:12 of the address.
    #[bits(40)]
    pub page: u64,
    #[bits(12)]
    __: u16,
}

impl DeviceTableBase {
    /// The bits that a guest can set.
    pub const WRITABLE: u64 = Self::new().with_size(0x1ff).with_page((1 << 40) - 1).into_bits();

    /// Where the table begins.
    pub const fn address(self) -> u64 {
        self.page() << PAGE_SHIFT
    }

    /// How many entries of 32 bytes it has.
    pub const fn entries(self) -> u32 {
        (self.size() as u32 + 1) * (1 << PAGE_SHIFT) / 32
    }
}

/// The base address register of the command buffer, the event log or the guest virtual APIC log (MMIO 0008h, 0010h, 00E0h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct BufferBase {
    #[bits(12)]
    __: u16,
    /// Bits 51:12 of the address.
    #[bits(40)]
    pub page: u64,
    #[bits(4)]
    __: u8,
    /// The power of two of the number of entries; below 8 it is reserved.
    #[bits(4)]
    pub length: u8,
    #[bits(4)]
    __: u8,
}

impl BufferBase {
    /// The bits that a guest can set.
    pub const WRITABLE: u64 = Self::new().with_length(0xf).with_page((1 << 40) - 1).into_bits();

    /// Where the buffer begins.
    pub const fn address(self) -> u64 {
        self.page() << PAGE_SHIFT
    }

    /// How many entries it has: 256 to 32768, or `None` with a reserved length.
    pub const fn entries(self) -> Option<u32> {
        if self.length() >= 8 { Some(1 << self.length()) } else { None }
    }
}

/// The bits of a head or tail pointer: the offset of an entry of 16 bytes in at most 32768 (MMIO 2000h to 2018h).
pub const POINTER: u64 = 0x7_fff0;
/// The same of the guest virtual APIC log, whose entries have 8 bytes (MMIO 2040h, 2048h).
pub const GA_POINTER: u64 = 0xfff8;

/// The control register (MMIO 0018h): those bits that mean something to this unit, or to nobody.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// IommuEn: the unit looks at requests, commands and logs.
    pub enable: bool,
    /// HtTunEn.
    pub tunnel: bool,
    /// EventLogEn.
    pub event_log: bool,
    /// EventIntEn.
    pub event_interrupt: bool,
    /// ComWaitIntEn.
    pub wait_interrupt: bool,
    /// InvTimeOut: how long a device may take to answer an invalidation.
    #[bits(3)]
    pub timeout: u8,
    /// PassPW, ResPassPW, Coherent and Isoc: attributes of the unit's bus transactions.
    #[bits(4)]
    pub attributes: u8,
    /// CmdBufEn.
    pub command_buffer: bool,
    #[bits(4)]
    __: u8,
    /// GAEn: interrupt remapping entries have 128 bits.
    pub wide_entries: bool,
    #[bits(7)]
    __: u8,
    /// GAMEn: 001b lets entries post to a guest's virtual APIC.
    #[bits(3)]
    pub guest_mode: u8,
    /// GALogEn.
    pub guest_log: bool,
    /// GAIntEn.
    pub guest_interrupt: bool,
    #[bits(13)]
    __: u16,
    /// NumIntRemapMode: 01b remaps by all 11 bits of the data, whatever their delivery mode.
    #[bits(2)]
    pub index_mode: u8,
    #[bits(5)]
    __: u8,
    /// XTEn: destinations have 32 bits.
    pub x2apic: bool,
    /// IntCapXTEn: the unit's own interrupts are those of the XT registers.
    pub x2apic_own: bool,
    #[bits(12)]
    __: u16,
}

impl Control {
    /// The bits that a guest can always set.
    const ALWAYS: u64 = Self::new()
        .with_enable(true)
        .with_tunnel(true)
        .with_event_log(true)
        .with_event_interrupt(true)
        .with_wait_interrupt(true)
        .with_timeout(7)
        .with_attributes(0xf)
        .with_command_buffer(true)
        .into_bits();
    /// Those that need [`ExtendedFeatures::guest_apic`].
    const GUEST_APIC: u64 = Self::new()
        .with_wide_entries(true)
        .with_guest_mode(7)
        .with_guest_log(true)
        .with_guest_interrupt(true)
        .into_bits();
    /// Those that need [`ExtendedFeatures::x2apic`].
    const X2APIC: u64 = Self::new().with_x2apic(true).with_x2apic_own(true).into_bits();
    /// Those that need [`ExtendedFeatures2::wide_index`].
    const WIDE_INDEX: u64 = Self::new().with_index_mode(3).into_bits();

    /// The bits that a guest can set in a unit with these features; the others are 0.
    pub const fn writable(features: ExtendedFeatures, features_2: ExtendedFeatures2) -> u64 {
        Self::ALWAYS
            | if features.guest_apic() { Self::GUEST_APIC } else { 0 }
            | if features.x2apic() { Self::X2APIC } else { 0 }
            | if features_2.wide_index() == 1 { Self::WIDE_INDEX } else { 0 }
    }

    /// Whether the whole of data bits 10:0 is the index of an entry.
    pub const fn indexes_all(self) -> bool {
        self.index_mode() == 1
    }
}

/// The status register (MMIO 2020h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// EventOverflow, cleared by a 1: an event found no room and was dropped, and so are all until this is cleared.
    pub event_overflow: bool,
    /// EventLogInt, cleared by a 1: an event was written.
    pub event_logged: bool,
    /// ComWaitInt, cleared by a 1: a COMPLETION_WAIT that asked for it was completed.
    pub wait_completed: bool,
    /// EventLogRun, read-only.
    pub event_log_runs: bool,
    /// CmdBufRun, read-only.
    pub command_buffer_runs: bool,
    #[bits(3)]
    __: u8,
    /// GALogRun, read-only.
    pub guest_log_runs: bool,
    /// GALOverflow, cleared by a 1.
    pub guest_overflow: bool,
    /// GAInt, cleared by a 1: an entry of the guest virtual APIC log was written.
    pub guest_logged: bool,
    #[bits(53)]
    __: u64,
}

impl Status {
    /// The bits that a stored 1 clears.
    pub const CLEARED_BY_1: u64 = Self::new()
        .with_event_overflow(true)
        .with_event_logged(true)
        .with_wait_completed(true)
        .with_guest_overflow(true)
        .with_guest_logged(true)
        .into_bits();
}

/// The extended feature register (MMIO 0030h), read-only: what this unit may claim.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedFeatures {
    #[bits(2)]
    __: u8,
    /// XTSup: 32-bit destinations, interrupts of its own in x2APIC form.
    pub x2apic: bool,
    #[bits(3)]
    __: u8,
    /// IASup: the command INVALIDATE_IOMMU_ALL.
    pub invalidate_all: bool,
    /// GASup: 128-bit entries, guest virtual APICs.
    pub guest_apic: bool,
    #[bits(13)]
    __: u16,
    /// GAMSup: 001b, posting and its log.
    #[bits(3)]
    pub guest_modes: u8,
    #[bits(22)]
    __: u32,
    /// MsiCapMmioSup: the MSI capability is in the MMIO window too.
    pub msi_in_window: bool,
    #[bits(17)]
    __: u32,
}

/// The second extended feature register (MMIO 01A0h), read-only.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedFeatures2 {
    __: u8,
    /// NumInt2KSup: 01b, 2048 interrupts for each device.
    #[bits(2)]
    pub wide_index: u8,
    #[bits(54)]
    __: u64,
}

/// An interrupt of the unit's own in x2APIC form (MMIO 0170h, 0178h, 0180h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct XtInterrupt {
    #[bits(2)]
    __: u8,
    /// The destination is logical.
    pub logical: bool,
    #[bits(5)]
    __: u8,
    /// Bits 23:0 of the destination.
    #[bits(24)]
    pub destination_low: u32,
    /// The vector.
    pub vector: u8,
    /// Arbitrated (lowest priority), not fixed.
    pub arbitrated: bool,
    #[bits(15)]
    __: u16,
    /// Bits 31:24 of the destination.
    pub destination_high: u8,
}

impl XtInterrupt {
    /// The bits that a guest can set.
    pub const WRITABLE: u64 = Self::new()
        .with_logical(true)
        .with_destination_low(0xff_ffff)
        .with_vector(0xff)
        .with_arbitrated(true)
        .with_destination_high(0xff)
        .into_bits();

    /// The interrupt as a message.
    pub fn message(self) -> MsiMessage {
        let destination = self.destination_low() | u32::from(self.destination_high()) << 24;
        let address = MessageAddress::to(destination, self.logical());
        let mode = if self.arbitrated() { DeliveryMode::LowestPriority } else { DeliveryMode::Fixed };
        let data = MessageData::new().with_vector(self.vector()).with_delivery_mode(mode);
        MsiMessage::new(address.into_bits(), data.into_bits())
    }
}

/// The header of the MSI capability (MMIO 0158h).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiHeader {
    /// 5: message-signalled interrupts.
    pub id: u8,
    /// The next capability; 0 here, the configuration space has it.
    pub next: u8,
    /// The only bit that a guest can set.
    pub enable: bool,
    #[bits(6)]
    __: u8,
    /// The address has 64 bits.
    pub wide: bool,
    __: u8,
}
