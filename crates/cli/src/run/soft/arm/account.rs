//! What became of each event at the ITSs: a station around them, which keeps books.
//!
//! The specification demands that an ITS drops an event that is not mapped, and what is pending of an event that is
//! unmapped. A driver that takes a mapping away therefore asks its device afterwards. But it must not do so for every event
//! that nobody has seen: then an interrupt that the chips lost would be found as well, and never be missed. So the books
//! say of which numbers of a vector an event has arrived at the ITS, and whether one may have been dropped: only then, and
//! only up to that number, does the driver ask. An event that is lost on its way to the ITS, or after the ITS has taken it,
//! stays lost. A drop while nothing was unmapped is a mistake of the chips, and counted as one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target};

use crate::run::{
    ledger::{Ledger, Slot},
    plan::{Plan, Wire},
};

/// The books of one vector.
#[derive(Debug, Default)]
pub struct Entry {
    /// The last number of which an event has arrived.
    arrived: AtomicU32,
    /// Events that are on their way through the ITS at this moment.
    inside: AtomicU32,
    /// An event may have been dropped since this was last looked at.
    doubtful: AtomicBool,
    /// Raised when the guest begins to take the mapping away, and when it is there again: odd meanwhile.
    window: AtomicU32,
}

/// See the [module](self).
pub struct Account {
    inner: Arc<dyn MsiTarget>,
    ledger: Arc<Ledger>,
    /// By vector of the plan.
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    /// What each vector's message resolves to further on.
    targets: Vec<AtomicU32>,
    vectors: HashMap<MsiMessage, usize>,
    /// Events that were not taken, and those of them that came while nothing was unmapped.
    refused: AtomicU64,
    unexpected: AtomicU64,
}

/// No target.
const NONE: u32 = u32::MAX;

impl Account {
    /// Around the ITSs of a plan.
    pub fn new(plan: &Plan, ledger: &Arc<Ledger>, inner: Arc<dyn MsiTarget>) -> Arc<Self> {
        let messages = plan.vectors.iter().enumerate().filter(|(_, vector)| matches!(vector.wire, Wire::MsiX { .. }));
        Arc::new(Self {
            inner,
            ledger: Arc::clone(ledger),
            slots: plan.vectors.iter().map(|vector| vector.slot).collect(),
            entries: plan.vectors.iter().map(|_| Entry::default()).collect(),
            targets: plan.vectors.iter().map(|_| AtomicU32::new(NONE)).collect(),
            vectors: messages.map(|(index, _)| (plan.message(index), index)).collect(),
            refused: AtomicU64::new(0),
            unexpected: AtomicU64::new(0),
        })
    }

    /// An event of a vector passes.
    fn pass<T>(&self, index: usize, event: impl FnOnce() -> T, taken: impl FnOnce(&T) -> bool) -> T {
        let entry = &self.entries[index];
        // SeqCst throughout: the guest's thread raises `window` before its command and looks at `inside` after it.
        entry.inside.fetch_add(1, Ordering::SeqCst);
        let window = entry.window.load(Ordering::SeqCst);
        entry.arrived.fetch_max(self.ledger.published(self.slots[index]), Ordering::SeqCst);
        let result = event();
        if !taken(&result) {
            entry.doubtful.store(true, Ordering::SeqCst);
            // Relaxed: counts.
            self.refused.fetch_add(1, Ordering::Relaxed);
            if window % 2 == 0 && entry.window.load(Ordering::SeqCst) == window {
                self.unexpected.fetch_add(1, Ordering::Relaxed);
            }
        }
        entry.inside.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// The guest is about to take away what these vectors' events go by.
    pub fn open(&self, vectors: &[usize]) {
        vectors.iter().for_each(|&index| {
            self.entries[index].window.fetch_add(1, Ordering::SeqCst);
        });
    }

    /// It is there again. Returns, of each vector of which something may have been dropped, the last number that has
    /// arrived. `cleared`: what was pending has been dropped as well.
    pub fn close(&self, vectors: &[usize], cleared: bool) -> Vec<(usize, u32)> {
        vectors.iter().for_each(|&index| {
            self.entries[index].window.fetch_add(1, Ordering::SeqCst);
        });
        let doubtful = |&index: &usize| {
            let entry = &self.entries[index];
            // Who began before is not done before it has written down what came of it.
            while entry.inside.load(Ordering::SeqCst) != 0 {
                std::thread::yield_now();
            }
            let doubtful = entry.doubtful.swap(false, Ordering::SeqCst);
            (doubtful || cleared).then(|| (index, entry.arrived.load(Ordering::SeqCst)))
        };
        vectors.iter().filter_map(doubtful).collect()
    }

    /// The last number of a vector of which an event has arrived.
    pub fn arrived(&self, index: usize) -> u32 {
        self.entries[index].arrived.load(Ordering::SeqCst)
    }

    /// How many events the ITSs have not taken, and how many of them came while nothing was unmapped.
    pub fn refused(&self) -> (u64, u64) {
        (self.refused.load(Ordering::Relaxed), self.unexpected.load(Ordering::Relaxed))
    }
}

/// An event that the ITS has made pending.
fn is_taken(delivery: Delivery) -> bool {
    matches!(delivery, Delivery::Delivered(_))
}

impl MsiTarget for Account {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        let send = || self.inner.send(message);
        match self.vectors.get(message) {
            Some(&index) => self.pass(index, send, |result| result.as_ref().is_ok_and(|it| is_taken(*it))),
            None => send(),
        }
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let index = *self.vectors.get(message)?;
        let target = self.inner.prepare(message)?;
        // Release: pairs with `fire`.
        self.targets[index].store(target.bits(), Ordering::Release);
        Target::new(index as u32)
    }

