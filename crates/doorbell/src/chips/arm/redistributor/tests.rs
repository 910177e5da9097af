//! The rows of the page on the redistributors. What KVM and QEMU answer was recorded on them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    chips::arm::{Affinity, Behaviour, CpuInterface, GicOptions, Group, IccRegister},
    guest_ram::RamBlock,
};

fn gic_with(options: GicOptions) -> Arc<Gic> {
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    gic.attach_its();
    gic
}

fn kvm() -> Arc<Gic> {
    let mut options = GicOptions::new(2);
    (options.intids, options.behaviour, options.identity) = (96, Behaviour::KVM, Identity::Kvm);
    gic_with(options)
}

fn qemu() -> Arc<Gic> {
    let mut options = GicOptions::new(2);
    (options.intids, options.identity) = (256, Identity::Qemu);
    gic_with(options)
}

/// The frames, word by word, as runs of equal words, without GICR_PROPBASER and GICR_PENDBASER.
fn frames(gic: &Gic, vcpu: u32) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for offset in (0..STRIDE).step_by(4).filter(|offset| !(0x70..0x80).contains(offset)) {
        let value = gic.redistributor(VcpuId(vcpu)).unwrap().read(offset, 4);
        if runs.last().is_none_or(|run| run.1 != value) {
            runs.push((offset, value));
        }
    }
    runs
}

#[test]
fn after_reset_the_frames_are_those_of_kvm() {
    let expected = [
        (0x00000, 6),
        (0x00004, 0x4b00_043b),
        (0x00008, 0x111),
        (0x0000c, 1),
        (0x00010, 0),
        (0x0ffe8, 0x3b),
        (0x0ffec, 0),
        (0x10080, 0xffff_ffff),
        (0x10084, 0),
        (0x10100, 0xffff),
        (0x10104, 0),
        (0x10180, 0xffff),
        (0x10184, 0),
        (0x10c00, 0xaaaa_aaaa),
        (0x10c04, 0),
    ];
    assert_eq!(frames(&kvm(), 1), expected, "C4, C4a, C7, C9, C9a");
}

#[test]
fn after_reset_the_frames_are_those_of_qemu() {
    let expected = [
        (0x00000, 2),
        (0x00004, 0x43b),
        (0x00008, 0x100_0111),
        (0x0000c, 1),
        (0x00010, 0),
        (0x00014, 6),
        (0x00018, 0),
        (0x0ffd0, 0x44),
        (0x0ffd4, 0),
        (0x0ffe0, 0x93),
        (0x0ffe4, 0xb4),
        (0x0ffe8, 0x3b),
        (0x0ffec, 0),
        (0x0fff0, 0xd),
        (0x0fff4, 0xf0),
        (0x0fff8, 0x5),
        (0x0fffc, 0xb1),
        (0x10000, 0),
        (0x10c00, 0xaaaa_aaaa),
        (0x10c04, 0),
    ];
    assert_eq!(frames(&qemu(), 1), expected);
}

#[test]
fn stores_of_ones_leave_what_was_recorded() {
    let ones = |gic: &Gic| {
        let redistributor = gic.redistributor(VcpuId(0)).unwrap();
        (SGI_FRAME..STRIDE).step_by(4).for_each(|offset| redistributor.write(offset, 4, u32::MAX.into()));
        frames(gic, 0).into_iter().filter(|run| run.0 >= SGI_FRAME).collect::<Vec<_>>()
    };
    // KVM's PPIs keep their trigger.
    let expected = |priority, ppis| {
        vec![
            (0x10080, 0xffff_ffff),
            (0x10084, 0),
            (0x10400, priority),
            (0x10420, 0),
            (0x10c00, 0xaaaa_aaaa),
            (0x10c04, ppis),
        ]
    };
    assert_eq!(ones(&kvm()), expected(0xf8f8_f8f8, 0));
    let mut qemu = ones(&qemu());
    assert_eq!(qemu.remove(0), (0x10000, 0), "what is before is an identification register");
    let mut ours = expected(0xf8f8_f8f8, 0);
    ours.pop();
    ours.push((0x10c08, 0));
    assert_eq!(qemu, ours, "C5: QEMU itself keeps eight bits of priority");
}

