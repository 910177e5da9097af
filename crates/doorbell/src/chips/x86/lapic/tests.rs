use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::{Delivery, Kick, MsiMessage, MsiTarget, VcpuId};

const SVR: u64 = 0xf0;
const TPR: u64 = 0x80;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const ESR: u64 = 0x280;
const LOGICAL: u64 = 1 << 2;
const HINT: u64 = 1 << 3;
const LOWEST: u32 = 1 << 8;

fn machine_with(vcpus: u32, options: ApicOptions) -> (Arc<ApicSet>, Vec<LocalApic>) {
    let set = ApicSet::new(vcpus, Arc::new(()), options);
    let mut cpus: Vec<_> = (0..vcpus).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    cpus.iter_mut().for_each(|cpu| assert_eq!(cpu.write(SVR, 0x1ff), None));
    (set, cpus)
}

fn machine(vcpus: u32) -> (Arc<ApicSet>, Vec<LocalApic>) {
    machine_with(vcpus, ApicOptions::default())
}

fn address(destination: u64) -> u64 {
    0xfee0_0000 | destination << 12
}

fn send(set: &ApicSet, address: u64, data: u32) -> i32 {
    let message = MsiMessage::new(address, data);
    if let Some(target) = set.prepare(&message) {
        return set.fire(target).status();
    }
    set.send(&message).unwrap().status()
}

/// The vectors in IRR, which are taken out.
fn arrived(cpu: &mut LocalApic) -> Vec<u8> {
    let mut page = cpu.page();
    let mut vectors = Vec::new();
    for vector in 0..=255u8 {
        let byte = &mut page[0x200 + usize::from(vector >> 5) * 16 + usize::from(vector >> 3 & 3)];
        if *byte >> (vector & 7) & 1 == 1 {
            vectors.push(vector);
            *byte &= !(1 << (vector & 7));
        }
    }
    cpu.set_page(&page).unwrap();
    vectors
}

/// The answers that the kernel's KVM gave to `signal_msi.*` of the reference driver.
#[test]
fn direct_messages_are_answered_as_by_kvm_q3_to_q9() {
    let (set, mut cpus) = machine(2);
    assert_eq!(send(&set, address(0), 0x51), 1, "Q3 first");
    assert_eq!(send(&set, address(0), 0x51), 1, "Q3 already in IRR");
    assert_eq!(arrived(&mut cpus[0]), [0x51]);
    assert_eq!(send(&set, address(5), 0x52), 0, "Q4 absent");
    assert_eq!(send(&set, 0x1000, 0x53), 1, "Q5 outside FEExxxxx");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![], vec![0x53]));
    assert_eq!(send(&set, address(1), 0x54), 1);
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![], vec![0x54]));
    assert_eq!(send(&set, address(0xff), 0x55), 2, "Q6 broadcast");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x55], vec![0x55]));

    cpus[0].write(LDR, 1 << 24);
    cpus[1].write(LDR, 2 << 24);
    assert_eq!(send(&set, address(3) | LOGICAL, 0x56), 2, "Q7 two bits");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x56], vec![0x56]));
    assert_eq!(send(&set, address(3) | LOGICAL | HINT, 0x5a), 1, "Q8 hint");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x5a], vec![]));
    assert_eq!(send(&set, address(4) | LOGICAL, 0x57), 0);
    assert_eq!(send(&set, address(3) | LOGICAL, 0x58 | LOWEST), 1, "Q8 lowest priority");
    let hit = [arrived(&mut cpus[0]), arrived(&mut cpus[1])].concat();
    assert_eq!(hit, [0x58], "exactly one");

    cpus[0].write(SVR, 0xff);
    assert_eq!(send(&set, address(0), 0x59), 0, "Q4 software-disabled");
    assert_eq!(arrived(&mut cpus[0]), []);
    cpus[0].write(SVR, 0x1ff);
    assert_eq!(send(&set, address(0), 0x05), 1, "Q9");
    assert_eq!(arrived(&mut cpus[0]), [0x05]);
}

