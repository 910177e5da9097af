//! Random programs: the same for the same seed, and biased to where things go wrong.

use super::super::super::random::Random;
use super::super::Program;
use super::icc::Register;
use super::side::{CPUS, Input};
use super::step::{COLLECTION_IDS, EDU, FIRST_LPI, Step, itt};
use crate::qtest::virt::{GICD, GICR, GICR_STRIDE, GITS, INTIDS};

const PRIVATE: u64 = 0x1_0000;
/// Registers with a bit for each interrupt, and what a share of stores goes to: groups, enables, pending and active bits.
const BITS: [u64; 9] = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x100, 0x200];
const PRIORITIES: u64 = 0x400;
const TRIGGERS: u64 = 0xc00;
const MODIFIERS: u64 = 0xd00;
const ROUTERS: u64 = 0x6000;
/// Registers of each frame by themselves.
const DISTRIBUTOR: [u64; 18] =
    [0, 0, 0, 0x04, 0x08, 0x0c, 0x10, 0x40, 0x48, 0x50, 0x58, 0x800, 0xd00, 0xe00, 0xf00, 0xf10, 0xf20, 0xffe8];
const REDISTRIBUTOR: [u64; 15] = [0, 0, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0, 0xc0, 0xffe8];
const ITS: [u64; 13] = [0, 0, 0x04, 0x08, 0x80, 0x88, 0x90, 0x100, 0x108, 0x110, 0x138, 0xffe8, 0xffd0];
const COMMANDS: [u8; 26] = [
    0x01, 0x01, 0x03, 0x03, 0x03, 0x04, 0x04, 0x05, 0x08, 0x08, 0x09, 0x09, 0x09, 0x0a, 0x0a, 0x0a, 0x0a, 0x0b, 0x0c,
    0x0c, 0x0d, 0x0e, 0x0f, 0x0f, 0x00, 0x7f,
];

struct Source {
    random: Random,
    /// A few SPIs, so that they meet.
    spis: [u32; 3],
    /// A few priorities.
    priorities: [u8; 4],
    /// A few devices, and events of each. The first is mapped at the beginning.
    devices: [u32; 3],
    events: [u32; 4],
    lpis: [u32; 4],
    /// Which stations it is about; the numbers are shares.
    shares: [u64; 6],
}

/// Program `number` of `seed`, with `steps` steps.
pub fn generate(seed: u64, number: u64, steps: usize) -> Program<Step> {
    let mut random = Random::of(seed, number);
    let spis = [32 + random.below(32) as u32, 32 + random.below(32) as u32, 224 + random.below(32) as u32];
    let priorities = std::array::from_fn(|_| random.below(32) as u8 * 8);
    let odd = random.pick(&[1, 0x10, 0xff, 0xffff]);
    let devices = if random.one_in(3) { [EDU, 0, odd] } else { [0, EDU, odd] };
    let events = std::array::from_fn(|_| random.below(6) as u32);
    let lpis = std::array::from_fn(|_| FIRST_LPI + random.below(8) as u32 * 3);
    let mut shares = [0; 6];
    shares[random.below(6) as usize] += 60;
    shares[random.below(6) as usize] += 40;
    let mut source = Source { random, spis, priorities, devices, events, lpis, shares };
    let mut program = Vec::with_capacity(steps + 16);
    source.begin(&mut program);
    while program.len() < steps {
        source.step(&mut program);
    }
    program.truncate(steps);
    Program { number, steps: program }
}

