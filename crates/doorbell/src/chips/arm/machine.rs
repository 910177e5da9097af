//! Random programs on the registers, the lines and the CPU interfaces of a GIC, and on a model of it that is written after
//! the page's tables, an interrupt at a time and with no queue.
//!
//! Not here: interrupts that any vCPU may take (the choice is free), Group 0 at the CPU interface, and LPIs.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::{Behaviour, CpuInterface, Gic, GicOptions, Group, IccRegister, Identity, line::CHIP};
use crate::{LineSource, PinInput, VcpuId, guest_ram::RamBlock};

const CPUS: usize = 3;
/// SPIs 32 to 95.
const INTIDS: u32 = 96;
const SPURIOUS: u32 = 1023;

/// One interrupt, in the words of the page's rows.
#[derive(Clone, Debug, Default, PartialEq)]
struct ModelIrq {
    group1: bool,
    enabled: bool,
    latch: bool,
    sources: BTreeSet<u8>,
    active: bool,
    priority: u8,
    edge: bool,
    /// GICD_IROUTER.
    router: u64,
}

impl ModelIrq {
    fn pending(&self) -> bool {
        self.latch || !self.edge && !self.sources.is_empty()
    }

    fn drive(&mut self, source: u8, level: bool, one_wire: bool) {
        if one_wire {
            // KVM: the line is looked at for a level only, and every 1 is an edge.
            match (self.edge, level) {
                (true, true) => self.latch = true,
                (true, false) => {}
                (false, true) => self.sources = BTreeSet::from([0]),
                (false, false) => self.sources.clear(),
            }
            return;
        }
        let was = self.sources.is_empty();
        if level {
            self.sources.insert(source);
        } else {
            self.sources.remove(&source);
        }
        if self.edge && was && level {
            self.latch = true;
        }
    }
}

#[derive(Clone, Default)]
struct ModelCpu {
    private: Vec<ModelIrq>,
    asleep: bool,
    /// The priorities of what was acknowledged and not ended, the last one the most urgent, with the INTIDs.
    active: Vec<(u8, u32)>,
    /// It has asked to be kicked.
    armed: bool,
}

#[derive(Clone)]
struct Model {
    kvm: bool,
    control: u64,
    spis: Vec<ModelIrq>,
    cpus: Vec<ModelCpu>,
}

/// An INTID, and the place and the mask of its field.
type Field = (u32, u64, u64);

/// Who accesses, and which frame.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Frame {
    Distributor,
    Redistributor(usize),
}

impl Model {
    fn new(kvm: bool) -> Self {
        let irq = |edge, enabled| ModelIrq { group1: kvm, edge, enabled, ..ModelIrq::default() };
        let private = (0..32).map(|intid| irq(intid < 16, kvm && intid < 16)).collect();
        let cpu = ModelCpu { private, asleep: !kvm, ..ModelCpu::default() };
        Self { kvm, control: 0, spis: vec![irq(kvm, false); INTIDS as usize - 32], cpus: vec![cpu; CPUS] }
    }

    fn irq(&mut self, frame: Frame, intid: u32) -> Option<&mut ModelIrq> {
        match frame {
            Frame::Distributor => self.spis.get_mut(intid.checked_sub(32)? as usize),
            Frame::Redistributor(cpu) => self.cpus[cpu].private.get_mut(intid as usize),
        }
    }

    /// A register with a field for each interrupt: its offset, the bits of a field.
    fn array(frame: Frame, offset: u64) -> Option<(u64, u64, u64)> {
        let offset = match frame {
            Frame::Distributor => offset,
            Frame::Redistributor(_) => offset.checked_sub(0x1_0000)?,
        };
        let arrays =
            [(0x80, 1), (0x100, 1), (0x180, 1), (0x200, 1), (0x280, 1), (0x300, 1), (0x380, 1), (0x400, 8), (0xc00, 2)];
        let at = arrays.into_iter().find(|(start, bits)| (*start..start + bits * 128).contains(&offset))?;
        Some((at.0, at.1, offset - at.0))
    }

