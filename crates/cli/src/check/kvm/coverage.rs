//! What the programs reached: each call with each answer, and the rows of the specification.

use std::collections::{BTreeMap, BTreeSet};

use doorbell::chips::x86::pic;
use doorbell::kvm_abi::types::{
    self, IRQFD_DEASSIGN, IRQFD_RESAMPLE, MSI_VALID_DEVID, ROUTING_IRQCHIP, ROUTING_MSI, regs,
};
use doorbell::kvm_abi::{Errno, KvmIrqRoutingEntry, KvmMsi, KvmPicState};

use super::call::{Call, EVENTS, Fd, SOURCES, VCPUS};
use super::compare;
use super::program::{CLOCK, LEGACY_GSIS};
use super::side::{Outcome, State, VmState};

/// The rows that programs can reach, with what reaching them means.
pub const ROWS: [(&str, &str); 71] = [
    ("F1", "irqfd with an unknown flag"),
    ("F4", "irqfd with a descriptor that is closed or no eventfd"),
    ("F5", "an eventfd that is bound already, here or in the other VM"),
    ("F6", "two eventfds on one GSI"),
    ("F7", "a binding or an event on a GSI without a route"),
    ("F8", "deassign, with and without a match"),
    ("F8b", "a write after deassign"),
    ("F9", "deassign together with resample"),
    ("F10", "assign with a counter above 0"),
    ("F11", "a write of more than 1 to a bound eventfd"),
    ("F12", "the original of a duplicate is closed while bound"),
    ("F14", "an event to a message"),
    ("F15", "an event to a pin"),
    ("F16", "a pulse to a level pin"),
    ("F16a", "a pulse to a masked edge pin"),
    ("F17", "an event after the table changed"),
    ("R1", "a resample binding signalled"),
    ("R2", "an end of interrupt signals resample events"),
    ("R3", "several resample bindings on one GSI"),
    ("R4", "a sharer detached, and the last one"),
    ("R5", "detached while its interrupt is in service"),
    ("R6", "a latched level pin unmasked by the guest: the resamplers are asked"),
    ("G1", "a table with too many entries or with flags"),
    ("G2", "GSI 4096 and above"),
    ("G3", "entries with flags"),
    ("G4", "entries of one GSI that exclude each other"),
    ("G5", "two GSIs on one pin"),
    ("G6", "a pin, chip or type that does not exist"),
    ("G7", "a table replaced"),
    ("G8", "a refused table leaves the old one"),
    ("G9", "the empty table"),
    ("G15", "a message entry with VALID_DEVID"),
    ("Q1", "signal_msi with an unknown flag"),
    ("Q2", "signal_msi with VALID_DEVID"),
    ("Q3", "a message taken by one APIC"),
    ("Q4", "a message that nobody takes"),
    ("Q5", "an address outside of 0xFEExxxxx"),
    ("Q6", "a message to all"),
    ("Q7", "a logical message taken by several"),
    ("Q8", "lowest priority, or the redirection hint"),
    ("Q9", "a vector below 16"),
    ("A2", "a masked level pin raised"),
    ("A3", "it is unmasked"),
    ("A4", "a level pin raised while remote IRR is set"),
    ("A5", "a line lowered"),
    ("A7", "an edge pin raised twice"),
    ("A9", "a level interrupt ended"),
    ("A11", "remote IRR lost by a change to edge"),
    ("A13", "a store to the version register"),
    ("A14", "a line held by another source"),
    ("L1", "a vector that is requested already"),
    ("L2", "a software-disabled APIC"),
    ("L6", "a request that has to wait for its priority"),
    ("L7", "an interrupt acknowledged"),
    ("L8", "an interrupt ended"),
    ("P2", "the guest asks for a level pin of the 8259 that it cannot have"),
    ("P3", "an edge pin of the 8259 pair raised, or latched when its line falls"),
    ("P4", "a second edge there"),
    ("P5", "a masked pin of the pair raised"),
    ("P6", "a level pin lowered there"),
    ("P7", "the slave asks through the master"),
    ("P8", "a poll with nothing to take"),
    ("P9", "an interrupt of the pair taken, by the CPU or a poll"),
    ("P10", "ICW1"),
    ("P11", "an end of the pair's interrupt, or another order of priorities"),
    ("CR8", "a priority raised by CR8 holds an interrupt back"),
    ("NMI", "an NMI taken"),
    ("IPI", "an interrupt that the guest sent, taken"),
    ("nesting", "an interrupt taken while another is in service"),
    ("once", "the timer, once"),
    ("periodic", "the timer, again and again"),
];

