//! The timer on a clock that the test moves. A tick of the bus is 1 ns, the time-stamp counter runs at 2 GHz.

use super::*;
use crate::{Error, clock::Clock};

const LVT_TIMER: u64 = 0x320;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const TSC_DEADLINE: u32 = 0x6e0;
const PERIODIC: u32 = 1 << 17;
const BY_TSC: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
/// Divide by 1.
const BY_ONE: u32 = 0xb;

struct Rig {
    clock: Arc<VirtualClock>,
    cpu: LocalApic,
}

fn rig_with(options: ApicOptions) -> Rig {
    let clock = Arc::new(VirtualClock::default());
    let set = ApicSet::with_clock(&[0], Arc::new(()), clock.clone(), options).unwrap();
    let mut cpu = set.local(VcpuId(0)).unwrap();
    cpu.write(SVR, 0x1ff);
    cpu.write(DIVIDE, BY_ONE);
    Rig { clock, cpu }
}

fn timer(change: impl FnOnce(&mut TimerOptions)) -> ApicOptions {
    let mut timer = TimerOptions { tsc_hz: 2_000_000_000, ..TimerOptions::default() };
    change(&mut timer);
    ApicOptions { timer, ..ApicOptions::default() }
}

fn rig() -> Rig {
    rig_with(timer(|_| ()))
}

impl Rig {
    /// Sets the entry and starts a count.
    fn start(&mut self, entry: u32, count: u32) {
        self.cpu.write(LVT_TIMER, entry);
        self.cpu.write(INITIAL, count);
    }

    /// Time goes on, the vCPU looks at its timer, and takes what there is.
    fn after(&mut self, ns: u64) -> Option<u8> {
        self.clock.advance(ns);
        let expired = self.cpu.tick();
        let vector = self.cpu.acknowledge();
        assert!(expired || vector.is_none());
        self.cpu.eoi();
        assert_eq!(self.cpu.acknowledge(), None, "never twice");
        vector
    }

    fn counts(&mut self) -> [u32; 2] {
        [self.cpu.read(INITIAL), self.cpu.read(CURRENT)]
    }

    fn deadline(&mut self) -> u64 {
        self.cpu.msr_read(TSC_DEADLINE).unwrap()
    }
}

#[test]
fn a_one_shot_count_ends_once_and_exactly_then() {
    let mut rig = rig();
    rig.clock.advance(5);
    rig.start(0x41, 1_000);
    assert_eq!(rig.cpu.next_deadline(), Some(1_005));
    assert_eq!((rig.counts(), rig.after(999)), ([1_000, 1_000], None));
    assert_eq!((rig.counts(), rig.after(1)), ([1_000, 1], Some(0x41)));
    assert_eq!((rig.counts(), rig.after(1_000_000)), ([1_000, 0], None));
    assert_eq!(rig.cpu.next_deadline(), None);
}

#[test]
fn the_divide_configuration_divides() {
    for (bits, divisor) in [(0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xa, 128), (0xb, 1)] {
        let mut rig = rig();
        rig.cpu.write(DIVIDE, bits | 0xffff_fff4);
        assert_eq!(rig.cpu.read(DIVIDE), bits);
        rig.start(0x41, 10);
        assert_eq!(rig.after(10 * divisor - 1), None);
        assert_eq!(rig.counts(), [10, u32::from(divisor == 1)], "whole ticks that are left");
        assert_eq!(rig.after(1), Some(0x41), "divided by {divisor}");
    }
}

#[test]
fn the_bus_may_be_slower() {
    let mut rig = rig_with(timer(|timer| timer.bus_cycle_ns = 25));
    rig.start(0x41, 4);
    assert_eq!((rig.after(99), rig.counts(), rig.after(1)), (None, [4, 0], Some(0x41)));
}