    /// The fields that an access covers, and their register.
    fn fields(frame: Frame, offset: u64, bytes: u8) -> Option<(u64, Vec<Field>)> {
        let (start, bits, within) = Self::array(frame, offset)?;
        let width = u64::from(bytes);
        if !(bytes == 4 || bytes == 1 && start == 0x400) || offset % width != 0 {
            return None;
        }
        let fields = (0..width * 8 / bits).map(|n| ((within * 8 / bits + n) as u32, n * bits, (1 << bits) - 1));
        Some((start, fields.collect()))
    }

    fn read(&mut self, frame: Frame, offset: u64, bytes: u8) -> u64 {
        if let Some((start, fields)) = Self::fields(frame, offset, bytes) {
            return fields.into_iter().fold(0, |value, (intid, at, _)| {
                let field = self.irq(frame, intid).map_or(0, |irq| match start {
                    0x80 => irq.group1.into(),
                    0x100 | 0x180 => irq.enabled.into(),
                    0x200 | 0x280 => irq.pending().into(),
                    0x300 | 0x380 => irq.active.into(),
                    0x400 => irq.priority.into(),
                    _ => u64::from(irq.edge) << 1,
                });
                value | field << at
            });
        }
        match (frame, offset, bytes) {
            (Frame::Distributor, 0, 4) => self.control | 0x50,
            (Frame::Redistributor(cpu), 0x14, 4) if self.cpus[cpu].asleep => 6,
            (Frame::Redistributor(_), 0x14, 4) => 0,
            (Frame::Distributor, 0x6000..0x8000, 4 | 8) if offset % u64::from(bytes) == 0 => {
                let router = self.irq(frame, (offset - 0x6000) as u32 / 8).map_or(0, |irq| irq.router);
                if bytes == 8 { router } else { router >> (offset % 8 * 8) & 0xffff_ffff }
            }
            _ => 0,
        }
    }

    fn write(&mut self, frame: Frame, offset: u64, bytes: u8, value: u64) {
        let kvm = self.kvm;
        if let Some((start, fields)) = Self::fields(frame, offset, bytes) {
            for (intid, at, mask) in fields {
                let field = value >> at & mask;
                let Some(irq) = self.irq(frame, intid) else { continue };
                match (start, field) {
                    (0x80, _) => irq.group1 = field == 1,
                    (0x100 | 0x180, 1) => irq.enabled = start == 0x100,
                    (0x200 | 0x280, 1) => irq.latch = start == 0x200,
                    (0x300 | 0x380, 1) => irq.active = start == 0x300,
                    (0x400, _) => irq.priority = field as u8 & 0xf8,
                    // C4; KVM's PPIs keep theirs.
                    (0xc00, _) if intid >= if kvm { 32 } else { 16 } => irq.edge = field & 2 != 0,
                    _ => {}
                }
            }
            return;
        }
        match (frame, offset, bytes) {
            (Frame::Distributor, 0, 4) => self.control = value & if kvm { 2 } else { 3 },
            (Frame::Redistributor(cpu), 0x14, 4) => self.cpus[cpu].asleep = !kvm && value & 2 != 0,
            (Frame::Distributor, 0x40 | 0x48, 2 | 4) if !kvm => {
                let intid = value as u32 & if bytes == 2 { 0xffff } else { u32::MAX } & 0x1fff;
                let level = offset == 0x40;
                if let Some(irq) = self.irq(frame, intid) {
                    if irq.edge {
                        irq.latch = level;
                    } else {
                        irq.drive(63, level, false);
                    }
                }
            }
            (Frame::Distributor, 0x6000..0x8000, 4 | 8) if offset % u64::from(bytes) == 0 => {
                let existing = if kvm { 0xff_ffff } else { 0xff_80ff_ffff };
                let shift = if bytes == 8 { 0 } else { offset % 8 * 8 };
                let mask = if bytes == 8 { u64::MAX } else { 0xffff_ffff << shift };
                if let Some(irq) = self.irq(frame, (offset - 0x6000) as u32 / 8) {
                    irq.router = (irq.router & !mask | value << shift & mask) & existing;
                }
            }
            _ => {}
        }
    }

