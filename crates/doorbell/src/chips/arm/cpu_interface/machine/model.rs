//! The model: C10 to C35 in the words of the specification page.

use crate::chips::arm::{Group, IccRegister};

const NONE: u32 = 1023;

/// A record of one interrupt.
#[derive(Clone, Debug)]
pub struct Irq {
    pub intid: u32,
    pub enabled: bool,
    pub latch: bool,
    pub line: bool,
    pub edge: bool,
    pub active: bool,
    pub group1: bool,
    pub priority: u8,
    /// The vCPU that has it to itself.
    pub owner: Option<usize>,
    pub target: Option<usize>,
    pub any: bool,
}

impl Irq {
    pub fn new(intid: u32, priority: u8, edge: bool, owner: Option<usize>) -> Self {
        let (enabled, group1) = (true, true);
        let (latch, line, active, any) = (false, false, false, false);
        Self { intid, enabled, latch, line, edge, active, group1, priority, owner, target: owner, any }
    }

    pub fn is_pending(&self) -> bool {
        self.latch || !self.edge && self.line
    }

    pub fn is_deliverable(&self) -> bool {
        self.enabled && self.is_pending() && !self.active
    }
}

/// A CPU interface.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub awake: bool,
    pub enabled: [bool; 2],
    pmr: u8,
    bpr: [u8; 2],
    common: bool,
    split: bool,
    /// Of each group, the group priorities that are active.
    active: [Vec<u8>; 2],
}

impl Cpu {
    pub fn running(&self) -> u8 {
        self.active.iter().flatten().copied().min().unwrap_or(0xff)
    }

    fn group_priority(&self, group: usize, priority: u8) -> u8 {
        // The number of low bits that do not preempt.
        let bits = if group == 1 && !self.common { self.bpr[1] } else { self.bpr[0] + 1 };
        if bits >= 8 { 0 } else { priority >> bits << bits }
    }

    /// Drops the highest active priority, if it is this group's.
    fn drop_priority(&mut self, group: usize) -> bool {
        let running = self.running();
        let zero_has_it = self.active[0].contains(&running);
        if running == 0xff || zero_has_it != (group == 0) {
            return false;
        }
        self.active[group].retain(|&priority| priority != running);
        true
    }
}

pub struct Model {
    pub irqs: Vec<Irq>,
    pub cpus: Vec<Cpu>,
    /// GICD_CTLR.
    pub groups: [bool; 2],
    /// The implementation's choice for the interrupt that any vCPU may take.
    pub any_is_with: Option<usize>,
}

impl Model {
    pub fn new(cpus: usize) -> Self {
        let active = [Vec::new(), Vec::new()];
        let cpu = Cpu { awake: true, enabled: [true; 2], pmr: 0xf8, bpr: [2, 3], common: false, split: false, active };
        Self { irqs: Vec::new(), cpus: vec![cpu; cpus], groups: [true; 2], any_is_with: None }
    }

    /// An interrupt as a vCPU numbers it.
    pub fn irq(&mut self, cpu: usize, intid: u32) -> Option<&mut Irq> {
        self.irqs.iter_mut().find(|irq| irq.intid == intid && irq.owner.is_none_or(|owner| owner == cpu))
    }

    /// The highest priority pending interrupt of a vCPU: its index.
    fn best(&self, cpu: usize) -> Option<usize> {
        let is_here = |irq: &Irq| if irq.any { self.any_is_with == Some(cpu) } else { irq.target == Some(cpu) };
        let is_open = |irq: &Irq| {
            let group = usize::from(irq.group1);
            self.groups[group] && self.cpus[cpu].enabled[group] && self.cpus[cpu].awake
        };
        let candidates =
            self.irqs.iter().enumerate().filter(|(_, irq)| irq.is_deliverable() && is_here(irq) && is_open(irq));
        candidates.min_by_key(|(_, irq)| (irq.priority, irq.intid)).map(|(index, _)| index)
    }

    pub fn highest_pending(&self, cpu: usize, group: Group) -> u32 {
        match self.best(cpu).map(|index| &self.irqs[index]) {
            Some(irq) if irq.group1 == (group == Group::One) => irq.intid,
            _ => NONE,
        }
    }

    /// The one that is signalled.
    fn signalled(&self, cpu: usize) -> Option<usize> {
        let index = self.best(cpu)?;
        let (irq, cpu) = (&self.irqs[index], &self.cpus[cpu]);
        let preempts = cpu.group_priority(usize::from(irq.group1), irq.priority) < cpu.running();
        (irq.priority < cpu.pmr && preempts).then_some(index)
    }

    pub fn lines(&self, cpu: usize) -> (bool, bool) {
        match self.signalled(cpu) {
            Some(index) => (!self.irqs[index].group1, self.irqs[index].group1),
            None => (false, false),
        }
    }

    pub fn acknowledge(&mut self, cpu: usize, group: Group) -> u32 {
        let Some(index) = self.signalled(cpu) else { return NONE };
        let irq = &mut self.irqs[index];
        if irq.group1 != (group == Group::One) {
            return NONE;
        }
        irq.latch = false;
        irq.active = irq.intid < 8192;
        let (intid, priority) = (irq.intid, irq.priority);
        let priority = self.cpus[cpu].group_priority(group as usize, priority);
        self.cpus[cpu].active[group as usize].push(priority);
        intid
    }

    pub fn end(&mut self, cpu: usize, group: Group, intid: u32) -> Option<(u32, Option<u16>)> {
        let exists = intid < 1020 || (8192..65536).contains(&intid);
        if !exists || !self.cpus[cpu].drop_priority(group as usize) || self.cpus[cpu].split {
            return None;
        }
        self.set_inactive(cpu, intid)
    }

    pub fn deactivate(&mut self, cpu: usize, intid: u32) -> Option<(u32, Option<u16>)> {
        if self.cpus[cpu].split { self.set_inactive(cpu, intid) } else { None }
    }

    fn set_inactive(&mut self, cpu: usize, intid: u32) -> Option<(u32, Option<u16>)> {
        let irq = self.irq(cpu, intid).filter(|irq| irq.active)?;
        irq.active = false;
        let is_level_spi = !irq.edge && intid >= 32;
        Some((intid, is_level_spi.then(|| intid as u16 - 32)))
    }

    pub fn write(&mut self, cpu: usize, register: IccRegister, value: u64) {
        let it = &mut self.cpus[cpu];
        match register {
            IccRegister::Pmr => it.pmr = value as u8 & 0xf8,
            IccRegister::Bpr0 => it.bpr[0] = (value as u8).max(2),
            IccRegister::Bpr1 if it.common => {}
            IccRegister::Bpr1 => it.bpr[1] = (value as u8).max(3),
            IccRegister::Ctlr => (it.common, it.split) = (value & 1 != 0, value & 2 != 0),
            IccRegister::Igrpen0 => it.enabled[0] = value == 1,
            IccRegister::Igrpen1 => it.enabled[1] = value == 1,
            IccRegister::Sgi0r => self.send(cpu, value, false),
            IccRegister::Sgi1r => self.send(cpu, value, true),
            _ => unreachable!("{register:?} is not written here"),
        }
    }

    fn send(&mut self, sender: usize, value: u64, group1: bool) {
        let (intid, all) = ((value >> 24 & 15) as u32, value >> 40 & 1 == 1);
        for cpu in 0..self.cpus.len() {
            let named = if all { cpu != sender } else { value >> cpu & 1 == 1 };
            if let Some(irq) = self.irq(cpu, intid).filter(|irq| named && irq.group1 == group1) {
                irq.latch = true;
            }
        }
    }
}
