//! What the two chips do; apart from who may touch them when.
//!
//! Sets of pins have 16 bits: the master's in the low half, the slave's in the high half.

use super::registers::{EoiCommand, Icw1, Icw2, Icw4, Ocw2, Ocw3, Polled};
use crate::Delivery;

/// The master, in all that has one value per chip.
pub const MASTER: usize = 0;
/// The slave.
pub const SLAVE: usize = 1;
/// The pin of the master that the slave drives.
pub const CASCADE: u8 = 2;
/// The vector's low bits when nobody asked.
const SPURIOUS: u8 = 7;

/// What line calls, acknowledges and ends change, as it lies in its word.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Requests {
    /// Which pins ask.
    pub irr: u16,
    /// The levels that the edge detectors remember; KVM's `last_irr`.
    pub last: u16,
    /// Which pins are in service.
    pub isr: u16,
    /// How often the other words have changed. Who computes by them and finds this word as it was, its own change
    /// included, computed by what still holds, unless they have changed 8,192 times meanwhile; so it looks at them again.
    #[bits(13)]
    pub generation: u16,
    /// An end has left something to be looked at by `reevaluate`.
    pub due: bool,
    /// INTR, as it was last told.
    pub output: bool,
    /// Somebody changes the other words or tells the output. Always clear in a [`Pair`].
    pub busy: bool,
}

impl Requests {
    /// The highest generation; 0 comes after it.
    pub const LAST_GENERATION: u16 = (1 << 13) - 1;
}

/// What only the guest's configuration changes, as far as priorities depend on it.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Modes {
    pub imr: u16,
    /// Level pins.
    pub elcr: u16,
    pub master_base: u8,
    pub slave_base: u8,
    /// The pin of highest priority.
    #[bits(3)]
    pub master_first: u8,
    #[bits(3)]
    pub slave_first: u8,
    /// Of these, bit 0 is the master's and bit 1 the slave's.
    #[bits(2)]
    pub auto_eoi: u8,
    #[bits(2)]
    pub rotate_on_auto_eoi: u8,
    #[bits(2)]
    pub fully_nested: u8,
    #[bits(2)]
    pub special_mask: u8,
    #[bits(2)]
    __: u8,
}

/// What only the ports need.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Setup {
    /// Which pins can be level.
    pub elcr_mask: u16,
    /// Which initialisation word comes next: 0 none, 1 ICW2, 2 ICW3, 3 ICW4; any byte of KVM's state is kept.
    pub master_next: u8,
    pub slave_next: u8,
    /// Of these, bit 0 is the master's and bit 1 the slave's.
    #[bits(2)]
    pub fourth_follows: u8,
    #[bits(2)]
    pub read_isr: u8,
    #[bits(2)]
    pub poll: u8,
    #[bits(26)]
    __: u64,
}

/// Both chips.
#[derive(Clone, Copy)]
pub struct Pair {
    pub requests: Requests,
    pub modes: Modes,
    /// As the data sheet has it, where KVM differs.
    pub strict: bool,
    /// Pins whose interrupt ended in this operation.
    pub ended: u16,
}

/// The byte of one chip in a word of both.
fn of(chip: usize, word: u16) -> u8 {
    (word >> (8 * chip)) as u8
}

/// A pin as a set.
fn bit(chip: usize, pin: u8) -> u16 {
    1 << (8 * chip + usize::from(pin))
}

/// A word of both with the byte of one chip replaced.
fn with(chip: usize, word: u16, byte: u8) -> u16 {
    word & !(0xff << (8 * chip)) | u16::from(byte) << (8 * chip)
}

/// One flag of a chip, of a field that has one for each.
pub fn flag(chip: usize, flags: u8) -> bool {
    flags >> chip & 1 == 1
}

/// The field with that flag set or cleared.
pub fn with_flag(chip: usize, flags: u8, value: bool) -> u8 {
    flags & !(1 << chip) | u8::from(value) << chip
}

impl Modes {
    /// The pin of highest priority.
    pub fn first(self, chip: usize) -> u8 {
        if chip == MASTER { self.master_first() } else { self.slave_first() }
    }

