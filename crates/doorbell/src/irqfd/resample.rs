//! Level lines that are raised by an eventfd and lowered by the guest's end of interrupt.
//!
//! All resample bindings of one GSI share one [`Resampler`] and one source of the line, [`LineSource::RESAMPLE`] (R3):
//!
//! ```text
//!  event ──► line up ──► … guest … ──► end of interrupt ──► line down ──► every sharer's resamplefd ──► look again
//! ```
//!
//! A device whose condition still holds must signal again when its resamplefd is; nobody remembers it for the device.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    Dispatcher, Irqfd,
    cell::LatchCell,
    eventfd::Eventfd,
    target::{Destination, RoutedGsi},
};
use crate::{
    Delivery, Error, LineSource, PinInput, Pins,
    delivery::ChipId,
    inflight::Fired,
    route::{Pin, RouteTable},
};

/// The line that a resampler drives. Apart from the models, this is a GSI of a [`RouteTable`].
pub(super) trait Line: Send + Sync {
    fn set(&self, level: bool) -> Delivery;
}

/// What an end of interrupt tells a sharer.
pub(super) trait Notify: Send {
    fn notify(&self);
}

impl Notify for Eventfd {
    fn notify(&self) {
        self.signal();
    }
}

/// The resample source of one GSI's line, on the table.
struct GsiLine {
    table: Arc<RouteTable>,
    gsi: u32,
}

impl Line for GsiLine {
    fn set(&self, level: bool) -> Delivery {
        self.table.routed_line(self.gsi, LineSource::RESAMPLE, level)
    }
}

/// One line and those who share it: what happens on an event, on an end, and when a sharer comes or goes.
///
/// Lock order of both latches: right of the list of the resamplers and of the latch of the binding whose event raises
/// the line, left of the GSI.
pub(super) struct ResampleLine<L, N> {
    line: L,
    /// Whether the resample source is up. Its latch makes the value and the line change together.
    raised: LatchCell<bool>,
    /// Who is told of an end. Its latch is held while they are, so that one who has left is told no more.
    sharers: LatchCell<SmallVec<[(u64, N); 2]>>,
}

impl<L: Line, N: Notify> ResampleLine<L, N> {
    pub(super) fn new(line: L) -> Self {
        Self { line, raised: LatchCell::new(0, false), sharers: LatchCell::new(0, SmallVec::new()) }
    }

    /// An event of a sharer (R1).
    pub(super) fn raise(&self) -> Delivery {
        self.set(true)
    }

    fn set(&self, level: bool) -> Delivery {
        let change = |_: u64, raised: &mut bool| {
            *raised = level;
            self.line.set(level)
        };
        match self.raised.fire(change) {
            Fired::Ran(delivery) => delivery,
            Fired::Pending { .. } | Fired::HandedOver => unreachable!("this latch is neither masked nor configured"),
        }
    }

    /// The guest ended the interrupt: the line down, once, and then everybody told (R2).
    pub(super) fn end(&self) {
        self.set(false);
        self.notify();
    }

    /// Tells everybody; a sharer who comes or goes meanwhile tells the rest when he is done. Says whether there is
    /// anybody to tell.
    pub(super) fn notify(&self) -> bool {
        self.notify_after(|| ())
    }

    /// [`notify`](Self::notify) with `first` done before that, if there is anybody.
    pub(super) fn notify_after(&self, first: impl FnOnce()) -> bool {
        let mut first = Some(first);
        let fired = self.sharers.fire(|_, sharers| {
            if !sharers.is_empty() {
                first.take().into_iter().for_each(|first| first());
            }
            tell(sharers)
        });
        match fired {
            Fired::Ran(told) => told,
            Fired::Pending { .. } | Fired::HandedOver => {
                first.take().into_iter().for_each(|first| first());
                true
            }
        }
    }

    pub(super) fn join(&self, key: u64, sharer: N) {
        self.sharers.configure(|_, sharers| sharers.push((key, sharer)), |_, sharers| tell(sharers));
    }

    /// Takes a sharer out: afterwards he is told no more (R5). Whether he was the last one; the line is then lowered
    /// (R4). Not to be called at the same time as [`join`](Self::join).
    pub(super) fn leave(&self, key: u64) -> bool {
        // First out of the list, and nobody inside it; then the line: an end at the same time lowers it before it
        // tells those who are left, and none of them is misled (H11).
        let (gone, last) = self.sharers.configure(
            |_, sharers| {
                let at = sharers.iter().position(|(other, _)| *other == key);
                (at.map(|at| sharers.remove(at)), sharers.is_empty())
            },
            |_, sharers| tell(sharers),
        );
        drop(gone);
        if last {
            self.set(false);
        }
        last
    }

