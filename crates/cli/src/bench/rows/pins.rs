//! The pins of the IOAPIC and of the 8259 pair.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use doorbell::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, Target,
    chips::x86::{
        ioapic::{CHIP, IoApic, IoApicOptions},
        pic::{self, Pic, PicOptions},
    },
};

use super::{
    Work,
    machine::{FIRST_VECTOR, Machine, drain},
};

const PIN: u16 = 5;
/// Offset of the index register and of the window.
const INDEX: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// The low half of the pin's entry, in the index register.
const ENTRY_LOW: u32 = 0x10 + 2 * PIN as u32;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// A target that takes every message and remembers none, so that an IOAPIC can be measured alone.
#[derive(Default)]
struct Taken(AtomicU32);

impl MsiTarget for Taken {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(Target::new(message.data & 0xff).map_or(Delivery::Ignored, |target| self.fire(target)))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        Target::new(message.data & 0xff)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.0.store(target.bits(), Ordering::Relaxed);
        Delivery::Delivered(1)
    }
}

/// The guest gives the pin its entry.
fn set_up(ioapic: &IoApic, low: u32) {
    let stores = [(INDEX, ENTRY_LOW + 1), (WINDOW, 0), (INDEX, ENTRY_LOW), (WINDOW, low | u32::from(FIRST_VECTOR))];
    for (offset, value) in stores {
        let _ = ioapic.write(offset, value);
    }
}

/// An IOAPIC in front of one vCPU, with one pin that the guest has set up.
fn ioapic(low: u32) -> Result<(Machine, Arc<IoApic>), String> {
    let machine = Machine::new(1);
    let ioapic = Arc::new(IoApic::new(Arc::clone(&machine.apics) as _, IoApicOptions::default()));
    set_up(&ioapic, low);
    match ioapic.set(CHIP, PIN, LineSource::USER, true) {
        Delivery::Delivered(1) => {}
        other => return Err(format!("the pin was raised, and the answer was {other:?}")),
    }
    ioapic.set(CHIP, PIN, LineSource::USER, false);
    Ok((machine, ioapic))
}

/// Up and down again; the vCPU takes what came between the batches.
pub fn edge() -> Result<Work, String> {
    let (mut machine, ioapic) = ioapic(0)?;
    drain(&mut machine.cpus[0]);
    Ok(Box::new(move |times| {
        let started = Instant::now();
        for _ in 0..times {
            std::hint::black_box(ioapic.pulse(CHIP, PIN, LineSource::USER));
        }
        let took = started.elapsed();
        drain(&mut machine.cpus[0]);
        took
    }))
}

/// The IOAPIC's part of a level cycle: the line rises, the message goes, the line falls, the interrupt ends.
pub fn level() -> Result<Work, String> {
    let ioapic = IoApic::new(Arc::new(Taken::default()), IoApicOptions::default());
    set_up(&ioapic, LEVEL);
    let cycle = move || {
        let delivery = ioapic.set(CHIP, PIN, LineSource::USER, true);
        ioapic.set(CHIP, PIN, LineSource::USER, false);
        let ended = ioapic.end(FIRST_VECTOR);
        ioapic.reevaluate(CHIP, &ended);
        (delivery, ended.len())
    };
    match cycle() {
        (Delivery::Delivered(1), 1) => Ok(super::timed(cycle)),
        other => Err(format!("a level cycle gave {other:?}")),
    }
}

/// The whole of it: the line rises, the vCPU takes the interrupt, the driver makes the device lower its line, the vCPU ends it.
pub fn level_lapic() -> Result<Work, String> {
    let (mut machine, ioapic) = ioapic(LEVEL)?;
    let mut cycle = move || {
        let delivery = ioapic.set(CHIP, PIN, LineSource::USER, true);
        let vector = machine.cpus[0].acknowledge();
        ioapic.set(CHIP, PIN, LineSource::USER, false);
        if let Some(eoi) = machine.cpus[0].eoi().filter(|eoi| eoi.level) {
            let ended = ioapic.end(eoi.vector);
            ioapic.reevaluate(CHIP, &ended);
        }
        (delivery, vector)
    };
    // The first ends what the set-up raised.
    cycle();
    match cycle() {
        (Delivery::Delivered(1), Some(FIRST_VECTOR)) => Ok(super::timed(cycle)),
        other => Err(format!("a level cycle gave {other:?}")),
    }
}

/// The guest masks the pin's entry and unmasks it.
pub fn mask() -> Result<Work, String> {
    let (_, ioapic) = ioapic(0)?;
    Ok(super::timed(move || {
        let _ = ioapic.write(WINDOW, MASKED | u32::from(FIRST_VECTOR));
        ioapic.write(WINDOW, FIRST_VECTOR.into())
    }))
}

/// A pair that the guest has set up. INTR is told to something that remembers it, as a vCPU's half of the APIC does.
fn pair() -> (Pic, Arc<AtomicU32>) {
    let wire = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&wire);
    let pic = Pic::new(move |level: bool| told.store(level.into(), Ordering::Relaxed), PicOptions::default());
    for (port, word) in [(0x20, 0x11), (0x21, LEGACY_VECTOR), (0x21, 4), (0x21, 1), (0x21, 0)] {
        pic.settle(pic.write(port, &[word]));
    }
    (pic, wire)
}

/// The vector of pin 0.
const LEGACY_VECTOR: u8 = 0x20;

/// Times a cycle that gives this answer: what the line call said, whether INTR was high then, and the vector.
fn legacy(mut cycle: impl FnMut() -> (Delivery, bool, u8) + 'static) -> Result<Work, String> {
    match cycle() {
        (Delivery::Delivered(1), true, vector) if vector == LEGACY_VECTOR + PIN as u8 => Ok(super::timed(cycle)),
        other => Err(format!("a cycle of the 8259 gave {other:?}")),
    }
}

/// An edge of the 8259, as an irqfd makes it, until its end.
pub fn legacy_edge() -> Result<Work, String> {
    let (pic, wire) = pair();
    legacy(move || {
        let delivery = pic.pulse(pic::CHIP, PIN, LineSource::USER);
        let asked = wire.load(Ordering::Relaxed) == 1;
        let taken = pic.acknowledge();
        pic.settle(taken.ended);
        pic.settle(pic.write(pic::MASTER_COMMAND, &[0x20]));
        (delivery, asked, taken.vector)
    })
}

/// The same of a level pin, whose driver makes the device lower its line before the end.
pub fn legacy_level() -> Result<Work, String> {
    let (pic, wire) = pair();
    pic.settle(pic.write(pic::MASTER_ELCR, &[1 << PIN]));
    legacy(move || {
        let delivery = pic.set(pic::CHIP, PIN, LineSource::USER, true);
        let asked = wire.load(Ordering::Relaxed) == 1;
        let taken = pic.acknowledge();
        pic.settle(taken.ended);
        pic.set(pic::CHIP, PIN, LineSource::USER, false);
        pic.settle(pic.write(pic::MASTER_COMMAND, &[0x20]));
        (delivery, asked, taken.vector)
    })
}
