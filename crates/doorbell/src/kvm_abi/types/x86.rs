//! KVM's structs and constants for x86.

use crate::chips::x86::pic::PicState;

/// `KVM_IRQCHIP_PIC_MASTER`.
pub const CHIP_PIC_MASTER: u32 = 0;
/// `KVM_IRQCHIP_PIC_SLAVE`.
pub const CHIP_PIC_SLAVE: u32 = 1;
/// `KVM_IRQCHIP_IOAPIC`.
pub const CHIP_IOAPIC: u32 = 2;
/// `KVM_IOAPIC_NUM_PINS`.
pub const IOAPIC_PINS: usize = 24;
/// Pins of each 8259.
pub const PIC_PINS: u16 = 8;
/// `KVM_APIC_REG_SIZE`.
pub const LAPIC_BYTES: usize = 0x400;

/// `KVM_CAP_X86_SMM`.
pub const CAP_X86_SMM: u32 = 117;
/// `struct kvm_ioapic_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmIoapicState {
    /// Where the guest finds its registers.
    pub base_address: u64,
    /// The index register.
    pub ioregsel: u32,
    /// The id, 4 bits.
    pub id: u32,
    /// A latch per pin.
    pub irr: u32,
    /// Zero.
    pub pad: u32,
    /// A redirection entry per pin.
    pub redirtbl: [u64; IOAPIC_PINS],
}

/// `struct kvm_pic_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmPicState {
    /// The level of each pin at the last change: edge detection.
    pub last_irr: u8,
    /// Requests.
    pub irr: u8,
    /// Mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// The pin of highest priority.
    pub priority_add: u8,
    /// Vector base.
    pub irq_base: u8,
    /// The next read gives ISR.
    pub read_reg_select: u8,
    /// The next read polls.
    pub poll: u8,
    /// Special mask mode.
    pub special_mask: u8,
    /// Which initialisation word comes next.
    pub init_state: u8,
    /// Automatic EOI.
    pub auto_eoi: u8,
    /// Rotation on automatic EOI.
    pub rotate_on_auto_eoi: u8,
    /// Special fully nested mode.
    pub special_fully_nested_mode: u8,
    /// ICW1 announced an ICW4.
    pub init4: u8,
    /// Level pins.
    pub elcr: u8,
    /// Pins that may be level.
    pub elcr_mask: u8,
}

impl KvmPicState {
    /// The state as the bytes KVM has for it.
    pub fn to_bytes(self) -> [u8; 16] {
        let Self { last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, .. } = self;
        let Self { special_mask, init_state, auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, .. } =
            self;
        [
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested_mode,
            init4,
            self.elcr,
            self.elcr_mask,
        ]
    }

    /// The state from the bytes KVM has for it.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self {
            last_irr: bytes[0],
            irr: bytes[1],
            imr: bytes[2],
            isr: bytes[3],
            priority_add: bytes[4],
            irq_base: bytes[5],
            read_reg_select: bytes[6],
            poll: bytes[7],
            special_mask: bytes[8],
            init_state: bytes[9],
            auto_eoi: bytes[10],
            rotate_on_auto_eoi: bytes[11],
            special_fully_nested_mode: bytes[12],
            init4: bytes[13],
            elcr: bytes[14],
            elcr_mask: bytes[15],
        }
    }
}

impl From<PicState> for KvmPicState {
    fn from(state: PicState) -> Self {
        let PicState { last_irr, irr, imr, isr, priority_add, irq_base, read_isr, poll, special_mask, .. } = state;
        let PicState {
            init_state, auto_eoi, rotate_on_auto_eoi, fully_nested, fourth_follows, elcr, elcr_mask, ..
        } = state;
        Self {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select: read_isr.into(),
            poll: poll.into(),
            special_mask: special_mask.into(),
            init_state,
            auto_eoi: auto_eoi.into(),
            rotate_on_auto_eoi: rotate_on_auto_eoi.into(),
            special_fully_nested_mode: fully_nested.into(),
            init4: fourth_follows.into(),
            elcr,
            elcr_mask,
        }
    }
}

