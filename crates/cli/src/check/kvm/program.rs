//! Random programs: the same for the same seed, and biased to where things go wrong.

use std::ops::Range;

use doorbell::chips::x86::pic;
use doorbell::kvm_abi::types::{
    CHIP_IOAPIC, CHIP_PIC_MASTER, CHIP_PIC_SLAVE, IRQFD_DEASSIGN, IRQFD_RESAMPLE, MSI_VALID_DEVID, regs,
};
use doorbell::kvm_abi::{KvmIrqRoutingEntry, KvmMsi};

use super::super::random::Random;
use super::call::{Call, EVENTS, Fd, SOURCES, VCPUS};
use super::machines::legacy_entry;

/// GSIs that lead to the pins of the 8259 pair alone, at first.
pub const LEGACY_GSIS: Range<u32> = 40..56;
/// The GSI and the IOAPIC's pin of the real-time clock, for which KVM keeps an account of its own.
pub const CLOCK: u32 = 8;
/// Numbers around the ends of the table and beyond.
const EDGE_GSIS: [u32; 8] = [0, 23, 24, 25, 63, 4095, 4096, 100_000];
const EDGE_VECTORS: [u8; 10] = [0, 1, 5, 15, 16, 31, 32, 0x80, 254, 255];

/// A program, and where it comes from.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its number under its seed.
    pub number: u64,
    /// What it calls, in order.
    pub calls: Vec<Call>,
}

/// What a program draws from.
struct Source {
    random: Random,
    /// A few vectors, so that they meet.
    vectors: [u8; 6],
    /// A few GSIs, for the same reason.
    gsis: [u32; 5],
    /// Whether guests run: then nothing is sent that would stop them.
    guests: bool,
    /// Which VM most calls go to.
    favourite: usize,
    smi: bool,
}

/// Program `number` of `seed`, with `calls` calls; with system management interrupts among them, or not.
pub fn generate(seed: u64, number: u64, calls: usize, smi: bool) -> Program {
    let mut random = Random::of(seed, number);
    let vectors = std::array::from_fn(|_| match random.below(3) {
        0 => random.pick(&EDGE_VECTORS),
        _ => random.below(256) as u8,
    });
    let gsis = std::array::from_fn(|at| match at {
        0 | 1 => random.below(24) as u32,
        2 => 24 + random.below(8) as u32,
        3 => random.pick(&EDGE_GSIS),
        _ => random.below(32) as u32,
    });
    let guests = !random.one_in(5);
    let favourite = random.below(2) as usize;
    let mut source = Source { random, vectors, gsis, guests, favourite, smi };
    Program { number, calls: (0..calls).map(|_| source.call()).collect() }
}

impl Source {
    fn vm(&mut self) -> usize {
        if self.random.one_in(4) { 1 - self.favourite } else { self.favourite }
    }

    fn vcpu(&mut self, vm: usize) -> u32 {
        self.random.below(VCPUS[vm].into()) as u32
    }

    fn vector(&mut self) -> u32 {
        self.random.pick(&self.vectors.clone()).into()
    }

    fn gsi(&mut self) -> u32 {
        let gsi = match self.random.below(10) {
            0 => self.random.pick(&EDGE_GSIS),
            1 => self.random.below(32) as u32,
            2 => LEGACY_GSIS.start + self.random.below(16) as u32,
            _ => self.random.pick(&self.gsis.clone()),
        };
        if gsi == CLOCK { CLOCK + 1 } else { gsi }
    }

    /// A pin that a GSI of this program leads to, more often than not.
    fn pin(&mut self) -> u32 {
        match self.gsi() {
            gsi if gsi < 24 => gsi,
            _ => CLOCK + 1 + self.random.below(15) as u32,
        }
    }

    fn source(&mut self) -> usize {
        self.random.below(SOURCES as u64) as usize
    }

    fn event(&mut self) -> usize {
        self.random.below(EVENTS as u64) as usize
    }

