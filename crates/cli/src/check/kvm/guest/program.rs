//! Random programs with a guest: the same for the same seed, and biased to where things meet.

use doorbell::MsiMessage;
use doorbell::kvm_abi::types::regs;

use super::call::{Call, SOURCES};
use super::chips::{EXTERNAL, MESSAGE_GSIS, MESSAGES};
use super::code::{LAPIC, Operation, Policy};
use super::machine::VCPUS;
use crate::check::random::Random;

/// The pin of the real-time clock, for which KVM keeps an account of its own.
const CLOCK: u32 = 8;

/// What a program draws from.
struct Source {
    random: Random,
    /// A few vectors, so that they meet, in one class and in several: three of level pins, two of edge pins, and one of
    /// level messages.
    vectors: [u8; 6],
    /// A few pins, for the same reason.
    pins: [u32; 3],
    /// The vCPU that most steps go to.
    favourite: u32,
    /// The low half of TPR is used, and CR8 is not: a store to it that changes only that half cannot be seen by user space.
    fine_priority: bool,
    /// The vCPUs that may not have taken their NMI yet: they are sent no second one.
    nmi: [bool; VCPUS as usize],
    /// The IOAPIC is outside of the kernel, which reports the ends of level interrupts only: then pins are level, and have
    /// vectors of their own.
    split: bool,
    /// The boot CPU hears the 8259 pair.
    pic: bool,
    /// Pins of the pair may be level. With automatic EOI, such a pin would interrupt for ever.
    pic_level: bool,
}

/// What a program with a guest runs beside the kernel's chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// doorbell's chips.
    Soft,
    /// These, with the 8259 pair heard.
    External,
    /// A split chip.
    Split,
}

impl Kind {
    /// That of program `number` of `seed`.
    pub fn of(seed: u64, number: u64) -> Self {
        Random::of(seed, !number).pick(&[Self::Soft, Self::Soft, Self::External, Self::Split])
    }
}

/// The steps of program `number` of `seed`.
pub fn generate(seed: u64, number: u64, steps: usize, kind: Kind) -> Vec<Call> {
    let mut random = Random::of(seed ^ 0x6775_6573_7400_0000, number);
    let mut vectors = std::array::from_fn(|_| 0x20 + random.below(0xe0) as u8);
    // Two of one class, one that is as high as can be, and sometimes one that is lower than exceptions should be.
    vectors[1] = vectors[0] & 0xf0 | random.below(16) as u8;
    vectors[2] = random.pick(&[0xff, 0xfe, 0xf0, 0x20, 0x31]);
    if kind != Kind::External {
        // There, handlers of low vectors must not end what is in service in the local APIC.
        vectors[3] = random.pick(&[vectors[3], vectors[3], 0x1f, 0x13, 0x05]);
    }
    // All different: those who share a vector are of one kind.
    for place in 1..vectors.len() {
        while vectors[..place].contains(&vectors[place]) {
            vectors[place] = vectors[place].wrapping_add(1).max(0x10);
        }
    }
    let pins = std::array::from_fn(|_| pin(&mut random));
    let favourite = random.below(VCPUS.into()) as u32;
    let (split, pic) = (kind == Kind::Split, kind == Kind::External);
    let pic_level = random.one_in(2);
    let fine_priority = random.one_in(2);
    let mut source =
        Source { random, vectors, pins, favourite, fine_priority, nmi: [false; VCPUS as usize], split, pic, pic_level };
    let mut calls = source.beginning();
    while calls.len() < steps {
        let call = source.call();
        if let Call::Guest { vcpu, .. } = call {
            source.nmi[vcpu as usize] = false;
        }
        calls.push(call);
    }
    calls
}

fn pin(random: &mut Random) -> u32 {
    match random.below(24) as u32 {
        CLOCK => CLOCK + 1,
        pin => pin,
    }
}

