//! loom models: an event against everything that gives a vector its GSI or takes it away.
//!
//! Each runs the whole strategy over a path whose calls are atomic; the path's own protocol has models beside it.

use std::sync::Arc;

use loom::thread;

use super::{InjectorMask, InjectorOptions, VectorEvent, VectorPool, cell::Holding};
use crate::{
    MsiMessage,
    pci::{
        MaskStrategy,
        fake_path::{FakePath, TestPath},
    },
};

type Function = InjectorMask<FakePath>;

const MESSAGE: MsiMessage = MsiMessage::new(0xfee0_0000, 1);

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn enabled(path: &Arc<FakePath>) -> Function {
    let mut function = InjectorMask::new(&VectorPool::new(path.clone()), 1, InjectorOptions::default()).unwrap();
    function.set_enabled(true);
    function
}

/// One event in another thread; says whether it was sent at once.
fn event(function: &Function) -> thread::JoinHandle<bool> {
    let vector = function.vector(0).unwrap();
    thread::spawn(move || matches!(vector.fire(), VectorEvent::Sent(_)))
}

/// H16: an early event is pending or meets the GSI that is open; in the end it was sent once.
#[test]
fn h16_event_against_the_first_unmask() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        let event = event(&function);
        function.unmask(0, &MESSAGE);
        event.join().unwrap();
        assert_eq!(path.take_sent(), [MESSAGE]);
    });
}

#[test]
fn h16_two_events_against_the_first_unmask() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        let events = [event(&function), event(&function)];
        function.unmask(0, &MESSAGE);
        let direct = events.map(|event| event.join().unwrap()).iter().filter(|sent| **sent).count();
        let sent = path.take_sent().len();
        assert!((1..=2).contains(&sent) && sent >= direct, "{sent} sent, {direct} of them directly");
    });
}

/// H14: nothing is sent strictly inside the masked interval, and nothing is lost.
#[test]
fn h14_event_against_mask_and_unmask() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        function.unmask(0, &MESSAGE);
        let event = event(&function);
        function.mask(0);
        let before = path.take_sent().len();
        let inside = path.take_sent().len();
        function.unmask(0, &MESSAGE);
        event.join().unwrap();
        assert_eq!((inside, before + path.take_sent().len()), (0, 1));
    });
}

#[test]
fn h14_event_against_disable_and_enable() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        function.unmask(0, &MESSAGE);
        let event = event(&function);
        function.set_enabled(false);
        let before = path.take_sent().len();
        function.set_enabled(true);
        function.unmask(0, &MESSAGE);
        event.join().unwrap();
        assert_eq!(before + path.take_sent().len(), 1);
        assert!(!function.is_pending(0));
    });
}

/// A second device takes the only GSI while the first one is masked, has an event and is unmasked; then it goes away.
#[test]
fn h14_event_and_unmask_against_a_reclaim() {
    explore(|| {
        let path = FakePath::new(1);
        let pool = VectorPool::new(path.clone());
        let new = || {
            let mut function = InjectorMask::new(&pool, 1, InjectorOptions::default()).unwrap();
            function.set_enabled(true);
            function
        };
        let (mut first, mut second) = (new(), new());
        first.unmask(0, &MESSAGE);
        first.mask(0);
        let event = event(&first);
        let other = thread::spawn(move || {
            second.unmask(0, &MsiMessage::new(0, 2));
            drop(second);
        });
        first.unmask(0, &MESSAGE);
        event.join().unwrap();
        other.join().unwrap();
        assert_eq!((path.take_sent(), pool.starving(), path.lent()), (vec![MESSAGE], 0, 1));
    });
}

/// The owner gives a GSI back at the same time as another device reclaims it: what was pending there stays pending.
#[test]
fn pending_event_survives_release_against_reclaim() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        function.unmask(0, &MESSAGE);
        function.mask(0);
        assert_eq!(function.vector(0).unwrap().fire(), VectorEvent::Pending);
        let vectors = function.vectors.clone();
        let reclaim = thread::spawn(move || vectors.reclaim(0));
        function.set_enabled(false);
        reclaim.join().unwrap();
        assert!(function.is_pending(0));
        assert_eq!(path.lent(), 0);
    });
}

/// The protocol without its compare-and-swap loses the GSI or the event: the models can see that.
#[test]
#[should_panic(expected = "lost")]
fn blind_store_is_seen_to_lose_events() {
    explore(|| {
        let path = FakePath::new(1);
        let mut function = enabled(&path);
        let vectors = function.vectors.clone();
        let event = thread::spawn(move || match vectors.cells[0].load() {
            Holding::Nothing { .. } => vectors.cells[0].pend_blindly(),
            Holding::Slot(_) => {
                vectors.fire(0);
            }
        });
        function.unmask(0, &MESSAGE);
        event.join().unwrap();
        assert_eq!(path.take_sent().len(), 1, "lost");
    });
}
