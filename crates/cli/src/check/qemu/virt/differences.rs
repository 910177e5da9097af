//! Where doorbell differs from QEMU on purpose, by name. Programs keep clear of these; each has a test of its own, which
//! says what either machine does.

use std::collections::BTreeMap;

use super::icc::Register;
use super::side::{CPUS, Input, Op};
use super::state::Seen;
use super::step::{
    COLLECTION_IDS, COLLECTIONS, CONFIG, DEVICES, FIRST_LPI, ITT_ADDRESS, PAGES_64K, PENDING, QUEUE, QUEUE_BYTES, Step,
    command_name, itt,
};
use crate::qtest::virt::{GICD, GICR, GICR_STRIDE, GITS};

/// The names, with what the difference is.
pub const DIFFERENCES: [(&str, &str); 25] = [
    ("priority-bits", "QEMU stores 8 bits of a priority, of which its CPU interfaces know 5; doorbell stores 5 (C5)"),
    ("cpu-identity", "ICC_CTLR_EL1: QEMU says 24 bits of INTID and no range selector, doorbell 16 and one"),
    ("message-spis", "GICD_SETSPI and GICD_CLRSPI: QEMU's virt has no message-based SPIs; doorbell takes them"),
    (
        "no-such-intid",
        "an end of an INTID beyond those that exist: QEMU drops the running priority, doorbell does nothing",
    ),
    ("range-selector", "a range of Aff0 above 15 in a request for an SGI: QEMU has none and ignores the field (RSS)"),
    (
        "trigger-changed",
        "a trigger mode changed while a line is high: QEMU offers an interrupt that is not pending any more",
    ),
    (
        "cpu-reserved",
        "reserved bits of ICC_PMR_EL1 and ICC_BPRn_EL1: QEMU stores them, or takes a binary point below the least; doorbell \
         ignores them (C6)",
    ),
    (
        "binary-point",
        "a coarser binary point than what runs was taken with: QEMU rounds the running priority, doorbell as KVM does not",
    ),
    ("asleep", "a redistributor that sleeps (GICR_WAKER): QEMU offers its interrupts, doorbell holds them back (C7)"),
    (
        "group-off",
        "the most urgent is of a group that is off at its CPU: nothing else is offered in QEMU; in doorbell, as in KVM, the \
         next of the other group (C25)",
    ),
    (
        "router",
        "GICD_IROUTER: QEMU stores reserved bits, and IRM without effect; doorbell takes any one CPU then (C8, C27)",
    ),
    (
        "quiescent",
        "GITS_CTLR.Quiescent is 1 in doorbell, as in KVM, when no command is left; QEMU shows it always (I2)",
    ),
    ("creadr", "QEMU lets a guest store GITS_CREADR; doorbell does not (I7)"),
    ("cwriter", "GITS_CWRITER beyond the queue: QEMU stores it, doorbell ignores the store (I5)"),
    (
        "its-without-tables",
        "GITS_CTLR.Enabled while a table or the queue is not valid: QEMU takes it, doorbell does not (I1)",
    ),
    (
        "stall",
        "a command whose table is no memory: QEMU stalls the queue there, doorbell counts an error and goes on (I6, I30)",
    ),
    (
        "config-cache",
        "an LPI's configuration changed without INV: QEMU reads it at the next message, doorbell at INV, INVALL or MAPTI (I14)",
    ),
    ("lpi-order", "LPIs of one priority: QEMU offers the lowest number, doorbell the one that came first (C20)"),
    (
        "mapped-again",
        "MAPTI of a mapped event, or of an LPI that another event has: what was pending stays in QEMU, doorbell drops it (I22)",
    ),
    (
        "mapd-pending",
        "MAPD of a mapped device: LPIs that were pending stay in QEMU, doorbell drops them; QEMU keeps the events that it \
         finds in the table, doorbell has none (I20, I21)",
    ),
    (
        "mapd-size",
        "MAPD that takes a device away with a size that is too large: QEMU refuses it, doorbell as KVM does not look at the size",
    ),
    (
        "pending-twice",
        "an LPI that is pending where its collection is not any more, after MOVALL or MAPC: QEMU can have it pending in both \
         places, and looks for it only where the collection is; doorbell has it once (I16, I19)",
    ),
    (
        "lpis-off",
        "a pending LPI that is moved while LPIs are off at one of the redistributors: QEMU leaves it, doorbell moves it (I13, I16)",
    ),
    (
        "tables-while-on",
        "GICR_PROPBASER and GICR_PENDBASER stored while LPIs are on: QEMU takes them, doorbell does not (I32)",
    ),
    (
        "pending-zero",
        "GICR_PENDBASER.PTZ can only be written in doorbell, which does not read the table then; QEMU shows it, and reads (I33)",
    ),
];

