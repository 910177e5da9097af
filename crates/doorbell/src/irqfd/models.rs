//! loom models of bindings and resampling: a fake eventfd whose wake-up is a plain call.
//!
//! Run by `cargo xtask test`, or `RUSTFLAGS="--cfg loom" cargo test -p doorbell --lib --release irqfd::models`.

use std::sync::Arc;

use loom::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use super::{
    resample::{Line, Notify, ResampleLine},
    slots::{BindingSlot, Token},
};
use crate::Delivery;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// An eventfd and the one epoll instance that may watch it, edge-triggered.
#[derive(Default)]
struct Fake(Mutex<FakeState>);

#[derive(Default)]
struct FakeState {
    count: u64,
    watched: Option<Token>,
    ready: bool,
}

impl Fake {
    fn write(&self) {
        let mut state = self.0.lock().unwrap();
        state.count += 1;
        state.ready |= state.watched.is_some();
    }

    fn read(&self) {
        self.0.lock().unwrap().count = 0;
    }

    fn count(&self) -> u64 {
        self.0.lock().unwrap().count
    }

    fn add(&self, token: Token) {
        let mut state = self.0.lock().unwrap();
        state.watched = Some(token);
        state.ready = state.count > 0;
    }

    fn delete(&self) {
        let mut state = self.0.lock().unwrap();
        state.watched = None;
        state.ready = false;
    }

    /// What `epoll_wait` returns: it looks at the counter again, so a drained one is not reported.
    fn ready(&self) -> Option<Token> {
        let mut state = self.0.lock().unwrap();
        let ready = std::mem::take(&mut state.ready) && state.count > 0;
        state.watched.filter(|_| ready)
    }
}

/// Which order a dispatcher keeps.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    ReadThenDeliver,
    /// Wrong: what is written in between is read and not delivered.
    DeliverThenRead,
    /// As under `Drain::Lazy`.
    DeliverOnly,
}

struct World {
    slot: BindingSlot<u32>,
    eventfd: Fake,
    order: Order,
    /// Deliveries to binding 1 and to binding 2.
    delivered: [AtomicU32; 2],
    /// Whether binding 1 may still be delivered to.
    alive: AtomicBool,
}

impl World {
    fn new(order: Order) -> Arc<Self> {
        Arc::new(Self {
            slot: BindingSlot::new(),
            eventfd: Fake::default(),
            order,
            delivered: Default::default(),
            alive: AtomicBool::new(true),
        })
    }

    fn assign(&self, binding: u32) -> Token {
        let token = self.slot.occupy(0, binding);
        self.eventfd.add(token);
        token
    }

    fn deassign(&self, token: Token) -> Option<u32> {
        let binding = self.slot.vacate(token)??;
        self.eventfd.delete();
        Some(binding)
    }

    fn dispatch(&self) {
        if let Some(token) = self.eventfd.ready() {
            self.fire(token);
        }
    }

    fn fire(&self, token: Token) {
        self.slot.fire(token, |place| place.map(|binding| self.deliver(binding)));
    }

    /// Inside the latch.
    fn deliver(&self, binding: u32) {
        if self.order == Order::ReadThenDeliver {
            self.eventfd.read();
        }
        assert!(binding != 1 || self.alive.load(Ordering::SeqCst), "delivered to a binding that is gone");
        self.delivered[binding as usize - 1].fetch_add(1, Ordering::SeqCst);
        if self.order == Order::DeliverThenRead {
            self.eventfd.read();
        }
    }

    fn count(&self, binding: usize) -> u32 {
        self.delivered[binding - 1].load(Ordering::SeqCst)
    }
}

fn spawn(world: &Arc<World>, act: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || act(&world))
}

#[test]
fn h1_a_write_before_or_during_assign_is_one_event() {
    for order in [Order::ReadThenDeliver, Order::DeliverOnly] {
        check(5, move || {
            let world = World::new(order);
            let writer = spawn(&world, |world| world.eventfd.write());
            let dispatcher = spawn(&world, |world| world.dispatch());
            world.assign(1);
            writer.join().unwrap();
            dispatcher.join().unwrap();
            world.dispatch();
            assert_eq!(world.count(1), 1);
        });
    }
}

