//! Where doorbell differs from QEMU on purpose, by name. Programs keep clear of these; each has a test of its own, which
//! says what either machine does.

use super::state::State;
use super::step::{Field, Step};
use crate::qtest::machine::Chip;

/// The names, with what the difference is.
pub const DIFFERENCES: [(&str, &str); 18] = [
    ("apic-enabled", "QEMU's local APICs take interrupts while software-disabled; doorbell's begin enabled (L2)"),
    ("edge-raised-again", "QEMU sends an edge again when a high line is raised once more; doorbell merges it (A7)"),
    (
        "trigger-changed",
        "a pin that changes its trigger mode while its line is high: QEMU forgets or keeps other latches",
    ),
    ("eoi-of-edge", "an EOI for a level and an edge pin with one vector: as in KVM, doorbell sends the edge again"),
    ("nobody", "a level interrupt that no CPU matches: QEMU waits for its end, doorbell as KVM does not"),
    (
        "address-bits",
        "bits 11:4 of a message to CPU 0: QEMU takes it for an access to the CPU's registers, which is lost",
    ),
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
    ("base-after-icw1", "ICW1 sets the vector base back in QEMU; in doorbell, as in KVM, it stays until ICW2"),
    (
        "cascade-latch",
        "a request of the slave that is withdrawn stays latched in QEMU's master, as in KVM's; not in the strict pair",
    ),
    ("single", "ICW1 for a single 8259: QEMU expects no ICW3 then, doorbell as KVM does"),
    ("msix-reserved", "reserved bits of MSI-X table entries: QEMU stores them, doorbell keeps 0"),
    ("intx", "an MSI function whose MSI is off raises INTx in QEMU; doorbell's has no pin"),
];

const BROADCAST: u32 = 0xff;
const LOWEST_PRIORITY: u32 = 1;
const EXT_INT: u32 = 7;
const LEVEL: u64 = 1 << 15;
const LOGICAL: u64 = 1 << 11;
const MODE: u64 = 7 << 8;

/// What the rules need to know of a machine.
pub struct Model {
    ioapic_lines: u32,
    pic_lines: [u8; 2],
    entries: [u64; 24],
    msi_enabled: bool,
    /// The next load from a chip is a poll.
    polls: [bool; 2],
    /// ICW2 has not come since ICW1.
    without_base: [bool; 2],
    /// The chip of the pair whose lines this program drives.
    driven: Option<Chip>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            ioapic_lines: 0,
            pic_lines: [0; 2],
            entries: [1 << 16; 24],
            msi_enabled: false,
            polls: [false; 2],
            without_base: [false; 2],
            driven: None,
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
            Step::MsixStore { vector, field, value } => {
                let data = |value: u64| u64::from(mode(value as u32, true));
                let value = match field {
                    Field::Address if value >> 20 == 0xfee => address(value as u32 & !3).into(),
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
                Step::Msi { address: address(to & !3), data: mode(data.into(), true) as u16, enable }
            }
            Step::PortStore { port: 0x20 | 0x21, .. } | Step::PortLoad { port: 0x20 | 0x21 }
                if self.driven == Some(Chip::Slave) =>
            {
                return None;
            }
            Step::PortStore { port: 0x21 | 0xa1, .. } => {
                self.without_base[chip_of(step)] = false;
                step.clone()
            }
            Step::PortStore { port: port @ (0x20 | 0xa0), value } => {
                let (first, chip) = (value & 0x10 != 0, chip_of(step));
                self.polls[chip] = !first && (self.polls[chip] || value & 0x1c == 0x0c);
                self.without_base[chip] |= first;
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
        for (pic, without) in state.pics.iter_mut().zip(self.without_base) {
            if without {
                hide(pic, "irq_base=", 0xff);
            }
        }
        if self.driven == Some(Chip::Slave) {
            hide(&mut state.pics[0], "irr=", 4);
        }
        state
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
            if old & LEVEL != 0 && destination != BROADCAST {
                destination &= 1;
            }
            let one = old & MODE == u64::from(LOWEST_PRIORITY) << 8;
            if destination == BROADCAST && (one || old & LOGICAL != 0) {
                destination = 0;
            }
            let others = if destination == 0 { 0 } else { value & 0xff_0000 };
            entry = old & 0xffff_ffff | u64::from(destination) << 56 | u64::from(others) << 32;
        } else {
            entry = old & !0xffff_ffff | u64::from(value);
            let destination = (old >> 56) as u32;
            if self.ioapic_lines >> pin & 1 == 1 {
                entry = entry & !LEVEL | old & LEVEL;
            }
            entry = entry & !MODE | u64::from(mode(entry as u32, destination == BROADCAST)) & MODE;
            let absent = destination > 1 && destination != BROADCAST;
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

/// A message's address: no hint and nothing logical to all, no other bits to CPU 0.
fn address(address: u32) -> u32 {
    match address >> 12 & 0xff {
        BROADCAST => address & !0xc,
        0 => address & !0xff0,
        _ => address,
    }
}

/// A message's data.
fn mode(data: u32, broadcast: bool) -> u32 {
    match data >> 8 & 7 {
        EXT_INT => data & !0x700,
        LOWEST_PRIORITY if broadcast => data & !0x700,
        _ => data,
    }
}