/// Of ICC_CTLR_EL1.
const ICC_CTLR_RSS: u64 = 1 << 18;
const ICC_CTLR_ID_BITS: u64 = 7 << 11;
/// Of ICC_SGI1R_EL1.
const SGI_RANGE: u64 = 0xf << 44;
const CBPR: u64 = 1;
const LEAST_BINARY_POINTS: [u64; 2] = [2, 3];
/// ICC_RPR_EL1 while nothing is active.
const IDLE: u64 = 0xff;
/// The bits of each of eight priorities that both store.
const PRIORITY: u64 = 0xf8f8_f8f8_f8f8_f8f8;
/// Of GICD_IROUTER: affinities.
const ROUTER: u64 = 0xff_00ff_ffff;
const ROUTERS: u64 = 0x6000;
/// Of GICR_WAKER, and of GICR_PENDBASER.
const PROCESSOR_SLEEP: u64 = 1 << 1;
const PTZ: u64 = 1 << 62;
/// Of GITS_CTLR.
const QUIESCENT: u64 = 1 << 31;
/// Of GITS_CBASER and GITS_BASER: validity, cacheability and shareability.
const ATTRIBUTES: u64 = 1 << 63 | 7 << 59 | 7 << 53 | 3 << 10;
/// Of GICR_PROPBASER and GICR_PENDBASER: cacheability and shareability.
const LPI_ATTRIBUTES: u64 = 7 << 56 | 7 << 7 | 3 << 10;
/// How many devices and collections the tables have room for: those of two levels, and one page.
const DEVICE_IDS: u32 = 0x1_0000;
const COLLECTIONS_THERE: u64 = 0x2000;
/// Groups: of a redistributor's second frame, and of the distributor.
const GROUPS: std::ops::Range<u64> = 0x80..0x100;
const MESSAGES: std::ops::Range<u64> = 0x40..0x60;
const TRIGGERS: std::ops::Range<u64> = 0xc00..0xd00;

/// What the rules need to know of a machine.
#[derive(Default)]
pub struct Model {
    /// Where the next command goes.
    tail: u64,
    /// Some interrupt is of Group 0. The prelude puts all into Group 1.
    mixed: bool,
    /// The ITS is on; whether its two tables and its queue are valid.
    its_on: bool,
    valid: [bool; 3],
    /// The LPI of each event, and the redistributor of each collection.
    events: BTreeMap<(u32, u32), u32>,
    collections: BTreeMap<u64, u64>,
    /// The devices that are mapped, with how many bits of event.
    devices: BTreeMap<u32, u32>,
    /// Pending LPIs, a bit each from the first on, on any CPU.
    pending: u64,
    /// Inputs that are high.
    high: Vec<Input>,
    /// Of each CPU.
    cpus: [Cpu; CPUS as usize],
}