impl Source {
    fn vcpu(&mut self) -> u32 {
        if self.random.one_in(4) { self.random.below(VCPUS.into()) as u32 } else { self.favourite }
    }

    /// A vector of a message.
    fn vector(&mut self) -> u8 {
        let own = if self.split { 3..6 } else { 0..6 };
        self.random.pick(&self.vectors[own])
    }

    /// Trigger mode and vector of a pin.
    fn pin_kind(&mut self, pin: u32) -> u32 {
        if self.split {
            // It keeps its vector: the kernel has no route for that of a masked entry, and reports no end of it.
            let place = self.pins.iter().position(|&own| own == pin).unwrap_or(0);
            return 1 << 15 | u32::from(self.vectors[place]);
        }
        if !self.random.one_in(3) {
            1 << 15 | u32::from(self.random.pick(&self.vectors[..3]))
        } else {
            self.random.pick(&self.vectors[3..5]).into()
        }
    }

    fn any_vector(&mut self) -> u8 {
        self.random.pick(&self.vectors)
    }

    fn pin(&mut self) -> u32 {
        self.random.pick(&self.pins)
    }

    fn gsi(&mut self) -> u32 {
        if self.random.one_in(4) { MESSAGES + self.random.below(MESSAGE_GSIS.into()) as u32 } else { self.pin() }
    }

    /// Handlers, and entries of the IOAPIC: a program that first has to find both would take few interrupts.
    fn beginning(&mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        if self.pic {
            calls.extend(self.initialise(0x20, 0x00, 0x04));
            calls.extend(self.initialise(0xa0, 0x08, 0x02));
        }
        for _ in 0..3 {
            calls.push(self.handler());
        }
        for pin in self.pins {
            let vcpu = self.vcpu();
            let high = [0x11 + 2 * u64::from(pin), u64::from(self.favourite) << 24];
            calls.push(Call::Guest { vcpu, operation: Operation::StoreIoApic, arguments: high });
            let low = [0x10 + 2 * u64::from(pin), self.pin_kind(pin).into()];
            calls.push(Call::Guest { vcpu, operation: Operation::StoreIoApic, arguments: low });
        }
        for source in 0..2 {
            let resample = !self.random.one_in(3);
            calls.push(Call::Bind { source, gsi: self.pin(), resample });
        }
        calls
    }

    fn out(&mut self, port: u64, value: u8) -> Call {
        Call::Guest { vcpu: self.vcpu(), operation: Operation::Out, arguments: [port, value.into()] }
    }

    /// Initialises one of the 8259 pair: ICW1 to ICW4, and a mask.
    fn initialise(&mut self, port: u64, base: u8, cascade: u8) -> [Call; 5] {
        let automatic = u8::from(!self.pic_level && self.random.one_in(2)) << 1;
        let nested = u8::from(self.random.one_in(6)) << 4;
        let mask = self.random.pick(&[0, 0, 0x08, 0x40]);
        [(0, 0x11), (1, base), (1, cascade), (1, 1 | automatic | nested), (1, mask)]
            .map(|(register, value)| self.out(port + register, value))
    }

    /// A step with the 8259 pair.
    fn external(&mut self) -> Call {
        let port = self.random.pick(&[0x20, 0x20, 0xa0]);
        let pin = self.random.pick(&[0, 1, 3, 4, 6, 7]);
        match self.random.below(16) {
            0..6 => {
                let gsi = EXTERNAL + self.random.pick(&[0, 1, 3, 4, 7, 8, 9, 12, 15]);
                Call::Line { gsi, level: !self.random.one_in(3) }
            }
            6..9 => self.out(port, 0x20),
            9 => self.out(port, 0x60 | pin),
            10 => {
                // The rotations, and a priority.
                let command = self.random.pick(&[0xa0, 0xe0, 0xc0, 0x80, 0x00]);
                self.out(port, command | pin)
            }
            11 => {
                // Read IRR, read ISR, poll, special mask on and off.
                let word = self.random.pick(&[0x0a, 0x0b, 0x0c, 0x68, 0x48]);
                self.out(port, word)
            }
            12 => {
                let mask = self.random.pick(&[0, 0, 0xff, 0x01, 0x08, 0x84]);
                self.out(port + 1, mask)
            }
            13 if self.pic_level => {
                let level = self.random.pick(&[0, 0xff, 0x18, 0x80]);
                let elcr = 0x4d0 + self.random.below(2);
                self.out(elcr, level)
            }
            _ => {
                let port = self.random.pick(&[0x20, 0xa0, 0x21, 0xa1, 0x4d0]);
                Call::Guest { vcpu: self.vcpu(), operation: Operation::In, arguments: [port, 0] }
            }
        }
    }

