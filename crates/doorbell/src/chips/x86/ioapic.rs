//! The IOAPIC: 24 pins over an [`MsiTarget`].
//!
//! Answers are those of KVM's IOAPIC (spec: x86, rows A1 to A14; Intel 82093AA data sheet, ICH9 data sheet section 13.5).
//! Every call may come from any thread; pins do not share a lock. In the lock order, a pin comes after the GSI latch and
//! before the local APICs; an [`MsiTarget`] must not come back to the pin that sends.
//!
//! An end of interrupt is a value: [`IoApic::end`] returns the pins whose interrupt ended. The caller lowers their
//! resampled lines, tells the resamplers, and then calls [`reevaluate`](PinInput::reevaluate), which sends what is still
//! high.
//!
//! ```
//! use doorbell::chips::x86::ioapic::{IoApic, IoApicOptions, Effect, INDEX, WINDOW, CHIP};
//! use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
//! use doorbell::{Delivery, LineSource, PinInput, VcpuId};
//! use std::sync::Arc;
//!
//! let apics = ApicSet::new(1, Arc::new(()), ApicOptions::default());
//! let mut cpu = apics.local(VcpuId(0)).unwrap();
//! cpu.write(0xf0, 0x1ff); // software enable
//! let ioapic = IoApic::new(apics.clone(), IoApicOptions::default());
//! assert_eq!(ioapic.write(INDEX, 0x10 + 2 * 4), Effect::None);
//! assert_eq!(ioapic.write(WINDOW, 0x8041), Effect::None, "pin 4: vector 0x41, level, unmasked");
//!
//! assert_eq!(ioapic.set(CHIP, 4, LineSource::USER, true), Delivery::Delivered(1));
//! assert_eq!(cpu.acknowledge(), Some(0x41));
//! let eoi = cpu.eoi().unwrap();
//! let ended = ioapic.end(eoi.vector);
//! assert_eq!(ended[..], [4]);
//! ioapic.reevaluate(CHIP, &ended);
//! assert_eq!(cpu.acknowledge(), Some(0x41), "the line is still high");
//! ```

#[cfg(all(test, not(loom)))]
mod machine;
#[cfg(all(test, loom))]
mod models;
mod pin;
mod registers;
mod rtc;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;

pub use pin::{Due, STORM};
use pin::{Held, Pin, Sent};
pub use registers::{
    ARBITRATION, DEFAULT_BASE, EOI, FIRST_ENTRY, ID, INDEX, IdRegister, RedirectionEntry, VERSION, VersionRegister,
    WINDOW,
};
use rtc::Rtc;
pub use rtc::RtcTargets;
pub use state::{IoApicSnapshot, IoApicState, PinSnapshot};

use crate::{
    Delivery, DeviceId, LineSource, MsiTarget, PinInput, Pins, VcpuId,
    delivery::ChipId,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// KVM's number for the IOAPIC.
pub const CHIP: ChipId = 2;
/// How many pins there are.
pub const PINS: usize = 24;

/// Which chip it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 0x11, as KVM's: no EOI register.
    V11,
    /// 0x20: with the EOI register.
    #[default]
    V20,
}

/// How to build an [`IoApic`].
#[derive(Clone, Copy, Debug, Default)]
pub struct IoApicOptions {
    /// The chip.
    pub version: Version,
    /// Whom its messages come from, where an interrupt remapper needs to know.
    pub device_id: Option<DeviceId>,
    /// Hold back an interrupt that came again at once [`STORM`] times in a row (spec A10). Its pin is then in
    /// [`IoApic::take_delayed`], and whoever sets this must re-evaluate it about 10 ms later. Without it such a guest
    /// makes no progress of its own, but costs nobody else anything.
    pub storm_guard: bool,
}

