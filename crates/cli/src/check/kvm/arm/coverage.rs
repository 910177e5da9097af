//! What the programs reached: each call with each answer, and the rows of the specification.

use std::collections::{BTreeMap, BTreeSet};

use doorbell::kvm_abi::arm::SystemRegister as R;
use doorbell::kvm_abi::arm::types::{LineCall, LineKind, LineLayout, ctrl, group};
use doorbell::kvm_abi::types::{IRQFD_DEASSIGN, IRQFD_RESAMPLE, MSI_VALID_DEVID, ROUTING_IRQCHIP, ROUTING_MSI};
use doorbell::kvm_abi::{Errno, KvmIrqRoutingEntry, KvmMsi};

use super::super::super::tally::Row;
use super::call::{Call, Command, Deed, Group};
use super::layout::{GICD, LPIS, TRANSLATER};
use super::program::Program;
use super::registers::{
    GICD_CTLR, GICD_IROUTER, GICD_SETSPI_NSR, GICR_CTLR, GICR_INVALLR, GICR_INVLPIR, GICR_PROPBASER, GICR_WAKER,
    GITS_BASER, GITS_CBASER, GITS_CREADR, GITS_CTLR, GITS_CWRITER, GITS_IIDR, ICFGR, IPRIORITYR, ISACTIVER, ISPENDR,
    ITARGETSR, VALID,
};
use super::side::{Answer, View};

/// The rows that programs can reach, with what reaching them means.
pub const ROWS: [Row; 74] = [
    ("C1", "GICD_CTLR written"),
    ("C3", "ITARGETSR, which is not there with affinity routing"),
    ("C4", "ICFGR written"),
    ("C5", "a priority written"),
    ("C6", "BPR read by the guest"),
    ("C7", "GICR_WAKER"),
    ("C8", "IROUTER written"),
    ("C10", "ISPENDR written by user space"),
    ("C12a", "a line raised"),
    ("C13", "an interrupt acknowledged"),
    ("C14", "nothing to acknowledge"),
    ("C15", "an end of interrupt that took it out of service"),
    ("C16", "an end that left it in service"),
    ("C17", "DIR took it out of service"),
    ("C18", "DIR that changes nothing"),
    ("C22", "PMR written by the guest"),
    ("C24", "IAR0"),
    ("C25", "IGRPEN written by the guest"),
    ("C29", "GICD_CTLR written by the guest"),
    ("C30", "an LPI acknowledged"),
    ("C31", "an SGI sent"),
    ("C33", "an SGI to all others"),
    ("C35", "an SGI requested for group 0"),
    ("C36", "SETSPI_NSR by the guest"),
    ("C44", "ISACTIVER written by user space"),
    ("C45", "an attribute that there is not"),
    ("EEXIST", "an address or a device a second time"),
    ("NR_IRQS", "a refused number of interrupts"),
    ("E2BIG", "a frame beyond the address space"),
    ("F4", "an irqfd without an eventfd"),
    ("F5", "an eventfd that is bound already"),
    ("F8", "deassign"),
    ("R1", "a resample binding"),
    ("G1", "a table with flags"),
    ("G2", "GSI 4096 and above"),
    ("G3", "entries with flags"),
    ("G4", "entries of one GSI that exclude each other"),
    ("G6", "a chip or type that does not exist"),
    ("G6a", "a pin of 988 and above"),
    ("G7", "a table replaced"),
    ("G9", "the empty table"),
    ("N1", "a line call for a CPU"),
    ("N2", "a PPI or vCPU that there is not"),
    ("N3", "an SPI that there is not"),
    ("N4", "a line call of an unknown type"),
    ("Q11", "a message without an ITS"),
    ("Q12", "a message outside of every frame, or elsewhere in one"),
    ("Q13", "a message to an ITS that is off, or for LPIs that are"),
    ("Q14", "a message that nothing is mapped for"),
    ("Q15", "a message that was taken"),
    ("Q16", "a message with an unknown flag"),
    ("I1", "an ITS switched on"),
    ("I4", "CBASER or BASERn written while the ITS is on, or off"),
    ("I5", "CWRITER written by itself"),
    ("I6", "an unknown command"),
    ("I7", "CREADR written"),
    ("I9", "BASERn made invalid"),
    ("I11", "a message made an LPI pending"),
    ("I12", "CLEAR of a pending LPI"),
    ("I13", "MOVI"),
    ("I14", "INV or INVALL"),
    ("I15", "INT made an LPI pending"),
    ("I16", "MOVALL that moved something"),
    ("I17", "DISCARD"),
    ("I18", "a collection unmapped"),
    ("I19", "a collection mapped elsewhere"),
    ("I20", "a device unmapped"),
    ("I21", "a device mapped"),
    ("I24", "an event mapped"),
    ("I30", "GICR_CTLR written"),
    ("I32", "PROPBASER or PENDBASER written"),
    ("I34", "INVLPIR or INVALLR"),
    ("save", "tables saved"),
    ("IIDR", "an ABI revision of the ITS"),
];

