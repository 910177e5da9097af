//! The table of bindings: found by a number without a lock, reused without mixing up old and new.

use std::{fmt, sync::OnceLock};

use parking_lot::Mutex;

use super::{IrqfdState, cell::LatchCell};
use crate::inflight::Fired;

/// How many slots the first chunk has; each further one has twice as many as the one before.
const FIRST_CHUNK: u32 = 64;
const CHUNKS: usize = 18;
/// How many slots there can be.
const SLOTS: u32 = FIRST_CHUNK * ((1 << CHUNKS) - 1);

/// One occupancy of one slot: its index and its generation. What epoll hands back for an event.
///
/// A generation never comes back (a slot that has used all of its 2^40 is retired), so that a late event of a binding
/// that is gone cannot be taken for one of the binding that came after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    const INDEX_BITS: u32 = 24;
    const GENERATIONS: u64 = 1 << (64 - Self::INDEX_BITS);

    /// A token that no slot has.
    pub(crate) const NOBODY: Self = Self(u64::MAX);

    fn new(index: u32, generation: u64) -> Self {
        Self(generation << Self::INDEX_BITS | u64::from(index))
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    fn index(self) -> u32 {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as u32
    }

    fn generation(self) -> u64 {
        self.0 >> Self::INDEX_BITS
    }

    /// The payload of the latch while this occupancy lasts.
    fn occupied(self) -> u64 {
        self.generation() << 1 | 1
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}

/// One slot: free, or occupied by the binding of one generation.
///
/// The latch's payload is the generation, shifted, and whether it is occupied. A free slot has the generation that its
/// next occupant gets.
pub(crate) struct BindingSlot<T> {
    /// Lock order: left of all that a target takes; the target runs inside.
    cell: LatchCell<Option<T>>,
}

impl<T> BindingSlot<T> {
    pub(crate) fn new() -> Self {
        Self { cell: LatchCell::new(0, None) }
    }

    /// Occupies a free slot; only its one reserver may call this.
    pub(crate) fn occupy(&self, index: u32, value: T) -> Token {
        self.cell.configure(
            |slot, place| {
                debug_assert!(slot.payload & 1 == 0 && place.is_none());
                slot.payload |= 1;
                slot.masked = false;
                slot.pending = false;
                *place = Some(value);
                Token::new(index, slot.payload >> 1)
            },
            // Whoever handed an event over aimed at an earlier occupant: the new one is not known to anybody yet.
            |_, _| (),
        )
    }

    /// Ends the occupancy `token`, once no event of it is being delivered; `None` if it had ended before.
    /// The value is missing if [`fire`](Self::fire) took it.
    pub(crate) fn vacate(&self, token: Token) -> Option<Option<T>> {
        self.cell.configure(
            |slot, place| {
                (slot.payload == token.occupied()).then(|| {
                    slot.payload = (token.generation() + 1) << 1;
                    slot.masked = false;
                    slot.pending = false;
                    place.take()
                })
            },
            // An event that meets the end stays where it came from: in the eventfd's counter.
            |_, _| (),
        )
    }

    /// An event for `token`; `None` if it is over, masked, or left to a configuration call.
    #[inline]
    pub(crate) fn fire<R>(&self, token: Token, deliver: impl FnOnce(&mut Option<T>) -> R) -> Option<R> {
        // A late event should not trouble the slot's next occupant, so look before entering.
        if self.cell.peek().payload != token.occupied() {
            return None;
        }
        match self.cell.fire(|payload, place| (payload == token.occupied()).then(|| deliver(place))) {
            Fired::Ran(result) => result,
            Fired::Pending { .. } | Fired::HandedOver => None,
        }
    }

    /// Changes the binding of `token`; `deliver` is for an event that came meanwhile.
    pub(crate) fn change<R>(
        &self,
        token: Token,
        change: impl FnOnce(&mut T) -> R,
        deliver: impl FnOnce(&mut Option<T>),
    ) -> Option<R> {
        self.cell.configure(
            |slot, place| {
                let value = place.as_mut().filter(|_| slot.payload == token.occupied())?;
                Some(change(value))
            },
            |payload, place| {
                if payload == token.occupied() {
                    deliver(place);
                }
            },
        )
    }

    /// Makes the events of `token` pending; whether they were so before. Only the occupancy's guard calls this.
    pub(crate) fn mask(&self) -> bool {
        // What is handed over meanwhile becomes pending: nothing is delivered here.
        self.cell.mask(|_, _| ())
    }

    /// Lets the events of `token` through and delivers the pending one. Only the occupancy's guard calls this.
    pub(crate) fn unmask<R>(&self, token: Token, mut deliver: impl FnMut(&mut Option<T>) -> R) -> Option<R> {
        self.cell.unmask(|payload, place| (payload == token.occupied()).then(|| deliver(place)))?
    }

    pub(crate) fn save(&self, token: Token) -> IrqfdState {
        let slot = self.cell.peek();
        if slot.payload == token.occupied() {
            IrqfdState { masked: slot.masked, pending: slot.masked && slot.pending }
        } else {
            IrqfdState::default()
        }
    }

    pub(crate) fn restore(&self, token: Token, masked: bool, pending: bool) {
        self.cell.configure(
            |slot, _| {
                if slot.payload == token.occupied() {
                    (slot.masked, slot.pending) = (masked, pending);
                }
            },
            // There are no events yet.
            |_, _| (),
        );
    }

    pub(crate) fn is_occupied(&self, token: Token) -> bool {
        self.cell.peek().payload == token.occupied()
    }

    /// Whoever occupies the slot now.
    fn occupant(&self, index: u32) -> Option<Token> {
        let payload = self.cell.peek().payload;
        (payload & 1 == 1).then(|| Token::new(index, payload >> 1))
    }
}

/// On a cache line of its own: neighbours are fired by different threads.
#[repr(align(64))]
struct Padded<T>(BindingSlot<T>);

/// Which slots are free.
struct Free {
    /// Vacated slots.
    vacated: Vec<u32>,
    /// From here on, slots that were never used.
    fresh: u32,
}

/// Slots in chunks that are only ever added, so that a firer finds one without a lock.
pub(crate) struct Slots<T> {
    chunks: [OnceLock<Box<[Padded<T>]>>; CHUNKS],
    /// Lock order: a leaf; held for the choice of an index only.
    free: Mutex<Free>,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], free: Mutex::new(Free { vacated: Vec::new(), fresh: 0 }) }
    }

    /// The chunk of a slot and its place in it.
    fn place(index: u32) -> (usize, usize) {
        let chunk = (index / FIRST_CHUNK + 1).ilog2();
        let start = FIRST_CHUNK * ((1 << chunk) - 1);
        (chunk as usize, (index - start) as usize)
    }

    #[inline]
    pub(crate) fn get(&self, token: Token) -> Option<&BindingSlot<T>> {
        self.at(token.index())
    }

    #[inline]
    fn at(&self, index: u32) -> Option<&BindingSlot<T>> {
        let (chunk, place) = Self::place(index);
        Some(&self.chunks.get(chunk)?.get()?.get(place)?.0)
    }

    /// Puts a value into a free slot; gives it back when all [`SLOTS`] are taken.
    pub(crate) fn insert(&self, value: T) -> Result<Token, T> {
        let index = {
            let mut free = self.free.lock();
            match free.vacated.pop() {
                Some(index) => index,
                None if free.fresh == SLOTS => return Err(value),
                None => {
                    let index = free.fresh;
                    let chunk = Self::place(index).0;
                    self.chunks[chunk]
                        .get_or_init(|| (0..FIRST_CHUNK << chunk).map(|_| Padded(BindingSlot::new())).collect());
                    free.fresh += 1;
                    index
                }
            }
        };
        match self.at(index) {
            Some(slot) => Ok(slot.occupy(index, value)),
            None => unreachable!("slot {index} was made before it was handed out"),
        }
    }

    /// Ends an occupancy: afterwards none of its events is being delivered, nor will be.
    pub(crate) fn remove(&self, token: Token) -> Option<T> {
        let value = self.get(token)?.vacate(token)?;
        if token.generation() + 1 < Token::GENERATIONS {
            self.free.lock().vacated.push(token.index());
        }
        value
    }

    /// Whoever is there now.
    pub(crate) fn occupants(&self) -> impl Iterator<Item = Token> + '_ {
        let fresh = self.free.lock().fresh;
        (0..fresh).filter_map(|index| self.at(index)?.occupant(index))
    }

    /// For tests: that nothing else takes the lock while it is held.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold_lock(&self) -> impl Drop + '_ {
        struct Held<'a>(#[allow(dead_code, reason = "held, not read")] parking_lot::MutexGuard<'a, Free>);
        impl Drop for Held<'_> {
            fn drop(&mut self) {}
        }
        Held(self.free.lock())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_one_place() {
        let mut next = (0, 0);
        for index in 0..FIRST_CHUNK * 31 {
            let (chunk, place) = Slots::<()>::place(index);
            if (chunk, place) != next {
                assert_eq!((chunk, place), (next.0 + 1, 0), "index {index}");
                assert_eq!(next.1, (FIRST_CHUNK as usize) << next.0, "the chunk before is full");
            }
            next = (chunk, place + 1);
        }
        assert_eq!(Slots::<()>::place(SLOTS - 1), (CHUNKS - 1, ((FIRST_CHUNK as usize) << (CHUNKS - 1)) - 1));
        assert_eq!(Slots::<()>::place(SLOTS).0, CHUNKS, "the first one that has none");
    }

    #[test]
    fn a_slot_is_reused_by_another_generation_which_the_old_token_does_not_reach() {
        let slots = Slots::new();
        let old = slots.insert('a').unwrap();
        assert_eq!(slots.remove(old), Some('a'));
        assert_eq!(slots.remove(old), None);
        let new = slots.insert('b').unwrap();
        assert_eq!((new.index(), new.generation()), (old.index(), old.generation() + 1));
        let slot = slots.get(old).unwrap();
        assert_eq!(slot.fire(old, |place| *place), None);
        assert_eq!(slot.fire(new, |place| *place), Some(Some('b')));
        assert!(!slot.is_occupied(old) && slot.is_occupied(new));
        assert_eq!(slots.occupants().collect::<Vec<_>>(), [new]);
        assert_eq!(slots.remove(old), None, "it ends its own occupancy only");
        assert!(slot.is_occupied(new));
    }

    #[test]
    fn an_event_during_a_change_is_handed_to_its_own_occupant_only() {
        let slots = Slots::new();
        let token = slots.insert('a').unwrap();
        let slot = slots.get(token).unwrap();
        let mut handed = None;
        let change = |value: &mut char| {
            assert_eq!(slot.fire(token, |_| ()), None, "left to the change");
            *value = 'b';
        };
        assert_eq!(slot.change(token, change, |place| handed = *place), Some(()));
        assert_eq!(handed, Some('b'));
        let stale = Token::new(token.index(), token.generation() + 1);
        assert_eq!(slot.change(stale, |_| (), |_| ()), None);
        assert_eq!(format!("{token:?} {stale:?}"), "0.0 0.1");
    }

    #[test]
    fn when_every_slot_was_used_a_value_comes_back() {
        let slots = Slots::new();
        slots.free.lock().fresh = SLOTS;
        assert_eq!(slots.insert('a'), Err('a'));
    }

    #[test]
    fn a_slot_that_has_used_all_generations_is_retired() {
        let slots = Slots::new();
        let first = slots.insert('a').unwrap();
        slots.remove(first);
        let last = Token::GENERATIONS - 1;
        slots.at(0).unwrap().cell.configure(|slot, _| slot.payload = last << 1, |_, _| ());
        let token = slots.insert('b').unwrap();
        assert_eq!((token.index(), token.generation()), (0, last));
        assert_eq!(slots.remove(token), Some('b'));
        assert_eq!(slots.insert('c').unwrap().index(), 1);
    }

    #[test]
    fn numbers_that_no_slot_has_lead_nowhere() {
        let slots = Slots::<char>::new();
        assert!(slots.get(Token::from_bits(0)).is_none(), "no chunk yet");
        slots.insert('a').unwrap();
        for bits in [u64::from(FIRST_CHUNK), u64::from(SLOTS), Token::NOBODY.bits()] {
            assert!(slots.get(Token::from_bits(bits)).is_none());
        }
    }
}
