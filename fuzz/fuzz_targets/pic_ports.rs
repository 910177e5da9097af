//! Any bytes as a guest's accesses to the ports of the 8259 pair, with lines and acknowledges in between.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use doorbell::{
    LineSource, PinInput,
    chips::x86::pic::{Ended, PORTS, Pic, PicOptions, PicState},
};
use doorbell_fuzz::Program;
use libfuzzer_sys::fuzz_target;

fn machine(strict: bool) -> (Pic, Arc<AtomicBool>) {
    let wire = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&wire);
    // Each change is told once.
    let intr = move |level| assert_ne!(told.swap(level, Ordering::Relaxed), level);
    (Pic::new(intr, PicOptions { strict }), wire)
}

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let strict = program.byte().is_some_and(|options| options & 1 == 1);
    let (pic, wire) = machine(strict);
    while step(&pic, &mut program).is_some() {
        check(&pic);
        assert_eq!(wire.load(Ordering::Relaxed), pic.output());
    }
    // A saved state is one that can be restored, and nothing of it is lost.
    let saved = pic.save();
    let (other, wire) = machine(strict);
    other.restore(&saved).expect("it was saved by a pair");
    assert_eq!((other.save(), wire.load(Ordering::Relaxed)), (saved, pic.output()));
});

fn step(pic: &Pic, program: &mut Program<'_>) -> Option<()> {
    let op = program.byte()?;
    // Mostly where the registers are.
    let port = |place: u8| PORTS.get(usize::from(place % 8)).copied().unwrap_or(u16::from(place) << 2);
    match op % 8 {
        0..=2 => {
            let [place, value] = program.take()?;
            settle(pic, pic.write(port(place), &[value]), op);
        }
        3 => {
            let [place, width] = program.take()?;
            let mut data = [0; 8];
            settle(pic, pic.read(port(place), &mut data[..usize::from(width % 9)]), op);
            settle(pic, pic.write(port(place), &data[..usize::from(width >> 4) % 9]), op);
        }
        4 | 5 => {
            let [place, drive] = program.take()?;
            let source = LineSource::new(drive >> 1 & 3).expect("0 to 3");
            let (chip, pin) = (place >> 4 & 3, u16::from(place & 0xf));
            if drive & 8 == 0 {
                pic.set(chip, pin, source, drive & 1 == 1);
            } else {
                pic.pulse(chip, pin, source);
            }
        }
        6 => {
            let before = [0, 1].map(|chip| pic.state(chip));
            let taken = pic.acknowledge();
            // P8: without a request, the vector is the spurious one.
            if before[0].irr & !before[0].imr == 0 {
                assert_eq!(taken.vector, before[0].irq_base.wrapping_add(7));
                assert!(taken.ended.is_empty());
            }
            settle(pic, taken.ended, op);
        }
        _ => {
            let [chip, at, value] = program.take()?;
            let mut state = pic.state(chip & 1);
            change(&mut state, at, value);
            pic.set_state(chip & 1, &state);
        }
    }
    Some(())
}

fn settle(pic: &Pic, ended: Ended, op: u8) {
    for (chip, pins) in ended.chips() {
        assert!(!pins.is_empty() && pins.iter().all(|&pin| pin < pic.pins(chip)));
        if op & 0x80 == 0 {
            pic.reevaluate(chip, &pins);
        }
    }
}

fn change(state: &mut PicState, at: u8, value: u8) {
    match at % 8 {
        0 => state.irr = value,
        1 => state.isr = value,
        2 => state.last_irr = value,
        3 => state.priority_add = value,
        4 => state.init_state = value,
        5 => state.irq_base = value,
        6 => (state.elcr, state.auto_eoi) = (value & state.elcr_mask, value & 1 == 1),
        _ => (state.rotate_on_auto_eoi, state.fully_nested) = (value & 1 == 1, value & 2 == 2),
    }
}

fn check(pic: &Pic) {
    for chip in [0, 1] {
        let state = pic.state(chip);
        // P2.
        assert_eq!(state.elcr & !state.elcr_mask, 0);
        assert!(state.priority_add < 8);
    }
}
