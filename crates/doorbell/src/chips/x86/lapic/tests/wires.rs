//! NMIs, the pins LINT0 and LINT1, INTR of the 8259, and the local vector table's other sources.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::Delivery;

const LVT_PERFORMANCE: u64 = 0x340;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn two_nmis_are_kept_and_no_more() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    for sent in 0..4 {
        (0..sent).for_each(|_| set.nmi(VcpuId(0)));
        let taken = (0..4).filter(|_| cpu.next().nmi && cpu.take_nmi()).count();
        assert_eq!((taken, cpu.next().nmi), (sent.min(2), false));
    }
    // By message as well, and one that comes after the first was taken.
    assert_eq!([send(&set, address(0), 0x400), send(&set, address(0), 0x400)], [1, 1]);
    assert!(cpu.take_nmi());
    set.nmi(VcpuId(0));
    assert!(cpu.take_nmi() && cpu.take_nmi() && !cpu.take_nmi());
    // In the middle of one, one more is kept.
    set.nmi(VcpuId(0));
    assert!(!cpu.keep_one_nmi() && cpu.next().nmi);
    set.nmi(VcpuId(0));
    assert!(cpu.keep_one_nmi() && cpu.take_nmi() && !cpu.take_nmi());
    // Both are saved.
    set.nmi(VcpuId(0));
    set.nmi(VcpuId(0));
    let state = cpu.save();
    cpu.reset();
    cpu.restore(&state).unwrap();
    assert!(cpu.take_nmi() && cpu.take_nmi() && !cpu.take_nmi());
}

#[test]
fn an_nmi_button_is_a_pulse_of_lint1() {
    let (set, mut cpus) = machine(2);
    let pulse = |cpu: &mut LocalApic, entry: u32| {
        cpu.write(LINT1, entry);
        set.set_lint(cpu.vcpu(), Lint::Lint1, true);
        set.set_lint(cpu.vcpu(), Lint::Lint1, false);
        let work = cpu.next();
        (work.nmi && cpu.take_nmi(), work.smi && cpu.take_smi(), work.init && cpu.take_init(), work.interrupt)
    };
    assert_eq!(pulse(&mut cpus[0], 0x400), (true, false, false, None));
    assert_eq!(pulse(&mut cpus[0], 0x400 | LEVEL), (true, false, false, None), "an NMI is never a level");
    assert_eq!(pulse(&mut cpus[0], 0x400 | MASKED), (false, false, false, None));
    assert_eq!(pulse(&mut cpus[0], 0x200), (false, true, false, None));
    assert_eq!(pulse(&mut cpus[0], 0x041), (false, false, false, Some(0x41)));
    assert_eq!(cpus[0].acknowledge(), Some(0x41));
    assert_eq!(pulse(&mut cpus[0], 0x041), (false, false, false, None), "in service");
    assert!(!cpus[1].next().nmi, "another CPU's pin is another pin");
    assert_eq!(pulse(&mut cpus[1], 0x500), (false, false, true, None));
    set.set_lint(VcpuId(2), Lint::Lint1, true);
}

#[test]
fn a_pin_takes_edges_once_and_masked_ones_not_at_all() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(LINT0, 0x51);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    assert_eq!((cpu.next().interrupt, cpu.acknowledge()), (Some(0x51), Some(0x51)));
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x51, level: false }));
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    assert_eq!(cpu.next().interrupt, None, "still up is no edge");
    set.set_lint(VcpuId(0), Lint::Lint0, false);
    assert_eq!(cpu.next().interrupt, None);
    cpu.write(LINT0, 0x51 | MASKED);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    assert_eq!(cpu.next().interrupt, None);
    cpu.write(LINT0, 0x51);
    assert_eq!(cpu.next().interrupt, None, "it was lost");
}

#[test]
fn a_level_pin_is_sent_again_after_its_end_while_it_is_up() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(LINT0, 0x51 | LEVEL);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    for _ in 0..3 {
        assert_eq!((cpu.next().interrupt, cpu.acknowledge()), (Some(0x51), Some(0x51)));
        assert_eq!(cpu.read(LINT0), 0x51 | LEVEL | REMOTE_IRR);
        assert!(cpu.next().is_idle(), "not before its end");
        assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x51, level: true }));
        assert_eq!(cpu.read(LINT0), 0x51 | LEVEL);
    }
    assert_eq!((cpu.next().interrupt, cpu.acknowledge()), (Some(0x51), Some(0x51)));
    // Another level interrupt's end is not its end.
    assert_eq!(send(&set, address(0), 0x8061), 1);
    assert_eq!((cpu.acknowledge(), cpu.eoi().map(|eoi| eoi.vector)), (Some(0x61), Some(0x61)));
    assert_eq!(cpu.read(LINT0), 0x51 | LEVEL | REMOTE_IRR);
    set.set_lint(VcpuId(0), Lint::Lint0, false);
    cpu.eoi();
    assert!(cpu.next().is_idle(), "it is down");
    // Masked while it is up, and unmasked: a level is not lost.
    cpu.write(LINT0, 0x51 | LEVEL | MASKED);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    assert!(cpu.next().is_idle());
    cpu.write(LINT0, 0x51 | LEVEL);
    assert_eq!(cpu.next().interrupt, Some(0x51));
    // A software-disabled APIC takes nothing, and has nothing to end.
    cpu.acknowledge();
    cpu.eoi();
    cpu.write(SVR, 0xff);
    assert!(cpu.next().is_idle());
    assert_eq!(cpu.read(LINT0), 0x51 | LEVEL | MASKED);
}

