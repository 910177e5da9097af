//! From the ledger's words to figures: what was signalled, delivered, coalesced and lost.

use std::sync::atomic::Ordering;

use super::{ledger::Ledger, plan::Vector};

/// The figures of one vector, or of many.
///
/// `signalled = delivered + coalesced + dropped + held + lost`, unless something was duplicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Signals given.
    pub signalled: u64,
    /// Interrupts that a handler was entered for.
    pub delivered: u64,
    /// Signals that merged with an earlier one that was still pending; none of a lock-step vector.
    pub coalesced: u64,
    /// Signals whose interrupt the chips dropped, as the specification demands, and which the driver found by looking at its
    /// device afterwards.
    pub dropped: u64,
    /// Signals whose interrupt is pending at a vCPU that stopped taking interrupts.
    pub held: u64,
    /// Signals that no handler saw, nor a later number in their place.
    pub lost: u64,
    /// Interrupts that nobody signalled.
    pub duplicated: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.signalled += other.signalled;
        self.delivered += other.delivered;
        self.coalesced += other.coalesced;
        self.dropped += other.dropped;
        self.held += other.held;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
    }
}

/// What the ledger does not know of a vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    /// Its interrupt waits at a vCPU that takes no more.
    pub pending: bool,
    /// How often its driver had an interrupt sent again that the chips may have dropped: a handler may have been entered
    /// for both.
    pub replayed: u32,
    /// How often its driver found something by looking at the device.
    pub fetched: u32,
}

/// The words of one vector.
#[derive(Clone, Copy, Debug, Default)]
struct Words {
    sent: u64,
    seen: u64,
    count: u64,
    again: u64,
    missed: u64,
}

impl Tally {
    /// The figures of `vector` as they stand.
    pub fn of(vector: &Vector, ledger: &Ledger, fate: Fate) -> Self {
        let Some(index) = vector.slot.index() else { return Self::default() };
        let (page, signals) = (ledger.cpu(vector.slot.vcpu), ledger.signals(vector.slot.vcpu));
        // Acquire: pairs with the Release of `sent`; what follows is then at least as new.
        let words = Words {
            sent: signals.sent[index].load(Ordering::Acquire).into(),
            seen: page.seen[index].load(Ordering::Acquire).into(),
            count: page.count[index].load(Ordering::Relaxed).into(),
            again: page.again[index].load(Ordering::Relaxed).into(),
            missed: signals.missed[index].load(Ordering::Relaxed).into(),
        };
        let level = vector.is_level();
        Self::from_words(words, vector.lockstep, level, fate)
    }