/// `reset.apic*` of the reference driver.
#[test]
fn the_hint_to_all_makes_a_fixed_message_of_any_mode_as_in_kvm() {
    let (set, mut cpus) = machine(2);
    assert_eq!(send(&set, address(0xff) | HINT, 0x4_00), 1, "an NMI, but to all and to one of them");
    assert!(cpus.iter_mut().all(|cpu| !cpu.take_nmi()));
    assert_eq!(arrived(&mut cpus[0]), [0]);
}

#[test]
fn reset_values_are_those_of_kvm() {
    let set = ApicSet::new(2, Arc::new(()), ApicOptions::default());
    let mut cpu0 = set.local(VcpuId(0)).unwrap();
    let mut cpu1 = set.local(VcpuId(1)).unwrap();
    let registers = [0x20, 0x30, 0xd0, 0xe0, 0xf0, 0x320, 0x350, 0x360, 0x370];
    let expected0 = [0, 0x50014, 0, 0xffff_ffff, 0xff, 0x10000, 0x700, 0x10000, 0x10000];
    let expected1 = [0x0100_0000, 0x50014, 0, 0xffff_ffff, 0xff, 0x10000, 0x10000, 0x10000, 0x10000];
    assert_eq!(registers.map(|offset| cpu0.read(offset)), expected0);
    assert_eq!(registers.map(|offset| cpu1.read(offset)), expected1);
    assert_eq!(cpu0.base().into_bits(), 0xfee0_0900);
    assert_eq!(cpu1.base().into_bits(), 0xfee0_0800);
}

#[test]
fn a_target_follows_changes_of_id_and_software_enable() {
    let (set, mut cpus) = machine(2);
    let target = set.prepare(&MsiMessage::new(address(1), 0x41)).unwrap();
    cpus[1].write(SVR, 0xff);
    assert_eq!(set.fire(target), Delivery::Coalesced, "disabled");
    cpus[1].write(SVR, 0x1ff);
    assert_eq!(set.fire(target), Delivery::Delivered(1));
    cpus[1].write(0x20, 7 << 24);
    assert_eq!(set.fire(target), Delivery::Coalesced, "nobody has this id now");
    cpus[0].write(0x20, 1 << 24);
    assert_eq!(set.fire(target), Delivery::Delivered(1));
    assert_eq!(arrived(&mut cpus[0]), [0x41], "who has it now takes it");
    cpus[1].write(0x20, 1 << 24);
    assert_eq!(set.fire(target), Delivery::Delivered(2), "two APICs with one id both take it");
    drop(cpus.pop());
    assert_eq!(set.fire(target), Delivery::Delivered(1), "an APIC that nobody has is absent");
    drop(cpus);
    assert_eq!(set.fire(target), Delivery::Coalesced);
}

#[test]
fn every_24_bit_target_is_harmless() {
    let (set, _cpus) = machine(2);
    for bits in (0..1 << 24).step_by(977) {
        set.fire(crate::Target::new(bits).unwrap());
    }
}

#[test]
fn l3_and_l4_logical_destinations_of_every_format() {
    let (set, mut cpus) = machine(4);
    for (cpu, ldr) in cpus.iter_mut().zip([0x11, 0x12, 0x21, 0x24]) {
        cpu.write(DFR, 0x0fff_ffff);
        cpu.write(LDR, ldr << 24);
    }
    assert_eq!(send(&set, address(0x13) | LOGICAL, 0x41), 2, "cluster 1, both");
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x42), 2, "cluster 2");
    assert_eq!(send(&set, address(0x22) | LOGICAL, 0x43), 0, "cluster 2, nobody");
    // The hash counts bits, with or without a CPU: 0x44 % 4 is bit 0, 0x45 % 4 is bit 1.
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x44 | LOWEST), 1);
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x45 | LOWEST), 0, "the hash falls on a bit without a CPU");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x41], vec![0x41], vec![0x42, 0x44], vec![0x42]]);

    // One APIC in flat format among them: each decides for itself.
    cpus[3].write(DFR, 0xffff_ffff);
    cpus[3].write(LDR, 0x10 << 24);
    assert_eq!(send(&set, address(0x11) | LOGICAL, 0x46), 2, "one by cluster, one by bit 4");
    assert_eq!(send(&set, address(0x08) | LOGICAL, 0x47), -1, "nobody matches, and there is no map to say 0");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x46], vec![], vec![], vec![0x46]]);
}

