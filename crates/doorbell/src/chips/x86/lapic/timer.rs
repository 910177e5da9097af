//! The timer (Intel SDM volume 3, section 11.5.4): one-shot, periodic, and by the time-stamp counter.
//!
//! There is no thread in it. A vCPU's thread asks [`next_deadline`](LocalApic::next_deadline), sleeps or runs the guest no
//! longer than that, and calls [`tick`](LocalApic::tick); what has expired by then is delivered to this very CPU. Between
//! two calls nothing has to be known but the moment at which the count ends, so that a period of any length, however
//! many times it has passed, costs the same and delivers once.

use super::{
    local::LocalApic,
    registers::{DivideConfiguration, LvtEntry, TimerMode, slot},
};
use crate::{Error, clock::NS_PER_SECOND};

/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE_MSR: u32 = 0x6e0;

/// Which modes guests can choose; KVM takes it from CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerModes {
    /// One-shot only: KVM, for a vCPU that has no CPUID leaves.
    OneShot,
    /// Periodic too: CPUID without TSC-deadline.
    Periodic,
    /// All three.
    TscDeadline,
}

/// How the timers of a machine count.
#[derive(Clone, Copy, Debug)]
pub struct TimerOptions {
    /// The modes that guests can choose. The bits of others read 0.
    pub modes: TimerModes,
    /// The length of a tick before it is divided, in ns, at least 1 (`KVM_CAP_X86_APIC_BUS_CYCLES_NS`).
    pub bus_cycle_ns: u32,
    /// The ticks of the guests' time-stamp counter in a second, at least 1 (`KVM_SET_TSC_KHZ`, times 1,000).
    pub tsc_hz: u64,
    /// Shorter periods of periodic mode are taken as this long, in ns, so that a guest cannot make a storm
    /// (`min_timer_period_us` of KVM); 0 for no limit.
    pub min_period_ns: u64,
}

impl Default for TimerOptions {
    /// As KVM: a bus of 1 GHz, periods of at least 200 µs, all modes. The time-stamp counter counts nanoseconds.
    fn default() -> Self {
        Self { modes: TimerModes::TscDeadline, bus_cycle_ns: 1, tsc_hz: NS_PER_SECOND, min_period_ns: 200_000 }
    }
}

impl TimerOptions {
    /// The bits of the timer's entry of the local vector table.
    pub(super) fn entry_bits(&self) -> u32 {
        let modes = match self.modes {
            TimerModes::OneShot => TimerMode::OneShot,
            TimerModes::Periodic => TimerMode::Periodic,
            TimerModes::TscDeadline => TimerMode::Reserved,
        };
        LvtEntry::implemented(slot::LVT_TIMER) & !LvtEntry::TIMER_MODE
            | LvtEntry::new().with_timer_mode(modes).into_bits()
    }
}

/// What a timer waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    /// When the count ends, on the set's clock. `None` while nothing counts.
    target: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 while it is not armed. Only in that mode.
    tsc_deadline: u64,
    /// The guest's time-stamp counter less the clock's.
    tsc_offset: u64,
}

/// A timer in a [`LocalApicState`](super::LocalApicState).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TimerState {
    /// Nothing counts and no deadline is set.
    #[default]
    Stopped,
    /// A count ends in so many nanoseconds; 0 if it has ended and nobody has called [`LocalApic::tick`] since.
    Counting {
        /// The nanoseconds.
        remaining_ns: u64,
    },
    /// A deadline is set.
    Deadline {
        /// IA32_TSC_DEADLINE.
        deadline: u64,
        /// The guest's time-stamp counter when it was saved. It goes on from there.
        tsc: u64,
    },
}

