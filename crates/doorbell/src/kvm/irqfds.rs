//! Which eventfds the kernel has, which the dispatcher watches, and which wait behind a mask.
//!
//! The routing table in this process is the truth; the kernel's irqfds are a faster way to the same end. Each eventfd is
//! in one place:
//!
//! | place | an event | when |
//! |---|---|---|
//! | watched | wakes the dispatcher, which fires the GSI: gate, table, `KVM_SIGNAL_MSI` | at first, and after its route has gone |
//! | in the kernel | is injected by the kernel | promoted, and its GSI is open and as committed |
//! | parked | stays in the eventfd's counter | it was in the kernel, and its GSI is masked |
//!
//! Every configuration call first changes the table, then, if the GSI is *held* (has eventfds in the kernel or parked),
//! takes the lock and makes the places agree with the table ([`Irqfds::settle`]). Promotion goes the other way round:
//! it publishes that the GSI is held, and then looks at the table. So one of the two always sees the other, and a call
//! that has returned leaves nothing in the kernel that contradicts it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::heat::Heat;
use super::held::HeldSet;
use super::routes::{KernelGsis, KernelRoutes};
use super::source::{LazySink, take_counter};
use super::{KERNEL_ROUTES, Vm};
use crate::irqfd::{Dispatcher, Irqfd, IrqfdTarget};
use crate::route::{GsiRoutes, OpenRoutes, Route, RouteTable};
use crate::{Error, EventSink, VectorSource};

/// Where one eventfd is.
enum Place {
    Watched(#[expect(dead_code, reason = "held for its drop")] Irqfd),
    Kernel,
    Parked,
    /// The dispatcher refused to watch it again: its events wait in its counter.
    Adrift,
}

/// Where an eventfd that is bound to a GSI has its events go at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// To the dispatcher.
    Watched,
    /// To the kernel.
    Kernel,
    /// Into its counter, while its GSI is masked.
    Parked,
    /// Into its counter for good: the dispatcher refused to watch it again.
    Adrift,
}

/// What an eventfd is the source of.
enum Aim {
    Gsi(u32),
    Vector(Arc<dyn VectorSource>),
}

impl Aim {
    /// The GSI, if there is one at the moment.
    fn gsi(&self) -> Option<u32> {
        match self {
            Self::Gsi(gsi) => Some(*gsi),
            Self::Vector(vector) => vector.slot().map(|slot| slot.gsi),
        }
    }
}

struct Source {
    lazy: Arc<LazySink>,
    aim: Aim,
    place: Place,
    /// In-kernel level source: never watched.
    resample: Option<OwnedFd>,
    /// The GSI under which it is in the kernel or parked.
    held_by: Option<u32>,
    /// The kernel refused it once; it stays with the dispatcher.
    refused: bool,
}

/// A GSI with eventfds in the kernel or parked.
struct Held {
    /// The loan that they belong to; 0: none.
    tag: u32,
    /// The kernel's number.
    kernel: u32,
    /// What is committed for it.
    routes: GsiRoutes,
    sources: SmallVec<[u64; 1]>,
}

struct Config {
    next: u64,
    sources: BTreeMap<u64, Source>,
    held: BTreeMap<u32, Held>,
    gsis: KernelGsis,
}

/// The eventfds of one VM.
pub(super) struct Irqfds {
    pub(super) vm: Arc<Vm>,
    pub(super) table: Arc<RouteTable>,
    pub(super) dispatcher: Dispatcher,
    pub(super) heat: Arc<Heat>,
    routes: Arc<KernelRoutes>,
    /// Whether the kernel's chips have pins that routes can lead to.
    kernel_pins: bool,
    /// The GSIs that are held.
    held: HeldSet,
    /// Lock order: left of the latches of bindings and of everything but a split chip's `committed`. A promotion waits
    /// for sources' passages while it holds this, so a target must not change irqfds, routes or masks of this VM.
    config: Mutex<Config>,
}

/// A bound eventfd; the manager's [`Irqfd`](crate::manager::Irqfd) holds it.
pub(super) struct Bound {
    irqfds: Arc<Irqfds>,
    id: u64,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.irqfds.remove(self.id);
    }
}

