//! What the programs reached: each step, and the rows of the specification.

use std::collections::{BTreeMap, BTreeSet};

use super::icc::Register;
use super::side::Input;
use super::state::Seen;
use super::step::{Step, command_name};
use crate::qtest::virt::{GICD, GICR, GICR_STRIDE, GITS};

/// The rows that programs can reach, with what reaching them means.
pub const ROWS: [(&str, &str); 49] = [
    ("C1", "the distributor's control register stored"),
    ("C2", "private interrupts' registers of the distributor stored"),
    ("C3", "targets stored while affinity routing is on"),
    ("C4", "trigger modes stored"),
    ("C5", "a priority mask with more bits than there are"),
    ("C6", "a binary point below the least"),
    ("C7", "GICR_WAKER stored"),
    ("C10", "an interrupt pending that nobody is offered"),
    ("C11", "an interrupt enabled and offered"),
    ("C12", "a pending interrupt cleared"),
    ("C12-level", "a level input lowered: not pending any more"),
    ("C13", "an SPI acknowledged"),
    ("C14", "made pending again while active"),
    ("C15", "an end that deactivates"),
    ("C16", "an end that only drops the priority"),
    ("C17", "deactivated by ICC_DIR_EL1"),
    ("C18", "ICC_DIR_EL1 without effect on an active interrupt"),
    ("C21", "an acknowledge that preempts"),
    ("C22", "an acknowledge of nothing while something is pending"),
    ("C24", "an interrupt of Group 0 offered"),
    ("C25", "a group of a CPU switched"),
    ("C26", "an interrupt routed to another CPU"),
    ("C29", "forwarding switched while something is pending"),
    ("C30", "an LPI acknowledged"),
    ("C31", "an SGI latched and not offered"),
    ("C32", "an SGI sent while active"),
    ("C33", "an SGI to all others"),
    ("C34", "a request for an SGI that raises nothing"),
    ("PPI", "a private input raised"),
    ("I1", "the ITS enabled"),
    ("I3", "a table's or the queue's place stored while the ITS is on"),
    ("I4", "the queue's place stored while it is off"),
    ("I5", "GITS_CWRITER stored by itself"),
    ("I6", "an unknown command passed over"),
    ("I8", "a message while the ITS is off"),
    ("I11", "a message pends an LPI"),
    ("I12", "CLEAR drops a pending LPI"),
    ("I13", "MOVI moves a pending LPI"),
    ("I14", "INV or INVALL changes what is offered"),
    ("I15", "INT pends an LPI"),
    ("I16", "MOVALL moves pending LPIs"),
    ("I17", "DISCARD drops a pending LPI"),
    ("I18", "a message that reaches nothing"),
    ("I19", "MAPC gives a collection to a redistributor"),
    ("I20", "MAPD takes a device away"),
    ("I25", "a device's message pends an LPI"),
    ("I30", "GICR_CTLR stored"),
    ("I32", "a redistributor's tables stored"),
    ("I34", "an invalidation through a redistributor"),
];

/// What has been reached so far.
#[derive(Default)]
pub struct Coverage {
    /// How often each step was taken.
    pub steps: BTreeMap<&'static str, u64>,
    /// The rows reached.
    pub rows: BTreeSet<&'static str>,
    before: Seen,
}

impl Coverage {
    /// A program begins.
    pub fn begin(&mut self) {
        self.before = Seen::default();
    }

    fn reach(&mut self, row: &'static str, reached: bool) {
        if reached {
            self.rows.insert(row);
        }
    }

    /// A step was taken: what it loaded, and what was seen behind it.
    pub fn count(&mut self, step: &Step, gave: &[u64], seen: &[u64]) {
        *self.steps.entry(step.name()).or_default() += 1;
        let (before, after) = (std::mem::take(&mut self.before), Seen::of(seen));
        match *step {
            Step::Store(_, address, value) => self.store(address, value, &before, &after),
            Step::Read(cpu, register) if register.acknowledges() => {
                let took = gave.first().copied().unwrap_or_default();
                self.reach("C13", (32..1020).contains(&took));
                self.reach("C30", took >= 8192);
                self.reach("C21", took != 1023 && before.running(cpu) != 0xff);
                self.reach("C22", took == 1023 && before.offered(cpu) != 1023);
            }
            Step::Write(cpu, register, value) => self.write(cpu, register, value, &before, &after),
            Step::WriteLast(cpu, register) => self.write(cpu, register, 0, &before, &after),
            Step::Line(Input::Spi(_), false) => self.reach("C12-level", after.pending() < before.pending()),
            Step::Line(Input::Ppi(..), true) => self.reach("PPI", after.pending() > before.pending()),
            Step::Command(words) => self.command(words, &before, &after),
            Step::Retire(..) => {
                self.reach("I16", after.lpis() == before.lpis() && after.lpis_of(0) != before.lpis_of(0))
            }
            Step::ConfigAndInv(..) => {
                self.reach("I14", (0..2).any(|cpu| before.offered(cpu) != after.offered(cpu)));
            }
            Step::Message(_) => {
                self.reach("I8", !before.its_on());
                self.reach("I11", after.lpis() > before.lpis());
                self.reach("I18", before.its_on() && after == before);
            }
            Step::Edu(_) => self.reach("I25", after.lpis() > before.lpis()),
            _ => {}
        }
        self.reach("C24", (0..2).any(|cpu| after.offered_of(cpu, 0) != 1023));
        self.reach("C14", after.pending_and_active() > before.pending_and_active());
        self.before = after;
    }

