use super::*;

#[test]
fn a_line_is_the_or_of_its_sources() {
    let machine = machine();
    let set = |source, level| machine.pic.set(1, 3, source, level).status();
    assert_eq!([set(LineSource::USER, true), set(LineSource::RESAMPLE, true)], [1, 1]);
    assert_eq!((set(LineSource::USER, false), machine.pic.state(1).last_irr), (1, 0x08));
    assert_eq!(machine.pic.pulse(1, 3, LineSource::USER).status(), 1, "no edge: it is high");
    assert_eq!(machine.pic.state(1).last_irr, 0x08);
    assert_eq!((set(LineSource::RESAMPLE, false), machine.pic.state(1).last_irr), (1, 0));
    assert_eq!(machine.pic.pulse(1, 3, LineSource::USER).status(), 0, "an edge, merged");
    // A pulse ends low, whatever its source was before.
    set(LineSource::USER, true);
    machine.pic.pulse(1, 3, LineSource::USER);
    assert_eq!(machine.pic.state(1).last_irr, 0);
}

#[test]
fn what_still_asks_after_an_end_is_offered_by_the_reevaluation_only() {
    let machine = machine();
    machine.pulse(3);
    machine.take();
    machine.pulse(5);
    machine.told();
    let ended = machine.pic.write(0x20, &[0x20]);
    assert_eq!((machine.pic.output(), machine.told()), (false, vec![]));
    machine.pic.reevaluate(2, &Pins::new());
    assert!(!machine.pic.output(), "another chip's");
    for (chip, pins) in ended.chips() {
        machine.pic.reevaluate(chip, &pins);
    }
    assert_eq!((machine.pic.output(), machine.told()), (true, vec![true]));
    machine.pic.reevaluate(0, &Pins::from_slice(&[3]));
    assert_eq!(machine.told(), [], "once");
}

/// R2 for a level pin of the slave: its line falls between the end and the re-evaluation, and nothing is left behind.
#[test]
fn a_line_that_falls_at_its_end_leaves_no_request_of_the_slave() {
    let machine = machine();
    machine.out(&[(0x4d1, 0x08)]);
    machine.line(11, true);
    assert_eq!(machine.take(), Some(0x2b));
    machine.out(&[(0x20, 0x20)]);
    let ended = machine.pic.write(0xa0, &[0x20]);
    machine.line(11, false);
    machine.pic.settle(ended);
    assert_eq!((machine.states().map(|chip| chip.irr), machine.take()), ([0, 0], None));
}

/// Threads drive all pins while another takes and ends: each edge that was not merged arrives once, and INTR is low in the
/// end because nothing is left.
#[test]
fn no_edge_is_lost_in_a_storm() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const PULSES: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    let level = Arc::new(AtomicBool::new(false));
    let wire = Arc::clone(&level);
    let pic = Pic::new(
        move |level| assert_ne!(wire.swap(level, Ordering::SeqCst), level, "each change once"),
        PicOptions::default(),
    );
    let machine = Machine { pic, told: Told::default() };
    machine.initialise();
    let (pins, running) = ([0u16, 1, 3, 8, 9, 15], AtomicU64::new(6));
    let sent: [AtomicU64; 16] = std::array::from_fn(|_| AtomicU64::new(0));
    let mut taken = [0u64; 16];
    std::thread::scope(|scope| {
        for &pin in &pins {
            let (machine, sent, running) = (&machine, &sent, &running);
            scope.spawn(move || {
                for turn in 0..PULSES {
                    // Both ways of making an edge.
                    let delivery = if turn % 2 == 0 {
                        machine.pulse(pin)
                    } else {
                        let delivery = machine.line(pin, true);
                        machine.line(pin, false);
                        delivery
                    };
                    match delivery {
                        1 => drop(sent[usize::from(pin)].fetch_add(1, Ordering::Relaxed)),
                        0 => {}
                        other => assert_eq!(other, -1, "masked"),
                    }
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut turns = 0u32;
        loop {
            let over = running.load(Ordering::SeqCst) == 0;
            if level.load(Ordering::SeqCst) {
                let acknowledged = machine.pic.acknowledge();
                machine.pic.settle(acknowledged.ended);
                let pin = usize::from(acknowledged.vector - 0x20);
                taken[pin] += 1;
                machine.end(acknowledged.vector);
                turns += 1;
                if turns % 64 == 0 {
                    // Configuration in between: another order.
                    machine.out(&[(0x20, 0xc0 | (turns / 64 % 8) as u8)]);
                }
            } else if over {
                break;
            } else {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(machine.states().map(|chip| (chip.irr, chip.isr)), [(0, 0), (0, 0)]);
    for (pin, (sent, taken)) in sent.iter().zip(taken).enumerate() {
        assert_eq!(taken, sent.load(Ordering::Relaxed), "pin {pin}");
    }
}
