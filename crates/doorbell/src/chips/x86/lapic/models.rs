//! loom models. IRR and the kick: a vCPU that sleeps while something is pending has been kicked. The map: an APIC that
//! does not change is reached whatever the others do. INTR: a vCPU that accepts it does not sleep over it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib lapic`

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use super::{
    ApicOptions, ApicSet,
    interrupt::Interrupt,
    map::{Config, Named},
    shared::{Events, Shared},
};
use crate::{MsiMessage, VcpuId};

struct Machine {
    cpu: Shared,
    /// Like an eventfd: kicks since the vCPU last slept.
    kicks: AtomicU32,
    /// What the device wrote before its interrupt.
    data: AtomicU32,
    crippled: bool,
}

impl Machine {
    fn new(crippled: bool) -> Arc<Self> {
        Arc::new(Self { cpu: Shared::new(), kicks: AtomicU32::new(0), data: AtomicU32::new(0), crippled })
    }

    fn kick_if(&self, wake: bool) {
        if wake {
            self.kicks.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn interrupt(&self, vector: u8) {
        self.kick_if(self.cpu.accept(vector, false));
    }

    fn nmi(&self) {
        self.kick_if(self.cpu.post(Events::and_nmi));
    }

    /// Takes everything that is pending, and says whether that was anything.
    fn take_all(&self) -> bool {
        let irr = self.cpu.irr();
        for (word, mut bits) in irr.into_iter().enumerate() {
            while bits != 0 {
                self.cpu.take((word * 64) as u8 + bits.trailing_zeros() as u8);
                bits &= bits - 1;
            }
        }
        let nmi = self.cpu.events().nmi();
        if nmi {
            self.cpu.clear_events(Events::new().with_nmi(true).into_bits());
        }
        nmi || irr != [0; 4]
    }

    /// The vCPU runs until it sleeps and nobody has kicked it.
    fn run(&self) {
        loop {
            if self.crippled {
                // Looks first and arms then.
                let found = self.take_all();
                self.cpu.arm();
                if !found && self.kicks.swap(0, Ordering::AcqRel) == 0 {
                    return;
                }
            } else {
                self.cpu.arm();
                if !self.take_all() && self.kicks.swap(0, Ordering::AcqRel) == 0 {
                    return;
                }
            }
            self.cpu.disarm();
        }
    }
}

fn sleeps_over_nothing(crippled: bool, senders: &'static [fn(&Machine)]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let machine = Machine::new(crippled);
        let senders: Vec<_> = senders
            .iter()
            .map(|sender| {
                let machine = machine.clone();
                thread::spawn(move || sender(&machine))
            })
            .collect();
        machine.run();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        let kicked = machine.kicks.load(Ordering::Acquire) != 0;
        assert!(!machine.take_all() || kicked, "it sleeps over a pending interrupt");
    });
}

#[test]
fn one_sender() {
    sleeps_over_nothing(false, &[|machine| machine.interrupt(0x41)]);
}

#[test]
#[should_panic(expected = "sleeps over a pending interrupt")]
fn a_vcpu_that_looks_before_it_arms_is_caught() {
    sleeps_over_nothing(true, &[|machine| machine.interrupt(0x41)]);
}

#[test]
fn two_senders() {
    sleeps_over_nothing(false, &[|machine| machine.interrupt(0x41), |machine| machine.interrupt(0xc2)]);
}

#[test]
fn two_senders_of_one_vector() {
    sleeps_over_nothing(false, &[|machine| machine.interrupt(0x41), |machine| machine.interrupt(0x41)]);
}

#[test]
fn an_interrupt_and_an_nmi() {
    sleeps_over_nothing(false, &[|machine| machine.interrupt(0x41), Machine::nmi]);
}

