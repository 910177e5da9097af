//! Where doorbell differs from QEMU on purpose, by name. Programs keep clear of these; each has a test of its own, which
//! says what either machine does.

use super::state::State;
use super::step::{Amd, Field, QUEUE_PLACES, Step, Vtd};
use crate::qtest::q35::Chip;

/// The names, with what the difference is.
pub const DIFFERENCES: [(&str, &str); 31] = [
    ("apic-enabled", "QEMU's local APICs take interrupts while software-disabled; doorbell's begin enabled (L2)"),
    ("edge-raised-again", "QEMU sends an edge again when a high line is raised once more; doorbell merges it (A7)"),
    (
        "trigger-changed",
        "a pin that changes its trigger mode while its line is high: QEMU forgets or keeps other latches",
    ),
    ("eoi-of-edge", "an EOI for a level and an edge pin with one vector: as in KVM, doorbell sends the edge again"),
    ("nobody", "a level interrupt that no CPU matches: QEMU waits for its end, doorbell as KVM does not"),
    ("absent-register", "a register that the IOAPIC does not have reads as 0 in QEMU, as all ones in doorbell and KVM"),
    ("input-0", "QEMU's input 0 of the IOAPIC drives pin 2"),
    ("extint", "QEMU delivers ExtINT as a vector; doorbell as KVM knows it from the 8259 only"),
    (
        "one-of-many",
        "lowest priority and the redirection hint: QEMU takes the first or all, doorbell one by KVM's rule (L5)",
    ),
    ("logical-broadcast", "logical destination 0xff: to all in doorbell, as in KVM; by LDR in QEMU"),
    ("cascade", "the master's pin 2 belongs to the slave in both; only QEMU lets others drive it"),
    ("poll-of-nothing", "a poll that finds nothing gives 0 in QEMU, 7 in doorbell and KVM; bit 7 says that it is none"),
    (
        "after-icw1",
        "ICW1 sets vector base and ICW4's modes back in QEMU; in doorbell, as in KVM, they stay until ICW2 and ICW4",
    ),
    ("poll-over-icw1", "a poll that was announced before ICW1: QEMU forgets it, doorbell as KVM does not"),
    (
        "eoi-special-mask",
        "a non-specific EOI in special mask mode ends no masked pin in doorbell's strict pair, as specified",
    ),
    (
        "cascade-latch",
        "a request of the slave that is withdrawn stays latched in QEMU's master, as in KVM's; not in the strict pair",
    ),
    ("single", "ICW1 for a single 8259: QEMU expects no ICW3 then, doorbell as KVM does"),
    ("msix-reserved", "reserved bits of MSI-X table entries: QEMU stores them, doorbell keeps 0"),
    ("remap-faults", "faults of interrupt remapping: QEMU's VT-d records none, doorbell's as specified (T3, T5, T6)"),
    (
        "remap-compatibility",
        "compatibility format while remapping without CFI: QEMU delivers it, doorbell blocks it (T7)",
    ),
    ("remap-cache", "an entry changed without an invalidation: QEMU reads it again, doorbell need not"),
    (
        "remap-reserved",
        "reserved bits of an entry that QEMU does not look at: destination, delivery modes 3 and 6 (T8)",
    ),
    ("remap-compatibility-status", "GSTS has CFIS in doorbell's VT-d; QEMU's never shows it"),
    (
        "amd-table-length",
        "an index beyond a device's table, or a table too long: QEMU reads it, doorbell blocks it (T22)",
    ),
    ("amd-request-eoi", "RqEoi of an AMD-Vi entry: QEMU makes it a redirection hint, doorbell a level interrupt"),
    (
        "amd-reserved",
        "reserved bits of AMD-Vi entries and device entries: QEMU does not look at all, doorbell blocks the interrupt",
    ),
    ("amd-trigger", "a level message that AMD-Vi remaps: QEMU makes it an edge, doorbell leaves it a level"),
    ("amd-pass", "a device whose interrupts pass unmapped (T21, control 1): QEMU sends vector 0 to CPU 0"),
    (
        "remap-ioapic-source",
        "entries that the IOAPIC uses: QEMU does not ask who it is, doorbell validates its source (T5)",
    ),
    ("remap-bus-range", "an entry for a range of buses: QEMU takes first and last the other way round (SVT 2)"),
    ("intx", "an MSI function whose MSI is off raises INTx in QEMU; doorbell's has no pin"),
];