/// What a guest's store asks of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an interrupt that ended or became deliverable is not sent before `reevaluate`"]
pub enum Effect {
    /// Nothing.
    None,
    /// A store to the EOI register ended the interrupts of these pins: to be treated like the answer of
    /// [`IoApic::end`].
    Ended(Pins),
    /// A store to the entry of these pins made them deliverable, with a latch that may be stale (spec A12, irqfd R6). If
    /// a pin has a resampler: [`IoApic::withdraw`], then tell the resampler. If not:
    /// [`reevaluate`](PinInput::reevaluate).
    Unmasked(Pins),
}

/// An IOAPIC. See the [module](self).
pub struct IoApic {
    target: Arc<dyn MsiTarget>,
    options: IoApicOptions,
    pins: [Pin; PINS],
    /// For each vector, the pins whose entry has it. A pin's bit is set before its entry can send the vector; a bit may
    /// be out of date, so who finds one looks at the entry. Written under the pin.
    by_vector: Box<[AtomicU32]>,
    /// The index register. A guest that shares it between CPUs has to lock it itself.
    index: AtomicU32,
    /// The id, whole as KVM's state has it; the register shows its low four bits.
    id: AtomicU32,
    /// Only reported: the embedder maps the window.
    base: AtomicU64,
    /// Pins that the storm guard holds back.
    delayed: AtomicU32,
    rtc: Option<Rtc>,
}

