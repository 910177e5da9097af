//! The plan: which eventfd of which device arrives at which vCPU as which vector.

use std::sync::atomic::Ordering;

use doorbell::{DeviceId, MsiMessage, route::RouteTable};

pub mod arm;
pub mod x86;

use super::{
    ledger::{FIRST_VECTOR, Ledger, SPAN_LEVEL, Slot},
    machine::{Arch, Machine, Remap, Wiring},
};

/// The lowest vector that the plan gives away; below it are exceptions and what a PC's firmware uses.
const LOWEST: u8 = 0x30;
/// The highest; above it are those that operating systems use among themselves.
const HIGHEST: u8 = 0xef;
/// With interrupt remapping, and on Arm, so many neighbouring vCPUs take each other's vectors.
const GROUP: u32 = 4;
/// The pin of the first line.
pub const FIRST_PIN: u16 = 16;

/// How many MSI-X vectors a machine can have: each needs a GSI, and the lowest are those of pins.
fn most_messages(arch: Arch) -> u32 {
    RouteTable::GSIS - u32::from(FIRST_PIN) - arch.lines()
}

/// Whom the messages of a device come from: a function of bus 1 or 2.
fn requester(device: usize) -> DeviceId {
    DeviceId(0x100 + (device as u32) * 8)
}

/// How one vector of the plan is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// This entry of its device's MSI-X table.
    MsiX {
        /// The entry.
        entry: u16,
    },
    /// A line of the IOAPIC, or an SPI.
    Line(Line),
}

/// A line of the IOAPIC, or an SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The pin.
    pub pin: u16,
    /// The vector that an IOAPIC's entry holds: the first slot of those that share the pin.
    pub vector: u8,
    /// A level line with a resample descriptor; otherwise an edge.
    pub resample: bool,
}

/// One interrupt source: an eventfd of a device and where it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The index of its device.
    pub device: usize,
    /// Which of the device's vectors it is.
    pub number: u32,
    /// Where it arrives.
    pub slot: Slot,
    /// How.
    pub wire: Wire,
    /// What its vCPU's acknowledge says: an x86 vector, or an INTID.
    pub arrival: u32,
    /// It waits for the handler after each signal.
    pub lockstep: bool,
    /// How often it is signalled.
    pub interrupts: u32,
}

impl Vector {
    /// Its line, if it has one.
    pub fn line(&self) -> Option<Line> {
        match self.wire {
            Wire::MsiX { .. } => None,
            Wire::Line(line) => Some(line),
        }
    }

    /// It is a level line.
    pub fn is_level(&self) -> bool {
        self.line().is_some_and(|line| line.resample)
    }

    /// The slot whose handler is entered, the first of a line's; on x86 the vector that arrives at the vCPU.
    pub fn arrives_as(&self) -> u8 {
        self.line().map_or(self.slot.vector, |line| line.vector)
    }
}

/// All vectors of a machine, in the order of its devices.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whose interrupt architecture it is.
    pub arch: Arch,
    /// How many vCPUs.
    pub vcpus: u32,
    /// What is between the devices and the chips.
    pub remap: Remap,
    /// How many ITSs there are; 0 on x86.
    pub its: u32,
    /// The names of the devices.
    pub devices: Vec<String>,
    /// Their vectors.
    pub vectors: Vec<Vector>,
}

/// Hands out slots: vectors upwards on each vCPU.
struct Slots {
    vcpus: usize,
    /// How many vCPUs have their vectors in common.
    group: usize,
    /// By group.
    next: Vec<u8>,
}

impl Slots {
    /// `count` slots in a row on one vCPU, for the `turn`th time: vCPUs in turn, and every round begins one further, so
    /// that what every other vector does is not done on every other vCPU.
    fn take(&mut self, turn: u32, count: u8) -> Option<Slot> {
        let Self { vcpus, group, ref mut next } = *self;
        let first = turn as usize + turn as usize / vcpus;
        let vcpu = (0..vcpus).map(|k| (first + k) % vcpus).find(|&vcpu| next[vcpu / group] <= HIGHEST + 1 - count)?;
        let vector = next[vcpu / group];
        next[vcpu / group] += count;
        Some(Slot { vcpu: vcpu as u32, vector })
    }
}