impl Source {
    /// What a guest does first; a part of it is left out now and then.
    fn begin(&mut self, program: &mut Vec<Step>) {
        let mut all = vec![Step::Store(4, GICD, if self.random.one_in(6) { 0x12 } else { 0x13 })];
        let mixed = self.random.one_in(2);
        for cpu in 0..CPUS {
            let frame = GICR + u64::from(cpu) * GICR_STRIDE;
            if mixed {
                all.push(Step::Store(4, frame + PRIVATE + 0x80, 0x0f0f_ff0f));
            }
            all.push(Step::Store(4, frame + PRIVATE + 0x100, 0xffff_ffff));
            all.push(Step::Write(cpu, Register::Pmr, 0xff));
            if self.random.one_in(3) {
                let modes = self.random.below(4);
                all.push(Step::Write(cpu, Register::Ctlr, modes));
            }
        }
        for spi in self.spis {
            let at = u64::from(spi / 32) * 4;
            if mixed && self.random.one_in(2) {
                let groups = self.value(32);
                all.push(Step::Store(4, GICD + 0x80 + at, groups));
            }
            all.push(Step::Store(4, GICD + 0x100 + at, 1 << (spi % 32)));
            let priority = self.priority();
            all.push(Step::Store(1, GICD + PRIORITIES + u64::from(spi), priority.into()));
        }
        all.retain(|_| !self.random.one_in(12));
        program.extend(all);
        if self.shares[4] > 0 && !self.random.one_in(10) {
            let indirect = self.random.one_in(4);
            program.push(Step::LpisOn(indirect));
            self.mapped(program);
        }
    }

    /// Collections, a device and events of it.
    fn mapped(&mut self, program: &mut Vec<Step>) {
        for collection in 0..2 {
            let cpu = self.random.below(2);
            program.push(Step::Command([0x09, 0, 1 << 63 | cpu << 16 | collection, 0]));
        }
        let device = self.devices[0];
        program.push(Step::Command([0x08 | u64::from(device) << 32, 4, 1 << 63 | itt(device), 0]));
        for at in 0..3 {
            let (event, lpi) = (self.events[at], self.lpis[at]);
            let config = self.config();
            program.push(Step::Config(lpi, config));
            let collection = self.random.below(2);
            program.push(Step::Command([
                0x0a | u64::from(device) << 32,
                u64::from(event) | u64::from(lpi) << 32,
                collection,
                0,
            ]));
        }
    }

    fn step(&mut self, program: &mut Vec<Step>) {
        let mut at = self.random.below(100);
        let station = self.shares.iter().position(|share| {
            let mine = at < *share;
            at = at.saturating_sub(*share);
            mine
        });
        match station {
            Some(0) | None => program.push(self.frame()),
            Some(1) => program.push(self.life()),
            Some(2) => program.push(self.icc()),
            Some(3) => program.push(self.sgi()),
            Some(4) => self.lpi(program),
            Some(_) => program.push(self.line()),
        }
    }

    fn cpu(&mut self) -> u32 {
        self.random.below(CPUS.into()) as u32
    }

    fn priority(&mut self) -> u8 {
        let priorities = self.priorities;
        self.random.pick(&priorities)
    }

    fn spi(&mut self) -> u32 {
        let spis = self.spis;
        if self.random.one_in(12) {
            32 + self.random.below(u64::from(INTIDS) - 32) as u32
        } else {
            self.random.pick(&spis)
        }
    }

