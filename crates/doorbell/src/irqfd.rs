//! Eventfds as interrupt sources, the dispatcher that watches them, and resampling.
//!
//! An [`Irqfd`] binds an eventfd to a GSI, to a message, or to anything else that takes events. A [`Dispatcher`] watches
//! all of them with one epoll instance. [`Resamplers`] keep the level lines of irqfds that have a resample descriptor.
//! A [`Producer`] is a process on the other end, whose death is noticed.
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering::Relaxed}};
//! use doorbell::{Delivery, irqfd::{Dispatcher, DispatcherOptions, IrqfdTarget}};
//! use rustix::event::{EventfdFlags, eventfd};
//!
//! let dispatcher = Dispatcher::new(DispatcherOptions::default())?;
//! let events = Arc::new(AtomicU32::new(0));
//! let count = Arc::clone(&events);
//! let sink = move || {
//!     count.fetch_add(1, Relaxed);
//!     Delivery::Delivered(1)
//! };
//! let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
//! let irqfd = dispatcher.attach(&fd, IrqfdTarget::Sink(Arc::new(sink)))?;
//!
//! rustix::io::write(&fd, &3u64.to_ne_bytes())?; // a device, most often in another process
//! assert_eq!(dispatcher.dispatch()?, 1);
//! assert_eq!(events.load(Relaxed), 1, "one event, whatever was written");
//! drop(irqfd);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # System calls
//!
//! For a seccomp filter. A thread that dispatches needs the first row only, apart from its own end and from what a
//! [`Kick`](crate::Kick) or a sink does.
//!
//! | who | calls |
//! |---|---|
//! | dispatching | `epoll_pwait`; `preadv2` per event under [`Drain::Each`], seldom under [`Drain::Lazy`]. Once, for an eventfd that was bound with a counter other than 0: `getpid`, `openat`, `read`, `close`. Before Linux 5.8: `ppoll` and `read` after `preadv2` |
//! | [`Dispatcher::new`] | `epoll_create1`, `eventfd2`, `epoll_ctl`, `openat`, `getpid` |
//! | [`Dispatcher::attach`], [`Resamplers::attach`] | `fcntl`, `getpid`, `openat`, `read`, `close`, `epoll_ctl` |
//! | dropping an [`Irqfd`] | `epoll_ctl`, `close` |
//! | [`Irqfd::unmask`], [`Irqfd::retarget`] | `preadv2`, or `ppoll` under [`Drain::Lazy`], for an event that was waiting |
//! | [`Resamplers::ended`], [`Resamplers::notify`] | `ppoll` and `write` per sharer |
//! | [`Dispatcher::spawn`], [`DispatchThread::stop`] | those of a thread; `write`, `read` |
//! | [`Producer::watch`], [`producer_pidfd`] | `fcntl`, `epoll_ctl`; `pidfd_open` |
//!
//! Any lock that is contended adds `futex`, a latch that is waited for longer than usual `sched_yield`, and attaching
//! what the allocator needs.
//!
//! # What differs from the kernel's
//!
//! | row | the kernel | here |
//! |---|---|---|
//! | F5 | one binding of an eventfd on the machine | one in the process ([`Exclusive::Process`]); another process' is not seen |
//! | F10 | the event for a counter that is not 0 comes at assign | with the next dispatch; a write before that makes one event with it, and the counter is taken |
//! | F11 | one injection per write | one per dispatch: writes in between are one event |
//! | F11 | the counter is always taken | not under [`Drain::Lazy`], nor under [`Exclusive::Dispatcher`] |
//! | F11a | other readers and pollers of the eventfd are shut out | they are not; one that takes the counter before the dispatcher has seen it takes the event |
//! | F12a | closing the last descriptor ends the binding | it does not: the binding has a descriptor of its own, and nobody reports the close of another. Watch the process instead ([`Producer`]) |
//! | F14 | injected in the context of the writer | on the thread that dispatches |
//! | F14a, F14b | the interrupt can stay in the kernel or the hardware | it is a descriptor like any other |
//! | F15 | what the fast path cannot do is done by a worker later | every event is delivered on the dispatching thread, by the route of that moment |
//! | F8a | deassign delivers what was already written | what was written and not yet dispatched stays in the counter |
//! | F5a | two machines that share an eventfd both take its counter | none does, so that both see each event |
//! | R6 | told by the IOAPIC itself | told by whoever holds chip and resamplers, through [`Resamplers::notify`] |
//! | R8 | Power's EOI notifies by source number | the same call, with the source as pin |
//!
//! F1, F2, F3 and F9 are rows of the call's form and of the machine, not of a binding: see `kvm_abi`.

#![cfg(target_os = "linux")]

mod binding;
mod cell;
mod counter;
mod dispatcher;
mod eventfd;
mod inside;
#[cfg(all(test, loom))]
mod models;
mod producer;
mod registry;
mod resample;
mod slots;
mod target;
#[cfg(all(test, not(loom)))]
mod tests;
mod thread;

pub use binding::{Irqfd, IrqfdState};
pub use counter::Drain;
pub use dispatcher::{BATCH, Dispatcher, DispatcherOptions};
pub use eventfd::EventfdId;
pub use producer::{Producer, ProducerExit, pidfd as producer_pidfd};
pub use registry::Exclusive;
pub use resample::{Resamplers, ResamplersState};
pub use target::{IrqfdTarget, RoutedGsi};
pub use thread::DispatchThread;
