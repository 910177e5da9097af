//! Random programs on a timer and on a reference that counts every single tick of its clock.

use proptest::prelude::*;

use super::*;
use crate::clock::Clock;

/// The lengths are short, so that counting tick by tick is fast and moments meet.
const MIN_PERIOD: u64 = 20;
const VECTOR: u8 = 0x41;

/// A timer as the manual draws it: a divider in front of a down-counter, stepped once a nanosecond.
#[derive(Debug, Default)]
struct Reference {
    now: u64,
    mode: u8,
    masked: bool,
    initial: u32,
    divisor: u64,
    /// Nanoseconds until the count ends; 0 while nothing counts.
    left: u64,
    deadline: u64,
    pending: bool,
}

impl Reference {
    fn period(&self) -> u64 {
        let period = u64::from(self.initial) * self.divisor;
        if self.mode == 1 && period != 0 { period.max(MIN_PERIOD) } else { period }
    }

    fn expire(&mut self) {
        self.pending |= !self.masked;
    }

    /// One nanosecond, which is also one tick of the time-stamp counter.
    fn step(&mut self) {
        self.now += 1;
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                self.expire();
                self.left = if self.mode == 1 { self.period() } else { 0 };
            }
        }
        self.reach();
    }

    fn reach(&mut self) {
        if self.deadline != 0 && self.now >= self.deadline {
            self.deadline = 0;
            self.expire();
        }
    }

    fn entry(&mut self, mode: u8, masked: bool) {
        if (self.mode == 2) != (mode == 2) {
            (self.left, self.initial, self.deadline) = (0, 0, 0);
        }
        (self.mode, self.masked) = (mode, masked);
    }

    fn count(&mut self, initial: u32) {
        if self.mode != 2 {
            self.initial = initial;
            self.left = if self.mode < 2 { self.period() } else { 0 };
        }
    }

    fn divide(&mut self, divisor: u64) {
        self.left = self.left * divisor / self.divisor;
        self.divisor = divisor;
    }

    fn next(&self) -> Option<u64> {
        match (self.masked, self.deadline, self.left) {
            (true, ..) | (_, 0, 0) => None,
            (_, 0, left) => Some(self.now + left),
            (_, deadline, _) => Some(deadline),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait {
        ns: u64,
        look: bool,
    },
    Entry {
        mode: u8,
        masked: bool,
    },
    Count(u32),
    /// A power of two.
    Divide(u32),
    Deadline(i64),
    Restore,
    SetPage,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..60u64, any::<bool>()).prop_map(|(ns, look)| Step::Wait { ns, look }),
        3 => (0..4u8, prop::bool::weighted(0.2)).prop_map(|(mode, masked)| Step::Entry { mode, masked }),
        3 => (0..40u32).prop_map(Step::Count),
        1 => (0..4u32).prop_map(Step::Divide),
        2 => (-3..50i64).prop_map(Step::Deadline),
        1 => Just(Step::Restore),
        1 => Just(Step::SetPage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_timer_does_what_a_counter_does(steps in prop::collection::vec(step(), 1..80)) {
        let clock = Arc::new(VirtualClock::default());
        let timer = TimerOptions { min_period_ns: MIN_PERIOD, ..TimerOptions::default() };
        let options = ApicOptions { timer, ..ApicOptions::default() };
        let set = ApicSet::with_clock(&[0], Arc::new(()), clock.clone(), options).unwrap();
        let mut cpu = set.local(VcpuId(0)).unwrap();
        cpu.write(SVR, 0x1ff);
        cpu.write(0x3e0, 0xb);
        let mut model = Reference { masked: true, divisor: 1, ..Reference::default() };
        for step in steps {
            match step {
                Step::Wait { ns, look } => {
                    clock.advance(ns);
                    (0..ns).for_each(|_| model.step());
                    if look {
                        cpu.tick();
                    }
                }
                Step::Entry { mode, masked } => {
                    cpu.write(0x320, u32::from(mode) << 17 | u32::from(masked) << 16 | u32::from(VECTOR));
                    model.entry(mode, masked);
                }
                Step::Count(initial) => {
                    cpu.write(0x380, initial);
                    model.count(initial);
                }
                Step::Divide(exponent) => {
                    // Not while a part of a nanosecond would be left.
                    let divisor = 1 << exponent;
                    if model.left * divisor % model.divisor == 0 {
                        cpu.write(0x3e0, [0xb, 0, 1, 2][exponent as usize]);
                        model.divide(divisor);
                    }
                }
                Step::Deadline(ahead) => {
                    let deadline = model.now.saturating_add_signed(ahead);
                    cpu.msr_write(TSC_DEADLINE_MSR, deadline).unwrap();
                    if model.mode == 2 {
                        model.deadline = deadline;
                        model.reach();
                    }
                }
                Step::Restore => {
                    let state = cpu.save();
                    cpu.reset();
                    clock.advance(5);
                    cpu.restore(&state).unwrap();
                    // The guest's time goes on from where it was, the set's clock does not; so the reference waits too,
                    // unless its time-stamp counter went on by itself.
                    prop_assert_eq!(cpu.save(), state);
                    cpu.set_tsc(model.now);
                }
                Step::SetPage => {
                    cpu.tick();
                    // A page has whole ticks, and does not know a one-shot count that has ended from one that ends now; nothing
                    // starts in the reserved mode.
                    let whole = model.divisor == 1 && model.mode != 3 && (model.left > 0 || model.initial == 0);
                    let lengthened = model.left > model.period();
                    if whole && !lengthened {
                        let page = cpu.page();
                        cpu.set_page(&page).unwrap();
                    }
                }
            }
            let offset = clock.now_ns() - model.now;
            let counts = (model.left / model.divisor) as u32;
            prop_assert_eq!((cpu.read(0x380), cpu.read(0x390)), (model.initial, counts));
            cpu.tick();
            prop_assert_eq!(cpu.next_deadline(), model.next().map(|at| at + offset));
            prop_assert_eq!(cpu.acknowledge(), std::mem::take(&mut model.pending).then_some(VECTOR));
            cpu.eoi();
            prop_assert_eq!(cpu.msr_read(TSC_DEADLINE_MSR), Ok(model.deadline));
        }
    }
}