impl Irqfds {
    /// `first`: the lowest kernel GSI that is free.
    pub(super) fn new(
        vm: Arc<Vm>,
        table: Arc<RouteTable>,
        dispatcher: Dispatcher,
        heat: Arc<Heat>,
        routes: Arc<KernelRoutes>,
        first: u32,
        kernel_pins: bool,
    ) -> Self {
        let config = Config { next: 0, sources: BTreeMap::new(), held: BTreeMap::new(), gsis: KernelGsis::from(first) };
        let held = HeldSet::new(table.numbers());
        Self { vm, table, dispatcher, heat, routes, kernel_pins, held, config: Mutex::new(config) }
    }

    /// Binds an eventfd to a GSI, at first through the dispatcher.
    pub(super) fn bind(self: &Arc<Self>, gsi: u32, fd: BorrowedFd<'_>) -> Result<Bound, Error> {
        let table = Arc::clone(&self.table);
        self.watch(fd, Aim::Gsi(gsi), Arc::new(move || table.fire(gsi)))
    }

    /// Binds an eventfd to a vector, whose GSI may change.
    pub(super) fn bind_vector(
        self: &Arc<Self>,
        fd: BorrowedFd<'_>,
        vector: Arc<dyn VectorSource>,
    ) -> Result<Bound, Error> {
        self.watch(fd, Aim::Vector(Arc::clone(&vector)), vector)
    }

    fn watch(self: &Arc<Self>, fd: BorrowedFd<'_>, aim: Aim, target: Arc<dyn EventSink>) -> Result<Bound, Error> {
        let own = duplicate(fd, "the irqfd's descriptor")?;
        let lazy = Arc::new(LazySink::new(own, target, Arc::clone(&self.heat)));
        let irqfd = self.dispatcher.attach(fd, IrqfdTarget::Sink(Arc::clone(&lazy) as Arc<dyn EventSink>))?;
        let place = Place::Watched(irqfd);
        let source = Source { lazy, aim, place, resample: None, held_by: None, refused: false };
        let id = self.config.lock().add(source);
        Ok(Bound { irqfds: Arc::clone(self), id })
    }

    /// Binds an eventfd to a level line of the kernel's chips, which lower it at the end of the interrupt.
    pub(super) fn bind_resample(
        self: &Arc<Self>,
        gsi: u32,
        fd: BorrowedFd<'_>,
        resample: BorrowedFd<'_>,
    ) -> Result<Bound, Error> {
        // Both are looked at here because a masked GSI's are not shown to the kernel yet (F4).
        self.dispatcher.eventfd_id(fd)?;
        self.dispatcher.eventfd_id(resample)?;
        let table = Arc::clone(&self.table);
        let target: Arc<dyn EventSink> = Arc::new(move || table.fire(gsi));
        let lazy = Arc::new(LazySink::new(duplicate(fd, "the irqfd's descriptor")?, target, Arc::clone(&self.heat)));
        let resample = Some(duplicate(resample, "the resample descriptor")?);
        let source = Source { lazy, aim: Aim::Gsi(gsi), place: Place::Parked, resample, held_by: None, refused: false };

        let mut config = self.config.lock();
        let routes = self.table.routes(gsi);
        let held = match config.held.get_mut(&gsi) {
            Some(held) => held,
            None => {
                let kernel = config.gsis.take().ok_or(Error::NoFreeGsi(KERNEL_ROUTES))?;
                let held = Held { tag: 0, kernel, routes: GsiRoutes::new(), sources: SmallVec::new() };
                config.held.entry(gsi).or_insert(held)
            }
        };
        let committed =
            if held.routes == routes { Ok(()) } else { self.routes.commit(&[(held.kernel, routes.clone())]) };
        if committed.is_ok() {
            held.routes = routes;
        }
        let id = config.add(source);
        config.hold(gsi, id);
        self.held.publish([gsi]);
        let masked = matches!(self.table.open_routes(gsi, 0), OpenRoutes::Masked);
        let attached = committed.and_then(|()| if masked { Ok(()) } else { self.attach(&mut config, id) });
        drop(config);
        // Its drop cleans up after a refusal.
        let bound = Bound { irqfds: Arc::clone(self), id };
        attached.map(|()| bound)
    }

    fn remove(&self, id: u64) {
        let mut config = self.config.lock();
        let Some(source) = config.sources.remove(&id) else { return };
        if let Some(gsi) = source.held_by {
            if let Some(held) = config.held.get_mut(&gsi) {
                if matches!(source.place, Place::Kernel) {
                    self.deassign(&source, held.kernel);
                }
                held.sources.retain(|other| *other != id);
            }
            self.let_go_if_empty(&mut config, gsi);
        }
        // Without the lock: a watched one waits here for its last passage, whose target may want it.
        drop(config);
        drop(source);
    }

