//! The pair's state: KVM's struct for each chip, and the whole.

use super::{
    PINS, Pic,
    pair::{Modes, Pair, Requests, Setup, flag, with_flag},
    shared::Held,
};
use crate::{Error, delivery::ChipId, sync::Ordering};

/// The fields of `struct kvm_pic_state`, which `KVM_GET_IRQCHIP` and `KVM_SET_IRQCHIP` exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PicState {
    /// The levels that the edge detectors remember, a bit for each pin, as in the next three.
    pub last_irr: u8,
    /// Requests.
    pub irr: u8,
    /// Mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// The pin of highest priority, 0 to 7.
    pub priority_add: u8,
    /// The vector of pin 0.
    pub irq_base: u8,
    /// Loads of the command port give ISR.
    pub read_isr: bool,
    /// The next load polls.
    pub poll: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Which initialisation word comes next: 0 none, 1 ICW2, 2 ICW3, 3 ICW4. With another one, which only a VMM can write,
    /// stores to the data port do nothing.
    pub init_state: u8,
    /// Automatic EOI.
    pub auto_eoi: bool,
    /// Rotation on automatic EOI.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub fully_nested: bool,
    /// ICW1 announced an ICW4.
    pub fourth_follows: bool,
    /// Level pins.
    pub elcr: u8,
    /// Pins that the guest may make level.
    pub elcr_mask: u8,
}

/// Everything that a [`Pic`] remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PicSnapshot {
    /// The master and the slave.
    pub chips: [PicState; 2],
    /// The sources that drive each pin, a bit each.
    pub lines: [u64; 2 * PINS as usize],
    /// INTR.
    pub output: bool,
    /// An interrupt has ended, and what still asks has not been offered again.
    pub due: bool,
}

fn get(chip: usize, pair: &Pair, setup: Setup) -> PicState {
    let Pair { requests, modes, strict: _, ended: _ } = *pair;
    let byte = |word: u16| word.to_le_bytes()[chip];
    PicState {
        last_irr: byte(requests.last()),
        irr: byte(requests.irr()),
        imr: byte(modes.imr()),
        isr: byte(requests.isr()),
        priority_add: modes.first(chip),
        irq_base: modes.base(chip),
        read_isr: flag(chip, setup.read_isr()),
        poll: flag(chip, setup.poll()),
        special_mask: flag(chip, modes.special_mask()),
        init_state: setup.next(chip),
        auto_eoi: flag(chip, modes.auto_eoi()),
        rotate_on_auto_eoi: flag(chip, modes.rotate_on_auto_eoi()),
        fully_nested: flag(chip, modes.fully_nested()),
        fourth_follows: flag(chip, setup.fourth_follows()),
        elcr: byte(modes.elcr()),
        elcr_mask: byte(setup.elcr_mask()),
    }
}

fn set(chip: usize, state: &PicState, pair: &mut Pair, setup: &mut Setup) {
    let PicState { last_irr, irr, imr, isr, priority_add, irq_base, read_isr, poll, .. } = *state;
    let PicState { special_mask, init_state, auto_eoi, rotate_on_auto_eoi, fully_nested, fourth_follows, .. } = *state;
    let PicState { elcr, elcr_mask, .. } = *state;
    let with = |word: u16, byte: u8| {
        let mut bytes = word.to_le_bytes();
        bytes[chip] = byte;
        u16::from_le_bytes(bytes)
    };
    let Pair { requests, modes, strict: _, ended: _ } = *pair;
    pair.requests = requests
        .with_last(with(requests.last(), last_irr))
        .with_irr(with(requests.irr(), irr))
        .with_isr(with(requests.isr(), isr));
    pair.modes = modes
        .with_imr(with(modes.imr(), imr))
        .with_elcr(with(modes.elcr(), elcr))
        .with_first(chip, priority_add)
        .with_base(chip, irq_base)
        .with_special_mask(with_flag(chip, modes.special_mask(), special_mask))
        .with_auto_eoi(with_flag(chip, modes.auto_eoi(), auto_eoi))
        .with_rotate_on_auto_eoi(with_flag(chip, modes.rotate_on_auto_eoi(), rotate_on_auto_eoi))
        .with_fully_nested(with_flag(chip, modes.fully_nested(), fully_nested));
    *setup = setup
        .with_next(chip, init_state)
        .with_read_isr(with_flag(chip, setup.read_isr(), read_isr))
        .with_poll(with_flag(chip, setup.poll(), poll))
        .with_fourth_follows(with_flag(chip, setup.fourth_follows(), fourth_follows))
        .with_elcr_mask(with(setup.elcr_mask(), elcr_mask));
}

impl Pic {
    /// What `KVM_GET_IRQCHIP` returns for a chip, 0 or 1.
    pub fn state(&self, chip: ChipId) -> PicState {
        let held = self.shared.configure(&*self.intr);
        get(usize::from(chip & 1), &held.pair, held.setup)
    }

    /// What `KVM_SET_IRQCHIP` does to a chip, 0 or 1: everything is taken as it is given, apart from bits 7:3 of
    /// `priority_add`, which mean nothing; lines stay as they are driven, and INTR is brought up to date.
    pub fn set_state(&self, chip: ChipId, state: &PicState) {
        let mut held = self.shared.configure(&*self.intr);
        let Held { pair, setup, .. } = &mut held;
        set(usize::from(chip & 1), state, pair, setup);
        pair.update();
    }

    /// Back to the state after reset (spec P1). Lines stay as their sources drive them, as on hardware; those that are high
    /// are noticed when they are driven again.
    pub fn reset(&self) {
        let mut held = self.shared.configure(&*self.intr);
        let Held { pair, setup, .. } = &mut held;
        let generation = pair.requests.generation();
        pair.requests = Requests::new().with_generation(generation);
        pair.modes = Modes::new();
        *setup = Setup::new().with_elcr_mask(super::ELCR_MASK);
    }

    /// Everything, for [`restore`](Self::restore), at a moment when the sources are quiet.
    pub fn save(&self) -> PicSnapshot {
        let Self { shared, lines, intr } = self;
        let held = shared.configure(&**intr);
        let requests = held.pair.requests;
        PicSnapshot {
            chips: [0, 1].map(|chip| get(chip, &held.pair, held.setup)),
            // Relaxed: the sources are quiet.
            lines: std::array::from_fn(|pin| lines[pin].load(Ordering::Relaxed)),
            output: requests.output(),
            due: requests.due(),
        }
    }

    /// Takes over a saved state. INTR is told if it changes by that.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no pair can be in that state; nothing is changed then.
    pub fn restore(&self, snapshot: &PicSnapshot) -> Result<(), Error> {
        let PicSnapshot { chips, lines, output, due } = snapshot;
        for (number, chip) in chips.iter().enumerate() {
            if u16::from(chip.priority_add) >= PINS {
                let first = chip.priority_add;
                return Err(Error::Snapshot(format!("8259 {number}: pin {first} has the highest priority of 8")));
            }
        }
        let mut held = self.shared.configure(&*self.intr);
        let Held { pair, setup, .. } = &mut held;
        for (number, chip) in chips.iter().enumerate() {
            set(number, chip, pair, setup);
        }
        pair.requests.set_output(*output);
        pair.requests.set_due(*due);
        for (line, &sources) in self.lines.iter().zip(lines) {
            // Relaxed: the sources are quiet.
            line.store(sources, Ordering::Relaxed);
        }
        Ok(())
    }
}
