//! Save, restore and reset, as a guest sees the result.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    LineSource, PinInput, VcpuId,
    chips::arm::{Behaviour, CpuInterface, GicOptions, Group, IccRegister, line::CHIP},
    guest_ram::RamBlock,
};

fn options() -> GicOptions {
    let mut options = GicOptions::new(2);
    options.intids = 64;
    options
}

fn gic_with(options: GicOptions) -> Arc<Gic> {
    Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap()
}

/// A vCPU that takes Group 1.
fn ready(gic: &Arc<Gic>, vcpu: u32) -> CpuInterface {
    gic.redistributor(VcpuId(vcpu)).unwrap().write(0x14, 4, 0);
    let mut cpu = gic.cpu_interface(VcpuId(vcpu)).unwrap();
    cpu.write(IccRegister::Pmr, 0xff);
    cpu.write(IccRegister::Igrpen1, 1);
    cpu
}

/// SPIs 40 (a level that is high), 41 (an edge that came) and 42 (active) of vCPU 1, and its SGI 3.
fn busy() -> Arc<Gic> {
    let gic = gic_with(options());
    let distributor = gic.distributor();
    distributor.write(0, 4, 2);
    distributor.write(0x84, 4, u32::MAX.into());
    distributor.write(0x104, 4, 7 << 8);
    distributor.write(0xc08, 4, 2 << 18);
    for (intid, priority) in [(40, 0x80), (41, 0x40), (42, 0x20)] {
        distributor.write(0x400 + intid, 1, priority);
        distributor.write(0x6000 + 8 * intid, 8, 1);
    }
    distributor.write(0x6000 + 8 * 50, 8, 0xff_0000_0007);
    distributor.write(0x304, 4, 1 << 10);
    let redistributor = gic.redistributor(VcpuId(1)).unwrap();
    redistributor.write(0x1_0080, 4, u32::MAX.into());
    redistributor.write(0x1_0100, 4, 8);
    redistributor.write(0x1_0403, 1, 0xf0);
    redistributor.write(0x1_0200, 4, 8);
    gic.set(CHIP, 8, LineSource::USER, true);
    gic.set(CHIP, 8, LineSource::RESAMPLE, true);
    gic.pulse(CHIP, 9, LineSource::USER);
    gic
}

#[test]
fn what_was_saved_is_there_again_and_is_delivered() {
    let saved = busy().save();
    let other = gic_with(options());
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    let mut cpu = ready(&other, 1);
    let mut take = || cpu.acknowledge(Group::One);
    assert_eq!([take(), take(), take()], [41, 1023, 1023], "the others are of lower priority than what is active now");
    assert!(cpu.end(Group::One, 41).is_some());
    assert_eq!(cpu.acknowledge(Group::One), 40);
    other.set(CHIP, 8, LineSource::USER, false);
    cpu.end(Group::One, 40);
    assert_eq!(cpu.acknowledge(Group::One), 40, "another source still drives it");
    other.set(CHIP, 8, LineSource::RESAMPLE, false);
    cpu.end(Group::One, 40);
    assert_eq!(cpu.acknowledge(Group::One), 3);
    assert_eq!(other.distributor().read(0x304, 4), 1 << 10);
    assert_eq!(other.distributor().read(0x6000 + 8 * 50, 8), 0xff_0000_0007);
}

#[test]
fn a_restore_over_a_running_state_replaces_it() {
    let gic = busy();
    let mut cpu = ready(&gic, 1);
    let idle = gic_with(options()).save();
    gic.restore(&idle).unwrap();
    assert_eq!(gic.save(), idle);
    gic.redistributor(VcpuId(1)).unwrap().write(0x14, 4, 0);
    assert_eq!(cpu.acknowledge(Group::One), 1023);
}

#[test]
fn a_reset_leaves_the_lines_and_nothing_else() {
    let gic = busy();
    gic.reset();
    let mut expected = gic_with(options()).save();
    expected.spis[8].interrupt.line = true;
    expected.spis[8].sources = LineSource::USER.bit() | LineSource::RESAMPLE.bit();
    assert_eq!(gic.save(), expected);
    assert_eq!(gic.distributor().read(0x204, 4), 1 << 8);
}

#[test]
fn a_restore_wakes_who_waits_for_what_is_pending_in_it() {
    let saved = busy().save();
    let kicks = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&kicks);
    let kick = move |vcpu: VcpuId| told.lock().push(vcpu.0);
    let gic = Gic::new(options(), Arc::new(RamBlock::new(0, 0)), Arc::new(kick)).unwrap();
    let mut cpu = ready(&gic, 1);
    assert!(cpu.arm().is_idle());
    gic.restore(&saved).unwrap();
    assert_eq!(kicks.lock().first(), Some(&1));
}

#[test]
fn a_state_that_no_gic_can_be_in_is_refused_and_changes_nothing() {
    type Case = (fn() -> GicOptions, fn(&mut GicState), &'static str);
    let kvm = || GicOptions { behaviour: Behaviour::KVM, identity: Identity::Kvm, ..options() };
    let refused: [Case; 16] = [
        (options, |it| it.groups = 4, "cannot be forwarded"),
        (kvm, |it| it.groups = 1, "cannot be forwarded"),
        (options, |it| it.revision = 1, "no revision 1"),
        (kvm, |it| it.revision = 4, "no revision 4"),
        (options, |it| it.spis.truncate(31), "31 SPIs and 2 vCPUs, but this GIC has 32 and 2"),
        (options, |it| it.redistributors.truncate(1), "32 SPIs and 1 vCPUs"),
        (options, |it| it.spis[0].router = 1 << 24, "GICD_IROUTER of SPI 32"),
        (kvm, |it| it.spis[1].router = 1 << 31, "GICD_IROUTER of SPI 33"),
        (options, |it| it.spis[2].sources = 1, "line of SPI 34"),
        (options, |it| it.spis[2].interrupt.line = true, "line of SPI 34"),
        (kvm, |it| it.spis[2].sources = 1, "line of SPI 34"),
        (options, |it| it.spis[3].interrupt.priority = 4, "priority of INTID 35"),
        (options, |it| it.redistributors[1].private[0].edge = false, "vCPU 1: INTID 0"),
        (kvm, |it| it.redistributors[0].private[16].edge = true, "vCPU 0: INTID 16"),
        (kvm, |it| it.redistributors[1].asleep = true, "always awake"),
        (options, |it| it.lpis.redistributors.clear(), "0 redistributors"),
    ];
    for (options, change, expected) in refused {
        let gic = gic_with(options());
        let before = gic.save();
        let mut state = before.clone();
        // What a restore would show if it went half the way.
        state.spis[31].interrupt.latched = true;
        state.redistributors[0].private[31].latched = true;
        change(&mut state);
        let error = gic.restore(&state).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(gic.save(), before, "{expected}");
    }
}
