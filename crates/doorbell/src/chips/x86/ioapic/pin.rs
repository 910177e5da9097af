//! One pin: its redirection entry, its line and its latch.

use std::ops::{Deref, DerefMut};

use super::registers::RedirectionEntry;
use crate::{
    Delivery, Target,
    irq_line::{IrqLine, LineSource},
    sync::{AtomicU32, AtomicU64, Backoff, Ordering},
};

/// How often a level interrupt may come again at once after its end before the storm guard holds it back; KVM's number.
pub const STORM: u16 = 10_000;

/// Why a pin waits for [`reevaluate`](crate::PinInput::reevaluate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Due {
    /// It does not.
    No,
    /// Its interrupt has ended.
    Ended,
    /// A store to its entry made it deliverable with its latch set.
    Unmasked,
}

impl Due {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::No,
            1 => Self::Ended,
            _ => Self::Unmasked,
        }
    }
}

/// What a pin is; all of its behaviour, apart from who may touch it when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinState {
    pub entry: RedirectionEntry,
    pub line: IrqLine,
    pub flags: Flags,
}

/// The small fields of a pin, as they lie in its word.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Flags {
    /// The pin's bit of KVM's `irr`.
    pub latched: bool,
    /// The pin's bit of KVM's `irr_delivered`: the latch stands for an edge that was sent.
    pub delivered: bool,
    #[bits(2)]
    pub due: Due,
    /// How often in a row the interrupt was sent again at its end.
    #[bits(16)]
    pub storm: u16,
    #[bits(43)]
    __: u64,
    /// Somebody holds the pin. Always clear in a [`PinState`].
    busy: bool,
}

impl PinState {
    pub const RESET: Self = Self { entry: RedirectionEntry::RESET, line: IrqLine::from_bits(0), flags: Flags::new() };

    /// Nothing keeps what is latched from being sent now.
    #[inline]
    fn could_send(&self) -> bool {
        self.flags.latched() && !self.entry.masked() && !self.entry.remote_irr()
    }

    /// Drives one source of the line.
    #[inline]
    pub fn drive(&mut self, source: LineSource, level: bool, send: impl FnOnce(RedirectionEntry) -> Sent) -> Delivery {
        if self.line.set(source, level) {
            self.raise(send)
        } else {
            self.flags.set_latched(false);
            Delivery::Delivered(1)
        }
    }

    /// The line is high: spec A2, A4, A7.
    #[inline]
    pub fn raise(&mut self, send: impl FnOnce(RedirectionEntry) -> Sent) -> Delivery {
        let merged = self.flags.latched();
        self.flags.set_latched(true);
        if !self.entry.level() {
            self.flags.set_delivered(false);
            if merged {
                return Delivery::Coalesced;
            }
        }
        self.service(send)
    }

    /// Sends the interrupt, unless it is masked or has not ended.
    #[inline]
    pub fn service(&mut self, send: impl FnOnce(RedirectionEntry) -> Sent) -> Delivery {
        self.flags.set_due(Due::No);
        let level = self.entry.level();
        if self.entry.masked() || (level && self.entry.remote_irr()) {
            return Delivery::Ignored;
        }
        if !level {
            self.flags.set_delivered(true);
        }
        match send(self.entry) {
            Sent::To(delivery) => {
                // As in KVM, an interrupt that nobody matched (-1) waits for its end; one that nobody accepted (0) does not.
                if level && delivery != Delivery::Coalesced {
                    self.entry.set_remote_irr(true);
                }
                delivery
            }
            Sent::Refused => Delivery::Ignored,
        }
    }

    /// The interrupt has ended: spec A9, first half.
    pub fn end(&mut self) {
        self.entry.set_remote_irr(false);
        if self.flags.latched() {
            self.flags.set_due(Due::Ended);
        } else {
            // Nothing to send again; what rises from now on is sent when it does.
            self.flags.set_due(Due::No);
            self.flags.set_storm(0);
        }
    }

    /// Sends again what is still due: spec A9, second half. False if the storm guard holds it back.
    pub fn reevaluate(&mut self, guard: bool, send: impl FnOnce(RedirectionEntry) -> Sent) -> bool {
        let due = self.flags.due();
        let again = self.could_send();
        match due {
            Due::No => return true,
            Due::Ended if !again => self.flags.set_storm(0),
            Due::Ended if guard => {
                let storm = self.flags.storm() + 1;
                self.flags.set_storm(storm);
                if storm >= STORM {
                    self.flags.set_storm(0);
                    // Not `Ended`: who comes back for it later must not count it again.
                    self.flags.set_due(Due::Unmasked);
                    return false;
                }
            }
            Due::Ended | Due::Unmasked => {}
        }
        self.flags.set_due(Due::No);
        if again {
            self.service(send);
        }
        true
    }

