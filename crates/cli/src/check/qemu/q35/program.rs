//! Random programs: the same for the same seed, and biased to where things go wrong.

use super::super::super::random::Random;
use super::super::Program;
use super::Unit;
use super::step::{Amd, Field, MAILBOXES, Source as Sender, Step, Vtd};
use super::wire::VECTORS;
use crate::qtest::q35::Chip;

const EDGE_VECTORS: [u8; 10] = [0, 1, 5, 15, 16, 31, 32, 0x80, 254, 255];
const PIC_PORTS: [u16; 6] = [0x20, 0xa0, 0x21, 0xa1, 0x4d0, 0x4d1];

/// A program, and its machine.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The program.
    pub program: Program<Step>,
    /// Which remapping unit its machine has.
    pub unit: Unit,
}

/// What a program draws from.
struct Source {
    random: Random,
    /// A few vectors, so that they meet.
    vectors: [u8; 5],
    /// A few pins of the IOAPIC, for the same reason.
    pins: [u8; 4],
    /// Which stations it is about; the numbers are shares.
    shares: [u64; 5],
    /// Indices of remapping entries, and the size of the table.
    indices: [u16; 5],
    size: u8,
    unit: Unit,
}

/// Program `number` of `seed`, with `steps` steps.
pub fn generate(seed: u64, number: u64, steps: usize) -> Chosen {
    let mut random = Random::of(seed, number);
    let vectors = std::array::from_fn(|_| match random.below(3) {
        0 => random.pick(&EDGE_VECTORS),
        _ => random.below(256) as u8,
    });
    let pins = std::array::from_fn(|_| 1 + random.below(23) as u8);
    // Two stations at most, so that a program gets somewhere.
    let mut shares = [0; 5];
    shares[random.below(5) as usize] += 70;
    shares[random.below(5) as usize] += 30;
    // One in four about remapping, with the other unit.
    let unit = if shares[4] > 0 && random.one_in(2) { Unit::Amd } else { Unit::Vtd };
    let size = random.below(6) as u8;
    // At the end of the table, and beyond it.
    let indices = std::array::from_fn(|_| random.below(3 << size).min(511) as u16);
    let mut source = Source { random, vectors, pins, shares, indices, size, unit };
    let mut program = Vec::with_capacity(steps + 8);
    while program.len() < steps {
        source.steps(&mut program);
    }
    program.truncate(steps);
    Chosen { program: Program { number, steps: program }, unit }
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
            Some(3) => program.push(self.message_or_msi()),
            Some(_) => match self.unit {
                Unit::Vtd => self.vtd(program),
                Unit::Amd => self.amd(program),
            },
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

    fn index(&mut self) -> u16 {
        let indices = self.indices;
        if self.random.one_in(20) { self.random.next() as u16 } else { self.random.pick(&indices) }
    }

    /// A message in remappable format: the address, and the data.
    fn remappable(&mut self) -> (u32, u32) {
        let index = u32::from(self.index());
        let subhandle = self.random.one_in(3);
        let data = if subhandle { self.random.below(4) as u32 } else { self.message().1 };
        let handle = if subhandle { index.saturating_sub(data) } else { index };
        (0xfee0_0010 | (handle & 0x7fff) << 5 | handle >> 15 << 2 | u32::from(subhandle) << 3, data)
    }

    fn vtd(&mut self, program: &mut Vec<Step>) {
        let second = self.random.one_in(6);
        let size = if self.random.one_in(4) { self.random.below(10) as u8 } else { self.size };
        let step = match self.random.below(30) {
            0..3 => Step::Vtd(Vtd::On { size: self.size }),
            3 => Step::Vtd(Vtd::Table { second, size }),
            4..12 => {
                let index = self.index() % 512;
                let flags = u64::from(!self.random.one_in(6)) | self.random.below(2) << 1 | self.random.below(2) << 4;
                let reserved = if self.random.one_in(12) { 1 << (24 + self.random.below(8)) } else { 0 };
                let mode = u64::from(self.mode() >> 8) << 5;
                let to = u64::from(self.destination()) << 40;
                let low = flags | mode | u64::from(self.vector()) << 16 | to | reserved;
                // The MSI function, the MSI-X function, the IOAPIC, or nearly one of them.
                let source = self.random.pick(&[0x18, 0x18, 0x20, 0xff00, 0x1a, 0x118, 0xff18]);
                let check = self.random.pick(&[0, 0, 1, 1, 1, 2, 3]);
                let mut high = source | self.random.below(4) << 16 | check << 18;
                if check == 2 {
                    high = self.random.pick(&[0, 0x0001, 0x00ff, 0xffff, 0xff00, 0x0100]) | 2 << 18;
                }
                if self.random.one_in(16) {
                    high |= 1 << (20 + self.random.below(44));
                }
                let (all, interrupt) = (self.random.one_in(2), self.random.one_in(6));
                Step::Vtd(Vtd::Entry { second, index, low, high, all, interrupt })
            }
            12..18 => {
                let (address, data) = self.remappable();
                Step::Msi { address, data: data as u16, enable: true }
            }
            18..23 => Step::MsiEvent,
            23 => {
                // Vector 0 of the MSI-X function, from nothing to sent.
                let (address, data) = self.remappable();
                for (field, value) in
                    [(Field::Address, address.into()), (Field::Data, data.into()), (Field::Control, 0)]
                {
                    program.push(Step::MsixStore { vector: 0, field, value });
                }
                program.push(Step::MsixControl { enable: true, function_mask: false });
                Step::Event { vector: 0, times: 1 }
            }
            24 | 25 => {
                let (index, pin) = (u32::from(self.index()), self.pin());
                let value = u32::from(self.vector()) | (self.random.below(2) as u32) << 15;
                program.push(Step::IoApicStore { index: 0x11 + 2 * pin, value: (index & 0x7fff) << 17 | 1 << 16 });
                program.push(Step::IoApicStore { index: 0x10 + 2 * pin, value });
                Step::Line { chip: Chip::IoApic, pin: pin.into(), level: true }
            }
            26 => self.ioapic(),
            27 => {
                let offset = self.random.pick(&[0x9c, 0xa0, 0xa0, 0xa4, 0xa8]);
                let value = match offset {
                    0x9c => 1,
                    0xa0 => self.random.below(2) as u32 * 0x8000_0000,
                    0xa4 => u32::from(self.vector()),
                    _ => self.destination() << 12,
                };
                Step::Vtd(Vtd::Store { offset, value })
            }
            _ => {
                Step::Vtd(Vtd::Load { offset: self.random.pick(&[0, 0x18, 0x80, 0x88, 0x90, 0x9c, 0xa0, 0xb8, 0xbc]) })
            }
        };
        program.push(step);
    }

    fn amd(&mut self, program: &mut Vec<Step>) {
        let source = self.random.pick(&Sender::ALL);
        let index = self.index() & 0x7ff;
        let address = 0xfee0_0000 | self.destination() << 12;
        let step = match self.random.below(30) {
            0..3 => Step::Amd(Amd::On),
            3..10 => {
                let control = self.random.pick(&[2, 2, 2, 2, 2, 0, 1, 3]);
                let passes = self.random.below(8);
                let valid = u64::from(!self.random.one_in(8));
                let ignore = self.random.below(2);
                let interrupts = valid | ignore << 5 | passes << 56 | control << 60;
                Step::Amd(Amd::Device { source, interrupts })
            }
            10..17 => {
                let flags = u32::from(!self.random.one_in(6)) | (self.random.below(2) as u32) << 1;
                let kind = self.random.pick(&[0, 0, 0, 0, 1, 2, 3, 4, 7]) << 2;
                let entry = flags | kind | self.destination() << 8 | u32::from(self.vector()) << 16;
                Step::Amd(Amd::Entry { source, index, entry })
            }
            17..21 => {
                let mode = if self.random.one_in(5) { self.random.pick(&[2, 3, 4, 5, 6]) << 8 } else { index & 0x700 };
                Step::Msi { address, data: index & 0xff | mode, enable: true }
            }
            21..26 => Step::MsiEvent,
            26 => {
                for (field, value) in
                    [(Field::Address, address.into()), (Field::Data, index.into()), (Field::Control, 0)]
                {
                    program.push(Step::MsixStore { vector: 0, field, value });
                }
                program.push(Step::MsixControl { enable: true, function_mask: false });
                Step::Event { vector: 0, times: 1 }
            }
            27 => {
                let pin = self.pin();
                let value = u32::from(index) & 0x1ff | (self.random.below(2) as u32) << 15;
                program.push(Step::IoApicStore { index: 0x10 + 2 * pin, value });
                Step::Line { chip: Chip::IoApic, pin: pin.into(), level: true }
            }
            _ => self.ioapic(),
        };
        program.push(step);
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
        let steps = |seed, number| generate(seed, number, 60).program.steps;
        assert_eq!(steps(7, 3), steps(7, 3));
        assert_ne!(steps(7, 3), steps(8, 3));
        assert_ne!(steps(7, 3), steps(7, 4));
        assert_eq!(steps(7, 3).len(), 60);
    }
}
