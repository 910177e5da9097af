//! The 8259 pair: 16 pins in front of one wire, INTR.
//!
//! Answers are those of KVM's (spec: x86, rows P1 to P11; Intel 8259A data sheet), down to what differs from the data
//! sheet; [`PicOptions::strict`] has the data sheet's. Every call may come from any thread. In the lock order the pair comes
//! where an IOAPIC's pin does: after the latch of a GSI; an [`Intr`] must not come back to the pair.
//!
//! An end of interrupt is a value: an access to a port and an acknowledge return the pins whose interrupt [`Ended`]. The
//! caller lowers their resampled lines, tells the resamplers and then calls [`reevaluate`](PinInput::reevaluate), as
//! [`IrqManager::end`](crate::manager::IrqManager::end) does; without resamplers, [`Pic::settle`] is enough. Until then INTR
//! stays as it was.
//!
//! ```
//! use doorbell::chips::x86::pic::{Pic, PicOptions};
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
//! use doorbell::{Delivery, LineSource, PinInput, VcpuId};
//! use std::sync::Arc;
//!
//! let apics = ApicSet::new(1, Arc::new(()), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(0)).unwrap();
//! let wire = apics.clone();
//! let pic = Pic::new(move |level| wire.set_pic_output(VcpuId(0), level), PicOptions::default());
//! // The guest's set-up: vectors 0x20 to 0x2f, everything unmasked.
//! for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 0x02),
//!     (0xa1, 0x01), (0x21, 0), (0xa1, 0)]
//! {
//!     pic.settle(pic.write(port, &[value]));
//! }
//!
//! assert_eq!(pic.pulse(0, 4, LineSource::USER), Delivery::Delivered(1));
//! assert!(cpu.next().extint, "LINT0 of the boot CPU is the 8259's after reset");
//! let taken = pic.acknowledge();
//! assert_eq!(taken.vector, 0x24);
//! pic.settle(taken.ended);
//! let ended = pic.write(0x20, &[0x20]);
//! assert_eq!(ended.chips().next().unwrap().1[..], [4], "chip 0, pin 4");
//! pic.settle(ended);
//! ```

#[cfg(all(test, not(loom)))]
mod machine;
#[cfg(all(test, loom))]
mod models;
mod pair;
mod registers;
mod shared;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

use pair::{MASTER, Pair, SLAVE, flag, with_flag};
use registers::Command;
pub use registers::{
    ELCR_MASK, EoiCommand, Icw1, Icw2, Icw4, MASTER_COMMAND, MASTER_DATA, MASTER_ELCR, Ocw2, Ocw3, PORTS, Polled,
    SLAVE_COMMAND, SLAVE_DATA, SLAVE_ELCR,
};
use shared::Shared;
pub use state::{PicSnapshot, PicState};

use crate::{
    Delivery, LineSource, PinInput, Pins,
    delivery::ChipId,
    sync::{AtomicU64, Ordering},
};

/// KVM's number for the master; the slave is the next one.
pub const CHIP: ChipId = 0;
/// How many pins each chip has.
pub const PINS: u16 = 8;

/// The wire from the pair to the CPUs.
///
/// Called inside the call that changes the level, in the order of the changes: like [`Kick`](crate::Kick), it must not
/// call back into the pair, and other callers wait until it returns.
pub trait Intr: Send + Sync {
    /// INTR has this level from now on.
    fn set(&self, level: bool);

    /// Whether any CPU takes the pair's interrupts at the moment (KVM's rule: through LINT0, or with its APIC off). Asked
    /// only before ICW1: KVM then ends the edge interrupts that it forgets.
    fn is_heard(&self) -> bool {
        true
    }
}

impl<F: Fn(bool) + Send + Sync> Intr for F {
    fn set(&self, level: bool) {
        self(level)
    }
}

/// For CPUs that look at [`Pic::output`].
impl Intr for () {
    fn set(&self, _: bool) {}
}

/// How to build a [`Pic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicOptions {
    /// Where KVM differs from the data sheet, do as that says: special mask mode has an effect, ICW1 ends what is in
    /// service, a poll leaves its interrupt in service, and the slave's request is a level that is withdrawn with its cause,
    /// so that no spurious interrupt of the slave is left behind.
    pub strict: bool,
}

