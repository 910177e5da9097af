//! loom models of the pair: no edge is lost, and INTR is told in order.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib pic`

use loom::{sync::Arc, thread};

use super::*;
use crate::sync::AtomicU32;

/// INTR, as it was last told. A plain store: the calls come one after the other, in the order of the changes.
struct Wire(Arc<AtomicU32>);

impl Intr for Wire {
    fn set(&self, level: bool) {
        assert_ne!(self.0.load(Ordering::Relaxed), u32::from(level), "each change is told once");
        self.0.store(level.into(), Ordering::Relaxed);
    }
}

struct Machine {
    pic: Pic,
    wire: Arc<AtomicU32>,
}

/// Vector n for pin n, level pins as given.
fn machine(elcr: u8) -> Arc<Machine> {
    let wire = Arc::new(AtomicU32::new(0));
    let pic = Pic::new(Wire(wire.clone()), PicOptions::default());
    pic.set_state(1, &PicState { irq_base: 8, ..PicState::default() });
    if elcr != 0 {
        pic.set_state(0, &PicState { elcr, ..PicState::default() });
    }
    Arc::new(Machine { pic, wire })
}

impl Machine {
    /// Takes and ends what there is.
    fn drain(&self) -> Vec<u8> {
        let mut taken = Vec::new();
        while self.wire.load(Ordering::Relaxed) == 1 {
            taken.push(self.take_and_end());
        }
        taken
    }

    fn take_and_end(&self) -> u8 {
        let acknowledged = self.pic.acknowledge();
        assert!(acknowledged.ended.is_empty());
        if acknowledged.vector >= 8 {
            self.pic.settle(self.pic.write(SLAVE_COMMAND, &[0x20]));
        }
        self.pic.settle(self.pic.write(MASTER_COMMAND, &[0x20]));
        acknowledged.vector
    }

    /// Nothing is left, and INTR was told so.
    fn is_quiet(&self) {
        assert_eq!(self.wire.load(Ordering::Relaxed), 0);
        assert!(!self.pic.output());
        let requests = self.pic.shared.requests();
        assert_eq!((requests.irr(), requests.isr(), requests.due(), requests.busy()), (0, 0, false, false));
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[test]
fn two_sources_raise_both_chips_and_both_arrive() {
    check(|| {
        let machine = machine(0);
        let other = machine.clone();
        let other = thread::spawn(move || other.pic.pulse(0, 4, LineSource::USER));
        assert_eq!(machine.pic.pulse(1, 1, LineSource::USER), Delivery::Delivered(1));
        assert_eq!(other.join().unwrap(), Delivery::Delivered(1));
        assert_eq!(machine.wire.load(Ordering::Relaxed), 1);
        assert_eq!(machine.drain(), [9, 4]);
        machine.is_quiet();
    });
}

#[test]
fn an_edge_that_meets_an_acknowledge_and_an_end_arrives_once() {
    check(|| {
        let machine = machine(0);
        machine.pic.pulse(0, 4, LineSource::USER);
        let device = machine.clone();
        let device = thread::spawn(move || device.pic.pulse(0, 4, LineSource::USER));
        let first = machine.take_and_end();
        let merged = device.join().unwrap() == Delivery::Coalesced;
        assert_eq!(first, 4);
        assert_eq!(machine.drain(), if merged { vec![] } else { vec![4] });
        machine.is_quiet();
    });
}

#[test]
fn an_edge_that_meets_its_unmasking_is_offered() {
    check(|| {
        let machine = machine(0);
        machine.pic.settle(machine.pic.write(MASTER_DATA, &[0x10]));
        let device = machine.clone();
        let device = thread::spawn(move || device.pic.pulse(0, 4, LineSource::USER));
        machine.pic.settle(machine.pic.write(MASTER_DATA, &[0]));
        device.join().unwrap();
        assert_eq!(machine.drain(), [4]);
        machine.is_quiet();
    });
}

#[test]
fn a_mask_that_has_returned_is_not_passed() {
    check(|| {
        let machine = machine(0);
        let device = machine.clone();
        let device = thread::spawn(move || device.pic.pulse(0, 4, LineSource::USER));
        machine.pic.settle(machine.pic.write(MASTER_DATA, &[0xff]));
        let low = machine.wire.load(Ordering::Relaxed);
        device.join().unwrap();
        assert_eq!((low, machine.wire.load(Ordering::Relaxed)), (0, 0));
    });
}

#[test]
fn what_two_sources_of_a_line_leave_is_what_the_pair_sees() {
    for elcr in [0, 0x10] {
        check(move || {
            let machine = machine(elcr);
            machine.pic.set(0, 4, LineSource::USER, true);
            let other = machine.clone();
            let other = thread::spawn(move || other.pic.set(0, 4, LineSource::RESAMPLE, true));
            machine.pic.set(0, 4, LineSource::USER, false);
            other.join().unwrap();
            assert_eq!((machine.pic.state(0).last_irr, machine.pic.state(0).irr), (0x10, 0x10));
            machine.pic.set(0, 4, LineSource::RESAMPLE, false);
            assert_eq!((machine.pic.state(0).last_irr, machine.pic.state(0).irr), (0, 0x10 & !elcr));
        });
    }
}

/// One source, driven by two threads: whatever the order, the pair ends up with the line's level, and a rise was an edge.
#[test]
fn a_rise_and_a_fall_of_one_source_leave_the_level_of_the_line() {
    check(|| {
        let machine = machine(0);
        let other = machine.clone();
        let other = thread::spawn(move || other.pic.set(0, 4, LineSource::USER, true));
        machine.pic.set(0, 4, LineSource::USER, false);
        other.join().unwrap();
        let high = machine.pic.lines[4].load(Ordering::Relaxed) != 0;
        let state = machine.pic.state(0);
        assert_eq!((state.last_irr != 0, state.irr), (high, 0x10));
    });
}

/// R2: the level falls between the end and the re-evaluation, while another pin rises.
#[test]
fn an_end_whose_line_falls_meets_another_pin() {
    check(|| {
        let machine = machine(0x20);
        machine.pic.set(0, 5, LineSource::RESAMPLE, true);
        assert_eq!(machine.pic.acknowledge().vector, 5);
        let device = machine.clone();
        let device = thread::spawn(move || device.pic.pulse(0, 6, LineSource::USER));
        let ended = machine.pic.write(MASTER_COMMAND, &[0x20]);
        machine.pic.set(0, 5, LineSource::RESAMPLE, false);
        machine.pic.settle(ended);
        device.join().unwrap();
        assert_eq!(machine.drain(), [6]);
        machine.is_quiet();
    });
}