#[test]
#[should_panic(expected = "lost")]
fn h1_a_slot_that_is_occupied_after_epoll_knows_it_loses_the_event() {
    check(5, || {
        let world = World::new(Order::ReadThenDeliver);
        let first = world.slot.occupy(0, 2);
        world.slot.vacate(first);
        let next = world.slot.occupy(0, 2);
        world.slot.vacate(next);
        // The token that the third occupancy will have, told to epoll too early.
        let early = Token::from_bits(next.bits() + (next.bits() - first.bits()));
        let writer = spawn(&world, |world| {
            world.eventfd.write();
            world.dispatch();
        });
        world.eventfd.add(early);
        assert_eq!(world.slot.occupy(0, 1).bits(), early.bits());
        writer.join().unwrap();
        world.dispatch();
        assert_eq!(world.count(1), 1, "lost");
    });
}

#[test]
fn h2_after_deassign_nothing_is_delivered_and_nothing_taken() {
    for order in [Order::ReadThenDeliver, Order::DeliverOnly] {
        check(5, move || {
            let world = World::new(order);
            let token = world.assign(1);
            let writer = spawn(&world, |world| world.eventfd.write());
            let dispatcher = spawn(&world, |world| world.dispatch());
            assert_eq!(world.deassign(token), Some(1));
            world.alive.store(false, Ordering::SeqCst);
            let delivered = world.count(1);
            writer.join().unwrap();
            dispatcher.join().unwrap();
            world.dispatch();
            assert_eq!(world.count(1), delivered);
            assert!(delivered + world.eventfd.count() as u32 >= 1, "neither delivered nor left in the counter");
            world.eventfd.write();
            assert!(world.eventfd.count() >= 1 && world.eventfd.ready().is_none(), "the counter stays");
        });
    }
}