    /// Promotes these sources, or all, that are watched and open; one routing call. Returns how many went.
    pub(super) fn promote(&self, only_hot: bool) -> Result<usize, Error> {
        let mut config = self.config.lock();
        let mut batch = Vec::new();
        let mut changes = Vec::new();
        let Config { sources, held, gsis, .. } = &mut *config;
        for (&id, source) in sources.iter() {
            let willing = matches!(source.place, Place::Watched(_)) && !source.refused;
            if !willing || only_hot && !source.lazy.is_hot() {
                continue;
            }
            let (gsi, tag) = match &source.aim {
                Aim::Gsi(gsi) => (*gsi, 0),
                Aim::Vector(vector) => match vector.slot() {
                    Some(slot) => (slot.gsi, slot.tag),
                    None => continue,
                },
            };
            let OpenRoutes::Open(routes) = self.table.open_routes(gsi, tag) else { continue };
            if !self.kernel_takes(&routes) {
                continue;
            }
            let held = match held.get_mut(&gsi) {
                // Of a loan that is just being ended.
                Some(held) if held.tag != tag => continue,
                Some(held) => held,
                None => {
                    // More sources than the kernel has routes: the rest stays with the dispatcher.
                    let Some(kernel) = gsis.take() else { break };
                    let new = Held { tag, kernel, routes: GsiRoutes::new(), sources: SmallVec::new() };
                    held.entry(gsi).or_insert(new)
                }
            };
            if held.routes != routes {
                changes.push((held.kernel, routes.clone()));
                held.routes = routes;
            }
            batch.push((id, gsi));
        }
        let committed = self.routes.commit(&changes);
        let mut promoted = 0;
        if committed.is_ok() {
            self.held.publish(batch.iter().map(|(_, gsi)| *gsi));
            for &(id, gsi) in &batch {
                promoted += usize::from(self.hand_over(&mut config, id, gsi));
                // Each one waits for the dispatcher. A guest that wants to mask need not wait for all of them.
                MutexGuard::bump(&mut config);
            }
        }
        for (_, gsi) in batch {
            if committed.is_err() {
                if let Some(held) = config.held.get_mut(&gsi) {
                    held.routes = GsiRoutes::new();
                }
            }
            self.let_go_if_empty(&mut config, gsi);
        }
        committed.map(|()| promoted)
    }

