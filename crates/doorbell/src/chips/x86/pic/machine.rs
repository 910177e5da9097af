//! Random programs on a pair and on a model of it that is written after the data sheet and the spec's table, pin by pin.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use proptest::prelude::*;

use super::*;

/// One chip, in the words of the data sheet.
#[derive(Clone, Debug, Default, PartialEq)]
struct Chip {
    requests: [bool; 8],
    /// What the edge detectors remember.
    high: [bool; 8],
    masked: [bool; 8],
    in_service: [bool; 8],
    level: [bool; 8],
    may_be_level: [bool; 8],
    /// The pin of highest priority.
    first: usize,
    base: u8,
    next_word: u8,
    fourth_word: bool,
    auto_eoi: bool,
    rotates: bool,
    fully_nested: bool,
    special_mask: bool,
    reads_isr: bool,
    polls: bool,
}

impl Chip {
    /// The pins from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = usize> + use<> {
        let first = self.first;
        (0..8).map(move |rank| (first + rank) % 8)
    }

    /// The pin to be served, where `blocks` says which pins in service keep those below them waiting (P11).
    fn candidate(&self, blocks: impl Fn(usize) -> bool) -> Option<usize> {
        for pin in self.by_priority() {
            if self.in_service[pin] && blocks(pin) {
                return None;
            }
            if self.requests[pin] && !self.masked[pin] {
                return Some(pin);
            }
        }
        None
    }

    /// P3 to P6: -1, 0 or 1.
    fn drive(&mut self, pin: usize, high: bool) -> i32 {
        let rises = high && !self.high[pin];
        let asks = if self.level[pin] { high } else { rises };
        let merged = asks && self.requests[pin];
        self.high[pin] = high;
        self.requests[pin] = asks || (self.requests[pin] && !self.level[pin]);
        match (self.masked[pin], merged) {
            (true, _) => -1,
            (false, true) => 0,
            (false, false) => 1,
        }
    }

    fn state(&self) -> PicState {
        PicState {
            last_irr: byte(self.high),
            irr: byte(self.requests),
            imr: byte(self.masked),
            isr: byte(self.in_service),
            priority_add: self.first as u8,
            irq_base: self.base,
            read_isr: self.reads_isr,
            poll: self.polls,
            special_mask: self.special_mask,
            init_state: self.next_word,
            auto_eoi: self.auto_eoi,
            rotate_on_auto_eoi: self.rotates,
            fully_nested: self.fully_nested,
            fourth_follows: self.fourth_word,
            elcr: byte(self.level),
            elcr_mask: byte(self.may_be_level),
        }
    }
}

fn byte(pins: [bool; 8]) -> u8 {
    (0..8).map(|pin| u8::from(pins[pin]) << pin).sum()
}

fn pins(byte: u8) -> [bool; 8] {
    std::array::from_fn(|pin| byte >> pin & 1 == 1)
}

/// The pair.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    chips: [Chip; 2],
    lines: [BTreeSet<u8>; 16],
    intr: bool,
    /// An end came whose consequences wait for the re-evaluation.
    owes: bool,
    strict: bool,
    /// Chip and pin of what ended in this step.
    ended: BTreeSet<(usize, usize)>,
}

impl Model {
    fn new(strict: bool) -> Self {
        let chip = |may_be_level| Chip { may_be_level: pins(may_be_level), ..Chip::default() };
        Self {
            chips: [chip(0xf8), chip(0xde)],
            lines: std::array::from_fn(|_| BTreeSet::new()),
            intr: false,
            owes: false,
            strict,
            ended: BTreeSet::new(),
        }
    }

    fn candidate(&self, number: usize) -> Option<usize> {
        let chip = &self.chips[number];
        chip.candidate(|pin| {
            let nested = number == 0 && pin == 2 && chip.fully_nested;
            let let_through = self.strict && chip.special_mask && chip.masked[pin];
            !nested && !let_through
        })
    }

    fn update(&mut self) {
        let slave = self.candidate(1).is_some();
        if self.strict {
            self.chips[0].requests[2] = slave;
        } else if slave {
            self.chips[0].drive(2, true);
            self.chips[0].drive(2, false);
        }
        self.intr = self.candidate(0).is_some();
        self.owes = false;
    }

    /// After something that may have ended interrupts.
    fn follow(&mut self) {
        if self.ended.is_empty() {
            return self.update();
        }
        let owed = std::mem::take(&mut self.owes);
        let mut later = self.clone();
        later.update();
        self.owes = owed || later != *self;
    }

