//! What waits for one vCPU.
//!
//! | step | by | needs |
//! |---|---|---|
//! | an interrupt becomes wanted: its word gets `queued`, it is pushed into the inbox | anybody | two locked instructions |
//! | the inbox is emptied into lists, by lane and priority | who holds the lock | the lock of the queue |
//! | the most urgent is taken, or what is not wanted any more is thrown out | the vCPU | the lock of the queue |
//! | one that belongs elsewhere now is unlinked and pushed there | who changed it | the lock of the queue |
//!
//! Invariants:
//!
//! * an interrupt with `queued` is in one place: on the way into the inbox of its holder, in that inbox, or in one list of
//!   that holder. Only who holds the queue's lock, and has unlinked it, clears `queued`;
//! * an interrupt that is wanted is queued, or somebody who changed it is about to queue it. So nothing that is deliverable
//!   can be overlooked; what is queued and not wanted any more is met and thrown out later;
//! * whoever moves a queued interrupt elsewhere changes its word first and then looks for it in the queue; who pushes it
//!   looks at its word again after the push. One of the two sees the other and puts it right ([`Gic::requeue`]), because
//!   these accesses are sequentially consistent;
//! * whoever pushes an interrupt and then finds the vCPU armed takes the arming away and wakes it; a vCPU arms first and then
//!   looks at its queue. One of the two sees the other, in the same way. What is in the queue already and becomes wanted
//!   again wakes nobody: a vCPU that looked and found nothing has thrown out what was not wanted, but for the lanes that are
//!   closed and what is behind an interrupt that it does not take now; opening those wakes it, or is its own doing.
//!
//! Inside a level SGIs, PPIs and SPIs are taken by INTID, lowest first (C20); LPIs in the order in which they came, after
//! the others.
//!
//! [`Gic::requeue`]: super::Gic::requeue

use super::{
    intid::FIRST_LPI,
    irq::{Irq, IrqState, LEVELS},
};
use crate::sync::{AtomicU32, Mutex, Ordering, crippled, load_to_change, seqcst_boundary};

#[cfg(test)]
use super::cripple;

/// In [`Irq::prev`]: it is in no list.
pub(super) const DETACHED: u32 = u32::MAX;
/// In an inbox: its end.
const END: u32 = u32::MAX - 1;
/// In a link: it leads back to the list itself.
const LIST: u32 = 1 << 31;

/// What is filed apart, because it can be disabled as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Group0,
    Group1,
    /// Always Group 1; after the other interrupts of its level.
    Lpi,
}

impl Lane {
    const ALL: [Self; 3] = [Self::Group0, Self::Group1, Self::Lpi];

    fn of(intid: u32, state: IrqState) -> Self {
        match (intid >= FIRST_LPI, state.group1()) {
            (true, _) => Self::Lpi,
            (false, true) => Self::Group1,
            (false, false) => Self::Group0,
        }
    }

    /// Its bit in GICD_CTLR's group enables.
    #[inline]
    pub fn group_bit(self) -> u32 {
        if self == Self::Group0 { 1 } else { 2 }
    }
}

/// Where the interrupts of a queue are found by their numbers: those of one vCPU, and those of all.
pub(super) trait Irqs {
    /// The interrupt; every number that was pushed has one.
    fn irq(&self, intid: u32) -> Option<&Irq>;
}

/// An interrupt that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub intid: u32,
    pub lane: Lane,
    pub state: IrqState,
}

/// One vCPU's queue.
#[repr(align(128))]
pub(super) struct Queue {
    /// The index of its vCPU.
    owner: u16,
    /// The last one pushed, or [`END`]. Links lead to those before it.
    inbox: AtomicU32,
    /// 1 while the vCPU wants to be woken. Set by the vCPU, taken by who wakes it.
    armed: AtomicU32,
    /// Lock order: after everything else of the GIC; no two queues are held at once, and nothing is called.
    filed: Mutex<Filed>,
    /// What is left out of the protocol, to see that the tests notice.
    #[cfg(test)]
    pub cripple: cripple::Cripple,
}