    pub(super) fn is_raised(&self) -> bool {
        match self.raised.fire(|_, raised| *raised) {
            Fired::Ran(raised) => raised,
            Fired::Pending { .. } | Fired::HandedOver => unreachable!("this latch is neither masked nor configured"),
        }
    }
}

fn tell<N: Notify>(sharers: &mut SmallVec<[(u64, N); 2]>) -> bool {
    sharers.iter().for_each(|(_, sharer)| sharer.notify());
    !sharers.is_empty()
}

/// The resampler of one GSI.
pub(super) struct Resampler {
    gsi: u32,
    shared: ResampleLine<GsiLine, Eventfd>,
}

impl Resampler {
    #[inline]
    pub(super) fn raise(&self) -> Delivery {
        self.shared.raise()
    }
}

/// One resampler and how many share it.
struct Entry {
    resampler: Arc<Resampler>,
    sharers: usize,
}

struct Shared {
    table: Arc<RouteTable>,
    /// Lock order: right of the latches of bindings (a target may drop irqfds), left of the resamplers' own. Held while
    /// sharers come and go, and for a look-up at an end.
    by_gsi: Mutex<Config>,
    /// How many GSIs have a resampler. Relaxed: an end that misses one that is being made came before it.
    count: AtomicU32,
}

#[derive(Default)]
struct Config {
    entries: BTreeMap<u32, Entry>,
    next_key: u64,
}

impl Config {
    fn check(&self, state: &ResamplersState) -> Result<(), Error> {
        let ResamplersState { raised } = state;
        if let Some(pair) = raised.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::Snapshot(format!("resampled GSI {} stands before {}", pair[0], pair[1])));
        }
        if let Some(gsi) = raised.iter().find(|gsi| !self.entries.contains_key(gsi)) {
            return Err(Error::Snapshot(format!("GSI {gsi} was raised by an irqfd, but no such irqfd is bound")));
        }
        Ok(())
    }
}

/// All resamplers of one table.
#[derive(Clone)]
pub struct Resamplers {
    shared: Arc<Shared>,
}

impl Resamplers {
    /// No resamplers yet, for lines of this table.
    pub fn new(table: Arc<RouteTable>) -> Self {
        Self { shared: Arc::new(Shared { table, by_gsi: Mutex::default(), count: AtomicU32::new(0) }) }
    }

    /// Binds an eventfd that raises a GSI's line until the guest ends the interrupt, and `resamplefd`, to which 1 is
    /// then written (`KVM_IRQFD_FLAG_RESAMPLE`).
    ///
    /// The last of a GSI's sharers to be dropped lowers the line (R4); no resamplefd is signalled by that (R5). A
    /// binding to a message is accepted, and never resamples (R7).
    ///
    /// An end is written to `resamplefd` by the thread that reports it, which should not be made to wait: hand in
    /// non-blocking descriptors if you do not trust those who hold their other ends.
    ///
    /// # Errors
    /// As [`Dispatcher::attach`], for either descriptor.
    pub fn attach(
        &self,
        dispatcher: &Dispatcher,
        gsi: &RoutedGsi,
        fd: impl AsFd,
        resamplefd: impl AsFd,
    ) -> Result<Irqfd, Error> {
        self.attach_unrouted(dispatcher, gsi.gsi(), fd, resamplefd)
    }

    /// The same for a GSI that need not have a route, as `KVM_IRQFD` allows (F7).
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_unrouted(
        &self,
        dispatcher: &Dispatcher,
        gsi: u32,
        fd: impl AsFd,
        resamplefd: impl AsFd,
    ) -> Result<Irqfd, Error> {
        let resamplefd = dispatcher.adopt(resamplefd.as_fd(), "the resample descriptor")?;
        let sharing = self.join(gsi, resamplefd);
        let destination = Destination::Resample(Arc::clone(&sharing.resampler));
        dispatcher.bind(fd.as_fd(), destination, Some(sharing))
    }

    fn join(&self, gsi: u32, resamplefd: Eventfd) -> Sharing {
        let mut config = self.shared.by_gsi.lock();
        let key = config.next_key;
        config.next_key += 1;
        let entry = config.entries.entry(gsi).or_insert_with(|| {
            self.shared.count.fetch_add(1, Ordering::Relaxed);
            let line = GsiLine { table: Arc::clone(&self.shared.table), gsi };
            Entry { resampler: Arc::new(Resampler { gsi, shared: ResampleLine::new(line) }), sharers: 0 }
        });
        entry.sharers += 1;
        let resampler = Arc::clone(&entry.resampler);
        resampler.shared.join(key, resamplefd);
        Sharing { resamplers: self.clone(), resampler, key }
    }

