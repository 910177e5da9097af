//! The real-time clock PL031 (Arm DDI 0224C, "PrimeCell Real Time Clock (PL031) Technical Reference Manual", chapter 3).
//!
//! It counts seconds by a [`Clock`]. It has no thread: whoever runs the machine asks [`Pl031::next_alarm_ns`] how long it may
//! sleep and calls [`Pl031::tick`] then; every access of the guest looks at the time as well.

use std::sync::Arc;

use doorbell::clock::{Clock, NS_PER_SECOND};
use parking_lot::Mutex;

use crate::{Mmio, Wire, mmio::primecell_id, wire::Output};

const RTCDR: u64 = 0x00;
const RTCMR: u64 = 0x04;
const RTCLR: u64 = 0x08;
const RTCCR: u64 = 0x0c;
const RTCIMSC: u64 = 0x10;
const RTCRIS: u64 = 0x14;
const RTCMIS: u64 = 0x18;
const RTCICR: u64 = 0x1c;

/// RTCPeriphID0 to 3 and RTCPCellID0 to 3.
const ID: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A PL031. See the [module](self).
pub struct Pl031 {
    clock: Arc<dyn Clock>,
    /// Nothing else of the board is locked while it is held.
    state: Mutex<State>,
}

struct State {
    irq: Output,
    /// What is added to the seconds of the clock; wraps, as the counter does.
    offset: u32,
    loaded: u32,
    alarm: u32,
    /// Up to which second, counted by the clock, alarms have been looked for.
    seen: u64,
    mask: bool,
    raw: bool,
}

impl Pl031 {
    /// A clock that shows `seconds` (since 1970, say) now, and drives `irq`.
    pub fn new(clock: Arc<dyn Clock>, seconds: u32, irq: impl Wire + 'static) -> Self {
        let now = clock.now_ns() / NS_PER_SECOND;
        let offset = seconds.wrapping_sub(now as u32);
        let irq = Output::new(irq);
        let state = State { irq, offset, loaded: seconds, alarm: 0, seen: now, mask: false, raw: false };
        Self { clock, state: Mutex::new(state) }
    }

    /// Looks at the time: raises the interrupt if the alarm's second has come.
    pub fn tick(&self) {
        self.now(&mut self.state.lock());
    }

    /// The nanosecond of the clock at which [`tick`](Self::tick) has something to do; `None` while no alarm can be heard.
    pub fn next_alarm_ns(&self) -> Option<u64> {
        let state = self.state.lock();
        if !state.mask || state.raw {
            return None;
        }
        // The counter wraps, so the alarm is always ahead: by a full turn, if its second is the present one.
        let shown = (state.seen as u32).wrapping_add(state.offset);
        let ahead = match state.alarm.wrapping_sub(shown) {
            0 => 1 << 32,
            ahead => u64::from(ahead),
        };
        state.seen.checked_add(ahead)?.checked_mul(NS_PER_SECOND)
    }

    /// The second it shows, after looking for alarms.
    fn now(&self, state: &mut State) -> u32 {
        let now = self.clock.now_ns() / NS_PER_SECOND;
        let shown = (now as u32).wrapping_add(state.offset);
        let passed = now.saturating_sub(state.seen);
        // The alarm rings when its second begins: it lies in the stretch of `passed` seconds that ends now.
        if passed > u64::from(shown.wrapping_sub(state.alarm)) {
            state.raw = true;
        }
        state.seen = now;
        state.drive();
        shown
    }

    /// The guest chose the alarm's second, or the present one: it rings at once if they are the same.
    fn compare(&self, state: &mut State) {
        if (state.seen as u32).wrapping_add(state.offset) == state.alarm {
            state.raw = true;
        }
    }
}

impl State {
    fn drive(&mut self) {
        self.irq.set(self.raw && self.mask);
    }
}

