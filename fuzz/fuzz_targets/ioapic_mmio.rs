//! Any bytes as a guest's accesses to the IOAPIC, with lines and ends of interrupts in between.
#![no_main]

use doorbell::{
    LineSource, PinInput,
    chips::x86::ioapic::{CHIP, Effect, IoApic, PINS},
};
use doorbell_fuzz::{Machine, Program};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let mut machine = Machine::new(program.byte().unwrap_or_default());
    for cpu in &mut machine.cpus {
        cpu.write(0xf0, 0x1ff);
    }
    while step(&mut machine, &mut program).is_some() {
        check(&machine.ioapic);
    }
    // A saved state is one that can be restored, and nothing of it is lost.
    let saved = machine.ioapic.save();
    let other = Machine::new(0);
    other.ioapic.restore(&saved).expect("it was saved by an IOAPIC");
    assert_eq!(other.ioapic.save(), saved);
});

fn step(machine: &mut Machine, program: &mut Program<'_>) -> Option<()> {
    let Machine { cpus, ioapic, .. } = machine;
    let op = program.byte()?;
    match op % 8 {
        // Mostly where the registers are, with any width up to 8 bytes.
        0 | 1 => {
            let (place, value) = (program.byte()?, program.take::<8>()?);
            let offset = if place & 1 == 0 { u64::from(place & 0x50) } else { u64::from(place) };
            let width = usize::from(op >> 3) % 9;
            match ioapic.mmio_write(offset, &value[..width]) {
                Effect::None => {}
                Effect::Ended(pins) | Effect::Unmasked(pins) => {
                    assert!(!pins.is_empty());
                    ioapic.reevaluate(CHIP, &pins);
                }
            }
        }
        2 => {
            let mut data = [0xaa; 16];
            ioapic.mmio_read(u64::from(program.byte()?), &mut data[..usize::from(op >> 3) % 17]);
        }
        3 | 4 => {
            let (pin, drive) = (program.byte()?, program.byte()?);
            let source = LineSource::new(drive >> 1 & 3).expect("0 to 3");
            ioapic.set(CHIP, (pin % 32).into(), source, drive & 1 == 1);
        }
        5 => {
            ioapic.pulse(CHIP, (op >> 3).into(), LineSource::USER);
        }
        // A vCPU takes what is due and ends it.
        6 => {
            let cpu = &mut cpus[usize::from(op >> 3 & 1)];
            cpu.acknowledge();
            if let Some(eoi) = cpu.eoi().filter(|eoi| eoi.level) {
                let ended = ioapic.end(eoi.vector);
                ioapic.reevaluate(CHIP, &ended);
            }
        }
        _ => {
            let ended = ioapic.end(program.byte()?);
            ioapic.withdraw(&ended);
            let delayed = ioapic.take_delayed();
            ioapic.reevaluate(CHIP, &delayed);
        }
    }
    Some(())
}

fn check(ioapic: &IoApic) {
    let state = ioapic.state();
    assert_eq!(state.irr >> PINS, 0, "a latch without a pin");
    for pin in 0..PINS {
        let entry = ioapic.entry(pin);
        // A11: an entry that is edge has no remote IRR.
        assert!(entry.level() || !entry.remote_irr(), "pin {pin}: {entry:?}");
    }
}
