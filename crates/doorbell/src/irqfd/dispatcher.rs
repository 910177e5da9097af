//! One epoll instance for all descriptors, and the deliveries that it leads to.

use std::{
    cell::Cell,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
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
    EventfdId, Exclusive, IrqfdTarget,
    eventfd::{Eventfd, FdInfoDir},
    registry::Claim,
    resample::Sharing,
    slots::{Slots, Token},
    target::Destination,
};
use crate::Error;

/// How many ready descriptors one system call returns at most.
pub const BATCH: usize = 256;

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

/// How a [`Dispatcher`] treats its eventfds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DispatcherOptions {
    /// What becomes of the counters.
    pub drain: Drain,
    /// Within what one eventfd can be bound only once.
    pub exclusive: Exclusive,
}

/// Where the counter of one binding stands.
struct Counter {
    drain: Drain,
    /// Somebody else needs to see the events too.
    shared: bool,
    /// The counter at assign, if it was not 0: one event for it, which leaves it as it is (F10).
    initial: Option<u64>,
    /// Events since it was last taken; [`Drain::Lazy`] only.
    untaken: u8,
}

impl Counter {
    /// Before an event is delivered, never after: a write that comes after this is an event of its own.
    #[inline]
    fn take(&mut self, eventfd: &Eventfd, room: Option<bool>, info: &FdInfoDir) {
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

/// The binding whose foreign sink this thread is inside of.
#[derive(Clone, Copy)]
struct Inside {
    dispatcher: u64,
    token: Token,
    detach: bool,
}

thread_local! {
    static INSIDE: Cell<Option<Inside>> = const { Cell::new(None) };
}

/// Leaves the sink on drop, so after a panic too.
struct InsideGuard(Option<Inside>);

impl Drop for InsideGuard {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

pub(super) struct Inner {
    epoll: OwnedFd,
    /// A semaphore: one for each thread that is to stop.
    wake: OwnedFd,
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
        let counter = Counter {
            drain: self.options.drain,
            shared: self.options.exclusive == Exclusive::Dispatcher,
            initial: (count != 0).then_some(count),
            untaken: 0,
        };
        let mut interest = EventFlags::IN | EventFlags::ET;
        if counter.shared || counter.drain == Drain::Lazy {
            // Its absence says that the counter is full.
            interest |= EventFlags::OUT;
        }
        let source = Source::Eventfd { _claim: claim, eventfd, counter };
        Ok((self.watch(Binding { source, destination }, interest)?, id))
    }

    fn watch(&self, binding: Binding, interest: EventFlags) -> Result<Token, Error> {
        let raw = binding.as_fd().as_raw_fd();
        // First the slot, then epoll: what is ready at once, or is written from now on, finds the slot occupied (H1).
        let Ok(token) = self.slots.insert(binding) else {
            return Err(Error::Os { what: "binding one more descriptor", source: Errno::NOSPC });
        };
        // SAFETY: the slot owns the descriptor, and nobody knows the token yet who could vacate it; the shutdown, which
        // needs no token, needs the dispatcher for itself.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        match epoll::add(&self.epoll, fd, EventData::new_u64(token.bits()), interest) {
            Ok(()) => Ok(token),
            Err(source) => {
                self.slots.remove(token);
                Err(Error::Os { what: "adding a descriptor to epoll", source })
            }
        }
    }

    fn detach(&self, token: Token) {
        if self.detach_inside(token) {
            return;
        }
        if let Some(binding) = self.slots.remove(token) {
            self.retire(binding);
        }
    }

    /// Whether this is called from the sink of this very binding: it cannot wait for itself, so it is taken out as
    /// soon as the sink has returned, before any other event can get in.
    fn detach_inside(&self, token: Token) -> bool {
        let inside = INSIDE.get().filter(|inside| inside.dispatcher == self.id && inside.token == token);
        if let Some(inside) = inside {
            INSIDE.set(Some(Inside { detach: true, ..inside }));
        }
        inside.is_some()
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

    /// Inside the latch. Returns the binding if its own sink has dropped it. `room` is `None` where nobody knows.
    #[inline]
    fn deliver(&self, token: Token, place: &mut Option<Binding>, room: Option<bool>) -> Option<Binding> {
        let binding = place.as_mut()?;
        if let Source::Eventfd { eventfd, counter, .. } = &mut binding.source {
            counter.take(eventfd, room, &self.info);
        }
        if !binding.destination.is_foreign() {
            binding.destination.deliver();
            return None;
        }
        let outside = InsideGuard(INSIDE.replace(Some(Inside { dispatcher: self.id, token, detach: false })));
        binding.destination.deliver();
        let detach = INSIDE.get().is_some_and(|inside| inside.detach);
        drop(outside);
        if detach { place.take() } else { None }
    }

    #[cold]
    fn finish(&self, token: Token, binding: Binding) {
        self.slots.remove(token);
        self.retire(binding);
    }

    /// Takes one batch of ready descriptors and delivers their events.
    fn batch(&self, timeout: Option<&Timespec>) -> io::Result<usize> {
        if INSIDE.get().is_some() {
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
        let os = |source| Error::Os { what: "making an epoll instance", source };
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
        Ok(Irqfd { watch: Watch { inner: Arc::clone(&self.inner), token }, eventfd, sharing })
    }

    /// Calls `sink` once when the process of `pidfd` has ended.
    pub(super) fn watch_process(&self, pidfd: OwnedFd, sink: Arc<dyn crate::EventSink>) -> Result<Watch, Error> {
        let binding = Binding { source: Source::Process(pidfd), destination: Destination::Sink(sink) };
        let token = self.inner.watch(binding, EventFlags::IN | EventFlags::ET)?;
        Ok(Watch { inner: Arc::clone(&self.inner), token })
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
        Ok(self.inner.info.read(fd.as_fd(), "the descriptor")?.id)
    }

    /// Delivers the events of up to [`BATCH`] ready descriptors, without waiting for any. Returns how many were ready;
    /// after fewer than [`BATCH`] nothing is left.
    ///
    /// # Errors
    /// `EDEADLK` inside a sink, which must not dispatch; else what `epoll_wait` says.
    pub fn dispatch(&self) -> io::Result<usize> {
        self.inner.batch(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// The same, but waits until something is ready: `None` for as long as it takes. A signal ends the wait early.
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
        let stop = Arc::new(AtomicBool::new(false));
        let (inner, stopped) = (Arc::clone(&self.inner), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Relaxed: the wake eventfd, written after it, orders it.
            while !stopped.load(Ordering::Relaxed) {
                match inner.batch(None) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(DispatchThread { inner: Arc::clone(&self.inner), stop, thread: Some(thread) })
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

/// A thread that dispatches; dropping this stops it and waits for it.
pub struct DispatchThread {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl DispatchThread {
    /// Stops it.
    ///
    /// # Errors
    /// What made it end before: a failed `epoll_wait`, or the panic of a sink.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Relaxed: read after the wake-up that follows.
        self.stop.store(true, Ordering::Relaxed);
        rustix::io::write(&self.inner.wake, &1u64.to_ne_bytes())?;
        let ended = thread.join();
        rustix::io::read(&self.inner.wake, &mut [0; 8])?;
        ended.unwrap_or_else(|_| Err(io::Error::other("a sink of the dispatcher panicked")))
    }
}

impl Drop for DispatchThread {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "a dispatcher thread had ended");
        }
    }
}

/// One occupied slot; dropping it ends the occupancy and waits until no event of it is being delivered.
pub(super) struct Watch {
    inner: Arc<Inner>,
    token: Token,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.inner.detach(self.token);
    }
}

/// A bound eventfd (`KVM_IRQFD`). Dropping it unbinds the eventfd.
///
/// When the drop is over, no event of this binding is being delivered, and none will be (F8a): what was written but not
/// yet dispatched stays in the eventfd's counter (F8b), where the next binding finds it. Only a sink that drops the
/// irqfd it was called for does not wait: for its own return.
///
/// A sink that drops *another* irqfd waits for that one's delivery; two that do so to each other wait for ever.
pub struct Irqfd {
    /// Before `sharing`: the last event must be over before the line is let go.
    watch: Watch,
    eventfd: EventfdId,
    sharing: Option<Sharing>,
}

impl Irqfd {
    /// Which eventfd is bound.
    pub fn eventfd(&self) -> EventfdId {
        self.eventfd
    }

    pub(super) fn token(&self) -> Token {
        self.watch.token
    }

    pub(super) fn sharing(&self) -> Option<&Sharing> {
        self.sharing.as_ref()
    }

    /// Sends further events elsewhere. An event that comes meanwhile meets the old or the new target; when the call
    /// returns, none is being delivered to the old one.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own sink, and for an irqfd with a resample descriptor.
    pub fn retarget(&self, target: impl Into<IrqfdTarget>) -> Result<(), Error> {
        self.check_outside()?;
        if self.sharing.is_some() {
            return Err(Error::Busy("the irqfd's line, which other irqfds may share,"));
        }
        let Watch { inner, token } = &self.watch;
        let Some(slot) = inner.slots.get(*token) else { return Ok(()) };
        let destination = Destination::from(target.into());
        let mut ended = None;
        let old = slot.change(
            *token,
            |binding| std::mem::replace(&mut binding.destination, destination),
            |place| ended = inner.deliver(*token, place, None),
        );
        drop(old);
        if let Some(ended) = ended {
            inner.finish(*token, ended);
        }
        Ok(())
    }

    /// Makes further events pending, once none is being delivered; whether they were so before. The counter is not
    /// taken meanwhile.
    ///
    /// For a binding that has no GSI whose [`Gate`](crate::gate::Gate) would do it.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own sink.
    pub fn mask(&self) -> Result<bool, Error> {
        self.check_outside()?;
        Ok(self.watch.inner.slots.get(self.watch.token).is_some_and(|slot| slot.mask()))
    }

    /// Lets events through again, and delivers the pending one; whether there was one.
    ///
    /// # Errors
    /// [`Error::Busy`] from its own sink.
    pub fn unmask(&self) -> Result<bool, Error> {
        self.check_outside()?;
        let Watch { inner, token } = &self.watch;
        let Some(slot) = inner.slots.get(*token) else { return Ok(false) };
        let delivered = slot.unmask(*token, |place| inner.deliver(*token, place, None));
        let was_pending = delivered.is_some();
        if let Some(ended) = delivered.flatten() {
            inner.finish(*token, ended);
        }
        Ok(was_pending)
    }

    /// Whether an event waits behind [`mask`](Self::mask).
    pub fn is_pending(&self) -> bool {
        let Watch { inner, token } = &self.watch;
        inner.slots.get(*token).is_some_and(|slot| slot.is_pending(*token))
    }

    fn check_outside(&self) -> Result<(), Error> {
        let Watch { inner, token } = &self.watch;
        match INSIDE.get() {
            Some(inside) if inside.dispatcher == inner.id && inside.token == *token => {
                Err(Error::Busy("the irqfd, which is being delivered,"))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Irqfd").field("eventfd", &self.eventfd).field("token", &self.watch.token).finish()
    }
}