/// Pins of both chips whose interrupt has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "what is still asking is offered again by `reevaluate` or `settle` only"]
pub struct Ended {
    pins: u16,
}

impl Ended {
    /// Whether nothing ended.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.pins == 0
    }

    /// The chips and their pins, the slave first: for [`IrqManager::end`](crate::manager::IrqManager::end).
    pub fn chips(self) -> impl Iterator<Item = (ChipId, Pins)> {
        [1, 0].into_iter().filter_map(move |chip| {
            let pins: Pins = (0..PINS).filter(|pin| self.pins >> (PINS * u16::from(chip) + pin) & 1 == 1).collect();
            (!pins.is_empty()).then_some((chip, pins))
        })
    }
}

/// What a CPU takes from the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The vector; that of pin 7 of a chip if nobody asked there (spec P8).
    pub vector: u8,
    /// What ended with it (automatic EOI).
    pub ended: Ended,
}

/// The pair. See the [module](self).
pub struct Pic {
    shared: Shared,
    /// Which sources drive each pin. Changed by anybody, before the pin's level in `shared`; who changed that looks here
    /// again, so that the last one leaves it as it is here.
    lines: [AtomicU64; 2 * PINS as usize],
    intr: Box<dyn Intr>,
}

impl std::fmt::Debug for Pic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pic").field("master", &self.state(0)).field("slave", &self.state(1)).finish_non_exhaustive()
    }
}

impl Pic {
    /// A pair after reset (spec P1), whose INTR is `intr`.
    pub fn new(intr: impl Intr + 'static, options: PicOptions) -> Self {
        let PicOptions { strict } = options;
        let lines = std::array::from_fn(|_| AtomicU64::new(0));
        Self { shared: Shared::new(strict), lines, intr: Box::new(intr) }
    }

    /// The level of INTR.
    #[inline]
    pub fn output(&self) -> bool {
        self.shared.requests().output()
    }

    /// A CPU takes an interrupt, which it should do while INTR is high.
    #[inline]
    pub fn acknowledge(&self) -> Acknowledged {
        self.shared.change(&*self.intr, |pair| {
            let vector = pair.acknowledge();
            Acknowledged { vector, ended: Ended { pins: pair.ended } }
        })
    }

    /// A guest's store to one of the [`PORTS`]. As in KVM, only single bytes are taken; other stores and ports are ignored.
    #[inline]
    pub fn write(&self, port: u16, data: &[u8]) -> Ended {
        let &[byte] = data else { return Ended::default() };
        match port {
            MASTER_COMMAND | SLAVE_COMMAND => self.command(chip_of(port), byte),
            MASTER_DATA | SLAVE_DATA => {
                let mut held = self.shared.configure(&*self.intr);
                let shared::Held { pair, setup, .. } = &mut held;
                pair.store(chip_of(port), byte, setup);
                Ended::default()
            }
            MASTER_ELCR | SLAVE_ELCR => {
                let mut held = self.shared.configure(&*self.intr);
                let shared::Held { pair, setup, .. } = &mut held;
                pair.store_elcr(usize::from(port - MASTER_ELCR), byte, setup);
                Ended::default()
            }
            _ => Ended::default(),
        }
    }

    #[inline]
    fn command(&self, chip: usize, byte: u8) -> Ended {
        let command = Command::from_bits(byte);
        if !command.first_initialisation() && !command.third() {
            return self.shared.change(&*self.intr, |pair| {
                pair.operate(chip, Ocw2::from_bits(byte));
                Ended { pins: pair.ended }
            });
        }
        // Not asked while the pair is held: who answers may hold locks of its own.
        let heard = command.first_initialisation() && self.intr.is_heard();
        let mut held = self.shared.configure(&*self.intr);
        let shared::Held { pair, setup, .. } = &mut held;
        if command.first_initialisation() {
            pair.initialise(chip, Icw1::from_bits(byte), setup, heard);
        } else {
            pair.select(chip, Ocw3::from_bits(byte), setup);
        }
        Ended { pins: pair.ended }
    }