fn to_x2apic(cpu: &mut LocalApic) {
    let base = cpu.base().into_bits();
    assert_eq!(cpu.msr_write(0x1b, base | 1 << 10), Ok(None));
}

#[test]
fn x2apic_ids_above_255_are_reached_if_enabled() {
    let options = ApicOptions { extended_ids: true, no_broadcast_quirk: true, ..ApicOptions::default() };
    let set = ApicSet::with_ids(&[0, 0x101, 0x1234], Arc::new(()), options).unwrap();
    let mut cpus: Vec<_> = (0..3).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    for cpu in &mut cpus {
        to_x2apic(cpu);
        cpu.msr_write(0x80f, 0x1ff).unwrap();
    }
    assert_eq!(cpus[2].msr_read(0x802), Ok(0x1234));
    assert_eq!(cpus[2].msr_read(0x80d), Ok(0x0123_0010), "cluster 0x123, bit 4");
    assert_eq!(send(&set, address(0x34) | 0x12 << 40, 0x41), 1);
    assert_eq!(send(&set, address(0x01) | 0x01 << 40, 0x42), 1);
    assert_eq!(send(&set, address(0x10) | 0x0123 << 48 | LOGICAL, 0x43), 1, "cluster 0x123, bit 4");
    assert_eq!(send(&set, address(0xff) | 0xff_ffff << 40, 0x44), 3, "broadcast");
    assert_eq!(send(&set, address(0xff), 0x45), 0, "no broadcast with the quirk off");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x44], vec![0x42, 0x44], vec![0x41, 0x43, 0x44]]);
    let bad = MsiMessage::new(address(0) | 1 << 32, 0x41);
    assert_eq!(set.send(&bad).unwrap_err().errno(), crate::Errno::INVAL);
    assert_eq!(set.prepare(&bad), None);

    // Through the ICR: physical, logical, self.
    cpus[0].msr_write(0x830, 0x1234 << 32 | 0x2051).unwrap_err();
    cpus[0].msr_write(0x830, 0x1234 << 32 | 0x51).unwrap();
    cpus[0].msr_write(0x830, 0x0123_0010 << 32 | 0x852).unwrap();
    cpus[0].msr_write(0x83f, 0x53).unwrap();
    assert_eq!(cpus[0].msr_read(0x830), Ok(0x0123_0010 << 32 | 0x852));
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x53], vec![], vec![0x51, 0x52]]);
}

#[test]
fn l5_one_of_two_apics_with_the_same_logical_id_takes_it() {
    let (set, mut cpus) = machine(3);
    for cpu in &mut cpus {
        cpu.write(LDR, 4 << 24);
    }
    for vector in 0x60..0x63 {
        assert_eq!(send(&set, address(4) | LOGICAL | HINT, vector), 1);
    }
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x60], vec![0x61], vec![0x62]], "vector modulo the number of CPUs: 0x60 % 3 is 0");
}

#[test]
fn an_xapic_whose_id_is_too_large_answers_to_it_from_x2apic_senders() {
    let set = ApicSet::with_ids(&[0, 1, 0x101], Arc::new(()), ApicOptions::default()).unwrap();
    let mut cpus: Vec<_> = (0..3).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    cpus[1].write(SVR, 0x1ff);
    cpus[2].write(SVR, 0x1ff);
    to_x2apic(&mut cpus[0]);
    // 0x101 is also 0x01 in the eight bits of an xAPIC id: there is no map, and each APIC decides for itself.
    cpus[0].msr_write(0x830, 0x101 << 32 | 0x41).unwrap();
    cpus[0].msr_write(0x830, 0x001 << 32 | 0x42).unwrap();
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![], vec![0x42], vec![0x41, 0x42]]);
}

