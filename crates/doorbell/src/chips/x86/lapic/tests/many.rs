//! Machines of more than 255 CPUs: everybody who is meant is reached exactly once, and nobody else.

use super::*;
use crate::{
    Delivery, LineSource, PinInput,
    chips::x86::ioapic::{CHIP, INDEX, IoApic, IoApicOptions, WINDOW},
};

const IPI: u32 = 0x830;
const ALL: u64 = 0x8_0000;
const ALL_BUT_SELF: u64 = 0xc_0000;
const ICR_LOGICAL: u64 = 1 << 11;
const ICR_LOWEST: u64 = 1 << 8;
const VECTOR: u32 = 0x41;

/// The id of the n-th CPU.
type Ids = fn(u32) -> u32;

/// CPUs in x2APIC mode. `id` gives the n-th its id.
struct Many {
    set: Arc<ApicSet>,
    cpus: Vec<LocalApic>,
}

impl Many {
    fn new(cpus: u32, id: Ids, options: ApicOptions) -> Self {
        let ids: Vec<_> = (0..cpus).map(id).collect();
        let set = ApicSet::with_ids(&ids, Arc::new(()), options).unwrap();
        let mut cpus: Vec<_> = (0..cpus).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
        for cpu in &mut cpus {
            to_x2apic(cpu);
            cpu.msr_write(0x80f, 0x1ff).unwrap();
        }
        Self { set, cpus }
    }

    /// Who has taken the vector, each once; they end it.
    fn taken(&mut self) -> Vec<usize> {
        let take = |(at, cpu): (usize, &mut LocalApic)| {
            let vector = cpu.acknowledge()?;
            assert_eq!((u32::from(vector), cpu.eoi().is_some(), cpu.acknowledge()), (VECTOR, true, None));
            Some(at)
        };
        self.cpus.iter_mut().enumerate().filter_map(take).collect()
    }

    fn id(&self, cpu: usize) -> u64 {
        self.set.map.id(cpu).into()
    }

    fn ipi(&mut self, from: usize, low: u64, destination: u64) -> Vec<usize> {
        self.cpus[from].msr_write(IPI, destination << 32 | low | u64::from(VECTOR)).unwrap();
        self.taken()
    }

    fn message(&mut self, address: u64, data: u32) -> (Delivery, Vec<usize>) {
        let delivery = self.set.send(&MsiMessage::new(0xfee0_0000 | address, data | VECTOR)).unwrap();
        (delivery, self.taken())
    }
}

/// Consecutive ids, and ids with holes as a machine with packages of 6 cores in 8 ids has them.
const SHAPES: [(u32, Ids); 4] =
    [(300, |n| n), (1_024, |n| n), (300, |n| n / 6 * 8 + n % 6), (1_024, |n| n / 6 * 8 + n % 6)];

#[test]
fn every_cpu_is_reached_by_its_id() {
    for (count, id) in SHAPES {
        let extended = ApicOptions { extended_ids: true, no_broadcast_quirk: true, ..ApicOptions::default() };
        let ext_dest = ApicOptions { ext_dest_id: true, no_broadcast_quirk: true, ..ApicOptions::default() };
        let mut wide = Many::new(count, id, extended);
        let mut ext = Many::new(count, id, ext_dest);
        for cpu in 0..count as usize {
            let number = wide.id(cpu);
            let (low, high) = (number & 0xff, number >> 8);
            assert_eq!(wide.ipi(cpu * 7 % count as usize, 0, number), [cpu], "by ICR");
            assert_eq!(wide.message(low << 12 | high << 40, 0), (Delivery::Delivered(1), vec![cpu]), "address 63:40");
            assert_eq!(ext.message(low << 12 | high << 5, 0), (Delivery::Delivered(1), vec![cpu]), "address 11:5");
            match ext.set.prepare(&MsiMessage::new(0xfee0_0000 | low << 12 | high << 5, VECTOR)) {
                Some(target) => assert_eq!((ext.set.fire(target), ext.taken()), (Delivery::Delivered(1), vec![cpu])),
                None => assert_eq!(number, 0xff, "which may be a broadcast"),
            }
        }
        assert_eq!(wide.ipi(0, 0, wide.id(count as usize - 1) + 1), [], "nobody");
        // In the remappable format the bits are no destination.
        assert_eq!(ext.message(1 << 4 | 1 << 5, 0), (Delivery::Delivered(1), vec![0]));
        // Bits that are not offered are not looked at.
        let mut plain = Many::new(count, id, ApicOptions::default());
        assert_eq!(plain.message(3 << 12 | 0x7f << 5 | 1 << 40, 0), (Delivery::Delivered(1), vec![3]));
    }
}

#[test]
fn every_cluster_is_reached_by_its_logical_ids() {
    for (count, id) in SHAPES {
        let mut many = Many::new(count, id, ApicOptions::default());
        let last = many.id(count as usize - 1) as u32;
        for cluster in 0..=last / 16 {
            for mask in [0xffff, 0x0001, 0x8000, 0x5a5a, 0] {
                let expected: Vec<_> = (0..count as usize)
                    .filter(|&cpu| many.id(cpu) as u32 / 16 == cluster && mask >> (many.id(cpu) % 16) & 1 == 1)
                    .collect();
                let destination = u64::from(cluster) << 16 | mask;
                assert_eq!(many.ipi(5, ICR_LOGICAL, destination), expected, "cluster {cluster}, mask {mask:#x}");
                let one = many.ipi(5, ICR_LOGICAL | ICR_LOWEST, destination);
                assert!(one.len() <= 1 && one.iter().all(|cpu| expected.contains(cpu)), "{one:?} of {expected:?}");
                // A full cluster without holes has no bit that leads nowhere.
                if expected.len() == mask.count_ones() as usize && mask != 0 {
                    assert_eq!(one.len(), 1, "L5");
                }
            }
        }
        assert_eq!(many.ipi(0, ICR_LOGICAL, u64::from(last / 16 + 1) << 16 | 0xffff), []);
        assert_eq!(many.ipi(0, ICR_LOGICAL, 0xffff_0000_u64), []);
        for cpu in 0..count as usize {
            let ldr = many.cpus[cpu].msr_read(0x80d).unwrap();
            assert_eq!(many.ipi(0, ICR_LOGICAL, ldr), [cpu], "by its own LDR");
        }
    }
}