    /// The guest ended the interrupts of these pins: each one's line is lowered, once, and then every sharer is told
    /// (R2). Pins without a resampler are left alone. Let the chip look at the pins again afterwards
    /// ([`PinInput::reevaluate`]).
    pub fn ended(&self, chip: ChipId, pins: &Pins) {
        for &pin in pins {
            if let Some(resampler) = self.of_pin(Pin { chip, pin }) {
                resampler.shared.end();
            }
        }
    }

    /// A level pin was unmasked while its latch was set and it was idle (R6): the level may be stale, as the device was
    /// told of the end while the pin was masked. Tells every sharer; false if the pin has none, whose level must then be
    /// delivered.
    pub fn notify(&self, pin: Pin) -> bool {
        self.notify_after(pin, || ())
    }

    /// The same, but with `first` done before anybody is told, if there is anybody: what forgets the stale latch
    /// (`IoApic::withdraw`) must come before the line that a sharer raises again.
    pub fn notify_after(&self, pin: Pin, first: impl FnOnce()) -> bool {
        self.of_pin(pin).is_some_and(|resampler| resampler.shared.notify_after(first))
    }

    /// The guest unmasked these pins of `input` with their latch set (R6): the sharers of a pin are asked whether they still
    /// want the line, its latch forgotten first; a pin without sharers is sent as it is.
    pub fn unmasked(&self, input: &dyn PinInput, chip: ChipId, pins: &Pins) {
        for &pin in pins {
            let one = Pins::from_slice(&[pin]);
            if !self.notify_after(Pin { chip, pin }, || input.withdraw(chip, &one)) {
                input.reevaluate(chip, &one);
            }
        }
    }

    /// Whether a pin has a sharer to be told.
    pub fn covers(&self, pin: Pin) -> bool {
        self.of_pin(pin).is_some()
    }

    fn of_pin(&self, pin: Pin) -> Option<Arc<Resampler>> {
        if self.shared.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let gsi = self.shared.table.gsi_of_pin(pin)?;
        Some(Arc::clone(&self.shared.by_gsi.lock().entries.get(&gsi)?.resampler))
    }

    /// Lowers the line of a GSI with one sharer, who is dead; of several, another one may be holding it up.
    pub(super) fn lower_unshared(&self, gsi: u32) -> bool {
        let config = self.shared.by_gsi.lock();
        match config.entries.get(&gsi) {
            Some(Entry { resampler, sharers: 1 }) => {
                resampler.shared.set(false);
                true
            }
            _ => false,
        }
    }

    /// Which GSIs have their resample source up.
    pub fn save(&self) -> ResamplersState {
        let Shared { table: _, by_gsi, count: _ } = &*self.shared;
        let Config { entries, next_key: _ } = &*by_gsi.lock();
        let raised = entries.iter().filter(|(_, entry)| entry.resampler.shared.is_raised());
        ResamplersState { raised: raised.map(|(&gsi, _)| gsi).collect() }
    }

    /// Whether [`restore`](Self::restore) would take this state.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, state: &ResamplersState) -> Result<(), Error> {
        self.shared.by_gsi.lock().check(state)
    }

    /// Raises the lines again that were up. The bindings come first: whoever restores has to hand in descriptors.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the GSIs are not in ascending order or one has no resampler; nothing is raised then.
    pub fn restore(&self, state: &ResamplersState) -> Result<(), Error> {
        let config = self.shared.by_gsi.lock();
        config.check(state)?;
        let ResamplersState { raised } = state;
        for gsi in raised {
            if let Some(entry) = config.entries.get(gsi) {
                entry.resampler.raise();
            }
        }
        Ok(())
    }
}

/// What is saved of the resamplers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ResamplersState {
    /// The GSIs whose resample source is up, in ascending order.
    pub raised: Vec<u32>,
}

/// The part of one binding in the resampler of its GSI; leaves on drop.
pub(super) struct Sharing {
    resamplers: Resamplers,
    resampler: Arc<Resampler>,
    key: u64,
}

impl Sharing {
    pub(super) fn gsi(&self) -> u32 {
        self.resampler.gsi
    }

    pub(super) fn resamplers(&self) -> &Resamplers {
        &self.resamplers
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let Self { resamplers, resampler, key } = self;
        let mut config = resamplers.shared.by_gsi.lock();
        if resampler.shared.leave(*key) {
            config.entries.remove(&resampler.gsi);
            resamplers.shared.count.fetch_sub(1, Ordering::Relaxed);
        } else if let Some(entry) = config.entries.get_mut(&resampler.gsi) {
            entry.sharers -= 1;
        }
    }
}
