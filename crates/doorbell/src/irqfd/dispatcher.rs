//! One epoll instance for all descriptors, and the deliveries that it leads to.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    DispatchThread, Drain, EventfdId, Exclusive, Irqfd, IrqfdState, IrqfdTarget,
    binding::Watch,
    counter::Counter,
    eventfd::{Eventfd, FdInfoDir},
    inside::{self, Inside},
    registry::Claim,
    resample::Sharing,
    slots::{Slots, Token},
    target::Destination,
};
use crate::Error;

/// How many ready descriptors one system call returns at most.
pub const BATCH: usize = 256;

/// How a [`Dispatcher`] treats its eventfds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DispatcherOptions {
    /// What becomes of the counters.
    pub drain: Drain,
    /// Within what one eventfd can be bound only once.
    pub exclusive: Exclusive,
}

/// What a binding listens to.
enum Source {
    Eventfd {
        /// Before `eventfd`, whose number the kernel may give to another once it is closed.
        _claim: Claim,
        eventfd: Eventfd,
        counter: Counter,
    },
    /// Readable for ever once a process has ended.
    Process(OwnedFd),
}

struct Binding {
    source: Source,
    destination: Destination,
}

impl AsFd for Binding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Eventfd { eventfd, .. } => eventfd.as_fd(),
            Source::Process(pidfd) => pidfd.as_fd(),
        }
    }
}

pub(super) struct Inner {
    epoll: OwnedFd,
    /// A semaphore: one for each thread that is to stop.
    pub(super) wake: OwnedFd,
    slots: Slots<Binding>,
    info: FdInfoDir,
    id: u64,
    options: DispatcherOptions,
}

impl Inner {
    fn attach(self: &Arc<Self>, fd: BorrowedFd<'_>, destination: Destination) -> Result<(Token, EventfdId), Error> {
        let (eventfd, count) = Eventfd::adopt(fd, "the irqfd's descriptor", &self.info)?;
        let id = eventfd.id;
        let claim = Claim::new(id, self.id, self.options.exclusive)?;
        let shared = self.options.exclusive == Exclusive::Dispatcher;
        let counter = Counter::new(self.options.drain, shared, count);
        let interest = counter.interest();
        let source = Source::Eventfd { _claim: claim, eventfd, counter };
        Ok((self.watch(Binding { source, destination }, interest)?, id))
    }