#[test]
fn a_count_that_runs_is_stretched_by_another_divisor() {
    let mut rig = rig();
    rig.start(0x41, 1_000);
    rig.clock.advance(400);
    rig.cpu.write(DIVIDE, 0);
    assert_eq!((rig.counts(), rig.cpu.next_deadline()), ([1_000, 600], Some(400 + 1_200)));
    rig.clock.advance(200);
    rig.cpu.write(DIVIDE, 0);
    assert_eq!((rig.counts(), rig.cpu.next_deadline()), ([1_000, 500], Some(1_600)), "the same again changes nothing");
    rig.cpu.write(DIVIDE, BY_ONE);
    assert_eq!((rig.counts(), rig.cpu.next_deadline()), ([1_000, 500], Some(1_100)));
    assert_eq!(rig.after(500), Some(0x41));
    rig.cpu.write(DIVIDE, 0);
    assert_eq!((rig.cpu.next_deadline(), rig.after(10_000)), (None, None), "one that has ended does not end again");
}

#[test]
fn a_periodic_count_keeps_its_phase_and_delivers_once_for_many_periods() {
    let mut rig = rig();
    rig.start(PERIODIC | 0x42, 300_000);
    assert_eq!(rig.after(300_000), Some(0x42));
    assert_eq!(rig.cpu.next_deadline(), Some(600_000));
    assert_eq!(rig.counts(), [300_000, 300_000]);
    assert_eq!(rig.after(310_000), Some(0x42), "10 µs late");
    assert_eq!((rig.cpu.next_deadline(), rig.counts()), (Some(900_000), [300_000, 290_000]));
    assert_eq!(rig.after(289_999), None);
    rig.clock.advance(3_000_001);
    assert_eq!(rig.counts(), [300_000, 300_000], "a new period has begun, whether anybody looked or not");
    assert_eq!(rig.after(0), Some(0x42), "eleven of them have passed");
    assert_eq!(rig.cpu.next_deadline(), Some(4_200_000));
    rig.cpu.write(INITIAL, 0);
    assert_eq!((rig.cpu.next_deadline(), rig.counts(), rig.after(1 << 40)), (None, [0, 0], None));
}

#[test]
fn a_period_of_one_count_is_no_storm() {
    let mut rig = rig();
    rig.start(PERIODIC | 0x42, 1);
    assert_eq!(rig.counts(), [1, 200_000], "as KVM shows it");
    assert_eq!((rig.after(199_999), rig.after(1)), (None, Some(0x42)));
    assert_eq!(rig.cpu.next_deadline(), Some(400_000));
    assert_eq!(rig.after(u64::from(u32::MAX)), Some(0x42), "one, and at once");
    // A period that is long enough is taken as it is.
    rig.start(PERIODIC | 0x42, 200_001);
    let now = rig.clock.now_ns();
    assert_eq!(rig.cpu.next_deadline(), Some(now + 200_001));

    let mut rig = rig_with(timer(|timer| timer.min_period_ns = 0));
    rig.start(PERIODIC | 0x42, 1);
    assert_eq!(rig.cpu.next_deadline(), Some(1));
    assert_eq!(rig.after(u64::MAX / 2), Some(0x42), "however many");
    assert_eq!(rig.cpu.next_deadline(), Some(u64::MAX / 2 + 1));
    assert_eq!(rig.after(u64::MAX / 2), Some(0x42));
    assert_eq!(rig.cpu.next_deadline(), Some(u64::MAX), "time ends before it overflows");
}

#[test]
fn a_one_shot_count_may_be_short() {
    let mut rig = rig();
    rig.start(0x41, 1);
    assert_eq!((rig.counts(), rig.after(1)), ([1, 1], Some(0x41)));
}

#[test]
fn a_count_is_started_over_by_a_store_and_not_by_its_entry() {
    let mut rig = rig();
    rig.start(0x41, 1_000);
    rig.clock.advance(600);
    rig.cpu.write(LVT_TIMER, 0x45);
    assert_eq!(rig.counts(), [1_000, 400]);
    rig.cpu.write(INITIAL, 1_000);
    assert_eq!(rig.counts(), [1_000, 1_000]);
    assert_eq!((rig.after(999), rig.after(1)), (None, Some(0x45)));
}