    /// A guest's store to the entry: spec A11. True if the pin is now due (A12).
    pub fn store(&mut self, bits: u64) -> bool {
        let kept = self.entry.into_bits() & RedirectionEntry::READ_ONLY;
        self.entry = RedirectionEntry::from_bits((bits & !RedirectionEntry::READ_ONLY) | kept);
        if !self.entry.level() {
            // Guests written for IOAPICs without an EOI register end an interrupt in this way.
            self.entry.set_remote_irr(false);
        }
        let due = self.entry.level() && self.could_send();
        if due {
            self.flags.set_due(Due::Unmasked);
        } else if self.flags.due() == Due::Unmasked {
            self.flags.set_due(Due::No);
        }
        due
    }

    /// The latch may be stale and a resampler will raise the line again if it is not: spec R6.
    pub fn withdraw(&mut self) {
        if self.flags.due() == Due::Unmasked {
            self.flags.set_due(Due::No);
            self.flags.set_latched(false);
        }
    }

    /// The first half of `KVM_SET_IRQCHIP`: the entry as it is given, the latch empty. Latched pins are raised again.
    pub fn replace(&mut self, entry: RedirectionEntry) {
        *self = Self { entry, line: self.line, flags: Flags::new().with_storm(self.flags.storm()) };
    }
}

/// What became of a message.
#[derive(Clone, Copy)]
pub enum Sent {
    To(Delivery),
    /// The target refused it (a remapper that blocks it, for one): nobody will ever end it.
    Refused,
}

/// A pin that every thread may enter: whoever holds `BUSY` owns the rest.
///
/// Firers and configurers exclude each other as in [`inflight`](crate::inflight), but a firer cannot hand its event
/// over: a line call has an answer, and a level is not an event. So it waits, and stands back while a configurer waits.
#[derive(Debug)]
#[repr(align(64))]
pub struct Pin {
    /// [`Flags`]. Written only by the holder of `BUSY`.
    word: AtomicU64,
    /// The entry. Only the holder writes it; [`Pin::vector`] may look at it at any time.
    entry: AtomicU64,
    /// The sources of the line. Only the holder touches it.
    line: AtomicU64,
    /// The entry's message, resolved; `NO_TARGET` if it must go through `send`. Only the holder touches it.
    target: AtomicU32,
    /// How many configurers wait for `BUSY`.
    waiting: AtomicU32,
}

const BUSY: u64 = Flags::new().with_busy(true).into_bits();
const NO_TARGET: u32 = u32::MAX;

impl Pin {
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            entry: AtomicU64::new(RedirectionEntry::RESET.into_bits()),
            line: AtomicU64::new(0),
            target: AtomicU32::new(NO_TARGET),
            waiting: AtomicU32::new(0),
        }
    }

    /// Takes the pin to deliver.
    #[inline]
    pub fn take(&self) -> Held<'_> {
        let word = self.word.load(Ordering::Relaxed);
        if word & BUSY == 0 && self.waiting.load(Ordering::Relaxed) == 0 {
            // Acquire: pairs with the Release of the last holder.
            if self.word.compare_exchange(word, word | BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return self.held(word);
            }
        }
        self.take_slowly()
    }

    #[cold]
    fn take_slowly(&self) -> Held<'_> {
        let mut backoff = Backoff::new();
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word & BUSY == 0
                && self.waiting.load(Ordering::Relaxed) == 0
                // Acquire: as in `take`.
                && self.word.compare_exchange(word, word | BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return self.held(word);
            }
            backoff.wait();
        }
    }

    /// Takes the pin to configure it: firers stand back if it takes long.
    pub fn take_for_configuration(&self) -> Held<'_> {
        let mut backoff = Backoff::new();
        let mut waits = false;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            // Acquire: as in `take`.
            if word & BUSY == 0
                && self.word.compare_exchange(word, word | BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                if waits {
                    // Relaxed: a request to stand back, nothing is published by it.
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                return self.held(word);
            }
            if backoff.is_long() && !waits {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                waits = true;
            }
            backoff.wait();
        }
    }

    /// Whether somebody who ended or unmasked it left it to be re-evaluated. Relaxed: who did so told the caller.
    #[inline]
    pub fn is_due(&self) -> bool {
        Flags::from_bits(self.word.load(Ordering::Relaxed)).due() != Due::No
    }

    /// The vector, now. Whoever decides by it looks again after [`take`](Self::take).
    pub fn vector(&self) -> u8 {
        RedirectionEntry::from_bits(self.entry.load(Ordering::Relaxed)).vector()
    }

    #[inline]
    fn held(&self, word: u64) -> Held<'_> {
        // Relaxed: ordered by the Acquire that took BUSY.
        let state = PinState {
            entry: RedirectionEntry::from_bits(self.entry.load(Ordering::Relaxed)),
            line: IrqLine::from_bits(self.line.load(Ordering::Relaxed)),
            flags: Flags::from_bits(word),
        };
        Held { pin: self, state }
    }
}