#[test]
fn ids_must_be_distinct_and_fit() {
    let of = |ids: &[u32]| ApicSet::with_ids(ids, Arc::new(()), ApicOptions::default());
    assert!(of(&[0, 3, 3]).is_err());
    assert!(of(&[0, 0x8000]).is_err());
    assert!(of(&[0x7fff]).is_ok());
}

#[test]
fn l6_to_l8_priorities_acknowledge_and_end() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    for vector in [0x35, 0x41, 0x4f, 0x08] {
        send(&set, address(0), vector);
    }
    assert_eq!(cpu.next(), Work { interrupt: Some(0x4f), ..Work::default() });
    assert_eq!(cpu.acknowledge(), Some(0x4f));
    assert_eq!(cpu.ppr(), 0x40);
    assert_eq!(cpu.acknowledge(), None, "0x41 is of the class in service");
    send(&set, address(0), 0x8050);
    assert_eq!(cpu.acknowledge(), Some(0x50), "a higher class interrupts");
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x50, level: true }), "the highest in service ends first");
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x4f, level: false }));
    assert_eq!(cpu.eoi(), None, "nothing in service");
    cpu.write(TPR, 0x3f);
    assert_eq!((cpu.ppr(), cpu.cr8()), (0x3f, 3));
    assert_eq!(cpu.acknowledge(), Some(0x41));
    assert_eq!(cpu.write(0xb0, 0), Some(Eoi { vector: 0x41, level: false }));
    assert_eq!(cpu.acknowledge(), None, "0x35 is not above TPR");
    cpu.set_cr8(2).unwrap();
    assert_eq!(cpu.set_cr8(16), Err(GeneralProtection));
    assert_eq!(cpu.read(TPR), 0x20);
    assert_eq!(cpu.acknowledge(), Some(0x35));
    cpu.eoi();
    cpu.write(TPR, 0);
    assert_eq!(cpu.next(), Work::default(), "vectors below 16 are never deliverable");
    assert!(cpu.holds(0x08));
}

#[test]
fn the_trigger_mode_is_that_of_the_last_message() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    send(&set, address(0), 0x8041);
    assert_eq!(cpu.read(0x180 + 0x20), 1 << 1);
    send(&set, address(0), 0x41);
    assert_eq!(cpu.read(0x180 + 0x20), 0);
    cpu.acknowledge();
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x41, level: false }));
}

#[test]
fn eoi_broadcast_is_suppressed_only_where_it_is_offered() {
    for (eoi_suppression, svr, version) in [(false, 0x3ff, 0x50014), (true, 0x13ff, 0x0105_0014)] {
        let (set, mut cpus) = machine_with(1, ApicOptions { eoi_suppression, ..ApicOptions::default() });
        let cpu = &mut cpus[0];
        cpu.write(SVR, 0xffff_ffff);
        assert_eq!((cpu.read(SVR), cpu.read(0x30)), (svr, version));
        send(&set, address(0), 0x8041);
        assert_eq!(cpu.acknowledge(), Some(0x41));
        let level = Eoi { vector: 0x41, level: true };
        assert_eq!(cpu.eoi(), (!eoi_suppression).then_some(level));
    }
}

#[test]
fn irr_is_retained_across_a_transient_software_disable() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    send(&set, address(0), 0x41);
    cpu.write(SVR, 0xff);
    assert_eq!(cpu.read(0x320), 0x10000, "entries of the local table are masked");
    cpu.write(0x350, 0x741);
    assert_eq!(cpu.read(0x350), 0x1_0741, "and stay so while it is disabled");
    cpu.write(SVR, 0x1ff);
    assert_eq!(cpu.acknowledge(), Some(0x41));
}