    /// The same with another pin; bits above 7 are cut.
    pub fn with_first(self, chip: usize, pin: u8) -> Self {
        if chip == MASTER { self.with_master_first(pin & 7) } else { self.with_slave_first(pin & 7) }
    }

    /// The vector of pin 0.
    pub fn base(self, chip: usize) -> u8 {
        if chip == MASTER { self.master_base() } else { self.slave_base() }
    }

    /// The same with another vector.
    pub fn with_base(self, chip: usize, base: u8) -> Self {
        if chip == MASTER { self.with_master_base(base) } else { self.with_slave_base(base) }
    }
}

impl Setup {
    /// Which initialisation word comes next.
    pub fn next(self, chip: usize) -> u8 {
        if chip == MASTER { self.master_next() } else { self.slave_next() }
    }

    /// The same with another one.
    pub fn with_next(self, chip: usize, next: u8) -> Self {
        if chip == MASTER { self.with_master_next(next) } else { self.with_slave_next(next) }
    }
}

impl Pair {
    /// Drives a pin, 0 to 15: spec P3 to P6.
    #[inline(always)]
    pub fn drive(&mut self, pin: usize, level: bool) -> Delivery {
        let pin = 1u16 << pin;
        let (mut irr, mut last) = (self.requests.irr(), self.requests.last());
        let mut merged = false;
        if self.modes.elcr() & pin != 0 {
            merged = level && irr & pin != 0;
            irr = if level { irr | pin } else { irr & !pin };
        } else if level && last & pin == 0 {
            merged = irr & pin != 0;
            irr |= pin;
        }
        last = if level { last | pin } else { last & !pin };
        self.requests.set_irr(irr);
        self.requests.set_last(last);
        if self.modes.imr() & pin != 0 {
            Delivery::Ignored
        } else if merged {
            Delivery::Coalesced
        } else {
            Delivery::Delivered(1)
        }
    }

    /// The requests that are not masked.
    #[inline(always)]
    fn asking(&self) -> u16 {
        self.requests.irr() & !self.modes.imr()
    }

    /// The pins of a chip that ask and those in service, the highest priority in bit 0.
    #[inline(always)]
    fn ranked(&self, chip: usize) -> (u8, u8) {
        let mut serving = of(chip, self.requests.isr());
        if chip == MASTER && flag(chip, self.modes.fully_nested()) {
            serving &= !(1 << CASCADE);
        }
        if self.strict && flag(chip, self.modes.special_mask()) {
            serving &= !of(chip, self.modes.imr());
        }
        let first = self.modes.first(chip).into();
        (of(chip, self.asking()).rotate_right(first), serving.rotate_right(first))
    }

    /// Whether a chip asks: spec P11.
    #[inline(always)]
    fn asks(&self, chip: usize) -> bool {
        let (asking, serving) = self.ranked(chip);
        let highest_serving = serving & serving.wrapping_neg();
        asking & highest_serving.wrapping_sub(1) != 0
    }

    /// The pin that it asks for.
    #[inline(always)]
    pub fn request(&self, chip: usize) -> Option<u8> {
        let (asking, serving) = self.ranked(chip);
        let rank = asking.trailing_zeros();
        (rank < serving.trailing_zeros()).then(|| (rank as u8 + self.modes.first(chip)) & 7)
    }

    /// The slave asks through the master's pin, and the master through INTR: spec P7.
    #[inline(always)]
    pub fn update(&mut self) {
        if self.strict || self.asking() >> 8 != 0 {
            self.requests = self.cascaded();
        }
        let output = self.asks(MASTER);
        self.requests.set_output(output);
        self.requests.set_due(false);
    }

    /// What follows of what the slave asks. By value, so that the rest of an operation stays in registers.
    #[inline(never)]
    fn cascaded(mut self) -> Requests {
        let slave = self.asks(SLAVE);
        let cascade = bit(MASTER, CASCADE);
        if self.strict {
            let irr = self.requests.irr();
            self.requests.set_irr(if slave { irr | cascade } else { irr & !cascade });
        } else if slave {
            // A pulse, however long the slave asks: what has been latched is not withdrawn with it.
            self.drive(CASCADE.into(), true);
            self.drive(CASCADE.into(), false);
        }
        self.requests
    }

