//! What is looked at after each step, and at the end.

use super::icc::Register;
use super::side::{CPUS, Op};
use super::step::{FIRST_LPI, PENDING};
use crate::qtest::virt::{GICD, GICR, GICR_STRIDE, GITS, INTIDS};

/// Registers of the distributor that have a bit for each interrupt, without those that clear.
const BITS: [u64; 5] = [0x80, 0x100, 0x200, 0x300, 0xd00];
/// Offset of the frame of private interrupts in a redistributor's.
const PRIVATE: u64 = 0x1_0000;

fn frames() -> impl Iterator<Item = u64> {
    (0..u64::from(CPUS)).map(|cpu| GICR + cpu * GICR_STRIDE)
}

/// After each step: what each CPU is offered, what is pending and active, and how far the ITS is.
pub fn after_each() -> Vec<Op> {
    let mut ops = Vec::new();
    for cpu in 0..CPUS {
        ops.extend([Register::Isr, Register::Hppir0, Register::Hppir1, Register::Rpr].map(|it| Op::Read(cpu, it)));
    }
    // The SPIs that programs use are among the first 32 and the last.
    ops.extend([0x204, 0x304, 0x21c, 0x31c].map(|offset| Op::load(4, GICD + offset)));
    for frame in frames() {
        ops.extend([0x200, 0x300].map(|offset| Op::load(4, frame + PRIVATE + offset)));
    }
    ops.extend([Op::load(4, GITS), Op::load(8, GITS + 0x90)]);
    ops.extend(PENDING.map(|table| Op::load(8, table + u64::from(FIRST_LPI) / 8)));
    ops
}

/// What [`after_each`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(Vec<u64>);

/// Where in it what begins.
const SPIS: usize = 4 * CPUS as usize;
const PRIVATES: usize = SPIS + 4;
const ITS: usize = PRIVATES + 2 * CPUS as usize;
const LPIS: usize = ITS + 2;

impl Seen {
    /// From its values, in order.
    pub fn of(values: &[u64]) -> Self {
        Self(values.to_vec())
    }

    fn at(&self, place: usize) -> u64 {
        self.0.get(place).copied().unwrap_or_default()
    }

    /// The most urgent interrupt of a CPU and a group, or 1023.
    pub fn offered_of(&self, cpu: u32, group: usize) -> u64 {
        self.0.get(4 * cpu as usize + 1 + group).copied().unwrap_or(1023)
    }

    /// The most urgent interrupt of a CPU, or 1023.
    pub fn offered(&self, cpu: u32) -> u64 {
        match self.offered_of(cpu, 0) {
            1023 => self.offered_of(cpu, 1),
            intid => intid,
        }
    }

    /// A CPU's running priority.
    pub fn running(&self, cpu: u32) -> u64 {
        self.0.get(4 * cpu as usize + 3).copied().unwrap_or(0xff)
    }

    /// Words of pending bits, each before the active bits of the same interrupts.
    fn words(&self) -> impl Iterator<Item = [u64; 2]> {
        (SPIS..ITS).step_by(2).map(|at| [self.at(at), self.at(at + 1)])
    }

    /// How many SPIs, PPIs and SGIs are pending.
    pub fn pending(&self) -> u32 {
        self.words().map(|[pending, _]| pending.count_ones()).sum()
    }

    /// How many are active.
    pub fn active(&self) -> u32 {
        self.words().map(|[_, active]| active.count_ones()).sum()
    }

    /// How many are both.
    pub fn pending_and_active(&self) -> u32 {
        self.words().map(|[pending, active]| (pending & active).count_ones()).sum()
    }

    /// Whether the ITS is enabled.
    pub fn its_on(&self) -> bool {
        self.at(ITS) & 1 == 1
    }

    /// How far it has read.
    pub fn creadr(&self) -> u64 {
        self.at(ITS + 1)
    }

    /// Pending bits of the first LPIs of a CPU.
    pub fn lpis_of(&self, cpu: usize) -> u64 {
        self.at(LPIS + cpu)
    }

    /// How many of them are pending.
    pub fn lpis(&self) -> u32 {
        (0..CPUS as usize).map(|cpu| self.lpis_of(cpu).count_ones()).sum()
    }
}

/// At the end: every register.
pub fn at_the_end() -> Vec<Op> {
    let mut ops: Vec<_> = [0, 4, 8, 0xffe8].into_iter().map(|offset| Op::load(4, GICD + offset)).collect();
    let intids = u64::from(INTIDS);
    for register in BITS {
        ops.extend((0..intids / 8).step_by(4).map(|at| Op::load(4, GICD + register + at)));
    }
    ops.extend((0..intids).step_by(4).map(|at| Op::load(4, GICD + 0x400 + at)));
    ops.extend((0..intids / 4).step_by(4).map(|at| Op::load(4, GICD + 0xc00 + at)));
    ops.extend((32..intids).map(|spi| Op::load(8, GICD + 0x6000 + 8 * spi)));
    for frame in frames() {
        ops.extend([0, 4, 0x14, 0xffe8].map(|offset| Op::load(4, frame + offset)));
        ops.extend([8, 0x70, 0x78].map(|offset| Op::load(8, frame + offset)));
        ops.extend(BITS.map(|register| Op::load(4, frame + PRIVATE + register)));
        ops.extend((0..32).step_by(4).map(|at| Op::load(4, frame + PRIVATE + 0x400 + at)));
        ops.extend([0xc00, 0xc04].map(|offset| Op::load(4, frame + PRIVATE + offset)));
    }
    ops.extend([0, 4, 0xffe8].map(|offset| Op::load(4, GITS + offset)));
    ops.extend([8, 0x80, 0x88, 0x90].map(|offset| Op::load(8, GITS + offset)));
    ops.extend((0..8).map(|table| Op::load(8, GITS + 0x100 + 8 * table)));
    for cpu in 0..CPUS {
        let registers = Register::all().filter(|register| register.is_readable() && !register.acknowledges());
        ops.extend(registers.map(|register| Op::Read(cpu, register)));
    }
    // Pending bits of the first 256 LPIs.
    for table in PENDING {
        ops.extend((0..32).step_by(8).map(|at| Op::load(8, table + u64::from(FIRST_LPI) / 8 + at)));
    }
    ops
}