    fn call(&mut self) -> Call {
        if self.pic && self.random.one_in(2) {
            return self.external();
        }
        if self.random.one_in(60) {
            return Call::Timer { vcpu: self.vcpu(), vector: self.vector(), periodic: self.random.one_in(2) };
        }
        let vcpu = self.vcpu();
        match self.random.below(100) {
            0..13 => self.message(),
            13..24 => Call::Line { gsi: self.pin(), level: !self.random.one_in(3) },
            24..30 => Call::Write { source: self.random.below(SOURCES as u64) as usize },
            30..32 => {
                let source = self.random.below(SOURCES as u64) as usize;
                Call::Bind { source, gsi: self.gsi(), resample: self.random.one_in(2) }
            }
            32 => Call::Unbind { source: self.random.below(SOURCES as u64) as usize, gsi: self.gsi() },
            33..35 => Call::Read { source: self.random.below(SOURCES as u64) as usize },
            35..38 => self.handler(),
            38..46 => Call::told(vcpu, Operation::Nothing),
            46..60 => Call::store(vcpu, regs::EOI, 0),
            60..66 if self.fine_priority => Call::store(vcpu, regs::TPR, self.priority()),
            60..62 => Call::store(vcpu, regs::TPR, self.priority() & 0xf0),
            62..66 => {
                let arguments = [0, u64::from(self.priority() >> 4)];
                Call::Guest { vcpu, operation: Operation::SetCr8, arguments }
            }
            66 => Call::told(vcpu, Operation::GetCr8),
            67..69 => Call::told(vcpu, Operation::Disable),
            69..73 => Call::told(vcpu, Operation::Enable),
            73 => Call::told(vcpu, Operation::Halt),
            74..82 => Call::store(vcpu, regs::ICR_LOW, self.command()),
            82..84 => Call::store(vcpu, regs::ICR_HIGH, self.destination() << 24),
            84..91 => self.store_entry(vcpu),
            91..93 => {
                let arguments = [0x10 + 2 * u64::from(self.pin()), 0];
                Call::Guest { vcpu, operation: Operation::LoadIoApic, arguments }
            }
            93..98 => Call::load(vcpu, self.register()),
            98 if !self.pic => Call::store(vcpu, regs::SVR, self.random.pick(&[0x1ff, 0x1ff, 0x1ff, 0xff])),
            _ => match self.random.below(3) {
                0 => Call::store(vcpu, regs::DFR, self.random.pick(&[0xffff_ffff, 0xffff_ffff, 0x0fff_ffff])),
                _ => Call::store(vcpu, regs::LDR, self.random.pick(&[0, 1, 2, 4, 3, 0x11, 0x12, 0x80]) << 24),
            },
        }
    }

    fn handler(&mut self) -> Call {
        // A handler that lets others in would let in those of the pair, which the host cannot take there.
        let nests = if self.pic { Policy::End } else { Policy::NestAndEnd };
        let policy = self.random.pick(&[Policy::Leave, Policy::End, Policy::End, nests]);
        let vcpu = if self.random.one_in(3) { self.vcpu() } else { self.favourite };
        Call::Handler { vcpu, vector: self.any_vector(), policy }
    }