    fn call(&mut self) -> Call {
        let vm = self.vm();
        let vcpu = self.vcpu(vm);
        match self.random.below(if self.guests { 116 } else { 80 }) {
            0..14 => self.write(),
            14..20 => self.assign(vm),
            20..25 => self.assign_resample(vm),
            25..31 => self.deassign(vm),
            31..36 => self.routes(vm),
            36..47 => {
                let (gsi, status) = (self.gsi(), !self.random.one_in(4));
                Call::Line { vm, gsi, level: self.random.below(2) as u32, status }
            }
            47..56 => self.message(vm),
            56..62 => Call::SetEntry { vm, pin: self.pin() as usize, entry: self.entry() },
            62..64 => Call::SetLatches { vm, irr: self.latches() },
            64..68 => self.set_register(vm, vcpu),
            68..73 => Call::Acknowledge { vm, vcpu },
            73..75 => Call::Read { event: self.event() },
            75 => Call::Renumber { event: self.event() },
            76..80 => self.set_pic(vm),
            80..85 => Call::Acknowledge { vm, vcpu },
            85..93 => Call::End { vm, vcpu },
            93..96 => self.store_lapic(vm, vcpu),
            96 => {
                let offset = self.random.pick(&[regs::ID, regs::TPR, regs::PPR, regs::SVR, regs::LDR, regs::ICR_LOW]);
                Call::LoadLapic { vm, vcpu, offset }
            }
            97..102 => self.store_entry(vm, vcpu),
            102..110 => self.store_port(vm, vcpu),
            110..114 => Call::LoadPort { vm, vcpu, port: self.random.pick(&pic::PORTS) },
            _ => {
                let index = self.random.pick(&[0, 1, 2, 0x10, 0x24, 0x25, 0x3f]);
                Call::LoadEntry { vm, vcpu, index }
            }
        }
    }

    fn write(&mut self) -> Call {
        let value = match self.random.below(8) {
            0 => self.random.pick(&[2, 7, 1000]),
            _ => 1,
        };
        let event = if self.random.one_in(12) { self.event() } else { self.source() };
        Call::Write { event, value }
    }

    fn fd(&mut self) -> Fd {
        match self.random.below(20) {
            0 => self.random.pick(&[Fd::NotOpen, Fd::MinusOne, Fd::NoEvent]),
            _ => Fd::Event(self.source()),
        }
    }

    fn assign(&mut self, vm: usize) -> Call {
        let flags = if self.random.one_in(20) { 4 << self.random.below(4) } else { 0 };
        Call::Irqfd { vm, fd: self.fd(), gsi: self.gsi(), flags, resample: Fd::MinusOne }
    }

    fn assign_resample(&mut self, vm: usize) -> Call {
        let resample = match self.random.below(16) {
            0 => self.random.pick(&[Fd::NotOpen, Fd::MinusOne, Fd::NoEvent]),
            _ => Fd::Event(SOURCES + self.random.below((EVENTS - SOURCES) as u64) as usize),
        };
        Call::Irqfd { vm, fd: self.fd(), gsi: self.gsi(), flags: IRQFD_RESAMPLE, resample }
    }

    fn deassign(&mut self, vm: usize) -> Call {
        let resample = if self.random.one_in(6) { IRQFD_RESAMPLE } else { 0 };
        let flags = IRQFD_DEASSIGN | resample;
        Call::Irqfd { vm, fd: self.fd(), gsi: self.gsi(), flags, resample: Fd::MinusOne }
    }

