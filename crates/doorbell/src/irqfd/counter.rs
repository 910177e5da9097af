//! When the counter of a bound eventfd is taken.

use rustix::event::epoll::EventFlags;

use super::eventfd::{Eventfd, FdInfoDir};

/// Under [`Drain::Lazy`], a counter is taken after this many events.
const LAZY_EVENTS: u8 = 255;

/// What becomes of an eventfd's counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// It is taken with each event, before the delivery (F11): one more system call per event.
    #[default]
    Each,
    /// It is left to grow and taken only every 256th time, or when it is full. A batch of ready descriptors then costs
    /// one system call.
    ///
    /// The difference can be seen by whoever reads or polls the eventfd too, and by who binds it next: the events that
    /// were delivered are still in the counter. It is meant for producers that write small numbers, as all do that
    /// signal an interrupt: one that writes numbers near 2^64 can have to wait for the room that nobody makes.
    Lazy,
}

/// Where the counter of one binding stands.
pub(super) struct Counter {
    drain: Drain,
    /// Somebody else needs to see the events too.
    shared: bool,
    /// The counter at assign, if it was not 0: one event for it, which leaves it as it is (F10).
    initial: Option<u64>,
    /// Events since it was last taken; [`Drain::Lazy`] only.
    untaken: u8,
}

impl Counter {
    /// A counter that has this value when it is bound.
    pub(super) fn new(drain: Drain, shared: bool, count: u64) -> Self {
        Self { drain, shared, initial: (count != 0).then_some(count), untaken: 0 }
    }

    /// What epoll is asked for.
    pub(super) fn interest(&self) -> EventFlags {
        let readable = EventFlags::IN | EventFlags::ET;
        // Where a counter is left to grow, the absence of OUT says that it is full.
        if self.shared || self.drain == Drain::Lazy { readable | EventFlags::OUT } else { readable }
    }

    /// Before an event is delivered, never after: a write that comes after this is an event of its own.
    #[inline]
    pub(super) fn take(&mut self, eventfd: &Eventfd, room: Option<bool>, info: &FdInfoDir) {
        if self.initial.is_some() && self.is_initial(eventfd, info) {
            return;
        }
        if self.drain == Drain::Lazy || self.shared {
            self.untaken = self.untaken.wrapping_add(1);
            let due = self.untaken == LAZY_EVENTS && !self.shared;
            if !due && room.unwrap_or_else(|| eventfd.has_room()) {
                return;
            }
            self.untaken = 0;
        }
        eventfd.drain();
    }

    /// Whether nothing was written since the assign.
    #[cold]
    fn is_initial(&mut self, eventfd: &Eventfd, info: &FdInfoDir) -> bool {
        let initial = self.initial.take();
        eventfd.count(info) == initial
    }
}