/// What has been reached so far.
#[derive(Default)]
pub struct Coverage {
    /// How often each call gave each answer.
    pub answers: BTreeMap<(String, String), u64>,
    /// Rows of the specification.
    pub rows: BTreeSet<&'static str>,
    /// By number of a watched call of the program: what it shows.
    shows: Vec<Shown>,
}

/// What a watched call shows that rows ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    PendingLpis,
    Active,
    Other,
}

impl Coverage {
    /// A program begins.
    pub fn begin(&mut self, program: &Program) {
        let shown = |call: &Call| match call {
            Call::PendingLpis { .. } => Shown::PendingLpis,
            Call::GetAttr { group: group::DIST_REGS | group::REDIST_REGS, attr, .. }
                if (ISACTIVER..ISACTIVER + 0x80).contains(&(attr & 0xffff)) =>
            {
                Shown::Active
            }
            _ => Shown::Other,
        };
        self.shows = program.watch.iter().map(shown).collect();
    }

    /// How many bits are set in all that shows this.
    fn bits(&self, view: &View, wanted: Shown) -> u32 {
        let watched = self.shows.iter().enumerate().filter(|(_, shown)| **shown == wanted);
        let answers = watched.filter_map(|(at, _)| view.get(at));
        answers.flat_map(|answer| &answer.data).map(|word| word.count_ones()).sum()
    }

    fn words(&self, view: &View, wanted: Shown) -> Vec<u64> {
        let watched = self.shows.iter().enumerate().filter(|(_, shown)| **shown == wanted);
        watched.filter_map(|(at, _)| view.get(at)).flat_map(|answer| answer.data.clone()).collect()
    }

    /// Counts one call by its answer.
    pub fn count(&mut self, call: &Call, answer: &Answer, before: &View, after: &View) {
        let class = match (answer.result, &answer.data[..]) {
            (Err(_), _) => answer.show(),
            (Ok(_), [_, ..]) => "a value".into(),
            (Ok(value), []) => value.to_string(),
        };
        *self.answers.entry((call.name(), class)).or_default() += 1;
        let refused = answer.result.err();
        let [pending_before, pending] = [before, after].map(|view| self.bits(view, Shown::PendingLpis));
        match call {
            Call::CreateDevice { .. } if refused == Some(Errno::EXIST) => self.reach("EEXIST"),
            Call::SetAttr { group, attr, value, .. } => self.set(*group, *attr, *value, refused),
            Call::GetAttr { .. } | Call::HasAttr { .. } if refused == Some(Errno::NXIO) => self.reach("C45"),
            Call::Line { irq, level } => self.line(*irq, *level, refused),
            Call::Msi(message) => self.message(message, answer, pending > pending_before),
            Call::Routes { flags, entries, .. } => self.routes(*flags, entries, refused),
            Call::Irqfd { flags, .. } => match refused {
                Some(Errno::BUSY) => self.reach("F5"),
                Some(_) => self.reach("F4"),
                None if flags & IRQFD_DEASSIGN != 0 => self.reach("F8"),
                None if flags & IRQFD_RESAMPLE != 0 => self.reach("R1"),
                None => {}
            },
            Call::Commands { list, .. } => {
                let moved = self.words(before, Shown::PendingLpis) != self.words(after, Shown::PendingLpis);
                list.iter().for_each(|command| self.command(command, pending_before, pending, moved));
            }
            Call::Guest { deed, .. } => {
                let [active_before, active] = [before, after].map(|view| self.bits(view, Shown::Active));
                self.deed(*deed, answer, active_before, active);
            }
            _ => {}
        }
    }

