//! H23: an interrupt that goes to another vCPU is never lost, and never in two queues. C27 with it.

use super::*;

fn pend_against_retarget(cripple: Cripple) {
    check(3, move || {
        let rig = Rig::new(2, cripple);
        let (mut old, mut new) = (rig.cpu(0), rig.cpu(1));
        let device = spawn(&rig, Rig::pend);
        let guest = spawn(&rig, |rig| rig.target(1));
        let mut taken = u32::from(take(&mut old));
        device.join().unwrap();
        guest.join().unwrap();
        assert!(!take(&mut old), "it is routed elsewhere");
        taken += u32::from(take(&mut new));
        assert_eq!(taken, 1, "once");
        assert!(!take(&mut new), "not twice");
    });
}

#[test]
fn h23_an_edge_against_a_new_route() {
    pend_against_retarget(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "once")]
fn h23_who_pushes_and_does_not_look_again_is_noticed() {
    pend_against_retarget(Cripple::NoLookAfterPush);
}

#[test]
#[should_panic(expected = "once")]
fn h23_a_route_that_leaves_it_where_it_is_is_noticed() {
    pend_against_retarget(Cripple::NoRequeue);
}

/// Pending already; two calls move it, and the first vCPU looks.
fn two_routes(cripple: Cripple) {
    check(3, move || {
        let rig = Rig::new(2, cripple);
        let (mut old, mut new) = (rig.cpu(0), rig.cpu(1));
        rig.pend();
        let away = spawn(&rig, |rig| rig.target(1));
        let also = spawn(&rig, |rig| rig.set(|state| state.with_priority(0x40)));
        // It files what has come, and takes nothing.
        let _ = new.line();
        away.join().unwrap();
        also.join().unwrap();
        assert!(!take(&mut old), "it is routed elsewhere");
        assert!(take(&mut new) && !take(&mut new), "once");
        // The lists are whole: what comes next is found.
        rig.pend();
        assert!(take(&mut new) && !take(&mut new));
        rig.target(0);
        rig.pend();
        assert!(take(&mut old) && !take(&mut old));
    });
}

#[test]
fn h23_two_calls_that_move_it() {
    two_routes(Cripple::Nothing);
}

#[test]
#[should_panic]
fn h23_a_mark_that_is_cleared_without_the_lock_is_noticed() {
    two_routes(Cripple::UnqueuesWithoutLock);
}

fn any_against_leaving(cripple: Cripple) {
    check(3, move || {
        let rig = Rig::new(2, cripple);
        let (mut first, mut second) = (rig.cpu(0), rig.cpu(1));
        // vCPU 1 is the next in turn, and leaves.
        rig.set(|state| state.with_any(true));
        let device = spawn(&rig, Rig::pend);
        second.write(IccRegister::Igrpen1, 0);
        device.join().unwrap();
        assert!(!take(&mut second), "it has left");
        assert!(take(&mut first), "stuck");
        assert!(!take(&mut first), "not twice");
    });
}

#[test]
fn c27_one_that_any_may_take_leaves_with_its_vcpu() {
    any_against_leaving(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "stuck")]
fn c27_a_vcpu_that_keeps_what_it_refuses_is_noticed() {
    any_against_leaving(Cripple::KeepsWhatItRefuses);
}

fn any_against_coming(cripple: Cripple) {
    check(3, move || {
        let rig = Rig::new(1, cripple);
        let mut cpu = rig.gic.cpu_interface(VcpuId(0)).unwrap();
        cpu.write(IccRegister::Pmr, 0xff);
        rig.set(|state| state.with_any(true));
        let device = spawn(&rig, Rig::pend);
        cpu.write(IccRegister::Igrpen1, 1);
        device.join().unwrap();
        assert!(take(&mut cpu), "stuck");
        assert!(!take(&mut cpu), "not twice");
    });
}

#[test]
fn c27_one_that_nobody_would_take_is_taken_by_the_first_that_comes() {
    any_against_coming(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "stuck")]
fn c27_a_choice_made_too_early_is_noticed() {
    any_against_coming(Cripple::ChoosesTooEarly);
}
