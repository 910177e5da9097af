//! Random programs on a GIC with its vCPUs, and on a model that keeps a record for each interrupt and looks through all of
//! them each time. The model is written from the specification page and knows neither queues nor words.

mod model;

use proptest::prelude::*;

use self::model::{Cpu, Irq, Model};
use super::tests::rig::Rig;
use crate::{
    chips::arm::{Group, IccRegister},
    guest_ram::GuestRamExt,
};

const CPUS: usize = 3;
/// The interrupts that are looked at: private ones, SPIs, one that any vCPU may take, LPIs.
const PRIVATE: [u32; 3] = [1, 2, 20];
const SPIS: [u32; 4] = [40, 41, 42, ANY];
/// Alone at the least urgent of the levels that are used, so that it hides nothing whoever has it.
const ANY: u32 = 60;
/// Each at a priority of its own: equals come in the order of their arrival, which the model does not know.
const LPIS: [(u32, u8); 3] = [(8192, 0x18), (8195, 0x58), (8200, 0x98)];

#[derive(Clone, Copy, Debug)]
enum Change {
    Enabled(bool),
    Latch(bool),
    Line(bool),
    Edge(bool),
    Active(bool),
    Group1(bool),
    Priority(u8),
    Target(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// The distributor's or a redistributor's side of one interrupt, for a vCPU if it is private.
    Change(u32, usize, Change),
    Any(bool),
    Groups(u32),
    Awake(usize, bool),
    Write(usize, IccRegister, u64),
    Acknowledge(usize, Group),
    /// Of the interrupt that this vCPU took last, or of another one.
    End(usize, Group, Option<u32>),
    Deactivate(usize, u32),
    Lpi(u32),
    ClearLpi(u32),
    MoveLpi(u32, usize),
    Sleep(usize),
    /// Save, reset, restore.
    Round(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = 0..CPUS;
    let level = (0u8..30).prop_map(|level| level << 3);
    let named = prop::sample::select([&PRIVATE[..], &SPIS].concat());
    let all = prop::sample::select([&PRIVATE[..], &SPIS, &LPIS.map(|lpi| lpi.0), &[0, 33, 1020, 1023, 9000]].concat());
    let lpi = prop::sample::select(LPIS.map(|lpi| lpi.0).to_vec());
    let group = prop_oneof![1 => Just(Group::Zero), 3 => Just(Group::One)];
    let change = prop_oneof![
        2 => any::<bool>().prop_map(Change::Enabled),
        6 => prop::bool::weighted(0.8).prop_map(Change::Latch),
        4 => any::<bool>().prop_map(Change::Line),
        1 => any::<bool>().prop_map(Change::Edge),
        1 => any::<bool>().prop_map(Change::Active),
        1 => any::<bool>().prop_map(Change::Group1),
        2 => level.prop_map(Change::Priority),
        2 => (0..=CPUS).prop_map(Change::Target),
    ];
    let register = prop_oneof![
        (Just(IccRegister::Pmr), prop_oneof![Just(0xff), 0u64..0x100]),
        (Just(IccRegister::Bpr0), 0u64..8),
        (Just(IccRegister::Bpr1), 0u64..8),
        (Just(IccRegister::Ctlr), 0u64..4),
        (Just(IccRegister::Igrpen0), prop::bool::weighted(0.8).prop_map(u64::from)),
        (Just(IccRegister::Igrpen1), prop::bool::weighted(0.8).prop_map(u64::from)),
        (Just(IccRegister::Sgi1r), sgi()),
        (Just(IccRegister::Sgi0r), sgi()),
    ];
    prop_oneof![
        14 => (named, cpu.clone(), change).prop_map(|(intid, cpu, change)| Step::Change(intid, cpu, change)),
        1 => any::<bool>().prop_map(Step::Any),
        1 => prop_oneof![3 => Just(3), 1 => 0u32..4].prop_map(Step::Groups),
        1 => (cpu.clone(), prop::bool::weighted(0.8)).prop_map(|(cpu, awake)| Step::Awake(cpu, awake)),
        4 => (cpu.clone(), register).prop_map(|(cpu, (register, value))| Step::Write(cpu, register, value)),
        10 => (cpu.clone(), group.clone()).prop_map(|(cpu, group)| Step::Acknowledge(cpu, group)),
        8 => (cpu.clone(), group, prop::option::weighted(0.2, all.clone())).prop_map(|(cpu, group, intid)| Step::End(cpu, group, intid)),
        2 => (cpu.clone(), all).prop_map(|(cpu, intid)| Step::Deactivate(cpu, intid)),
        4 => lpi.clone().prop_map(Step::Lpi),
        1 => lpi.clone().prop_map(Step::ClearLpi),
        1 => (lpi, cpu.clone()).prop_map(|(lpi, cpu)| Step::MoveLpi(lpi, cpu)),
        2 => cpu.clone().prop_map(Step::Sleep),
        1 => cpu.prop_map(Step::Round),
    ]
}

/// SGI 1 or 2, to some or to all but the sender.
fn sgi() -> impl Strategy<Value = u64> {
    (1u64..3, 0u64..8, prop::bool::weighted(0.3))
        .prop_map(|(sgi, targets, all)| sgi << 24 | targets | u64::from(all) << 40)
}

struct Machine {
    rig: Rig,
    model: Model,
    /// What each vCPU acknowledged and has not ended, the last one last.
    taken: Vec<Vec<u32>>,
    asleep: [bool; CPUS],
}

impl Machine {
    fn new() -> Self {
        let rig = Rig::with_lpis(CPUS as u32);
        let mut model = Model::new(CPUS);
        for cpu in 0..CPUS {
            for intid in PRIVATE {
                let edge = intid < 16;
                rig.change(cpu, intid, |it| {
                    it.with_enabled(true).with_group1(true).with_priority(0xa0).with_edge(edge)
                });
                model.irqs.push(Irq::new(intid, 0xa0, edge, Some(cpu)));
            }
        }
        for intid in SPIS {
            let priority = if intid == ANY { 0xf0 } else { 0xa0 };
            rig.change(0, intid, |it| {
                it.with_enabled(true).with_group1(true).with_priority(priority).with_edge(true).with_target(0)
            });
            model.irqs.push(Irq { target: Some(0), ..Irq::new(intid, priority, true, None) });
        }
        for (lpi, priority) in LPIS {
            rig.ram.write_le(Rig::PROPERTIES + u64::from(lpi - 8192), priority | 1).unwrap();
            rig.gic.map_lpi(lpi, Some(0)).unwrap();
            model.irqs.push(Irq { target: Some(0), ..Irq::new(lpi, priority, true, None) });
        }
        Self { rig, model, taken: vec![Vec::new(); CPUS], asleep: [false; CPUS] }
    }

    /// The vCPU runs: it is awake.
    fn run_cpu(&mut self, cpu: usize) {
        if std::mem::take(&mut self.asleep[cpu]) {
            self.rig.cpus[cpu].disarm();
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        self.rig.kicks.lock().clear();
        match step {
            Step::Change(intid, cpu, change) => self.change(intid, cpu, change),
            Step::Any(any) => {
                // GICD_IROUTER is written as a whole.
                self.rig.change(0, ANY, |it| it.with_any(any).with_target(0));
                let irq = self.model.irq(0, ANY).unwrap();
                (irq.any, irq.target) = (any, Some(0));
            }
            Step::Groups(groups) => {
                self.rig.set_groups(groups);
                self.model.groups = [groups & 1 != 0, groups & 2 != 0];
            }
            Step::Awake(cpu, awake) => {
                self.rig.set_awake(cpu, awake);
                self.model.cpus[cpu].awake = awake;
            }
            Step::Write(cpu, register, value) => {
                self.run_cpu(cpu);
                prop_assert_eq!(self.rig.cpus[cpu].write(register, value), None);
                self.model.write(cpu, register, value);
            }
            Step::Acknowledge(cpu, group) => {
                self.run_cpu(cpu);
                self.model.any_is_with = self.holder();
                let intid = self.rig.cpus[cpu].acknowledge(group);
                prop_assert_eq!(intid, self.model.acknowledge(cpu, group));
                if intid != 1023 {
                    self.taken[cpu].push(intid);
                }
            }
            Step::End(cpu, group, intid) => {
                self.run_cpu(cpu);
                let intid = intid.or_else(|| self.taken[cpu].pop()).unwrap_or(1023);
                let ended = self.rig.cpus[cpu].end(group, intid).map(|it| (it.intid, it.pin));
                prop_assert_eq!(ended, self.model.end(cpu, group, intid));
            }
            Step::Deactivate(cpu, intid) => {
                self.run_cpu(cpu);
                let ended = self.rig.cpus[cpu].deactivate(intid).map(|it| (it.intid, it.pin));
                prop_assert_eq!(ended, self.model.deactivate(cpu, intid));
            }
            Step::Lpi(lpi) => {
                self.rig.gic.pend_lpi(lpi);
                self.model.irq(0, lpi).unwrap().latch = true;
            }
            Step::ClearLpi(lpi) => {
                self.rig.gic.clear_lpi(lpi);
                self.model.irq(0, lpi).unwrap().latch = false;
            }
            Step::MoveLpi(lpi, cpu) => {
                self.rig.gic.target_lpi(lpi, Some(cpu as u16));
                self.model.irq(0, lpi).unwrap().target = Some(cpu);
            }
            Step::Sleep(cpu) => {
                self.run_cpu(cpu);
                if self.rig.cpus[cpu].arm().is_idle() {
                    self.asleep[cpu] = true;
                } else {
                    self.rig.cpus[cpu].disarm();
                }
            }
            Step::Round(cpu) => {
                self.run_cpu(cpu);
                let state = self.rig.cpus[cpu].save();
                self.rig.cpus[cpu].reset();
                self.rig.cpus[cpu].restore(&state).unwrap();
            }
        }
        Ok(())
    }

    fn change(&mut self, intid: u32, cpu: usize, change: Change) {
        // What the registers do not offer for them.
        if intid < 16 && matches!(change, Change::Edge(_) | Change::Line(_)) {
            return;
        }
        if matches!(change, Change::Target(_)) && intid < 32 || intid == ANY && matches!(change, Change::Priority(_)) {
            return;
        }
        self.rig.change(cpu, intid, |it| match change {
            Change::Enabled(on) => it.with_enabled(on),
            Change::Latch(on) => it.with_latch(on),
            Change::Line(on) => it.with_line(on).with_latch(it.latch() || on && !it.line() && it.edge()),
            Change::Edge(on) => it.with_edge(on),
            Change::Active(on) => it.with_active(on),
            Change::Group1(on) => it.with_group1(on),
            Change::Priority(priority) => it.with_priority(priority),
            Change::Target(cpu) => it.with_target(if cpu < CPUS { cpu as u16 } else { u16::MAX }),
        });
        let irq = self.model.irq(cpu, intid).unwrap();
        match change {
            Change::Enabled(on) => irq.enabled = on,
            Change::Latch(on) => irq.latch = on,
            Change::Line(on) => {
                irq.latch |= on && !irq.line && irq.edge;
                irq.line = on;
            }
            Change::Edge(on) => irq.edge = on,
            Change::Active(on) => irq.active = on,
            Change::Group1(on) => irq.group1 = on,
            Change::Priority(priority) => irq.priority = priority,
            Change::Target(cpu) => irq.target = (cpu < CPUS).then_some(cpu),
        }
    }

    /// Which vCPU the interrupt for any of them waits for: the implementation's choice.
    fn holder(&self) -> Option<usize> {
        let state = self.rig.state(0, ANY);
        (state.queued() && state.wanted()).then_some(usize::from(state.holder()))
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        self.model.any_is_with = self.holder();
        let any = self.model.irq(0, ANY).unwrap().clone();
        if any.any && any.is_deliverable() {
            let takes = |cpu: &Cpu| cpu.awake && cpu.enabled[usize::from(any.group1)];
            let candidates: Vec<_> = (0..CPUS).filter(|&cpu| takes(&self.model.cpus[cpu])).collect();
            match self.holder() {
                Some(cpu) => prop_assert!(candidates.contains(&cpu), "C27: with {}, of {:?}", cpu, candidates),
                None => prop_assert!(candidates.is_empty(), "C27: with nobody, of {:?}", candidates),
            }
        }
        for cpu in 0..CPUS {
            for group in [Group::Zero, Group::One] {
                let shown = self.rig.cpus[cpu].highest_pending(group);
                prop_assert_eq!(shown, self.model.highest_pending(cpu, group), "HPPIR of vCPU {}, {:?}", cpu, group);
            }
            prop_assert_eq!(self.rig.cpus[cpu].running_priority(), self.model.cpus[cpu].running(), "RPR of {}", cpu);
            let lines = self.rig.cpus[cpu].line();
            prop_assert_eq!((lines.fiq, lines.irq), self.model.lines(cpu), "lines of vCPU {}", cpu);
            let kicked = self.rig.kicks.lock().contains(&(cpu as u32));
            prop_assert!(!self.asleep[cpu] || lines.is_idle() || kicked, "vCPU {} sleeps", cpu);
            if kicked {
                self.asleep[cpu] = false;
            }
        }
        for irq in &self.model.irqs {
            let state = self.rig.state(irq.owner.unwrap_or(0), irq.intid);
            prop_assert_eq!(
                (state.pending(), state.active()),
                (irq.is_pending(), irq.active),
                "{} of {:?}",
                irq.intid,
                irq.owner
            );
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_do_what_the_specification_says(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.step(step)?;
            machine.compare()?;
        }
    }

    /// Nothing that a guest writes to any register panics, and what is saved can be restored.
    #[test]
    fn any_register_program_is_survived(
        writes in prop::collection::vec((prop::sample::select(IccRegister::ALL.to_vec()), any::<u64>()), 0..80),
    ) {
        let mut rig = Rig::with_lpis(2);
        for (register, value) in writes {
            rig.cpus[0].write(register, value);
            rig.cpus[0].read(register);
            let state = rig.cpus[0].save();
            prop_assert_eq!(rig.cpus[1].restore(&state).is_ok(), true);
            prop_assert_eq!(rig.cpus[1].save(), state);
        }
    }
}