#[test]
fn interrupts_between_processors() {
    let (_set, mut cpus) = machine(3);
    cpus[0].write(ICR_HIGH, 2 << 24);
    cpus[0].write(ICR, 0x41);
    cpus[0].write(ICR, 0x4_0042); // self
    cpus[0].write(ICR, 0x8_0043); // all
    cpus[0].write(ICR, 0xc_1044); // all but self; the busy bit reads 0
    assert_eq!(cpus[0].read(ICR), 0xc_0044);
    cpus[0].write(ICR, 0xc_8045); // level, de-asserted: nothing
    cpus[0].write(ICR, 0x8_0446); // NMI to all
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x42, 0x43], vec![0x43, 0x44], vec![0x41, 0x43, 0x44]]);
    assert!(cpus.iter_mut().all(|cpu| cpu.take_nmi() && !cpu.take_nmi()));
}

#[test]
fn init_and_sipi_start_a_processor() {
    let (set, mut cpus) = machine(2);
    let (boot, second) = cpus.split_at_mut(1);
    let (boot, second) = (&mut boot[0], &mut second[0]);
    send(&set, address(1), 0x41);
    boot.write(ICR_HIGH, 1 << 24);
    boot.write(ICR, 0x0642);
    assert_eq!(second.take_sipi(), None, "a SIPI without INIT is dropped");
    boot.write(ICR, 0xc500);
    assert!(second.next().init);
    boot.write(ICR, 0x8500);
    assert!(second.take_init(), "the de-assertion did nothing");
    assert_eq!(second.read(SVR), 0xff, "reset");
    assert_eq!(second.next(), Work::default(), "and what was pending is gone");
    boot.write(ICR, 0x0699);
    assert_eq!(second.next(), Work { sipi: Some(0x99), ..Work::default() });
    assert_eq!(second.take_sipi(), Some(0x99));
    assert_eq!(second.take_sipi(), None);

    boot.write(ICR, 0x0699);
    boot.write(ICR, 0x4500);
    assert_eq!(second.take_sipi(), None, "an INIT takes an earlier SIPI with it");
    assert!(second.take_init());
    second.write(ICR, 0x4500 | 0x8_0000);
    assert!(boot.take_init());
    boot.write(SVR, 0x1ff);
    send(&set, address(0), 0x41);
    assert_eq!(boot.next().interrupt, Some(0x41), "the boot CPU does not wait for a SIPI");
}

#[test]
fn messages_of_every_delivery_mode() {
    for (strict, extint) in [(false, 0), (true, 1)] {
        let (set, mut cpus) = machine_with(1, ApicOptions { strict, ..ApicOptions::default() });
        cpus[0].write(SVR, 0xff); // all but fixed ones are taken all the same
        let answers = [0x041, 0x141, 0x200, 0x400, 0x500, 0x620, 0x700].map(|data| send(&set, address(0), data));
        assert_eq!(answers, [0, 0, 1, 1, 1, 1, extint]);
        let work = cpus[0].next();
        assert_eq!((work.smi, work.nmi, work.init, work.extint), (true, true, true, strict));
        assert!(cpus[0].take_smi() && !cpus[0].take_smi());
        assert_eq!((cpus[0].take_extint(), cpus[0].take_extint()), (strict, false));
    }
}

#[test]
fn the_8259_reaches_the_boot_cpu_through_lint0() {
    let (set, mut cpus) = machine(2);
    let mut extint = |cpu: usize, lint0: u32| {
        cpus[cpu].write(0x350, lint0);
        set.set_pic_output(VcpuId(cpu as u32), true);
        let high = cpus[cpu].next().extint;
        set.set_pic_output(VcpuId(cpu as u32), false);
        assert!(!cpus[cpu].next().extint);
        high
    };
    assert!(extint(0, 0x700));
    assert!(!extint(0, 0x1_0700), "masked");
    assert!(!extint(1, 0x041), "fixed");
    cpus[1].set_base(0xfee0_0000).unwrap();
    set.set_pic_output(VcpuId(1), true);
    assert!(cpus[1].next().extint, "without an APIC, the pin is the CPU's own");
}

