//! A vCPU that sleeps while something can be taken has been kicked. H-C4.

use super::*;

/// The vCPU runs until it sleeps and nobody has kicked it; returns how often it took something.
fn run(rig: &Rig, cpu: &mut CpuInterface, looks_first: bool) -> u32 {
    let kicks = &rig.kicks[cpu.vcpu().0 as usize];
    let mut taken = 0;
    loop {
        let idle = if looks_first {
            let idle = cpu.line().is_idle();
            cpu.arm();
            idle
        } else {
            cpu.arm().is_idle()
        };
        if idle && kicks.swap(0, Ordering::AcqRel) == 0 {
            return taken;
        }
        cpu.disarm();
        while take(cpu) {
            taken += 1;
        }
    }
}

fn sleeps_over_nothing(cripple: Cripple, looks_first: bool, before: fn(&Rig), others: &'static [fn(&Rig)]) {
    check(3, move || {
        let rig = Rig::new(1, cripple);
        let mut cpu = rig.cpu(0);
        before(&rig);
        let others: Vec<_> = others.iter().map(|other| spawn(&rig, other)).collect();
        run(&rig, &mut cpu, looks_first);
        others.into_iter().for_each(|other| other.join().unwrap());
        let kicked = rig.kicks[0].load(Ordering::Acquire) != 0;
        assert!(kicked || cpu.line().is_idle(), "it sleeps over a pending interrupt");
    });
}

fn nothing(_: &Rig) {}

fn queued_and_disabled(rig: &Rig) {
    rig.pend();
    rig.enable(false);
}

#[test]
fn an_edge_wakes() {
    sleeps_over_nothing(Cripple::Nothing, false, nothing, &[Rig::pend]);
}

#[test]
#[should_panic(expected = "sleeps over")]
fn a_vcpu_that_looks_before_it_arms_is_noticed() {
    sleeps_over_nothing(Cripple::Nothing, true, nothing, &[Rig::pend]);
}

#[test]
#[should_panic(expected = "sleeps over")]
fn a_kick_before_the_push_is_noticed() {
    sleeps_over_nothing(Cripple::WakesTooEarly, false, nothing, &[Rig::pend]);
}

#[test]
fn an_enable_wakes() {
    sleeps_over_nothing(Cripple::Nothing, false, queued_and_disabled, &[|rig| rig.enable(true)]);
}

#[test]
fn an_enable_and_an_edge_wake() {
    sleeps_over_nothing(Cripple::Nothing, false, queued_and_disabled, &[|rig| rig.enable(true), Rig::pend]);
}

#[test]
fn the_distributors_group_enable_wakes() {
    let closed = |rig: &Rig| {
        rig.gic.ctlr.store(0, Ordering::SeqCst);
        rig.pend();
    };
    sleeps_over_nothing(
        Cripple::Nothing,
        false,
        closed,
        &[|rig| {
            rig.gic.ctlr.swap(3, Ordering::SeqCst);
            rig.gic.wake_all();
        }],
    );
}

fn broadcast_against_sleep(cripple: Cripple) {
    check(3, move || {
        let rig = Rig::new(2, cripple);
        let mut cpu = rig.cpu(1);
        let sgi = rig.gic.irq(1, 1).unwrap();
        rig.gic.update(sgi, 1, |state| state.with_enabled(true).with_group1(true));
        rig.gic.set_enables(1, |enables| enables.with_awake(false));
        let sender = spawn(&rig, |rig| {
            rig.gic.send_sgi(0, super::super::sgi::SgiRequest::Group1, 0x100_0100_0000.into());
        });
        let waker = spawn(&rig, |rig| rig.gic.set_enables(1, |enables| enables.with_awake(true)));
        let mut taken = run(&rig, &mut cpu, false);
        sender.join().unwrap();
        waker.join().unwrap();
        let kicked = rig.kicks[1].load(Ordering::Acquire) != 0;
        assert!(kicked || cpu.line().is_idle(), "it sleeps over a pending interrupt");
        while take(&mut cpu) {
            taken += 1;
        }
        assert_eq!(taken, 1, "once");
    });
}

#[test]
fn h_c4_a_broadcast_against_a_redistributor_that_wakes() {
    broadcast_against_sleep(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "sleeps over")]
fn h_c4_a_broadcast_that_kicks_too_early_is_noticed() {
    broadcast_against_sleep(Cripple::WakesTooEarly);
}