    fn from_words(words: Words, lockstep: bool, level: bool, fate: Fate) -> Self {
        let Words { sent, seen, count, again, missed } = words;
        let Fate { pending, replayed, fetched } = fate;
        // One that was sent again, or fetched, although the first had not been dropped. A free vector's may have merged.
        let excused = u64::from(replayed) + if lockstep { u64::from(fetched) } else { 0 };
        let again = again - again.min(excused);
        // A device that was killed between a signal and its note of it has signalled what was seen.
        let signalled = sent.max(seen);
        // An entry that finds no new number: on a level line normal; in lock-step only after the device went on
        // without an answer that then came late; otherwise one whose number an earlier entry had already seen.
        let late = if level {
            0
        } else if lockstep {
            again.min(missed)
        } else {
            again
        };
        let entered = count + late;
        let delivered = entered.min(signalled);
        let unseen = if lockstep {
            (signalled - delivered).saturating_sub(fetched.into())
        } else {
            signalled.saturating_sub(seen)
        };
        // A pending interrupt stands for every number since the one that was seen.
        let held = if pending { signalled.saturating_sub(seen).min(unseen) } else { 0 };
        let lost = unseen - held;
        let rest = signalled.saturating_sub(delivered + held + lost);
        let dropped = rest.min(fetched.into());
        Self {
            signalled,
            delivered,
            coalesced: rest - dropped,
            dropped,
            held,
            lost,
            duplicated: entered - delivered + if level { 0 } else { again - late },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(words: Words, lockstep: bool) -> Tally {
        Tally::from_words(words, lockstep, false, Fate::default())
    }

    #[test]
    fn in_lockstep_everything_signalled_is_delivered() {
        let words = Words { sent: 10, seen: 10, count: 10, ..Words::default() };
        assert_eq!(tally(words, true), Tally { signalled: 10, delivered: 10, ..Tally::default() });
    }

    #[test]
    fn in_lockstep_a_number_that_was_passed_over_is_lost() {
        let words = Words { sent: 10, seen: 10, count: 8, missed: 2, ..Words::default() };
        assert_eq!(tally(words, true), Tally { signalled: 10, delivered: 8, lost: 2, ..Tally::default() });
    }

    #[test]
    fn an_answer_that_came_late_is_neither_lost_nor_a_duplicate() {
        let words = Words { sent: 10, seen: 10, count: 9, again: 1, missed: 1 };
        assert_eq!(tally(words, true), Tally { signalled: 10, delivered: 10, ..Tally::default() });
    }

    #[test]
    fn in_lockstep_an_entry_without_a_number_is_a_duplicate() {
        let words = Words { sent: 10, seen: 10, count: 10, again: 1, ..Words::default() };
        assert_eq!(tally(words, true).duplicated, 1);
    }

    #[test]
    fn a_free_vector_may_coalesce_but_its_last_number_must_be_seen() {
        let words = Words { sent: 100, seen: 100, count: 30, again: 5, ..Words::default() };
        assert_eq!(tally(words, false), Tally { signalled: 100, delivered: 35, coalesced: 65, ..Tally::default() });
        let words = Words { seen: 98, ..words };
        let expected = Tally { signalled: 100, delivered: 35, coalesced: 63, lost: 2, ..Tally::default() };
        assert_eq!(tally(words, false), expected);
    }

    #[test]
    fn a_free_vector_that_is_entered_more_often_than_signalled_is_duplicated() {
        let words = Words { sent: 3, seen: 3, count: 3, again: 2, ..Words::default() };
        assert_eq!(tally(words, false), Tally { signalled: 3, delivered: 3, duplicated: 2, ..Tally::default() });
    }

    #[test]
    fn a_number_published_by_a_device_that_died_before_its_signal_is_not_lost() {
        let words = Words { sent: 9, seen: 9, count: 9, ..Words::default() };
        assert_eq!(tally(words, true).lost, 0, "the ledger's sequence may be 10: nobody was told");
        let words = Words { sent: 9, seen: 10, count: 10, ..Words::default() };
        assert_eq!(tally(words, true).signalled, 10);
    }

    #[test]
    fn what_is_pending_at_a_stuck_vcpu_is_held_and_not_lost() {
        let words = Words { sent: 10, seen: 7, count: 6, missed: 3, ..Words::default() };
        let stuck = Fate { pending: true, ..Fate::default() };
        let lockstep = Tally::from_words(words, true, false, stuck);
        assert_eq!((lockstep.held, lockstep.lost), (3, 1), "one was lost before");
        let free = Tally::from_words(words, false, false, stuck);
        assert_eq!((free.held, free.lost), (3, 0));
    }

    #[test]
    fn what_the_chips_had_to_drop_is_neither_lost_nor_delivered() {
        let words = Words { sent: 100, seen: 100, count: 30, ..Words::default() };
        let free = Tally::from_words(words, false, false, Fate { fetched: 4, ..Fate::default() });
        assert_eq!((free.delivered, free.coalesced, free.dropped, free.lost), (30, 66, 4, 0));
        let words = Words { sent: 10, seen: 10, count: 8, missed: 1, ..Words::default() };
        let lockstep = Tally::from_words(words, true, false, Fate { fetched: 1, ..Fate::default() });
        assert_eq!((lockstep.delivered, lockstep.dropped, lockstep.lost), (8, 1, 1), "the other one is lost");
        let late = Tally::from_words(Words { again: 1, ..words }, true, false, Fate { fetched: 1, ..Fate::default() });
        assert_eq!(
            (late.lost, late.duplicated),
            (1, 0),
            "the handler came late to what was fetched, not to what was lost"
        );
    }

    #[test]
    fn one_that_was_sent_again_for_nothing_is_no_duplicate_and_replaces_no_lost_one() {
        let replayed = Fate { replayed: 2, ..Fate::default() };
        let words = Words { sent: 10, seen: 10, count: 10, again: 2, ..Words::default() };
        let fine = Tally::from_words(words, true, false, replayed);
        assert_eq!(fine, Tally { signalled: 10, delivered: 10, ..Tally::default() });
        let more = Tally::from_words(Words { again: 3, ..words }, true, false, replayed);
        assert_eq!(more.duplicated, 1, "one more than can be explained");
        let lost = Tally::from_words(Words { count: 9, missed: 1, ..words }, true, false, replayed);
        assert_eq!((lost.delivered, lost.lost), (9, 1));
    }
}