#[test]
fn h3_of_two_shutdowns_one_finds_the_binding() {
    check(5, || {
        let world = World::new(Order::ReadThenDeliver);
        let token = world.assign(1);
        let found = Arc::new(AtomicU32::new(0));
        let other = {
            let found = Arc::clone(&found);
            spawn(&world, move |world| {
                found.fetch_add(world.deassign(token).unwrap_or(0), Ordering::SeqCst);
            })
        };
        found.fetch_add(world.deassign(token).unwrap_or(0), Ordering::SeqCst);
        other.join().unwrap();
        assert_eq!(found.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn h7_an_event_of_a_removed_binding_does_not_reach_its_successor() {
    check(5, || {
        let world = World::new(Order::ReadThenDeliver);
        let token = world.assign(1);
        world.eventfd.write();
        let late = spawn(&world, |world| world.dispatch());
        world.deassign(token);
        world.alive.store(false, Ordering::SeqCst);
        world.eventfd.read();
        world.assign(2);
        late.join().unwrap();
        world.dispatch();
        assert_eq!(world.count(2), 0);
        world.eventfd.write();
        world.dispatch();
        assert_eq!(world.count(2), 1, "and takes nothing from it");
    });
}

#[test]
fn h8_an_event_meets_the_old_target_or_the_new_one_and_is_not_lost() {
    check(5, || {
        let world = World::new(Order::ReadThenDeliver);
        let token = world.assign(1);
        let dispatcher = spawn(&world, |world| {
            world.eventfd.write();
            world.dispatch();
        });
        world.slot.change(token, |binding| *binding = 2, |place| world.deliver(place.unwrap()));
        world.alive.store(false, Ordering::SeqCst);
        dispatcher.join().unwrap();
        assert_eq!(world.count(1) + world.count(2), 1);
    });
}

/// Every write is followed by a delivery that began after it.
fn last_write_is_delivered(order: Order) {
    check(5, move || {
        let world = World::new(order);
        let last = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        world.assign(1);
        let writer = {
            let last = Arc::clone(&last);
            spawn(&world, move |world| {
                for number in 1..=2 {
                    last.0.store(number, Ordering::SeqCst);
                    world.eventfd.write();
                }
            })
        };
        let dispatch = {
            let last = Arc::clone(&last);
            move |world: &World| {
                let Some(token) = world.eventfd.ready() else { return };
                world.slot.fire(token, |_| {
                    if world.order == Order::ReadThenDeliver {
                        world.eventfd.read();
                    }
                    last.1.fetch_max(last.0.load(Ordering::SeqCst), Ordering::SeqCst);
                    if world.order == Order::DeliverThenRead {
                        world.eventfd.read();
                    }
                });
            }
        };
        let dispatcher = {
            let dispatch = dispatch.clone();
            spawn(&world, move |world| dispatch(world))
        };
        writer.join().unwrap();
        dispatcher.join().unwrap();
        dispatch(&world);
        assert_eq!(last.1.load(Ordering::SeqCst), 2, "the last write was never seen");
    });
}

#[test]
fn f11_a_write_during_a_delivery_is_delivered_too() {
    last_write_is_delivered(Order::ReadThenDeliver);
    last_write_is_delivered(Order::DeliverOnly);
}

#[test]
#[should_panic(expected = "never seen")]
fn f11_a_counter_that_is_read_after_the_delivery_loses_a_write() {
    last_write_is_delivered(Order::DeliverThenRead);
}

/// A line that is looked at: its level, and how often it was lowered.
#[derive(Default)]
struct FakeLine(Arc<(AtomicBool, AtomicU32)>);

impl Line for FakeLine {
    fn set(&self, level: bool) -> Delivery {
        self.0.0.store(level, Ordering::SeqCst);
        self.0.1.fetch_add((!level).into(), Ordering::SeqCst);
        Delivery::Ignored
    }
}

/// A sharer: how often he was told, and a line that must have been lowered before.
#[derive(Clone)]
struct FakeSharer {
    told: Arc<AtomicU32>,
    line: Arc<(AtomicBool, AtomicU32)>,
}

impl Notify for FakeSharer {
    fn notify(&self) {
        assert!(self.line.1.load(Ordering::SeqCst) > 0, "told before the line was lowered");
        self.told.fetch_add(1, Ordering::SeqCst);
    }
}

struct Shared {
    resampler: ResampleLine<FakeLine, FakeSharer>,
    line: Arc<(AtomicBool, AtomicU32)>,
}

impl Shared {
    fn new() -> Arc<Self> {
        let line = FakeLine::default();
        Arc::new(Self { line: Arc::clone(&line.0), resampler: ResampleLine::new(line) })
    }

    fn sharer(&self) -> FakeSharer {
        FakeSharer { told: Arc::default(), line: Arc::clone(&self.line) }
    }

    fn is_high(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    fn lowered(&self) -> u32 {
        self.line.1.load(Ordering::SeqCst)
    }
}

impl FakeSharer {
    fn told(&self) -> u32 {
        self.told.load(Ordering::SeqCst)
    }
}

#[test]
fn h11_an_end_against_a_sharer_who_leaves_tells_the_other_and_never_the_gone() {
    check(5, || {
        let shared = Shared::new();
        let (stays, leaves) = (shared.sharer(), shared.sharer());
        shared.resampler.join(1, stays.clone());
        shared.resampler.join(2, leaves.clone());
        shared.resampler.raise();
        let guest = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.resampler.end())
        };
        assert!(!shared.resampler.leave(2));
        let told = leaves.told();
        guest.join().unwrap();
        assert_eq!(leaves.told(), told, "told after he had left");
        assert_eq!((stays.told(), shared.lowered(), shared.is_high()), (1, 1, false));
    });
}

#[test]
fn h11_an_end_against_the_last_sharer_leaves_the_line_low() {
    check(5, || {
        let shared = Shared::new();
        let last = shared.sharer();
        shared.resampler.join(1, last.clone());
        shared.resampler.raise();
        let guest = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.resampler.end())
        };
        assert!(shared.resampler.leave(1));
        assert!(!shared.is_high(), "lowered when the last one has left");
        let told = last.told();
        guest.join().unwrap();
        assert_eq!(last.told(), told);
        assert!(!shared.is_high() && !shared.resampler.is_raised());
    });
}

#[test]
fn h11_an_end_against_a_sharer_who_joins_tells_those_who_were_there() {
    check(5, || {
        let shared = Shared::new();
        let (first, second) = (shared.sharer(), shared.sharer());
        shared.resampler.join(1, first.clone());
        let guest = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.resampler.end())
        };
        shared.resampler.join(2, second.clone());
        guest.join().unwrap();
        assert_eq!((first.told(), shared.lowered()), (1, 1));
        assert!(second.told() <= 1);
    });
}

#[test]
fn h11_a_raise_against_an_end_is_high_or_its_sharer_is_told_after_it() {
    check(5, || {
        let shared = Shared::new();
        let device = shared.sharer();
        shared.resampler.join(1, device.clone());
        shared.resampler.raise();
        let guest = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.resampler.end())
        };
        let told = device.told();
        shared.resampler.raise();
        guest.join().unwrap();
        assert!(shared.is_high() || device.told() > told, "a condition that nobody remembers");
        assert_eq!(shared.is_high(), shared.resampler.is_raised(), "what is saved is what the line is");
    });
}