const BROADCAST: u32 = 0xff;
const LOWEST_PRIORITY: u32 = 1;
const EXT_INT: u32 = 7;
const LEVEL: u64 = 1 << 15;
const LOGICAL: u64 = 1 << 11;
const MODE: u64 = 7 << 8;
/// Of the global status.
const CFIS: u64 = 1 << 23;
/// In the high half of an entry.
const REMAPPABLE: u32 = 1 << 16;
const ODD_INDEX: u32 = 1 << 17;

/// What the rules need to know of a machine.
pub struct Model {
    ioapic_lines: u32,
    pic_lines: [u8; 2],
    entries: [u64; 24],
    msi_enabled: bool,
    /// The next load from a chip is a poll.
    polls: [bool; 2],
    /// Special mask mode.
    special_mask: [bool; 2],
    /// How many initialisation words are to come since ICW1, and how many there were to be.
    words: [(u8, u8); 2],
    /// The chip of the pair whose lines this program drives.
    driven: Option<Chip>,
    /// Interrupts are remapped.
    remapping: bool,
    /// The same, by tables of devices.
    device_tables: bool,
    /// The next free place of the unit's queue.
    tail: u16,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            ioapic_lines: 0,
            pic_lines: [0; 2],
            entries: [1 << 16; 24],
            msi_enabled: false,
            polls: [false; 2],
            special_mask: [false; 2],
            words: [(0, 0); 2],
            driven: None,
            remapping: false,
            device_tables: false,
            tail: 0,
        }
    }
}

impl Model {
    /// The step as both machines take it: as it is, the nearest one on which they should agree, or none.
    pub fn admit(&mut self, step: &Step) -> Option<Step> {
        Some(match *step {
            Step::Line { chip, pin, level } => {
                self.line(chip, pin, level)?;
                step.clone()
            }
            Step::IoApicStore { index, value } if (0x10..0x40).contains(&index) => {
                Step::IoApicStore { index, value: self.entry(index, value) }
            }
            Step::IoApicLoad { index } if !(0..3).contains(&index) && !(0x10..0x40).contains(&index) => return None,
            Step::Message { offset, data } => {
                Step::Message { offset: address(offset & !3), data: mode(data, is_broadcast(offset)) }
            }
            Step::Amd(ref amd) => Step::Amd(self.amd(amd)?),
            Step::Vtd(ref vtd) => Step::Vtd(self.vtd(vtd)?),
            Step::MsixStore { vector, field, value } => {
                let data = |value: u64| u64::from(mode(value as u32, true));
                let value = match field {
                    Field::Address if value >> 20 == 0xfee => self.device_address(value as u32).into(),
                    Field::Address => value & 0xffff_fffc,
                    Field::AddressHigh => value & 0xffff_ffff,
                    Field::Data => data(value),
                    Field::Control => value & 1,
                    Field::DataAndControl => data(value & 0xffff_ffff) | value & 1 << 32,
                };
                Step::MsixStore { vector, field, value }
            }
            Step::Msi { address: to, data, enable } => {
                self.msi_enabled = enable;
                Step::Msi { address: self.device_address(to), data: mode(data.into(), true) as u16, enable }
            }
            Step::PortStore { port: 0x20 | 0x21, .. } | Step::PortLoad { port: 0x20 | 0x21 }
                if self.driven == Some(Chip::Slave) =>
            {
                return None;
            }
            Step::PortStore { port: 0x21 | 0xa1, .. } => {
                let (left, _) = &mut self.words[chip_of(step)];
                *left = left.saturating_sub(1);
                step.clone()
            }
            Step::PortStore { port: port @ (0x20 | 0xa0), value } => {
                let (first, chip) = (value & 0x10 != 0, chip_of(step));
                let ends_highest = value & 0x18 == 0 && matches!(value >> 5, 1 | 5);
                if first && self.polls[chip] || ends_highest && self.special_mask[chip] {
                    return None;
                }
                match value & 0x78 {
                    _ if first => self.special_mask[chip] = false,
                    0x48 => self.special_mask[chip] = false,
                    0x68 => self.special_mask[chip] = true,
                    _ => {}
                }
                self.polls[chip] = !first && (self.polls[chip] || value & 0x1c == 0x0c);
                if first {
                    let words = 2 + (value & 1);
                    self.words[chip] = (words, words);
                }
                Step::PortStore { port, value: if first { value & !2 } else { value } }
            }
            Step::MsiEvent if !self.msi_enabled => return None,
            _ => step.clone(),
        })
    }