#[test]
fn c4_the_trigger_of_an_sgi_is_an_edge_for_ever() {
    let gic = qemu();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    redistributor.write(SGI_FRAME + 0xc00, 4, 0);
    assert_eq!(redistributor.read(SGI_FRAME + 0xc00, 4), 0xaaaa_aaaa);
    redistributor.write(SGI_FRAME + 0xc04, 4, 8);
    assert_eq!(redistributor.read(SGI_FRAME + 0xc04, 4), 8, "that of a PPI can be chosen");
}

#[test]
fn c7_children_follow_at_once() {
    let gic = qemu();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    for (stored, read) in [(0, 0), (4, 0), (2, 6), (0xffff_fffd, 0), (0xffff_ffff, 6)] {
        redistributor.write(WAKER, 4, stored);
        assert_eq!(redistributor.read(WAKER, 4), read, "{stored:#x}");
    }
    let gic = kvm();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    redistributor.write(WAKER, 4, 2);
    assert_eq!(redistributor.read(WAKER, 4), 0, "KVM's are always awake");
}

#[test]
fn c9_the_last_of_each_region_says_so() {
    let gic = kvm();
    let typer = |vcpu| gic.redistributor(VcpuId(vcpu)).unwrap().read(TYPER, 8);
    assert_eq!([typer(0), typer(1)], [1, 0x1_0000_0111]);
    gic.set_last_of_region(VcpuId(0), true);
    assert_eq!(typer(0), 0x11, "two regions");
    gic.set_last_of_region(VcpuId(1), false);
    gic.set_last_of_region(VcpuId(2), true);
    assert_eq!(typer(1), 0x1_0000_0101);
}

#[test]
fn the_type_has_the_name_of_the_vcpu_in_all_four_levels() {
    let mut options = GicOptions::new(2);
    options.affinities[1] = Affinity::new(4, 3, 2, 1);
    let gic = gic_with(options);
    let redistributor = gic.redistributor(VcpuId(1)).unwrap();
    assert_eq!(redistributor.read(TYPER, 8), 0x0403_0201_0000_0111);
    assert_eq!([redistributor.read(TYPER, 4), redistributor.read(TYPER + 4, 4)], [0x111, 0x0403_0201]);
    for (offset, bytes) in [(TYPER, 1), (TYPER + 4, 8), (TYPER + 2, 4), (TYPER, 16)] {
        assert_eq!(redistributor.read(offset, bytes), 0);
    }
}

#[test]
fn each_vcpu_has_sgis_and_ppis_of_its_own_and_nothing_beyond() {
    let gic = gic_with(GicOptions::new(2));
    let [first, second] = [0, 1].map(|vcpu| gic.redistributor(VcpuId(vcpu)).unwrap());
    first.write(SGI_FRAME + 0x100, 4, 0x8000_0001);
    first.write(SGI_FRAME + 0x400 + 31, 1, 0xff);
    assert_eq!([first, second].map(|it| it.read(SGI_FRAME + 0x100, 4)), [0x8000_0001, 0]);
    assert_eq!([first, second].map(|it| it.read(SGI_FRAME + 0x41c, 4)), [0xf800_0000, 0]);
    // SPI 32 is not here, nor is anything in what would be a third frame.
    first.write(SGI_FRAME + 0x104, 4, 1);
    first.write(STRIDE + 0x100, 4, 1);
    first.write(SGI_FRAME + STRIDE + 0x100, 4, 2);
    assert_eq!(first.read(SGI_FRAME + 0x104, 4), 0);
    assert_eq!(gic.distributor().read(0x104, 4), 0);
    assert_eq!(first.read(SGI_FRAME + 0x100, 4), 0x8000_0001);
}

