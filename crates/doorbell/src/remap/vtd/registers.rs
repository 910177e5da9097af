//! The registers of a remapping unit (Intel VT-d specification, revision 3 and 4, chapter "Register Descriptions").

use bitfield_struct::bitfield;

/// Version.
pub const VERSION: u64 = 0x00;
/// Capability.
pub const CAPABILITY: u64 = 0x08;
/// Extended capability.
pub const EXTENDED_CAPABILITY: u64 = 0x10;
/// Global command.
pub const GLOBAL_COMMAND: u64 = 0x18;
/// Global status.
pub const GLOBAL_STATUS: u64 = 0x1c;
/// Root table address. Kept, without effect: these units do not translate DMA.
pub const ROOT_TABLE: u64 = 0x20;
/// Fault status.
pub const FAULT_STATUS: u64 = 0x34;
/// Fault event control, data, address and upper address.
pub const FAULT_EVENT: u64 = 0x38;
/// Head of the invalidation queue.
pub const QUEUE_HEAD: u64 = 0x80;
/// Tail of the invalidation queue.
pub const QUEUE_TAIL: u64 = 0x88;
/// Address of the invalidation queue.
pub const QUEUE_ADDRESS: u64 = 0x90;
/// Invalidation completion status.
pub const COMPLETION_STATUS: u64 = 0x9c;
/// Invalidation completion event control, data, address and upper address.
pub const COMPLETION_EVENT: u64 = 0xa0;
/// Invalidation queue error record.
pub const QUEUE_ERROR: u64 = 0xb0;
/// Address of the remapping table.
pub const TABLE_ADDRESS: u64 = 0xb8;
/// The first fault recording register; each has 16 bytes. Where QEMU has it.
pub const FAULT_RECORDS: u64 = 0x220;
/// The size of the window.
pub const WINDOW: u64 = 0x1000;

/// The version register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Version {
    #[bits(4)]
    pub minor: u8,
    #[bits(4)]
    pub major: u8,
    #[bits(24)]
    __: u32,
}

/// The capability register. No address widths are claimed: the unit translates no DMA.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// Number of domains: 2^(4 + 2 n).
    #[bits(3)]
    pub domains: u8,
    #[bits(5)]
    __: u8,
    /// Supported address widths.
    #[bits(5)]
    pub address_widths: u8,
    #[bits(3)]
    __: u8,
    /// Maximum guest address width less 1.
    #[bits(6)]
    pub guest_width: u8,
    #[bits(2)]
    __: u8,
    /// Where the fault recording registers are, in units of 16 bytes.
    #[bits(10)]
    pub fault_offset: u16,
    #[bits(6)]
    __: u8,
    /// Number of fault recording registers less 1.
    pub fault_records: u8,
    #[bits(11)]
    __: u16,
    /// Posted interrupts.
    pub posted: bool,
    #[bits(2)]
    __: u8,
    /// A new interrupt remapping table invalidates the entry cache by itself.
    pub table_pointer_invalidates: bool,
    __: bool,
}

/// The extended capability register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// Page walks are coherent.
    pub coherent: bool,
    /// Queued invalidation.
    pub queued_invalidation: bool,
    __: bool,
    /// Interrupt remapping.
    pub interrupt_remapping: bool,
    /// Extended interrupt mode (x2APIC).
    pub extended_mode: bool,
    #[bits(3)]
    __: u8,
    /// Where the IOTLB registers are, in units of 16 bytes.
    #[bits(10)]
    pub iotlb_offset: u16,
    #[bits(2)]
    __: u8,
    /// The largest index mask of an invalidation.
    #[bits(4)]
    pub handle_mask: u8,
    #[bits(40)]
    __: u64,
}

/// Global command and global status: a command sets or clears a status bit, or is done at once (one-shot).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Global {
    #[bits(23)]
    __: u32,
    /// Let messages in compatibility format pass.
    pub compatibility: bool,
    /// One-shot: take the address of the remapping table.
    pub set_table: bool,
    /// Remap interrupts.
    pub remapping: bool,
    /// Use the invalidation queue.
    pub queue: bool,
    /// One-shot: flush the write buffer. Not needed here.
    pub write_buffer_flush: bool,
    /// Advanced fault log. Not offered.
    pub advanced_log: bool,
    /// One-shot: set the fault log. Not offered.
    pub set_log: bool,
    /// One-shot: take the root table address.
    pub set_root: bool,
    /// Translate DMA. Not offered.
    pub translation: bool,
}

/// Fault status.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// A fault was not recorded for want of a free register; cleared by writing 1.
    pub overflow: bool,
    /// A record is pending; read-only.
    pub pending: bool,
    #[bits(2)]
    __: u8,
    /// The invalidation queue has stopped at an error; cleared by writing 1.
    pub queue_error: bool,
    #[bits(3)]
    __: u8,
    /// The first pending record.
    pub index: u8,
    __: u16,
}

/// The control register of an event.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// An event waits for the mask to be taken away; read-only.
    pub pending: bool,
    /// No message is sent.
    pub masked: bool,
}

/// The head or the tail of the invalidation queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueuePointer {
    #[bits(4)]
    __: u8,
    /// The number of a descriptor of 128 bits.
    #[bits(15)]
    pub index: u16,
    #[bits(45)]
    __: u64,
}

/// The address of the invalidation queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// The queue has 2^(n + 8) descriptors of 128 bits.
    #[bits(3)]
    pub size: u8,
    /// Bit 11, descriptors of 256 bits, is reserved in units without scalable mode, like these.
    #[bits(9)]
    __: u16,
    /// The address of its first page, in pages.
    #[bits(52)]
    pub page: u64,
}

/// Invalidation completion status.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CompletionStatus {
    /// A wait descriptor that asked for an interrupt is complete; cleared by writing 1.
    pub complete: bool,
    #[bits(31)]
    __: u32,
}

/// The error record of the invalidation queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    #[bits(4)]
    pub information: u8,
    #[bits(60)]
    __: u64,
}

/// The address of the interrupt remapping table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TableAddress {
    /// The table has 2^(n + 1) entries.
    #[bits(4)]
    pub size: u8,
    #[bits(7)]
    __: u8,
    /// Extended interrupt mode: destinations have 32 bits, and messages in compatibility format are always blocked.
    pub extended_mode: bool,
    /// The address of its first page, in pages.
    #[bits(52)]
    pub page: u64,
}

impl TableAddress {
    /// How many entries the table has: 2 to 65,536.
    pub const fn entries(self) -> u32 {
        2 << self.size()
    }

    /// Where an entry is.
    pub const fn entry(self, index: u32) -> u64 {
        (self.page() << 12) + 16 * index as u64
    }
}

/// The upper half of a fault record; for interrupts, bits 63:48 of the lower half are the index.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecord {
    /// Who sent the message.
    pub source: u16,
    __: u16,
    /// The fault reason.
    pub reason: u8,
    #[bits(23)]
    __: u32,
    /// The record is taken; cleared by writing 1.
    pub fault: bool,
}
