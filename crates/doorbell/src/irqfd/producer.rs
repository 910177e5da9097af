//! A process that raises interrupts, and what to do when it dies.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags},
};

use super::{Dispatcher, EventfdId, Irqfd, binding::Watch, dispatcher::Inner, resample::Resamplers, slots::Token};
use crate::{Delivery, Error, LineSource, route::RouteTable};

/// What a dead producer leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerExit {
    /// Its eventfds that are still bound. They stay so: drop the irqfds, or hand the eventfds to a successor.
    pub bound: Vec<EventfdId>,
    /// The GSIs whose line it may have held up, and which were lowered.
    pub lowered: Vec<u32>,
}

struct OwnIrqfd {
    eventfd: EventfdId,
    token: Token,
    /// Where it has a part in a resampler.
    resample: Option<(Resamplers, u32)>,
}

/// A line source that only this producer drives.
struct OwnLine {
    table: Arc<RouteTable>,
    gsi: u32,
    source: LineSource,
}

struct Alive {
    irqfds: Vec<OwnIrqfd>,
    lines: Vec<OwnLine>,
    on_exit: Box<dyn FnOnce(ProducerExit) + Send>,
    dispatcher: Weak<Inner>,
}

impl Alive {
    fn end(self) {
        let Self { irqfds, lines, on_exit, dispatcher } = self;
        let mut exit = ProducerExit::default();
        let dispatcher = dispatcher.upgrade();
        for OwnIrqfd { eventfd, token, resample } in irqfds {
            if !dispatcher.as_ref().is_some_and(|dispatcher| dispatcher.is_bound(token)) {
                continue;
            }
            exit.bound.push(eventfd);
            if let Some((resamplers, gsi)) = resample {
                if resamplers.lower_unshared(gsi) {
                    exit.lowered.push(gsi);
                }
            }
        }
        for line in lines {
            line.lower();
            exit.lowered.push(line.gsi);
        }
        on_exit(exit);
    }
}

impl OwnLine {
    fn lower(&self) {
        self.table.line(self.gsi, self.source, false);
    }
}

/// A process that holds the other ends of some irqfds or drives some lines; watched until this is dropped.
///
/// When it dies, its lines are lowered, and a callback learns what is left. What it had written before is delivered
/// first, as long as only one thread dispatches.
///
/// A line that it shares with other resample bindings is left as it is: one of them may be holding it up. The guest's
/// next end of interrupt lowers it.
pub struct Producer {
    _watch: Watch,
    /// `None` once it is dead. Lock order: a leaf; not held while anything is called.
    alive: Arc<Mutex<Option<Alive>>>,
}

impl Producer {
    /// Watches the process of `pidfd` (see [`pidfd`]).
    ///
    /// `on_exit` is called at most once, by a thread that dispatches; it may drop this value and the producer's irqfds.
    /// A process that has ended before is reported by the next dispatch.
    ///
    /// # Errors
    /// [`Error::Descriptor`] if `pidfd` is not open; [`Error::Os`] if it cannot be watched.
    pub fn watch(
        dispatcher: &Dispatcher,
        pidfd: impl AsFd,
        on_exit: impl FnOnce(ProducerExit) + Send + 'static,
    ) -> Result<Self, Error> {
        let pidfd = rustix::io::fcntl_dupfd_cloexec(pidfd, 0)
            .map_err(|source| Error::Descriptor { what: "the producer's pidfd", source: source.into() })?;
        let alive = Arc::new(Mutex::new(Some(Alive {
            irqfds: Vec::new(),
            lines: Vec::new(),
            on_exit: Box::new(on_exit),
            dispatcher: dispatcher.downgrade(),
        })));
        let ended = Arc::clone(&alive);
        let sink = move || {
            let alive = ended.lock().take();
            if let Some(alive) = alive {
                alive.end();
            }
            Delivery::Ignored
        };
        Ok(Self { _watch: dispatcher.watch_process(pidfd, Arc::new(sink))?, alive })
    }

    /// This irqfd's events come from the producer. False if it is dead already.
    pub fn owns(&self, irqfd: &Irqfd) -> bool {
        let own = OwnIrqfd {
            eventfd: irqfd.eventfd(),
            token: irqfd.token(),
            resample: irqfd.sharing().map(|sharing| (sharing.resamplers().clone(), sharing.gsi())),
        };
        self.alive.lock().as_mut().map(|alive| alive.irqfds.push(own)).is_some()
    }

    /// Only the producer drives this source of the GSI's line. False if it is dead already; the source is then lowered
    /// at once.
    pub fn drives(&self, table: &Arc<RouteTable>, gsi: u32, source: LineSource) -> bool {
        let line = OwnLine { table: Arc::clone(table), gsi, source };
        if let Some(alive) = &mut *self.alive.lock() {
            alive.lines.push(line);
            return true;
        }
        line.lower();
        false
    }

    /// Whether its death has been noticed.
    pub fn is_dead(&self) -> bool {
        self.alive.lock().is_none()
    }
}

/// A descriptor that stands for the process `pid`, for [`Producer::watch`].
///
/// Only a child of this process that has not been waited for is sure to be the one that is meant: the number of any
/// other may have passed to a new process. Better let such a producer hand over a pidfd of its own.
///
/// # Errors
/// [`Error::Os`] with `ESRCH` if there is no such process.
pub fn pidfd(pid: u32) -> Result<OwnedFd, Error> {
    let os = |source: Errno| Error::Os { what: "opening a pidfd", source: source.into() };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(os(Errno::SRCH))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(os)
}