/// What the rules need to know of a CPU.
#[derive(Clone, Copy, Default)]
struct Cpu {
    /// The groups that are off.
    off: [bool; 2],
    /// The groups whose binary point is not the least.
    coarse: [bool; 2],
    /// ICC_CTLR_EL1.CBPR.
    common: bool,
    /// It has an active priority.
    runs: bool,
    /// Its LPIs are on.
    lpis: bool,
}

impl Model {
    /// The step as both machines take it: as it is, the nearest one on which they should agree, or none.
    pub fn admit(&mut self, step: &Step) -> Option<Step> {
        Some(match *step {
            Step::Store(bytes, address, value) => Step::Store(bytes, address, self.store(bytes, address, value)?),
            Step::Write(cpu, register, value) => Step::Write(cpu, register, self.write(cpu, register, value)?),
            // Its tables are said to be zero.
            Step::LpisOn(_) if self.its_on || self.pending != 0 => return None,
            Step::LpisOn(_) => {
                self.valid = [true; 3];
                self.cpus.iter_mut().for_each(|cpu| cpu.lpis = true);
                step.clone()
            }
            Step::Command(words) => Step::Command(self.command(words)?),
            Step::Retire(from, to) if self.its_on && from != to && self.may_move() => {
                self.collections.extend((0..COLLECTION_IDS).map(|collection| (collection, to)));
                step.clone()
            }
            Step::Retire(..) => return None,
            Step::Line(input, level) => {
                self.high.retain(|other| *other != input);
                self.high.extend(level.then_some(input));
                step.clone()
            }
            Step::Config(lpi, byte) => {
                // A priority of its own for each: the lower bits say which it is.
                let own = (((lpi - FIRST_LPI) / 3 % 8) as u8) << 3;
                let byte = byte & 0xc1 | own;
                match self.events.iter().find(|(_, mapped)| **mapped == lpi) {
                    Some((&(device, event), _)) if self.its_on => Step::ConfigAndInv(lpi, byte, device, event),
                    Some(_) => return None,
                    None => Step::Config(lpi, byte),
                }
            }
            _ => step.clone(),
        })
    }

    fn write(&mut self, cpu: u32, register: Register, value: u64) -> Option<u64> {
        let mixed = self.mixed;
        let cpu = &mut self.cpus[cpu as usize];
        Some(match register {
            Register::Pmr => value & 0xff,
            Register::Eoir0 | Register::Eoir1 | Register::Dir => value & 0xffff,
            Register::Sgi0r | Register::Sgi1r | Register::Asgi1r => value & !SGI_RANGE,
            Register::Igrpen0 | Register::Igrpen1 => {
                let off = value & 1 == 0;
                if off && mixed {
                    return None;
                }
                cpu.off[usize::from(register == Register::Igrpen1)] = off;
                value
            }
            Register::Bpr0 | Register::Bpr1 => {
                let group = usize::from(register == Register::Bpr1);
                let coarse = value & 7 > LEAST_BINARY_POINTS[group];
                if cpu.runs || coarse && mixed {
                    return None;
                }
                cpu.coarse[group] = coarse;
                value & 7
            }
            Register::Ap0r0 | Register::Ap1r0 if cpu.coarse != [false; 2] => return None,
            Register::Ctlr if cpu.runs => value & !CBPR | u64::from(cpu.common),
            Register::Ctlr => {
                cpu.common = value & CBPR != 0;
                value
            }
            _ => value,
        })
    }

