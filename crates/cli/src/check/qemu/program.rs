//! Random programs: the same for the same seed, and biased to where things go wrong.

use super::super::random::Random;
use super::step::{Field, MAILBOXES, Step};
use super::wire::VECTORS;
use crate::qtest::machine::Chip;

const EDGE_VECTORS: [u8; 10] = [0, 1, 5, 15, 16, 31, 32, 0x80, 254, 255];
const PIC_PORTS: [u16; 6] = [0x20, 0xa0, 0x21, 0xa1, 0x4d0, 0x4d1];

/// A program, and where it comes from.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its number under its seed.
    pub number: u64,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

/// What a program draws from.
struct Source {
    random: Random,
    /// A few vectors, so that they meet.
    vectors: [u8; 5],
    /// A few pins of the IOAPIC, for the same reason.
    pins: [u8; 4],
    /// Which stations it is about; the numbers are shares.
    shares: [u64; 4],
}

/// Program `number` of `seed`, with `steps` steps.
pub fn generate(seed: u64, number: u64, steps: usize) -> Program {
    let mut random = Random::of(seed, number);
    let vectors = std::array::from_fn(|_| match random.below(3) {
        0 => random.pick(&EDGE_VECTORS),
        _ => random.below(256) as u8,
    });
    let pins = std::array::from_fn(|_| 1 + random.below(23) as u8);
    // Two stations at most, so that a program gets somewhere.
    let mut shares = [0; 4];
    shares[random.below(4) as usize] += 70;
    shares[random.below(4) as usize] += 30;
    let mut source = Source { random, vectors, pins, shares };
    let mut program = Vec::with_capacity(steps + 8);
    while program.len() < steps {
        source.steps(&mut program);
    }
    program.truncate(steps);
    Program { number, steps: program }
}

impl Source {
    fn steps(&mut self, program: &mut Vec<Step>) {
        let mut at = self.random.below(100);
        let station = self.shares.iter().position(|share| {
            let mine = at < *share;
            at = at.saturating_sub(*share);
            mine
        });
        match station {
            Some(0) | None => program.push(self.ioapic()),
            Some(1) => self.pic(program),
            Some(2) => program.push(self.msix()),
            Some(_) => program.push(self.message_or_msi()),
        }
    }

    fn vector(&mut self) -> u8 {
        let vectors = self.vectors;
        self.random.pick(&vectors)
    }

    fn pin(&mut self) -> u8 {
        let pins = self.pins;
        if self.random.one_in(10) { 1 + self.random.below(23) as u8 } else { self.random.pick(&pins) }
    }

    fn destination(&mut self) -> u32 {
        self.random.pick(&[0, 0, 0, 1, 1, 1, 0xff, 2, 5, 0x80])
    }

    fn mode(&mut self) -> u32 {
        self.random.pick(&[0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]) << 8
    }

    fn ioapic(&mut self) -> Step {
        let pin = self.pin();
        match self.random.below(20) {
            0..8 => {
                let level = u32::from(self.random.one_in(2)) << 15;
                let masked = u32::from(self.random.one_in(3)) << 16;
                let rest = match self.random.below(6) {
                    0 => self.random.next() as u32 & 0xfffe_7000,
                    1 => 1 << 11,
                    _ => 0,
                };
                let value = u32::from(self.vector()) | self.mode() | level | masked | rest;
                Step::IoApicStore { index: 0x10 + 2 * pin, value }
            }
            8..10 => {
                let extended = if self.random.one_in(6) { self.random.below(0x80) as u32 * 2 } else { 0 };
                Step::IoApicStore { index: 0x11 + 2 * pin, value: self.destination() << 24 | extended << 16 }
            }
            10..15 => Step::Line { chip: Chip::IoApic, pin: pin.into(), level: self.random.one_in(2) },
            15..18 => {
                let vector = if self.random.one_in(8) { self.random.below(256) as u8 } else { self.vector() & !1 };
                Step::IoApicEnd { vector }
            }
            18 => {
                let index = self.random.pick(&[0, 1, 2, 3, 0x0f, 0x10 + 2 * pin, 0x11 + 2 * pin]);
                Step::IoApicLoad { index }
            }
            _ => {
                let index = self.random.pick(&[0, 1, 2, 3, 0x0f, 0x40, 0x41, 0xff]);
                Step::IoApicStore { index, value: self.random.next() as u32 }
            }
        }
    }

    /// The address of a message, past its prefix, and its data.
    fn message(&mut self) -> (u32, u32) {
        let flags = if self.random.one_in(4) { self.random.below(4) as u32 * 4 } else { 0 };
        let ignored = if self.random.one_in(8) { self.random.below(0x100) as u32 * 0x10 } else { 0 };
        let trigger = self.random.pick(&[0, 0, 1 << 15, 3 << 14, 1 << 14]);
        let rest = if self.random.one_in(8) { self.random.next() as u32 & 0xffff_3800 } else { 0 };
        // A remappable message is another station's.
        let offset = self.destination() << 12 | flags | ignored & !0x10;
        (offset, u32::from(self.vector()) | self.mode() | trigger | rest)
    }