    fn end(&mut self, chip: usize, pin: usize) {
        self.chips[chip].in_service[pin] = false;
        self.ended.insert((chip, pin));
    }

    fn serve(&mut self, number: usize, pin: usize) {
        let chip = &mut self.chips[number];
        chip.in_service[pin] = true;
        chip.requests[pin] &= chip.level[pin];
        if chip.auto_eoi {
            if chip.rotates {
                chip.first = (pin + 1) % 8;
            }
            self.end(number, pin);
        }
    }

    fn acknowledge(&mut self) -> u8 {
        let (chip, pin) = match self.candidate(0) {
            Some(2) => {
                self.serve(0, 2);
                let pin = self.candidate(1);
                pin.into_iter().for_each(|pin| self.serve(1, pin));
                (1, pin.unwrap_or(7))
            }
            Some(pin) => {
                self.serve(0, pin);
                (0, pin)
            }
            None => (0, 7),
        };
        self.follow();
        self.chips[chip].base.wrapping_add(pin as u8)
    }

    fn command(&mut self, number: usize, word: u8, heard: bool) {
        let strict = self.strict;
        let chip = &mut self.chips[number];
        if word & 0x10 != 0 {
            let edges: Vec<_> = (0..8).filter(|&pin| chip.requests[pin] && !chip.level[pin]).collect();
            let served: Vec<_> = (0..8).filter(|&pin| chip.in_service[pin]).collect();
            edges.iter().for_each(|&pin| chip.requests[pin] = false);
            (chip.high, chip.masked, chip.first) = ([false; 8], [false; 8], 0);
            (chip.special_mask, chip.reads_isr) = (false, false);
            (chip.fourth_word, chip.next_word) = (word & 1 == 1, 1);
            if word & 1 == 0 {
                (chip.fully_nested, chip.auto_eoi) = (false, false);
            }
            if strict {
                served.into_iter().for_each(|pin| self.end(number, pin));
                self.follow();
            } else if heard {
                edges.into_iter().for_each(|pin| self.end(number, pin));
            }
        } else if word & 8 != 0 {
            chip.polls |= word & 4 != 0;
            if word & 2 != 0 {
                chip.reads_isr = word & 1 == 1;
            }
            if word & 0x40 != 0 {
                chip.special_mask = word & 0x20 != 0;
            }
        } else {
            self.operate(number, word >> 5, usize::from(word & 7));
        }
    }

    fn operate(&mut self, number: usize, command: u8, named: usize) {
        let strict = self.strict;
        let chip = &mut self.chips[number];
        let skipped = |pin: usize| strict && chip.special_mask && chip.masked[pin];
        let served = chip.by_priority().find(|&pin| chip.in_service[pin] && !skipped(pin));
        let (ends, rotates) = match command {
            0 | 4 => return chip.rotates = command == 4,
            1 => (served, false),
            5 => (served, true),
            3 => (Some(named), false),
            7 => (Some(named), true),
            6 => {
                chip.first = (named + 1) % 8;
                return self.update();
            }
            _ => return,
        };
        let Some(pin) = ends else { return };
        if rotates {
            chip.first = (pin + 1) % 8;
        }
        self.end(number, pin);
        self.follow();
    }

    fn data(&mut self, number: usize, word: u8) {
        let chip = &mut self.chips[number];
        match chip.next_word {
            0 => {
                chip.masked = pins(word);
                self.update();
            }
            1 => (chip.base, chip.next_word) = (word & 0xf8, 2),
            2 => chip.next_word = if chip.fourth_word { 3 } else { 0 },
            3 => (chip.fully_nested, chip.auto_eoi, chip.next_word) = (word & 0x10 != 0, word & 2 != 0, 0),
            _ => {}
        }
    }

    fn poll(&mut self, number: usize) -> u8 {
        let Some(pin) = self.candidate(number) else {
            self.update();
            return 7;
        };
        if self.strict {
            self.serve(number, pin);
            self.follow();
        } else {
            if number == 1 {
                self.chips[0].in_service[2] = false;
                self.chips[0].requests[2] = false;
            }
            self.chips[number].requests[pin] = false;
            self.end(number, pin);
            if (number, pin) != (0, 2) {
                self.follow();
            }
        }
        0x80 | pin as u8
    }

    fn load(&mut self, port: u16) -> u8 {
        if port >= 0x4d0 {
            return byte(self.chips[usize::from(port - 0x4d0)].level);
        }
        let number = usize::from(port >= 0xa0);
        let chip = &mut self.chips[number];
        if std::mem::take(&mut chip.polls) {
            return self.poll(number);
        }
        byte(match (port & 1, chip.reads_isr) {
            (1, _) => chip.masked,
            (_, true) => chip.in_service,
            (_, false) => chip.requests,
        })
    }