    /// The CPU's acknowledge: spec P8, P9. Returns the vector.
    #[inline(always)]
    pub fn acknowledge(&mut self) -> u8 {
        let (chip, pin) = match self.request(MASTER) {
            Some(CASCADE) => {
                self.take(MASTER, CASCADE);
                let pin = self.request(SLAVE);
                if let Some(pin) = pin {
                    self.take(SLAVE, pin);
                }
                (SLAVE, pin.unwrap_or(SPURIOUS))
            }
            Some(pin) => {
                self.take(MASTER, pin);
                (MASTER, pin)
            }
            None => (MASTER, SPURIOUS),
        };
        self.leave_due();
        self.modes.base(chip).wrapping_add(pin)
    }

    /// Puts a pin in service, or ends it at once.
    #[inline(always)]
    fn take(&mut self, chip: usize, pin: u8) {
        let pins = bit(chip, pin);
        self.requests.set_isr(self.requests.isr() | pins);
        if self.modes.elcr() & pins == 0 {
            self.requests.set_irr(self.requests.irr() & !pins);
        }
        if flag(chip, self.modes.auto_eoi()) {
            if flag(chip, self.modes.rotate_on_auto_eoi()) {
                self.modes = self.modes.with_first(chip, pin + 1);
            }
            self.end(pins);
        }
    }

    fn end(&mut self, pins: u16) {
        self.requests.set_isr(self.requests.isr() & !pins);
        self.ended |= pins;
    }

    /// What follows is for now if nothing ended, and else for when those who have to hear of the end have heard.
    #[inline(always)]
    fn leave_due(&mut self) {
        if self.ended == 0 {
            return self.update();
        }
        if self.asking() == 0 && !self.requests.output() && !self.strict {
            // Nothing will follow, and usually nothing does. The data sheet's chip may still have a masked request of the
            // slave to withdraw.
            return;
        }
        let mut later = *self;
        later.update();
        let changes = later.requests != self.requests;
        self.requests.set_due(changes);
    }

    /// The second operation word: ends and rotations.
    #[inline(always)]
    pub fn operate(&mut self, chip: usize, word: Ocw2) {
        let command = word.command();
        let pin = match command {
            EoiCommand::Rotate | EoiCommand::StopRotating => {
                let rotate = with_flag(chip, self.modes.rotate_on_auto_eoi(), command == EoiCommand::Rotate);
                return self.modes.set_rotate_on_auto_eoi(rotate);
            }
            EoiCommand::Nothing => return,
            EoiCommand::SetLowest => {
                self.modes = self.modes.with_first(chip, word.pin() + 1);
                return self.update();
            }
            EoiCommand::EndPin | EoiCommand::EndPinAndRotate => word.pin(),
            EoiCommand::End | EoiCommand::EndAndRotate => match self.highest_in_service(chip) {
                Some(pin) => pin,
                None => return,
            },
        };
        if matches!(command, EoiCommand::EndAndRotate | EoiCommand::EndPinAndRotate) {
            self.modes = self.modes.with_first(chip, pin + 1);
        }
        self.end(bit(chip, pin));
        self.leave_due();
    }

    fn highest_in_service(&self, chip: usize) -> Option<u8> {
        let mut serving = of(chip, self.requests.isr());
        if self.strict && flag(chip, self.modes.special_mask()) {
            // Those that are masked then have to be ended by name.
            serving &= !of(chip, self.modes.imr());
        }
        let first = self.modes.first(chip);
        (serving != 0).then(|| (serving.rotate_right(first.into()).trailing_zeros() as u8 + first) & 7)
    }

    /// The third operation word.
    pub fn select(&mut self, chip: usize, word: Ocw3, setup: &mut Setup) {
        if word.poll() {
            setup.set_poll(with_flag(chip, setup.poll(), true));
        }
        if word.select() {
            setup.set_read_isr(with_flag(chip, setup.read_isr(), word.in_service()));
        }
        if word.change_special_mask() {
            self.modes.set_special_mask(with_flag(chip, self.modes.special_mask(), word.special_mask()));
        }
    }