#[test]
fn what_ends_while_masked_is_lost() {
    let mut rig = rig();
    rig.start(MASKED | 0x41, 1_000);
    assert_eq!(
        (rig.cpu.next_deadline(), rig.counts()),
        (None, [1_000, 1_000]),
        "it counts, but nobody need wake for it"
    );
    rig.clock.advance(1_000);
    rig.cpu.write(LVT_TIMER, 0x41);
    assert_eq!((rig.cpu.acknowledge(), rig.after(1_000)), (None, None), "unmasked too late");
    // In time.
    rig.start(MASKED | 0x41, 1_000);
    rig.clock.advance(999);
    rig.cpu.write(LVT_TIMER, 0x41);
    assert_eq!((rig.cpu.next_deadline(), rig.after(1)), (Some(2_000 + 1_000), Some(0x41)));
    // A period goes on behind the mask.
    rig.start(MASKED | PERIODIC | 0x42, 300_000);
    assert_eq!(rig.after(450_000), None);
    rig.cpu.write(LVT_TIMER, PERIODIC | 0x42);
    assert_eq!((rig.counts(), rig.after(149_999), rig.after(1)), ([300_000, 150_000], None, Some(0x42)));
}

#[test]
fn what_has_ended_before_the_mask_is_delivered() {
    let mut rig = rig();
    rig.start(0x41, 1_000);
    rig.clock.advance(1_000);
    rig.cpu.write(LVT_TIMER, MASKED | 0x41);
    assert_eq!(rig.cpu.acknowledge(), Some(0x41));
    rig.cpu.eoi();
    rig.start(0x42, 1_000);
    rig.clock.advance(1_000);
    rig.cpu.write(INITIAL, 7);
    assert_eq!(rig.cpu.acknowledge(), Some(0x42), "nor does a new count take it away");
    rig.cpu.eoi();
    rig.clock.advance(7);
    rig.cpu.write(SVR, 0xff);
    rig.cpu.write(SVR, 0x1ff);
    assert_eq!(rig.cpu.acknowledge(), Some(0x42));
    rig.cpu.eoi();
    assert_eq!(rig.cpu.read(LVT_TIMER), MASKED | 0x42, "software disable masks it");
}

#[test]
fn between_one_shot_and_periodic_the_count_goes_on_as_in_kvm() {
    let mut rig = rig();
    rig.start(0x41, 300_000);
    rig.clock.advance(100_000);
    rig.cpu.write(LVT_TIMER, PERIODIC | 0x41);
    assert_eq!(rig.counts(), [300_000, 200_000]);
    assert_eq!((rig.after(200_000), rig.cpu.next_deadline()), (Some(0x41), Some(600_000)));
    rig.cpu.write(LVT_TIMER, 0x41);
    assert_eq!((rig.after(300_000), rig.cpu.next_deadline()), (Some(0x41), None));
    rig.cpu.write(LVT_TIMER, PERIODIC | 0x41);
    assert_eq!(rig.cpu.next_deadline(), None, "a count that has ended is not started by the mode");
    // Reserved: what counts goes on, nothing starts.
    rig.start(0x41, 10);
    rig.cpu.write(LVT_TIMER, 3 << 17 | 0x41);
    assert_eq!((rig.after(10), rig.cpu.next_deadline()), (Some(0x41), None));
    rig.cpu.write(INITIAL, 10);
    assert_eq!((rig.counts(), rig.cpu.next_deadline()), ([10, 0], None));
}

#[test]
fn a_change_of_the_mode_disarms_by_the_manual() {
    let mut rig = rig_with(ApicOptions { strict: true, ..timer(|_| ()) });
    rig.start(0x41, 300_000);
    rig.cpu.write(LVT_TIMER, 0x42);
    assert_eq!(rig.cpu.next_deadline(), Some(300_000), "another vector is no other mode");
    rig.cpu.write(LVT_TIMER, PERIODIC | 0x42);
    assert_eq!((rig.cpu.next_deadline(), rig.counts()), (None, [300_000, 0]));
}

