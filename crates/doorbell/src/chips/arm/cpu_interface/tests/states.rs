//! The state machine of one interrupt as a CPU interface sees it: C10 to C30.

use super::rig::{A, B, C, Rig};
use crate::chips::arm::{Ended, Group, IccRegister, Lines};

const NONE: u32 = 1023;

fn split_end(rig: &mut Rig) {
    rig.write(IccRegister::Ctlr, 2);
}

#[test]
fn c10_c11_a_disabled_interrupt_is_latched_and_comes_when_it_is_enabled() {
    let mut rig = Rig::new(1);
    rig.change(0, A, |state| state.with_enabled(false));
    rig.pend(A);
    assert_eq!((rig.pending_active(A), rig.hppir1()), ((true, false), NONE));
    rig.change(0, A, |state| state.with_enabled(true));
    assert_eq!(rig.hppir1(), A);
}

#[test]
fn c12_a_cleared_latch_is_gone_and_a_high_level_is_not() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!(rig.hppir1(), A);
    rig.change(0, A, |state| state.with_latch(false));
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE));
    rig.level(A);
    rig.set_line(A, true);
    rig.change(0, A, |state| state.with_latch(false));
    assert_eq!(rig.hppir1(), A);
    rig.set_line(A, false);
    assert_eq!(rig.hppir1(), NONE);
}

#[test]
fn c13_c14_c15_an_edge_from_acknowledge_to_end() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.pending_active(A), rig.rpr()), (A, (false, true), 0xa0));
    rig.pend(A);
    assert_eq!(rig.pending_active(A), (true, true), "C14");
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE), "C14");
    assert_eq!(rig.eoir1(A), Some(Ended { intid: A, pin: None }), "an edge has nothing to resample");
    assert_eq!((rig.pending_active(A), rig.rpr()), ((true, false), 0xff), "C15");
    assert_eq!(rig.iar1(), A, "C15: signalled again");
    rig.eoir1(A);
    assert_eq!((rig.pending_active(A), rig.iar1()), ((false, false), NONE));
}

#[test]
fn c13_a_level_stays_pending_while_it_is_high() {
    let mut rig = Rig::new(1);
    rig.level(A);
    rig.set_line(A, true);
    assert_eq!((rig.iar1(), rig.pending_active(A)), (A, (true, true)));
    assert_eq!(rig.iar1(), NONE);
    assert_eq!(rig.eoir1(A), Some(Ended { intid: A, pin: Some(8) }), "SPI = pin + 32");
    assert_eq!(rig.iar1(), A, "still high");
    rig.set_line(A, false);
    assert_eq!(rig.pending_active(A), (false, true));
    assert_eq!(rig.eoir1(A), Some(Ended { intid: A, pin: Some(8) }));
    assert_eq!(rig.iar1(), NONE);
}

#[test]
fn c13_an_acknowledge_takes_a_levels_latch_with_it() {
    let mut rig = Rig::new(1);
    rig.level(A);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.pending_active(A)), (A, (false, true)));
}

/// Seen on Linux 6.1: GICR_ISPENDR keeps the bit of an acknowledged PPI until its end, and a store meanwhile is lost.
#[test]
fn in_kvm_a_levels_latch_goes_with_the_end() {
    let mut rig = Rig::kvm(1);
    rig.level(A);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.pending_active(A)), (A, (true, true)));
    rig.pend(A);
    assert_eq!(rig.eoir1(A), Some(Ended { intid: A, pin: Some(8) }));
    assert_eq!((rig.iar1(), rig.pending_active(A)), (NONE, (false, false)));
    // An edge loses its latch when it is acknowledged, in KVM too.
    rig.change(0, A, |state| state.with_edge(true));
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.pending_active(A)), (A, (false, true)));
}

#[test]
fn c16_c17_with_split_ends_the_priority_drops_first() {
    let mut rig = Rig::new(1);
    split_end(&mut rig);
    rig.level(A);
    rig.set_line(A, true);
    assert_eq!(rig.iar1(), A);
    assert_eq!(rig.eoir1(A), None, "C16: nothing ended");
    assert_eq!((rig.rpr(), rig.pending_active(A)), (0xff, (true, true)), "C16");
    assert_eq!(rig.iar1(), NONE, "active");
    assert_eq!(rig.cpus[0].deactivate(A), Some(Ended { intid: A, pin: Some(8) }), "C17");
    assert_eq!(rig.cpus[0].deactivate(A), None, "once");
    assert_eq!(rig.iar1(), A);
}

#[test]
fn c18_a_deactivation_without_split_ends_is_ignored() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!(rig.iar1(), A);
    assert_eq!(rig.cpus[0].deactivate(A), None);
    assert_eq!(rig.pending_active(A), (false, true));
}

