//! The interrupts of a program with a guest, and what its code does.
//!
//! A CPU has four list registers, through which the kernel gives it interrupts. Which of two with the same priority it gives
//! first is the order in which they came, which is not ours to follow; so no two interrupts of such a program have the same
//! priority. See [`super::compare`] for more of them than list registers.
//!
//! Group, priority and binary points stay as they are: a CPU may leave an interrupt in service if they are others at its end
//! than they were when it was acknowledged.

use doorbell::kvm_abi::arm::SystemRegister;

use super::super::super::random::Random;
use super::call::{Deed, Group};
use super::layout::{GICD, GICR, GICR_STRIDE, GITS, LPIS};
use super::registers::{
    GICD_CLRSPI_NSR, GICD_CTLR, GICD_IIDR, GICD_IROUTER, GICD_SETSPI_NSR, GICD_TYPER, GICR_CTLR, GICR_TYPER,
    GICR_WAKER, GITS_CTLR, GITS_IIDR, GITS_TYPER, ICACTIVER, ICENABLER, ICFGR, ICPENDR, IGROUPR, IPRIORITYR, ISACTIVER,
    ISENABLER, ISPENDR, PIDR2, SGI_FRAME,
};

/// Interrupts that may be enabled.
#[derive(Clone, Debug)]
pub struct Live {
    /// SGIs, PPIs, SPIs, LPIs: so many of each.
    intids: [u32; 12],
    /// The priority of each.
    priorities: [u8; 12],
    /// Which of 32 INTIDs are in group 0, wherever the 32 are.
    group_0: u32,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1.
    pub binary_points: [u64; 2],
    /// ICC_CTLR_EL1.CBPR.
    pub common: u64,
}

const SGIS: std::ops::Range<usize> = 0..3;
const PPIS: std::ops::Range<usize> = 3..5;
const SPIS: std::ops::Range<usize> = 5..9;
const LIVE_LPIS: std::ops::Range<usize> = 9..12;

impl Live {
    /// Some of each kind, each with a priority for itself.
    pub fn new(random: &mut Random) -> Self {
        let mut intids = [0; 12];
        let mut fill = |range: std::ops::Range<usize>, first: u32, count: u64| {
            let start = random.below(count) as u32;
            for (at, place) in intids[range].iter_mut().enumerate() {
                *place = first + (start + 5 * at as u32) % count as u32;
            }
        };
        fill(SGIS, 0, 16);
        // Without the timers', which belong to the kernel once a vCPU has run.
        fill(PPIS, 16, 11);
        fill(SPIS, 32, 64);
        fill(LIVE_LPIS, LPIS, 64);
        let mut priorities = std::array::from_fn(|at| 16 * at as u8 + 8 * random.below(2) as u8 + 16);
        for at in (1..priorities.len()).rev() {
            priorities.swap(at, random.below(at as u64 + 1) as usize);
        }
        let group_0 = random.next() as u32 & random.next() as u32;
        let binary_points = [2 + random.below(3), 3 + random.below(3)];
        Self { intids, priorities, group_0, binary_points, common: u64::from(random.one_in(4)) }
    }

    /// SGIs.
    pub fn sgis(&self) -> &[u32] {
        &self.intids[SGIS]
    }

    /// PPIs.
    pub fn ppis(&self) -> &[u32] {
        &self.intids[PPIS]
    }

    /// SPIs.
    pub fn spis(&self) -> &[u32] {
        &self.intids[SPIS]
    }

    /// LPIs.
    pub fn lpis(&self) -> &[u32] {
        &self.intids[LIVE_LPIS]
    }

    /// Those of the 32 INTIDs from `first` on that may be enabled, a bit each.
    pub fn word(&self, first: u32) -> u32 {
        self.intids.iter().filter(|intid| **intid & !31 == first).fold(0, |word, intid| word | 1 << (intid & 31))
    }

    /// The priority of an INTID; the lowest of all for those that are never enabled.
    pub fn priority(&self, intid: u32) -> u8 {
        let at = self.intids.iter().position(|live| *live == intid);
        at.map_or(0xf8, |at| self.priorities[at])
    }

