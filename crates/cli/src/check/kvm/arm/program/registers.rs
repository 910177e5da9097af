//! Accesses of user space to registers.

use doorbell::kvm_abi::arm::SystemRegister;
use doorbell::kvm_abi::arm::types::group;

use super::super::call::Call;
use super::super::layout::{COLLECTIONS, CONFIG, DEVICES, GIC, INTIDS, ITS, PENDING, PENDING_STRIDE, QUEUE, RAM};
use super::super::registers::{
    GICD_CLRSPI_NSR, GICD_CTLR, GICD_IIDR, GICD_IROUTER, GICD_SETSPI_NSR, GICD_TYPER, GICD_TYPER2, GICR_CTLR,
    GICR_IIDR, GICR_INVALLR, GICR_INVLPIR, GICR_PENDBASER, GICR_PROPBASER, GICR_SYNCR, GICR_TYPER, GICR_WAKER,
    GITS_BASER, GITS_CBASER, GITS_CREADR, GITS_CTLR, GITS_CWRITER, GITS_IIDR, GITS_TYPER, ICACTIVER, ICENABLER, ICFGR,
    ICPENDR, IGROUPR, IGRPMODR, INDIRECT, IPRIORITYR, ISACTIVER, ISENABLER, ISPENDR, ITARGETSR, PAGES_64K, PIDR2,
    SGI_FRAME, VALID,
};
use super::super::setup::of_vcpu;
use super::Source;

/// Registers of a bit for each INTID.
const BITS: [u64; 8] = [IGROUPR, ISENABLER, ICENABLER, ISPENDR, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER];

impl Source {
    /// A register of the distributor, or of a redistributor's second frame; and the INTID it is about.
    fn of_intid(&mut self) -> (u64, u32) {
        let private = self.random.one_in(3);
        let intid = if private && self.random.one_in(2) { self.random.below(16) as u32 } else { self.wired(private) };
        let intid =
            if self.live.is_none() && self.random.one_in(20) { self.random.pick(&[96, 127, 1019]) } else { intid };
        let offset = match self.random.below(16) {
            0..10 => self.random.pick(&BITS) + u64::from(intid / 32 * 4),
            10..13 => IPRIORITYR + u64::from(intid & !3),
            13 => ICFGR + u64::from(intid / 16 * 4),
            14 => self.random.pick(&[IGRPMODR + u64::from(intid / 32 * 4), ITARGETSR + u64::from(intid & !3)]),
            _ if intid >= 32 => GICD_IROUTER + 8 * u64::from(intid) + 4 * self.random.below(2),
            _ => ISPENDR,
        };
        (offset, intid)
    }

    /// What may be written there, where a guest runs.
    fn tamed(&mut self, offset: u64, intid: u32) -> u64 {
        let Some(live) = self.live.clone() else { return self.word() & u64::from(u32::MAX) };
        let word = u64::from(live.word(intid & !31));
        match offset {
            IPRIORITYR..ITARGETSR => live.priorities(intid & !3).into(),
            IGROUPR..ISENABLER => live.group_1().into(),
            ISENABLER..ICENABLER | ISPENDR..ICPENDR | ISACTIVER..ICACTIVER => {
                word & (self.random.next() | 1 << (intid & 31))
            }
            GICD_IROUTER.. => self.random.below(4),
            _ => self.word() & u64::from(u32::MAX),
        }
    }

    pub(super) fn set_register(&mut self) -> Call {
        match self.random.below(10) {
            0..6 => {
                let (offset, intid) = self.of_intid();
                let value = self.tamed(offset, intid);
                self.register_of(intid, offset, value)
            }
            6 => self.set_control(),
            7 => self.set_level(),
            8 => self.set_of_redistributor(),
            _ => self.set_of_its(),
        }
    }

    fn register_of(&mut self, intid: u32, offset: u64, value: u64) -> Call {
        if intid < 32 && !self.random.one_in(10) {
            let attr = of_vcpu(self.any_vcpu(), SGI_FRAME + offset);
            return Call::SetAttr { slot: GIC, group: group::REDIST_REGS, attr, value };
        }
        Call::SetAttr { slot: GIC, group: group::DIST_REGS, attr: offset, value }
    }