    /// A guest's load from one of the [`PORTS`]: a poll if the guest asked for one, which takes an interrupt and, as in KVM,
    /// ends it. As in KVM, loads that are not of one byte give zeros; other ports give ones.
    pub fn read(&self, port: u16, data: &mut [u8]) -> Ended {
        if !PORTS.contains(&port) {
            data.fill(0xff);
            return Ended::default();
        }
        let [byte] = data else {
            data.fill(0);
            return Ended::default();
        };
        let mut held = self.shared.configure(&*self.intr);
        let shared::Held { pair, setup, .. } = &mut held;
        if matches!(port, MASTER_ELCR | SLAVE_ELCR) {
            *byte = pair.modes.elcr().to_le_bytes()[usize::from(port - MASTER_ELCR)];
            return Ended::default();
        }
        let chip = chip_of(port);
        if flag(chip, setup.poll()) {
            setup.set_poll(with_flag(chip, setup.poll(), false));
            *byte = pair.poll(chip).into_bits();
        } else {
            *byte = pair.load(chip, port & 1 == 1, *setup);
        }
        Ended { pins: pair.ended }
    }

    /// Offers again what still asks after these ends. For a machine without resamplers; else
    /// [`IrqManager::end`](crate::manager::IrqManager::end) does it.
    #[inline]
    pub fn settle(&self, ended: Ended) {
        if !ended.is_empty() {
            self.shared.reevaluate(&*self.intr);
        }
    }

    /// Brings INTR up to date, as KVM does whenever a VMM has set the state of any of its chips.
    pub fn refresh(&self) {
        self.shared.change(&*self.intr, Pair::update);
    }

    /// Drives one source of a pin, 0 to 15.
    #[inline]
    fn drive(&self, pin: usize, source: LineSource, level: bool) -> Delivery {
        let line = &self.lines[pin];
        // Relaxed, here and below: ordered by the change of the pair that follows, and `follow` looks again.
        let before = line.load(Ordering::Relaxed);
        let others = if (before & source.bit() != 0) == level {
            before & !source.bit()
        } else if level {
            line.fetch_or(source.bit(), Ordering::Relaxed)
        } else {
            line.fetch_and(!source.bit(), Ordering::Relaxed) & !source.bit()
        };
        self.follow(pin, level || others != 0)
    }

    /// Shows the pair the level of a line, until it is the one that the line has.
    #[inline]
    fn follow(&self, pin: usize, mut high: bool) -> Delivery {
        let show = |high| {
            self.shared.change(&*self.intr, |pair| {
                let delivery = pair.drive(pin, high);
                pair.update();
                delivery
            })
        };
        let delivery = show(high);
        // Whoever changes the line shows it afterwards, so the last one to show it finds it as it is. Each further round
        // is another caller's change.
        while (self.lines[pin].load(Ordering::Relaxed) != 0) != high {
            high = !high;
            show(high);
        }
        delivery
    }
}

/// Which chip a command or data port belongs to.
fn chip_of(port: u16) -> usize {
    if port & 0x80 == 0 { MASTER } else { SLAVE }
}

/// The number of a pin in the pair.
fn number(chip: ChipId, pin: u16) -> Option<usize> {
    (chip <= CHIP + 1 && pin < PINS).then(|| usize::from(PINS * u16::from(chip) + pin))
}

impl PinInput for Pic {
    fn pins(&self, chip: ChipId) -> u16 {
        if chip <= CHIP + 1 { PINS } else { 0 }
    }

    #[inline]
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        number(chip, pin).map_or(Delivery::Ignored, |pin| self.drive(pin, source, level))
    }

    #[inline]
    fn pulse(&self, chip: ChipId, pin: u16, source: LineSource) -> Delivery {
        let Some(pin) = number(chip, pin) else { return Delivery::Ignored };
        // Relaxed: as in `drive`.
        if self.lines[pin].load(Ordering::Relaxed) != 0 {
            let delivery = self.drive(pin, source, true);
            self.drive(pin, source, false);
            return delivery;
        }
        let delivery = self.shared.change(&*self.intr, |pair| {
            let delivery = pair.drive(pin, true);
            pair.update();
            pair.drive(pin, false);
            pair.update();
            delivery
        });
        if self.lines[pin].load(Ordering::Relaxed) != 0 {
            // Raised by another source meanwhile.
            self.follow(pin, true);
        }
        delivery
    }

    #[inline]
    fn reevaluate(&self, chip: ChipId, _: &Pins) {
        if chip <= CHIP + 1 {
            self.shared.reevaluate(&*self.intr);
        }
    }
}
