//! The half of a local APIC that every thread may write: what is pending, and whether the vCPU wants to be woken.

use crate::sync::{AtomicU32, AtomicU64, Ordering, seqcst_boundary};

/// One vCPU's pending interrupts and events.
///
/// Invariant of the kick: whoever makes something pending and then finds the vCPU armed takes the arming away and wakes
/// it; a vCPU arms first and then looks at what is pending. One of the two sees the other, because all four accesses
/// are sequentially consistent. The model is in `models.rs`.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shared {
    /// IRR. Set by senders, cleared by the vCPU.
    irr: [AtomicU64; 4],
    /// 1 while the vCPU wants to be woken. Set by the vCPU, taken by the sender that wakes it.
    armed: AtomicU32,
    /// See [`Events`].
    events: AtomicU32,
    /// TMR: how a vector was triggered when it was last accepted. Written before its IRR bit.
    tmr: [AtomicU64; 4],
    /// Errors that the guest has not read yet; layout of the ESR.
    errors: AtomicU32,
    /// 1 while there is a private half.
    pub(super) taken: AtomicU32,
}

/// What is pending besides IRR.
#[bitfield_struct::bitfield(u32)]
pub(super) struct Events {
    pub init: bool,
    pub sipi: bool,
    pub nmi: bool,
    pub smi: bool,
    /// The level of the 8259's output.
    pub pic: bool,
    /// An ExtINT message.
    pub extint: bool,
    /// A new error; the vCPU delivers its LVT entry.
    pub error: bool,
    /// Another NMI, while the first was pending.
    pub second_nmi: bool,
    pub sipi_vector: u8,
    /// The levels of the pins, and edges that nobody has looked at.
    pub lint0: bool,
    pub lint1: bool,
    pub lint0_edge: bool,
    pub lint1_edge: bool,
    #[bits(12)]
    __: u16,
}

impl Events {
    /// The bits that can be set.
    pub const KNOWN: u32 = Self::new()
        .with_init(true)
        .with_sipi(true)
        .with_nmi(true)
        .with_smi(true)
        .with_pic(true)
        .with_extint(true)
        .with_error(true)
        .with_second_nmi(true)
        .with_sipi_vector(0xff)
        .into_bits()
        | Self::LINTS;

    /// Those of the pins.
    pub const LINTS: u32 =
        Self::new().with_lint0(true).with_lint1(true).with_lint0_edge(true).with_lint1_edge(true).into_bits();

    /// One more NMI. As in KVM, a CPU keeps two: one that it is about to take, and one after that.
    pub fn and_nmi(self) -> Self {
        if self.nmi() { self.with_second_nmi(true) } else { self.with_nmi(true) }
    }
}

impl Shared {
    pub fn new() -> Self {
        Self {
            irr: std::array::from_fn(|_| AtomicU64::new(0)),
            armed: AtomicU32::new(0),
            events: AtomicU32::new(0),
            tmr: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: AtomicU32::new(0),
            taken: AtomicU32::new(0),
        }
    }

    /// Makes a vector pending. True if the vCPU must be woken.
    #[inline]
    #[must_use]
    pub fn accept(&self, vector: u8, level: bool) -> bool {
        let word = usize::from(vector >> 6);
        let bit = 1 << (vector & 63);
        let tmr = &self.tmr[word];
        // Relaxed: published by the store to IRR, and read after the IRR bit was seen.
        if (tmr.load(Ordering::Relaxed) & bit != 0) != level {
            if level {
                tmr.fetch_or(bit, Ordering::Relaxed);
            } else {
                tmr.fetch_and(!bit, Ordering::Relaxed);
            }
        }
        // Never left out if the bit is set already: it also orders what the device wrote before the acknowledge that
        // takes the bit. SeqCst: releases to that acknowledge, and see the invariant.
        self.irr[word].fetch_or(bit, Ordering::SeqCst);
        self.take_arming()
    }