    fn store(&mut self, address: u64, value: u64, before: &Seen, after: &Seen) {
        if (GITS..GICR).contains(&address) {
            let on = before.its_on();
            let tables = matches!(address - GITS, 0x80..0x88 | 0x100..0x140);
            self.reach("I1", address == GITS && !on && after.its_on());
            self.reach("I3", tables && on);
            self.reach("I4", matches!(address - GITS, 0x80..0x88) && !on);
            self.reach("I5", matches!(address - GITS, 0x88..0x90));
            return;
        }
        let shared = address < GITS;
        let offset = if shared { address - GICD } else { (address - GICR) % GICR_STRIDE };
        let newly = after.pending() > before.pending();
        let offered = (0..2).any(|cpu| before.offered(cpu) == 1023 && after.offered(cpu) != 1023);
        let (frame, register) = (offset >> 16, offset & 0xffff);
        self.reach("C1", shared && register == 0);
        self.reach("C29", shared && register == 0 && before.pending() > 0 && *before != *after);
        self.reach(
            "C2",
            shared && matches!(register, 0x80 | 0x100 | 0x180 | 0x200 | 0x280 | 0x300 | 0x380 | 0x400..0x420),
        );
        self.reach("C3", shared && (0x800..0xc00).contains(&register));
        self.reach("C4", (0xc00..0xd00).contains(&register) && (shared || frame == 1));
        self.reach("C10", (0x200..0x280).contains(&register) && newly && !offered);
        self.reach("C11", (0x100..0x180).contains(&register) && offered);
        self.reach("C12", (0x280..0x300).contains(&register) && after.pending() < before.pending());
        let moved = (0..2).any(|cpu| before.offered(cpu) != 1023 && before.offered(cpu) == after.offered(1 - cpu));
        self.reach("C26", shared && register >= 0x6000 && moved && *before != *after);
        if !shared && frame == 0 {
            self.reach("C7", register == 0x14);
            self.reach("I30", register == 0 && value & 1 == 1);
            self.reach("I32", matches!(register, 0x70..0x80));
            self.reach("I34", matches!(register, 0xa0 | 0xb0 | 0xc0));
        }
    }

    fn write(&mut self, cpu: u32, register: Register, value: u64, before: &Seen, after: &Seen) {
        match register {
            Register::Pmr => self.reach("C5", value & 7 != 0),
            Register::Bpr0 | Register::Bpr1 => self.reach("C6", value & 7 < 2),
            Register::Eoir0 | Register::Eoir1 => {
                let dropped = before.running(cpu) != after.running(cpu);
                self.reach("C15", dropped && after.active() < before.active());
                self.reach("C16", dropped && before.active() > 0 && after.active() == before.active());
            }
            Register::Dir => {
                self.reach("C17", after.active() < before.active());
                self.reach("C18", before.active() > 0 && after.active() == before.active());
            }
            Register::Igrpen0 | Register::Igrpen1 => self.reach("C25", before != after),
            Register::Sgi0r | Register::Sgi1r | Register::Asgi1r => {
                let newly = after.pending() > before.pending();
                let offered = (0..2).any(|cpu| before.offered(cpu) != after.offered(cpu));
                self.reach("C31", newly && !offered);
                self.reach("C32", newly && after.pending_and_active() > before.pending_and_active());
                self.reach("C33", newly && value >> 40 & 1 == 1);
                self.reach("C34", before == after);
            }
            _ => {}
        }
    }

    fn command(&mut self, words: [u64; 4], before: &Seen, after: &Seen) {
        let (more, fewer) = (after.lpis() > before.lpis(), after.lpis() < before.lpis());
        let moved = !more && !fewer && after.lpis_of(0) != before.lpis_of(0);
        match command_name(words[0] as u8) {
            "CLEAR" => self.reach("I12", fewer),
            "MOVI" => self.reach("I13", moved),
            "INV" | "INVALL" => self.reach("I14", (0..2).any(|cpu| before.offered(cpu) != after.offered(cpu))),
            "INT" => self.reach("I15", more),
            "MAPC" => self.reach("I19", words[2] >> 63 == 1),
            "DISCARD" => self.reach("I17", fewer),
            "MAPD" => self.reach("I20", words[2] >> 63 == 0),
            "unknown" => self.reach("I6", before.its_on() && before.creadr() != after.creadr()),
            _ => {}
        }
    }
}