/// A GIC whose kicks are recorded, and its vCPU 0, which sleeps as after reset but would take Group 1.
fn with_vcpu() -> (Arc<Gic>, CpuInterface, Arc<Mutex<Vec<u32>>>) {
    let kicks = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&kicks);
    let kick = move |vcpu: VcpuId| told.lock().push(vcpu.0);
    let gic = Gic::new(GicOptions::new(2), Arc::new(RamBlock::new(0, 0)), Arc::new(kick)).unwrap();
    let mut cpu = gic.cpu_interface(VcpuId(0)).unwrap();
    cpu.write(IccRegister::Pmr, 0xff);
    cpu.write(IccRegister::Igrpen1, 1);
    gic.redistributor(VcpuId(0)).unwrap().write(SGI_FRAME + 0x80, 4, u32::MAX.into());
    (gic, cpu, kicks)
}

/// ICC_SGI1R_EL1 that sends SGI 3 to vCPU 0.
const SGI_3: u64 = 3 << 24 | 1;

#[test]
fn h_c4_what_comes_for_a_vcpu_that_sleeps_waits_until_it_wakes_up() {
    let (gic, mut cpu, kicks) = with_vcpu();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    gic.distributor().write(0, 4, 2);
    redistributor.write(SGI_FRAME + 0x100, 4, 8);
    assert!(cpu.arm().is_idle());
    cpu.write(IccRegister::Sgi1r, SGI_3);
    assert_eq!(redistributor.read(SGI_FRAME + 0x200, 4), 8, "latched");
    assert_eq!((cpu.highest_pending(Group::One), cpu.acknowledge(Group::One)), (1023, 1023));
    assert!(cpu.arm().is_idle());
    kicks.lock().clear();
    redistributor.write(WAKER, 4, 0);
    assert_eq!(*kicks.lock(), [0]);
    assert_eq!(cpu.acknowledge(Group::One), 3);
}

#[test]
fn c29_while_its_group_is_not_forwarded_an_interrupt_changes_its_state_and_nothing_else() {
    let (gic, mut cpu, kicks) = with_vcpu();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    redistributor.write(WAKER, 4, 0);
    redistributor.write(SGI_FRAME + 0x100, 4, 8);
    gic.distributor().write(0, 4, 1);
    assert!(cpu.arm().is_idle());
    redistributor.write(SGI_FRAME + 0x200, 4, 8);
    assert_eq!(redistributor.read(SGI_FRAME + 0x200, 4), 8);
    assert_eq!(cpu.acknowledge(Group::One), 1023);
    assert!(cpu.arm().is_idle());
    kicks.lock().clear();
    gic.distributor().write(0, 4, 3);
    assert_eq!(*kicks.lock(), [0]);
    assert_eq!(cpu.acknowledge(Group::One), 3);
    gic.distributor().write(0, 4, 0);
    cpu.end(Group::One, 3);
    assert_eq!(redistributor.read(SGI_FRAME + 0x300, 4), 0);
}

#[test]
fn c31_and_c32_an_sgi_is_latched_while_disabled_and_once_while_active() {
    let (gic, mut cpu, _) = with_vcpu();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    gic.distributor().write(0, 4, 2);
    redistributor.write(WAKER, 4, 0);
    cpu.write(IccRegister::Sgi1r, SGI_3);
    assert_eq!(cpu.highest_pending(Group::One), 1023, "C31");
    redistributor.write(SGI_FRAME + 0x100, 4, 8);
    assert_eq!(cpu.acknowledge(Group::One), 3);
    cpu.write(IccRegister::Sgi1r, SGI_3);
    cpu.write(IccRegister::Sgi1r, SGI_3);
    let states = || [0x200, 0x300].map(|offset| redistributor.read(SGI_FRAME + offset, 4));
    assert_eq!((states(), cpu.acknowledge(Group::One)), ([8, 8], 1023), "active and pending");
    cpu.end(Group::One, 3);
    assert_eq!(cpu.acknowledge(Group::One), 3, "C32: one more");
    cpu.end(Group::One, 3);
    assert_eq!((states(), cpu.acknowledge(Group::One)), ([0, 0], 1023), "and no other");
}