    /// An answer of either machine, as it is compared.
    pub fn answered(&mut self, step: &Step, answers: [String; 2]) -> [String; 2] {
        let Step::PortLoad { port: 0x20 | 0x21 | 0xa0 | 0xa1 } = *step else { return answers };
        let polled = std::mem::take(&mut self.polls[chip_of(step)]);
        let nothing = polled && answers == ["0x0000", "0x0007"];
        if nothing { [answers[0].clone(), answers[0].clone()] } else { answers }
    }

    /// What is seen of either machine, as it is compared.
    pub fn seen(&self, mut state: State) -> State {
        for (pic, (left, words)) in state.pics.iter_mut().zip(self.words) {
            if left > 0 {
                *pic = pic.replace("fnm=1", "fnm=0");
            }
            if left == words && left > 0 {
                hide(pic, "irq_base=", 0xff);
            }
        }
        state.vtd[0] &= !CFIS;
        if self.device_tables {
            state.vectors.iter_mut().flatten().for_each(|vectors| *vectors = vectors.replace("(level)", ""));
        }
        if self.driven == Some(Chip::Slave) {
            hide(&mut state.pics[0], "irr=", 4);
        }
        state
    }

    fn vtd(&mut self, vtd: &Vtd) -> Option<Vtd> {
        Some(match *vtd {
            Vtd::On { .. } if self.remapping => return None,
            Vtd::On { .. } => {
                self.remapping = true;
                vtd.clone()
            }
            _ if !self.remapping => return None,
            Vtd::Entry { second, index, low, high, all, interrupt } => {
                let destination = match low >> 40 & 0xff {
                    0xff => 0xff,
                    destination => destination & 1,
                };
                // Neither logical nor for one of many, and no mode that QEMU's APICs or the specification refuse.
                let mode = match low >> 5 & 7 {
                    mode @ (0 | 2 | 4 | 5) => mode,
                    _ => 0,
                };
                // Odd ones are for the IOAPIC too, and do not look at the source; ranges are of one bus.
                let high = if index & 1 == 1 { high & !(3 << 18) } else { high };
                let range = high >> 18 & 3 == 2;
                let high = if range { high & !0xff | high >> 8 & 0xff } else { high };
                let low = low & !(0xffff_ffff << 32 | 0xe0 | 0xc) | destination << 40 | mode << 5;
                Vtd::Entry { second, index, low, high, all, interrupt }
            }
            // Queue and table are the set-up's.
            Vtd::Store { offset: 0x9c | 0xa0 | 0xa4, .. } => vtd.clone(),
            Vtd::Store { offset: offset @ 0xa8, value } => {
                Vtd::Store { offset, value: address(0xfee0_0000 | value & 0xf_f000) }
            }
            Vtd::Store { .. } => return None,
            Vtd::Table { .. } | Vtd::Load { .. } => vtd.clone(),
        })
    }

    fn amd(&mut self, amd: &Amd) -> Option<Amd> {
        Some(match *amd {
            Amd::On if self.device_tables => return None,
            Amd::On => {
                self.device_tables = true;
                Amd::On
            }
            _ if !self.device_tables => return None,
            Amd::Device { source, interrupts } => {
                let passes = interrupts >> 60 & 3 == 1;
                let interrupts = if passes { interrupts ^ 3 << 60 } else { interrupts };
                // As long as a table can be, and without reserved bits.
                let interrupts = interrupts & !(0x08f0_0000_0000_001e) | 11 << 1;
                Amd::Device { source, interrupts }
            }
            Amd::Entry { source, index, entry } => {
                let destination = match entry >> 8 & 0xff {
                    0xff => 0xff,
                    destination => destination & 1,
                };
                let arbitrated = destination == BROADCAST && entry >> 2 & 7 == 1;
                // Not logical, and not for one of many.
                let kind = if arbitrated { 0 } else { entry & 0x1c };
                let entry = entry & !(0xff00_ff00 | 0x7c) | destination << 8 | kind;
                Amd::Entry { source, index, entry }
            }
        })
    }