/// What a device wrote before its interrupt is there when the handler runs, even if the interrupt was merged.
#[test]
fn the_handler_sees_what_was_written_before_a_merged_interrupt() {
    loom::model(|| {
        let machine = Machine::new(false);
        let device = machine.clone();
        let device = thread::spawn(move || {
            for round in 1..=2 {
                device.data.store(round, Ordering::Relaxed);
                device.interrupt(0x41);
            }
        });
        let mut seen = 0;
        if machine.take_all() {
            seen = machine.data.load(Ordering::Relaxed);
            assert_ne!(seen, 0);
        }
        device.join().unwrap();
        if !machine.take_all() {
            assert_eq!(seen, 2, "no interrupt is left, so the handler has seen the last of what they stood for");
        }
    });
}

/// CPU 1 keeps its logical id while CPU 0 moves to the same one (and on, if `on`): a message to it reaches CPU 1 in every
/// interleaving. `checked`: as `choose` does it; else without a look at whether the map has changed meanwhile.
fn unchanged_apic_is_reached(checked: bool, on: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let apics = ApicSet::new(2, std::sync::Arc::new(()), ApicOptions::default());
        let config = |id: u8, logical_id: u8| {
            Config::new()
                .with_present(true)
                .with_enabled(true)
                .with_flat(true)
                .with_has_logical_id(true)
                .with_xapic_id(id)
                .with_logical_id(logical_id)
        };
        apics.configure(0, config(0, 2));
        apics.configure(1, config(1, 4));
        let mover = {
            let apics = apics.clone();
            thread::spawn(move || {
                apics.configure(0, config(0, 4));
                if on {
                    apics.configure(0, config(0, 8));
                }
            })
        };
        let interrupt = Interrupt::of_message(&MsiMessage::new(0xfee0_4004, 0x41), apics.options());
        let mut reached = Vec::new();
        if checked {
            apics.choose(None, interrupt, &mut |index, _| reached.push(index));
        } else if let Some(named) = apics.look_up(apics.map.summary(), &interrupt) {
            reached.extend(named.into_iter().filter_map(Named::cpu));
        } else {
            reached.push(1);
        }
        mover.join().unwrap();
        assert!(reached.contains(&1), "an APIC that did not change was not reached: {reached:?}");
    });
}

#[test]
fn an_apic_that_does_not_change_is_reached_by_its_logical_id() {
    unchanged_apic_is_reached(true, false);
}

#[test]
fn an_apic_is_reached_while_another_passes_over_its_logical_id() {
    unchanged_apic_is_reached(true, true);
}

#[test]
#[should_panic(expected = "was not reached")]
fn a_look_that_does_not_ask_whether_the_map_changed_is_caught() {
    unchanged_apic_is_reached(false, true);
}

/// A vCPU that accepts INTR, or comes to accept it just now (`late`), goes to sleep while the 8259 raises it.
fn sleeps_over_intr(late: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(move || {
        let kicks = Arc::new(AtomicU32::new(0));
        let kick = {
            let kicks = kicks.clone();
            move |_: VcpuId| {
                kicks.fetch_add(1, Ordering::AcqRel);
            }
        };
        let apics = ApicSet::new(1, std::sync::Arc::new(kick), ApicOptions::default());
        let mut cpu = apics.local(VcpuId(0)).unwrap();
        cpu.write(0xf0, 0x1ff);
        if late {
            cpu.write(0x350, 0x1_0700);
        }
        let pic = {
            let apics = apics.clone();
            thread::spawn(move || apics.set_intr(true))
        };
        if late {
            cpu.write(0x350, 0x700);
        }
        let seen = cpu.arm().extint;
        pic.join().unwrap();
        assert!(seen || kicks.load(Ordering::Acquire) == 1, "it sleeps over an interrupt of the 8259");
    });
}

#[test]
fn intr_wakes_a_vcpu_that_goes_to_sleep() {
    sleeps_over_intr(false);
}

#[test]
fn intr_wakes_a_vcpu_that_has_just_come_to_accept_it() {
    sleeps_over_intr(true);
}