/// The lists, for who holds the lock.
pub(super) struct Filed {
    /// For each lane a bit for each level that has entries, bit 0 the most urgent.
    occupied: [u32; 3],
    lists: [[List; LEVELS]; 3],
}

/// The first and the last of a list; both lead to the list itself while it is empty.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

/// The link that stands for a list.
fn link(lane: usize, level: usize) -> u32 {
    LIST | (lane * LEVELS + level) as u32
}

impl Filed {
    fn new() -> Self {
        let list = |lane, level| List { head: link(lane, level), tail: link(lane, level) };
        Self { occupied: [0; 3], lists: std::array::from_fn(|lane| std::array::from_fn(|level| list(lane, level))) }
    }

    fn list(&mut self, link: u32) -> &mut List {
        let number = (link & !LIST) as usize;
        &mut self.lists[number / LEVELS % 3][number % LEVELS]
    }

    /// Sets the link of `at`, an interrupt or a list, to what follows it.
    fn set_next(&mut self, irqs: &impl Irqs, at: u32, to: u32) {
        if at & LIST != 0 {
            self.list(at).head = to;
        } else if let Some(irq) = irqs.irq(at) {
            // Relaxed, here and below: links are read and written with the lock held.
            irq.next.store(to, Ordering::Relaxed);
        }
    }

    /// Sets the link of `at`, an interrupt or a list, to what comes before it.
    fn set_prev(&mut self, irqs: &impl Irqs, at: u32, to: u32) {
        if at & LIST != 0 {
            self.list(at).tail = to;
        } else if let Some(irq) = irqs.irq(at) {
            irq.prev.store(to, Ordering::Relaxed);
        }
    }

    /// Files an interrupt that is in no list by what its state says now.
    fn insert(&mut self, irqs: &impl Irqs, intid: u32, irq: &Irq, state: IrqState) {
        let (lane, level) = (Lane::of(intid, state) as usize, state.level());
        let here = link(lane, level);
        let mut before = self.lists[lane][level].tail;
        // From the end: what comes in order needs no search.
        while intid < FIRST_LPI && before & LIST == 0 && before > intid {
            match irqs.irq(before) {
                Some(other) => before = other.prev.load(Ordering::Relaxed),
                None => break,
            }
        }
        let after = if before & LIST != 0 {
            self.list(here).head
        } else {
            irqs.irq(before).map_or(here, |other| other.next.load(Ordering::Relaxed))
        };
        irq.prev.store(before, Ordering::Relaxed);
        irq.next.store(after, Ordering::Relaxed);
        self.set_next(irqs, before, intid);
        self.set_prev(irqs, after, intid);
        self.occupied[lane] |= 1 << level;
    }

    /// Takes an interrupt out of its list; false if it is in none.
    fn unlink(&mut self, irqs: &impl Irqs, irq: &Irq) -> bool {
        let before = irq.prev.load(Ordering::Relaxed);
        if before == DETACHED {
            return false;
        }
        let after = irq.next.load(Ordering::Relaxed);
        self.set_next(irqs, before, after);
        self.set_prev(irqs, after, before);
        irq.prev.store(DETACHED, Ordering::Relaxed);
        if before & after & LIST != 0 {
            // It was the only one.
            let number = (before & !LIST) as usize;
            self.occupied[number / LEVELS % 3] &= !(1 << (number % LEVELS));
        }
        true
    }
}

impl Queue {
    pub fn new(owner: u16) -> Self {
        Self {
            owner,
            inbox: AtomicU32::new(END),
            armed: AtomicU32::new(0),
            filed: Mutex::new(Filed::new()),
            #[cfg(test)]
            cripple: cripple::Cripple::Nothing,
        }
    }