    fn fire(&self, target: Target) -> Delivery {
        let index = target.bits() as usize;
        // Acquire: pairs with `prepare`.
        let inner = self.targets.get(index).map_or(NONE, |target| target.load(Ordering::Acquire));
        let Some(inner) = Target::new(inner) else { return Delivery::Ignored };
        self.pass(index, || self.inner.fire(inner), |delivery| is_taken(*delivery))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::run::machine::{ARM, Machine};

    /// Answers with what it is told to.
    struct Says(Mutex<Delivery>);

    impl MsiTarget for Says {
        fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
            Ok(*self.0.lock().unwrap())
        }
        fn prepare(&self, _: &MsiMessage) -> Option<Target> {
            Target::new(77)
        }
        fn fire(&self, target: Target) -> Delivery {
            assert_eq!(target.bits(), 77);
            *self.0.lock().unwrap()
        }
    }

    struct Rig {
        plan: Plan,
        ledger: Arc<Ledger>,
        says: Arc<Says>,
        account: Arc<Account>,
    }

    fn rig() -> Rig {
        let plan = Plan::new(&Machine::built_in("arm", ARM)).unwrap();
        let ledger = Arc::new(Ledger::create(plan.vcpus).unwrap().0);
        let says = Arc::new(Says(Mutex::new(Delivery::Delivered(1))));
        let account = Account::new(&plan, &ledger, Arc::clone(&says) as Arc<dyn MsiTarget>);
        Rig { plan, ledger, says, account }
    }

    impl Rig {
        /// The device publishes a number, and its event comes to the ITS.
        fn event(&self, index: usize, answer: Delivery) {
            self.ledger.publish(self.plan.vectors[index].slot);
            *self.says.0.lock().unwrap() = answer;
            let target = self.account.prepare(&self.plan.message(index)).unwrap();
            assert_eq!(self.account.fire(target), answer);
        }
    }

    #[test]
    fn only_what_arrived_and_may_have_been_dropped_is_asked_for() {
        let rig = rig();
        rig.event(0, Delivery::Delivered(1));
        rig.account.open(&[0, 1, 2]);
        rig.event(1, Delivery::Coalesced);
        rig.event(2, Delivery::Delivered(1));
        // Published, but its event is lost on the way.
        rig.ledger.publish(rig.plan.vectors[1].slot);
        assert_eq!(rig.account.close(&[0, 1, 2], false), [(1, 1)], "of vector 1, and not its second number");
        assert_eq!(rig.account.refused(), (1, 0));
        rig.account.open(&[0, 1]);
        assert_eq!(rig.account.close(&[0, 1], true), [(0, 1), (1, 1)], "what was pending is gone, too");
        rig.account.open(&[0, 1]);
        assert_eq!(rig.account.close(&[0, 1], false), [], "asked for once");
    }

    #[test]
    fn a_drop_while_everything_is_mapped_is_a_mistake() {
        let rig = rig();
        rig.event(5, Delivery::Ignored);
        assert_eq!(rig.account.refused(), (1, 1));
        rig.account.open(&[4]);
        rig.event(5, Delivery::Ignored);
        assert_eq!(rig.account.refused(), (2, 2), "the other vector's window is no excuse");
        rig.event(4, Delivery::Ignored);
        assert_eq!(rig.account.refused(), (3, 2));
    }
}
