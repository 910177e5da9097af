//! The rows of irqfd.md and its hazards, on real eventfds.

mod dispatching;
mod hazards;
mod producers;
mod programs;
mod resampling;
mod rows;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use super::*;
use crate::{
    Delivery, DeviceId, Error, LineSource, MsiMessage, MsiTarget, PinInput, Pins, Target,
    delivery::ChipId,
    route::{GsiRoutes, LineCalls, NoPins, Pin, Route, RoutePolicy, RouteTable, RouteUpdate},
};

const IOAPIC: ChipId = 2;

fn eventfd() -> OwnedFd {
    // Blocking, as most producers hand them in.
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn write(fd: impl AsFd, value: u64) {
    assert_eq!(rustix::io::write(fd, &value.to_ne_bytes()), Ok(8));
}

/// The counter, without taking it.
fn counter(fd: impl AsFd) -> u64 {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// Takes the counter if it is not 0; a dispatcher may be faster.
fn take(fd: impl AsFd) -> u64 {
    let mut value = [0; 8];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    match rustix::io::preadv2(fd, &mut [std::io::IoSliceMut::new(&mut value)], u64::MAX, flags) {
        Ok(_) => u64::from_ne_bytes(value),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::AGAIN);
            0
        }
    }
}

fn dispatcher() -> Dispatcher {
    Dispatcher::new(DispatcherOptions::default()).unwrap()
}

fn lazy() -> Dispatcher {
    Dispatcher::new(DispatcherOptions { drain: Drain::Lazy, ..DispatcherOptions::default() }).unwrap()
}

/// Dispatches until nothing is left.
fn dispatch(dispatcher: &Dispatcher) {
    while dispatcher.dispatch().unwrap() != 0 {}
}

/// Counts the events it gets.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn target(&self) -> IrqfdTarget {
        let count = Arc::clone(&self.0);
        IrqfdTarget::Sink(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Delivery::Delivered(1)
        }))
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A controller that notes the data of what it gets. Resolves messages to address 0 only.
#[derive(Default)]
struct Notes(Mutex<Vec<MsiMessage>>);

impl Notes {
    fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.0.lock())
    }
}

impl MsiTarget for Notes {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.lock().push(*message);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if message.address == 0 { Target::new(message.data) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        self.0.lock().push(MsiMessage::new(0, target.bits()));
        Delivery::Delivered(1)
    }
}

fn message_table() -> (Arc<RouteTable>, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let table = RouteTable::new(Arc::clone(&notes) as Arc<dyn MsiTarget>, Arc::new(NoPins), RoutePolicy::S2_TABLE);
    (Arc::new(table), notes)
}

fn route(table: &RouteTable, gsi: u32, route: Route) {
    table.update(&[RouteUpdate::Set { gsi, routes: GsiRoutes::from_slice(&[route]) }]).unwrap();
}

/// Called with pin and level.
type Watch = Box<dyn FnMut(u16, bool) + Send>;

/// One chip whose pins are lines that are only looked at.
#[derive(Default)]
struct Lines {
    lines: Mutex<[crate::IrqLine; 24]>,
    /// What else a test wants to know when a line changes, before the change returns.
    watch: Mutex<Option<Watch>>,
}

impl Lines {
    fn sources(&self, pin: u16) -> u64 {
        self.lines.lock()[usize::from(pin)].bits()
    }

    fn watch(&self, watch: impl FnMut(u16, bool) + Send + 'static) {
        *self.watch.lock() = Some(Box::new(watch));
    }
}

impl PinInput for Lines {
    fn pins(&self, chip: ChipId) -> u16 {
        if chip == IOAPIC { 24 } else { 0 }
    }

    fn set(&self, _: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        let high = self.lines.lock()[usize::from(pin)].set(source, level);
        if let Some(watch) = &mut *self.watch.lock() {
            watch(pin, high);
        }
        if high { Delivery::Delivered(1) } else { Delivery::Ignored }
    }

    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

/// A table whose GSIs 0 to 23 are the pins of [`Lines`].
fn pin_table() -> (Arc<RouteTable>, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    let pins = Arc::clone(&lines) as Arc<dyn PinInput>;
    (Arc::new(RouteTable::new(Arc::new(Notes::default()), pins, RoutePolicy::KVM_X86)), lines)
}