#[test]
fn c19_ends_out_of_order_drop_the_highest_active_priority_and_end_what_they_name() {
    let mut rig = Rig::new(1);
    rig.priority(B, 0x80);
    rig.priority(C, 0x40);
    let mut taken = Vec::new();
    for intid in [A, B, C] {
        rig.pend(intid);
        taken.push((rig.iar1(), rig.rpr()));
    }
    assert_eq!(taken, [(A, 0xa0), (B, 0x80), (C, 0x40)]);
    // The least urgent first: 0x40 is dropped all the same.
    assert_eq!(rig.eoir1(A).map(|it| it.intid), Some(A));
    assert_eq!((rig.rpr(), rig.pending_active(C)), (0x80, (false, true)));
    // One that is inactive already: another priority is dropped, nothing ends.
    assert_eq!(rig.eoir1(A), None);
    assert_eq!(rig.rpr(), 0xa0);
    assert_eq!(rig.eoir1(B).map(|it| it.intid), Some(B));
    assert_eq!(rig.rpr(), 0xff);
    // Nothing is active any more in this interface: an end does nothing, and C can only be deactivated otherwise.
    assert_eq!(rig.eoir1(C), None);
    assert_eq!(rig.pending_active(C), (false, true));
    split_end(&mut rig);
    assert_eq!(rig.cpus[0].deactivate(C).map(|it| it.intid), Some(C));
}

#[test]
fn c19_an_end_without_an_acknowledge_does_nothing() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    for intid in [A, B, 0, 31, 1019, 8192, 65535, 0xff_ffff, u32::MAX] {
        assert_eq!(rig.eoir1(intid), None, "{intid:#x}");
        assert_eq!(rig.cpus[0].deactivate(intid), None, "{intid:#x}");
    }
    assert_eq!((rig.pending_active(A), rig.rpr(), rig.iar1()), ((true, false), 0xff, A));
}

#[test]
fn the_special_numbers_and_those_of_nothing_end_nothing() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!(rig.iar1(), A);
    for intid in [1020, 1021, 1022, 1023, 1024, 8191, 65536, 0xff_ffff] {
        assert_eq!(rig.eoir1(intid), None, "{intid}");
        assert_eq!(rig.rpr(), 0xa0, "{intid}");
    }
}

#[test]
fn c20_equals_come_by_their_number_whatever_their_group() {
    let mut rig = Rig::new(1);
    for intid in [C, A, B] {
        rig.pend(intid);
    }
    rig.change(0, B, |state| state.with_group1(false));
    assert_eq!(rig.iar1(), A);
    rig.eoir1(A);
    assert_eq!(rig.iar1(), NONE, "C24: the next is of Group 0");
    assert_eq!(rig.iar0(), B);
    assert_eq!(rig.cpus[0].end(Group::Zero, B).map(|it| it.intid), Some(B));
    assert_eq!(rig.iar1(), C);
}

#[test]
fn c21_only_a_more_urgent_group_priority_preempts() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!(rig.iar1(), A);
    rig.pend(B);
    assert_eq!((rig.hppir1(), rig.iar1()), (B, NONE), "the same priority waits, and is seen");
    rig.priority(B, 0x98);
    assert_eq!(rig.iar1(), B);
    assert_eq!(rig.rpr(), 0x98);
    // Bits below the binary point do not preempt: with 5, group priorities are multiples of 32.
    rig.write(IccRegister::Bpr1, 5);
    rig.priority(C, 0x88);
    rig.pend(C);
    rig.eoir1(B);
    assert_eq!(rig.rpr(), 0xa0);
    assert_eq!((rig.iar1(), rig.rpr()), (C, 0x80), "0x88 runs at 0x80");
}

#[test]
fn c21_a_binary_point_keeps_neighbours_from_preempting() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Bpr1, 5);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.rpr()), (A, 0xa0));
    rig.priority(B, 0xa0);
    rig.priority(C, 0x98);
    rig.pend(B);
    assert_eq!(rig.iar1(), NONE);
    rig.pend(C);
    assert_eq!(rig.iar1(), C, "0x98 is in the group of 0x80");
}

#[test]
fn cbpr_makes_group_1_use_the_binary_point_of_group_0() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Bpr0, 7);
    rig.write(IccRegister::Ctlr, 1);
    rig.priority(B, 0x20);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.rpr()), (A, 0), "no bit of the priority preempts");
    rig.pend(B);
    assert_eq!(rig.iar1(), NONE);
    rig.eoir1(A);
    assert_eq!(rig.iar1(), B);
}