impl Plan {
    /// The plan of a machine.
    ///
    /// # Errors
    /// One line, if the machine has more vectors than its vCPUs.
    pub fn new(machine: &Machine) -> Result<Self, String> {
        let group = if machine.remap == Remap::None { 1 } else { GROUP };
        let groups = machine.vcpus.div_ceil(group);
        let mut slots =
            Slots { vcpus: machine.vcpus as usize, group: group as usize, next: vec![LOWEST; groups as usize] };
        let mut next_pin = FIRST_PIN;
        let mut messages = 0;
        let Machine { arch, vcpus, remap, its, .. } = *machine;
        let mut plan = Self { arch, vcpus, remap, its, devices: Vec::new(), vectors: Vec::new() };
        let most_messages = most_messages(arch);
        for (device, source) in machine.sources.iter().enumerate() {
            plan.devices.push(source.name.clone());
            let total = source.wiring.vectors();
            let full = || {
                let (name, most) = (&machine.name, groups * u32::from(HIGHEST - LOWEST + 1));
                let vcpus = machine.vcpus;
                format!(
                    "{name}: source \"{}\": vectors: {total} are too many: {vcpus} vCPUs take {most} altogether",
                    source.name
                )
            };
            let interrupts = |number: u32| {
                let (each, rest) = (source.interrupts / u64::from(total), source.interrupts % u64::from(total));
                (each + u64::from(u64::from(number) < rest)) as u32
            };
            let vector = |number: u32, slot, wire| Vector {
                device,
                number,
                slot,
                wire,
                arrival: 0,
                lockstep: source.pattern.is_lockstep(number),
                interrupts: interrupts(number),
            };
            match source.wiring {
                Wiring::Vectors(vectors) => {
                    messages += vectors;
                    if messages > most_messages {
                        let name = &machine.name;
                        return Err(format!(
                            "{name}: source \"{}\": vectors: {total} are too many: a machine has {most_messages} altogether",
                            source.name
                        ));
                    }
                    for number in 0..vectors {
                        let slot = slots.take(number, 1).ok_or_else(full)?;
                        plan.vectors.push(vector(number, slot, Wire::MsiX { entry: number as u16 }));
                    }
                }
                Wiring::Lines { lines, sharers, resample } => {
                    for line in 0..lines {
                        let first = slots.take(line, sharers as u8).ok_or_else(full)?;
                        let wire = Wire::Line(Line { pin: next_pin, vector: first.vector, resample });
                        next_pin += 1;
                        for sharer in 0..sharers {
                            let slot = Slot { vector: first.vector + sharer as u8, ..first };
                            plan.vectors.push(vector(line * sharers + sharer, slot, wire));
                        }
                    }
                }
            }
        }
        for (index, vector) in plan.vectors.iter_mut().enumerate() {
            vector.arrival = match arch {
                Arch::X86 => vector.arrives_as().into(),
                Arch::Arm => Self::intid(index, vector.wire),
            };
        }
        Ok(plan)
    }

    /// How many neighbouring vCPUs a vector may arrive at: those whose numbers, divided by this, are the same.
    pub fn group(&self) -> u32 {
        if self.arch == Arch::X86 && self.remap == Remap::None { 1 } else { GROUP }
    }

    /// What an arrival is called in a report.
    pub fn name_of(&self, arrival: u32) -> String {
        match self.arch {
            Arch::X86 => format!("vector {arrival:#x}"),
            Arch::Arm => format!("INTID {arrival}"),
        }
    }

    /// Whether a vector may arrive at a vCPU.
    pub fn may_arrive(&self, vector: &Vector, vcpu: u32) -> bool {
        vector.slot.vcpu / self.group() == vcpu / self.group()
    }

    /// Whom the messages of a device come from, where somebody wants to know.
    pub fn requester(&self, device: usize) -> Option<DeviceId> {
        (self.arch == Arch::Arm || self.remap != Remap::None).then(|| requester(device))
    }

