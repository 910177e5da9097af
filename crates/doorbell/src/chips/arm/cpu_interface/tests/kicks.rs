//! Who is woken, and when.

use super::rig::{A, B, C, Rig};
use crate::chips::arm::{Group, IccRegister, Lines};

#[test]
fn who_armed_and_saw_nothing_is_woken_once() {
    let mut rig = Rig::new(2);
    assert!(rig.cpus[0].arm().is_idle());
    rig.pend(A);
    rig.pend(B);
    assert_eq!(*rig.kicks.lock(), [0]);
    assert_eq!(rig.cpus[0].line(), Lines { irq: true, fiq: false });
}

#[test]
fn who_arms_too_late_sees_it() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    assert_eq!(rig.cpus[0].arm(), Lines { irq: true, fiq: false });
    rig.cpus[0].disarm();
    rig.pend(B);
    assert!(rig.kicks.lock().is_empty());
}

/// A name, what comes before, and what must wake.
type Way = (&'static str, fn(&mut Rig), fn(&mut Rig));

#[test]
fn each_way_to_become_deliverable_wakes() {
    let ways: [Way; 5] = [
        (
            "enabled",
            |rig| rig.change(0, A, |it| it.with_enabled(false)),
            |rig| rig.change(0, A, |it| it.with_enabled(true)),
        ),
        ("the distributor's group", |rig| rig.set_groups(0), |rig| rig.set_groups(3)),
        ("awake", |rig| rig.set_awake(0, false), |rig| rig.set_awake(0, true)),
        ("routed here", |rig| rig.change(0, A, |it| it.with_target(1)), |rig| rig.change(0, A, |it| it.with_target(0))),
        (
            "inactive",
            |rig| rig.change(0, A, |it| it.with_active(true)),
            |rig| rig.change(0, A, |it| it.with_active(false)),
        ),
    ];
    for (name, before, then) in ways {
        let mut rig = Rig::new(2);
        before(&mut rig);
        rig.pend(A);
        assert!(rig.cpus[0].arm().is_idle(), "{name}");
        rig.kicks.lock().clear();
        then(&mut rig);
        assert_eq!(*rig.kicks.lock(), [0], "{name}");
        assert!(rig.cpus[0].line().irq, "{name}");
    }
}

#[test]
fn a_new_priority_wakes_who_sleeps_behind_its_mask() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Pmr, 0x80);
    rig.pend(A);
    assert!(rig.cpus[0].arm().is_idle());
    rig.priority(A, 0x40);
    assert_eq!(*rig.kicks.lock(), [0]);
    assert!(rig.cpus[0].line().irq);
}

/// In a handler, the most urgent interrupt need not be one that preempts: its group may have the finer binary point.
#[test]
fn who_sleeps_in_a_handler_is_woken_when_what_stood_in_the_way_of_others_goes() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Bpr1, 7);
    for intid in [A, B] {
        rig.change(0, intid, |it| it.with_group1(false).with_priority(0x70));
    }
    rig.priority(C, 0x78);
    rig.pend(A);
    assert_eq!(rig.cpus[0].acknowledge(Group::Zero), A);
    rig.pend(B);
    rig.pend(C);
    assert!(rig.cpus[0].arm().is_idle(), "B is the most urgent, and as urgent as A");
    assert!(rig.kicks.lock().is_empty());
    rig.change(0, B, |it| it.with_enabled(false));
    assert_eq!(*rig.kicks.lock(), [0]);
    assert_eq!(
        rig.cpus[0].line(),
        Lines { irq: true, fiq: false },
        "C is more urgent than A, by the binary point of Group 1"
    );
}