#[test]
fn a_deadline_of_the_time_stamp_counter() {
    let mut rig = rig();
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    rig.clock.advance(100);
    assert_eq!(rig.cpu.tsc(), 200);
    assert_eq!(rig.cpu.msr_write(TSC_DEADLINE, 2_001), Ok(None));
    assert_eq!((rig.deadline(), rig.cpu.next_deadline()), (2_001, Some(1_001)), "rounded up");
    assert_eq!(rig.after(900), None, "2,000");
    assert_eq!(rig.cpu.next_deadline(), Some(1_001));
    assert_eq!((rig.after(1), rig.deadline(), rig.cpu.next_deadline()), (Some(0x43), 0, None));
    assert_eq!(rig.after(1_000_000), None, "once");
}

#[test]
fn a_deadline_can_be_in_the_past_taken_back_and_replaced() {
    let mut rig = rig();
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    rig.clock.advance(100);
    for past in [1, 200] {
        rig.cpu.msr_write(TSC_DEADLINE, past).unwrap();
        assert_eq!((rig.cpu.acknowledge(), rig.deadline()), (Some(0x43), 0), "{past}: at once");
        rig.cpu.eoi();
    }
    rig.cpu.msr_write(TSC_DEADLINE, 201).unwrap();
    assert_eq!((rig.cpu.acknowledge(), rig.deadline()), (None, 201));
    rig.cpu.msr_write(TSC_DEADLINE, 0).unwrap();
    assert_eq!((rig.deadline(), rig.cpu.next_deadline(), rig.after(1_000)), (0, None, None));
    rig.cpu.msr_write(TSC_DEADLINE, u64::MAX).unwrap();
    assert_eq!((rig.deadline(), rig.cpu.next_deadline()), (u64::MAX, Some(u64::MAX / 2 + 1)));
    rig.cpu.msr_write(TSC_DEADLINE, 4_000).unwrap();
    rig.clock.advance(900);
    rig.cpu.msr_write(TSC_DEADLINE, 8_000).unwrap();
    assert_eq!(rig.cpu.acknowledge(), Some(0x43), "reached before it was replaced");
    rig.cpu.eoi();
    assert_eq!((rig.after(1_999), rig.after(1)), (None, Some(0x43)));
    // A masked one is reached all the same.
    rig.cpu.write(LVT_TIMER, MASKED | BY_TSC | 0x43);
    rig.cpu.msr_write(TSC_DEADLINE, 8_100).unwrap();
    assert_eq!(rig.cpu.next_deadline(), None);
    rig.clock.advance(50);
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    assert_eq!((rig.cpu.acknowledge(), rig.deadline()), (None, 0));
}

#[test]
fn modes_do_not_see_each_other() {
    let mut rig = rig();
    rig.cpu.msr_write(TSC_DEADLINE, 1_000).unwrap();
    assert_eq!(rig.deadline(), 0, "not in this mode");
    rig.start(0x41, 500);
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x41);
    assert_eq!((rig.counts(), rig.after(1_000)), ([0, 0], None), "the count is stopped");
    rig.cpu.write(INITIAL, 500);
    assert_eq!((rig.counts(), rig.after(1_000)), ([0, 0], None), "and none can be started");
    rig.cpu.msr_write(TSC_DEADLINE, 1 << 40).unwrap();
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x45);
    assert_eq!(rig.deadline(), 1 << 40);
    rig.cpu.write(LVT_TIMER, 0x41);
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x41);
    assert_eq!((rig.deadline(), rig.cpu.next_deadline()), (0, None), "the deadline is gone");
}

#[test]
fn a_guest_that_sets_its_time_stamp_counter_moves_its_deadline() {
    let mut rig = rig();
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    rig.clock.advance(1_000);
    rig.cpu.set_tsc(u64::MAX);
    assert_eq!(rig.cpu.tsc(), u64::MAX);
    rig.cpu.set_tsc(100);
    rig.cpu.msr_write(TSC_DEADLINE, 300).unwrap();
    assert_eq!(rig.cpu.next_deadline(), Some(1_100));
    rig.cpu.set_tsc(299);
    assert_eq!((rig.after(0), rig.cpu.next_deadline()), (None, Some(1_001)));
    rig.cpu.set_tsc(300);
    assert_eq!((rig.cpu.next_deadline(), rig.after(0)), (Some(1_000), Some(0x43)));
}