#[test]
fn shorthands_and_broadcasts_reach_everybody_once() {
    for (count, id) in SHAPES {
        let mut many = Many::new(count, id, ApicOptions::default());
        let everybody: Vec<_> = (0..count as usize).collect();
        assert_eq!(many.ipi(7, ALL, 0), everybody);
        for from in [0, 7, 255, count as usize - 1] {
            let others: Vec<_> = everybody.iter().copied().filter(|&cpu| cpu != from).collect();
            assert_eq!(many.ipi(from, ALL_BUT_SELF, 0), others);
            many.cpus[from].msr_write(0x83f, VECTOR.into()).unwrap();
            assert_eq!(many.taken(), [from], "SELF IPI");
        }
        assert_eq!(many.ipi(7, 0, 0xffff_ffff), everybody, "physical broadcast");
        assert_eq!(many.ipi(7, ICR_LOGICAL, 0xffff_ffff), everybody, "logical broadcast");
        assert_eq!(many.message(0xff << 12, 0), (Delivery::Delivered(count), everybody.clone()), "of a device");
        for low in [ICR_LOWEST | ALL, ICR_LOWEST | ALL_BUT_SELF] {
            let one = many.ipi(7, low, 0);
            assert!(one.len() == 1 && (low != ICR_LOWEST | ALL_BUT_SELF || one != [7]), "L5: {one:?}");
        }
        let (delivery, one) = many.message(0xff << 12 | HINT, 0);
        assert_eq!((delivery, one.len()), (Delivery::Delivered(1), 1), "L5");
        assert_eq!(many.message(0xff << 12, LOWEST), (Delivery::Delivered(count), everybody), "KVM makes it fixed");
        // An NMI to all but this one.
        many.cpus[9].msr_write(IPI, ALL_BUT_SELF | 0x400).unwrap();
        assert!(many.cpus.iter_mut().enumerate().all(|(cpu, apic)| apic.take_nmi() == (cpu != 9)));
    }
}

#[test]
fn an_ioapic_names_cpus_above_255_by_bits_55_to_49() {
    let options = ApicOptions { ext_dest_id: true, ..ApicOptions::default() };
    let mut many = Many::new(300, |n| n, options);
    let ioapic = IoApic::new(many.set.clone(), IoApicOptions::default());
    for cpu in [0u32, 1, 254, 256, 299] {
        let _ = ioapic.write(INDEX, 0x11 + 2 * 4);
        let _ = ioapic.write(WINDOW, (cpu & 0xff) << 24 | (cpu >> 8) << 17);
        let _ = ioapic.write(INDEX, 0x10 + 2 * 4);
        let _ = ioapic.write(WINDOW, VECTOR);
        assert_eq!(ioapic.pulse(CHIP, 4, LineSource::USER), Delivery::Delivered(1));
        assert_eq!(many.taken(), [cpu as usize]);
    }
}

#[test]
fn flat_and_clustered_logical_ids_are_looked_up() {
    // 60 CPUs in xAPIC mode, four in each of 15 clusters.
    let (set, mut cpus) = machine(60);
    for (n, cpu) in (0u32..).zip(&mut cpus) {
        cpu.write(DFR, 0x0fff_ffff);
        cpu.write(LDR, (n / 4) << 28 | 1 << (24 + n % 4));
    }
    let taken = |cpus: &mut [LocalApic]| -> Vec<usize> {
        (0..cpus.len()).filter(|&cpu| cpus[cpu].acknowledge().is_some() && cpus[cpu].eoi().is_some()).collect()
    };
    for cluster in 0..16u64 {
        // All ones are a broadcast.
        for mask in (1..16u64).filter(|mask| cluster << 4 | mask != 0xff) {
            let expected: Vec<_> =
                (0..60).filter(|cpu| cpu / 4 == cluster as usize && mask >> (cpu % 4) & 1 == 1).collect();
            assert_eq!(send(&set, address(cluster << 4 | mask) | LOGICAL, VECTOR), expected.len() as i32);
            assert_eq!(taken(&mut cpus), expected);
        }
    }
    // Who is software-disabled has no logical id, and its bit leads nowhere.
    cpus[5].write(SVR, 0xff);
    assert_eq!(send(&set, address(0x16) | LOGICAL, VECTOR), 1);
    assert_eq!(taken(&mut cpus), [6]);

    let (set, mut cpus) = machine(8);
    for (n, cpu) in (0u32..).zip(&mut cpus) {
        cpu.write(LDR, 1 << (31 - n));
    }
    for mask in 0..0xffu64 {
        let expected: Vec<_> = (0..8).filter(|cpu| mask >> (7 - cpu) & 1 == 1).collect();
        assert_eq!(send(&set, address(mask) | LOGICAL, VECTOR), expected.len() as i32);
        assert_eq!(taken(&mut cpus), expected);
    }
}