    /// From the dispatcher to the kernel, if the GSI is still as it was committed.
    fn hand_over(&self, config: &mut Config, id: u64, gsi: u32) -> bool {
        let Some(held) = config.held.get(&gsi) else { return false };
        let open = self.table.open_routes(gsi, held.tag);
        let Some(source) = config.sources.get_mut(&id) else { return false };
        if open != OpenRoutes::Open(held.routes.clone()) || !matches!(source.place, Place::Watched(_)) {
            return false;
        }
        // Waits until the dispatcher is through with its last event.
        source.place = Place::Parked;
        if take_counter(&source.lazy.fd) != 0 {
            // It came after that.
            source.lazy.target.signal();
        }
        config.hold(gsi, id);
        match self.attach(config, id) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, gsi, "the kernel refused an irqfd; it stays with the dispatcher");
                self.send_back(config, id, gsi);
                false
            }
        }
    }

    /// Back to the dispatcher for good, because the kernel refused it. A level source can only wait in its counter.
    fn send_back(&self, config: &mut Config, id: u64, gsi: u32) {
        let Some(source) = config.sources.get_mut(&id).filter(|source| source.resample.is_none()) else { return };
        source.refused = true;
        self.watch_again(source);
        if let Some(held) = config.held.get_mut(&gsi) {
            held.sources.retain(|other| *other != id);
        }
    }

    /// Gives a parked source to the kernel, which replays what its counter holds, once.
    fn attach(&self, config: &mut Config, id: u64) -> Result<(), Error> {
        let Some(source) = config.sources.get_mut(&id) else { return Ok(()) };
        let Some(held) = source.held_by.and_then(|gsi| config.held.get(&gsi)) else { return Ok(()) };
        self.vm.assign(source.lazy.fd.as_fd(), held.kernel, source.resample.as_ref().map(AsFd::as_fd))?;
        // A counter that was not 0 has been injected, but not taken (F10); from now on the kernel takes each event as
        // it is written. So what is still here would only be delivered twice.
        take_counter(&source.lazy.fd);
        source.place = Place::Kernel;
        Ok(())
    }

    fn deassign(&self, source: &Source, kernel: u32) {
        if let Err(error) = self.vm.deassign(source.lazy.fd.as_fd(), kernel) {
            tracing::error!(%error, "an irqfd could not be taken from the kernel");
        }
    }

    fn watch_again(&self, source: &mut Source) {
        source.held_by = None;
        source.lazy.renew();
        let target = IrqfdTarget::Sink(Arc::clone(&source.lazy) as Arc<dyn EventSink>);
        source.place = match self.dispatcher.attach(&source.lazy.fd, target) {
            Ok(irqfd) => Place::Watched(irqfd),
            Err(error) => {
                tracing::error!(%error, "the dispatcher refused an eventfd that it had before");
                Place::Adrift
            }
        };
    }

    /// Whether `gsi` has sources in the kernel or parked. To be asked after the table was changed.
    #[inline]
    pub(super) fn is_held(&self, gsi: u32) -> bool {
        self.held.contains(gsi)
    }

    /// The configuration lock, for calls that change table and places together.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { irqfds: self, config: self.config.lock() }
    }

    /// Makes the places of these GSIs' sources agree with the table.
    pub(super) fn settle(&self, gsis: impl IntoIterator<Item = u32>) {
        let gsis: SmallVec<[u32; 8]> = gsis.into_iter().filter(|&gsi| self.is_held(gsi)).collect();
        if !gsis.is_empty() {
            self.lock().settle(&gsis);
        }
    }

    /// Where the eventfds of `gsi` stand; `None` if somebody has been moving eventfds for as long as `patience`.
    pub(super) fn standings(&self, gsi: u32, patience: Duration) -> Option<Vec<Standing>> {
        let config = self.config.try_lock_for(patience)?;
        let standing = |source: &Source| match source.place {
            Place::Watched(_) => Standing::Watched,
            Place::Kernel => Standing::Kernel,
            Place::Parked => Standing::Parked,
            Place::Adrift => Standing::Adrift,
        };
        let of_gsi = |source: &&Source| source.held_by.or_else(|| source.aim.gsi()) == Some(gsi);
        Some(config.sources.values().filter(of_gsi).map(standing).collect())
    }

    /// All GSIs that are held.
    pub(super) fn held(&self) -> Vec<u32> {
        self.config.lock().held.keys().copied().collect()
    }

    fn kernel_takes(&self, routes: &[Route]) -> bool {
        self.kernel_pins || routes.iter().all(|route| matches!(route, Route::Msi(_)))
    }

    fn let_go_if_empty(&self, config: &mut Config, gsi: u32) {
        if config.held.get(&gsi).is_some_and(|held| held.sources.is_empty()) {
            self.held.withdraw(gsi);
            if let Some(held) = config.held.remove(&gsi) {
                config.gsis.give_back(held.kernel);
            }
        }
    }
}

fn duplicate(fd: BorrowedFd<'_>, what: &'static str) -> Result<OwnedFd, Error> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|source| Error::Descriptor { what, source: source.into() })
}

impl Config {
    fn add(&mut self, source: Source) -> u64 {
        let id = self.next;
        self.next += 1;
        self.sources.insert(id, source);
        id
    }

    fn hold(&mut self, gsi: u32, id: u64) {
        if let (Some(held), Some(source)) = (self.held.get_mut(&gsi), self.sources.get_mut(&id)) {
            held.sources.push(id);
            source.held_by = Some(gsi);
        }
    }
}

/// The places, with nobody else changing them.
pub(super) struct Locked<'a> {
    irqfds: &'a Irqfds,
    config: MutexGuard<'a, Config>,
}