#[test]
fn guests_have_the_modes_that_cpuid_says() {
    for (modes, entry) in
        [(TimerModes::OneShot, 0x41), (TimerModes::Periodic, 0x2_0041), (TimerModes::TscDeadline, 0x6_0041)]
    {
        let mut rig = rig_with(timer(|timer| timer.modes = modes));
        rig.cpu.write(LVT_TIMER, 0x6_0041);
        assert_eq!(rig.cpu.read(LVT_TIMER), entry, "{modes:?}");
        rig.cpu.write(LVT_TIMER, BY_TSC | 0x41);
        rig.cpu.msr_write(TSC_DEADLINE, 77).unwrap();
        assert_eq!(rig.deadline(), if modes == TimerModes::TscDeadline { 77 } else { 0 });
        // What a page says beyond them does not count.
        let mut page = rig.cpu.page();
        page[0x322] = 4;
        rig.cpu.set_page(&page).unwrap();
        rig.cpu.write(INITIAL, 9);
        assert_eq!(rig.cpu.read(INITIAL), if modes == TimerModes::TscDeadline { 0 } else { 9 });
    }
    let mut strict = rig_with(ApicOptions { strict: true, ..timer(|timer| timer.modes = TimerModes::Periodic) });
    assert_eq!(strict.cpu.msr_read(TSC_DEADLINE), Err(GeneralProtection));
    assert_eq!(strict.cpu.msr_write(TSC_DEADLINE, 0), Err(GeneralProtection));
}

#[test]
fn an_apic_that_is_off_delivers_nothing_and_counts_on() {
    let mut rig = rig();
    rig.start(PERIODIC | 0x42, 300_000);
    rig.clock.advance(300_000);
    rig.cpu.set_base(0xfee0_0100).unwrap();
    assert_eq!((rig.cpu.next_deadline(), rig.after(310_000)), (None, None));
    rig.cpu.set_base(0xfee0_0900).unwrap();
    assert_eq!(rig.cpu.acknowledge(), Some(0x42), "from before it was turned off");
    rig.cpu.eoi();
    assert_eq!((rig.counts(), rig.after(290_000)), ([300_000, 290_000], Some(0x42)));

    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    rig.cpu.msr_write(TSC_DEADLINE, 1 << 40).unwrap();
    rig.cpu.set_base(0xfee0_0100).unwrap();
    assert_eq!(rig.deadline(), 0, "not while it is off");
    rig.cpu.msr_write(TSC_DEADLINE, 1).unwrap();
    rig.cpu.set_base(0xfee0_0900).unwrap();
    assert_eq!(rig.deadline(), 1 << 40);
}

#[test]
fn reset_and_init_stop_the_timer() {
    for reset in [LocalApic::reset, |cpu: &mut LocalApic| assert!(cpu.take_init())] {
        for entry in [0x41, BY_TSC | 0x41] {
            let mut rig = rig();
            rig.start(entry, 1_000);
            rig.cpu.msr_write(TSC_DEADLINE, 2_000).unwrap();
            assert_eq!(rig.cpu.next_deadline(), Some(1_000));
            rig.cpu.set().clone().send(&MsiMessage::new(address(0), 0x500)).unwrap();
            reset(&mut rig.cpu);
            rig.cpu.write(SVR, 0x1ff);
            rig.cpu.write(LVT_TIMER, entry);
            assert_eq!((rig.cpu.next_deadline(), rig.after(10_000)), (None, None));
            assert_eq!((rig.counts(), rig.cpu.read(DIVIDE)), ([0, 0], 0));
        }
    }
}

