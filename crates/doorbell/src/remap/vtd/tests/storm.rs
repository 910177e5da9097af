//! Entries change under fire: nothing is lost, and nothing stale arrives behind a wait descriptor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{COMPATIBILITY, REMAP, SET_TABLE, TABLE, USE_QUEUE, entry, handle, invalidate, wait};
use crate::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    guest_ram::{GuestRamExt, RamBlock},
    remap::vtd::{VtdOptions, VtdUnit, registers as r},
};

/// Counts by vector.
struct Counter([AtomicU64; 256]);

impl MsiTarget for Counter {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.fire(self.prepare(message).unwrap()))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        Target::new(message.data & 0xff)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.0[target.bits() as usize].fetch_add(1, Ordering::Relaxed);
        Delivery::Delivered(1)
    }
}

const QUEUE: u64 = 0x8000;
const STATUS: u64 = 0x7000;

#[test]
fn entries_change_under_fire() {
    let seen = Arc::new(Counter(std::array::from_fn(|_| AtomicU64::new(0))));
    let ram = Arc::new(RamBlock::new(0, 0x2_0000));
    let unit = VtdUnit::new(VtdOptions::default(), seen.clone(), ram.clone());
    unit.write(r::TABLE_ADDRESS, 8, TABLE | 7);
    unit.write(r::QUEUE_ADDRESS, 8, QUEUE);
    for command in [SET_TABLE, REMAP, REMAP | USE_QUEUE] {
        unit.write(r::GLOBAL_COMMAND, 4, command.into());
    }
    let count = |vector: u8| seen.0[usize::from(vector)].load(Ordering::Relaxed);
    // One store of the half that matters: the other is always 0.
    let set = |index: u32, vector: u8| ram.write_le(TABLE + 16 * u64::from(index), entry(vector, 0)[0]).unwrap();
    let mut tail = 0;
    let mut number = 0u32;
    let mut submit = |index: u32| {
        number += 1;
        for [low, high] in [invalidate(index, 0), wait(number)] {
            ram.write_le(QUEUE + tail, low).unwrap();
            ram.write_le(QUEUE + tail + 8, high).unwrap();
            tail = (tail + 16) % 0x1000;
        }
        unit.write(r::QUEUE_TAIL, 8, tail);
        assert_eq!(ram.read_le::<u32>(STATUS), Ok(number));
    };
    let stop = AtomicBool::new(false);
    let (answered, left) = (AtomicU64::new(0), AtomicU64::new(0));
    const INDICES: u32 = 3;
    for index in 0..INDICES {
        set(index, 0x40 + index as u8);
    }
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let targets: Vec<_> =
                    (0..INDICES).map(|index| unit.prepare(&MsiMessage::new(handle(index), 0)).unwrap()).collect();
                while !stop.load(Ordering::Relaxed) {
                    for target in &targets {
                        match unit.fire(*target) {
                            Delivery::Delivered(1) => answered.fetch_add(1, Ordering::Relaxed),
                            Delivery::Coalesced => left.fetch_add(1, Ordering::Relaxed),
                            other => panic!("blocked: {other:?}"),
                        };
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_millis(700);
        let mut round = 0u32;
        while Instant::now() < until || answered.load(Ordering::Relaxed) < 20_000 {
            for index in 0..INDICES {
                let now = 0x40 + index as u8 + if round % 2 == 0 { 0x10 } else { 0 };
                let before = 0x40 + index as u8 + if round % 2 == 0 { 0 } else { 0x10 };
                set(index, now);
                submit(index);
                let stale = count(before);
                thread::yield_now();
                assert_eq!(count(before), stale, "round {round}: by the old entry, behind the wait descriptor");
            }
            if round % 64 == 63 {
                // The whole unit, off its table and on again.
                unit.write(r::GLOBAL_COMMAND, 4, (REMAP | USE_QUEUE | COMPATIBILITY | SET_TABLE).into());
                unit.write(r::GLOBAL_COMMAND, 4, (REMAP | USE_QUEUE).into());
            }
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(round >= 10, "{round} rounds");
    });
    let all: u64 = (0..=255).map(count).sum();
    let (answered, left) = (answered.into_inner(), left.into_inner());
    // Those that were left with an invalidation are merged if it had several of one message.
    assert!(all >= answered && all <= answered + left, "{answered} answered, {left} left, {all} arrived");
}