    fn reach(&mut self, row: &'static str) {
        debug_assert!(ROWS.iter().any(|(known, _)| *known == row), "{row}");
        self.rows.insert(row);
    }

    fn set(&mut self, group: u32, attr: u64, value: u64, refused: Option<Errno>) {
        let offset = attr & 0xffff;
        match (group, refused) {
            (_, Some(Errno::NXIO)) => self.reach("C45"),
            (_, Some(Errno::EXIST)) => self.reach("EEXIST"),
            (group::ADDR, Some(Errno::TOOBIG)) => self.reach("E2BIG"),
            (group::NR_IRQS, Some(_)) => self.reach("NR_IRQS"),
            (group::CTRL, None) if attr == ctrl::ITS_SAVE_TABLES => self.reach("save"),
            (group::DIST_REGS | group::REDIST_REGS, _) if attr & 0x1_0000 != 0 || group == group::DIST_REGS => {
                match offset {
                    GICD_CTLR if group == group::DIST_REGS => self.reach("C1"),
                    GICD_IROUTER..=0x7fff => self.reach("C8"),
                    ISPENDR..0x280 => self.reach("C10"),
                    ISACTIVER..0x380 => self.reach("C44"),
                    IPRIORITYR..ITARGETSR => self.reach("C5"),
                    ITARGETSR..ICFGR => self.reach("C3"),
                    ICFGR..0xd00 => self.reach("C4"),
                    _ => {}
                }
            }
            (group::REDIST_REGS, _) => match offset {
                GICR_CTLR => self.reach("I30"),
                GICR_WAKER => self.reach("C7"),
                GICR_PROPBASER..0x80 => self.reach("I32"),
                GICR_INVLPIR | GICR_INVALLR => self.reach("I34"),
                _ => {}
            },
            (group::ITS_REGS, _) => match offset {
                GITS_CTLR if value & 1 == 1 => self.reach("I1"),
                GITS_IIDR => self.reach("IIDR"),
                GITS_BASER..0x140 if value & VALID == 0 => self.reach("I9"),
                GITS_CBASER | GITS_BASER..0x140 => self.reach("I4"),
                GITS_CWRITER => self.reach("I5"),
                GITS_CREADR => self.reach("I7"),
                _ => {}
            },
            _ => {}
        }
    }

    fn line(&mut self, irq: u32, level: u32, refused: Option<Errno>) {
        match (LineCall::decode(irq, LineLayout::Second).map(|call| call.kind), refused) {
            (None, _) => self.reach("N4"),
            (Some(LineKind::Cpu), _) => self.reach("N1"),
            (Some(LineKind::Ppi), Some(Errno::INVAL)) => self.reach("N2"),
            (Some(LineKind::Spi), Some(Errno::INVAL)) => self.reach("N3"),
            (_, None) if level != 0 => self.reach("C12a"),
            _ => {}
        }
    }

