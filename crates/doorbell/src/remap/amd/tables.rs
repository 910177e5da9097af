//! What the guest keeps in memory for interrupts: device table entries and interrupt remapping table entries (48882
//! sections 2.2.2 and 2.2.5).

use bitfield_struct::bitfield;

/// The size of a device table entry in bytes.
pub const DEVICE_ENTRY: u64 = 32;
/// Where the quadword with the domain is in it.
pub const DOMAIN: u64 = 8;
/// Where the quadword with the interrupt fields is in it.
pub const INTERRUPTS: u64 = 16;

/// Bits 191:128 of a device table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceInterrupts {
    /// IV: the rest means something.
    pub valid: bool,
    /// IntTabLen: the power of two of the number of entries; above 11 it is reserved.
    #[bits(4)]
    pub length: u8,
    /// IG: blocked interrupts log no IO_PAGE_FAULT.
    pub ignore_unmapped: bool,
    /// Bits 51:6 of the address of the interrupt remapping table.
    #[bits(46)]
    pub table: u64,
    /// Must be 0.
    #[bits(4)]
    pub reserved: u8,
    /// InitPass: INIT passes as it is.
    pub init_pass: bool,
    /// EIntPass: ExtINT passes as it is.
    pub ext_int_pass: bool,
    /// NMIPass: NMI passes as it is.
    pub nmi_pass: bool,
    /// Must be 0.
    pub reserved_high: bool,
    /// IntCtl: what is done with fixed and arbitrated interrupts.
    #[bits(2)]
    pub control: IntCtl,
    /// Lint0Pass: HyperTransport's legacy interrupt message, which no message-signalled interrupt expresses.
    pub lint0_pass: bool,
    /// Lint1Pass: the same of the legacy NMI message.
    pub lint1_pass: bool,
}

impl DeviceInterrupts {
    /// The longest table: 2048 entries.
    pub const LONGEST: u8 = 11;

    /// Where the interrupt remapping table begins.
    pub const fn table_address(self) -> u64 {
        self.table() << 6
    }

    /// Whether a reserved bit is set.
    pub const fn has_reserved_bits(self) -> bool {
        self.reserved() != 0 || self.reserved_high()
    }
}

/// What is done with a device's fixed and arbitrated interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IntCtl {
    /// They are aborted.
    Abort = 0,
    /// They pass as they are.
    Pass = 1,
    /// They are remapped.
    Remap = 2,
    /// Not allowed.
    Reserved = 3,
}

impl IntCtl {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Abort,
            1 => Self::Pass,
            2 => Self::Remap,
            _ => Self::Reserved,
        }
    }
}

/// An interrupt remapping table entry of 32 bits, while guest virtual APICs are off (GAEn = 0).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Entry {
    /// RemapEn.
    pub enable: bool,
    /// SupIOPF: what is blocked by this entry logs no IO_PAGE_FAULT.
    pub suppress_fault: bool,
    /// IntType: 0 fixed, 1 arbitrated; others are reserved.
    #[bits(3)]
    pub kind: u8,
    /// RqEoi: the interrupt is level-triggered.
    pub request_eoi: bool,
    /// DM: the destination is logical.
    pub logical: bool,
    /// Must be 0 in this format.
    pub guest_mode: bool,
    /// The destination.
    pub destination: u8,
    /// The vector.
    pub vector: u8,
    /// Must be 0.
    pub reserved: u8,
}

/// Bits 63:0 of an entry of 128 bits.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct WideLow {
    /// RemapEn.
    pub enable: bool,
    /// SupIOPF.
    pub suppress_fault: bool,
    /// IntType. In guest mode its lowest bit is GALogIntr: the guest virtual APIC log hears of interrupts that come while
    /// the virtual CPU is not running.
    #[bits(3)]
    pub kind: u8,
    /// RqEoi.
    pub request_eoi: bool,
    /// DM. In guest mode IsRun: the virtual CPU runs on the CPU that is the destination.
    pub logical: bool,
    /// GuestMode.
    pub guest_mode: bool,
    /// Bits 23:0 of the destination. Without XTEn only the lowest 8 count.
    #[bits(24)]
    pub destination: u32,
    /// GATag: what the log is to say of this entry.
    pub tag: u32,
}

impl WideLow {
    /// GALogIntr, of an entry in guest mode.
    pub const fn logs(self) -> bool {
        self.kind() & 1 != 0
    }

    /// IsRun, of an entry in guest mode.
    pub const fn is_running(self) -> bool {
        self.logical()
    }
}

/// Bits 127:64 of an entry of 128 bits.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct WideHigh {
    /// The vector.
    pub vector: u8,
    #[bits(4)]
    __: u8,
    /// Bits 51:12 of the address of the virtual APIC's backing page, in guest mode.
    #[bits(40)]
    pub page: u64,
    #[bits(4)]
    __: u8,
    /// Bits 31:24 of the destination.
    pub destination: u8,
}

/// The size of an entry in bytes.
pub const ENTRY: u64 = size_of::<Entry>() as u64;
/// The size of an entry of 128 bits in bytes.
pub const WIDE_ENTRY: u64 = (size_of::<WideLow>() + size_of::<WideHigh>()) as u64;

/// An entry of the guest virtual APIC log, 64 bits (48882 section 2.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GuestLogEntry {
    /// GATag of the interrupt remapping table entry.
    pub tag: u32,
    /// Who sent the interrupt.
    pub device: u16,
    #[bits(12)]
    __: u16,
    /// 1: GA_GUEST_NR, the virtual CPU was not running.
    #[bits(4)]
    pub code: u8,
}

impl GuestLogEntry {
    /// The code of [`code`](Self::code).
    pub const NOT_RUNNING: u8 = 1;
}

/// Where the 32 bits of the IRR with this vector's are in a virtual APIC's backing page, and the bit. The next 32 are not used.
pub const fn irr(vector: u8) -> (u64, u64) {
    (0x200 + (vector as u64 / 32) * 0x10, 1 << (vector % 32))
}