#[test]
fn kvms_page_holds_a_running_count() {
    let mut rig = rig();
    rig.start(PERIODIC | 0x42, 300_000);
    rig.clock.advance(100_000);
    let page = rig.cpu.page();
    assert_eq!(page[0x390..0x394], 200_000u32.to_le_bytes());
    let mut other = rig_with(timer(|_| ()));
    other.clock.advance(7);
    other.cpu.set_page(&page).unwrap();
    assert_eq!((other.counts(), other.cpu.next_deadline()), ([300_000, 200_000], Some(200_007)));
    assert_eq!((other.after(200_000), other.cpu.next_deadline()), (Some(0x42), Some(500_007)));

    // The current count that a page may claim, and what KVM makes of it.
    for (entry, current, deadline) in [
        (0x41, 0, Some(0)),
        (0x41, 1, Some(1)),
        (0x41, 300_000, Some(300_000)),
        (0x41, 300_001, Some(300_000)),
        (PERIODIC | 0x41, 0, Some(300_000)),
        (PERIODIC | 0x41, 1, Some(1)),
        (PERIODIC | 0x41, u32::MAX, Some(300_000)),
        (3 << 17 | 0x41, 5, None),
    ] {
        let mut page = page;
        page[0x320..0x324].copy_from_slice(&entry.to_le_bytes());
        page[0x390..0x394].copy_from_slice(&current.to_le_bytes());
        let mut other = rig_with(timer(|_| ()));
        other.cpu.set_page(&page).unwrap();
        assert_eq!(other.cpu.next_deadline(), deadline, "entry {entry:#x}, count {current}");
    }
    // Nothing is counted from an initial count of 0, whatever the current one.
    let mut page = page;
    page[0x380..0x384].fill(0);
    other.cpu.set_page(&page).unwrap();
    assert_eq!(other.cpu.next_deadline(), None);
}

#[test]
fn a_page_in_another_mode_stops_what_ran_and_one_in_the_same_keeps_the_deadline() {
    let mut rig = rig();
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x43);
    rig.cpu.msr_write(TSC_DEADLINE, 5_000).unwrap();
    let page = rig.cpu.page();
    rig.cpu.set_page(&page).unwrap();
    assert_eq!(rig.deadline(), 5_000);
    let mut one_shot = page;
    one_shot[0x322] = 0;
    one_shot[0x380] = 9;
    rig.cpu.set_page(&one_shot).unwrap();
    assert_eq!((rig.deadline(), rig.cpu.next_deadline(), rig.counts()), (0, None, [0, 0]), "KVM clears the count too");
}

#[test]
fn a_saved_timer_goes_on_and_fires_at_the_right_time() {
    for (entry, msr, expected) in [
        (0x41, 0, TimerState::Counting { remaining_ns: 300_000 }),
        (PERIODIC | 0x41, 0, TimerState::Counting { remaining_ns: 300_000 }),
        (MASKED | 0x41, 0, TimerState::Counting { remaining_ns: 300_000 }),
        (BY_TSC | 0x41, 800_000, TimerState::Deadline { deadline: 800_000, tsc: 200_000 }),
        (BY_TSC | 0x41, 0, TimerState::Stopped),
    ] {
        let mut rig = rig();
        rig.start(entry, 400_000);
        rig.cpu.msr_write(TSC_DEADLINE, msr).unwrap();
        rig.clock.advance(100_000);
        let state = rig.cpu.save();
        assert_eq!(state.timer, expected, "entry {entry:#x}");

        for before in [MASKED, BY_TSC, PERIODIC] {
            let mut other = rig_with(timer(|_| ()));
            other.clock.advance(1 << 30);
            other.start(before | 0x51, 5);
            other.cpu.restore(&state).unwrap();
            assert_eq!(other.cpu.save(), state);
            let fires = expected != TimerState::Stopped && entry & MASKED == 0;
            assert_eq!(other.after(299_999), None);
            assert_eq!(other.after(1), fires.then_some(0x41), "entry {entry:#x}, into {before:#x}");
            assert_eq!(other.after(400_000), (entry & PERIODIC != 0).then_some(0x41));
        }
    }
}