    fn store(&mut self, bytes: u8, address: u64, value: u64) -> Option<u64> {
        let at = offset(address);
        let distributor = address < GITS;
        let redistributor = address >= GICR;
        if !distributor && !redistributor {
            return self.its(bytes, at, value);
        }
        if GROUPS.contains(&(at & 0xffff)) && (distributor || redistributor && at >> 16 == 1) {
            let zeros = value != u64::MAX >> (64 - 8 * u32::from(bytes));
            if zeros && self.cpus.iter().any(|cpu| (cpu.off, cpu.coarse) != Default::default()) {
                return None;
            }
            self.mixed |= zeros;
        }
        if distributor && MESSAGES.contains(&at) {
            return None;
        }
        if TRIGGERS.contains(&(at & 0xffff)) && !self.high.is_empty() {
            return None;
        }
        let priorities = (0x400..0x800).contains(&(at & 0xffff)) && (distributor || redistributor && at >> 16 == 1);
        let value = if priorities { value & PRIORITY } else { value };
        let value = if distributor && at >= ROUTERS { without(bytes, at, value, at & !7, !ROUTER) } else { value };
        if !redistributor {
            return Some(value);
        }
        let number = ((address - GICR) / GICR_STRIDE) as usize;
        let cpu = &mut self.cpus[number];
        match at {
            0x00 if bytes == 4 => cpu.lpis = value & 1 == 1,
            0x70..0x80 if cpu.lpis => return None,
            0x70..0x78 => return Some(fixed(bytes, at - 0x70, value, CONFIG | 0xf, LPI_ATTRIBUTES)),
            0x78..0x80 => return Some(fixed(bytes, at - 0x78, value, PENDING[number], LPI_ATTRIBUTES)),
            _ => {}
        }
        Some(without(bytes, at, value, 0x14, PROCESSOR_SLEEP))
    }

    fn its(&mut self, bytes: u8, at: u64, value: u64) -> Option<u64> {
        let table = |this: &mut Self, table: usize, register: u64, place: u64| {
            let value = fixed(bytes, at - register, value, place, ATTRIBUTES);
            let has_valid = bytes >= 4 && at + u64::from(bytes) == register + 8;
            if !this.its_on && has_valid {
                // A queue in a new place begins anew: the set-up says where it ends.
                this.valid[table] = table < 2 && value >> (8 * u32::from(bytes) - 1) & 1 == 1;
            }
            Some(value)
        };
        match at {
            0x00..0x04 if value & 1 == 1 && self.valid != [true; 3] => None,
            0x80..0x84 if !self.its_on => None,
            0x80..0x88 => table(self, 2, 0x80, QUEUE | (QUEUE_BYTES / 0x1000 - 1)),
            // Only to where it is already: what lies behind are old commands.
            0x88..0x90 => Some(fixed(bytes, at - 0x88, 0, self.tail, 0)),
            0x90..0x98 => None,
            0x100..0x108 => table(self, 0, 0x100, DEVICES | PAGES_64K | 7),
            0x108..0x110 => table(self, 1, 0x108, COLLECTIONS | PAGES_64K),
            _ => Some(value),
        }
    }

    fn command(&mut self, words: [u64; 4]) -> Option<[u64; 4]> {
        if !self.its_on {
            return None;
        }
        let [first, second, third, fourth] = words;
        let (device, event) = ((first >> 32) as u32, second as u32);
        let collection = third & 0xffff;
        let valid = third >> 63 == 1;
        let exists = |this: &Self| this.devices.get(&device).is_some_and(|bits| u64::from(event) < 1 << bits);
        match command_name(first as u8) {
            "MAPD" => {
                let waiting = self.events.iter().any(|((of, _), lpi)| *of == device && self.is_pending(*lpi));
                if waiting {
                    return None;
                }
                let bits = second & 0x1f;
                let possible = device < DEVICE_IDS && (!valid || bits < 16);
                if possible {
                    self.events.retain(|(of, _), _| *of != device);
                    self.devices.remove(&device);
                    if valid {
                        self.devices.insert(device, bits as u32 + 1);
                    }
                }
                let second = if valid { second } else { second & !0x1f };
                return Some([first, second, third & !ITT_ADDRESS | itt(device), fourth]);
            }
            "MAPC" => {
                let cpu = third >> 16 & 0xffff_ffff;
                let elsewhere = self.collections.get(&collection).is_some_and(|at| !valid || *at != cpu);
                if elsewhere && self.pending != 0 || (COLLECTION_IDS..COLLECTIONS_THERE).contains(&collection) {
                    return None;
                }
                if collection < COLLECTION_IDS && (!valid || cpu < u64::from(CPUS)) {
                    self.collections.remove(&collection);
                    if valid {
                        self.collections.insert(collection, cpu);
                    }
                }
            }
            name @ ("MAPTI" | "MAPI") => {
                let lpi = if name == "MAPI" { event } else { (second >> 32) as u32 };
                if self.events.contains_key(&(device, event)) || self.events.values().any(|other| *other == lpi) {
                    return None;
                }
                if exists(self) && (FIRST_LPI..0x1_0000).contains(&lpi) {
                    self.events.insert((device, event), lpi);
                }
            }
            "DISCARD" => drop(self.events.remove(&(device, event))),
            "MOVALL" if self.pending != 0 => return None,
            "MOVI" if !self.may_move() => return None,
            _ => {}
        }
        Some(words)
    }

