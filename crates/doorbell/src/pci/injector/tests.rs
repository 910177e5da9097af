//! Leases: taken lazily, given back, reclaimed, and no event lost on the way.

use std::sync::Arc;

use super::{InjectorMask, InjectorOptions, VectorEvent, VectorPool};
use crate::{
    MsiMessage,
    pci::{
        MaskStrategy, WhileDisabled,
        fake_path::{FakePath, TestPath},
    },
};

type Pool = Arc<VectorPool<FakePath>>;

fn function(pool: &Pool, vectors: u16) -> InjectorMask<FakePath> {
    let mut function = InjectorMask::new(pool, vectors, InjectorOptions::default()).unwrap();
    function.set_enabled(true);
    function
}

fn message(vector: u16) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, vector.into())
}

fn unmask(function: &mut InjectorMask<FakePath>, vector: u16) {
    function.unmask(vector, &message(vector));
}

fn fire(function: &InjectorMask<FakePath>, vector: u16) -> VectorEvent {
    function.vector(vector).unwrap().fire()
}

fn sent(path: &FakePath) -> Vec<u32> {
    path.take_sent().iter().map(|message| message.data).collect()
}

#[test]
fn masked_device_of_2048_vectors_uses_no_gsi() {
    let path = FakePath::new(4096);
    let mut function = function(&VectorPool::new(path.clone()), 2048);
    for vector in 0..2048 {
        assert_eq!(fire(&function, vector), VectorEvent::Pending);
    }
    assert_eq!(path.lent(), 0);
    assert_eq!((0..32).map(|word| function.pending_word(word)).collect::<Vec<_>>(), [u64::MAX; 32]);
    unmask(&mut function, 77);
    assert_eq!((path.lent(), function.held(), sent(&path)), (1, 1, vec![77]));
}

#[test]
fn number_of_vectors_is_checked() {
    let pool = VectorPool::new(FakePath::new(1));
    for vectors in [0, 2049, u16::MAX] {
        assert!(InjectorMask::new(&pool, vectors, InjectorOptions::default()).is_err());
    }
    let mut function = function(&pool, 1);
    assert!(function.vector(1).is_none() && function.trigger(1).is_none());
    function.mask(1);
    function.unmask(1, &message(1));
    function.unmask_many(&[(u16::MAX, message(1))]);
    function.set_pending(1, true);
    assert!(!function.is_pending(1));
    assert_eq!((function.pending_word(0), function.pending_word(1), function.pending_word(u16::MAX)), (0, 0, 0));
}

#[test]
fn mask_cycle_keeps_the_gsi_and_commits_nothing() {
    let path = FakePath::new(4);
    let mut function = function(&VectorPool::new(path.clone()), 1);
    unmask(&mut function, 0);
    let commits = path.commits();
    for _ in 0..10 {
        function.mask(0);
        assert_eq!(fire(&function, 0), VectorEvent::Pending);
        unmask(&mut function, 0);
    }
    assert_eq!((path.commits(), path.lent(), sent(&path)), (commits, 1, vec![0; 10]));
}

#[test]
fn many_vectors_are_one_commit() {
    let path = FakePath::new(4096);
    let mut function = function(&VectorPool::new(path.clone()), 2048);
    fire(&function, 5);
    let batch: Vec<_> = (0..2048).map(|vector| (vector, message(vector))).collect();
    function.unmask_many(&batch);
    assert_eq!((path.commits(), path.lent(), sent(&path)), (1, 2048, vec![5]));
    function.unmask_many(&[(3, MsiMessage::new(0, 33)), (3, MsiMessage::new(0, 34))]);
    fire(&function, 3);
    assert_eq!(sent(&path), [34]);
}

#[test]
fn batch_that_names_a_masked_vector_twice_leaks_nothing() {
    let path = FakePath::new(4);
    let mut function = function(&VectorPool::new(path.clone()), 1);
    fire(&function, 0);
    function.unmask_many(&[(0, message(1)), (0, message(2))]);
    fire(&function, 0);
    assert_eq!((path.lent(), sent(&path)), (1, vec![1, 2]));
}

#[test]
fn disable_reset_and_drop_give_every_gsi_back() {
    let path = FakePath::new(8);
    let pool = VectorPool::new(path.clone());
    let mut function = function(&pool, 4);
    for end in [InjectorMask::reset as fn(&mut InjectorMask<FakePath>), |function| function.set_enabled(false)] {
        function.set_enabled(true);
        for vector in 0..4 {
            unmask(&mut function, vector);
        }
        assert_eq!(path.lent(), 4);
        end(&mut function);
        assert_eq!((path.lent(), function.held()), (0, 0));
    }
    function.set_enabled(true);
    unmask(&mut function, 0);
    let late = function.vector(0).unwrap();
    drop(function);
    assert_eq!((path.lent(), late.fire()), (0, VectorEvent::Pending));
}

