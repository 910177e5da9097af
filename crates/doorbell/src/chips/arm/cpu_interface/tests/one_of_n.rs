//! C27: an interrupt that any one participating vCPU takes.

use super::rig::{A, Rig};
use crate::chips::arm::{Group, IccRegister, irq::IrqState};

const NONE: u32 = 1023;

fn any(vcpus: u32) -> Rig {
    let rig = Rig::new(vcpus);
    rig.change(0, A, |state| state.with_any(true));
    rig
}

/// Which vCPUs can take it.
fn takers(rig: &mut Rig) -> Vec<usize> {
    (0..rig.cpus.len()).filter(|&index| rig.cpus[index].line().irq).collect()
}

fn igrpen1(rig: &mut Rig, index: usize, enable: bool) {
    rig.cpus[index].write(IccRegister::Igrpen1, enable.into());
}

#[test]
fn one_takes_it_and_only_one() {
    let mut rig = any(3);
    rig.pend(A);
    let takers = takers(&mut rig);
    assert_eq!(takers.len(), 1);
    assert_eq!(rig.cpus[takers[0]].acknowledge(Group::One), A);
    assert!(rig.cpus.iter_mut().all(|cpu| cpu.acknowledge(Group::One) == NONE));
}

#[test]
fn they_take_turns() {
    let mut rig = any(3);
    let mut seen = Vec::new();
    for _ in 0..6 {
        rig.pend(A);
        let index = takers(&mut rig)[0];
        seen.push(index);
        assert_eq!(rig.cpus[index].acknowledge(Group::One), A);
        assert!(rig.cpus[index].end(Group::One, A).is_some());
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
}

#[test]
fn only_those_that_participate_are_chosen() {
    let mut rig = any(4);
    igrpen1(&mut rig, 0, false);
    rig.set_awake(1, false);
    rig.cpus[3].write(IccRegister::Igrpen0, 0);
    igrpen1(&mut rig, 2, false);
    rig.pend(A);
    assert_eq!(takers(&mut rig), [3]);
    rig.change(0, A, |state| state.with_group1(false));
    assert!(takers(&mut rig).is_empty());
    let fiqs: Vec<_> = (0..4).filter(|&index| rig.cpus[index].line().fiq).collect();
    assert_eq!(fiqs.len(), 1, "in Group 0 others participate");
    assert!(fiqs == [0] || fiqs == [2], "{fiqs:?}");
}

#[test]
fn it_leaves_a_vcpu_that_stops_participating() {
    let mut rig = any(3);
    rig.pend(A);
    let first = takers(&mut rig)[0];
    igrpen1(&mut rig, first, false);
    let second = takers(&mut rig)[0];
    assert_ne!(first, second);
    rig.set_awake(second, false);
    let third = takers(&mut rig)[0];
    assert!(third != first && third != second);
    drop(rig.cpus.remove(third));
    assert!(takers(&mut rig).is_empty());
    rig.set_awake(second, true);
    let index = if second > third { second - 1 } else { second };
    assert_eq!(takers(&mut rig), [index], "the next that participates takes it");
    assert_eq!(rig.cpus[index].acknowledge(Group::One), A);
}

#[test]
fn a_sleeper_that_is_chosen_is_woken() {
    let mut rig = any(2);
    for cpu in &mut rig.cpus {
        assert!(cpu.arm().is_idle());
    }
    rig.pend(A);
    assert_eq!(rig.kicks.lock().len(), 1, "one of them");
    let first = takers(&mut rig)[0];
    assert_eq!(*rig.kicks.lock(), [first as u32]);
    igrpen1(&mut rig, first, false);
    assert_eq!(*rig.kicks.lock(), [first as u32, 1 - first as u32]);
}

#[test]
fn a_new_route_takes_it_along() {
    let mut rig = any(3);
    rig.pend(A);
    for index in [2, 0, 1] {
        rig.change(0, A, |state| state.with_any(false).with_target(index as u16));
        assert_eq!(takers(&mut rig), [index]);
        rig.change(0, A, |state| state.with_any(true));
        assert_eq!(takers(&mut rig).len(), 1);
    }
}

#[test]
fn an_active_one_stays_and_is_chosen_anew_afterwards() {
    let mut rig = any(2);
    rig.pend(A);
    let first = takers(&mut rig)[0];
    assert_eq!(rig.cpus[first].acknowledge(Group::One), A);
    rig.pend(A);
    assert!(takers(&mut rig).is_empty(), "C28");
    igrpen1(&mut rig, first, false);
    assert!(rig.cpus[first].end(Group::One, A).is_some());
    assert_eq!(takers(&mut rig), [1 - first]);
}

#[test]
fn one_that_is_disabled_while_it_waits_is_not_stuck() {
    let mut rig = any(2);
    rig.pend(A);
    let first = takers(&mut rig)[0];
    rig.change(0, A, |state: IrqState| state.with_enabled(false));
    igrpen1(&mut rig, first, false);
    rig.change(0, A, |state: IrqState| state.with_enabled(true));
    assert_eq!(takers(&mut rig), [1 - first]);
}
