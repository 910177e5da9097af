//! The inputs of a GIC: SPIs as pins, PPIs, and messages.
//!
//! A line is the OR of its sources. The sources of an SPI are one word, so exactly one of them makes it rise and one makes
//! it fall: a rising edge is latched once. The level that the state of the SPI shows follows the word, and whoever changed
//! the word last looks at it again, so that the two agree when everybody has returned.

use super::{
    Gic,
    intid::{FIRST_SPI, PPIS, SPIS},
    irq::{Irq, IrqState},
};
use crate::{
    Delivery, PinInput, Pins, VcpuId,
    delivery::ChipId,
    irq_line::{IrqLine, LineSource},
    sync::Ordering,
};

/// KVM's number of the chip.
pub const CHIP: ChipId = 0;

/// The source that stands for messages to a level-sensitive SPI.
pub const MESSAGE: LineSource = match LineSource::new(LineSource::COUNT - 1) {
    Some(source) => source,
    None => LineSource::USER,
};

impl PinInput for Gic {
    fn pins(&self, chip: ChipId) -> u16 {
        if chip == CHIP { SPIS } else { 0 }
    }

    #[inline]
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        let Some((intid, irq)) = self.spi_of(chip, pin) else { return Delivery::Ignored };
        if self.options.behaviour.one_wire {
            return self.set_wire(irq, intid, level);
        }
        // AcqRel: orders the accesses of one source before those of the next.
        let line = &self.lines[usize::from(pin)];
        let before = if level {
            line.fetch_or(source.bit(), Ordering::AcqRel)
        } else {
            line.fetch_and(!source.bit(), Ordering::AcqRel)
        };
        let after = if level { before | source.bit() } else { before & !source.bit() };
        if (before == 0) == (after == 0) {
            // Another source holds it, or this one has said so already.
            return if level { Delivery::Coalesced } else { Delivery::Delivered(1) };
        }
        let (was, _) = self.update(irq, intid, |state| {
            let state = state.with_line(level);
            if level && state.edge() { state.with_latch(true) } else { state }
        });
        self.follow_line(pin, irq, intid, level);
        answer(level, was)
    }

    #[inline]
    fn pulse(&self, chip: ChipId, pin: u16, source: LineSource) -> Delivery {
        let Some((intid, irq)) = self.spi_of(chip, pin) else { return Delivery::Ignored };
        if self.options.behaviour.one_wire {
            // KVM's irqfd raises the line of an SPI, and leaves it to the line call to lower it.
            return self.set(chip, pin, source, true);
        }
        // Acquire: pairs with the AcqRel of who let the line go last.
        if self.lines[usize::from(pin)].load(Ordering::Acquire) != 0 {
            let delivery = self.set(chip, pin, source, true);
            self.set(chip, pin, source, false);
            return delivery;
        }
        // Nobody drives it, so the line is left alone. Of a pulse, an SPI that follows its level keeps nothing.
        let (was, _) = self.update(irq, intid, |state| if state.edge() { state.with_latch(true) } else { state });
        answer(true, was)
    }

    /// An SPI whose line is still high is pending again by itself when it is deactivated: there is nothing to send.
    fn reevaluate(&self, _chip: ChipId, _pins: &Pins) {}
}

impl Gic {
    /// Drives the line of a PPI, an INTID from 16 to 31.
    pub fn set_ppi(&self, vcpu: VcpuId, intid: u8, level: bool) -> Delivery {
        let intid = u32::from(intid);
        let cpu = self.cpus.get(vcpu.0 as usize).filter(|_| PPIS.contains(&intid));
        let Some(irq) = cpu.and_then(|cpu| cpu.private.get(intid as usize)) else { return Delivery::Ignored };
        if self.options.behaviour.one_wire {
            return self.set_wire(irq, intid, level);
        }
        let (was, _) = self.update(irq, intid, |state| {
            let rises = level && !state.line();
            let state = state.with_line(level);
            if rises && state.edge() { state.with_latch(true) } else { state }
        });
        if level && was.line() { Delivery::Coalesced } else { answer(level, was) }
    }

    /// A message to an SPI (GICD_SETSPI_NSR and GICD_CLRSPI_NSR): an edge is latched or taken back; an SPI that follows its
    /// level has it driven by [`MESSAGE`].
    pub fn message_spi(&self, intid: u32, level: bool) -> Delivery {
        let pin = intid.checked_sub(FIRST_SPI).and_then(|pin| u16::try_from(pin).ok());
        let Some((intid, irq)) = pin.and_then(|pin| self.spi_of(CHIP, pin)) else { return Delivery::Ignored };
        let edge = irq.state().edge();
        if !edge || !level {
            // Also for an edge: it may have followed its level when the message came that is taken back now.
            let delivery = self.set(CHIP, (intid - FIRST_SPI) as u16, MESSAGE, level);
            if !edge {
                return delivery;
            }
        }
        let (was, _) = self.update(irq, intid, |state| state.with_latch(level));
        answer(level, was)
    }

    #[inline]
    fn spi_of(&self, chip: ChipId, pin: u16) -> Option<(u32, &Irq)> {
        let irq = self.spis.get(usize::from(pin)).filter(|_| chip == CHIP)?;
        Some((FIRST_SPI + u32::from(pin), irq))
    }

    /// KVM's one wire: a level is what was said last, and each 1 is an edge.
    fn set_wire(&self, irq: &Irq, intid: u32, level: bool) -> Delivery {
        let (was, _) = self.update(irq, intid, |state| match (state.edge(), level) {
            (true, true) => state.with_latch(true),
            (true, false) => state,
            (false, _) => state.with_line(level),
        });
        answer(level, was)
    }

    /// Lets the level of an SPI follow its sources, of which the caller has written `shown`.
    #[inline]
    fn follow_line(&self, pin: u16, irq: &Irq, intid: u32, mut shown: bool) {
        loop {
            // SeqCst: after the exchange of the state. Of two who changed the sources, the one whose exchange comes later
            // sees here what the other one made of them.
            let high = IrqLine::from_bits(self.lines[usize::from(pin)].load(Ordering::SeqCst)).is_high();
            if high == shown {
                return;
            }
            self.update(irq, intid, |state| state.with_line(high));
            shown = high;
        }
    }
}

/// What became of a change of the level: KVM has no errors here, and a line that falls always arrives.
fn answer(level: bool, was: IrqState) -> Delivery {
    if level && was.pending() { Delivery::Coalesced } else { Delivery::Delivered(1) }
}

#[cfg(all(test, not(loom)))]
mod tests;
