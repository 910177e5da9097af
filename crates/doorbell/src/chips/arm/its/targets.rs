//! Events prepared for the hot path: a number of 20 bits stands for a DeviceID and an EventID.

use std::hash::{BuildHasher, RandomState};

use super::arena::Arena;
use crate::{
    Target,
    sync::{AtomicU32, Mutex, Ordering},
};

/// The most numbers there can be.
pub(super) const MOST: u32 = 1 << 20;
const CHUNK: usize = if cfg!(loom) { 2 } else { 1024 };

/// Numbers, each of which stands for the same event for ever.
pub(super) struct Targets {
    /// The event of each number below `count`: DeviceID and EventID.
    events: Arena<AtomicU32, CHUNK>,
    count: AtomicU32,
    most: u32,
    /// Lock order: nothing else is locked while it is held.
    index: Mutex<Index>,
}

/// The numbers by their events: a hash table with open addressing, which the guest cannot aim at.
struct Index {
    hash: RandomState,
    /// Numbers, plus 1; 0 is free. At least a quarter are.
    numbers: Box<[u32]>,
}

impl Targets {
    pub fn new(most: u32) -> Self {
        let most = most.min(MOST);
        let index = Index { hash: RandomState::new(), numbers: Box::new([0; 4]) };
        Self { events: Arena::new(most as usize), count: AtomicU32::new(0), most, index: Mutex::new(index) }
    }

    /// The number of an event, which it gets if it has none; `None` if all are taken.
    pub fn prepare(&self, device: u16, event: u16) -> Option<Target> {
        let event = u32::from(device) << 16 | u32::from(event);
        let mut index = self.index.lock();
        // Relaxed: only changed with the lock held.
        let count = self.count.load(Ordering::Relaxed);
        let of = |number: u32| self.events.get(number as usize).map_or(0, |event| event.load(Ordering::Relaxed));
        if let Some(number) = index.find(event, of) {
            return Target::new(number);
        }
        if count >= self.most {
            return None;
        }
        self.events.make(count as usize)?.store(event, Ordering::Relaxed);
        index.insert(event, count, of);
        // Release: pairs with `event`; whoever sees the number sees its event.
        self.count.store(count + 1, Ordering::Release);
        Target::new(count)
    }

    /// The DeviceID and the EventID of a number, if it has been given out.
    #[inline]
    pub fn event(&self, target: Target) -> Option<(u16, u16)> {
        // Acquire: pairs with `prepare`.
        if target.bits() >= self.count.load(Ordering::Acquire) {
            return None;
        }
        let event = self.events.get(target.bits() as usize)?.load(Ordering::Relaxed);
        Some(((event >> 16) as u16, event as u16))
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.events.bytes() + self.index.lock().numbers.len() * size_of::<u32>()
    }
}

impl Index {
    /// The places where an event may be, beginning with the best.
    fn places(&self, event: u32) -> impl Iterator<Item = usize> + use<> {
        let mask = self.numbers.len() - 1;
        let first = self.hash.hash_one(event) as usize;
        (0..=mask).map(move |step| first.wrapping_add(step) & mask)
    }

    fn find(&self, event: u32, of: impl Fn(u32) -> u32) -> Option<u32> {
        let numbers = self.places(event).map(|at| self.numbers[at]);
        numbers.take_while(|number| *number != 0).map(|number| number - 1).find(|number| of(*number) == event)
    }

    fn insert(&mut self, event: u32, number: u32, of: impl Fn(u32) -> u32) {
        // `number` is how many there are already.
        if (number as usize + 1) * 4 > self.numbers.len() * 3 {
            self.numbers = vec![0; self.numbers.len() * 2].into();
            (0..number).for_each(|old| self.put(of(old), old));
        }
        self.put(event, number);
    }

    fn put(&mut self, event: u32, number: u32) {
        let free = self.places(event).find(|at| self.numbers[*at] == 0);
        if let Some(at) = free {
            self.numbers[at] = number + 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_event_keeps_its_number_and_numbers_run_out() {
        let targets = Targets::new(5000);
        let event = |n: u32| ((n * 7) as u16, (n * 13) as u16);
        let numbers: Vec<_> = (0..5000).map(|n| targets.prepare(event(n).0, event(n).1).unwrap()).collect();
        for n in 0..5000 {
            assert_eq!(targets.prepare(event(n).0, event(n).1), Some(numbers[n as usize]));
            assert_eq!(targets.event(numbers[n as usize]), Some(event(n)));
        }
        assert_eq!(targets.prepare(1, 1), None, "all are taken");
        assert_eq!(targets.event(Target::new(5000).unwrap()), None);
        assert_eq!(targets.event(Target::new(0xff_ffff).unwrap()), None);
    }
}