    fn set_control(&mut self) -> Call {
        let (attr, value) = match self.random.below(6) {
            0..3 => (GICD_CTLR, self.random.pick(&[0, 1, 2, 3, 0x13, 0x53, u64::from(u32::MAX)])),
            3 => (self.random.pick(&[GICD_SETSPI_NSR, GICD_CLRSPI_NSR]), self.wired(false).into()),
            4 => (GICD_IIDR, self.random.pick(&[0x4b00_343b, 0x4b00_243b, 0x4b00_143b, 0x4b00_443b, 0])),
            _ => (self.random.pick(&[GICD_TYPER, GICD_TYPER2, PIDR2, 0x6000, 0x8000, 0x5000, 2]), self.word()),
        };
        let value = if attr == GICD_CTLR { self.group_enables(value) } else { value };
        // An older revision changes what group registers do from there on.
        let value = if attr == GICD_IIDR && value == 0x4b00_143b { 0 } else { value };
        Call::SetAttr { slot: GIC, group: group::DIST_REGS, attr, value: value & u64::from(u32::MAX) }
    }

    fn set_level(&mut self) -> Call {
        let first = self.random.pick(&[0, 32, 32, 64, 96, 33]);
        let attr = of_vcpu(self.any_vcpu(), first);
        let attr = if self.random.one_in(10) { attr | 1 << 10 } else { attr };
        let value = match &self.live {
            Some(live) => u64::from(live.word(first as u32 & !31)) & self.random.next(),
            None => self.word() & u64::from(u32::MAX),
        };
        Call::SetAttr { slot: GIC, group: group::LEVEL_INFO, attr, value }
    }

    fn set_of_redistributor(&mut self) -> Call {
        let vcpu = self.any_vcpu();
        let (offset, value) = match self.random.below(10) {
            // LPIs are not switched off: see the help.
            0..3 => (GICR_CTLR, self.random.pick(&[1, 9])),
            3 => (GICR_WAKER, self.random.pick(&[0, 2, 6])),
            4 => {
                let half = 4 * self.random.below(2);
                let value = if half == 0 { self.random.pick(&[CONFIG | 15, CONFIG | 13, CONFIG | 0x78f]) } else { 0 };
                (GICR_PROPBASER + half, value)
            }
            5 => {
                let half = 4 * self.random.below(2);
                let table = PENDING + PENDING_STRIDE * u64::from(vcpu % 4);
                let value = if half == 0 {
                    table | self.random.pick(&[0, 0x780, 0x100])
                } else {
                    self.random.pick(&[0, 1 << 30])
                };
                (GICR_PENDBASER + half, value)
            }
            6 => (GICR_INVLPIR, self.lpi().into()),
            7 => (self.random.pick(&[GICR_INVALLR, GICR_SYNCR]), 0),
            _ => (self.random.pick(&[GICR_TYPER, GICR_IIDR, 0x10, 0x40, PIDR2, 0x2_0000, 0x1_0000]), self.word()),
        };
        let value = value & u64::from(u32::MAX);
        Call::SetAttr { slot: GIC, group: group::REDIST_REGS, attr: of_vcpu(vcpu, offset), value }
    }

    fn set_of_its(&mut self) -> Call {
        let its = self.its();
        let (attr, value) = match self.random.below(12) {
            0..4 => (GITS_CTLR, self.random.pick(&[0, 1, 1, 1, u64::MAX])),
            4 => {
                self.slots[its] = 0;
                let more = self.random.pick(&[0, 1, 1, 1, 1 << 10, 7 << 59]);
                (GITS_CBASER, (VALID | QUEUE[its] | 1) ^ (more & !1))
            }
            5 => (GITS_CREADR, self.random.pick(&[0, 0x20, 0x40, 0x2000, u64::MAX])),
            6 => (GITS_CWRITER, self.random.pick(&[32 * self.slots[its], 0x2_0000, (32 * self.slots[its]) | 1])),
            7 => {
                let flat = VALID | DEVICES[its] | PAGES_64K;
                (
                    GITS_BASER,
                    self.random.pick(&[
                        flat,
                        flat | INDIRECT,
                        flat & !VALID,
                        flat & !PAGES_64K,
                        flat | 0x1f_0000_0000_00ff,
                    ]),
                )
            }
            8 => {
                let flat = VALID | COLLECTIONS[its] | PAGES_64K;
                let unmap = if self.unmaps { VALID } else { 0 };
                (
                    GITS_BASER + 8,
                    self.random.pick(&[flat, flat, flat | INDIRECT, flat & !unmap, VALID | (RAM + (3 << 20))]),
                )
            }
            9 => (GITS_IIDR, self.random.pick(&[0, 0x43b, 0x143b, 0x4b00_043b])),
            _ => (self.random.pick(&[GITS_TYPER, GITS_BASER + 16, 0x84, 0x98, 0x18, PIDR2, 0x1_0040]), self.word()),
        };
        Call::SetAttr { slot: ITS[its], group: group::ITS_REGS, attr, value }
    }