    /// The message that the guest's driver gives the plan's `index`th vector.
    pub fn message(&self, index: usize) -> MsiMessage {
        match self.arch {
            Arch::X86 => self.x86_message(index),
            Arch::Arm => self.arm_message(index),
        }
    }

    /// Writes into the ledger which vectors are in use.
    pub fn enter(&self, ledger: &Ledger) {
        for vector in &self.vectors {
            let first = usize::from(vector.arrives_as() - FIRST_VECTOR);
            let span = &ledger.cpu(vector.slot.vcpu).span[first];
            let count = (span.load(Ordering::Relaxed) & !SPAN_LEVEL) + 1;
            let level = vector.is_level();
            // Relaxed: the handlers start later.
            span.store(count | if level { SPAN_LEVEL } else { 0 }, Ordering::Relaxed);
        }
    }

    /// The vectors of one device.
    pub fn of_device(&self, device: usize) -> impl Iterator<Item = &Vector> {
        self.vectors.iter().filter(move |vector| vector.device == device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_of_the_built_in_machine_has_a_slot_of_its_own() {
        let machine = Machine::x86();
        let plan = Plan::new(&machine).unwrap();
        assert_eq!(plan.vectors.len(), 8 + 64 + 2);
        let mut slots: Vec<_> = plan.vectors.iter().map(|vector| vector.slot).collect();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), 74);
        let total: u64 = plan.vectors.iter().map(|vector| u64::from(vector.interrupts)).sum();
        assert_eq!(total, machine.interrupts());
        assert_eq!(plan.vectors.iter().filter(|vector| vector.lockstep).count(), 37, "half of them");
        for lockstep in [true, false] {
            let on = |vcpu| plan.vectors.iter().filter(|v| v.slot.vcpu == vcpu && v.lockstep == lockstep).count();
            assert!((0..4).all(|vcpu| (8..=10).contains(&on(vcpu))), "spread over the vCPUs");
        }
    }

    #[test]
    fn sharers_of_a_line_are_neighbours_and_arrive_as_its_vector() {
        let plan = Plan::new(&Machine::x86()).unwrap();
        let [a, b] = plan.of_device(2).collect::<Vec<_>>()[..] else { panic!("two sources") };
        assert_eq!((a.wire, b.slot.vcpu), (b.wire, a.slot.vcpu));
        assert_eq!(a.arrives_as(), a.slot.vector);
        assert_eq!(b.arrives_as(), a.slot.vector);
        assert_eq!(b.slot.vector, a.slot.vector + 1);
        let (ledger, _memory) = Ledger::create(4).unwrap();
        plan.enter(&ledger);
        let span = |slot: Slot| ledger.cpu(slot.vcpu).span[slot.index().unwrap()].load(Ordering::Relaxed);
        assert_eq!((span(a.slot), span(b.slot)), (SPAN_LEVEL | 2, 0));
        assert_eq!(span(plan.vectors[0].slot), 1);
    }

    #[test]
    fn a_machine_with_more_vectors_than_slots_is_refused() {
        let text = "vcpus = 2\n[[source]]\nname = 'n'\nkind = 'storage'\nvectors = 385\ninterrupts = 10\n";
        let error = Plan::new(&Machine::parse("m.toml", text).unwrap()).unwrap_err();
        assert_eq!(error, "m.toml: source \"n\": vectors: 385 are too many: 2 vCPUs take 384 altogether");
        let many = "[[source]]\nname = 'NAME'\nkind = 'storage'\nvectors = 2048\ninterrupts = 10\n";
        let text4096 = format!("vcpus = 64\n{}{}", many.replace("NAME", "a"), many.replace("NAME", "b"));
        let error = Plan::new(&Machine::parse("m.toml", &text4096).unwrap()).unwrap_err();
        assert_eq!(error, "m.toml: source \"b\": vectors: 2048 are too many: a machine has 4072 altogether");
        let text = text.replace("385", "384");
        assert_eq!(Plan::new(&Machine::parse("m.toml", &text).unwrap()).unwrap().vectors.len(), 384);
    }
}