    /// What a program raises the priority to: around its own vectors.
    fn priority(&mut self) -> u32 {
        match self.random.below(4) {
            0 | 1 => 0,
            2 => (u32::from(self.any_vector()) & 0xf0) + self.random.below(2) as u32 * 0xf,
            _ => self.random.below(256) as u32,
        }
    }

    fn register(&mut self) -> usize {
        let word = 0x10 * usize::from(self.any_vector() >> 5);
        let fixed = [regs::PPR, regs::PPR, regs::TPR, regs::ICR_LOW, regs::ID, regs::SVR];
        match self.random.below(4) {
            0 => self.random.pick(&[regs::ISR, regs::IRR, regs::TMR]) + word,
            _ => self.random.pick(&fixed),
        }
    }

    fn destination(&mut self) -> u32 {
        self.random.pick(&[0, 1, 2, 2, 3, 4, 5, 6, 7, 0x11, 0x80, 0xff])
    }

    fn message(&mut self) -> Call {
        let favourite = self.favourite as usize;
        if self.random.one_in(10) && !self.nmi[favourite] {
            self.nmi[favourite] = true;
            let address = LAPIC | (favourite as u64) << 12;
            return Call::Message(MsiMessage::new(address, 0x400 | u32::from(self.vector())));
        }
        let to_favourite = !self.random.one_in(3);
        let destination = if to_favourite { self.favourite } else { self.destination() };
        let logical = u32::from(!to_favourite && self.random.one_in(2)) << 2;
        let hint = u32::from(self.random.one_in(6)) << 3;
        let mode = self.random.pick(&[0, 0, 0, 0, 1]) << 8;
        let address = LAPIC | u64::from(destination << 12 | hint | logical);
        // A level message has a vector that no pin has.
        let (vector, trigger) = if self.random.one_in(6) { (self.vectors[5], 3 << 14) } else { (self.vector(), 0) };
        Call::Message(MsiMessage::new(address, u32::from(vector) | mode | trigger))
    }

    /// The low half of the interrupt command register.
    fn command(&mut self) -> u32 {
        if self.random.one_in(10) {
            return 4 << 8 | 1 << 14 | 1 << 18 | u32::from(self.vector());
        }
        let mode = self.random.pick(&[0, 0, 0, 1]) << 8;
        let logical = u32::from(self.random.one_in(3)) << 11;
        let level = self.random.one_in(6);
        let (vector, trigger) =
            if level { (self.vectors[5], 3 << 14) } else { (self.vector(), self.random.pick(&[1 << 14, 1 << 14, 0])) };
        let shorthand = self.random.pick(&[0, 0, 1, 1, 2, 3]) << 18;
        u32::from(vector) | mode | logical | trigger | shorthand
    }

    fn store_entry(&mut self, vcpu: u32) -> Call {
        let number = self.pin();
        let pin = u64::from(number);
        let arguments = match self.random.below(6) {
            0 => [0x11 + 2 * pin, u64::from(self.destination()) << 24],
            _ => {
                let mode = self.random.pick(&[0, 0, 0, 1]) << 8;
                let logical = u32::from(self.random.one_in(3)) << 11;
                let masked = u32::from(self.random.one_in(3)) << 16;
                [0x10 + 2 * pin, u64::from(self.pin_kind(number) | mode | logical | masked)]
            }
        };
        Call::Guest { vcpu, operation: Operation::StoreIoApic, arguments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_program_and_another_seed_another() {
        assert_eq!(generate(7, 3, 60, Kind::Soft), generate(7, 3, 60, Kind::Soft));
        assert_ne!(generate(7, 3, 60, Kind::Soft), generate(8, 3, 60, Kind::Soft));
        assert_ne!(generate(7, 3, 60, Kind::Soft), generate(7, 4, 60, Kind::Soft));
        assert_eq!(generate(7, 3, 60, Kind::Soft).len(), 60);
    }
}
