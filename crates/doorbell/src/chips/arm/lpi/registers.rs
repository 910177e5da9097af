//! The redistributor's registers for LPIs (Arm IHI 0069, "The GIC Redistributor register descriptions").

use bitfield_struct::bitfield;

/// GICR_CTLR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(in crate::chips::arm) struct Control {
    /// EnableLPIs.
    pub enable_lpis: bool,
    /// CES: EnableLPIs can be cleared again. Read-only.
    pub clear_enable_supported: bool,
    /// IR: GICR_INVLPIR, GICR_INVALLR and GICR_SYNCR are there. Read-only.
    pub invalidate_registers: bool,
    /// RWP: LPIs are being switched off. Read-only.
    pub write_pending: bool,
    #[bits(27)]
    __: u32,
    /// UWP: never set, nothing is delayed. Read-only.
    pub upstream_write_pending: bool,
}

/// GICR_PROPBASER: where the configuration of LPIs is.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(in crate::chips::arm) struct Properties {
    /// IDbits: the table has entries for INTIDs of this many bits + 1.
    #[bits(5)]
    pub id_bits: u8,
    #[bits(2)]
    __: u8,
    #[bits(3)]
    pub inner_cache: u8,
    #[bits(2)]
    pub shareability: u8,
    /// Bits 51:12 of the address.
    #[bits(40)]
    pub page: u64,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    pub outer_cache: u8,
    #[bits(5)]
    __: u8,
}

impl Properties {
    /// What can be written.
    pub const WRITABLE: Self = Self::new()
        .with_id_bits(0x1f)
        .with_inner_cache(7)
        .with_shareability(3)
        .with_page((1 << 40) - 1)
        .with_outer_cache(7);

    /// The guest-physical address of the table: one byte for each LPI, the first for INTID 8192.
    pub fn address(self) -> u64 {
        self.page() << 12
    }

    /// How many INTIDs the table is for. Fewer than 14 bits make no LPI.
    pub fn limit(self) -> u32 {
        1u32 << (self.id_bits() + 1).min(31)
    }
}

/// GICR_PENDBASER: where the pending bits of a redistributor's LPIs are while they are switched off.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(in crate::chips::arm) struct Pending {
    #[bits(7)]
    __: u8,
    #[bits(3)]
    pub inner_cache: u8,
    #[bits(2)]
    pub shareability: u8,
    #[bits(4)]
    __: u8,
    /// Bits 51:16 of the address.
    #[bits(36)]
    pub page: u64,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    pub outer_cache: u8,
    #[bits(3)]
    __: u8,
    /// PTZ: the table is known to be zero. Reads as 0.
    pub table_is_zero: bool,
    __: bool,
}

impl Pending {
    /// What can be written.
    pub const WRITABLE: Self = Self::new()
        .with_inner_cache(7)
        .with_shareability(3)
        .with_page((1 << 36) - 1)
        .with_outer_cache(7)
        .with_table_is_zero(true);

    /// The guest-physical address of the table: one bit for each INTID, from 0 on.
    pub fn address(self) -> u64 {
        self.page() << 16
    }
}

/// The memory attributes of a table as KVM keeps them: cached reads at least, never outer shareable, and outer caches like
/// the inner ones unless they are not to be used.
pub(in crate::chips::arm) fn kvm_inner_cache(field: u8) -> u8 {
    if field < 2 { 3 } else { field }
}

/// See [`kvm_inner_cache`].
pub(in crate::chips::arm) fn kvm_outer_cache(field: u8) -> u8 {
    if field == 1 { 1 } else { 0 }
}

/// See [`kvm_inner_cache`].
pub(in crate::chips::arm) fn kvm_shareability(field: u8) -> u8 {
    if field == 2 { 1 } else { field }
}

/// One entry of the configuration table ("LPI Configuration tables").
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(in crate::chips::arm) struct Configuration {
    pub enable: bool,
    /// RES1 in one Security state: LPIs are in Group 1.
    __: bool,
    /// Bits 7:2 of the priority.
    #[bits(6)]
    priority_bits: u8,
}

impl Configuration {
    /// The priority, of which a GIC keeps as many bits as it has.
    pub fn priority(self) -> u8 {
        self.priority_bits() << 2
    }
}