#[derive(Clone, Copy)]
enum Leads {
    Message,
    Pin(usize),
    Legacy(usize),
}

#[derive(Clone, Copy)]
struct Bound {
    vm: usize,
    gsi: u32,
    resample: bool,
    renumbered: bool,
}

/// What has been reached so far.
#[derive(Default)]
pub struct Coverage {
    /// How often each call gave each answer.
    pub answers: BTreeMap<(&'static str, String), u64>,
    /// The rows reached.
    pub rows: BTreeSet<&'static str>,
    bindings: BTreeMap<usize, Bound>,
    unbound: BTreeSet<usize>,
    routes: [BTreeMap<u32, Vec<Leads>>; 2],
    rerouted: bool,
}

impl Coverage {
    /// A new program begins, in the state of the prelude.
    pub fn begin(&mut self) {
        self.bindings.clear();
        self.unbound.clear();
        self.rerouted = false;
        let pins = (0..24).map(|gsi| (gsi, vec![Leads::Pin(gsi as usize)]));
        let mut table: BTreeMap<_, _> = pins.chain((24..32).map(|gsi| (gsi, vec![Leads::Message]))).collect();
        for gsi in (0..16).filter(|gsi| *gsi != CLOCK) {
            table.entry(gsi).or_default().push(Leads::Legacy(gsi as usize));
        }
        table.extend(LEGACY_GSIS.map(|gsi| (gsi, vec![Leads::Legacy((gsi - LEGACY_GSIS.start) as usize)])));
        self.routes = [table.clone(), table];
    }

    /// Notes a row, if it was reached.
    pub fn reach(&mut self, row: &'static str, reached: bool) {
        debug_assert!(ROWS.iter().any(|(known, _)| *known == row), "{row} is in the table");
        if reached {
            self.rows.insert(row);
        }
    }

