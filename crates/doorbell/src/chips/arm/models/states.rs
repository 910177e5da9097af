//! One vCPU against who changes the state: H-C1 to H-C3, and that nothing pended is lost.

use super::*;

fn pend_against_acknowledge(cripple: Cripple) {
    check(5, move || {
        let rig = Rig::new(1, cripple);
        let mut cpu = rig.cpu(0);
        let data = Arc::new(AtomicU32::new(0));
        let device = {
            let data = Arc::clone(&data);
            spawn(&rig, move |rig| {
                for value in [1, 2] {
                    data.store(value, Ordering::Relaxed);
                    rig.pend();
                }
            })
        };
        let mut taken = 0;
        let mut seen = 0;
        for _ in 0..2 {
            if take(&mut cpu) {
                taken += 1;
                seen = data.load(Ordering::Relaxed);
            }
        }
        device.join().unwrap();
        while take(&mut cpu) {
            taken += 1;
            seen = data.load(Ordering::Relaxed);
        }
        assert!((1..=2).contains(&taken), "taken {taken} times");
        assert_eq!(seen, 2, "the handler that ran last saw the device's last word");
        assert!(!rig.state().pending() && !rig.state().active());
    });
}

/// C13 to C15: an edge is taken once for each time, or merged; never lost.
#[test]
fn an_edge_against_an_acknowledge() {
    pend_against_acknowledge(Cripple::Nothing);
}

fn enable_against_pend(cripple: Cripple) {
    check(5, move || {
        let rig = Rig::new(1, cripple);
        let mut cpu = rig.cpu(0);
        rig.pend();
        rig.enable(false);
        // Queued, and not wanted: it is thrown out while it is enabled again.
        let guest = spawn(&rig, |rig| rig.enable(true));
        let device = spawn(&rig, Rig::pend);
        let early = u32::from(take(&mut cpu));
        guest.join().unwrap();
        device.join().unwrap();
        let mut late = 0;
        while take(&mut cpu) {
            late += 1;
        }
        assert!((1..=2).contains(&(early + late)), "taken {early} + {late} times");
        assert!(!rig.state().pending());
    });
}

/// C10 and C11 with a vCPU that looks meanwhile.
#[test]
fn an_enable_against_an_edge() {
    enable_against_pend(Cripple::Nothing);
}

#[test]
#[should_panic]
fn throwing_out_what_has_just_been_enabled_is_noticed() {
    enable_against_pend(Cripple::ThrowsOutBlindly);
}

/// A configuration call against one acknowledge: taken and active, or not taken and inactive.
fn configure_against_acknowledge(cripple: Cripple, before: fn(&Rig), configure: fn(&Rig), after: fn(IrqState, bool)) {
    check(6, move || {
        let rig = Rig::new(1, cripple);
        let mut cpu = rig.cpu(0);
        before(&rig);
        let guest = spawn(&rig, configure);
        let taken = cpu.acknowledge(Group::One) == SPI;
        guest.join().unwrap();
        let state = rig.state();
        assert_eq!(state.active(), taken, "active if and only if acknowledged");
        after(state, taken);
        assert_eq!(cpu.acknowledge(Group::One), NONE, "not twice");
        if taken {
            assert!(cpu.end(Group::One, SPI).is_some());
        }
        assert_eq!(cpu.acknowledge(Group::One), NONE);
    });
}

fn disable_against_acknowledge(cripple: Cripple) {
    configure_against_acknowledge(
        cripple,
        Rig::pend,
        |rig| rig.enable(false),
        |state, taken| {
            assert!(!state.enabled(), "disabled it stays");
            assert_eq!(state.pending(), !taken, "taken once, or left pending");
        },
    );
}

#[test]
fn h_c1_a_disable_against_an_acknowledge() {
    disable_against_acknowledge(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "disabled it stays")]
fn h_c1_an_acknowledge_that_overwrites_is_noticed() {
    disable_against_acknowledge(Cripple::TakesBlindly);
}

fn clear_against_acknowledge(cripple: Cripple) {
    configure_against_acknowledge(
        cripple,
        Rig::pend,
        |rig| rig.set(|state| state.with_latch(false)),
        |state, _| {
            assert!(!state.pending(), "cleared or taken");
        },
    );
}

#[test]
fn h_c2_icpendr_against_an_acknowledge() {
    clear_against_acknowledge(Cripple::Nothing);
}

/// It can be neither seen nor hurt: the latch is off either way, but it is taken after it was cleared.
#[test]
#[should_panic(expected = "after it was cleared")]
fn h_c2_an_acknowledge_that_overwrites_is_noticed() {
    check(6, || {
        let rig = Rig::new(1, Cripple::TakesBlindly);
        let mut cpu = rig.cpu(0);
        rig.pend();
        let guest = spawn(&rig, |rig| {
            rig.set(|state| state.with_latch(false));
            rig.state().active()
        });
        let taken = cpu.acknowledge(Group::One) == SPI;
        let active = guest.join().unwrap();
        assert!(active || !taken, "taken after it was cleared");
    });
}

fn drop_against_acknowledge(cripple: Cripple) {
    configure_against_acknowledge(
        cripple,
        |rig| rig.level(true),
        |rig| rig.level(false),
        |state, _| {
            assert!(!state.line() && !state.pending(), "the line stays low");
        },
    );
}

#[test]
fn h_c3_a_level_that_drops_against_an_acknowledge() {
    drop_against_acknowledge(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "stays low")]
fn h_c3_an_acknowledge_that_overwrites_is_noticed() {
    drop_against_acknowledge(Cripple::TakesBlindly);
}