    /// What a vCPU would acknowledge (C10 to C29).
    fn candidate(&self, cpu: usize) -> Option<u32> {
        let own = &self.cpus[cpu];
        if self.control & 2 == 0 || own.asleep {
            return None;
        }
        let running = own.active.last().map_or(0xf8, |active| active.0);
        let private = (0u32..).zip(&own.private);
        // The vCPUs have the names 0.0.0.0, 0.0.0.1 and 0.0.0.2.
        let spis = (32u32..).zip(&self.spis).filter(|(_, irq)| irq.router == cpu as u64);
        private
            .chain(spis)
            .filter(|(_, irq)| irq.enabled && irq.pending() && !irq.active && irq.group1 && irq.priority < running)
            .min_by_key(|(intid, irq)| (irq.priority, *intid))
            .map(|(intid, _)| intid)
    }

    fn of_cpu(&mut self, cpu: usize, intid: u32) -> &mut ModelIrq {
        if intid < 32 { &mut self.cpus[cpu].private[intid as usize] } else { &mut self.spis[intid as usize - 32] }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { frame: Frame, offset: u64, bytes: u8, value: u64 },
    Read { frame: Frame, offset: u64, bytes: u8 },
    Line { pin: u16, source: u8, level: bool },
    Pulse { pin: u16, source: u8 },
    Ppi { cpu: usize, intid: u8, level: bool },
    Acknowledge { cpu: usize },
    End { cpu: usize },
    Arm { cpu: usize },
    SaveAndRestore,
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![2 => Just(Frame::Distributor), 1 => (0..CPUS).prop_map(Frame::Redistributor)]
}

/// Where something is, mostly; anything else, sometimes.
fn access() -> impl Strategy<Value = (Frame, u64, u8)> {
    let array = (frame(), 0usize..9, 0u64..4, prop_oneof![9 => Just(4u8), 1 => 0u8..9]).prop_map(
        |(frame, array, word, bytes)| {
            let start = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0xc00][array];
            let first = if frame == Frame::Distributor { 0 } else { 0x1_0000 };
            // The priorities of the first interrupts of each kind.
            let within = if start == 0x400 { word / 2 * 0x20 + word % 2 * 4 } else { word * 4 };
            (frame, first + start + within, bytes)
        },
    );
    let router = (32u64..100, 0u8..3).prop_map(|(intid, part)| {
        let (within, bytes) = [(0, 8), (0, 4), (4, 4)][usize::from(part)];
        (Frame::Distributor, 0x6000 + 8 * intid + within, bytes)
    });
    let other =
        (frame(), prop::sample::select(vec![0u64, 0x14, 0x40, 0x48, 0x50]), prop_oneof![4 => Just(4u8), 1 => 0u8..9]);
    let priority = (frame(), 0u64..40).prop_map(|(frame, byte)| {
        let first = if frame == Frame::Distributor { 0x420 } else { 0x1_0400 };
        (frame, first + byte, 1)
    });
    // Not the identification registers, and not those of LPIs, which have tests of their own.
    let anywhere = (frame(), 0x80u64..0x2_4000, prop::sample::select(vec![0u8, 1, 2, 3, 4, 8, 16]))
        .prop_filter("has a model", |(_, offset, _)| {
            !(0xffc0..0x1_0000).contains(offset) && !(0xa0..0xc8).contains(offset)
        });
    prop_oneof![8 => array, 3 => router, 2 => other, 3 => priority, 2 => anywhere]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(!(1u64 << 31)),
        2 => any::<u64>().prop_map(|bits| bits & !(1 << 31)),
        4 => 0u64..4,
        2 => (0u32..31).prop_map(|bit| 1 << bit),
        1 => 32u64..40,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let pin = || prop_oneof![6 => 0u16..4, 1 => 60u16..70];
    prop_oneof![
        12 => (access(), value()).prop_map(|((frame, offset, bytes), value)| Step::Write { frame, offset, bytes, value }),
        3 => access().prop_map(|(frame, offset, bytes)| Step::Read { frame, offset, bytes }),
        4 => (pin(), 0u8..3, any::<bool>()).prop_map(|(pin, source, level)| Step::Line { pin, source, level }),
        2 => (pin(), 0u8..3).prop_map(|(pin, source)| Step::Pulse { pin, source }),
        2 => (0..CPUS, 14u8..20, any::<bool>()).prop_map(|(cpu, intid, level)| Step::Ppi { cpu, intid, level }),
        6 => (0..CPUS).prop_map(|cpu| Step::Acknowledge { cpu }),
        4 => (0..CPUS).prop_map(|cpu| Step::End { cpu }),
        2 => (0..CPUS).prop_map(|cpu| Step::Arm { cpu }),
        1 => Just(Step::SaveAndRestore),
    ]
}

