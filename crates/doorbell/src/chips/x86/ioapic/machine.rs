//! Random programs on an IOAPIC and on a model of it that is written after the spec's table, a pin at a time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::{Error, MsiMessage, Target};

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;

/// A target that resolves every other vector, so that both ways out are used. It answers by vector.
#[derive(Default)]
struct Sink(Mutex<Vec<u8>>);

fn answer(vector: u8) -> Delivery {
    match vector % 5 {
        0 => Delivery::Coalesced,
        1 => Delivery::Ignored,
        n => Delivery::Delivered(u32::from(n)),
    }
}

impl Sink {
    fn receive(&self, vector: u8) -> Delivery {
        self.0.lock().unwrap().push(vector);
        answer(vector)
    }
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.receive(message.data as u8))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if message.data & 1 == 0 { Target::new(message.data & 0xff) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        self.receive(target.bits() as u8)
    }
}

/// One pin, in the words of the spec's rows.
#[derive(Clone, Default)]
struct ModelPin {
    entry: u64,
    sources: BTreeSet<u8>,
    /// KVM's `irr` and `irr_delivered`.
    irr: bool,
    irr_delivered: bool,
    /// It may be re-evaluated: after an end (A9), or after a store (A12), which may also be withdrawn (R6).
    ended: bool,
    offered: bool,
}

impl ModelPin {
    fn is_level(&self) -> bool {
        self.entry & LEVEL != 0
    }

    fn vector(&self) -> u8 {
        self.entry as u8
    }

    fn service(&mut self, sent: &mut Vec<u8>) -> Delivery {
        (self.ended, self.offered) = (false, false);
        if self.entry & MASKED != 0 || (self.is_level() && self.entry & REMOTE_IRR != 0) {
            return Delivery::Ignored; // A2, A4
        }
        sent.push(self.vector());
        let answer = answer(self.vector());
        if !self.is_level() {
            self.irr_delivered = true;
        } else if answer != Delivery::Coalesced {
            self.entry |= REMOTE_IRR; // A3
        }
        answer
    }

    fn raise(&mut self, sent: &mut Vec<u8>) -> Delivery {
        let merged = self.irr && !self.is_level();
        self.irr = true;
        if !self.is_level() {
            self.irr_delivered = false;
        }
        if merged { Delivery::Coalesced } else { self.service(sent) } // A7
    }

    fn set(&mut self, source: u8, level: bool, sent: &mut Vec<u8>) -> Delivery {
        if level {
            self.sources.insert(source);
        } else {
            self.sources.remove(&source);
        }
        if !self.sources.is_empty() {
            return self.raise(sent); // A14
        }
        self.irr = false; // A5, A6
        Delivery::Delivered(1)
    }

    fn is_due(&self) -> bool {
        self.is_level() && self.irr && self.entry & (MASKED | REMOTE_IRR) == 0
    }

    fn store(&mut self, bits: u64) -> bool {
        self.entry = (bits & !READ_ONLY) | (self.entry & READ_ONLY); // A11
        if !self.is_level() {
            self.entry &= !REMOTE_IRR;
        }
        let due = self.is_due();
        if due {
            (self.ended, self.offered) = (false, true); // A12
        } else {
            self.offered = false;
        }
        due
    }