#[test]
fn local_sources_deliver_their_entry() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    assert_eq!(cpu.deliver_local(slot::LVT_TIMER), Delivery::Ignored, "masked after reset");
    cpu.write(0x320, 0x2_0041);
    assert_eq!(cpu.deliver_local(slot::LVT_TIMER), Delivery::Delivered(1));
    assert_eq!(cpu.acknowledge(), Some(0x41));
    cpu.write(0x360, 0x400);
    assert_eq!(cpu.deliver_local(slot::LVT_LINT1), Delivery::Delivered(1));
    assert!(cpu.take_nmi());
    for absent in [slot::SVR, slot::COUNT, usize::MAX] {
        assert_eq!(cpu.deliver_local(absent), Delivery::Ignored);
    }
}

#[test]
fn registers_keep_only_their_bits() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    let table = [
        (0x020, 0xff00_0000),
        (0x030, 0x50014),
        (0x080, 0xff),
        (0x0d0, 0xff00_0000),
        (0x0e0, 0xffff_ffff),
        (0x0f0, 0x3ff),
        (0x280, 0),
        (0x310, 0xff00_0000),
        (0x320, 0x7_10ff),
        (0x330, 0x1_17ff),
        (0x340, 0x1_17ff),
        (0x350, 0x1_f7ff),
        (0x360, 0x1_f7ff),
        (0x370, 0x1_10ff),
        (0x380, 0xffff_ffff),
        (0x390, 0),
        (0x3e0, 0xb),
        (0x2f0, 0),
        (0x040, 0),
        (0x400, 0),
        (0xff0, 0),
    ];
    for (offset, value) in table {
        cpu.write(offset, 0xffff_ffff);
        assert_eq!(cpu.read(offset), value, "register {offset:#x}");
    }
}

#[test]
fn accesses_of_odd_width_are_answered_as_by_kvm() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(0x320, 0x1_0041);
    let mut read = |offset, mut data: Vec<u8>| {
        cpu.mmio_read(offset, &mut data);
        data
    };
    assert_eq!(read(0x320, vec![9; 4]), [0x41, 0, 1, 0]);
    assert_eq!(read(0x321, vec![9; 2]), [0, 1]);
    assert_eq!(read(0x322, vec![9; 4]), [0; 4], "crosses the end");
    assert_eq!(read(0x320, vec![9; 8]), [0; 8]);
    assert_eq!(read(u64::MAX, vec![9; 1]), [0]);
    for (offset, data) in [(0x320, vec![1u8; 2]), (0x320, vec![1; 8]), (0x324, vec![1; 4]), (u64::MAX, vec![1; 4])] {
        assert_eq!(cpu.mmio_write(offset, &data), None);
    }
    assert_eq!(cpu.read(0x320), 0x1_0041, "only aligned 32-bit stores count");
}

