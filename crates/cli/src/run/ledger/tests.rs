//! What devices write and handlers read.

use super::*;

#[test]
fn an_interrupt_that_arrives_elsewhere_is_accounted_where_its_slot_is() {
    let ledger = ledger();
    assert_eq!(ledger.publish(SLOT), 1);
    let mut samples = Vec::new();
    let entry = ledger.enter_at(0, 0x41, SLOT, |index, number, waited| samples.push((index, number, waited.is_some())));
    assert_eq!((entry, samples), (Entry { fresh: 1, stray: false }, vec![(INDEX, 1, true)]));
    let again = ledger.enter_at(0, 0x41, SLOT, |_, _, _| panic!("nothing is new"));
    assert_eq!(again, Entry { fresh: 0, stray: false });
    let home = ledger.cpu(1);
    let word = |word: &AtomicU32| word.load(Ordering::Relaxed);
    assert_eq!((ledger.seen(SLOT), word(&home.count[INDEX]), word(&home.again[INDEX])), (1, 1, 1));
    assert_eq!((word(&home.taken), word(&ledger.cpu(0).taken), word(&ledger.cpu(0).last)), (0, 2, 0x41));
    assert!(!ledger.look(SLOT, 1), "it has been seen");
    ledger.publish(SLOT);
    assert!(ledger.look(SLOT, 2) && !ledger.look(SLOT, 2), "once");
    assert_eq!((ledger.seen(SLOT), word(&home.count[INDEX])), (2, 1), "no handler was entered");
    let below = Slot { vector: 0x1f, ..SLOT };
    assert!(ledger.enter_at(0, 0x1f, below, |_, _, _| ()).stray);
}

const SLOT: Slot = Slot { vcpu: 1, vector: 0x41 };
const INDEX: usize = 0x21;

fn ledger() -> Ledger {
    let (ledger, memory) = Ledger::create(2).unwrap();
    ledger.cpu(1).span[INDEX].store(1, Ordering::Relaxed);
    drop(ledger);
    Ledger::open(memory).unwrap()
}

fn enter(ledger: &Ledger, vector: u8) -> (Entry, Vec<(usize, u32, bool)>) {
    let mut samples = Vec::new();
    let entry = ledger.enter(1, vector, |index, number, age| samples.push((index, number, age.is_some())));
    ledger.leave(1);
    (entry, samples)
}

#[test]
fn a_published_number_is_seen_once() {
    let ledger = ledger();
    assert_eq!(ledger.publish(SLOT), 1);
    ledger.sent(SLOT, 1);
    assert_eq!(enter(&ledger, 0x41), (Entry { fresh: 1, stray: false }, vec![(INDEX, 1, true)]));
    assert_eq!(enter(&ledger, 0x41), (Entry::default(), vec![]));
    let page = ledger.cpu(1);
    assert_eq!(ledger.seen(SLOT), 1);
    assert_eq!(page.count[INDEX].load(Ordering::Relaxed), 1);
    assert_eq!(page.again[INDEX].load(Ordering::Relaxed), 1);
    assert_eq!((page.taken.load(Ordering::Relaxed), page.ended.load(Ordering::Relaxed)), (2, 2));
    assert_eq!(ledger.signals(1).sent[INDEX].load(Ordering::Relaxed), 1);
}

#[test]
fn one_entry_sees_the_last_of_many_numbers() {
    let ledger = ledger();
    for _ in 0..5 {
        ledger.publish(SLOT);
    }
    assert_eq!(enter(&ledger, 0x41).1, [(INDEX, 5, true)]);
    assert_eq!(ledger.cpu(1).count[INDEX].load(Ordering::Relaxed), 1);
}

#[test]
fn an_age_is_not_told_once_its_stamp_may_be_overwritten() {
    let ledger = ledger();
    for _ in 0..STAMPS {
        ledger.publish(SLOT);
    }
    assert_eq!(enter(&ledger, 0x41).1, [(INDEX, STAMPS as u32, false)]);
}

#[test]
fn a_vector_that_nobody_uses_is_stray() {
    let ledger = ledger();
    for vector in [0x42, 0x10, 0xff] {
        assert!(enter(&ledger, vector).0.stray, "vector {vector:#x}");
    }
    assert_eq!(ledger.cpu(1).stray.load(Ordering::Relaxed), 3);
}

#[test]
fn the_handler_of_a_shared_line_looks_at_every_sharer() {
    let ledger = ledger();
    ledger.cpu(1).span[INDEX].store(2 | SPAN_LEVEL, Ordering::Relaxed);
    let second = Slot { vector: 0x42, ..SLOT };
    ledger.publish(second);
    assert_eq!(enter(&ledger, 0x41).1, [(INDEX + 1, 1, true)]);
    ledger.publish(SLOT);
    ledger.publish(second);
    assert_eq!(enter(&ledger, 0x41).0.fresh, 2);
    assert_eq!((ledger.seen(SLOT), ledger.seen(second)), (1, 2));
}

#[test]
fn a_shared_line_is_looked_at_wherever_it_arrives() {
    let ledger = ledger();
    ledger.cpu(1).span[INDEX].store(2 | SPAN_LEVEL, Ordering::Relaxed);
    ledger.publish(Slot { vector: 0x42, ..SLOT });
    let mut samples = Vec::new();
    let entry = ledger.enter_at(0, 48, SLOT, |index, number, _| samples.push((index, number)));
    assert_eq!((entry.fresh, samples), (1, vec![(INDEX + 1, 1)]));
    assert_eq!(ledger.cpu(0).last.load(Ordering::Relaxed), 48);
}

#[test]
fn only_a_ledger_is_opened_as_one() {
    let memory = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 3 * PAGE as u64).unwrap();
    assert_eq!(Ledger::open(memory).unwrap_err().kind(), io::ErrorKind::InvalidData);
    let memory = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, Ledger::length(2) as u64).unwrap();
    assert_eq!(Ledger::open(memory).unwrap_err().kind(), io::ErrorKind::InvalidData, "the magic is missing");
}
