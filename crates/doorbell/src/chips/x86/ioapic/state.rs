//! The IOAPIC's state: KVM's struct, and the whole.

use super::{
    IoApic, PINS, STORM,
    pin::{Due, Flags, PinState},
    registers::RedirectionEntry,
};
use crate::{Error, irq_line::IrqLine, sync::Ordering};

/// The fields of `struct kvm_ioapic_state`, which `KVM_GET_IRQCHIP` and `KVM_SET_IRQCHIP` exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoApicState {
    /// Where the window is.
    pub base_address: u64,
    /// The index register.
    pub ioregsel: u32,
    /// The id.
    pub id: u32,
    /// Latched pins, without edges that were sent.
    pub irr: u32,
    /// The redirection entries.
    pub redirtbl: [u64; PINS],
}

/// Everything that an [`IoApic`] remembers, to be restored into one with the same options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoApicSnapshot {
    /// Where the window is.
    pub base_address: u64,
    /// The index register.
    pub index: u32,
    /// The id.
    pub id: u32,
    /// Pins that the storm guard holds back, a bit each.
    pub delayed: u32,
    /// The pins.
    pub pins: [PinSnapshot; PINS],
}

/// Everything that one pin remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PinSnapshot {
    /// The redirection entry.
    pub entry: u64,
    /// The sources that drive the line, a bit each.
    pub line: u64,
    /// KVM's `irr` bit.
    pub latched: bool,
    /// KVM's `irr_delivered` bit.
    pub delivered: bool,
    /// Why it waits to be re-evaluated.
    pub due: Due,
    /// How often in a row it came again at its end; less than [`STORM`].
    pub storm: u16,
}

impl IoApic {
    /// What `KVM_GET_IRQCHIP` returns.
    pub fn state(&self) -> IoApicState {
        let pins: [PinState; PINS] = std::array::from_fn(|pin| *self.pins[pin].take());
        let irr = pins.iter().enumerate().filter(|(_, pin)| pin.flags.latched() && !pin.flags.delivered());
        IoApicState {
            // Relaxed: single registers, each means something alone.
            base_address: self.base.load(Ordering::Relaxed),
            ioregsel: self.index.load(Ordering::Relaxed),
            id: self.id.load(Ordering::Relaxed),
            irr: irr.fold(0, |irr, (pin, _)| irr | 1 << pin),
            redirtbl: pins.map(|pin| pin.entry.into_bits()),
        }
    }

    /// What `KVM_SET_IRQCHIP` does: everything is taken as it is given, lines stay as they are driven, and the pins
    /// in `irr` are raised again, in order.
    pub fn set_state(&self, state: &IoApicState) {
        let IoApicState { base_address, ioregsel, id, irr, redirtbl } = *state;
        // Relaxed: as in `state`.
        self.base.store(base_address, Ordering::Relaxed);
        self.index.store(ioregsel, Ordering::Relaxed);
        self.id.store(id, Ordering::Relaxed);
        self.delayed.store(0, Ordering::Relaxed);
        if let Some(rtc) = &self.rtc {
            rtc.forget();
        }
        for (pin, &entry) in redirtbl.iter().enumerate() {
            let entry = RedirectionEntry::from_bits(entry);
            let mut held = self.pins[pin].take_for_configuration();
            let before = held.entry;
            held.replace(entry);
            self.follow_entry(pin, before, &mut held);
            if irr >> pin & 1 == 1 {
                // KVM does not account for the clock here; it recounts afterwards.
                let send = self.sender(&held);
                held.raise(send);
            }
        }
    }

    /// Everything, for [`restore`](Self::restore).
    pub fn save(&self) -> IoApicSnapshot {
        // The accounting of the clock is recounted from the local APICs.
        let Self { target: _, options: _, pins, by_vector: _, index, id, base, delayed, rtc: _ } = self;
        IoApicSnapshot {
            // Relaxed: as in `state`.
            base_address: base.load(Ordering::Relaxed),
            index: index.load(Ordering::Relaxed),
            id: id.load(Ordering::Relaxed),
            delayed: delayed.load(Ordering::Relaxed),
            pins: std::array::from_fn(|pin| {
                let PinState { entry, line, flags } = *pins[pin].take();
                PinSnapshot {
                    entry: entry.into_bits(),
                    line: line.bits(),
                    latched: flags.latched(),
                    delivered: flags.delivered(),
                    due: flags.due(),
                    storm: flags.storm(),
                }
            }),
        }
    }

    /// Takes over a saved state; nothing is sent. With [`with_rtc`](Self::with_rtc), [`recount_clock`](Self::recount_clock)
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no IOAPIC can be in that state; nothing is changed then.
    pub fn restore(&self, snapshot: &IoApicSnapshot) -> Result<(), Error> {
        let IoApicSnapshot { base_address, index, id, delayed, pins } = snapshot;
        if delayed >> PINS != 0 {
            return Err(Error::Snapshot(format!("IOAPIC: delayed pins {delayed:#x}, but there are {PINS} pins")));
        }
        for (number, pin) in pins.iter().enumerate() {
            if pin.storm >= STORM {
                return Err(Error::Snapshot(format!("IOAPIC pin {number}: storm {} is not below {STORM}", pin.storm)));
            }
        }
        // Relaxed: as in `state`.
        self.base.store(*base_address, Ordering::Relaxed);
        self.index.store(*index, Ordering::Relaxed);
        self.id.store(*id, Ordering::Relaxed);
        self.delayed.store(*delayed, Ordering::Relaxed);
        for (number, pin) in pins.iter().enumerate() {
            let PinSnapshot { entry, line, latched, delivered, due, storm } = *pin;
            self.configure(number, |held| {
                **held = PinState {
                    entry: RedirectionEntry::from_bits(entry),
                    line: IrqLine::from_bits(line),
                    flags: Flags::new().with_latched(latched).with_delivered(delivered).with_due(due).with_storm(storm),
                };
            });
        }
        Ok(())
    }
}