#[test]
fn a_count_that_has_ended_is_not_restored_to_end_again() {
    let mut rig = rig();
    rig.start(0x41, 1_000);
    assert_eq!(rig.after(1_000), Some(0x41));
    let state = rig.cpu.save();
    assert_eq!(state.timer, TimerState::Stopped);
    rig.cpu.restore(&state).unwrap();
    assert_eq!((rig.cpu.next_deadline(), rig.after(10_000)), (None, None));
    // One that has ended and was not delivered yet is delivered.
    rig.cpu.write(INITIAL, 1_000);
    rig.clock.advance(5_000);
    let state = rig.cpu.save();
    assert_eq!(state.timer, TimerState::Counting { remaining_ns: 0 });
    rig.cpu.restore(&state).unwrap();
    assert_eq!(rig.after(0), Some(0x41));
}

#[test]
fn a_timer_state_that_no_timer_can_be_in_is_refused() {
    let mut rig = rig();
    rig.start(0x41, 1_000);
    let counting = TimerState::Counting { remaining_ns: 5 };
    let deadline = TimerState::Deadline { deadline: 7, tsc: 1 };
    let before = rig.cpu.save();
    let mut by_tsc = before.clone();
    by_tsc.page[0x322] = 4;
    let mut no_count = before.clone();
    no_count.page[0x380..0x384].fill(0);
    for (page, timer) in [
        (&before, deadline),
        (&by_tsc, counting),
        (&by_tsc, TimerState::Deadline { deadline: 0, tsc: 1 }),
        (&no_count, counting),
    ] {
        let bad = LocalApicState { timer, ..page.clone() };
        assert!(matches!(rig.cpu.restore(&bad), Err(Error::Snapshot(_))), "{timer:?}");
        assert_eq!(rig.cpu.save(), before, "nothing is changed");
    }
    for (page, timer) in [(&before, counting), (&by_tsc, deadline), (&no_count, TimerState::Stopped)] {
        let good = LocalApicState { timer, ..page.clone() };
        rig.cpu.restore(&good).unwrap();
        assert_eq!(rig.cpu.save().timer, timer);
    }
}

#[test]
fn absurd_options_do_no_harm() {
    let mut rig = rig_with(timer(|timer| {
        *timer = TimerOptions { bus_cycle_ns: u32::MAX, tsc_hz: 0, min_period_ns: u64::MAX, ..*timer };
    }));
    rig.cpu.write(DIVIDE, 0xa);
    rig.start(0x41, u32::MAX);
    assert_eq!(rig.cpu.next_deadline(), Some(u64::MAX));
    rig.cpu.write(LVT_TIMER, PERIODIC | 0x41);
    rig.cpu.write(INITIAL, 1);
    rig.clock.advance(u64::MAX);
    assert_eq!(rig.counts(), [1, 0]);
    assert!(rig.cpu.tick());
    rig.cpu.write(LVT_TIMER, BY_TSC | 0x41);
    rig.cpu.msr_write(TSC_DEADLINE, u64::MAX).unwrap();
    assert_eq!(rig.cpu.next_deadline(), Some(u64::MAX), "one tick a second");
    let mut rig = rig_with(timer(|timer| timer.bus_cycle_ns = 0));
    rig.start(0x41, 5);
    assert_eq!(rig.cpu.next_deadline(), Some(5));
}

#[test]
fn the_real_clock_ticks_too() {
    let set = ApicSet::new(1, Arc::new(()), ApicOptions::default());
    let mut cpu = set.local(VcpuId(0)).unwrap();
    cpu.write(SVR, 0x1ff);
    cpu.write(LVT_TIMER, 0x41);
    let before = set.clock().now_ns();
    cpu.write(INITIAL, 500_000);
    let deadline = cpu.next_deadline().unwrap();
    assert!(deadline >= before + 1_000_000, "divided by 2 after reset");
    while !cpu.tick() {
        std::thread::sleep(std::time::Duration::from_nanos(deadline.saturating_sub(set.clock().now_ns())));
    }
    assert!(set.clock().now_ns() >= deadline);
    assert_eq!(cpu.acknowledge(), Some(0x41));
}