    fn store(&mut self, port: u16, word: u8, heard: bool) {
        match port {
            0x20 => self.command(0, word, heard),
            0xa0 => self.command(1, word, heard),
            0x21 => self.data(0, word),
            0xa1 => self.data(1, word),
            _ => {
                let chip = &mut self.chips[usize::from(port - 0x4d0)];
                chip.level = pins(word & byte(chip.may_be_level));
            }
        }
    }

    fn set(&mut self, pin: usize, source: u8, level: bool) -> i32 {
        if level {
            self.lines[pin].insert(source);
        } else {
            self.lines[pin].remove(&source);
        }
        let answer = self.chips[pin / 8].drive(pin % 8, !self.lines[pin].is_empty());
        self.update();
        answer
    }

    fn set_state(&mut self, number: usize, state: &PicState) {
        self.chips[number] = Chip {
            requests: pins(state.irr),
            high: pins(state.last_irr),
            masked: pins(state.imr),
            in_service: pins(state.isr),
            level: pins(state.elcr),
            may_be_level: pins(state.elcr_mask),
            first: usize::from(state.priority_add & 7),
            base: state.irq_base,
            next_word: state.init_state,
            fourth_word: state.fourth_follows,
            auto_eoi: state.auto_eoi,
            rotates: state.rotate_on_auto_eoi,
            fully_nested: state.fully_nested,
            special_mask: state.special_mask,
            reads_isr: state.read_isr,
            polls: state.poll,
        };
        self.update();
    }

    fn take_ended(&mut self) -> Vec<(ChipId, Pins)> {
        let ended = std::mem::take(&mut self.ended);
        let of = |chip| ended.iter().filter(|(it, _)| *it == chip).map(|(_, pin)| *pin as u16).collect::<Pins>();
        [1usize, 0].map(|chip| (chip as ChipId, of(chip))).into_iter().filter(|(_, pins)| !pins.is_empty()).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set { pin: u16, source: u8, level: bool },
    Pulse { pin: u16, source: u8 },
    Store { port: u16, word: u8, settle: bool },
    Load { port: u16, settle: bool },
    Acknowledge { settle: bool },
    Hear { heard: bool },
    SetState { chip: ChipId, state: [u8; 8], flags: u8 },
    SaveAndRestore,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop::sample::select(&PORTS[..]);
    let command = prop::sample::select(&[MASTER_COMMAND, SLAVE_COMMAND][..]);
    let data = prop::sample::select(&[MASTER_DATA, SLAVE_DATA][..]);
    let (pin, source) = (|| 0u16..16, || 0u8..3);
    let settle = || prop::bool::weighted(0.8);
    prop_oneof![
        8 => (pin(), source(), any::<bool>()).prop_map(|(pin, source, level)| Step::Set { pin, source, level }),
        2 => (pin(), source()).prop_map(|(pin, source)| Step::Pulse { pin, source }),
        4 => (command.clone(), any::<u8>(), settle())
            .prop_map(|(port, word, settle)| Step::Store { port, word: word & 0xc7 | 0x20, settle }),
        1 => (command, any::<u8>(), settle()).prop_map(|(port, word, settle)| Step::Store { port, word, settle }),
        2 => (data, any::<u8>(), any::<u8>())
            .prop_map(|(port, word, less)| Step::Store { port, word: word & less, settle: true }),
        2 => (port.clone(), any::<u8>(), settle()).prop_map(|(port, word, settle)| Step::Store { port, word, settle }),
        2 => (port, settle()).prop_map(|(port, settle)| Step::Load { port, settle }),
        5 => settle().prop_map(|settle| Step::Acknowledge { settle }),
        1 => any::<bool>().prop_map(|heard| Step::Hear { heard }),
        1 => (0..2u8, any::<[u8; 8]>(), any::<u8>()).prop_map(|(chip, state, flags)| Step::SetState { chip, state, flags }),
        1 => Just(Step::SaveAndRestore),
        1 => prop::bool::weighted(0.2).prop_map(|reset| if reset { Step::Reset } else { Step::SaveAndRestore }),
    ]
}

/// INTR and whether it is heard.
#[derive(Default)]
struct Wire {
    level: AtomicBool,
    unheard: AtomicBool,
}

impl Intr for Arc<Wire> {
    fn set(&self, level: bool) {
        assert_ne!(self.level.swap(level, Relaxed), level, "each change is told once");
    }