#[test]
fn c22_c23_the_priority_mask_hides_from_acknowledge_and_not_from_hppir() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Pmr, 0x90);
    rig.pend(A);
    assert_eq!((rig.hppir1(), rig.iar1()), (A, NONE));
    assert_eq!(rig.cpus[0].line(), Lines::default());
    rig.priority(B, 0x80);
    rig.pend(B);
    assert_eq!(rig.iar1(), B);
    rig.eoir1(B);
    rig.write(IccRegister::Pmr, 0xa0);
    assert_eq!(rig.iar1(), NONE, "it must be below the mask");
    rig.write(IccRegister::Pmr, 0xa8);
    assert_eq!(rig.iar1(), A);
}

#[test]
fn the_least_priority_is_never_signalled() {
    let mut rig = Rig::new(1);
    rig.priority(A, 0xf8);
    rig.pend(A);
    assert_eq!((rig.hppir1(), rig.iar1()), (A, NONE), "the mask is 0xf8 at most");
}

#[test]
fn c24_group_0_is_seen_by_the_registers_of_group_0_alone() {
    let mut rig = Rig::new(1);
    rig.change(0, A, |state| state.with_group1(false));
    rig.pend(A);
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE));
    assert_eq!(rig.read(IccRegister::Hppir0), u64::from(A));
    assert_eq!(rig.cpus[0].line(), Lines { irq: false, fiq: true });
    assert_eq!(rig.read(IccRegister::Iar0), u64::from(A));
    assert_eq!(rig.eoir1(A), None, "the end of the other group does nothing");
    assert_eq!((rig.pending_active(A), rig.rpr()), ((false, true), 0xa0));
    assert_eq!(rig.cpus[0].write(IccRegister::Eoir0, u64::from(A)), Some(Ended { intid: A, pin: None }));
}

#[test]
fn the_more_urgent_group_hides_the_other() {
    let mut rig = Rig::new(1);
    rig.change(0, A, |state| state.with_group1(false).with_priority(0x80));
    rig.pend(A);
    rig.pend(B);
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE));
    rig.write(IccRegister::Igrpen0, 0);
    assert_eq!((rig.hppir1(), rig.iar1()), (B, B), "what is disabled hides nothing");
}

#[test]
fn c25_a_group_that_is_disabled_keeps_what_is_pending() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    rig.write(IccRegister::Igrpen1, 0);
    assert_eq!((rig.hppir1(), rig.iar1()), (NONE, NONE));
    assert_eq!(rig.cpus[0].line(), Lines::default());
    rig.write(IccRegister::Igrpen1, 1);
    assert_eq!(rig.cpus[0].line(), Lines { irq: true, fiq: false });
    assert_eq!(rig.iar1(), A);
}

#[test]
fn c26_c28_a_pending_interrupt_moves_and_an_active_one_stays() {
    let mut rig = Rig::new(2);
    rig.pend(A);
    assert_eq!(rig.iar1(), A);
    rig.pend(A);
    rig.change(0, A, |state| state.with_target(1));
    assert_eq!(rig.cpus[1].acknowledge(Group::One), NONE, "C28: it is active on vCPU 0");
    assert_eq!(rig.eoir1(A).map(|it| it.intid), Some(A));
    assert_eq!(rig.iar1(), NONE, "C26");
    assert_eq!(rig.cpus[1].acknowledge(Group::One), A, "C26");
}

#[test]
fn c29_the_distributors_group_enable_stops_signals_and_not_states() {
    let mut rig = Rig::new(1);
    rig.set_groups(1);
    rig.pend(A);
    assert_eq!((rig.iar1(), rig.hppir1(), rig.pending_active(A)), (NONE, NONE, (true, false)));
    rig.set_groups(2);
    assert_eq!(rig.iar1(), A);
}

#[test]
fn a_sleeping_redistributor_hands_nothing_over_and_loses_nothing() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    rig.set_awake(0, false);
    assert_eq!((rig.iar1(), rig.hppir1(), rig.cpus[0].line()), (NONE, NONE, Lines::default()));
    rig.set_awake(0, true);
    assert_eq!(rig.iar1(), A);
}

#[test]
fn any_vcpu_may_deactivate_an_spi_and_none_the_private_interrupt_of_another() {
    let mut rig = Rig::new(2);
    for cpu in &mut rig.cpus {
        cpu.write(IccRegister::Ctlr, 2);
    }
    rig.pend(A);
    rig.pend(3);
    assert_eq!([rig.iar1(), rig.rpr().into()], [3, 0xa0]);
    rig.eoir1(3);
    assert_eq!(rig.iar1(), A);
    assert_eq!(rig.cpus[1].deactivate(3), None);
    assert!(rig.state(0, 3).active());
    assert_eq!(rig.cpus[1].deactivate(A).map(|it| it.intid), Some(A));
}