impl std::fmt::Debug for IoApic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoApic").field("options", &self.options).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl IoApic {
    /// An IOAPIC after reset (spec A1) that sends to `target`.
    pub fn new(target: Arc<dyn MsiTarget>, options: IoApicOptions) -> Self {
        let by_vector: Box<[AtomicU32]> = (0..256).map(|_| AtomicU32::new(0)).collect();
        // Relaxed: nobody else knows it yet.
        by_vector[0].store((1 << PINS) - 1, Ordering::Relaxed);
        Self {
            target,
            options,
            pins: std::array::from_fn(|_| Pin::new()),
            by_vector,
            index: AtomicU32::new(0),
            id: AtomicU32::new(0),
            base: AtomicU64::new(DEFAULT_BASE),
            delayed: AtomicU32::new(0),
            rtc: None,
        }
    }

    /// The same with KVM's treatment of pin 8, the real-time clock: a line call on it is merged with an earlier one until
    /// every CPU that took that one has ended it, so that VMMs can make up for lost ticks. `targets` are the local APICs
    /// that the IOAPIC sends to; the ends must then come through [`end_by`](Self::end_by).
    pub fn with_rtc(target: Arc<dyn MsiTarget>, targets: Arc<dyn RtcTargets>, options: IoApicOptions) -> Self {
        Self { rtc: Some(Rtc::new(targets)), ..Self::new(target, options) }
    }

    /// Back to the state after reset. Lines stay as their sources drive them, as on hardware.
    pub fn reset(&self) {
        let Self { target: _, options: _, pins: _, by_vector: _, index, id, base, delayed, rtc } = self;
        // Relaxed: single registers, each means something alone.
        index.store(0, Ordering::Relaxed);
        id.store(0, Ordering::Relaxed);
        base.store(DEFAULT_BASE, Ordering::Relaxed);
        delayed.store(0, Ordering::Relaxed);
        if let Some(rtc) = rtc {
            rtc.forget();
        }
        for pin in 0..PINS {
            self.configure(pin, |held| {
                let line = held.line;
                **held = pin::PinState { line, ..pin::PinState::RESET };
            });
        }
    }

    /// A guest's 32-bit load at `offset` in the window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            INDEX => self.index.load(Ordering::Relaxed),
            WINDOW => self.read_register(self.index.load(Ordering::Relaxed)),
            _ => 0,
        }
    }

    /// A guest's 32-bit store at `offset` in the window.
    pub fn write(&self, offset: u64, value: u32) -> Effect {
        match offset {
            INDEX => self.index.store(value & 0xff, Ordering::Relaxed),
            WINDOW => return self.write_register(self.index.load(Ordering::Relaxed), value),
            EOI if self.options.version == Version::V20 => {
                let ended = self.end(value as u8);
                if !ended.is_empty() {
                    return Effect::Ended(ended);
                }
            }
            _ => {}
        }
        Effect::None
    }

    /// A guest's load of any width: as in KVM, 1, 2 and 4 bytes see the low part, 8 bytes are extended with zeros.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let value = u64::from(self.read(offset)).to_le_bytes();
        data.fill(0);
        if matches!(data.len(), 1 | 2 | 4 | 8) {
            data.copy_from_slice(&value[..data.len()]);
        }
    }

    /// A guest's store of any width: as in KVM, shorter ones are extended with zeros, 8 bytes are cut, others ignored.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) -> Effect {
        let value = match *data {
            [a] => u32::from(a),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] | [a, b, c, d, _, _, _, _] => u32::from_le_bytes([a, b, c, d]),
            _ => return Effect::None,
        };
        self.write(offset, value)
    }

    fn read_register(&self, index: u32) -> u32 {
        match index {
            ID | ARBITRATION => IdRegister::new().with_id((self.id.load(Ordering::Relaxed) & 0xf) as u8).into_bits(),
            VERSION => {
                let version = match self.options.version {
                    Version::V11 => 0x11,
                    Version::V20 => 0x20,
                };
                VersionRegister::new().with_version(version).with_last_pin(PINS as u8 - 1).into_bits()
            }
            _ => {
                let entry = Self::pin_of_register(index).map_or(u64::MAX, |pin| self.entry(pin).into_bits());
                if index & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
        }
    }

    fn write_register(&self, index: u32, value: u32) -> Effect {
        match index {
            ID => self.id.store(u32::from(IdRegister::from_bits(value).id()), Ordering::Relaxed),
            VERSION | ARBITRATION => {}
            _ => {
                if let Some(pin) = Self::pin_of_register(index) {
                    return self.store_entry(pin, |entry| {
                        if index & 1 == 0 {
                            (entry & !0xffff_ffff) | u64::from(value)
                        } else {
                            (entry & 0xffff_ffff) | (u64::from(value) << 32)
                        }
                    });
                }
            }
        }
        Effect::None
    }

    fn pin_of_register(index: u32) -> Option<usize> {
        let pin = (index.checked_sub(FIRST_ENTRY)? / 2) as usize;
        (pin < PINS).then_some(pin)
    }

    fn store_entry(&self, pin: usize, bits: impl FnOnce(u64) -> u64) -> Effect {
        let due = self.configure(pin, |held| {
            let bits = bits(held.entry.into_bits());
            held.store(bits)
        });
        if due { Effect::Unmasked(Pins::from_slice(&[pin as u16])) } else { Effect::None }
    }

    /// The entry of a pin; that of an absent pin is all ones.
    pub fn entry(&self, pin: usize) -> RedirectionEntry {
        self.pins.get(pin).map_or(RedirectionEntry::from_bits(u64::MAX), |pin| pin.take().entry)
    }

    /// A guest's store of a whole entry, as two stores of its halves would do it. Absent pins ignore it.
    pub fn write_entry(&self, pin: usize, entry: RedirectionEntry) -> Effect {
        if pin < PINS { self.store_entry(pin, |_| entry.into_bits()) } else { Effect::None }
    }

    /// Changes a pin, and what depends on its entry.
    fn configure<T>(&self, pin: usize, change: impl FnOnce(&mut Held<'_>) -> T) -> T {
        let mut held = self.pins[pin].take_for_configuration();
        let before = held.entry;
        let result = change(&mut held);
        self.follow_entry(pin, before, &mut held);
        result
    }

    /// Keeps `by_vector` and the resolved message in step with the entry, before anything is sent by it.
    fn follow_entry(&self, pin: usize, before: RedirectionEntry, held: &mut Held<'_>) {
        let now = held.entry;
        if before.vector() != now.vector() {
            // Relaxed: an end of the vector can only follow a message that is sent from inside this pin, and that
            // message's own publication orders this before it.
            self.by_vector[usize::from(now.vector())].fetch_or(1 << pin, Ordering::Relaxed);
            self.by_vector[usize::from(before.vector())].fetch_and(!(1 << pin), Ordering::Relaxed);
        }
        let what = |entry: RedirectionEntry| entry.with_masked(false).into_bits() & !RedirectionEntry::READ_ONLY;
        if what(before) != what(now) {
            held.set_target(self.target.prepare(&now.message(self.options.device_id)));
        }
    }

    /// How a taken pin sends.
    #[inline]
    fn sender(&self, held: &Held<'_>) -> impl FnOnce(RedirectionEntry) -> Sent + use<'_> {
        let target = held.target();
        move |entry| match target {
            Some(target) => Sent::To(self.target.fire(target)),
            None => self.send(entry),
        }
    }

    fn send(&self, entry: RedirectionEntry) -> Sent {
        self.target.send(&entry.message(self.options.device_id)).map_or(Sent::Refused, Sent::To)
    }

    /// A level interrupt with this vector has ended: the local APICs broadcast it (spec A9). Returns the pins that have
    /// the vector; the caller lowers their resampled lines, tells their resamplers and calls
    /// [`reevaluate`](PinInput::reevaluate).
    ///
    /// As in KVM, an edge entry that shares its vector with a level entry is treated alike: it loses a remote IRR that the
    /// VMM gave it, and is sent again while its line is high.
    #[must_use = "what is still high is sent again by `reevaluate` only"]
    #[inline]
    pub fn end(&self, vector: u8) -> Pins {
        let (mut heard, mut edges) = (false, false);
        let pins = self.for_each_with(vector, |number, pin| {
            let mut held = pin.take();
            let mine = held.entry.vector() == vector;
            if mine && held.entry.level() {
                held.end();
                heard = true;
            } else if mine {
                heard |= self.rtc.is_some() && number == rtc::PIN;
                edges = true;
            }
            mine
        });
        if heard && edges { self.end_all(vector) } else { pins }
    }

    /// The same where every entry with the vector is an edge, which KVM does if one of them has a resampler.
    #[must_use = "what is still high is sent again by `reevaluate` only"]
    pub fn end_all(&self, vector: u8) -> Pins {
        self.for_each_with(vector, |_, pin| {
            let mut held = pin.take();
            let mine = held.entry.vector() == vector;
            if mine {
                held.end();
            }
            mine
        })
    }

    /// An edge interrupt with this vector has ended. Nothing is broadcast on hardware; KVM tells the resamplers of the
    /// pins with the vector, and these are returned.
    pub fn end_edge(&self, vector: u8) -> Pins {
        self.for_each_with(vector, |_, pin| pin.vector() == vector)
    }

    /// [`end`](Self::end) or [`end_edge`](Self::end_edge) by a CPU that is named, as the real-time clock's accounting needs
    /// it ([`with_rtc`](Self::with_rtc)).
    #[must_use = "what is still high is sent again by `reevaluate` only"]
    pub fn end_by(&self, vcpu: VcpuId, vector: u8, level: bool) -> Pins {
        if let Some(rtc) = &self.rtc {
            // Not while the clock's message is being sent.
            let _held = self.pins[rtc::PIN].take();
            rtc.ended(vcpu, vector);
        }
        if level { self.end(vector) } else { self.end_edge(vector) }
    }

    #[inline]
    fn for_each_with(&self, vector: u8, mut each: impl FnMut(usize, &Pin) -> bool) -> Pins {
        let mut pins = Pins::new();
        // Relaxed: see `follow_entry`.
        let mut left = self.by_vector[usize::from(vector)].load(Ordering::Relaxed);
        while left != 0 {
            let pin = left.trailing_zeros();
            left &= left - 1;
            if self.pins.get(pin as usize).is_some_and(|it| each(pin as usize, it)) {
                pins.push(pin as u16);
            }
        }
        pins
    }

    /// The latches of these pins, which [`Effect::Unmasked`] named, are forgotten: a resampler raises the line again if it
    /// is still high (irqfd R6). To be called before the resampler is told.
    pub fn withdraw(&self, pins: &Pins) {
        for pin in pins.iter().filter_map(|&pin| self.pins.get(usize::from(pin))) {
            pin.take_for_configuration().withdraw();
        }
    }

    /// The pins that the storm guard has held back since the last call, to be
    /// [re-evaluated](PinInput::reevaluate) about 10 ms later.
    pub fn take_delayed(&self) -> Pins {
        // Relaxed: a hint; the pins themselves hold the state.
        let delayed = self.delayed.swap(0, Ordering::Relaxed);
        (0..PINS as u16).filter(|pin| delayed >> pin & 1 == 1).collect()
    }

    /// A line call on the clock's pin, with KVM's accounting (see [`with_rtc`](Self::with_rtc)).
    #[cold]
    fn drive_clock(&self, rtc: &Rtc, source: LineSource, level: bool) -> Delivery {
        let mut held = self.pins[rtc::PIN].take();
        let high = held.line.set(source, level);
        if !high {
            held.flags.set_latched(false);
            return Delivery::Delivered(1);
        }
        if rtc.is_pending() {
            return Delivery::Coalesced;
        }
        held.raise(|entry| {
            let message = entry.message(self.options.device_id);
            rtc.sends(&message, entry.vector());
            let sent = self.target.send(&message).map_or(Sent::Refused, Sent::To);
            rtc.sent(if let Sent::To(delivery) = sent { delivery } else { Delivery::Ignored });
            sent
        })
    }

    /// Recounts which CPUs have yet to end the clock's interrupt, as KVM does for all after `KVM_SET_IRQCHIP`, and for
    /// one (`only`) after its `KVM_SET_LAPIC`: `pending` says whether a CPU holds a vector in IRR or ISR. Does nothing
    /// without [`with_rtc`](Self::with_rtc).
    pub fn recount_clock(&self, only: Option<VcpuId>, mut pending: impl FnMut(VcpuId, u8) -> bool) {
        if let Some(rtc) = &self.rtc {
            let entry = self.entry(rtc::PIN);
            let vector = entry.vector();
            rtc.recount(&entry.message(self.options.device_id), vector, |vcpu| {
                only.is_none_or(|only| only == vcpu).then(|| pending(vcpu, vector))
            });
        }
    }
}

impl PinInput for IoApic {
    fn withdraw(&self, chip: ChipId, pins: &Pins) {
        if chip == CHIP {
            IoApic::withdraw(self, pins);
        }
    }

    fn pins(&self, chip: ChipId) -> u16 {
        if chip == CHIP { PINS as u16 } else { 0 }
    }

    #[inline]
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        if let (Some(rtc), rtc::PIN, CHIP, LineSource::USER) = (&self.rtc, usize::from(pin), chip, source) {
            return self.drive_clock(rtc, source, level);
        }
        match self.pins.get(usize::from(pin)) {
            Some(pin) if chip == CHIP => {
                let mut held = pin.take();
                let send = self.sender(&held);
                held.drive(source, level, send)
            }
            _ => Delivery::Ignored,
        }
    }

    #[inline]
    fn pulse(&self, chip: ChipId, pin: u16, source: LineSource) -> Delivery {
        match self.pins.get(usize::from(pin)) {
            Some(pin) if chip == CHIP => {
                let mut held = pin.take();
                let send = self.sender(&held);
                let delivery = held.drive(source, true, send);
                // With another source still high, this is a raise of its own, as in KVM.
                let send = self.sender(&held);
                held.drive(source, false, send);
                delivery
            }
            _ => Delivery::Ignored,
        }
    }

    #[inline]
    fn reevaluate(&self, chip: ChipId, pins: &Pins) {
        if chip != CHIP {
            return;
        }
        for &number in pins {
            if let Some(pin) = self.pins.get(usize::from(number)).filter(|pin| pin.is_due()) {
                let mut held = pin.take();
                let send = self.sender(&held);
                if !held.reevaluate(self.options.storm_guard, send) {
                    // Relaxed: see `take_delayed`.
                    self.delayed.fetch_or(1 << number, Ordering::Relaxed);
                }
            }
        }
    }
}
