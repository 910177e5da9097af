//! `KVM_IRQFD` of a VM whose controllers are doorbell's: which eventfds are bound, and by which numbers they are unbound.

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ReadWriteFlags, preadv2};

use super::{
    Errno, KvmIrqfd,
    types::{IRQFD_DEASSIGN, IRQFD_RESAMPLE},
};
use crate::{
    Error,
    irqfd::{BATCH, Dispatcher, DispatcherOptions, EventfdId, Exclusive, Irqfd, IrqfdTarget, Resamplers},
    route::RouteTable,
};

/// The bindings of one VM.
pub(super) struct Bindings {
    table: Arc<RouteTable>,
    resamplers: Resamplers,
    /// Lock order: before the dispatcher's.
    bound: Mutex<Vec<Binding>>,
    dispatcher: Dispatcher,
}

struct Binding {
    eventfd: EventfdId,
    gsi: u32,
    resample: bool,
    /// The counter was not 0 at assign, and is left so until the first write (F10).
    initial: bool,
    irqfd: Irqfd,
}

/// F1: a flag that there is not.
pub(super) fn check(request: &KvmIrqfd) -> Result<(), Errno> {
    if request.flags & !(IRQFD_DEASSIGN | IRQFD_RESAMPLE) == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// A deassign where nothing can be bound: the descriptor is looked at all the same.
pub(super) fn deassign_nothing(request: &KvmIrqfd) -> Result<(), Error> {
    borrow(request.fd, |fd| EventfdId::of(fd)).map(|_| ())
}

impl Bindings {
    /// None yet, to GSIs of this table.
    pub(super) fn new(table: Arc<RouteTable>, exclusive: Exclusive) -> Result<Self, Error> {
        let dispatcher = Dispatcher::new(DispatcherOptions { exclusive, ..DispatcherOptions::default() })?;
        let resamplers = Resamplers::new(Arc::clone(&table));
        Ok(Self { table, resamplers, bound: Mutex::default(), dispatcher })
    }

    pub(super) fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    pub(super) fn resamplers(&self) -> &Resamplers {
        &self.resamplers
    }

    pub(super) fn assign(&self, request: &KvmIrqfd) -> Result<(), Error> {
        // The kernel looks at the eventfd first.
        let eventfd = borrow(request.fd, |fd| self.dispatcher.eventfd_id(fd))?;
        let (gsi, resample) = (request.gsi, request.flags & IRQFD_RESAMPLE != 0);
        let mut bound = self.bound.lock();
        let initial = borrow(request.fd, |fd| Ok(is_readable(fd)))?;
        let irqfd = borrow(request.fd, |fd| {
            if !resample {
                return self.dispatcher.attach(fd, IrqfdTarget::unrouted(&self.table, gsi));
            }
            borrow(request.resamplefd, |ended| self.resamplers.attach_unrouted(&self.dispatcher, gsi, fd, ended))
        })?;
        bound.push(Binding { eventfd, gsi, resample, initial, irqfd });
        Ok(())
    }

    pub(super) fn deassign(&self, request: &KvmIrqfd) -> Result<(), Error> {
        let eventfd = borrow(request.fd, |fd| self.dispatcher.eventfd_id(fd))?;
        let mut bound = self.bound.lock();
        let Some(at) = bound.iter().position(|it| it.eventfd == eventfd && it.gsi == request.gsi) else {
            return Ok(());
        };
        let Binding { eventfd: _, gsi, resample, initial, irqfd } = bound.remove(at);
        // As in the kernel, what was written before is delivered, and the counter is taken.
        self.dispatch();
        drop(irqfd);
        let left = borrow(request.fd, |fd| Ok(take(fd)))?;
        if left && !initial && !resample {
            // A write between the last dispatch and the end of the binding.
            self.table.fire(gsi);
        }
        Ok(())
    }

    pub(super) fn dispatch(&self) {
        while self.dispatcher.dispatch().is_ok_and(|ready| ready == BATCH) {}
    }
}

/// Lends a descriptor that a caller named by its number.
fn borrow<R>(fd: u32, act: impl FnOnce(BorrowedFd<'_>) -> Result<R, Error>) -> Result<R, Error> {
    let closed = || Error::Descriptor { what: "the descriptor", source: Errno::BADF };
    let fd = i32::try_from(fd).map_err(|_| closed())?;
    // SAFETY: not -1; and as with the ioctl itself, it is the caller who says that the number is a descriptor. One that
    // is closed is refused by the first system call that is made with it.
    act(unsafe { BorrowedFd::borrow_raw(fd) })
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
}

/// Takes an eventfd's counter, without ever waiting for it; whether there was one.
fn take(fd: BorrowedFd<'_>) -> bool {
    let mut counter = [0; 8];
    preadv2(fd, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT).is_ok()
}