    fn routes(&mut self, vm: usize) -> Call {
        let mut entries = Vec::new();
        if !self.random.one_in(12) {
            let identity = (0..24).map(|gsi| KvmIrqRoutingEntry::pin(gsi, CHIP_IOAPIC, gsi));
            let kept: Vec<_> = identity.filter(|_| !self.random.one_in(4)).collect();
            entries.extend(kept);
            for gsi in (0..16).filter(|gsi| *gsi != CLOCK) {
                if self.random.one_in(2) {
                    entries.push(legacy_entry(gsi, gsi));
                }
            }
            for gsi in LEGACY_GSIS {
                if self.random.one_in(2) {
                    entries.push(legacy_entry(gsi, self.random.below(16) as u32));
                }
            }
            for gsi in 24..32 {
                if !self.random.one_in(3) {
                    entries.push(self.message_entry(gsi));
                }
            }
            for _ in 0..self.random.below(3) {
                let gsi = self.gsi().min(4095);
                entries.retain(|entry| entry.gsi != gsi);
                let pin = self.pin();
                let entry = if self.random.one_in(2) {
                    self.message_entry(gsi)
                } else {
                    KvmIrqRoutingEntry::pin(gsi, CHIP_IOAPIC, pin)
                };
                entries.push(entry);
            }
            if self.random.one_in(5) {
                let gsi = LEGACY_GSIS.start + self.random.below(8) as u32;
                entries.retain(|entry| entry.gsi != gsi);
                entries.push(KvmIrqRoutingEntry::pin(gsi, CHIP_PIC_MASTER, self.random.below(8) as u32));
                entries.push(KvmIrqRoutingEntry::pin(gsi, CHIP_PIC_SLAVE, self.random.below(8) as u32));
            }
            if self.random.one_in(3) {
                let wrong = self.wrong_entry();
                let at = self.random.below(entries.len() as u64 + 1) as usize;
                entries.insert(at, wrong);
            }
        }
        let mut nr = entries.len() as u32;
        let mut flags = 0;
        match self.random.below(30) {
            0 => nr = self.random.pick(&[4097, 0x8000_0000]),
            1 => flags = 1 << self.random.below(3),
            _ => {}
        }
        Call::Routes { vm, nr, flags, entries }
    }

    fn message_entry(&mut self, gsi: u32) -> KvmIrqRoutingEntry {
        let flags = if self.random.one_in(10) { MSI_VALID_DEVID } else { 0 };
        let (address, data) = (self.address(), self.data());
        KvmIrqRoutingEntry { flags, ..KvmIrqRoutingEntry::msi(gsi, address.into(), data) }
    }

    /// An entry that KVM refuses, alone or beside the others (G2 to G6).
    fn wrong_entry(&mut self) -> KvmIrqRoutingEntry {
        let pin = |gsi, chip, pin| KvmIrqRoutingEntry::pin(gsi, chip, pin);
        match self.random.below(11) {
            0 => pin(4, CHIP_IOAPIC, 24),
            1 => pin(4, CHIP_PIC_MASTER, 8),
            2 => pin(4, CHIP_PIC_SLAVE, 8),
            3 => pin(4, 3, 0),
            4 => pin(4096, CHIP_IOAPIC, 4),
            5 => pin(100_000, CHIP_IOAPIC, 4),
            6 => KvmIrqRoutingEntry { flags: 1, ..pin(4, CHIP_IOAPIC, 4) },
            7 => KvmIrqRoutingEntry { flags: 2, ..self.message_entry(24) },
            8 => KvmIrqRoutingEntry { kind: self.random.pick(&[0, 3, 6, 77]), ..self.message_entry(24) },
            // Wrong where the table has that GSI already.
            9 => self.message_entry(5),
            _ => pin(6, CHIP_IOAPIC, 7),
        }
    }

    fn destination(&mut self) -> u32 {
        self.random.pick(&[0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 0x0f, 0x11, 0x12, 0x13, 0x21, 0x80, 0xff])
    }

    fn address(&mut self) -> u32 {
        let base = if self.random.one_in(20) { self.random.pick(&[0, 0xfed0_0000, 0x1000]) } else { 0xfee0_0000 };
        let logical = u32::from(self.random.one_in(2)) << 2;
        let hint = u32::from(self.random.one_in(5)) << 3;
        base | self.destination() << 12 | hint | logical
    }