    fn reevaluate(&mut self, sent: &mut Vec<u8>) {
        let waits = std::mem::take(&mut self.ended) | std::mem::take(&mut self.offered);
        // An edge that was ended with a level goes again while it is latched, as in KVM.
        if waits && self.irr && self.entry & (MASKED | REMOTE_IRR) == 0 {
            self.service(sent);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set { pin: u16, source: u8, level: bool },
    Pulse { pin: u16, source: u8 },
    Store { pin: u16, high: bool, value: u32 },
    Entry { pin: u16, entry: u64 },
    End { vector: u8, reevaluate: bool },
    EndEdge { vector: u8 },
    EoiRegister { vector: u8 },
    Reevaluate { pins: u32 },
    Withdraw { pins: u32 },
    SetState { pin: u16, entry: u64, irr: u32 },
    SaveAndRestore,
    Mmio { offset: u64, data: Vec<u8> },
}

/// Few vectors and few pins, so that they meet.
fn entry() -> impl Strategy<Value = u64> {
    (0x60u64..0x66, 0..0x1_0000u64, any::<u64>()).prop_map(|(vector, bits, rest)| {
        // Usually unmasked, and of either trigger mode.
        let masked = if rest % 3 == 0 { MASKED } else { 0 };
        vector | (bits & 0xff00) | masked | rest & 0xff00_0000_0000_0000
    })
}

fn step() -> impl Strategy<Value = Step> {
    let pin = || prop_oneof![6 => 0u16..5, 1 => 20u16..30];
    let pins = || any::<u32>().prop_map(|pins| pins & 0x1f);
    let vector = || 0x60u8..0x66;
    prop_oneof![
        6 => (pin(), 0u8..3, any::<bool>()).prop_map(|(pin, source, level)| Step::Set { pin, source, level }),
        2 => (pin(), 0u8..3).prop_map(|(pin, source)| Step::Pulse { pin, source }),
        3 => (pin(), any::<bool>(), entry()).prop_map(|(pin, high, entry)| Step::Store { pin, high, value: entry as u32 }),
        2 => (pin(), entry()).prop_map(|(pin, entry)| Step::Entry { pin, entry }),
        4 => (vector(), any::<bool>()).prop_map(|(vector, reevaluate)| Step::End { vector, reevaluate }),
        1 => vector().prop_map(|vector| Step::EndEdge { vector }),
        1 => vector().prop_map(|vector| Step::EoiRegister { vector }),
        2 => pins().prop_map(|pins| Step::Reevaluate { pins }),
        1 => pins().prop_map(|pins| Step::Withdraw { pins }),
        1 => (0u16..24, entry(), any::<u32>()).prop_map(|(pin, entry, irr)| Step::SetState { pin, entry, irr }),
        1 => Just(Step::SaveAndRestore),
        1 => (0u64..0x60, prop::collection::vec(any::<u8>(), 0..10)).prop_map(|(offset, data)| Step::Mmio { offset, data }),
    ]
}

fn pins_of(mask: u32) -> Pins {
    (0..PINS as u16).filter(|pin| mask >> pin & 1 == 1).collect()
}

struct Machine {
    sink: Arc<Sink>,
    ioapic: IoApic,
    pins: Vec<ModelPin>,
}

impl Machine {
    fn new() -> Self {
        let sink = Arc::new(Sink::default());
        let pins = vec![ModelPin { entry: MASKED, ..ModelPin::default() }; PINS];
        Self { sink: sink.clone(), ioapic: IoApic::new(sink, IoApicOptions::default()), pins }
    }

    fn with_vector(&self, vector: u8) -> Pins {
        (0..PINS as u16).filter(|&pin| self.pins[usize::from(pin)].vector() == vector).collect()
    }

    /// The model's part of an end of interrupt: nothing is heard of it unless a level entry has the vector, but then it
    /// is for every entry with the vector.
    fn end(&mut self, vector: u8) -> Pins {
        let heard = self.pins.iter().any(|pin| pin.vector() == vector && pin.is_level());
        for pin in self.pins.iter_mut().filter(|pin| heard && pin.vector() == vector) {
            pin.entry &= !REMOTE_IRR;
            (pin.ended, pin.offered) = (true, false);
        }
        self.with_vector(vector)
    }

    /// Runs a step on both; the model's messages.
    fn run(&mut self, step: Step) -> Result<Vec<u8>, TestCaseError> {
        let mut sent = Vec::new();
        match step {
            Step::Set { pin, source, level } => {
                let line = LineSource::new(source).unwrap();
                let model = self.pins.get_mut(usize::from(pin));
                let expected = model.map_or(Delivery::Ignored, |pin| pin.set(source, level, &mut sent));
                prop_assert_eq!(self.ioapic.set(CHIP, pin, line, level), expected);
            }
            Step::Pulse { pin, source } => {
                let line = LineSource::new(source).unwrap();
                let expected = self.pins.get_mut(usize::from(pin)).map_or(Delivery::Ignored, |pin| {
                    let rise = pin.set(source, true, &mut sent);
                    pin.set(source, false, &mut sent);
                    rise
                });
                prop_assert_eq!(self.ioapic.pulse(CHIP, pin, line), expected);
            }
            Step::Store { pin, high, value } => {
                let register = 0x10 + 2 * u32::from(pin) + u32::from(high);
                prop_assert_eq!(self.ioapic.write(INDEX, register), Effect::None);
                let effect = self.ioapic.write(WINDOW, value);
                let due = self.pins.get_mut(usize::from(pin)).is_some_and(|pin| {
                    let (low, value) = (pin.entry & 0xffff_ffff, u64::from(value));
                    pin.store(if high { low | value << 32 } else { pin.entry >> 32 << 32 | value })
                });
                prop_assert_eq!(effect, if due { Effect::Unmasked(Pins::from_slice(&[pin])) } else { Effect::None });
            }
            Step::Entry { pin, entry } => {
                let effect = self.ioapic.write_entry(usize::from(pin), RedirectionEntry::from_bits(entry));
                let due = self.pins.get_mut(usize::from(pin)).is_some_and(|pin| pin.store(entry));
                prop_assert_eq!(effect, if due { Effect::Unmasked(Pins::from_slice(&[pin])) } else { Effect::None });
            }
            Step::End { vector, reevaluate } => {
                let ended = self.end(vector);
                prop_assert_eq!(&self.ioapic.end(vector), &ended);
                if reevaluate {
                    self.ioapic.reevaluate(CHIP, &ended);
                    ended.iter().for_each(|&pin| self.pins[usize::from(pin)].reevaluate(&mut sent));
                }
            }
            Step::EndEdge { vector } => prop_assert_eq!(self.ioapic.end_edge(vector), self.with_vector(vector)),
            Step::EoiRegister { vector } => {
                let ended = self.end(vector);
                let expected = if ended.is_empty() { Effect::None } else { Effect::Ended(ended) };
                prop_assert_eq!(self.ioapic.write(EOI, u32::from(vector)), expected);
            }
            Step::Reevaluate { pins } => {
                self.ioapic.reevaluate(CHIP, &pins_of(pins));
                pins_of(pins).iter().for_each(|&pin| self.pins[usize::from(pin)].reevaluate(&mut sent));
            }
            Step::Withdraw { pins } => {
                self.ioapic.withdraw(&pins_of(pins));
                for pin in pins_of(pins) {
                    let pin = &mut self.pins[usize::from(pin)];
                    if std::mem::take(&mut pin.offered) {
                        pin.irr = false;
                    }
                }
            }
            Step::SetState { pin, entry, irr } => {
                let mut state = self.ioapic.state();
                state.redirtbl[usize::from(pin)] = entry;
                state.irr = irr;
                self.ioapic.set_state(&state);
                for (number, model) in self.pins.iter_mut().enumerate() {
                    let sources = std::mem::take(&mut model.sources);
                    *model = ModelPin { entry: state.redirtbl[number], sources, ..ModelPin::default() };
                    if irr >> number & 1 == 1 {
                        model.raise(&mut sent);
                    }
                }
            }
            Step::SaveAndRestore => {
                let other = IoApic::new(self.sink.clone(), IoApicOptions::default());
                other.restore(&self.ioapic.save()).unwrap();
                prop_assert_eq!(other.save(), self.ioapic.save());
                self.ioapic = other;
            }
            // Not to the window's registers: those stores have steps of their own.
            Step::Mmio { offset, mut data } if !matches!(offset, WINDOW | EOI) => {
                prop_assert_eq!(self.ioapic.mmio_write(offset, &data), Effect::None);
                self.ioapic.mmio_read(offset, &mut data);
            }
            Step::Mmio { offset, mut data } => self.ioapic.mmio_read(offset, &mut data),
        }
        Ok(sent)
    }

    fn compare(&self, sent: Vec<u8>) -> Result<(), TestCaseError> {
        prop_assert_eq!(std::mem::take(&mut *self.sink.0.lock().unwrap()), sent, "messages");
        let state = self.ioapic.state();
        for (number, pin) in self.pins.iter().enumerate() {
            prop_assert_eq!(state.redirtbl[number], pin.entry, "entry of pin {}", number);
            prop_assert_eq!(state.irr >> number & 1 == 1, pin.irr && !pin.irr_delivered, "irr of pin {}", number);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_do_what_the_spec_says(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::new();
        for step in steps {
            let sent = machine.run(step)?;
            machine.compare(sent)?;
        }
    }
}