    /// The next free place of the queue, which the step may use.
    pub fn take_tail(&mut self, step: &Step) -> u16 {
        let tail = self.tail;
        if matches!(step, Step::Vtd(Vtd::Entry { .. }) | Step::Amd(Amd::Device { .. } | Amd::Entry { .. })) {
            self.tail = (tail + 2) % QUEUE_PLACES;
        }
        tail
    }

    /// The address of a device's message: the bits of one in remappable format mean other things.
    fn device_address(&self, to: u32) -> u32 {
        if self.remapping && to & 0x10 != 0 { to & !3 } else { address(to & !3) }
    }

    /// `None` if the line does not change, or is not one to be driven.
    fn line(&mut self, chip: Chip, pin: u16, level: bool) -> Option<()> {
        let lines = match chip {
            Chip::IoApic if pin == 0 => return None,
            Chip::Master if pin == 2 => return None,
            Chip::IoApic => {
                let bit = 1 << pin;
                let changes = (self.ioapic_lines & bit != 0) != level;
                self.ioapic_lines ^= if changes { bit } else { 0 };
                return changes.then_some(());
            }
            _ if *self.driven.get_or_insert(chip) != chip => return None,
            Chip::Master => &mut self.pic_lines[0],
            Chip::Slave => &mut self.pic_lines[1],
        };
        let bit = 1 << pin;
        let changes = (*lines & bit != 0) != level;
        *lines ^= if changes { bit } else { 0 };
        changes.then_some(())
    }

    fn entry(&mut self, index: u8, value: u32) -> u32 {
        let pin = usize::from(index - 0x10) / 2;
        let old = self.entries[pin];
        let mut entry;
        if index & 1 == 1 {
            let mut destination = value >> 24;
            // Also before anything is remapped: a line that stays high is sent again when it is.
            let value = if value & REMAPPABLE != 0 { value | ODD_INDEX } else { value };
            if self.remapping && value & REMAPPABLE != 0 {
                self.entries[pin] = old & 0xffff_ffff | u64::from(value) << 32;
                return value;
            }
            if old & LEVEL != 0 && destination != BROADCAST {
                destination &= 1;
            }
            let one = old & MODE == u64::from(LOWEST_PRIORITY) << 8;
            if destination == BROADCAST && (one || old & LOGICAL != 0) {
                destination = 0;
            }
            entry = old & 0xffff_ffff | u64::from(destination) << 56 | u64::from(value & 0xff_0000) << 32;
        } else {
            entry = old & !0xffff_ffff | u64::from(value);
            let destination = (old >> 56) as u32;
            if self.ioapic_lines >> pin & 1 == 1 {
                entry = entry & !LEVEL | old & LEVEL;
            }
            entry = entry & !MODE | u64::from(mode(entry as u32, destination == BROADCAST)) & MODE;
            let remappable = self.remapping && old >> 32 & u64::from(REMAPPABLE) != 0;
            let absent = destination > 1 && destination != BROADCAST && !remappable;
            if destination == BROADCAST || (entry & LEVEL != 0 && !absent) {
                entry &= !LOGICAL;
            }
            if absent {
                entry &= !LEVEL;
            }
            // Even vectors are levels, odd ones edges.
            entry = entry & !1 | u64::from(entry & LEVEL == 0);
        }
        self.entries[pin] = entry;
        if index & 1 == 1 { (entry >> 32) as u32 } else { entry as u32 }
    }
}

fn chip_of(step: &Step) -> usize {
    match *step {
        Step::PortStore { port, .. } | Step::PortLoad { port } => usize::from(port & 0x80 != 0),
        _ => 0,
    }
}

/// Clears bits of a byte that the monitor shows.
fn hide(line: &mut String, name: &str, bits: u8) {
    let Some(at) = line.find(name).map(|at| at + name.len()) else { return };
    if let Some(value) = line.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        line.replace_range(at..at + 2, &format!("{:02x}", value & !bits));
    }
}

fn is_broadcast(address: u32) -> bool {
    address >> 12 & 0xff == BROADCAST
}

/// A message's address: no hint and nothing logical to all.
fn address(address: u32) -> u32 {
    if is_broadcast(address) { address & !0xc } else { address }
}

/// A message's data.
fn mode(data: u32, broadcast: bool) -> u32 {
    match data >> 8 & 7 {
        EXT_INT => data & !0x700,
        LOWEST_PRIORITY if broadcast => data & !0x700,
        _ => data,
    }
}