    fn mode(&mut self) -> u32 {
        // Without guests, everything may be sent.
        let modes: &[u32] = if self.guests { &[0, 0, 0, 0, 1, 1, 3, 7] } else { &[0, 0, 0, 1, 2, 3, 4, 5, 6, 7] };
        match self.random.pick(modes) {
            2 if !self.smi => 0,
            mode => mode,
        }
    }

    fn data(&mut self) -> u32 {
        let trigger = match self.random.below(6) {
            0 => 1 << 15,
            1 => 3 << 14,
            2 => 1 << 14,
            _ => 0,
        };
        self.vector() | self.mode() << 8 | trigger
    }

    fn message(&mut self, vm: usize) -> Call {
        let flags = match self.random.below(16) {
            0 => MSI_VALID_DEVID,
            1 => 2 << self.random.below(3),
            _ => 0,
        };
        let address_hi = if self.random.one_in(16) { self.random.pick(&[1, 0x100, 0xffff_ff00]) } else { 0 };
        let (address_lo, data) = (self.address(), self.data());
        Call::Msi { vm, message: KvmMsi { address_lo, address_hi, data, flags, devid: 0x18, ..KvmMsi::default() } }
    }

    /// The low half of an entry of the IOAPIC.
    fn entry_low(&mut self) -> u32 {
        let logical = u32::from(self.random.one_in(2)) << 11;
        let polarity = u32::from(self.random.one_in(6)) << 13;
        let level = u32::from(self.random.one_in(2)) << 15;
        let masked = u32::from(self.random.one_in(3)) << 16;
        let read_only = if self.random.one_in(8) { 1 << self.random.pick(&[12, 14]) } else { 0 };
        self.vector() | self.mode() << 8 | logical | polarity | level | masked | read_only
    }

    fn entry(&mut self) -> u64 {
        u64::from(self.destination()) << 56 | u64::from(self.entry_low())
    }

    fn latches(&mut self) -> u32 {
        (0..3).fold(0, |irr, _| irr | 1 << self.pin())
    }

    fn ldr(&mut self) -> u32 {
        self.random.pick(&[0, 1, 2, 4, 3, 0x11, 0x12, 0x21, 0x80, 0xff]) << 24
    }

    fn dfr(&mut self) -> u32 {
        self.random.pick(&[0xffff_ffff, 0xffff_ffff, 0x0fff_ffff])
    }

    fn svr(&mut self) -> u32 {
        self.random.pick(&[0x1ff, 0x1ff, 0x1ff, 0x1ff, 0xff, 0x100, 0x1fe])
    }

    fn set_register(&mut self, vm: usize, vcpu: u32) -> Call {
        let word = 0x10 * self.random.below(8) as usize;
        let bits = (1 << self.random.below(32)) | if self.random.one_in(2) { 1u32 << (self.vector() % 32) } else { 0 };
        let (offset, value) = match self.random.below(12) {
            0..2 => (regs::SVR, self.svr()),
            2..4 => (regs::LDR, self.ldr()),
            4 => (regs::DFR, self.dfr()),
            5 => (regs::TPR, self.random.below(256) as u32),
            6 => (regs::IRR + word, 0),
            7 => (regs::IRR + word, bits),
            8 => (regs::ISR + word, bits),
            9 => (regs::ISR + word, 0),
            10 => (regs::TMR + word, bits),
            _ => (regs::LVT_ERROR, 0x1_0000 | self.vector()),
        };
        Call::SetRegister { vm, vcpu, offset, value }
    }