    fn is_heard(&self) -> bool {
        !self.unheard.load(Relaxed)
    }
}

struct Machine {
    pic: Pic,
    wire: Arc<Wire>,
    model: Model,
}

impl Machine {
    fn new(strict: bool) -> Self {
        let wire = Arc::new(Wire::default());
        Self { pic: Pic::new(wire.clone(), PicOptions { strict }), wire, model: Model::new(strict) }
    }

    fn ended(&mut self, ended: Ended, settle: bool) -> Result<(), TestCaseError> {
        let expected = self.model.take_ended();
        prop_assert_eq!(ended.chips().collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(ended.is_empty(), expected.is_empty());
        if settle {
            expected.iter().for_each(|(chip, pins)| self.pic.reevaluate(*chip, pins));
            if !expected.is_empty() && self.model.owes {
                self.model.update();
            }
        }
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        let place = |pin: u16| ((pin / 8) as ChipId, pin % 8);
        match step {
            Step::Set { pin, source, level } => {
                let (chip, number) = place(pin);
                let answer = self.pic.set(chip, number, LineSource::new(source).unwrap(), level);
                prop_assert_eq!(answer.status(), self.model.set(pin.into(), source, level));
            }
            Step::Pulse { pin, source } => {
                let (chip, number) = place(pin);
                let answer = self.pic.pulse(chip, number, LineSource::new(source).unwrap());
                let expected = self.model.set(pin.into(), source, true);
                self.model.set(pin.into(), source, false);
                prop_assert_eq!(answer.status(), expected);
            }
            Step::Store { port, word, settle } => {
                let ended = self.pic.write(port, &[word]);
                self.model.store(port, word, self.wire.is_heard());
                self.ended(ended, settle)?;
            }
            Step::Load { port, settle } => {
                let mut data = [0];
                let ended = self.pic.read(port, &mut data);
                prop_assert_eq!(data[0], self.model.load(port));
                self.ended(ended, settle)?;
            }
            Step::Acknowledge { settle } => {
                let taken = self.pic.acknowledge();
                prop_assert_eq!(taken.vector, self.model.acknowledge());
                self.ended(taken.ended, settle)?;
            }
            Step::Hear { heard } => self.wire.unheard.store(!heard, Relaxed),
            Step::SetState { chip, state: [last_irr, irr, imr, isr, priority_add, irq_base, next, elcr], flags } => {
                let flag = |bit: u8| flags >> bit & 1 == 1;
                let state = PicState {
                    last_irr,
                    irr,
                    imr: imr & elcr,
                    isr: isr & last_irr,
                    priority_add,
                    irq_base,
                    read_isr: flag(0),
                    poll: flag(1),
                    special_mask: flag(2),
                    init_state: if next < 8 { next } else { 0 },
                    auto_eoi: flag(3),
                    rotate_on_auto_eoi: flag(4),
                    fully_nested: flag(5),
                    fourth_follows: flag(6),
                    elcr,
                    elcr_mask: elcr | irq_base,
                };
                self.pic.set_state(chip, &state);
                self.model.set_state(chip.into(), &state);
            }
            Step::SaveAndRestore => {
                let (other, saved) = (Self::new(self.model.strict), self.pic.save());
                other.wire.unheard.store(!self.wire.is_heard(), Relaxed);
                other.pic.restore(&saved).unwrap();
                prop_assert_eq!(other.pic.save(), saved);
                (self.pic, self.wire) = (other.pic, other.wire);
            }
            Step::Reset => {
                self.pic.reset();
                let lines = self.model.lines.clone();
                self.model = Model { lines, ..Model::new(self.model.strict) };
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for chip in [0, 1] {
            prop_assert_eq!(self.pic.state(chip), self.model.chips[usize::from(chip)].state(), "chip {}", chip);
        }
        let saved = self.pic.save();
        prop_assert_eq!((saved.output, saved.due), (self.model.intr, self.model.owes));
        prop_assert_eq!((self.pic.output(), self.wire.level.load(Relaxed)), (self.model.intr, self.model.intr));
        for (line, sources) in saved.lines.iter().zip(&self.model.lines) {
            prop_assert_eq!(*line, sources.iter().map(|source| 1 << source).sum::<u64>());
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_do_what_the_model_says(strict: bool, steps in prop::collection::vec(step(), 1..150)) {
        let mut machine = Machine::new(strict);
        for step in steps {
            machine.run(step)?;
            machine.compare()?;
        }
    }
}