#[test]
fn intr_reaches_who_accepts_it() {
    let (set, mut cpus) = machine(3);
    let seen = |cpus: &mut [LocalApic]| cpus.iter_mut().map(|cpu| cpu.next().extint).collect::<Vec<_>>();
    assert_eq!(seen(&mut cpus), [false, false, false]);
    set.set_intr(true);
    assert_eq!(seen(&mut cpus), [true, false, false], "LINT0 of the boot CPU after reset");
    cpus[1].write(LINT0, 0x700);
    assert_eq!(seen(&mut cpus), [true, true, false]);
    cpus[0].write(LINT0, 0x700 | MASKED);
    cpus[2].set_base(0xfee0_0000).unwrap();
    assert_eq!(seen(&mut cpus), [false, true, true], "an APIC that is off leaves the pin to its CPU");
    cpus[1].write(LINT0, 0x041);
    cpus[1].write(LINT1, 0x700);
    assert_eq!(seen(&mut cpus), [false, false, true], "it is LINT0 that the 8259 is connected to");
    set.set_intr(false);
    assert_eq!(seen(&mut cpus), [false, false, false]);
    // Some other chip at a pin that is an ExtINT.
    set.set_lint(VcpuId(1), Lint::Lint1, true);
    assert_eq!(seen(&mut cpus), [false, true, false]);
    cpus[1].set_base(0xfee0_0000).unwrap();
    assert_eq!(seen(&mut cpus), [false, false, false], "without an APIC there is no LINT1");
    set.set_lint(VcpuId(1), Lint::Lint1, false);
    cpus[0].write(LINT0, 0x700);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    assert_eq!(seen(&mut cpus), [true, false, false]);
    set.set_lint(VcpuId(0), Lint::Lint0, false);
    assert_eq!(seen(&mut cpus), [false, false, false]);
}

#[test]
fn intr_wakes_only_who_sleeps_and_accepts_it() {
    let kicked = Arc::new(AtomicU32::new(0));
    let kick = {
        let kicked = kicked.clone();
        move |vcpu: VcpuId| {
            kicked.fetch_or(1 << vcpu.0, Ordering::Relaxed);
        }
    };
    let set = ApicSet::new(3, Arc::new(kick), ApicOptions::default());
    let mut cpus: Vec<_> = (0..3).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    let kicks = || kicked.swap(0, Ordering::Relaxed);
    set.set_intr(true);
    assert_eq!(kicks(), 0, "all are awake");
    set.set_intr(false);
    cpus.iter_mut().for_each(|cpu| assert!(cpu.arm().is_idle()));
    set.set_intr(false);
    assert_eq!(kicks(), 0, "nothing came");
    set.set_intr(true);
    assert_eq!(kicks(), 0b001);
    set.set_intr(true);
    assert_eq!(kicks(), 0, "once");
    assert!(cpus[0].arm().extint, "it must not sleep");
    set.set_lint(VcpuId(2), Lint::Lint1, true);
    assert_eq!(kicks(), 0b100, "to look at its pin");
}

#[test]
fn the_performance_counters_entry_masks_itself() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(LVT_PERFORMANCE, 0x400);
    assert_eq!(cpu.deliver_local(slot::LVT_PERFORMANCE), Delivery::Delivered(1));
    assert_eq!((cpu.take_nmi(), cpu.read(LVT_PERFORMANCE)), (true, 0x400 | MASKED));
    assert_eq!(cpu.deliver_local(slot::LVT_PERFORMANCE), Delivery::Ignored);
    // The thermal sensor's does not.
    cpu.write(0x330, 0x41);
    for _ in 0..2 {
        assert_eq!(cpu.deliver_local(slot::LVT_THERMAL), Delivery::Delivered(1));
        assert_eq!((cpu.acknowledge(), cpu.read(0x330)), (Some(0x41), 0x41));
        cpu.eoi();
    }
    // What is not taken does not mask it.
    cpu.write(LVT_PERFORMANCE, 0x700);
    assert_eq!(cpu.deliver_local(slot::LVT_PERFORMANCE), Delivery::Coalesced, "KVM takes no ExtINT from here");
    assert_eq!(cpu.read(LVT_PERFORMANCE), 0x700);
}

#[test]
fn a_level_and_an_edge_of_a_pin_are_saved() {
    let (set, mut cpus) = machine(1);
    cpus[0].write(LINT0, 0x51 | LEVEL);
    cpus[0].write(LINT1, 0x400);
    set.set_lint(VcpuId(0), Lint::Lint0, true);
    set.set_lint(VcpuId(0), Lint::Lint1, true);
    set.set_lint(VcpuId(0), Lint::Lint1, false);
    let state = cpus[0].save();
    let (_set, mut cpus) = machine(1);
    cpus[0].restore(&state).unwrap();
    let work = cpus[0].next();
    assert_eq!((work.nmi, work.interrupt), (true, Some(0x51)));
}