    fn watch(&self, binding: Binding, interest: EventFlags) -> Result<Token, Error> {
        let raw = binding.as_fd().as_raw_fd();
        // First the slot, then epoll: what is ready at once, or is written from now on, finds the slot occupied (H1).
        let Ok(token) = self.slots.insert(binding) else {
            return Err(Error::Os { what: "binding one more descriptor", source: crate::Errno::NOSPC });
        };
        // SAFETY: the slot owns the descriptor, and nobody knows the token yet who could vacate it; the shutdown, which
        // needs no token, needs the dispatcher for itself.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        match epoll::add(&self.epoll, fd, EventData::new_u64(token.bits()), interest) {
            Ok(()) => Ok(token),
            Err(source) => {
                self.slots.remove(token);
                Err(Error::Os { what: "adding a descriptor to epoll", source: source.into() })
            }
        }
    }

    /// Ends a binding and waits for it. From its own delivery, which cannot wait for itself: as soon as the target has
    /// returned, before any other event can get in.
    pub(super) fn detach(&self, token: Token) {
        if inside::detach(self.id, token) {
            return;
        }
        if let Some(binding) = self.slots.remove(token) {
            self.retire(binding);
        }
    }

    fn retire(&self, binding: Binding) {
        // Another descriptor may lead to the same eventfd, so that closing ours would not take it out.
        let _ = epoll::delete(&self.epoll, binding.as_fd());
        drop(binding);
    }

    pub(super) fn is_bound(&self, token: Token) -> bool {
        self.slots.get(token).is_some_and(|slot| slot.is_occupied(token))
    }

    /// One event that epoll reported, and whether the counter had room for more.
    #[inline]
    fn signal(&self, token: Token, room: bool) {
        let Some(slot) = self.slots.get(token) else { return };
        let ended = slot.fire(token, |place| self.deliver(token, place, Some(room)));
        if let Some(ended) = ended.flatten() {
            self.finish(token, ended);
        }
    }

    /// Inside the latch. Returns the binding if its own delivery has dropped it. `room` is `None` where nobody knows.
    #[inline]
    fn deliver(&self, token: Token, place: &mut Option<Binding>, room: Option<bool>) -> Option<Binding> {
        let binding = place.as_mut()?;
        if let Source::Eventfd { eventfd, counter, .. } = &mut binding.source {
            counter.take(eventfd, room, &self.info);
        }
        let inside = Inside::enter(self.id, token);
        binding.destination.deliver();
        if inside.leave() { place.take() } else { None }
    }

    #[cold]
    fn finish(&self, token: Token, binding: Binding) {
        self.slots.remove(token);
        self.retire(binding);
    }

    /// See [`Irqfd::retarget`].
    pub(super) fn retarget(&self, token: Token, destination: Destination) -> Result<(), Error> {
        self.check_outside(token)?;
        let Some(slot) = self.slots.get(token) else { return Ok(()) };
        let mut ended = None;
        let old = slot.change(
            token,
            |binding| std::mem::replace(&mut binding.destination, destination),
            |place| ended = self.deliver(token, place, None),
        );
        drop(old);
        if let Some(ended) = ended {
            self.finish(token, ended);
        }
        Ok(())
    }

    /// See [`Irqfd::mask`].
    pub(super) fn mask(&self, token: Token) -> Result<bool, Error> {
        self.check_outside(token)?;
        Ok(self.slots.get(token).is_some_and(|slot| slot.mask()))
    }

    /// See [`Irqfd::unmask`].
    pub(super) fn unmask(&self, token: Token) -> Result<bool, Error> {
        self.check_outside(token)?;
        let Some(slot) = self.slots.get(token) else { return Ok(false) };
        let delivered = slot.unmask(token, |place| self.deliver(token, place, None));
        let was_pending = delivered.is_some();
        if let Some(ended) = delivered.flatten() {
            self.finish(token, ended);
        }
        Ok(was_pending)
    }

    /// See [`Irqfd::save`].
    pub(super) fn save(&self, token: Token) -> IrqfdState {
        self.slots.get(token).map_or(IrqfdState::default(), |slot| slot.save(token))
    }

    /// See [`Irqfd::restore`].
    pub(super) fn restore(&self, token: Token, state: &IrqfdState) -> Result<(), Error> {
        self.check_outside(token)?;
        let IrqfdState { masked, pending } = *state;
        if pending && !masked {
            return Err(Error::Snapshot("an irqfd that is pending but not masked".into()));
        }
        if let Some(slot) = self.slots.get(token) {
            slot.restore(token, masked, pending);
        }
        Ok(())
    }

    fn check_outside(&self, token: Token) -> Result<(), Error> {
        if inside::of(self.id, token) { Err(Error::Busy("the irqfd, which is being delivered,")) } else { Ok(()) }
    }

    /// Takes one batch of ready descriptors and delivers their events.
    pub(super) fn batch(&self, timeout: Option<&Timespec>) -> io::Result<usize> {
        if inside::any() {
            return Err(Errno::DEADLK.into());
        }
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let (ready, _) = epoll::wait(&self.epoll, &mut events, timeout)?;
        let mut taken = 0;
        for event in ready {
            let token = Token::from_bits(event.data.u64());
            if token == Token::NOBODY {
                continue;
            }
            taken += 1;
            let flags = event.flags;
            // Without IN it is only the room that our own reading made.
            if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP) {
                self.signal(token, flags.contains(EventFlags::OUT));
            }
        }
        Ok(taken)
    }
}

/// Watches eventfds and delivers their events.
///
/// It has no thread of its own: poll it from a loop you have ([`AsFd`], readable while descriptors are ready, then
/// [`dispatch`](Self::dispatch)), give it one of your threads ([`wait`](Self::wait)), or let it have some
/// ([`spawn`](Self::spawn)). Any number of threads may dispatch at once.
///
/// Dropping it ends all its bindings; the [`Irqfd`]s that are left do nothing any more (F13).
pub struct Dispatcher {
    inner: Arc<Inner>,
}