#[test]
fn masked_vector_gives_its_gsi_to_another_of_the_device() {
    for path in [FakePath::new(1), FakePath::without_reclaim(1)] {
        let mut function = function(&VectorPool::new(path.clone()), 3);
        unmask(&mut function, 0);
        function.mask(0);
        fire(&function, 0);
        unmask(&mut function, 1);
        assert_eq!(fire(&function, 1), VectorEvent::Sent(crate::Delivery::Delivered(1)));
        assert!(function.is_pending(0), "the event moved from the GSI to the vector");
        function.mask(1);
        unmask(&mut function, 0);
        assert_eq!((sent(&path), function.counters().starved), (vec![1, 0], 0));
    }
}

#[test]
fn masked_vector_gives_its_gsi_to_another_device() {
    let path = FakePath::new(1);
    let pool = VectorPool::new(path.clone());
    let (mut first, mut second) = (function(&pool, 1), function(&pool, 1));
    unmask(&mut first, 0);
    first.mask(0);
    fire(&first, 0);
    second.unmask(0, &message(9));
    fire(&second, 0);
    assert!(first.is_pending(0) && first.held() == 0);
    second.set_enabled(false);
    unmask(&mut first, 0);
    assert_eq!((sent(&path), pool.starving()), (vec![9, 0], 0));
}

#[test]
fn starved_vector_keeps_its_event_until_a_gsi_is_given_back() {
    let path = FakePath::new(1);
    let pool = VectorPool::new(path.clone());
    let (mut first, mut second) = (function(&pool, 1), function(&pool, 2));
    unmask(&mut first, 0);
    second.unmask_many(&[(0, message(10)), (1, message(11))]);
    assert_eq!((pool.starving(), second.counters().starved), (2, 2));
    assert_eq!(fire(&second, 0), VectorEvent::Pending);
    assert_eq!(fire(&second, 1), VectorEvent::Pending);
    assert_eq!(second.pending_word(0), 0b11);
    first.mask(0);
    assert_eq!((pool.starving(), sent(&path)), (1, vec![10]), "the mask gave the GSI to the one that waited");
    assert_eq!(fire(&second, 0), VectorEvent::Sent(crate::Delivery::Delivered(1)));
    second.mask(0);
    assert_eq!((pool.starving(), sent(&path)), (0, vec![10, 11]));
    unmask(&mut first, 0);
    assert_eq!((pool.starving(), first.counters().starved), (1, 1));
    drop(second);
    assert_eq!((pool.starving(), fire(&first, 0)), (0, VectorEvent::Sent(crate::Delivery::Delivered(1))));
}

#[test]
fn starved_vector_that_is_masked_or_changed_is_not_fed_by_the_old_message() {
    let path = FakePath::without_reclaim(1);
    let pool = VectorPool::new(path.clone());
    let (mut first, mut second) = (function(&pool, 1), function(&pool, 2));
    unmask(&mut first, 0);
    unmask(&mut second, 0);
    unmask(&mut second, 1);
    fire(&second, 0);
    fire(&second, 1);
    second.mask(0);
    second.unmask(1, &message(12));
    assert_eq!(pool.starving(), 1);
    first.reset();
    assert_eq!((pool.starving(), sent(&path), second.pending_word(0)), (0, vec![12], 0b01));
    second.set_enabled(false);
    assert_eq!((path.lent(), second.pending_word(0)), (0, 0b01));
}

#[test]
fn refused_message_keeps_the_event_and_the_old_message_is_gone() {
    let path = FakePath::new(4);
    let mut function = function(&VectorPool::new(path.clone()), 2);
    unmask(&mut function, 0);
    let bad = MsiMessage::new(0xbad0, 0);
    path.refuse(Some(bad.address));
    function.unmask(0, &bad);
    function.unmask_many(&[(1, bad)]);
    assert_eq!((fire(&function, 0), fire(&function, 1)), (VectorEvent::Pending, VectorEvent::Pending));
    assert_eq!((path.lent(), function.counters().refused), (0, 2));
    function.mask(1);
    path.refuse(None);
    function.unmask(0, &message(5));
    function.unmask(1, &message(6));
    assert_eq!(sent(&path), [5, 6]);
}

#[test]
fn trigger_follows_its_vector_from_gsi_to_gsi() {
    let path = FakePath::new(2);
    let mut function = function(&VectorPool::new(path.clone()), 2);
    let mut trigger = function.trigger(1).unwrap();
    assert_eq!(trigger.fire(), VectorEvent::Pending);
    for _ in 0..3 {
        unmask(&mut function, 1);
        assert!(matches!(trigger.fire(), VectorEvent::Sent(_)));
        function.set_enabled(false);
        assert_eq!(trigger.fire(), VectorEvent::Pending);
        function.set_enabled(true);
        unmask(&mut function, 0);
    }
    unmask(&mut function, 1);
    assert_eq!(sent(&path), [1; 7]);
}

#[test]
fn dropped_events_are_counted() {
    let path = FakePath::new(1);
    let options = InjectorOptions { while_disabled: WhileDisabled::Drop };
    let mut function = InjectorMask::new(&VectorPool::new(path.clone()), 1, options).unwrap();
    assert_eq!(fire(&function, 0), VectorEvent::Dropped);
    function.set_enabled(true);
    assert_eq!(fire(&function, 0), VectorEvent::Pending);
    function.set_enabled(false);
    assert_eq!((fire(&function, 0), function.counters().dropped), (VectorEvent::Dropped, 2));
    assert!(function.is_pending(0), "what came before stays (M9)");
}