    fn message(&mut self, message: &KvmMsi, answer: &Answer, pended: bool) {
        let elsewhere = u64::from(message.address_lo) & 0x1_ffff != TRANSLATER;
        match answer.result {
            _ if message.flags & !MSI_VALID_DEVID != 0 => self.reach("Q16"),
            Err(Errno::BUSY) => self.reach("Q13"),
            Err(Errno::NODEV) => self.reach("Q11"),
            Err(_) => self.reach("Q12"),
            Ok(0) => self.reach("Q14"),
            Ok(_) => {
                self.reach(if elsewhere { "Q12" } else { "Q15" });
                if pended {
                    self.reach("I11");
                }
            }
        }
    }

    fn routes(&mut self, flags: u32, entries: &[KvmIrqRoutingEntry], refused: Option<Errno>) {
        if refused.is_none() {
            return self.reach(if entries.is_empty() { "G9" } else { "G7" });
        }
        let mut gsis = BTreeSet::new();
        for KvmIrqRoutingEntry { gsi, kind, flags, payload, .. } in entries {
            match *kind {
                _ if *gsi >= 4096 => self.reach("G2"),
                _ if !gsis.insert(gsi) => self.reach("G4"),
                ROUTING_IRQCHIP if *flags != 0 => self.reach("G3"),
                ROUTING_IRQCHIP if payload[0] != 0 => self.reach("G6"),
                ROUTING_IRQCHIP if payload[1] >= 988 => self.reach("G6a"),
                ROUTING_IRQCHIP => {}
                ROUTING_MSI if *flags > 1 => self.reach("G3"),
                ROUTING_MSI => {}
                _ => self.reach("G6"),
            }
        }
        if flags != 0 {
            self.reach("G1");
        }
    }

    fn command(&mut self, command: &Command, before: u32, after: u32, moved: bool) {
        let valid = command[2] & VALID != 0;
        match command[0] as u8 {
            0x01 => self.reach("I13"),
            0x03 if after > before => self.reach("I15"),
            0x04 if after < before => self.reach("I12"),
            0x08 => self.reach(if valid { "I21" } else { "I20" }),
            0x09 => self.reach(if valid { "I19" } else { "I18" }),
            0x0a | 0x0b => self.reach("I24"),
            0x0c | 0x0d => self.reach("I14"),
            0x0e if moved => self.reach("I16"),
            0x0f => self.reach("I17"),
            0x10.. => self.reach("I6"),
            _ => {}
        }
    }

    fn deed(&mut self, deed: Deed, answer: &Answer, active_before: u32, active: u32) {
        match deed {
            Deed::Acknowledge(group) => {
                if group == Group::Zero {
                    self.reach("C24");
                }
                match answer.data[..] {
                    [intid] if intid >= u64::from(LPIS) => self.reach("C30"),
                    [intid] if intid < 1020 => self.reach("C13"),
                    _ => self.reach("C14"),
                }
            }
            Deed::End => self.reach(if active < active_before { "C15" } else { "C16" }),
            Deed::Write(R::ICC_DIR_EL1, _) => self.reach(if active < active_before { "C17" } else { "C18" }),
            Deed::Write(R::ICC_PMR_EL1, _) => self.reach("C22"),
            Deed::Read(R::ICC_BPR0_EL1 | R::ICC_BPR1_EL1) => self.reach("C6"),
            Deed::Write(R::ICC_IGRPEN0_EL1 | R::ICC_IGRPEN1_EL1, _) => self.reach("C25"),
            Deed::Write(R::ICC_SGI0R_EL1, _) => self.reach("C35"),
            Deed::Write(R::ICC_SGI1R_EL1, value) => self.reach(if value >> 40 & 1 == 1 { "C33" } else { "C31" }),
            Deed::Store { address, .. } if address == GICD + GICD_CTLR => self.reach("C29"),
            Deed::Store { address, .. } if address == GICD + GICD_SETSPI_NSR => self.reach("C36"),
            _ => {}
        }
    }
}