struct Machine {
    gic: Arc<Gic>,
    cpus: Vec<CpuInterface>,
    kicks: Arc<Mutex<BTreeSet<u32>>>,
    model: Model,
}

impl Machine {
    fn new(kvm: bool) -> Self {
        let kicks = Arc::new(Mutex::new(BTreeSet::new()));
        let (gic, mut cpus) = Self::build(kvm, &kicks);
        for cpu in &mut cpus {
            cpu.write(IccRegister::Pmr, 0xff);
            cpu.write(IccRegister::Igrpen1, 1);
        }
        let mut machine = Self { gic, cpus, kicks, model: Model::new(kvm) };
        // Something can happen at once.
        machine.write(Frame::Distributor, 0, 4, 2);
        for word in 0..3 {
            machine.write(Frame::Distributor, 0x80 + 4 * word, 4, u32::MAX.into());
        }
        for cpu in 0..CPUS {
            machine.write(Frame::Redistributor(cpu), 0x14, 4, 0);
            machine.write(Frame::Redistributor(cpu), 0x1_0080, 4, u32::MAX.into());
        }
        machine
    }

    fn build(kvm: bool, kicks: &Arc<Mutex<BTreeSet<u32>>>) -> (Arc<Gic>, Vec<CpuInterface>) {
        let mut options = GicOptions::new(CPUS as u32);
        options.intids = INTIDS as u16;
        if kvm {
            (options.behaviour, options.identity) = (Behaviour::KVM, Identity::Kvm);
        }
        let told = Arc::clone(kicks);
        let kick = move |vcpu: VcpuId| {
            told.lock().insert(vcpu.0);
        };
        let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(kick)).unwrap();
        let cpus = (0..CPUS as u32).map(|vcpu| gic.cpu_interface(VcpuId(vcpu)).unwrap()).collect();
        (gic, cpus)
    }

    fn read(&self, frame: Frame, offset: u64, bytes: u8) -> u64 {
        match frame {
            Frame::Distributor => self.gic.distributor().read(offset, bytes),
            Frame::Redistributor(cpu) => self.gic.redistributor(VcpuId(cpu as u32)).unwrap().read(offset, bytes),
        }
    }

    fn write(&mut self, frame: Frame, offset: u64, bytes: u8, value: u64) {
        self.model.write(frame, offset, bytes, value);
        match frame {
            Frame::Distributor => self.gic.distributor().write(offset, bytes, value),
            Frame::Redistributor(cpu) => {
                self.gic.redistributor(VcpuId(cpu as u32)).unwrap().write(offset, bytes, value);
            }
        }
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        let one_wire = self.model.kvm;
        if let Step::Acknowledge { cpu } | Step::End { cpu } = step {
            // A vCPU that does something is awake, and looks before it sleeps again.
            self.cpus[cpu].disarm();
            self.model.cpus[cpu].armed = false;
        }
        match step {
            Step::Write { frame, offset, bytes, value } => self.write(frame, offset, bytes, value),
            Step::Read { frame, offset, bytes } => {
                // What is constant, or stands in a test of its own: GICR_CTLR, GICD_TYPER and the like.
                let known = !matches!((frame, offset), (Frame::Redistributor(_), 0..0x14));
                if known {
                    prop_assert_eq!(self.read(frame, offset, bytes), self.model.read(frame, offset, bytes));
                }
            }
            Step::Line { pin, source, level } => {
                self.gic.set(CHIP, pin, LineSource::new(source).unwrap(), level);
                if let Some(irq) = self.model.spis.get_mut(usize::from(pin)) {
                    irq.drive(source, level, one_wire);
                }
            }
            Step::Pulse { pin, source } => {
                self.gic.pulse(CHIP, pin, LineSource::new(source).unwrap());
                if let Some(irq) = self.model.spis.get_mut(usize::from(pin)) {
                    irq.drive(source, true, one_wire);
                    // KVM's irqfd leaves the line of an SPI up.
                    if !one_wire {
                        irq.drive(source, false, one_wire);
                    }
                }
            }
            Step::Ppi { cpu, intid, level } => {
                self.gic.set_ppi(VcpuId(cpu as u32), intid, level);
                if intid >= 16 {
                    self.model.cpus[cpu].private[usize::from(intid)].drive(0, level, one_wire);
                }
            }
            Step::Acknowledge { cpu } => {
                let expected = self.model.candidate(cpu);
                prop_assert_eq!(self.cpus[cpu].acknowledge(Group::One), expected.unwrap_or(SPURIOUS), "vCPU {}", cpu);
                if let Some(intid) = expected {
                    let irq = self.model.of_cpu(cpu, intid);
                    (irq.latch, irq.active) = (false, true);
                    let priority = irq.priority;
                    self.model.cpus[cpu].active.push((priority, intid));
                }
            }
            Step::End { cpu } => {
                if let Some((_, intid)) = self.model.cpus[cpu].active.pop() {
                    self.cpus[cpu].end(Group::One, intid);
                    self.model.of_cpu(cpu, intid).active = false;
                }
            }
            Step::Arm { cpu } => {
                self.kicks.lock().remove(&(cpu as u32));
                self.arm(cpu)?;
            }
            Step::SaveAndRestore => {
                let (gic, mut cpus) = Self::build(self.model.kvm, &self.kicks);
                gic.restore(&self.gic.save()).unwrap();
                for (cpu, old) in cpus.iter_mut().zip(&self.cpus) {
                    cpu.restore(&old.save()).unwrap();
                }
                prop_assert_eq!(gic.save(), self.gic.save());
                (self.gic, self.cpus) = (gic, cpus);
                self.model.cpus.iter_mut().for_each(|cpu| cpu.armed = false);
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        for frame in (0..CPUS).map(Frame::Redistributor).chain([Frame::Distributor]) {
            let (first, words) = if frame == Frame::Distributor { (0, 3) } else { (0x1_0000, 1) };
            let arrays = [(0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xc00, 2)];
            for offset in arrays.into_iter().flat_map(|(start, bits)| (start..start + 4 * words * bits).step_by(4)) {
                let (found, expected) =
                    (self.read(frame, first + offset, 4), self.model.read(frame, first + offset, 4));
                prop_assert_eq!(found, expected, "{:?} {:#x}", frame, offset);
            }
        }
        for cpu in 0..CPUS {
            if !self.model.cpus[cpu].armed {
                continue;
            }
            if self.kicks.lock().remove(&(cpu as u32)) {
                // As a vCPU does that was woken, for nothing perhaps.
                self.arm(cpu)?;
            } else {
                prop_assert_eq!(self.model.candidate(cpu), None, "vCPU {} sleeps over it", cpu);
            }
        }
        Ok(())
    }

    /// The vCPU asks to be woken, looks, and sleeps if there is nothing.
    fn arm(&mut self, cpu: usize) -> Result<(), TestCaseError> {
        let lines = self.cpus[cpu].arm();
        prop_assert_eq!(lines.irq, self.model.candidate(cpu).is_some(), "vCPU {}", cpu);
        prop_assert!(!lines.fiq);
        self.model.cpus[cpu].armed = !lines.irq;
        Ok(())
    }
}

fn run(kvm: bool, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(kvm);
    for step in steps {
        machine.run(step)?;
        machine.compare()?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_do_what_the_page_says(steps in prop::collection::vec(step(), 1..120)) {
        run(false, steps)?;
    }

    #[test]
    fn random_programs_do_in_kvms_way_what_kvm_does(steps in prop::collection::vec(step(), 1..120)) {
        run(true, steps)?;
    }
}
