//! From the ledger's words to figures: what was signalled, delivered, coalesced and lost.

use std::sync::atomic::Ordering;

use super::{ledger::Ledger, plan::Vector};

/// The figures of one vector, or of many.
///
/// `signalled = delivered + coalesced + held + lost`, unless something was duplicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Signals given.
    pub signalled: u64,
    /// Interrupts that a handler was entered for.
    pub delivered: u64,
    /// Signals that merged with an earlier one that was still pending; none of a lock-step vector.
    pub coalesced: u64,
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
        self.held += other.held;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
    }
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
    /// The figures of `vector` as they stand. `pending`: its interrupt waits at a vCPU that takes no more.
    pub fn of(vector: &Vector, ledger: &Ledger, pending: bool) -> Self {
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
        Self::from_words(words, vector.lockstep, level, pending)
    }

    fn from_words(words: Words, lockstep: bool, level: bool, pending: bool) -> Self {
        let Words { sent, seen, count, again, missed } = words;
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
        let unseen = if lockstep { signalled - delivered } else { signalled.saturating_sub(seen) };
        // A pending interrupt stands for every number since the one that was seen.
        let held = if pending { signalled.saturating_sub(seen).min(unseen) } else { 0 };
        let lost = unseen - held;
        Self {
            signalled,
            delivered,
            coalesced: signalled.saturating_sub(delivered + held + lost),
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
        Tally::from_words(words, lockstep, false, false)
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
        let lockstep = Tally::from_words(words, true, false, true);
        assert_eq!((lockstep.held, lockstep.lost), (3, 1), "one was lost before");
        let free = Tally::from_words(words, false, false, true);
        assert_eq!((free.held, free.lost), (3, 0));
    }
}