    pub(super) fn get_register(&mut self) -> Call {
        match self.random.below(10) {
            0..4 => {
                let (offset, intid) = self.of_intid();
                let Call::SetAttr { slot, group, attr, .. } = self.register_of(intid, offset, 0) else {
                    unreachable!("it is one")
                };
                Call::get(slot, group, attr)
            }
            4 => {
                let offsets =
                    [GICD_CTLR, GICD_TYPER, GICD_TYPER2, GICD_IIDR, PIDR2, 0x10, 0x40, 0x5000, 0x6000, 0x8000, 2];
                Call::get(GIC, group::DIST_REGS, self.random.pick(&offsets))
            }
            5..7 => {
                let offsets = [
                    GICR_CTLR,
                    GICR_IIDR,
                    GICR_TYPER,
                    GICR_TYPER + 4,
                    GICR_WAKER,
                    GICR_PROPBASER,
                    GICR_PROPBASER + 4,
                    GICR_PENDBASER,
                    GICR_PENDBASER + 4,
                    GICR_SYNCR,
                    PIDR2,
                    0x1_0000,
                ];
                Call::get(GIC, group::REDIST_REGS, of_vcpu(self.any_vcpu(), self.random.pick(&offsets)))
            }
            7 => {
                let first = u64::from(self.random.pick(&[0, 32, 64, INTIDS, 33]));
                Call::get(GIC, group::LEVEL_INFO, of_vcpu(self.any_vcpu(), first))
            }
            _ => {
                let slot = ITS[self.its()];
                let offsets = [
                    GITS_CTLR,
                    GITS_IIDR,
                    GITS_TYPER,
                    GITS_CBASER,
                    GITS_CWRITER,
                    GITS_CREADR,
                    GITS_BASER,
                    GITS_BASER + 8,
                    GITS_BASER + 16,
                    PIDR2,
                    0xffe0,
                    0x84,
                    0x98,
                ];
                Call::get(slot, group::ITS_REGS, self.random.pick(&offsets))
            }
        }
    }

    /// A system register of the CPU interface, by user space.
    pub(super) fn sysreg(&mut self) -> Call {
        use SystemRegister as R;
        let register = self.random.pick(&[
            R::ICC_PMR_EL1,
            R::ICC_BPR0_EL1,
            R::ICC_BPR1_EL1,
            R::ICC_AP0R0_EL1,
            R::ICC_AP1R0_EL1,
            R::ICC_AP1R1_EL1,
            R::ICC_CTLR_EL1,
            R::ICC_SRE_EL1,
            R::ICC_IGRPEN0_EL1,
            R::ICC_IGRPEN1_EL1,
            R::ICC_IAR1_EL1,
        ]);
        let attr = of_vcpu(self.any_vcpu(), register.into_bits().into());
        let group = group::CPU_SYSREGS;
        if self.random.one_in(2) {
            return Call::get(GIC, group, attr);
        }
        let live = self.live.clone();
        let value = match register {
            // Only what a CPU keeps as it is (see the prelude).
            R::ICC_PMR_EL1 => self.random.pick(&[0xf8, 0xf0, 0x80, 0x40, 0]),
            R::ICC_BPR0_EL1 | R::ICC_BPR1_EL1 if live.is_some() => {
                live.map_or(0, |live| live.binary_points[usize::from(register == R::ICC_BPR1_EL1)])
            }
            R::ICC_BPR0_EL1 | R::ICC_BPR1_EL1 => 3 + self.random.below(5),
            R::ICC_IGRPEN0_EL1 | R::ICC_IGRPEN1_EL1 => self.random.below(2),
            R::ICC_SRE_EL1 => self.random.pick(&[1, 7, 0]),
            // What is active without an interrupt of that priority would never end.
            R::ICC_AP0R0_EL1 | R::ICC_AP1R0_EL1 | R::ICC_AP1R1_EL1 if live.is_some() => 0,
            R::ICC_CTLR_EL1 if live.is_some() => {
                0x8c00 | live.map_or(0, |live| live.common) | self.random.below(2) << 1
            }
            R::ICC_CTLR_EL1 => self.random.pick(&[0x8c00, 0x8c01, 0x8c02, 0x8c03, 0xc00, 0x8e00, 0x9400, 0x4_8c00]),
            _ => self.word(),
        };
        Call::SetAttr { slot: GIC, group, attr, value }
    }
}