impl Dispatcher {
    /// A dispatcher with no descriptors.
    ///
    /// Make it before a chroot without `/proc`: it keeps what it needs of it.
    ///
    /// # Errors
    /// [`Error::Os`] if there are no more descriptors, or no `/proc`.
    pub fn new(options: DispatcherOptions) -> Result<Self, Error> {
        /// Relaxed: each value is handed out once, whatever the order.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let os = |source: Errno| Error::Os { what: "making an epoll instance", source: source.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        let wake = rustix::event::eventfd(0, flags).map_err(os)?;
        // Level-triggered: each waiting thread sees it, and looks whether it is the one to stop.
        epoll::add(&epoll, &wake, EventData::new_u64(Token::NOBODY.bits()), EventFlags::IN).map_err(os)?;
        let (slots, info) = (Slots::new(), FdInfoDir::open()?);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { inner: Arc::new(Inner { epoll, wake, slots, info, id, options }) })
    }

    /// Binds an eventfd: from now on its events go to `target`, until the [`Irqfd`] is dropped.
    ///
    /// The eventfd may be blocking or not; its flags are left alone. A counter that is not 0 is one event, which leaves
    /// it as it is; a later event may then repeat it (F10, H13).
    ///
    /// # Errors
    /// [`Error::Descriptor`] if `fd` is not open (`EBADF`) or not an eventfd (`EINVAL`), F4; [`Error::Busy`] if the
    /// eventfd is bound already, F5; [`Error::Os`] if the system runs out of descriptors or epoll watches.
    pub fn attach(&self, fd: impl AsFd, target: impl Into<IrqfdTarget>) -> Result<Irqfd, Error> {
        self.bind(fd.as_fd(), target.into().into(), None)
    }

    pub(super) fn bind(
        &self,
        fd: BorrowedFd<'_>,
        destination: Destination,
        sharing: Option<Sharing>,
    ) -> Result<Irqfd, Error> {
        let (token, eventfd) = self.inner.attach(fd, destination)?;
        Ok(Irqfd::new(Watch::new(&self.inner, token), eventfd, sharing))
    }

    /// Calls `sink` once when the process of `pidfd` has ended.
    pub(super) fn watch_process(&self, pidfd: OwnedFd, sink: Arc<dyn crate::EventSink>) -> Result<Watch, Error> {
        let binding = Binding { source: Source::Process(pidfd), destination: Destination::Sink(sink) };
        let token = self.inner.watch(binding, EventFlags::IN | EventFlags::ET)?;
        Ok(Watch::new(&self.inner, token))
    }

    pub(super) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(super) fn adopt(&self, fd: BorrowedFd<'_>, what: &'static str) -> Result<Eventfd, Error> {
        Ok(Eventfd::adopt(fd, what, &self.inner.info)?.0)
    }

    /// [`EventfdId::of`], also in a chroot.
    ///
    /// # Errors
    /// As there.
    pub fn eventfd_id(&self, fd: impl AsFd) -> Result<EventfdId, Error> {
        self.inner.info.id_of(fd.as_fd())
    }

    /// Delivers the events of up to [`BATCH`] ready descriptors, without waiting for any. Returns how many were ready;
    /// after fewer than [`BATCH`] nothing is left.
    ///
    /// # Errors
    /// `EDEADLK` inside a delivery, which must not dispatch; else what `epoll_wait` says.
    pub fn dispatch(&self) -> io::Result<usize> {
        self.inner.batch(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// The same, but waits until something is ready: `None` for as long as it takes, otherwise in whole milliseconds,
    /// rounded up. A signal ends the wait early.
    ///
    /// # Errors
    /// As [`dispatch`](Self::dispatch); `EINTR` after a signal.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        self.inner.batch(timeout.as_ref())
    }

    /// For tests: that no delivery needs the lock of the bindings.
    #[cfg(all(test, not(loom)))]
    pub(super) fn hold_lock(&self) -> impl Drop + '_ {
        self.inner.slots.hold_lock()
    }

    /// A thread that dispatches until the value that stands for it is dropped.
    ///
    /// # Errors
    /// If the thread cannot be made.
    pub fn spawn(&self, name: &str) -> io::Result<DispatchThread> {
        DispatchThread::new(&self.inner, name)
    }
}

impl AsFd for Dispatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.epoll.as_fd()
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        let bound: Vec<Token> = self.inner.slots.occupants().collect();
        for token in bound {
            self.inner.detach(token);
        }
    }
}