    /// The first initialisation word: spec P10. `heard` says whether a CPU takes this pair's interrupts: KVM then, and only
    /// then, ends those whose edge it forgets.
    pub fn initialise(&mut self, chip: usize, word: Icw1, setup: &mut Setup, heard: bool) {
        let mine = with(chip, 0, 0xff);
        let (irr, isr) = (self.requests.irr(), self.requests.isr());
        let edges = irr & mine & !self.modes.elcr();
        self.requests.set_last(self.requests.last() & !mine);
        self.requests.set_irr(irr & !edges);
        self.modes.set_imr(self.modes.imr() & !mine);
        self.modes = self.modes.with_first(chip, 0);
        self.modes.set_special_mask(with_flag(chip, self.modes.special_mask(), false));
        setup.set_read_isr(with_flag(chip, setup.read_isr(), false));
        setup.set_fourth_follows(with_flag(chip, setup.fourth_follows(), word.fourth_follows()));
        if !word.fourth_follows() {
            self.modes.set_fully_nested(with_flag(chip, self.modes.fully_nested(), false));
            self.modes.set_auto_eoi(with_flag(chip, self.modes.auto_eoi(), false));
        }
        *setup = setup.with_next(chip, 1);
        if self.strict {
            self.end(isr & mine);
            self.leave_due();
        } else if heard {
            self.end(edges);
        }
    }

    /// A byte to the data port: the mask, or the initialisation word that is due.
    pub fn store(&mut self, chip: usize, byte: u8, setup: &mut Setup) {
        match setup.next(chip) {
            0 => {
                self.modes.set_imr(with(chip, self.modes.imr(), byte));
                self.update();
            }
            1 => {
                self.modes = self.modes.with_base(chip, Icw2::from_bits(byte).base() << 3);
                *setup = setup.with_next(chip, 2);
            }
            // ICW3: the wiring of a PC does not change.
            2 => *setup = setup.with_next(chip, if flag(chip, setup.fourth_follows()) { 3 } else { 0 }),
            3 => {
                let word = Icw4::from_bits(byte);
                self.modes.set_fully_nested(with_flag(chip, self.modes.fully_nested(), word.special_fully_nested()));
                self.modes.set_auto_eoi(with_flag(chip, self.modes.auto_eoi(), word.auto_eoi()));
                *setup = setup.with_next(chip, 0);
            }
            _ => {}
        }
    }

    /// Which pins of a chip are level: spec P2.
    pub fn store_elcr(&mut self, chip: usize, byte: u8, setup: &Setup) {
        self.modes.set_elcr(with(chip, self.modes.elcr(), byte & of(chip, setup.elcr_mask())));
    }

    /// A read after the poll command: an acknowledge without the CPU.
    pub fn poll(&mut self, chip: usize) -> Polled {
        let Some(pin) = self.request(chip) else {
            self.update();
            return Polled::new().with_pin(SPURIOUS);
        };
        if self.strict {
            self.take(chip, pin);
            self.leave_due();
        } else {
            // Ended at once, and even a level pin asks no longer.
            let mut taken = bit(chip, pin);
            if chip == SLAVE {
                self.requests.set_isr(self.requests.isr() & !bit(MASTER, CASCADE));
                taken |= bit(MASTER, CASCADE);
            }
            self.requests.set_irr(self.requests.irr() & !taken);
            self.end(bit(chip, pin));
            if chip == SLAVE || pin != CASCADE {
                self.leave_due();
            }
        }
        Polled::new().with_pin(pin).with_pending(true)
    }

    /// What a load from a port gives, unless it polls.
    pub fn load(&self, chip: usize, data_port: bool, setup: Setup) -> u8 {
        of(
            chip,
            match (data_port, flag(chip, setup.read_isr())) {
                (true, _) => self.modes.imr(),
                (false, true) => self.requests.isr(),
                (false, false) => self.requests.irr(),
            },
        )
    }
}