impl Locked<'_> {
    /// Fires what parked sources of `gsi` have in their counters: behind the mask it becomes the pending bit.
    pub(super) fn remember(&mut self, gsi: u32) {
        let Some(held) = self.config.held.get(&gsi) else { return };
        for id in &held.sources {
            let Some(source) = self.config.sources.get(id) else { continue };
            // A level source's counter is replayed by the kernel itself.
            let parked = matches!(source.place, Place::Parked) && source.resample.is_none();
            if parked && take_counter(&source.lazy.fd) != 0 {
                source.lazy.target.signal();
            }
        }
    }

    /// Whether `gsi` is held for the loan `tag`.
    pub(super) fn is_held_for(&self, gsi: u32, tag: u32) -> bool {
        self.config.held.get(&gsi).is_some_and(|held| held.tag == tag)
    }

    /// Takes every source of `gsi` from the kernel; their events stay in their counters.
    pub(super) fn park(&mut self, gsi: u32) {
        let config = &mut *self.config;
        let Some(held) = config.held.get(&gsi) else { return };
        for id in &held.sources {
            let Some(source) = config.sources.get_mut(id) else { continue };
            if matches!(source.place, Place::Kernel) {
                self.irqfds.deassign(source, held.kernel);
                source.place = Place::Parked;
            }
        }
    }

    /// Makes the places of these GSIs' sources agree with the table, with at most one routing call.
    pub(super) fn settle(&mut self, gsis: &[u32]) {
        let irqfds = self.irqfds;
        let mut changes = Vec::new();
        let config = &mut *self.config;
        for gsi in gsis {
            let Some(held) = config.held.get_mut(gsi) else { continue };
            let sources = &config.sources;
            // What waits behind a mask goes to the dispatcher instead: a new route for it is not worth a call yet.
            let needed = held.sources.iter().any(|id| {
                sources.get(id).is_some_and(|source| matches!(source.place, Place::Kernel) || source.resample.is_some())
            });
            let level = held.sources.iter().any(|id| sources.get(id).is_some_and(|source| source.resample.is_some()));
            let routes = match irqfds.table.open_routes(*gsi, held.tag) {
                OpenRoutes::Open(routes) if irqfds.kernel_takes(&routes) => routes,
                // A level source stays in the kernel without a route, and its events are swallowed (F7).
                OpenRoutes::Gone if level => GsiRoutes::new(),
                _ => continue,
            };
            if needed && held.routes != routes {
                changes.push((held.kernel, routes.clone()));
                held.routes = routes;
            }
        }
        if let Err(error) = irqfds.routes.commit(&changes) {
            tracing::warn!(%error, "the kernel refused new routes; their sources go back to the dispatcher");
            for held in config.held.values_mut().filter(|held| changes.iter().any(|(gsi, _)| *gsi == held.kernel)) {
                held.routes = GsiRoutes::new();
            }
        }
        gsis.iter().for_each(|gsi| self.place(*gsi));
    }

    fn place(&mut self, gsi: u32) {
        let irqfds = self.irqfds;
        let Some(held) = self.config.held.get(&gsi) else { return };
        match irqfds.table.open_routes(gsi, held.tag) {
            OpenRoutes::Masked => self.park(gsi),
            OpenRoutes::Open(routes) if routes == held.routes => self.resume(gsi),
            OpenRoutes::Gone if held.tag == 0 && held.routes.is_empty() => self.resume(gsi),
            _ => self.dismiss(gsi),
        }
        irqfds.let_go_if_empty(&mut self.config, gsi);
    }

    /// Gives the parked sources of `gsi` back to the kernel.
    fn resume(&mut self, gsi: u32) {
        let config = &mut *self.config;
        let Some(held) = config.held.get(&gsi) else { return };
        for id in held.sources.clone() {
            let parked = config.sources.get(&id).is_some_and(|source| matches!(source.place, Place::Parked));
            if !parked {
                continue;
            }
            if let Err(error) = self.irqfds.attach(config, id) {
                tracing::warn!(%error, gsi, "the kernel did not take an irqfd back");
                self.irqfds.send_back(config, id, gsi);
                continue;
            }
            if let Some(resample) = config.sources.get(&id).and_then(|source| source.resample.as_ref()) {
                // Its line fell when it was masked (R4). The device is asked whether it still wants it up (R6).
                let _ = rustix::io::write(resample, &1u64.to_ne_bytes());
            }
        }
    }

    /// Sends the sources of `gsi` back to the dispatcher; level sources stay where they are.
    pub(super) fn dismiss(&mut self, gsi: u32) {
        self.park(gsi);
        let config = &mut *self.config;
        let Some(held) = config.held.get_mut(&gsi) else { return };
        let sources = &mut config.sources;
        held.sources.retain(|id| {
            let Some(source) = sources.get_mut(id) else { return false };
            if source.resample.is_some() {
                return true;
            }
            self.irqfds.watch_again(source);
            false
        });
        self.irqfds.let_go_if_empty(config, gsi);
    }
}