    /// Counts one call by the kernel's answer.
    pub fn count(&mut self, call: &Call, answer: Outcome, before: &State, after: &State) {
        let class = match (call, answer) {
            (_, Err(errno)) => compare::errno_name(errno),
            (Call::Acknowledge { .. } | Call::Read { .. }, Ok(value)) if value >= 0 => "a value".into(),
            (Call::LoadLapic { .. } | Call::LoadEntry { .. } | Call::LoadPort { .. }, Ok(_)) => "a value".into(),
            (_, Ok(value)) => value.to_string(),
        };
        *self.answers.entry((call.name(), class)).or_default() += 1;
        match call {
            Call::Irqfd { vm, fd, gsi, flags, resample } => {
                self.irqfd(*vm, [*fd, *resample], *gsi, *flags, answer, before);
            }
            Call::Routes { vm, nr, flags, entries } => self.table(*vm, *nr, *flags, entries, answer),
            Call::Line { vm, gsi, level, status: true } => self.line(*vm, *gsi, *level != 0, answer, before, after),
            Call::Msi { vm, message } => {
                let vector = (message.data & 0xff) as u8;
                let apics = || before.vms[*vm].lapics.iter();
                let requested = apics().any(|apic| apic.vectors(regs::IRR).contains(&vector));
                self.reach("L1", requested && answer.is_ok_and(|taken| taken > 0));
                self.reach("L2", answer == Ok(0) && apics().any(|apic| apic.register(regs::SVR) >> 8 & 1 == 0));
                self.message(message, answer);
            }
            Call::Write { event, value } => self.write(*event, *value, before),
            Call::Renumber { event } => {
                if let Some(bound) = self.bindings.get_mut(event) {
                    bound.renumbered = true;
                }
            }
            Call::SetEntry { vm, pin, entry } => {
                let old = &before.vms[*vm].ioapic;
                let latched = old.irr >> pin & 1 == 1 && old.redirtbl[*pin] >> 16 & 1 == 1;
                self.reach("A3", latched && entry >> 15 & 3 == 1);
            }
            Call::Acknowledge { vm, vcpu } => {
                let waiting = !before.vms[*vm].lapics[*vcpu as usize].vectors(regs::IRR).is_empty();
                self.reach("L7", answer.is_ok_and(|vector| vector >= 0));
                self.reach("L6", waiting && answer == Ok(-1));
            }
            Call::End { vm, vcpu } => {
                let apic = &before.vms[*vm].lapics[*vcpu as usize];
                if let Some(ended) = apic.vectors(regs::ISR).pop() {
                    self.reach("L8", true);
                    self.reach("A9", apic.vectors(regs::TMR).contains(&ended));
                }
                self.reach("R2", after.readable & !before.readable != 0);
            }
            Call::StoreEntry { vm, index, .. } => {
                self.reach("A13", *index == 1);
                self.reach("R6", after.readable & !before.readable != 0);
                if let Some(pin) = (*index as usize).checked_sub(0x10).map(|entry| entry / 2).filter(|pin| *pin < 24) {
                    let [old, new] = [before, after].map(|state| state.vms[*vm].ioapic.redirtbl[pin] >> 14 & 1);
                    self.reach("A11", (old, new) == (1, 0));
                }
            }
            Call::StorePort { vm, port, value, .. } => {
                self.reach("R2", after.readable & !before.readable != 0);
                self.legacy_store(*port, *value, &before.vms[*vm].pics, &after.vms[*vm].pics);
            }
            Call::LoadPort { vm, port, .. } => {
                self.reach("R2", after.readable & !before.readable != 0);
                let polls = before.vms[*vm].pics[usize::from(port >> 7 & 1)].poll != 0 && *port < pic::MASTER_ELCR;
                self.reach("P8", polls && answer == Ok(7));
                self.reach("P9", polls && answer.is_ok_and(|value| value >> 7 & 1 == 1));
            }
            _ => {}
        }
    }

    fn irqfd(&mut self, vm: usize, [fd, resample]: [Fd; 2], gsi: u32, flags: u32, answer: Outcome, before: &State) {
        let not_event = fd == Fd::NoEvent || flags & IRQFD_RESAMPLE != 0 && resample == Fd::NoEvent;
        match answer {
            Err(Errno::INVAL) if flags & !3 != 0 => self.reach("F1", true),
            Err(Errno::BADF) => self.reach("F4", true),
            Err(Errno::INVAL) => self.reach("F4", not_event),
            Err(Errno::BUSY) => self.reach("F5", true),
            Err(_) => {}
            Ok(_) => {
                let Fd::Event(event) = fd else { return };
                if flags & IRQFD_DEASSIGN != 0 {
                    self.deassigned(vm, event, gsi, flags, before);
                    return;
                }
                let resample = flags & IRQFD_RESAMPLE != 0;
                let others = |bound: &Bound| bound.vm == vm && bound.gsi == gsi;
                let shared = self.bindings.values().any(others);
                let sharers = resample && self.bindings.values().any(|bound| others(bound) && bound.resample);
                self.reach("F6", shared);
                self.reach("R3", sharers);
                self.reach("F7", !self.routes[vm].contains_key(&gsi));
                self.reach("F10", before.readable >> event & 1 == 1);
                self.bindings.insert(event, Bound { vm, gsi, resample, renumbered: false });
            }
        }
    }