#[test]
fn modes_change_only_along_the_manuals_arrows() {
    let (set, mut cpus) = machine(2);
    let cpu = &mut cpus[1];
    assert_eq!(cpu.msr_read(0x802), Err(GeneralProtection), "not in x2APIC mode");
    for bad in [0xfee0_0801, 0xfee0_0a00, 0xfee0_0400, 1 << 46 | 0xfee0_0800] {
        assert_eq!(cpu.msr_write(0x1b, bad), Err(GeneralProtection), "{bad:#x}");
    }
    cpu.write(LDR, 2 << 24);
    to_x2apic(cpu);
    assert_eq!(cpu.read(0x20), u32::MAX, "the window is gone");
    assert_eq!(cpu.write(0x80, 0x10), None);
    assert_eq!((cpu.msr_read(0x802), cpu.msr_read(0x80d), cpu.msr_read(0x808)), (Ok(1), Ok(2), Ok(0)));
    for msr in [0x80e, 0x831, 0x80b, 0x83f, 0x809, 0x8ff, 0x7ff, 0x900] {
        assert_eq!(cpu.msr_read(msr), Err(GeneralProtection), "{msr:#x}");
    }
    for (msr, value) in [(0x802, 0), (0x80d, 0), (0x80e, 0), (0x828, 1), (0x83f, 0x100), (0x808, 1 << 32), (0x803, 0)] {
        assert_eq!(cpu.msr_write(msr, value), Err(GeneralProtection), "{msr:#x}");
    }
    assert_eq!(cpu.set_base(0xfee0_0800), Err(GeneralProtection), "x2APIC to xAPIC");
    assert_eq!(send(&set, address(1), 0x41), 1);
    cpu.set_base(0xfee0_0000).unwrap();
    assert_eq!(send(&set, address(1), 0x42), 0, "absent");
    assert_eq!(cpu.next().interrupt, None, "an APIC that is off interrupts nobody");
    assert_eq!(cpu.set_base(0xfee0_0c00), Err(GeneralProtection), "disabled to x2APIC");
    cpu.set_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.read(0x20), 1 << 24);
    assert_eq!(cpu.acknowledge(), Some(0x41), "as in KVM, turning it off and on loses nothing");
}

#[test]
fn strict_mode_follows_the_manual() {
    let (set, mut cpus) = machine_with(2, ApicOptions { strict: true, ..ApicOptions::default() });
    let outside = MsiMessage::new(0x1000, 0x41);
    assert!(set.send(&outside).is_err());
    assert_eq!(set.prepare(&outside), None);
    assert_eq!(send(&set, address(0), 0x0f), 0, "nobody takes an illegal vector");
    let cpu = &mut cpus[0];
    assert_eq!(arrived(cpu), []);
    assert_eq!(cpu.read(ESR), 0, "not before it is written");
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0x40);
    cpu.write(0x370, 0xfe);
    cpu.write(ICR_HIGH, 1 << 24);
    cpu.write(ICR, 0x0e);
    cpu.write(0x3c0, 0);
    assert_eq!(cpu.read(ESR), 0x40, "what was latched stays until the next write");
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0xa0);
    assert_eq!(cpu.next().interrupt, Some(0xfe), "the error interrupt");
    cpu.write(0x350, 0xffff_ffff);
    assert_eq!(cpu.read(0x350), 0x1_a7ff, "delivery status and remote IRR are read-only");
    to_x2apic(cpu);
    assert_eq!(cpu.msr_write(0x80b, 1), Err(GeneralProtection));
    assert_eq!(cpu.msr_write(0x808, 0x100), Err(GeneralProtection));
    assert_eq!(arrived(&mut cpus[1]), []);
}

#[test]
fn an_error_entry_with_an_illegal_vector_does_not_go_round_for_ever() {
    let (set, mut cpus) = machine_with(1, ApicOptions { strict: true, ..ApicOptions::default() });
    cpus[0].write(0x370, 0x03);
    send(&set, address(0), 0x01);
    assert!(cpus[0].next().is_idle());
    assert!(cpus[0].next().is_idle());
}

#[derive(Default)]
struct Kicks(AtomicU32);