/// A pin that is taken; what was done to the state becomes visible on drop, even if a delivery panics.
pub struct Held<'a> {
    pin: &'a Pin,
    state: PinState,
}

impl Held<'_> {
    /// The entry's message, if it could be resolved.
    #[inline]
    pub fn target(&self) -> Option<Target> {
        Target::new(self.pin.target.load(Ordering::Relaxed))
    }

    /// To be called after a change of the entry.
    pub fn set_target(&mut self, target: Option<Target>) {
        self.pin.target.store(target.map_or(NO_TARGET, Target::bits), Ordering::Relaxed);
    }
}

impl Deref for Held<'_> {
    type Target = PinState;

    fn deref(&self) -> &PinState {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut PinState {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        // Relaxed: published by the Release below.
        self.pin.entry.store(self.state.entry.into_bits(), Ordering::Relaxed);
        self.pin.line.store(self.state.line.bits(), Ordering::Relaxed);
        // Release: pairs with the Acquire of the next holder.
        self.pin.word.store(self.state.flags.into_bits(), Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::AtomicBool,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// What the entry may hold while nobody has the pin.
    const WORDS: [u64; 2] = [0, Flags::new().with_latched(true).into_bits()];

    fn eventually(mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(30), "nothing happened for 30 s");
            thread::yield_now();
        }
    }

    /// Another thread takes the pin by `take`, which must not come back before `release` was called.
    fn waits(pin: &Pin, take: impl Fn(&Pin) -> Held<'_> + Sync, release: impl FnOnce()) {
        let taken = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let held = take(pin);
                taken.store(true, Ordering::Release);
                drop(held);
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!taken.load(Ordering::Acquire), "it got in");
            release();
            eventually(|| taken.load(Ordering::Acquire));
        });
        assert_eq!(pin.waiting.load(Ordering::Relaxed), 0, "nobody waits any more");
        assert_eq!(pin.word.load(Ordering::Relaxed) & BUSY, 0, "nobody has it");
    }

    #[test]
    fn a_pin_has_one_holder() {
        for first in [Pin::take, Pin::take_slowly, Pin::take_for_configuration] {
            for second in [Pin::take, Pin::take_slowly, Pin::take_for_configuration] {
                for word in WORDS {
                    let pin = Pin::new();
                    pin.word.store(word, Ordering::Relaxed);
                    let held = first(&pin);
                    assert_eq!(held.flags.into_bits(), word);
                    waits(&pin, second, || drop(held));
                    assert_eq!(pin.word.load(Ordering::Relaxed), word);
                }
            }
        }
    }

    #[test]
    fn a_firer_stands_back_for_a_waiting_configurer_and_a_configurer_does_not() {
        for take in [Pin::take, Pin::take_slowly] {
            let pin = Pin::new();
            pin.waiting.store(1, Ordering::Relaxed);
            drop(pin.take_for_configuration());
            waits(&pin, take, || pin.waiting.store(0, Ordering::Relaxed));
        }
    }

    #[test]
    fn a_configurer_that_waits_long_says_so_once() {
        let pin = Pin::new();
        let held = pin.take();
        thread::scope(|scope| {
            scope.spawn(|| drop(pin.take_for_configuration()));
            eventually(|| pin.waiting.load(Ordering::Relaxed) != 0);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(pin.waiting.load(Ordering::Relaxed), 1);
            drop(held);
        });
        assert_eq!(pin.waiting.load(Ordering::Relaxed), 0);
    }
}