    fn deassigned(&mut self, vm: usize, event: usize, gsi: u32, flags: u32, before: &State) {
        self.reach("F8", true);
        self.reach("F9", flags & IRQFD_RESAMPLE != 0);
        let Some(bound) = self.bindings.get(&event).copied().filter(|bound| bound.vm == vm && bound.gsi == gsi) else {
            return;
        };
        self.bindings.remove(&event);
        self.unbound.insert(event);
        if bound.resample {
            self.reach("R4", true);
            let held =
                |leads: &Leads| matches!(leads, Leads::Pin(pin) if before.vms[vm].ioapic.redirtbl[*pin] >> 14 & 1 == 1);
            let in_service = self.routes[vm].get(&gsi).is_some_and(|leads| leads.iter().any(held));
            self.reach("R5", in_service);
        }
    }

    fn table(&mut self, vm: usize, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry], answer: Outcome) {
        let leads = |entry: &KvmIrqRoutingEntry| match entry.kind {
            ROUTING_IRQCHIP if entry.payload[0] == types::CHIP_IOAPIC => Some(Leads::Pin(entry.payload[1] as usize)),
            ROUTING_IRQCHIP => Some(Leads::Legacy((8 * entry.payload[0] + entry.payload[1]) as usize)),
            ROUTING_MSI => Some(Leads::Message),
            _ => None,
        };
        if answer.is_ok() {
            let mut table: BTreeMap<u32, Vec<Leads>> = BTreeMap::new();
            for entry in entries {
                table.entry(entry.gsi).or_default().extend(leads(entry));
                self.reach("G15", entry.kind == ROUTING_MSI && entry.flags == MSI_VALID_DEVID);
            }
            let pins = entries.iter().filter(|entry| entry.kind == ROUTING_IRQCHIP).map(|entry| entry.payload);
            let distinct: BTreeSet<_> = pins.clone().map(|payload| [payload[0], payload[1]]).collect();
            self.reach("G5", distinct.len() < pins.count());
            self.reach("G7", true);
            self.reach("G9", nr == 0);
            self.routes[vm] = table;
            self.rerouted = true;
            return;
        }
        self.reach("G8", true);
        if nr > types::MAX_IRQ_ROUTES || flags != 0 {
            self.reach("G1", true);
            return;
        }
        self.reach("G2", entries.iter().any(|entry| entry.gsi >= types::MAX_IRQ_ROUTES));
        self.reach("G3", entries.iter().any(|entry| entry.flags & !u32::from(entry.kind == ROUTING_MSI) != 0));
        let twice = |entry: &KvmIrqRoutingEntry| entries.iter().filter(|other| other.gsi == entry.gsi).count() > 1;
        self.reach("G4", entries.iter().any(|entry| twice(entry) && entry.kind == ROUTING_MSI));
        let pins = |chip: u32| if chip == types::CHIP_IOAPIC { 24 } else { 8 };
        let bad = |entry: &KvmIrqRoutingEntry| match entry.kind {
            ROUTING_IRQCHIP => entry.payload[0] > 2 || entry.payload[1] >= pins(entry.payload[0]),
            kind => kind != ROUTING_MSI,
        };
        self.reach("G6", entries.iter().any(bad));
    }

    fn line(&mut self, vm: usize, gsi: u32, level: bool, answer: Outcome, before: &State, after: &State) {
        let pin = match self.routes[vm].get(&gsi).map(Vec::as_slice) {
            Some([Leads::Pin(pin)]) => *pin,
            Some(&[Leads::Legacy(pin)]) => {
                return self.legacy_line(pin, level, answer, &before.vms[vm], &after.vms[vm]);
            }
            _ => return,
        };
        let VmState { ioapic, .. } = &before.vms[vm];
        let entry = ioapic.redirtbl[pin];
        let (level_pin, masked) = (entry >> 15 & 1 == 1, entry >> 16 & 1 == 1);
        self.reach("A2", level && level_pin && masked && answer == Ok(-1));
        self.reach("A4", level && level_pin && !masked && entry >> 14 & 1 == 1 && answer == Ok(-1));
        self.reach("A5", !level && ioapic.irr >> pin & 1 == 1 && after.vms[vm].ioapic.irr >> pin & 1 == 0);
        self.reach("A7", level && !level_pin && answer == Ok(0));
        let held = self.bindings.values().any(|bound| bound.vm == vm && bound.gsi == gsi && bound.resample);
        self.reach("A14", !level && held && after.vms[vm].ioapic.irr >> pin & 1 == 1);
    }