    /// One byte of an 8259's state, as the chip could have it by itself.
    fn set_pic(&mut self, vm: usize) -> Call {
        let chip = self.random.pick(&[CHIP_PIC_MASTER, CHIP_PIC_SLAVE]);
        let pins = 1 << self.random.below(8) | if self.random.one_in(2) { 1 << self.random.below(8) } else { 0 };
        let (at, value) = match self.random.below(12) {
            0 => (0, pins),
            1 | 2 => (1, pins),
            3 => (2, if self.random.one_in(3) { pins } else { 0 }),
            4 | 5 => (3, if self.random.one_in(2) { pins } else { 0 }),
            6 => (4, self.random.below(8) as u8),
            7 => (5, self.random.below(32) as u8 * 8),
            8 => (9, if self.random.one_in(3) { self.random.below(4) as u8 } else { 0 }),
            9 => (14, (pins | pins << 1) & [0xf8, 0xde][chip as usize]),
            // The flags.
            _ => (self.random.pick(&[6, 7, 8, 10, 11, 12, 13]), self.random.below(2) as u8),
        };
        Call::SetPic { vm, chip, at, value }
    }

    /// A byte to one of the 8259's ports, usually one that means something there.
    fn store_port(&mut self, vm: usize, vcpu: u32) -> Call {
        let slave = self.random.one_in(2);
        let (command, data) =
            if slave { (pic::SLAVE_COMMAND, pic::SLAVE_DATA) } else { (pic::MASTER_COMMAND, pic::MASTER_DATA) };
        let byte = self.random.below(256) as u8;
        let (port, value) = match self.random.below(12) {
            // Ends, with and without rotation, then any second and third operation word.
            0..4 => (command, 0x20 | byte & 0xc7),
            4 => (command, byte & 0xe7),
            5 | 6 => (command, byte & 0x67 | 0x08),
            7 => (command, byte & 0x01 | 0x10),
            8 => (if slave { pic::SLAVE_ELCR } else { pic::MASTER_ELCR }, byte),
            9 => (self.random.pick(&pic::PORTS), byte),
            _ => (data, if self.random.one_in(2) { 0 } else { byte & self.random.below(256) as u8 }),
        };
        Call::StorePort { vm, vcpu, port, value }
    }

    fn store_lapic(&mut self, vm: usize, vcpu: u32) -> Call {
        let (offset, value) = match self.random.below(10) {
            0 => (regs::SVR, self.svr()),
            1 => (regs::LDR, self.ldr()),
            2 => (regs::DFR, self.dfr()),
            3 | 4 => (regs::TPR, self.random.below(256) as u32),
            5 => (regs::ESR, 0),
            6 => (regs::ICR_HIGH, self.destination() << 24),
            _ => {
                let mode = self.random.below(2) << 8;
                let (logical, shorthand) = (self.random.below(2) << 11, self.random.below(4) << 18);
                let trigger = self.random.pick(&[1 << 14, 1 << 14, 1 << 14, 0, 3 << 14, 1 << 15]);
                (regs::ICR_LOW, self.vector() | (mode | logical | shorthand) as u32 | trigger)
            }
        };
        Call::StoreLapic { vm, vcpu, offset, value }
    }

    fn store_entry(&mut self, vm: usize, vcpu: u32) -> Call {
        let (index, value) = match self.random.below(10) {
            0 => (self.random.pick(&[0, 1, 2, 3, 0x40]), self.random.next() as u32),
            1 | 2 => (0x11 + 2 * self.pin(), self.destination() << 24),
            _ => (0x10 + 2 * self.pin(), self.entry_low()),
        };
        Call::StoreEntry { vm, vcpu, index, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_program_and_another_seed_another() {
        let calls = |seed, number| generate(seed, number, 60, true).calls;
        assert_eq!(calls(7, 3), calls(7, 3));
        assert_ne!(calls(7, 3), calls(8, 3));
        assert_ne!(calls(7, 3), calls(7, 4));
        assert_eq!(calls(7, 3).len(), 60);
    }

    #[test]
    fn nothing_signals_the_clock() {
        for number in 0..200 {
            for call in generate(1, number, 60, true).calls {
                if let Call::Line { gsi, .. } | Call::Irqfd { gsi, .. } = call {
                    assert_ne!(gsi, CLOCK, "{call}");
                }
            }
        }
    }
}