impl Kick for Kicks {
    fn kick(&self, vcpu: VcpuId) {
        assert_eq!(vcpu, VcpuId(0));
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn only_an_armed_vcpu_is_kicked_and_only_once() {
    let kicks = Arc::new(Kicks::default());
    let set = ApicSet::new(1, kicks.clone(), ApicOptions::default());
    let mut cpu = set.local(VcpuId(0)).unwrap();
    cpu.write(SVR, 0x1ff);
    let count = || kicks.0.load(Ordering::Relaxed);
    send(&set, address(0), 0x41);
    assert_eq!(count(), 0, "awake");
    assert_eq!(cpu.arm().interrupt, Some(0x41), "must not sleep");
    cpu.disarm();
    send(&set, address(0), 0x42);
    assert_eq!(count(), 0);
    cpu.arm();
    send(&set, address(0), 0x41);
    send(&set, address(0), 0x43);
    set.nmi(VcpuId(0));
    assert_eq!(count(), 1);
    cpu.arm();
    set.smi(VcpuId(0));
    set.nmi(VcpuId(77));
    assert_eq!(count(), 2);
}

#[test]
fn a_page_that_is_set_is_read_back_except_for_what_kvm_fixes() {
    let (set, mut cpus) = machine(2);
    let mut page = [0u8; LAPIC_PAGE];
    for (at, byte) in page.iter_mut().enumerate().filter(|(at, _)| at % 16 < 4) {
        *byte = (at / 16) as u8 ^ 0xa5;
    }
    let mut expected = page;
    cpus[1].set_page(&page).unwrap();
    expected[0x30..0x34].copy_from_slice(&0x50014u32.to_le_bytes());
    expected[0x390..0x394].fill(0);
    let ppr = u32::from(cpus[1].ppr());
    expected[0xa0..0xa4].copy_from_slice(&ppr.to_le_bytes());
    assert_eq!(ppr, 0xf0, "vector 0xff is in service");
    assert_eq!(cpus[1].page(), expected);

    let mut two = cpus.pop().unwrap();
    two.reset();
    to_x2apic(&mut two);
    two.msr_write(0x80f, 0x1ff).unwrap();
    two.msr_write(0x830, 0x1_0000_0441).unwrap();
    let saved = two.page();
    assert_eq!(saved[0x20..0x24], (1u32 << 24).to_le_bytes(), "KVM shows the id as in xAPIC mode");
    assert_eq!((saved[0x300..0x304].to_vec(), saved[0x310]), (0x441u32.to_le_bytes().to_vec(), 1));
    let mut other = saved;
    other[0x20..0x24].fill(0x77);
    other[0xd0..0xd4].fill(0x77);
    two.set_page(&other).unwrap();
    assert_eq!(two.page(), saved);
    assert_eq!(send(&set, address(1), 0x41), 1);
}

#[test]
fn a_saved_apic_goes_on_where_it_was() {
    let (set, mut cpus) = machine(2);
    cpus[1].write(LDR, 4 << 24);
    send(&set, address(1), 0x8051);
    cpus[1].acknowledge();
    send(&set, address(1), 0x61);
    set.nmi(VcpuId(1));
    let state = cpus[1].save();

    let (set, mut cpus) = machine(2);
    cpus[1].restore(&state).unwrap();
    assert_eq!(cpus[1].save(), state);
    assert_eq!(send(&set, address(4) | LOGICAL, 0x71), 1);
    assert!(cpus[1].take_nmi());
    assert_eq!([cpus[1].acknowledge(), cpus[1].acknowledge()], [Some(0x71), None]);
    let ended: Vec<_> = std::iter::from_fn(|| cpus[1].eoi()).collect();
    assert_eq!(ended, [Eoi { vector: 0x71, level: false }, Eoi { vector: 0x51, level: true }]);

    let before = cpus[1].save();
    let bad = [
        LocalApicState { base: 1, ..state.clone() },
        LocalApicState { page: vec![0; 1023], ..state.clone() },
        LocalApicState { events: 1 << 31, ..state.clone() },
        LocalApicState { errors: 1, ..state.clone() },
    ];
    for state in bad {
        assert!(cpus[1].restore(&state).is_err());
        assert_eq!(cpus[1].save(), before, "a restore that fails changes nothing");
    }
}

#[test]
fn a_private_half_is_lent_once() {
    let set = ApicSet::new(1, Arc::new(()), ApicOptions::default());
    let cpu = set.local(VcpuId(0)).unwrap();
    assert!(set.local(VcpuId(0)).is_none());
    assert!(set.local(VcpuId(1)).is_none());
    drop(cpu);
    assert!(set.local(VcpuId(0)).is_some());
}