    fn legacy_line(&mut self, pin: usize, level: bool, answer: Outcome, before: &VmState, after: &VmState) {
        let (chip, bit) = (pin / 8, 1 << (pin % 8));
        let (before, after_of_chip) = (before.pics[chip], after.pics[chip]);
        let edge = before.elcr & bit == 0;
        self.reach("P3", edge && !level && before.last_irr & bit != 0 && after_of_chip.irr & bit != 0);
        self.reach("P4", edge && level && answer == Ok(0));
        self.reach("P5", level && answer == Ok(-1) && before.irr & bit == 0 && after_of_chip.irr & bit != 0);
        self.reach("P6", !edge && !level && before.irr & bit != 0 && after_of_chip.irr & bit == 0);
        self.reach("P7", chip == 1 && level && answer == Ok(1) && after.pics[0].irr & 1 << 2 != 0);
    }

    fn legacy_store(&mut self, port: u16, value: u8, before: &[KvmPicState; 2], after: &[KvmPicState; 2]) {
        let chip = usize::from(matches!(port, pic::SLAVE_COMMAND | pic::SLAVE_DATA | pic::SLAVE_ELCR));
        let (before, after) = (before[chip], after[chip]);
        match port {
            pic::MASTER_ELCR | pic::SLAVE_ELCR => self.reach("P2", value & !after.elcr != 0),
            pic::MASTER_COMMAND | pic::SLAVE_COMMAND if value & 0x10 != 0 => {
                self.reach("P10", before.irr != 0 && before.isr != 0);
            }
            _ => self.reach("P11", before.priority_add != after.priority_add),
        }
    }

    fn message(&mut self, message: &KvmMsi, answer: Outcome) {
        let KvmMsi { address_lo, data, flags, .. } = *message;
        let logical = address_lo >> 2 & 1 == 1;
        let one_of_many = address_lo >> 3 & 1 == 1 || data >> 8 & 7 == 1;
        self.reach("Q1", answer == Err(Errno::INVAL) && flags & !1 != 0);
        let Ok(taken) = answer else { return };
        self.reach("Q2", flags == MSI_VALID_DEVID);
        self.reach("Q3", taken == 1);
        self.reach("Q4", taken == 0);
        self.reach("Q5", address_lo >> 20 != 0xfee && taken > 0);
        self.reach("Q6", !logical && address_lo >> 12 & 0xff == 0xff && taken as u32 >= VCPUS[1]);
        self.reach("Q7", logical && taken > 1);
        self.reach("Q8", one_of_many && taken == 1);
        self.reach("Q9", data & 0xff < 16 && taken > 0);
    }

    fn write(&mut self, event: usize, value: u64, before: &State) {
        debug_assert!(event < EVENTS);
        let Some(bound) = self.bindings.get(&event).copied() else {
            self.reach("F8b", self.unbound.contains(&event) && event < SOURCES);
            return;
        };
        self.reach("F11", value > 1);
        self.reach("F12", bound.renumbered);
        self.reach("F17", self.rerouted);
        self.reach("R1", bound.resample);
        let leads = self.routes[bound.vm].get(&bound.gsi).cloned().unwrap_or_default();
        self.reach("F7", leads.is_empty());
        for leads in leads {
            let pin = match leads {
                Leads::Pin(pin) => pin,
                Leads::Legacy(_) => {
                    self.reach("F15", true);
                    continue;
                }
                Leads::Message => {
                    self.reach("F14", true);
                    continue;
                }
            };
            let entry = before.vms[bound.vm].ioapic.redirtbl[pin];
            self.reach("F15", true);
            self.reach("F16", !bound.resample && entry >> 15 & 1 == 1);
            self.reach("F16a", !bound.resample && entry >> 15 & 3 == 2);
        }
    }
}