/// A flag that a VMM wrote as another number than 1 becomes 1, which means the same.
impl From<KvmPicState> for PicState {
    fn from(state: KvmPicState) -> Self {
        let KvmPicState { last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, .. } = state;
        let KvmPicState { special_mask, init_state, auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, .. } =
            state;
        let KvmPicState { init4, elcr, elcr_mask, .. } = state;
        Self {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_isr: read_reg_select != 0,
            poll: poll != 0,
            special_mask: special_mask != 0,
            init_state,
            auto_eoi: auto_eoi != 0,
            rotate_on_auto_eoi: rotate_on_auto_eoi != 0,
            fully_nested: special_fully_nested_mode != 0,
            fourth_follows: init4 != 0,
            elcr,
            elcr_mask,
        }
    }
}

/// `struct kvm_irqchip`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KvmIrqchip {
    /// [`CHIP_PIC_MASTER`], [`CHIP_PIC_SLAVE`] or [`CHIP_IOAPIC`].
    pub chip_id: u32,
    /// Zero.
    pub pad: u32,
    /// The union: the state of that chip, from the first byte on.
    pub chip: [u8; 512],
}

impl KvmIrqchip {
    /// An empty state of this chip, to be filled by `KVM_GET_IRQCHIP`.
    pub const fn of(chip_id: u32) -> Self {
        Self { chip_id, pad: 0, chip: [0; 512] }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.chip[at], self.chip[at + 1], self.chip[at + 2], self.chip[at + 3]])
    }

    fn wide(&self, at: usize) -> u64 {
        let (low, high) = (u64::from(self.word(at)), u64::from(self.word(at + 4)));
        if cfg!(target_endian = "little") { low | high << 32 } else { high | low << 32 }
    }

    /// The bytes as an IOAPIC.
    pub fn ioapic(&self) -> KvmIoapicState {
        KvmIoapicState {
            base_address: self.wide(0),
            ioregsel: self.word(8),
            id: self.word(12),
            irr: self.word(16),
            pad: self.word(20),
            redirtbl: std::array::from_fn(|pin| self.wide(24 + 8 * pin)),
        }
    }

    /// Writes an IOAPIC into the bytes.
    pub fn set_ioapic(&mut self, state: &KvmIoapicState) {
        let KvmIoapicState { base_address, ioregsel, id, irr, pad, redirtbl } = state;
        self.chip[..8].copy_from_slice(&base_address.to_ne_bytes());
        for (word, at) in [ioregsel, id, irr, pad].into_iter().zip((8..).step_by(4)) {
            self.chip[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (entry, at) in redirtbl.iter().zip((24..).step_by(8)) {
            self.chip[at..at + 8].copy_from_slice(&entry.to_ne_bytes());
        }
    }

    /// The bytes as an 8259.
    pub fn pic(&self) -> KvmPicState {
        KvmPicState::from_bytes(std::array::from_fn(|byte| self.chip[byte]))
    }

    /// Writes an 8259 into the bytes.
    pub fn set_pic(&mut self, state: &KvmPicState) {
        self.chip[..16].copy_from_slice(&state.to_bytes());
    }
}

/// `struct kvm_lapic_state`: the registers, each in the first four of its sixteen bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KvmLapicState {
    /// The register page up to 0x3ff.
    pub regs: [u8; LAPIC_BYTES],
}

impl Default for KvmLapicState {
    fn default() -> Self {
        Self { regs: [0; LAPIC_BYTES] }
    }
}