    /// Whether pending LPIs can go from one redistributor to the other.
    fn may_move(&self) -> bool {
        self.pending == 0 || self.cpus.iter().all(|cpu| cpu.lpis)
    }

    fn is_pending(&self, lpi: u32) -> bool {
        lpi.checked_sub(FIRST_LPI).is_some_and(|bit| bit < 64 && self.pending >> bit & 1 == 1)
    }

    /// Where in the queue the step's commands go.
    pub fn take_tail(&mut self, step: &Step) -> u64 {
        if matches!(step, Step::LpisOn(_)) {
            self.tail = 0;
        }
        let tail = self.tail;
        self.tail = (tail + 32 * step.commands().len() as u64) % QUEUE_BYTES;
        tail
    }

    /// What was seen of doorbell behind a step.
    pub fn saw(&mut self, seen: &Seen) {
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            cpu.runs = seen.running(number) != IDLE;
        }
        self.its_on = seen.its_on();
        self.pending = (0..CPUS as usize).fold(0, |pending, cpu| pending | seen.lpis_of(cpu));
    }

    /// What QEMU and doorbell gave, as it is compared.
    pub fn alike(&self, op: Op, values: [u64; 2]) -> [u64; 2] {
        let hidden = |value: u64| match op {
            Op::Read(_, Register::Ctlr) => value & !(ICC_CTLR_RSS | ICC_CTLR_ID_BITS),
            Op::Load(_, bytes, address) if (GITS..GICR).contains(&address) => {
                without(bytes, offset(address), value, 0, QUIESCENT)
            }
            Op::Load(_, bytes, address) if (GICR..END).contains(&address) => {
                without(bytes, offset(address), value, 0x78, PTZ)
            }
            _ => value,
        };
        values.map(hidden)
    }
}

/// In its frame.
fn offset(address: u64) -> u64 {
    match address {
        GICD..GITS => address - GICD,
        GITS..GICR => address - GITS,
        _ => (address - GICR) % GICR_STRIDE,
    }
}

/// Behind the redistributors.
const END: u64 = GICR + CPUS as u64 * GICR_STRIDE;

/// A value of an access of so many bytes at an offset, without these bits of the register at `register`.
fn without(bytes: u8, at: u64, value: u64, register: u64, bits: u64) -> u64 {
    let last = at + u64::from(bytes);
    if last <= register || register + 8 <= at {
        return value;
    }
    let bits = if at >= register { bits >> (8 * (at - register)) } else { bits << (8 * (register - at)) };
    value & !bits
}

/// A value of an access of so many bytes, `at` bytes into a register that is to hold `place`, and where only the bits of
/// `free` are the value's own.
fn fixed(bytes: u8, at: u64, value: u64, place: u64, free: u64) -> u64 {
    let part = |whole: u64| whole >> (8 * at);
    let value = value & part(free) | part(place);
    value & u64::MAX >> (64 - 8 * u32::from(bytes))
}
