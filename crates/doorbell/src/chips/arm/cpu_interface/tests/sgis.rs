//! Software-generated interrupts: C31 to C35, affinities, the range selector.

use super::rig::Rig;
use crate::chips::arm::{Affinity, GicOptions, Group, IccRegister};

const SGI: u64 = 3;
const NONE: u32 = 1023;

/// TargetList, at Aff 0.0.0 and range 0.
fn to(targets: u64) -> u64 {
    SGI << 24 | targets
}

const ALL_BUT_SELF: u64 = SGI << 24 | 1 << 40;

/// The vCPUs on which the SGI is pending.
fn pending(rig: &Rig) -> Vec<usize> {
    (0..rig.cpus.len()).filter(|&index| rig.state(index, SGI as u32).latch()).collect()
}

#[test]
fn c31_a_disabled_sgi_is_latched() {
    let mut rig = Rig::new(1);
    rig.change(0, 3, |state| state.with_enabled(false));
    rig.write(IccRegister::Sgi1r, to(1));
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE));
    rig.change(0, 3, |state| state.with_enabled(true));
    assert_eq!(rig.iar1(), 3);
}

#[test]
fn c32_sent_twice_while_active_it_comes_once_more() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Sgi1r, to(1));
    assert_eq!(rig.iar1(), 3);
    rig.write(IccRegister::Sgi1r, to(1));
    rig.write(IccRegister::Sgi1r, to(1));
    assert_eq!(rig.iar1(), NONE);
    assert!(rig.eoir1(3).is_some());
    assert_eq!(rig.iar1(), 3);
    rig.eoir1(3);
    assert_eq!(rig.iar1(), NONE);
}

#[test]
fn c33_all_but_self() {
    let mut rig = Rig::new(3);
    rig.cpus[1].write(IccRegister::Sgi1r, ALL_BUT_SELF | 0xffff);
    assert_eq!(pending(&rig), [0, 2], "the list does not count");
}

#[test]
fn c34_each_register_raises_its_own_group() {
    let mut rig = Rig::new(2);
    rig.change(1, 3, |state| state.with_group1(false));
    rig.write(IccRegister::Sgi1r, to(3));
    assert_eq!(pending(&rig), [0], "C34");
    for register in [IccRegister::Sgi0r, IccRegister::Asgi1r] {
        let mut rig = Rig::new(2);
        rig.change(1, 3, |state| state.with_group1(false));
        rig.write(register, to(3));
        assert_eq!(pending(&rig), [1], "{register:?}");
        assert_eq!(rig.cpus[1].acknowledge(Group::Zero), 3);
    }
}

#[test]
fn c35_as_in_kvm_a_request_for_group_1_raises_either() {
    let mut rig = Rig::kvm(2);
    rig.change(1, 3, |state| state.with_group1(false));
    rig.write(IccRegister::Sgi1r, to(3));
    assert_eq!(pending(&rig), [0, 1]);
    let mut rig = Rig::kvm(2);
    rig.change(1, 3, |state| state.with_group1(false));
    rig.write(IccRegister::Sgi0r, to(3));
    assert_eq!(pending(&rig), [1], "and one for Group 0 only that");
}

#[test]
fn a_list_names_sixteen_vcpus_of_one_cluster() {
    let mut rig = Rig::new(40);
    rig.write(IccRegister::Sgi1r, to(0x8001) | 1 << 16);
    assert_eq!(pending(&rig), [16, 31]);
    rig.write(IccRegister::Sgi1r, to(0xffff) | 2 << 16);
    assert_eq!(pending(&rig), [16, 31, 32, 33, 34, 35, 36, 37, 38, 39], "and those that there are not are left out");
    rig.write(IccRegister::Sgi1r, to(0xffff) | 3 << 16);
    rig.write(IccRegister::Sgi1r, to(0xffff) | 1 << 32);
    assert_eq!(pending(&rig).len(), 10);
}

#[test]
fn four_levels_of_affinity_and_the_range_selector() {
    let name = Affinity::new(7, 5, 3, 0x42);
    let sgi = SGI << 24 | 7 << 48 | 5 << 32 | 3 << 16 | 4 << 44 | 1 << 2;
    let options = |behaviour| {
        let mut options = GicOptions::new(1);
        options.affinities = vec![Affinity::new(0, 0, 0, 0), name, Affinity::new(7, 5, 3, 2)];
        options.behaviour = behaviour;
        options
    };
    let mut rig = Rig::with(options(Default::default()));
    rig.write(IccRegister::Sgi1r, sgi);
    assert_eq!(pending(&rig), [1]);
    // Without a range selector its bits are ignored.
    let mut rig = Rig::with(options(crate::chips::arm::Behaviour::KVM));
    rig.write(IccRegister::Sgi1r, sgi);
    assert_eq!(pending(&rig), [2]);
}

#[test]
fn h_c4_a_broadcast_is_latched_for_who_sleeps() {
    let mut rig = Rig::new(3);
    rig.set_awake(2, false);
    assert!(rig.cpus[2].arm().is_idle());
    rig.write(IccRegister::Sgi1r, ALL_BUT_SELF);
    assert_eq!(*rig.kicks.lock(), [2], "the redistributor asks for its vCPU to be woken");
    assert_eq!(rig.cpus[2].acknowledge(Group::One), NONE);
    rig.set_awake(2, true);
    assert_eq!(rig.cpus[2].acknowledge(Group::One), 3);
}

#[test]
fn five_hundred_and_twelve_vcpus_are_told_apart() {
    let mut rig = Rig::new(512);
    rig.cpus[511].write(IccRegister::Sgi1r, ALL_BUT_SELF);
    assert_eq!(pending(&rig), (0..511).collect::<Vec<_>>());
    rig.write(IccRegister::Sgi1r, to(1 << 15) | 31 << 16);
    assert_eq!(rig.cpus[511].acknowledge(Group::One), 3);
    assert_eq!(rig.cpus[511].acknowledge(Group::One), NONE);
}
