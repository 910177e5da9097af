use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::{Delivery, Kick};

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
fn a_private_half_is_lent_once() {
    let set = ApicSet::new(1, Arc::new(()), ApicOptions::default());
    let cpu = set.local(VcpuId(0)).unwrap();
    assert!(set.local(VcpuId(0)).is_none());
    assert!(set.local(VcpuId(1)).is_none());
    drop(cpu);
    assert!(set.local(VcpuId(0)).is_some());
}
