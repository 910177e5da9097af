//! Lines, messages, routes and eventfds.

use doorbell::kvm_abi::arm::types::{LineCall, LineKind, LineLayout};
use doorbell::kvm_abi::types::{IRQFD_DEASSIGN, IRQFD_RESAMPLE, MSI_VALID_DEVID};
use doorbell::kvm_abi::{KvmIrqRoutingEntry, KvmMsi};

use super::super::call::{Call, Fd};
use super::super::layout::{EVENTS, FIRST_RESAMPLE, GITS, INTIDS, TRANSLATER};
use super::super::setup;
use super::Source;

/// The message of a device, with its name.
pub fn to_event(its: usize, device: u32, event: u32) -> Call {
    let address = GITS[its] + TRANSLATER;
    let (flags, devid) = (MSI_VALID_DEVID, device);
    Call::Msi(KvmMsi { address_lo: address as u32, address_hi: 0, data: event, flags, devid, pad: [0; 12] })
}

impl Source {
    pub(super) fn line(&mut self) -> Call {
        let level = self.random.pick(&[0, 1, 1, 1, 7]);
        let kind = match self.random.below(16) {
            0 => LineKind::Cpu,
            1..5 => LineKind::Ppi,
            _ => LineKind::Spi,
        };
        let number = match (kind, self.random.below(12)) {
            (_, 0) => self.random.pick(&[0, 1, 15, 31, INTIDS, INTIDS - 1, 1020, 0xffff]),
            (LineKind::Cpu, _) => self.random.below(3) as u32,
            (LineKind::Ppi, _) => self.wired(true),
            (LineKind::Spi, _) => self.wired(false),
        };
        let vcpu = self.any_vcpu();
        let call = LineCall { kind, vcpu, number: number as u16 };
        let irq = call.encode(LineLayout::Second).unwrap_or(u32::MAX);
        let irq = if self.random.one_in(40) { irq | 3 << 24 } else { irq };
        Call::Line { irq, level }
    }

    /// A device and an event of it, mapped more often than not.
    pub(super) fn event(&mut self) -> (u32, u32) {
        match self.random.below(16) {
            0 => (self.random.pick(&[0, 99, 0xffff, 0x1_0000]), self.random.pick(&[0, 31, 32, 0xffff, 0x1_0000])),
            1 => (8, self.random.below(8) as u32),
            2..9 => (8, self.random.pick(&[3, 4])),
            9..12 => (9, self.random.below(2) as u32),
            _ => (8 + self.random.below(3) as u32, self.random.below(6) as u32),
        }
    }

    pub(super) fn message(&mut self) -> Call {
        let its = self.its();
        let (device, event) = self.event();
        let Call::Msi(mut message) = to_event(its, device, event) else { unreachable!("it is a message") };
        match self.random.below(24) {
            // Whether a message without a DeviceID is refused depends on what KVM's cache holds (Q10, Q10a); the
            // flags are wrong, or the address is that of no frame.
            0 => message.flags = self.random.pick(&[2, 3, 0x8000_0000]),
            1 => message.address_lo = self.random.pick(&[0x0900_0000, 0, GITS[1] as u32 + 0x2_0000]),
            2 => message.address_lo = self.random.pick(&[GITS[its] as u32, GITS[its] as u32 + 0x1_0044]),
            3 => message.address_hi = 1,
            _ => {}
        }
        Call::Msi(message)
    }

    pub(super) fn signal(&mut self) -> Call {
        let value = self.random.pick(&[1, 1, 1, 1, 3]);
        let event = if self.random.one_in(10) { self.random.below(EVENTS) } else { self.random.below(FIRST_RESAMPLE) };
        Call::Signal { event, value }
    }

    fn gsi(&mut self) -> u32 {
        match self.random.below(12) {
            0 => self.random.pick(&[0, 63, 64, 99, 104, 105, 4095, 4096, 100_000]),
            1..6 => 100 + self.random.below(4) as u32,
            _ => self.wired(false) - 32,
        }
    }

    pub(super) fn irqfd(&mut self) -> Call {
        let fd = match self.random.below(20) {
            0 => self.random.pick(&[Fd::MinusOne, Fd::NoEvent]),
            _ => Fd::Event(self.random.below(FIRST_RESAMPLE)),
        };
        let gsi = self.gsi();
        let (flags, resample) = match self.random.below(12) {
            0..4 => (0, Fd::MinusOne),
            4..8 => {
                let resample = match self.random.below(12) {
                    0 => self.random.pick(&[Fd::MinusOne, Fd::NoEvent]),
                    _ => Fd::Event(FIRST_RESAMPLE + self.random.below(EVENTS - FIRST_RESAMPLE)),
                };
                (IRQFD_RESAMPLE, resample)
            }
            8..11 => (IRQFD_DEASSIGN, Fd::MinusOne),
            _ => (self.random.pick(&[4, 0x80, IRQFD_DEASSIGN | IRQFD_RESAMPLE]), Fd::MinusOne),
        };
        Call::Irqfd { fd, gsi, flags, resample }
    }

    pub(super) fn routes(&mut self) -> Call {
        let mut entries = Vec::new();
        if !self.random.one_in(12) {
            let pins = (0..INTIDS - 32).map(|pin| KvmIrqRoutingEntry::pin(pin, 0, pin));
            entries.extend(pins.filter(|_| !self.random.one_in(4)).collect::<Vec<_>>());
            for gsi in 100..105 {
                if !self.random.one_in(3) {
                    let its = self.its();
                    let (device, event) = self.event();
                    entries.push(setup::message(gsi, its, device, event));
                }
            }
        }
        match self.random.below(14) {
            0 => entries.push(KvmIrqRoutingEntry::pin(
                200,
                self.random.pick(&[0, 1, 2]),
                self.random.pick(&[987, 988, 2000]),
            )),
            1 => entries.push(KvmIrqRoutingEntry::pin(self.random.pick(&[4095, 4096]), 0, 1)),
            2 => entries.push(KvmIrqRoutingEntry {
                kind: self.random.pick(&[0, 3, 4, 5, 77]),
                ..KvmIrqRoutingEntry::pin(1, 0, 1)
            }),
            3 => entries.push(KvmIrqRoutingEntry::pin(self.random.below(64) as u32, 0, 3)),
            4 => entries
                .push(KvmIrqRoutingEntry { flags: 1 << self.random.below(3), ..KvmIrqRoutingEntry::pin(210, 0, 1) }),
            5 => {
                let mut entry = setup::message(211, 0, 8, 3);
                entry.flags = self.random.pick(&[1, 2, 3]);
                entries.push(entry);
            }
            // A GSI with a message of its own, and a pin that another GSI has too.
            6 => entries.push(setup::message(self.random.below(64) as u32, 0, 8, 3)),
            _ => {}
        }
        let nr = entries.len() as u32;
        let flags = if self.random.one_in(30) { 1 } else { 0 };
        Call::Routes { nr, flags, entries }
    }
}