    /// The priorities of four INTIDs, as a register has them.
    pub fn priorities(&self, first: u32) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|at| self.priority(first + at as u32)))
    }

    /// Which of 32 INTIDs are in group 1.
    pub fn group_1(&self) -> u32 {
        !self.group_0
    }

    /// Something that code in the guest does.
    pub fn deed(&self, random: &mut Random, vcpus: u32) -> Deed {
        use SystemRegister as R;
        match random.below(100) {
            0..30 => Deed::Acknowledge(if random.one_in(4) { Group::Zero } else { Group::One }),
            30..48 => Deed::End,
            48..52 => Deed::Write(R::ICC_DIR_EL1, self.ended(random)),
            52..62 => Deed::Write(
                random.pick(&[R::ICC_SGI1R_EL1, R::ICC_SGI1R_EL1, R::ICC_SGI0R_EL1]),
                self.request(random, vcpus),
            ),
            62..70 => Deed::Read(random.pick(&[
                R::ICC_HPPIR0_EL1,
                R::ICC_HPPIR1_EL1,
                R::ICC_RPR_EL1,
                R::ICC_CTLR_EL1,
                R::ICC_PMR_EL1,
                R::ICC_BPR0_EL1,
                R::ICC_BPR1_EL1,
                R::ICC_AP0R0_EL1,
                R::ICC_AP1R0_EL1,
                R::ICC_IGRPEN0_EL1,
                R::ICC_IGRPEN1_EL1,
                R::ICC_SRE_EL1,
            ])),
            70..76 => match random.below(8) {
                0..3 => Deed::Write(R::ICC_PMR_EL1, random.pick(&[0xff, 0xff, 0xf0, 0x80, 0x40, 0])),
                3..6 => {
                    Deed::Write(random.pick(&[R::ICC_IGRPEN0_EL1, R::ICC_IGRPEN1_EL1]), u64::from(!random.one_in(3)))
                }
                _ => Deed::Write(R::ICC_CTLR_EL1, self.common | random.below(2) << 1),
            },
            76..90 => self.store(random, vcpus),
            _ => self.load(random, vcpus),
        }
    }

    /// An INTID as the end of one: one that may be in service, mostly.
    fn ended(&self, random: &mut Random) -> u64 {
        if random.one_in(20) { random.pick(&[1023, 1022, 96, 5000]) } else { random.pick(&self.intids).into() }
    }

    /// A request for an SGI.
    fn request(&self, random: &mut Random, vcpus: u32) -> u64 {
        let sgi = u64::from(random.pick(self.sgis()));
        let others = u64::from(random.one_in(6)) << 40;
        let targets = random.below(1 << vcpus);
        // A cluster, or a range, in which there is nobody.
        let elsewhere = if random.one_in(20) { random.pick(&[1 << 16, 1 << 32, 1 << 44]) } else { 0 };
        sgi << 24 | others | targets | elsewhere
    }

    fn vcpu(&self, random: &mut Random, vcpus: u32) -> u64 {
        GICR + GICR_STRIDE * random.below(vcpus.into())
    }

    fn store(&self, random: &mut Random, vcpus: u32) -> Deed {
        let intid = random.pick(&self.intids[SGIS.start..SPIS.end]);
        let frame = if intid < 32 { self.vcpu(random, vcpus) + SGI_FRAME } else { GICD };
        let bit = 1u64 << (intid & 31);
        let word = u64::from(intid / 32 * 4);
        let (address, bytes, value) = match random.below(24) {
            0..14 => {
                let register =
                    random.pick(&[ISENABLER, ISENABLER, ICENABLER, ISPENDR, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER]);
                (frame + register + word, 4, bit)
            }
            14..17 => (frame + IPRIORITYR + u64::from(intid), 1, self.priority(intid).into()),
            17 if intid >= 32 => (GICD + GICD_SETSPI_NSR, 4, intid.into()),
            18 if intid >= 32 => (GICD + GICD_CLRSPI_NSR, 4, intid.into()),
            17..21 if intid >= 32 => (GICD + GICD_IROUTER + 8 * u64::from(intid), 8, random.below(4)),
            21 => (GICD + GICD_CTLR, 4, random.pick(&[0, 1, 2, 3, 3, 3])),
            22 => (self.vcpu(random, vcpus) + GICR_WAKER, 4, random.pick(&[0, 2])),
            _ => {
                let shift = 2 * (intid & 15);
                let at = frame + ICFGR + u64::from(intid / 16 * 4);
                (at, 4, random.pick(&[0, 0xaaaa_aaaa, 2 << shift]))
            }
        };
        Deed::Store { address, bytes, value }
    }

    fn load(&self, random: &mut Random, vcpus: u32) -> Deed {
        let intid = random.pick(&self.intids[SGIS.start..SPIS.end]);
        let redistributor = self.vcpu(random, vcpus);
        let frame = if intid < 32 { redistributor + SGI_FRAME } else { GICD };
        let word = u64::from(intid / 32 * 4);
        let address = match random.below(10) {
            0..5 => {
                let registers = [ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER, IGROUPR];
                frame + random.pick(&registers) + word
            }
            5 => return Deed::Load { address: frame + IPRIORITYR + u64::from(intid), bytes: 1 },
            6 if intid >= 32 => {
                let address = GICD + GICD_IROUTER + 8 * u64::from(intid);
                return Deed::Load { address, bytes: random.pick(&[4, 8]) };
            }
            6 | 7 => GICD + random.pick(&[GICD_CTLR, GICD_TYPER, GICD_IIDR, PIDR2, 0xc, 0x10, 0x6000, ISENABLER]),
            8 => {
                let offset = random.pick(&[GICR_CTLR, GICR_TYPER, GICR_TYPER + 4, GICR_WAKER, PIDR2, 0xc0]);
                redistributor + offset
            }
            _ => {
                random.pick(&GITS)
                    + random.pick(&[GITS_CTLR, GITS_IIDR, GITS_TYPER, PIDR2, 0x80, 0x88, 0x90, 0x100, 0x108])
            }
        };
        Deed::Load { address, bytes: 4 }
    }
}