    fn message_or_msi(&mut self) -> Step {
        let (offset, data) = self.message();
        match self.random.below(10) {
            0..4 => Step::Message { offset, data },
            4..7 => Step::Msi { address: 0xfee0_0000 | offset, data: data as u16, enable: !self.random.one_in(5) },
            _ => Step::MsiEvent,
        }
    }

    fn pic(&mut self, program: &mut Vec<Step>) {
        let chip = self.random.below(2) as u16;
        let (command, data) = (0x20 + 0x80 * chip, 0x21 + 0x80 * chip);
        let store = |port, value| Step::PortStore { port, value };
        let pin = self.random.below(8);
        match self.random.below(40) {
            0..2 => {
                // The set-up as a guest does it, now and then with something odd in it.
                let odd = self.random.one_in(4);
                let first = if odd { 0x10 | self.random.below(16) as u8 } else { 0x11 };
                program.push(store(command, first));
                program.push(store(data, self.random.below(32) as u8 * 8));
                if first & 2 == 0 || self.random.one_in(4) {
                    program.push(store(data, if chip == 0 { 4 } else { 2 }));
                }
                if first & 1 == 1 || self.random.one_in(4) {
                    program.push(store(data, if odd { self.random.next() as u8 } else { 1 }));
                }
            }
            2..4 => {
                let mask = if self.random.one_in(2) { 0 } else { self.random.next() as u8 };
                program.push(store(data, mask));
            }
            4 => program.push(store(0x4d0 + chip, self.random.next() as u8)),
            5..20 => {
                let chip = if chip == 0 { Chip::Master } else { Chip::Slave };
                program.push(Step::Line { chip, pin: pin as u16, level: self.random.one_in(2) });
            }
            20..25 => program.push(store(command, 0x20)),
            25..29 => program.push(store(command, 0x60 | pin as u8)),
            29..32 => {
                let word = self.random.pick(&[0x00, 0x80, 0xa0, 0xc0, 0xe0, 0x40]);
                program.push(store(command, word | pin as u8));
            }
            32..34 => program.push(store(command, 0x08 | self.random.pick(&[2, 3, 0, 0x40, 0x60, 0x43]))),
            34..36 => {
                // A poll is the only acknowledge without a CPU.
                program.push(store(command, 0x0c));
                program.push(Step::PortLoad { port: if self.random.one_in(5) { data } else { command } });
            }
            36 => program.push(store(command, self.random.next() as u8)),
            _ => program.push(Step::PortLoad { port: self.random.pick(&PIC_PORTS) }),
        }
    }

    fn msix(&mut self) -> Step {
        let vector = self.random.below(VECTORS.into()) as u16;
        match self.random.below(24) {
            0..6 => Step::Event { vector, times: 1 + self.random.below(3) as u32 },
            6..12 => Step::MsixStore { vector, field: Field::Control, value: self.random.below(2) },
            12..14 => {
                let value = match self.random.below(4) {
                    0 => 0xfee0_0000 | u64::from(self.message().0),
                    1 => self.random.next() & 0xffff_fffc,
                    _ => MAILBOXES + 4 * u64::from(vector),
                };
                // Not over the programs of others: what lies elsewhere in RAM is not looked at.
                let value = if value >> 20 == 0xfee { value } else { value & 0x3f_ffff | MAILBOXES };
                Step::MsixStore { vector, field: Field::Address, value }
            }
            14 => Step::MsixStore { vector, field: Field::AddressHigh, value: u64::from(self.random.one_in(4)) },
            15..17 => Step::MsixStore { vector, field: Field::Data, value: self.message().1.into() },
            17 => {
                let value = u64::from(self.message().1) | self.random.below(2) << 32;
                Step::MsixStore { vector, field: Field::DataAndControl, value }
            }
            18 => {
                let field = self.random.pick(&[Field::Address, Field::AddressHigh, Field::Data, Field::Control]);
                Step::MsixLoad { vector, field }
            }
            19 => Step::PbaStore { value: self.random.next() },
            _ => Step::MsixControl { enable: !self.random.one_in(4), function_mask: self.random.one_in(3) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_program_and_another_seed_another() {
        let steps = |seed, number| generate(seed, number, 60).steps;
        assert_eq!(steps(7, 3), steps(7, 3));
        assert_ne!(steps(7, 3), steps(8, 3));
        assert_ne!(steps(7, 3), steps(7, 4));
        assert_eq!(steps(7, 3).len(), 60);
    }
}