impl KvmLapicState {
    /// The register at `offset`.
    ///
    /// # Panics
    /// If `offset` is above 0x3fc.
    pub fn register(&self, offset: usize) -> u32 {
        let bytes = &self.regs[offset..offset + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Writes the register at `offset`.
    ///
    /// # Panics
    /// If `offset` is above 0x3fc.
    pub fn set_register(&mut self, offset: usize, value: u32) {
        self.regs[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The eight words of a vector bitmap ([`regs::ISR`], [`regs::TMR`], [`regs::IRR`]).
    pub fn bitmap(&self, offset: usize) -> [u32; 8] {
        std::array::from_fn(|word| self.register(offset + 0x10 * word))
    }

    /// Writes a vector bitmap.
    pub fn set_bitmap(&mut self, offset: usize, words: [u32; 8]) {
        for (word, value) in words.into_iter().enumerate() {
            self.set_register(offset + 0x10 * word, value);
        }
    }

    /// The vectors that are set in a bitmap, lowest first.
    pub fn vectors(&self, offset: usize) -> Vec<u8> {
        let words = self.bitmap(offset);
        (0..=255).filter(|&vector: &u8| words[usize::from(vector) / 32] >> (vector % 32) & 1 == 1).collect()
    }
}

/// Offsets in [`KvmLapicState::regs`].
pub mod regs {
    /// Local APIC id.
    pub const ID: usize = 0x20;
    /// Version.
    pub const VERSION: usize = 0x30;
    /// Task priority.
    pub const TPR: usize = 0x80;
    /// Processor priority.
    pub const PPR: usize = 0xa0;
    /// End of interrupt.
    pub const EOI: usize = 0xb0;
    /// Logical destination.
    pub const LDR: usize = 0xd0;
    /// Destination format.
    pub const DFR: usize = 0xe0;
    /// Spurious vector and software enable.
    pub const SVR: usize = 0xf0;
    /// In service, 8 words.
    pub const ISR: usize = 0x100;
    /// Trigger mode, 8 words.
    pub const TMR: usize = 0x180;
    /// Requests, 8 words.
    pub const IRR: usize = 0x200;
    /// Errors.
    pub const ESR: usize = 0x280;
    /// Interrupt command, low half.
    pub const ICR_LOW: usize = 0x300;
    /// Interrupt command, high half.
    pub const ICR_HIGH: usize = 0x310;
    /// LVT: timer.
    pub const LVT_TIMER: usize = 0x320;
    /// LVT: thermal sensor.
    pub const LVT_THERMAL: usize = 0x330;
    /// LVT: performance counters.
    pub const LVT_PERFORMANCE: usize = 0x340;
    /// LVT: LINT0.
    pub const LVT_LINT0: usize = 0x350;
    /// LVT: LINT1.
    pub const LVT_LINT1: usize = 0x360;
    /// LVT: error.
    pub const LVT_ERROR: usize = 0x370;
    /// Timer: initial count.
    pub const TIMER_INITIAL: usize = 0x380;
    /// Timer: current count.
    pub const TIMER_CURRENT: usize = 0x390;
    /// Timer: divider.
    pub const TIMER_DIVIDE: usize = 0x3e0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn sizes_are_those_of_the_kernels_header() {
        assert_eq!(size_of::<KvmIoapicState>(), 216);
        assert_eq!(size_of::<KvmPicState>(), 16);
        assert_eq!((size_of::<KvmIrqchip>(), offset_of!(KvmIrqchip, chip)), (520, 8));
        assert_eq!(size_of::<KvmLapicState>(), 1024);
    }

    #[test]
    fn an_ioapic_goes_into_the_union_and_comes_out_as_it_was() {
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        let mut state = chip.ioapic();
        state.base_address = 0x1_fec0_0000;
        (state.ioregsel, state.id, state.irr) = (0x11, 7, 0x80_0001);
        state.redirtbl[23] = 0xff00_0000_0001_a0ff;
        chip.set_ioapic(&state);
        assert_eq!(chip.ioapic(), state);
        assert_eq!(chip.chip[16..20], [1, 0, 0x80, 0], "irr stands at byte 16");
        assert_eq!(chip.chip[208..216], [0xff, 0xa0, 1, 0, 0, 0, 0, 0xff], "the last entry ends at byte 216");
    }

    #[test]
    fn an_8259_goes_into_the_union_and_comes_out_as_it_was() {
        let mut chip = KvmIrqchip::of(CHIP_PIC_SLAVE);
        let state = KvmPicState { irr: 1, imr: 2, elcr: 3, elcr_mask: 0xde, ..KvmPicState::default() };
        chip.set_pic(&state);
        assert_eq!(chip.pic(), state);
        assert_eq!((chip.chip[1], chip.chip[2], chip.chip[15]), (1, 2, 0xde));
    }

    #[test]
    fn vectors_are_read_from_a_bitmap_in_order() {
        let mut state = KvmLapicState::default();
        state.set_bitmap(regs::IRR, [1 << 5, 1, 0, 0, 0, 0, 0, 1 << 31]);
        assert_eq!(state.vectors(regs::IRR), [5, 32, 255]);
        assert_eq!(state.regs[regs::IRR + 0x73], 0x80);
    }
}
