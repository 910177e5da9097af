//! Which eventfds of this process are bound, so that none is bound twice (F5).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::EventfdId;
use crate::Error;

/// Within what one eventfd can be bound only once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exclusive {
    /// This process: no other dispatcher may have it (F5, Linux since about 6.17). Another process may; only the
    /// kernel could know.
    #[default]
    Process,
    /// This dispatcher: another one of this process may bind it too, if it is as permissive (F5a, the older rule).
    ///
    /// Each of the sharers must see each event, so the counter is then never taken, unless it is full.
    Dispatcher,
}

/// One binding of an eventfd.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Holder {
    dispatcher: u64,
    exclusive: Exclusive,
}

type Bound = BTreeMap<EventfdId, SmallVec<[Holder; 1]>>;

/// Lock order: a leaf; nothing is called while it is held.
static BOUND: Mutex<Bound> = Mutex::new(BTreeMap::new());

/// The right to have an eventfd bound; given back on drop.
///
/// Its holder keeps a descriptor of the eventfd for as long, so that the kernel does not give its number to another.
#[derive(Debug)]
pub(super) struct Claim {
    id: EventfdId,
    dispatcher: u64,
}

impl Claim {
    pub(super) fn new(id: EventfdId, dispatcher: u64, exclusive: Exclusive) -> Result<Self, Error> {
        let mut bound = BOUND.lock();
        let holders = bound.entry(id).or_default();
        let taken = holders.iter().any(|holder| {
            let shareable = exclusive == Exclusive::Dispatcher && holder.exclusive == Exclusive::Dispatcher;
            holder.dispatcher == dispatcher || !shareable
        });
        if taken {
            return Err(Error::Busy("the eventfd"));
        }
        holders.push(Holder { dispatcher, exclusive });
        Ok(Self { id, dispatcher })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut bound = BOUND.lock();
        if let Some(holders) = bound.get_mut(&self.id) {
            holders.retain(|holder| holder.dispatcher != self.dispatcher);
            if holders.is_empty() {
                bound.remove(&self.id);
            }
        }
    }
}
