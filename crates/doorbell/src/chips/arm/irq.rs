//! One interrupt: its state in one word, and its place in a queue.
//!
//! The state machine is that of Arm IHI 0069, "Interrupt handling and prioritization", "Interrupt handling state machine".

use super::{GicOptions, intid, queue::DETACHED};
use crate::sync::{AtomicU32, AtomicU64, Ordering, load_to_change};

/// No vCPU: the target of an interrupt that is routed to none.
pub(super) const NOBODY: u16 = 0xffff;

/// Everything that decides whether and where an interrupt is delivered.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct IrqState {
    /// Five bits of it exist; the low three are zero.
    pub priority: u8,
    pub enabled: bool,
    /// The pending latch: set by an edge or by software.
    pub latch: bool,
    /// The level of the input.
    pub line: bool,
    pub active: bool,
    /// Edge-triggered; else it is pending while the line is high, too.
    pub edge: bool,
    /// Group 1; else Group 0.
    pub group1: bool,
    /// GICD_IGRPMODR, which means nothing in one Security state.
    pub modifier: bool,
    /// GICD_IROUTER.Interrupt_Routing_Mode: any one vCPU takes it.
    pub any: bool,
    /// It is in the queue of `holder`, or the one who set this is about to push it there. Cleared only with the lock of
    /// that queue held, by one who has unlinked it.
    pub queued: bool,
    /// LPIs: the vCPU that it is for has its LPIs switched off. It is not delivered.
    pub off: bool,
    /// LPIs: the same of its home. Events that come are dropped.
    pub home_off: bool,
    /// LPIs: see [`home`](Self::home).
    #[bits(10)]
    home_bits: u16,
    /// LPIs: hardware delivers it. It is pending there, never here.
    pub forwarded: bool,
    #[bits(2)]
    __: u8,
    /// The index of the vCPU that it is for, or [`NOBODY`].
    pub target: u16,
    /// Whose queue it is in, while `queued`.
    pub holder: u16,
}

/// How many levels of priority there are: five bits.
pub(super) const LEVELS: usize = 32;
/// The bits of a priority that exist.
pub(super) const PRIORITY: u8 = 0xf8;

impl IrqState {
    /// Whether it is pending (C10 to C12).
    pub fn pending(self) -> bool {
        self.latch() || self.line() && !self.edge()
    }

    /// Whether it is to be in a queue: everything but the group enables and the priorities of its vCPU is in its favour.
    pub fn wanted(self) -> bool {
        self.enabled() && self.pending() && !self.active() && !self.off() && self.target() != NOBODY
    }

    /// LPIs: the vCPU that events are for, or [`NOBODY`]. `target` is another one only for what MOVALL or MAPC have left
    /// pending elsewhere.
    pub fn home(self) -> u16 {
        match self.home_bits() {
            Self::NO_HOME => NOBODY,
            cpu => cpu,
        }
    }

    pub fn with_home(self, cpu: u16) -> Self {
        self.with_home_bits(cpu.min(Self::NO_HOME))
    }

    const NO_HOME: u16 = 0x3ff;

    /// Its level, 0 the most urgent.
    pub fn level(self) -> usize {
        usize::from(self.priority() >> 3)
    }

    /// Where in which queue it belongs: a queued interrupt for which this changes must be moved.
    fn place(self) -> (u16, usize, bool, bool) {
        (self.target(), self.level(), self.group1(), self.off())
    }

    /// Whether it is in the queue of a vCPU that it is not for.
    pub fn is_misplaced(self) -> bool {
        self.queued() && self.holder() != self.target()
    }

    /// Whether a change from `self` to `next` leaves it queued in the wrong place.
    pub fn is_displaced_by(self, next: Self) -> bool {
        next.queued() && self.place() != next.place() || next.is_misplaced()
    }

    /// After an acknowledge (C13, C30).
    pub fn taken(self, intid: u32) -> Self {
        self.with_latch(false).with_active(intid < intid::FIRST_LPI)
    }
}

const _: () = assert!(GicOptions::MOST_VCPUS <= IrqState::NO_HOME as usize, "every vCPU can be a home");

/// An interrupt. Its number is known to who holds it.
#[derive(Debug)]
pub(super) struct Irq {
    /// An [`IrqState`]. All accesses are sequentially consistent: see `queue.rs`.
    state: AtomicU64,
    /// The next in a list, or in an inbox. Written by who pushes it, then by who holds the lock of the queue.
    pub(super) next: AtomicU32,
    /// The one before in a list; [`DETACHED`] while it is in none. Written with the lock of the queue held.
    pub(super) prev: AtomicU32,
}

impl Irq {
    pub fn new(state: IrqState) -> Self {
        Self {
            state: AtomicU64::new(state.into_bits()),
            next: AtomicU32::new(DETACHED),
            prev: AtomicU32::new(DETACHED),
        }
    }

    #[inline]
    pub fn state(&self) -> IrqState {
        // SeqCst: see `queue.rs`.
        IrqState::from_bits(self.state.load(Ordering::SeqCst))
    }

    /// The same, for who will change it.
    #[inline]
    pub fn state_to_change(&self) -> IrqState {
        // SeqCst: see `queue.rs`.
        IrqState::from_bits(load_to_change!(self.state, Ordering::SeqCst))
    }

    /// Changes `now` to `next`, or says what it is instead.
    #[inline]
    pub fn exchange(&self, now: IrqState, next: IrqState) -> Result<(), IrqState> {
        // SeqCst: see `queue.rs`. A change to the same is made as well: it orders what a device wrote before its interrupt.
        match self.state.compare_exchange_weak(now.into_bits(), next.into_bits(), Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Ok(()),
            Err(found) => Err(IrqState::from_bits(found)),
        }
    }
}