    /// Puts an interrupt in, by who has just set its `queued`.
    #[inline]
    pub fn push(&self, intid: u32, irq: &Irq) {
        let mut head = load_to_change!(self.inbox, Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange.
            irq.next.store(head, Ordering::Relaxed);
            // SeqCst: releases the link to who empties the inbox, and see the invariants.
            match self.inbox.compare_exchange_weak(head, intid, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        seqcst_boundary();
    }

    /// Whether the vCPU wanted to be woken; it no longer does.
    #[inline]
    #[must_use]
    pub fn take_arming(&self) -> bool {
        seqcst_boundary();
        // SeqCst: see the invariants. Looked at before it is swapped: usually nobody has armed since the last wake-up.
        self.armed.load(Ordering::SeqCst) != 0 && self.armed.swap(0, Ordering::SeqCst) != 0
    }

    /// By the vCPU: asks to be woken. The queue must be looked at afterwards.
    pub fn arm(&self) {
        // SeqCst: see the invariants. A swap, as in the local APIC.
        self.armed.swap(1, Ordering::SeqCst);
        seqcst_boundary();
    }

    /// By the vCPU: it is awake and will look.
    pub fn disarm(&self) {
        // Relaxed: an arming that is taken late costs one needless wake-up.
        if self.armed.load(Ordering::Relaxed) != 0 {
            self.armed.swap(0, Ordering::Relaxed);
        }
    }

    /// The most urgent interrupt of the lanes that `open` lets through.
    #[inline]
    pub fn peek(&self, irqs: &impl Irqs, open: impl Fn(Lane) -> bool) -> Option<Candidate> {
        let mut filed = self.filed.lock();
        self.file_inbox(&mut filed, irqs);
        self.best(&mut filed, irqs, &open)
    }

    /// The same; if `accept` says so, it is acknowledged.
    #[inline]
    pub fn take(
        &self,
        irqs: &impl Irqs,
        open: impl Fn(Lane) -> bool,
        accept: impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        let mut filed = self.filed.lock();
        if filed.occupied == [0; 3] {
            if let Some(candidate) = self.take_alone(&mut filed, irqs, &open, &accept) {
                return Some(candidate);
            }
        } else {
            self.file_inbox(&mut filed, irqs);
        }
        loop {
            let candidate = self.best(&mut filed, irqs, &open)?;
            if !accept(&candidate) {
                return None;
            }
            let irq = irqs.irq(candidate.intid)?;
            // Unlinked first: when `queued` is gone others may push it.
            filed.unlink(irqs, irq);
            if self.acknowledge(irq, &candidate) {
                return Some(candidate);
            }
            self.settle(&mut filed, irqs, candidate.intid, irq);
        }
    }

    /// Takes the only interrupt there is, straight from the inbox; files what is there if that cannot be done. Nothing is
    /// filed so far.
    #[inline]
    fn take_alone(
        &self,
        filed: &mut Filed,
        irqs: &impl Irqs,
        open: &impl Fn(Lane) -> bool,
        accept: &impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        let intid = self.empty_inbox();
        let irq = irqs.irq(intid)?;
        // Relaxed: as in `file`.
        if irq.next.load(Ordering::Relaxed) == END {
            let state = irq.state();
            let candidate = Candidate { intid, lane: Lane::of(intid, state), state };
            let is_for_us = state.wanted() && state.target() == self.owner && open(candidate.lane);
            if is_for_us && accept(&candidate) && self.acknowledge(irq, &candidate) {
                return Some(candidate);
            }
        }
        self.file(filed, irqs, intid);
        None
    }

    /// Takes an interrupt that is in no list; false if it has changed since it was looked at.
    #[inline]
    fn acknowledge(&self, irq: &Irq, candidate: &Candidate) -> bool {
        let next = candidate.state.taken(candidate.intid).with_queued(false);
        if crippled!(self, TakesBlindly) {
            while irq.exchange(irq.state(), next).is_err() {}
            return true;
        }
        irq.exchange(candidate.state, next).is_ok()
    }

    /// Takes an interrupt out, whatever its state, if it is here.
    pub fn remove(&self, irqs: &impl Irqs, irq: &Irq) {
        seqcst_boundary();
        let mut filed = self.filed.lock();
        self.file_inbox(&mut filed, irqs);
        let mut state = irq.state_to_change();
        // Somebody else may have moved it since, into a queue whose lock this is not. While it is queued here, only who
        // holds this lock can change that.
        if state.queued() && state.holder() == self.owner && filed.unlink(irqs, irq) {
            if crippled!(self, UnqueuesWithoutLock) {
                drop(filed);
            }
            while let Err(found) = irq.exchange(state, state.with_queued(false)) {
                state = found;
            }
        }
    }

    /// Holds the lock, as a vCPU does that takes an interrupt.
    #[cfg(all(test, not(loom)))]
    pub fn hold(&self) -> impl Sized + '_ {
        self.filed.lock()
    }

    /// Empties the inbox, and returns the newest of what was there, or [`END`].
    #[inline]
    fn empty_inbox(&self) -> u32 {
        // SeqCst: acquires the links, and see the invariants.
        if self.inbox.load(Ordering::SeqCst) == END { END } else { self.inbox.swap(END, Ordering::SeqCst) }
    }

    /// Empties the inbox into the lists.
    #[inline]
    fn file_inbox(&self, filed: &mut Filed, irqs: &impl Irqs) {
        self.file(filed, irqs, self.empty_inbox());
    }

    /// Files what was in the inbox, the oldest first.
    #[inline]
    fn file(&self, filed: &mut Filed, irqs: &impl Irqs, mut newest: u32) {
        let mut oldest = END;
        while newest != END {
            let Some(irq) = irqs.irq(newest) else { break };
            // Relaxed: acquired with the inbox.
            let older = irq.next.load(Ordering::Relaxed);
            irq.next.store(oldest, Ordering::Relaxed);
            oldest = newest;
            newest = older;
        }
        while oldest != END {
            let Some(irq) = irqs.irq(oldest) else { break };
            let next = irq.next.load(Ordering::Relaxed);
            filed.insert(irqs, oldest, irq, irq.state());
            oldest = next;
        }
    }

    /// The most urgent interrupt that is wanted; what is not, and is in the way, is thrown out.
    #[inline]
    fn best(&self, filed: &mut Filed, irqs: &impl Irqs, open: &impl Fn(Lane) -> bool) -> Option<Candidate> {
        loop {
            let mut found: Option<(u32, u32, Lane)> = None;
            for lane in Lane::ALL {
                let level = filed.occupied[lane as usize].trailing_zeros();
                if level < LEVELS as u32 && open(lane) {
                    let intid = filed.lists[lane as usize][level as usize].head;
                    // At one level the lower number; an LPI's is the higher one.
                    if found.is_none_or(|(best, first, _)| (level, intid) < (best, first)) {
                        found = Some((level, intid, lane));
                    }
                }
            }
            let (level, intid, lane) = found?;
            let irq = irqs.irq(intid)?;
            let state = irq.state();
            if self.is_right(state, intid, lane, level) {
                return Some(Candidate { intid, lane, state });
            }
            filed.unlink(irqs, irq);
            self.settle(filed, irqs, intid, irq);
        }
    }

    fn is_right(&self, state: IrqState, intid: u32, lane: Lane, level: u32) -> bool {
        state.wanted()
            && state.target() == self.owner
            && Lane::of(intid, state) == lane
            && state.level() == level as usize
    }

    /// An interrupt that was unlinked: filed again if it still belongs here, else no longer queued. One that is wanted
    /// elsewhere is pushed there by who changed its target.
    #[cold]
    fn settle(&self, filed: &mut Filed, irqs: &impl Irqs, intid: u32, irq: &Irq) {
        let mut state = irq.state();
        loop {
            if state.wanted() && state.target() == self.owner {
                return filed.insert(irqs, intid, irq, state);
            }
            if crippled!(self, ThrowsOutBlindly) {
                while irq.exchange(irq.state(), state.with_queued(false)).is_err() {}
                return;
            }
            match irq.exchange(state, state.with_queued(false)) {
                Ok(()) => return,
                Err(found) => state = found,
            }
        }
    }
}
