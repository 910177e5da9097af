//! Time, as far as interrupt controllers know it: real, or a number that the embedder moves.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// A clock that never goes back.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some fixed moment.
    fn now_ns(&self) -> u64;

    /// A time-stamp counter of `hz` ticks in a second, now; it wraps.
    ///
    /// The default counts from this clock's 0. Where guests read the counter of the real CPU, this must be that counter,
    /// so that their deadlines are judged by what they see.
    fn tsc(&self, hz: u64) -> u64 {
        // Without its upper half: it wraps, as the register does.
        (u128::from(self.now_ns()) * u128::from(hz) / u128::from(NS_PER_SECOND)) as u64
    }
}

/// Nanoseconds in a second.
pub const NS_PER_SECOND: u64 = 1_000_000_000;

/// The host's monotonic clock, from the moment this was made.
#[derive(Clone, Copy, Debug)]
pub struct RealClock(Instant);

impl RealClock {
    /// A clock that starts at 0 now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now_ns(&self) -> u64 {
        // 584 years fit.
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands still until somebody moves it: for runs that can be repeated.
///
/// ```
/// use doorbell::clock::{Clock, VirtualClock};
/// let clock = VirtualClock::default();
/// clock.advance(1_000);
/// assert_eq!(clock.now_ns(), 1_000);
/// assert_eq!(clock.tsc(2_500_000_000), 2_500, "2.5 GHz");
/// ```
#[derive(Debug, Default)]
pub struct VirtualClock(AtomicU64);

impl VirtualClock {
    /// Moves the clock forward by this many nanoseconds.
    pub fn advance(&self, ns: u64) {
        // Relaxed: it is a number; what happens at that time is ordered by whoever acts on it.
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn real_time_goes_on_and_virtual_time_stands_still() {
        let (real, virtual_time) = (RealClock::new(), VirtualClock::default());
        let start = real.now_ns();
        while real.now_ns() == start {
            std::hint::spin_loop();
        }
        assert!(real.now_ns() > start);
        assert_eq!(virtual_time.now_ns(), 0);
    }

    #[test]
    fn a_time_stamp_counter_counts_whole_ticks_and_wraps() {
        let clock = VirtualClock::default();
        clock.advance(999_999_999);
        assert_eq!((clock.tsc(1), clock.tsc(2), clock.tsc(NS_PER_SECOND)), (0, 1, 999_999_999));
        clock.advance(1);
        assert_eq!((clock.tsc(1), clock.tsc(3_000_000_000)), (1, 3_000_000_000));
        clock.advance(u64::MAX - NS_PER_SECOND);
        // 2 (2^64 - 1), which is 2 less than 2^65.
        assert_eq!(clock.tsc(2 * NS_PER_SECOND), u64::MAX - 1);
    }
}