    /// Changes the events. True if the vCPU must be woken.
    #[must_use]
    pub fn post(&self, change: impl Fn(Events) -> Events) -> bool {
        let mut now = self.events.load(Ordering::Relaxed);
        loop {
            let next = change(Events::from_bits(now)).into_bits();
            // SeqCst: see the invariant.
            match self.events.compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return self.take_arming(),
                Err(found) => now = found,
            }
        }
    }

    /// By the vCPU: clears events, and returns all as they were.
    pub fn clear_events(&self, which: u32) -> Events {
        // AcqRel: Acquire pairs with the SeqCst of who posted them.
        Events::from_bits(self.events.fetch_and(!which, Ordering::AcqRel))
    }

    /// Whether the vCPU wanted to be woken; it no longer does.
    #[inline]
    pub fn take_arming(&self) -> bool {
        seqcst_boundary();
        // SeqCst: see the invariant. Looked at before it is swapped: usually nobody has armed since the last wake-up.
        self.armed.load(Ordering::SeqCst) != 0 && self.armed.swap(0, Ordering::SeqCst) != 0
    }

    /// By the vCPU: asks to be woken. What is pending must be looked at afterwards.
    pub fn arm(&self) {
        // SeqCst: see the invariant. A swap costs what a sequentially consistent store does, and loom orders it with the
        // senders' swaps, which it does not do for a store.
        self.armed.swap(1, Ordering::SeqCst);
        seqcst_boundary();
    }

    /// By the vCPU: it is awake and will look. Saves the next sender the wake-up.
    pub fn disarm(&self) {
        // Relaxed: an arming that is taken late costs one needless wake-up. A kick has taken it already.
        if self.armed.load(Ordering::Relaxed) != 0 {
            self.armed.swap(0, Ordering::Relaxed);
        }
    }

    #[inline]
    pub fn irr(&self) -> [u64; 4] {
        // SeqCst: acquires what was published with the bits, and see the invariant.
        [0, 1, 2, 3].map(|word: usize| self.irr[word].load(Ordering::SeqCst))
    }

    pub fn tmr(&self) -> [u64; 4] {
        // Relaxed: written before the IRR bit that leads here.
        [0, 1, 2, 3].map(|word: usize| self.tmr[word].load(Ordering::Relaxed))
    }

    #[inline]
    pub fn events(&self) -> Events {
        // SeqCst: see the invariant.
        Events::from_bits(self.events.load(Ordering::SeqCst))
    }

    /// By the vCPU: takes a pending vector.
    #[inline]
    pub fn take(&self, vector: u8) {
        // AcqRel: Acquire pairs with the sender's SeqCst: the handler sees what every merged sender wrote before.
        self.irr[usize::from(vector >> 6)].fetch_and(!(1 << (vector & 63)), Ordering::AcqRel);
    }

    /// Whether a vector was last accepted as level-triggered.
    #[inline]
    pub fn is_level(&self, vector: u8) -> bool {
        // Relaxed: as in `tmr`.
        self.tmr[usize::from(vector >> 6)].load(Ordering::Relaxed) >> (vector & 63) & 1 == 1
    }

    /// By the vCPU, on reset or restore.
    pub fn set_vectors(&self, irr: [u64; 4], tmr: [u64; 4]) {
        for word in 0..4 {
            self.tmr[word].store(tmr[word], Ordering::Relaxed);
            // Release: publishes TMR, as `accept` does.
            self.irr[word].store(irr[word], Ordering::Release);
        }
    }

    /// By the vCPU, on restore.
    pub fn set_events(&self, events: Events, errors: u32) {
        self.errors.store(errors, Ordering::Relaxed);
        // Release: publishes the errors, as `error` does.
        self.events.store(events.into_bits(), Ordering::Release);
    }

    /// Notes an error. True if the vCPU must be woken.
    #[must_use]
    pub fn error(&self, error: u32) -> bool {
        // Relaxed: published by the event.
        self.errors.fetch_or(error, Ordering::Relaxed);
        self.post(|events| events.with_error(true))
    }

    pub fn errors(&self) -> u32 {
        self.errors.load(Ordering::Relaxed)
    }

    pub fn take_errors(&self) -> u32 {
        // Relaxed: the bits mean nothing beyond themselves.
        self.errors.swap(0, Ordering::Relaxed)
    }
}
