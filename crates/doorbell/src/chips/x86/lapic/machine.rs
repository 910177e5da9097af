//! Random programs on local APICs and on a model that knows vectors as sets and asks every APIC about every destination.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{Delivery, MsiMessage, MsiTarget, VcpuId, clock::VirtualClock};

const CPUS: usize = 4;

/// One APIC, in the manual's words.
#[derive(Clone, Debug, Default)]
struct Model {
    x2apic: bool,
    id: u32,
    enabled: bool,
    ldr: u8,
    cluster: bool,
    tpr: u8,
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    level: BTreeSet<u8>,
    nmi: bool,
}

impl Model {
    fn answers_to(&self, destination: u32, logical: bool, from_x2apic: bool) -> bool {
        if destination == if from_x2apic { u32::MAX } else { 0xff } {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        if self.x2apic {
            return destination >> 16 == self.id / 16 && destination & 0xffff & 1 << (self.id % 16) != 0;
        }
        let (ldr, destination) = (u32::from(self.ldr), destination & 0xff);
        if self.cluster {
            ldr / 16 == destination / 16 && (ldr % 16) & (destination % 16) != 0
        } else {
            ldr & destination != 0
        }
    }

    /// L6.
    fn ppr(&self) -> u8 {
        let in_service = self.isr.last().copied().unwrap_or(0) / 16;
        if self.tpr / 16 >= in_service { self.tpr } else { in_service * 16 }
    }

    fn deliverable(&self) -> Option<u8> {
        self.irr.last().copied().filter(|vector| vector / 16 > self.ppr() / 16)
    }

    fn take(&mut self, vector: u8, level: bool) {
        self.irr.insert(vector);
        if level {
            self.level.insert(vector);
        } else {
            self.level.remove(&vector);
        }
    }
}

#[derive(Clone, Debug)]
enum To {
    Named { destination: u32, logical: bool },
    This,
    All,
    AllButThis,
}

#[derive(Clone, Debug)]
enum Step {
    /// From a device, or from a CPU through its ICR.
    Send {
        from: Option<usize>,
        to: To,
        vector: u8,
        level: bool,
        one: bool,
        nmi: bool,
        resolved: bool,
    },
    Acknowledge {
        cpu: usize,
    },
    End {
        cpu: usize,
    },
    Tpr {
        cpu: usize,
        value: u8,
    },
    Enable {
        cpu: usize,
        on: bool,
    },
    Logical {
        cpu: usize,
        ldr: u8,
        cluster: bool,
    },
    Id {
        cpu: usize,
        id: u8,
    },
    SetPage {
        cpu: usize,
    },
    Restore {
        cpu: usize,
    },
    Access {
        cpu: usize,
        at: u32,
        data: Vec<u8>,
    },
}

fn to() -> impl Strategy<Value = To> {
    // Ids, flat and clustered logical ids, x2APIC's cluster 0, and anything.
    let destination = prop_oneof![
        5 => 0u32..6,
        3 => 0u32..16,
        2 => (0u32..3, 0u32..16).prop_map(|(cluster, mask)| cluster << 4 | mask),
        1 => Just(0xff),
        1 => 0u32..0x100,
    ];
    prop_oneof![
        10 => (destination, any::<bool>()).prop_map(|(destination, logical)| To::Named { destination, logical }),
        1 => Just(To::This),
        1 => Just(To::All),
        1 => Just(To::AllButThis),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = || 0..CPUS;
    let send = (prop::option::weighted(0.3, cpu()), to(), 0u8..=255, any::<bool>(), 0..8u8, any::<bool>()).prop_map(
        |(from, to, vector, level, kind, resolved)| Step::Send {
            from,
            to,
            vector,
            level,
            one: kind < 2,
            nmi: kind == 2,
            resolved,
        },
    );
    prop_oneof![
        8 => send,
        5 => cpu().prop_map(|cpu| Step::Acknowledge { cpu }),
        4 => cpu().prop_map(|cpu| Step::End { cpu }),
        1 => (cpu(), 0u8..0xa0).prop_map(|(cpu, value)| Step::Tpr { cpu, value }),
        1 => (cpu(), prop::bool::weighted(0.8)).prop_map(|(cpu, on)| Step::Enable { cpu, on }),
        2 => (cpu(), prop_oneof![0u8..16, 0u8..0x30], any::<bool>())
            .prop_map(|(cpu, ldr, cluster)| Step::Logical { cpu, ldr, cluster }),
        1 => (cpu(), 0u8..6).prop_map(|(cpu, id)| Step::Id { cpu, id }),
        1 => cpu().prop_map(|cpu| Step::SetPage { cpu }),
        1 => cpu().prop_map(|cpu| Step::Restore { cpu }),
        1 => (cpu(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(cpu, at, data)| Step::Access { cpu, at, data }),
    ]
}

struct Machine {
    set: Arc<ApicSet>,
    cpus: Vec<LocalApic>,
    models: Vec<Model>,
    x2apic: bool,
}

impl Machine {
    fn new(x2apic: bool) -> Self {
        let set = ApicSet::new(CPUS as u32, Arc::new(()), ApicOptions::default());
        let mut cpus: Vec<_> = (0..CPUS as u32).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
        for cpu in cpus.iter_mut().filter(|_| x2apic) {
            cpu.set_base(cpu.base().into_bits() | 1 << 10).unwrap();
        }
        let models = (0..CPUS as u32).map(|id| Model { x2apic, id, ..Model::default() }).collect();
        let mut machine = Self { set, cpus, models, x2apic };
        (0..CPUS).for_each(|cpu| machine.write(cpu, slot::SVR, 0x1ff));
        machine.models.iter_mut().for_each(|model| model.enabled = true);
        machine
    }

    /// A store that ends nothing, in either mode.
    fn write(&mut self, cpu: usize, register: usize, value: u32) {
        let eoi = if self.x2apic {
            self.cpus[cpu].msr_write(0x800 + register as u32, value.into()).unwrap()
        } else {
            self.cpus[cpu].write(register as u64 * 16, value)
        };
        assert_eq!(eoi, None);
    }

    fn send(&mut self, from: Option<usize>, to: &To, data: u32, one: bool, resolved: bool) -> Option<Delivery> {
        let (destination, logical, shorthand) = match *to {
            To::Named { destination, logical } => (destination, logical, 0),
            To::This => (0, false, 1),
            To::All => (0, false, 2),
            To::AllButThis => (0, false, 3),
        };
        let Some(cpu) = from else {
            let hint = u64::from(one) << 3;
            let address = 0xfee0_0000 | u64::from(destination) << 12 | u64::from(logical) << 2 | hint;
            let message = MsiMessage::new(address, data);
            return Some(match self.set.prepare(&message).filter(|_| resolved) {
                Some(target) => self.set.fire(target),
                None => self.set.send(&message).unwrap(),
            });
        };
        let mode = if one && data & 0x700 == 0 { 1 << 8 } else { 0 };
        let icr = data | mode | u32::from(logical) << 11 | 1 << 14 | shorthand << 18;
        if self.x2apic {
            self.cpus[cpu].msr_write(0x830, u64::from(destination) << 32 | u64::from(icr)).unwrap();
        } else {
            self.write(cpu, slot::ICR_HIGH, destination << 24);
            self.write(cpu, slot::ICR, icr);
        }
        None
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Send { from, to, vector, level, one, nmi, resolved } => {
                let to = if from.is_none() && !matches!(to, To::Named { .. }) {
                    To::Named { destination: 0xff, logical: false }
                } else {
                    to
                };
                let one = one && !nmi;
                let data = u32::from(vector) | if nmi { 4 << 8 } else { 0 } | u32::from(level) << 15;
                let before = self.models.clone();
                let answer = self.send(from, &to, data, one, resolved);
                let named = |cpu: usize| match to {
                    To::Named { destination, logical } => {
                        before[cpu].answers_to(destination, logical, from.is_some() && self.x2apic)
                    }
                    To::This => from == Some(cpu),
                    To::All => true,
                    To::AllButThis => from != Some(cpu),
                };
                // An NMI does not need the APIC's software enable, except that KVM's map of logical ids does.
                let sure: Vec<usize> = (0..CPUS).filter(|&cpu| named(cpu) && before[cpu].enabled).collect();
                let perhaps: Vec<usize> = (0..CPUS).filter(|&cpu| named(cpu) && nmi).collect();
                let mut taken = Vec::new();
                for (cpu, before) in before.iter().enumerate() {
                    let irr = self.vectors(cpu, slot::IRR);
                    let level_now = self.vectors(cpu, slot::TMR).contains(&vector);
                    let takes = if nmi {
                        std::mem::take(&mut self.models[cpu].nmi);
                        self.cpus[cpu].take_nmi()
                    } else if sure.contains(&cpu) && !one {
                        true
                    } else {
                        // Who of several takes it is KVM's choice: seen by what has changed, if anything did.
                        irr.contains(&vector)
                            && (!before.irr.contains(&vector) || level_now != before.level.contains(&vector))
                    };
                    if takes {
                        taken.push(cpu);
                        if !nmi {
                            self.models[cpu].take(vector, level);
                        }
                    }
                }
                if nmi {
                    prop_assert!(sure.iter().all(|cpu| taken.contains(cpu)), "{sure:?} {taken:?}");
                    prop_assert!(taken.iter().all(|cpu| sure.contains(cpu) || perhaps.contains(cpu)));
                } else if one && !matches!(to, To::Named { logical: false, .. }) {
                    prop_assert!(taken.len() <= 1 && taken.iter().all(|cpu| sure.contains(cpu)), "L5: {taken:?}");
                } else if one {
                    prop_assert!(taken.iter().all(|cpu| sure.contains(cpu)));
                }
                if let Some(answer) = answer {
                    let count = match answer {
                        Delivery::Delivered(count) => count as usize,
                        Delivery::Coalesced | Delivery::Ignored => 0,
                    };
                    if nmi || !one {
                        prop_assert_eq!(count, taken.len());
                    } else {
                        prop_assert!(taken.len() <= count && count <= sure.len(), "{count} {taken:?} {sure:?}");
                    }
                }
            }
            Step::Acknowledge { cpu } => {
                let model = &mut self.models[cpu];
                let expected = model.deliverable();
                prop_assert_eq!(self.cpus[cpu].next().interrupt, expected);
                prop_assert_eq!(self.cpus[cpu].acknowledge(), expected);
                if let Some(vector) = expected {
                    model.irr.remove(&vector);
                    model.isr.insert(vector);
                }
            }
            Step::End { cpu } => {
                let model = &mut self.models[cpu];
                let expected = model.isr.pop_last();
                let expected = expected.map(|vector| Eoi { vector, level: model.level.contains(&vector) });
                let eoi = match self.x2apic {
                    true => self.cpus[cpu].msr_write(0x80b, 0).unwrap(),
                    false => self.cpus[cpu].write(0xb0, 0),
                };
                prop_assert_eq!(eoi, expected);
            }
            Step::Tpr { cpu, value } => {
                self.write(cpu, slot::TPR, value.into());
                self.models[cpu].tpr = value;
                prop_assert_eq!(self.cpus[cpu].cr8(), u64::from(value >> 4));
            }
            Step::Enable { cpu, on } => {
                self.write(cpu, slot::SVR, if on { 0x1ff } else { 0xff });
                self.models[cpu].enabled = on;
            }
            Step::Logical { cpu, ldr, cluster } if !self.x2apic => {
                self.write(cpu, slot::LDR, u32::from(ldr) << 24);
                self.write(cpu, slot::DFR, if cluster { 0x0fff_ffff } else { 0xffff_ffff });
                (self.models[cpu].ldr, self.models[cpu].cluster) = (ldr, cluster);
            }
            Step::Id { cpu, id } if !self.x2apic => {
                self.write(cpu, slot::ID, u32::from(id) << 24);
                self.models[cpu].id = id.into();
            }
            Step::Logical { .. } | Step::Id { .. } => {}
            Step::SetPage { cpu } => {
                let page = self.cpus[cpu].page();
                self.cpus[cpu].set_page(&page).unwrap();
                prop_assert_eq!(self.cpus[cpu].page(), page);
            }
            Step::Restore { cpu } => {
                let state = self.cpus[cpu].save();
                self.cpus[cpu].reset();
                self.cpus[cpu].restore(&state).unwrap();
                prop_assert_eq!(self.cpus[cpu].save(), state);
            }
            Step::Access { cpu, at, mut data } => {
                // Any load, and stores where nothing is.
                self.cpus[cpu].mmio_read(u64::from(at), &mut data);
                self.cpus[cpu].mmio_read(u64::from(at & 0xfff), &mut data);
                let _ = self.cpus[cpu].msr_read(0x800 | at & 0xff);
                prop_assert_eq!(self.cpus[cpu].mmio_write(u64::from(at | 0x400), &data), None);
                prop_assert!(self.cpus[cpu].msr_write(0x840 | at & 0xbf, u64::from(at)).is_err());
            }
        }
        Ok(())
    }

    fn vectors(&self, cpu: usize, first: usize) -> BTreeSet<u8> {
        let page = self.cpus[cpu].page();
        let is_set = |vector: &u8| {
            page[16 * (first + usize::from(vector / 32)) + usize::from(vector / 8 % 4)] >> (vector % 8) & 1
        };
        (0..=255).filter(|vector| is_set(vector) == 1).collect()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for (cpu, model) in self.models.iter().enumerate() {
            prop_assert_eq!(self.vectors(cpu, slot::IRR), model.irr.clone(), "IRR of {}", cpu);
            prop_assert_eq!(self.vectors(cpu, slot::ISR), model.isr.clone(), "ISR of {}", cpu);
            prop_assert_eq!(self.vectors(cpu, slot::TMR), model.level.clone(), "TMR of {}", cpu);
            prop_assert_eq!(self.cpus[cpu].ppr(), model.ppr(), "PPR of {}", cpu);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_do_what_the_manual_says(x2apic: bool, steps in prop::collection::vec(step(), 1..100)) {
        let mut machine = Machine::new(x2apic);
        for step in steps {
            machine.run(step)?;
            machine.compare()?;
        }
    }

    /// Nothing a guest stores, in either mode and in any order, panics or gets lost on the way to KVM's page and back.
    #[test]
    fn any_register_program_is_survived(
        strict: bool,
        stores in prop::collection::vec((any::<bool>(), 0u32..0x140, any::<u64>(), 0..CPUS), 1..100),
    ) {
        let (clock, ids) = (Arc::new(VirtualClock::default()), Vec::from_iter(0..CPUS as u32));
        let options = ApicOptions { strict, ..ApicOptions::default() };
        let set = ApicSet::with_clock(&ids, Arc::new(()), clock.clone(), options).unwrap();
        let mut cpus: Vec<_> = (0..CPUS as u32).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
        for (msr, register, value, cpu) in stores {
            let cpu = &mut cpus[cpu];
            match (msr, register) {
                (true, 0x130..) => drop(cpu.msr_write(TSC_DEADLINE_MSR, value)),
                (true, 0x100..) => drop(cpu.set_base(0xfee0_0000 | value & 0xf00)),
                (true, _) => drop(cpu.msr_write(0x800 + register, if value & 1 == 0 { value >> 1 & 0xffff_ffff } else { value })),
                (false, _) => drop(cpu.write(u64::from(register) * 16, value as u32)),
            }
            clock.advance(value >> 32);
            cpu.tick();
            cpu.next();
            cpu.acknowledge();
            let state = cpu.save();
            cpu.restore(&state).unwrap();
            prop_assert_eq!(cpu.save(), state);
        }
    }
}