impl LocalApic {
    /// When the timer will have something to deliver, in ns of the set's [clock](super::ApicSet::clock): until then nobody
    /// need call [`tick`](Self::tick). `None` while it is stopped, and while what it would deliver is masked.
    pub fn next_deadline(&self) -> Option<u64> {
        if LvtEntry::from_bits(self.registers[slot::LVT_TIMER]).masked() || !self.base.enabled() {
            return None;
        }
        if self.timer.tsc_deadline == 0 {
            return self.timer.target;
        }
        let clock = self.set.clock();
        let ticks = self.timer.tsc_deadline.saturating_sub(self.tsc());
        let hz = u128::from(self.tsc_hz());
        // Rounded up: a tick that comes too early would have to wait again.
        let ns = (u128::from(ticks) * u128::from(NS_PER_SECOND)).div_ceil(hz);
        Some(clock.now_ns().saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    /// Delivers what has expired, to this CPU; whether anything has. A masked entry loses it. However many periods have
    /// passed, it is delivered once, and the next one is in phase with the first.
    ///
    /// Reads the clock, but not while the timer is stopped.
    pub fn tick(&mut self) -> bool {
        let Timer { target, tsc_deadline, tsc_offset: _ } = self.timer;
        if tsc_deadline != 0 {
            if self.tsc() < tsc_deadline {
                return false;
            }
            self.timer.tsc_deadline = 0;
        } else {
            let Some(target) = target else { return false };
            let now = self.set.clock().now_ns();
            if now < target {
                return false;
            }
            self.timer.target = self.following(target, now);
        }
        self.deliver_local(slot::LVT_TIMER);
        true
    }

    /// The guest's time-stamp counter, as the timer sees it.
    pub fn tsc(&self) -> u64 {
        self.set.clock().tsc(self.tsc_hz()).wrapping_add(self.timer.tsc_offset)
    }

    /// Sets it: for a guest's store to IA32_TIME_STAMP_COUNTER, and for a restore. A deadline that has been reached by
    /// that is delivered by the next [`tick`](Self::tick).
    pub fn set_tsc(&mut self, value: u64) {
        let now = self.set.clock().tsc(self.tsc_hz());
        self.timer.tsc_offset = value.wrapping_sub(now);
    }

    fn tsc_hz(&self) -> u64 {
        self.set.options().timer.tsc_hz.max(1)
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        LvtEntry::from_bits(self.registers[slot::LVT_TIMER] & self.set.options().timer.entry_bits()).timer_mode()
    }

    /// The length of one count, in ns.
    fn tick_ns(&self) -> u64 {
        let divide = DivideConfiguration::from_bits(self.registers[slot::TIMER_DIVIDE]);
        u64::from(self.set.options().timer.bus_cycle_ns.max(1)) * u64::from(divide.divisor())
    }

    /// From one end of the count to the next, in ns; 0 if the initial count is 0.
    fn period_ns(&self) -> u64 {
        let period = u64::from(self.registers[slot::TIMER_INITIAL]).saturating_mul(self.tick_ns());
        match self.timer_mode() {
            TimerMode::Periodic if period != 0 => period.max(self.set.options().timer.min_period_ns),
            _ => period,
        }
    }

    /// The first end of the count after `now`, if it ended at `target` and goes on.
    fn following(&self, target: u64, now: u64) -> Option<u64> {
        let period = self.period_ns();
        if self.timer_mode() != TimerMode::Periodic || period == 0 {
            return None;
        }
        let missed = now.saturating_sub(target) / period;
        Some(target.saturating_add((missed.saturating_add(1)).saturating_mul(period)))
    }

    /// The current-count register: how many whole ticks are left. As in KVM, a period that was lengthened to
    /// [`TimerOptions::min_period_ns`] counts down from above the initial count.
    pub(super) fn current_count(&self) -> u32 {
        let Some(target) = self.timer.target else { return 0 };
        let now = self.set.clock().now_ns();
        let end = if now < target { Some(target) } else { self.following(target, now) };
        let left = end.map_or(0, |end| end - now) / self.tick_ns();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Stops it, whatever it does.
    pub(super) fn stop_timer(&mut self) {
        let Timer { target, tsc_deadline, tsc_offset: _ } = &mut self.timer;
        *target = None;
        *tsc_deadline = 0;
    }

    /// A store to the timer's entry of the local vector table: what ended before it is delivered by the old entry.
    pub(super) fn write_timer_entry(&mut self, entry: LvtEntry) {
        self.tick();
        let old = self.timer_mode();
        self.registers[slot::LVT_TIMER] = entry.into_bits();
        self.change_timer_mode(old, self.timer_mode());
    }

    /// As in KVM, only a change to or from TSC-deadline mode stops the timer; by the manual, every change.
    fn change_timer_mode(&mut self, old: TimerMode, new: TimerMode) {
        let by_deadline = |mode| mode == TimerMode::TscDeadline;
        if by_deadline(old) != by_deadline(new) {
            self.stop_timer();
            self.registers[slot::TIMER_INITIAL] = 0;
        } else if old != new && self.set.options().strict {
            self.stop_timer();
        }
    }

    /// A store to the initial count, which starts the count over, or stops it with 0. Ignored in TSC-deadline mode.
    pub(super) fn write_initial_count(&mut self, value: u32) {
        if self.timer_mode() == TimerMode::TscDeadline {
            return;
        }
        self.tick();
        self.registers[slot::TIMER_INITIAL] = value;
        self.start_count(None);
    }

    /// Starts a count from its beginning, or from where it was.
    fn start_count(&mut self, current: Option<u32>) {
        let (mode, period) = (self.timer_mode(), self.period_ns());
        let ahead = match current {
            None => period,
            Some(0) if mode == TimerMode::Periodic => period,
            Some(current) => period.min(u64::from(current).saturating_mul(self.tick_ns())),
        };
        let counts = matches!(mode, TimerMode::OneShot | TimerMode::Periodic) && period != 0;
        self.timer.target = counts.then(|| self.set.clock().now_ns().saturating_add(ahead));
    }

    /// A store to the divide configuration: what is left of a running count takes longer or shorter accordingly.
    pub(super) fn write_divide_configuration(&mut self, value: u32) {
        self.tick();
        let old = self.tick_ns();
        let kept = DivideConfiguration::IMPLEMENTED & value;
        self.registers[slot::TIMER_DIVIDE] = kept;
        let new = self.tick_ns();
        if let Some(target) = self.timer.target.filter(|_| old != new) {
            let now = self.set.clock().now_ns();
            let left = u128::from(target.saturating_sub(now)) * u128::from(new) / u128::from(old);
            self.timer.target = Some(now.saturating_add(u64::try_from(left).unwrap_or(u64::MAX)));
        }
    }

    /// RDMSR of IA32_TSC_DEADLINE: 0 in other modes, with the APIC off, and after it was reached.
    pub(super) fn tsc_deadline(&mut self) -> u64 {
        self.tick();
        if self.base.enabled() { self.timer.tsc_deadline } else { 0 }
    }

    /// WRMSR of it: 0 disarms, a moment that has passed expires at once. Ignored in other modes and with the APIC off.
    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.base.enabled() && self.timer_mode() == TimerMode::TscDeadline {
            self.tick();
            self.timer.tsc_deadline = value;
            self.tick();
        }
    }

    /// After `KVM_SET_LAPIC`: the count goes on from the current count that was set. As in KVM, a one-shot count that is
    /// at 0 ends at once, whether it ended before or not, and a deadline stays.
    pub(super) fn restart_timer(&mut self, old: TimerMode, current: u32) {
        self.change_timer_mode(old, self.timer_mode());
        self.start_count(Some(current));
    }

    pub(super) fn timer_state(&self) -> TimerState {
        let Timer { target, tsc_deadline, tsc_offset: _ } = self.timer;
        match (target, tsc_deadline) {
            (_, deadline @ 1..) => TimerState::Deadline { deadline, tsc: self.tsc() },
            (None, 0) => TimerState::Stopped,
            (Some(target), 0) => {
                TimerState::Counting { remaining_ns: target.saturating_sub(self.set.clock().now_ns()) }
            }
        }
    }

    /// Whether a timer can be in `state` with these registers.
    ///
    /// # Errors
    /// [`Error::Snapshot`].
    pub(super) fn check_timer(state: &TimerState, entry: LvtEntry, initial: u32) -> Result<(), Error> {
        let mode = entry.timer_mode();
        match *state {
            TimerState::Stopped => Ok(()),
            TimerState::Counting { .. } if initial != 0 && mode != TimerMode::TscDeadline => Ok(()),
            TimerState::Deadline { deadline: 1.., .. } if mode == TimerMode::TscDeadline => Ok(()),
            _ => Err(Error::Snapshot(format!("local APIC: timer {state:?} in mode {mode:?}, initial count {initial}"))),
        }
    }

    /// Takes over a state that [`check_timer`](Self::check_timer) has passed.
    pub(super) fn restore_timer(&mut self, state: &TimerState) {
        self.stop_timer();
        match *state {
            TimerState::Stopped => {}
            TimerState::Counting { remaining_ns } => {
                self.timer.target = Some(self.set.clock().now_ns().saturating_add(remaining_ns));
            }
            TimerState::Deadline { deadline, tsc } => {
                self.set_tsc(tsc);
                self.timer.tsc_deadline = deadline;
            }
        }
    }
}