    /// Any value: nothing, everything, a bit, or whatever.
    fn value(&mut self, bits: u32) -> u64 {
        let value = match self.random.below(5) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.random.below(bits.into()),
            _ => self.random.next(),
        };
        if bits == 64 { value } else { value & ((1 << bits) - 1) }
    }

    /// A register of a frame, in any size, or an offset that nobody expects.
    fn frame(&mut self) -> Step {
        let bytes = self.random.pick(&[1, 2, 4, 4, 4, 4, 8]);
        let cpu = u64::from(self.cpu());
        let (frame, length, named) = match self.random.below(5) {
            0 | 1 => (GICD, 0x1_0000, self.random.pick(&DISTRIBUTOR)),
            2 => (GICR + cpu * GICR_STRIDE, 0x2_0000, self.random.pick(&REDISTRIBUTOR)),
            3 => (GICR + cpu * GICR_STRIDE, 0x2_0000, PRIVATE + self.random.pick(&BITS)),
            _ => (GITS, 0x1_0000, self.random.pick(&ITS)),
        };
        let offset = match self.random.below(4) {
            0 => self.random.below(length),
            1 if frame == GICD => self.random.pick(&BITS) + self.random.below(0x80),
            _ => named + self.random.pick(&[0, 0, 0, 4]),
        };
        let address = frame + offset % length / u64::from(bytes) * u64::from(bytes);
        if self.random.one_in(3) {
            return Step::Load(bytes, address);
        }
        Step::Store(bytes, address, self.value(8 * u32::from(bytes)))
    }

    /// What guests do with an interrupt.
    fn life(&mut self) -> Step {
        let (cpu, spi) = (self.cpu(), self.spi());
        let private = self.random.one_in(3);
        let frame = if private { GICR + u64::from(cpu) * GICR_STRIDE + PRIVATE } else { GICD };
        let intid = if private { self.random.pick(&[0, 3, 15, 16, 27, 30]) } else { spi };
        let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
        match self.random.below(30) {
            0..6 => Step::Store(4, frame + 0x200 + word, bit),
            6 => Step::Store(4, frame + 0x280 + word, bit),
            7 | 8 => Step::Store(4, frame + self.random.pick(&BITS) + word, bit),
            9 => {
                let priority = self.priority();
                Step::Store(1, frame + PRIORITIES + u64::from(intid), priority.into())
            }
            10 => Step::Store(4, frame + TRIGGERS + u64::from(intid / 16) * 4, 2 << (intid % 16 * 2)),
            11 if !private => {
                Step::Store(8, GICD + ROUTERS + 8 * u64::from(intid), self.random.pick(&[0, 1, 1, 2, 0x100]))
            }
            11 => Step::Store(4, frame + 0x80, self.value(32)),
            12 => Step::Store(4, GICD, self.random.pick(&[0, 1, 2, 3, 3, 3])),
            13 => Step::Store(4, frame + MODIFIERS + word, bit),
            14..20 => Step::Read(cpu, self.random.pick(&[Register::Iar1, Register::Iar1, Register::Iar0])),
            20..25 => Step::WriteLast(cpu, self.random.pick(&[Register::Eoir1, Register::Eoir1, Register::Eoir0])),
            25 => Step::WriteLast(cpu, Register::Dir),
            26 => Step::Write(cpu, Register::Dir, intid.into()),
            27 => Step::Write(cpu, Register::Ctlr, self.random.below(4)),
            28 => {
                let mask = self.random.pick(&[0xff, 0xff, 0xf8, 0x80, 0x08, 0]);
                Step::Write(cpu, Register::Pmr, mask)
            }
            _ => Step::Write(cpu, self.random.pick(&[Register::Igrpen0, Register::Igrpen1]), self.random.below(2)),
        }
    }

    /// A register of the CPU interface.
    fn icc(&mut self) -> Step {
        let cpu = self.cpu();
        let registers: Vec<_> = Register::all().collect();
        let register = self.random.pick(&registers);
        match self.random.below(10) {
            0..3 => Step::Read(cpu, self.random.pick(&[Register::Iar1, Register::Iar0, Register::Iar1])),
            3 | 4 => Step::WriteLast(cpu, self.random.pick(&[Register::Eoir1, Register::Eoir0, Register::Dir])),
            5 => Step::Read(cpu, register),
            6 => Step::Write(cpu, self.random.pick(&[Register::Bpr0, Register::Bpr1]), self.random.below(9)),
            7 => Step::Write(cpu, self.random.pick(&[Register::Ap0r0, Register::Ap1r0]), self.value(32)),
            8 => self.life(),
            _ => Step::Write(cpu, register, self.value(self.random.clone().pick(&[1, 2, 8, 16, 32, 64]))),
        }
    }

    fn sgi(&mut self) -> Step {
        let cpu = self.cpu();
        match self.random.below(12) {
            0..5 => {
                let register = self.random.pick(&[Register::Sgi1r, Register::Sgi1r, Register::Sgi0r, Register::Asgi1r]);
                let targets = self.random.pick(&[1, 2, 3, 0xffff, 0x8000, 0]);
                let all = u64::from(self.random.one_in(4)) << 40;
                let elsewhere =
                    if self.random.one_in(8) { self.random.pick(&[1 << 16, 1 << 32, 1 << 44, 1 << 48]) } else { 0 };
                let intid = self.random.pick(&[0, 3, 15]);
                Step::Write(cpu, register, targets | all | elsewhere | intid << 24)
            }
            5..8 => Step::Read(cpu, self.random.pick(&[Register::Iar1, Register::Iar1, Register::Iar0])),
            8..11 => Step::WriteLast(cpu, self.random.pick(&[Register::Eoir1, Register::Eoir1, Register::Eoir0])),
            _ => self.life(),
        }
    }

    fn config(&mut self) -> u8 {
        self.priority() | u8::from(!self.random.one_in(4))
    }

    fn lpi(&mut self, program: &mut Vec<Step>) {
        let (devices, events, lpis) = (self.devices, self.events, self.lpis);
        let device = if self.random.one_in(2) { devices[0] } else { self.random.pick(&devices) };
        let event = if self.random.one_in(16) {
            self.random.pick(&[31, 32, 0xffff, 0x1_0000, u32::MAX])
        } else {
            self.random.pick(&events)
        };
        let lpi = match self.random.below(24) {
            0 => self.random.pick(&[0, 32, 8191, 65535, 65536, u32::MAX]),
            _ => self.random.pick(&lpis),
        };
        let step = match self.random.below(40) {
            0 => {
                let indirect = self.random.one_in(4);
                program.push(Step::LpisOn(indirect));
                return self.mapped(program);
            }
            1 => {
                let from = self.random.below(2);
                Step::Retire(from, 1 - from)
            }
            2..18 => Step::Command(self.command(device, event, lpi)),
            18..20 => {
                let config = self.config();
                Step::Config(self.random.pick(&lpis), config)
            }
            20..26 => Step::Message(event),
            26..30 => Step::Edu(event as u16),
            30..34 => Step::Read(self.cpu(), Register::Iar1),
            34..37 => Step::WriteLast(self.cpu(), Register::Eoir1),
            37 => {
                let config = self.config();
                Step::Config(self.random.pick(&lpis), config)
            }
            38 => Step::Store(4, GITS, self.random.below(2)),
            _ => {
                let frame = GICR + u64::from(self.cpu()) * GICR_STRIDE;
                let (offset, value) = self.random.pick(&[(0, 0), (0, 1), (0xa0, lpi), (0xb0, 0), (0xc0, 0)]);
                if offset == 0 {
                    Step::Store(4, frame, value.into())
                } else {
                    Step::Store(8, frame + offset, value.into())
                }
            }
        };
        program.push(step);
    }

    fn command(&mut self, device: u32, event: u32, lpi: u32) -> [u64; 4] {
        let number = self.random.pick(&COMMANDS);
        let first = u64::from(number) | u64::from(device) << 32;
        let collection = if self.random.one_in(10) {
            self.random.pick(&[7, 0x1fff, 0x2000, 0xffff])
        } else {
            self.random.below(COLLECTION_IDS)
        };
        let valid = u64::from(!self.random.one_in(4)) << 63;
        let cpu = if self.random.one_in(10) { self.random.below(5) } else { self.random.below(2) } << 16;
        let event = u64::from(event);
        match number {
            0x08 => {
                let bits = if self.random.one_in(10) { self.random.below(32) } else { 4 };
                [first, bits, valid | itt(device), 0]
            }
            0x09 => [first & 0xff, 0, valid | cpu | collection, 0],
            0x0a => [first, event | u64::from(lpi) << 32, collection, 0],
            0x0b => [first, if self.random.one_in(2) { lpi.into() } else { event }, collection, 0],
            0x0e => [first & 0xff, 0, cpu, self.random.below(2) << 16],
            0x05 => [first & 0xff, 0, cpu, 0],
            _ => [first, event, collection, 0],
        }
    }

    fn line(&mut self) -> Step {
        let cpu = self.cpu();
        match self.random.below(12) {
            0..5 => Step::Line(Input::Spi(self.spi()), self.random.one_in(2)),
            5 | 6 => Step::Line(Input::Ppi(cpu, self.random.pick(&[16, 27, 30])), self.random.one_in(2)),
            7 | 8 => Step::Read(cpu, Register::Iar1),
            9 => Step::WriteLast(cpu, Register::Eoir1),
            _ => self.life(),
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