impl Mmio for Pl031 {
    fn read(&self, offset: u64, _bytes: u8) -> u64 {
        let mut state = self.state.lock();
        let shown = self.now(&mut state);
        let value = match offset {
            RTCDR => shown,
            RTCMR => state.alarm,
            RTCLR => state.loaded,
            // It cannot be stopped.
            RTCCR => 1,
            RTCIMSC => state.mask.into(),
            RTCRIS => state.raw.into(),
            RTCMIS => (state.raw && state.mask).into(),
            _ => primecell_id(ID, offset).unwrap_or(0),
        };
        value.into()
    }

    fn write(&self, offset: u64, _bytes: u8, value: u64) {
        let mut state = self.state.lock();
        let shown = self.now(&mut state);
        let value = value as u32;
        match offset {
            RTCMR => {
                state.alarm = value;
                self.compare(&mut state);
            }
            RTCLR => {
                state.loaded = value;
                state.offset = state.offset.wrapping_add(value.wrapping_sub(shown));
                self.compare(&mut state);
            }
            RTCIMSC => state.mask = value & 1 != 0,
            RTCICR if value & 1 != 0 => state.raw = false,
            _ => {}
        }
        state.drive();
    }
}

#[cfg(test)]
mod tests {
    use doorbell::clock::VirtualClock;

    use super::*;

    /// What was observed, in order.
    type Log<T> = Arc<Mutex<Vec<T>>>;

    const SECOND: u64 = NS_PER_SECOND;

    fn rtc() -> (Pl031, Arc<VirtualClock>, Log<bool>) {
        let (clock, levels) = (Arc::new(VirtualClock::default()), Log::<bool>::default());
        let wire = Arc::clone(&levels);
        (Pl031::new(clock.clone(), 1_000, move |level| wire.lock().push(level)), clock, levels)
    }

    #[test]
    fn it_counts_seconds_from_where_it_was_set() {
        let (rtc, clock, _) = rtc();
        clock.advance(2 * SECOND + 5);
        assert_eq!(rtc.read(RTCDR, 4), 1_002);
        rtc.write(RTCLR, 4, 0xffff_ffff);
        clock.advance(SECOND);
        assert_eq!((rtc.read(RTCDR, 4), rtc.read(RTCLR, 4), rtc.read(RTCCR, 4)), (0, 0xffff_ffff, 1), "it wraps");
        let id: Vec<_> = (0..8).map(|at| rtc.read(0xfe0 + 4 * at, 4)).collect();
        assert_eq!(id, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn an_alarm_rings_in_its_second_and_until_it_is_cleared() {
        let (rtc, clock, levels) = rtc();
        rtc.write(RTCMR, 4, 1_003);
        rtc.write(RTCIMSC, 4, 1);
        assert_eq!(rtc.next_alarm_ns(), Some(3 * SECOND));
        clock.advance(3 * SECOND - 1);
        rtc.tick();
        assert!(levels.lock().is_empty());
        clock.advance(1);
        rtc.tick();
        assert_eq!((rtc.read(RTCRIS, 4), rtc.read(RTCMIS, 4), rtc.next_alarm_ns()), (1, 1, None));
        rtc.write(RTCICR, 4, 1);
        assert_eq!(*levels.lock(), [true, false]);
        clock.advance(SECOND);
        rtc.tick();
        assert_eq!(rtc.read(RTCRIS, 4), 0, "once");
    }

    #[test]
    fn an_alarm_that_was_slept_through_rings_late_and_one_for_now_at_once() {
        let (rtc, clock, _) = rtc();
        rtc.write(RTCMR, 4, 1_003);
        clock.advance(100 * SECOND);
        rtc.tick();
        assert_eq!(rtc.read(RTCRIS, 4), 1);
        rtc.write(RTCICR, 4, 1);
        rtc.write(RTCMR, 4, 1_100);
        assert_eq!(rtc.read(RTCRIS, 4), 1);
    }
}
