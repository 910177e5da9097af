//! What the programs reached: each step, and the rows of the specification.

use std::collections::{BTreeMap, BTreeSet};

use super::state::State;
use super::step::{Amd, Field, Source, Step, Vtd};
use crate::qtest::q35::Chip;

/// The rows that programs can reach, with what reaching them means.
pub const ROWS: [(&str, &str); 31] = [
    ("A2", "a masked level pin raised"),
    ("A3", "it is unmasked with its line high"),
    ("A4", "a level pin raised while remote IRR is set"),
    ("A5", "a line lowered"),
    ("A6", "a masked edge pin raised"),
    ("A8", "an edge sent"),
    ("A9", "an interrupt ended, and sent again"),
    ("A11", "remote IRR lost by a change to edge"),
    ("A13", "a store to the version register"),
    ("L1", "a vector that is requested already"),
    ("L3", "an interrupt for all"),
    ("M2", "an event while masked is pending"),
    ("M3", "several events are one"),
    ("M4", "unmasked: the pending one is sent"),
    ("M7", "Function Mask cleared: the pending ones are sent"),
    ("M8", "a store to the pending bits"),
    ("M9", "disabled with pending bits"),
    ("M10", "enabled: the pending ones are sent"),
    ("M11", "an event while disabled"),
    ("P2", "level pins chosen"),
    ("P5", "a masked pin raised"),
    ("P9", "an interrupt taken by a poll"),
    ("P10", "a chip set up anew with requests or interrupts in service"),
    ("T1", "a remapped message without a subhandle"),
    ("T2", "a remapped message with a subhandle"),
    ("T3", "a remapped message that nobody gets"),
    ("T-IOAPIC", "a pin whose entry is remapped"),
    ("T-wait", "a wait descriptor that asks for an interrupt"),
    ("T20", "a message that a unit without a valid table lets pass"),
    ("T22", "a message remapped by its device's table"),
    ("P11", "an interrupt in service while another asks"),
];

/// What has been reached so far.
#[derive(Default)]
pub struct Coverage {
    /// How often each step was taken, and what it loaded.
    pub steps: BTreeMap<&'static str, u64>,
    /// The rows reached.
    pub rows: BTreeSet<&'static str>,
    /// The address of the MSI function.
    msi: u32,
    /// The AMD-Vi unit is on; the MSI function's device entry remaps.
    amd: [bool; 2],
}

/// A byte of a line of the monitor, such as `irr=0f`.
fn byte(pic: &str, name: &str) -> u8 {
    let word = pic.split(' ').find_map(|word| word.strip_prefix(name));
    word.and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

impl Coverage {
    fn reach(&mut self, row: &'static str, reached: bool) {
        debug_assert!(ROWS.iter().any(|(known, _)| *known == row), "{row} is in the table");
        if reached {
            self.rows.insert(row);
        }
    }

    /// A new program begins.
    pub fn begin(&mut self) {
        (self.msi, self.amd) = (0, [false; 2]);
    }

    /// Counts a step by what QEMU did.
    pub fn count(&mut self, step: &Step, _answer: &str, before: &State, after: &State) {
        *self.steps.entry(step.name()).or_default() += 1;
        let delivered = after.delivered.iter().any(|data| *data != 0);
        let woken = before.vectors != after.vectors;
        match *step {
            Step::Line { chip: Chip::IoApic, pin, level } => {
                let entry = before.entries[usize::from(pin)];
                let [is_level, masked, remote] = [15, 16, 14].map(|bit| entry >> bit & 1 == 1);
                self.reach("A2", level && is_level && masked);
                self.reach("A4", level && is_level && remote);
                self.reach("A5", !level && is_level && before.latched != after.latched);
                self.reach("A6", level && !is_level && masked);
                self.reach("A8", level && !is_level && !masked && woken);
                self.reach("L1", level && !is_level && !masked && !woken);
                self.reach("T-IOAPIC", woken && before.vtd[0] >> 25 & 1 == 1 && entry >> 48 & 1 == 1);
                self.reach("L3", woken && entry >> 56 == 0xff);
            }
            Step::IoApicStore { index, .. } => {
                self.reach("A13", index == 1);
                let Some(pin) = usize::from(index).checked_sub(0x10).map(|at| at / 2).filter(|pin| *pin < 24) else {
                    return;
                };
                let [old, new] = [before, after].map(|state| state.entries[pin] >> 14 & 1);
                self.reach("A3", old < new);
                self.reach("A11", old > new);
            }
            Step::IoApicEnd { .. } => {
                let ended = before.entries != after.entries;
                let again = before.latched != 0 && woken;
                self.reach("A9", ended || again);
            }
            Step::Msi { address, .. } => self.msi = address,
            Step::MsiEvent => {
                let remapped = before.vtd[0] >> 25 & 1 == 1 && self.msi & 0x10 != 0;
                self.reach("T1", remapped && woken && self.msi & 8 == 0);
                self.reach("T2", remapped && woken && self.msi & 8 != 0);
                self.reach("T3", remapped && !woken);
                let [on, remaps] = self.amd;
                self.reach("T20", on && !remaps && woken);
                self.reach("T22", on && remaps && woken);
            }
            Step::Amd(Amd::On) => self.amd = [true, false],
            Step::Amd(Amd::Device { source: Source::Edu, interrupts }) => {
                self.amd[1] = interrupts & 1 == 1 && interrupts >> 60 & 3 == 2;
            }
            Step::Vtd(Vtd::Entry { interrupt, .. }) => self.reach("T-wait", interrupt && after.vtd[1] == 1),
            Step::Event { vector, times } => {
                let pending = |state: &State| state.pending >> vector & 1 == 1;
                self.reach("M2", !pending(before) && pending(after));
                self.reach("M3", times > 1 && pending(after));
                self.reach("M11", !pending(after) && !delivered && !woken);
            }
            Step::MsixStore { field: Field::Control | Field::DataAndControl, .. } => {
                self.reach("M4", before.pending > after.pending);
            }
            Step::MsixControl { enable, .. } => {
                self.reach("M7", before.pending > after.pending && enable);
                self.reach("M10", before.pending > after.pending && enable);
                self.reach("M9", !enable && after.pending != 0);
            }
            Step::PbaStore { .. } => self.reach("M8", true),
            Step::Line { chip, level, .. } => {
                let pic = usize::from(chip == Chip::Slave);
                let [irr, imr] = ["irr=", "imr="].map(|name| byte(&after.pics[pic], name));
                self.reach("P5", level && irr & imr != 0);
                self.reach("P11", level && byte(&after.pics[pic], "isr=") != 0 && irr != 0);
            }
            Step::PortStore { port, value } => {
                let pic = usize::from(port >= 0xa0 && port != 0x4d0);
                let busy = byte(&before.pics[pic], "irr=") | byte(&before.pics[pic], "isr=");
                self.reach("P2", port >= 0x4d0);
                self.reach("P10", port < 0x4d0 && port & 1 == 0 && value & 0x10 != 0 && busy != 0);
            }
            Step::PortLoad { .. } => self.reach("P9", before.pics != after.pics),
            _ => {}
        }
    }
}
