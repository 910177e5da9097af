//! The MSI capability as a guest drives it.

use std::sync::Arc;

use super::{MsiCapability, MsiOptions, MsiState};
use crate::{
    MsiMessage,
    pci::{
        InjectorMask, InjectorOptions, VectorEvent, VectorPool,
        fake_path::{FakePath, TestPath},
    },
};

type Capability = MsiCapability<InjectorMask<FakePath>>;

const ENABLE: u16 = 1;

fn function(vectors: u16, address_64: bool, per_vector_masking: bool) -> (Arc<FakePath>, Capability) {
    let path = FakePath::new(64);
    let strategy = InjectorMask::new(&VectorPool::new(path.clone()), vectors, InjectorOptions::default()).unwrap();
    (path, MsiCapability::new(strategy, MsiOptions { next: 0x50, address_64, per_vector_masking }).unwrap())
}

/// All features, 8 vectors, allotted and enabled, data 0x40 upwards.
fn running() -> (Arc<FakePath>, Capability) {
    let (path, mut msi) = function(8, true, true);
    msi.write(4, &0xfee0_1000_u64.to_le_bytes());
    msi.write(12, &0x47_u16.to_le_bytes());
    msi.write(2, &(ENABLE | 3 << 4).to_le_bytes());
    (path, msi)
}

fn read(msi: &Capability, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    msi.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn fire(msi: &Capability, vector: u16) -> VectorEvent {
    msi.strategy().vector(vector).unwrap().fire()
}

fn sent(path: &FakePath) -> Vec<u32> {
    path.take_sent().iter().map(|message| message.data).collect()
}

#[test]
fn vectors_replace_the_low_bits_of_the_data() {
    let (path, msi) = running();
    for vector in [0, 5, 7] {
        assert!(matches!(fire(&msi, vector), VectorEvent::Sent(_)));
    }
    let expected = [0x40, 0x45, 0x47].map(|data| MsiMessage::new(0xfee0_1000, data));
    assert_eq!(path.take_sent(), expected);
}

#[test]
fn fewer_allotted_vectors_change_data_and_keep_the_others_pending() {
    let (path, mut msi) = running();
    msi.write(2, &(ENABLE | 1 << 4).to_le_bytes());
    assert_eq!((msi.allotted(), path.lent()), (2, 8));
    fire(&msi, 1);
    assert_eq!(fire(&msi, 5), VectorEvent::Pending);
    assert_eq!((sent(&path), msi.pending()), (vec![0x47], 0), "bits of vectors that are not allotted are reserved");
    fire(&msi, 0);
    assert_eq!(sent(&path), [0x46]);
    msi.write(2, &(ENABLE | 3 << 4).to_le_bytes());
    assert_eq!(sent(&path), [0x45]);
}

#[test]
fn more_vectors_than_the_function_has_are_not_allotted() {
    let (_, mut msi) = function(4, true, true);
    msi.write(2, &(7_u16 << 4).to_le_bytes());
    assert_eq!((msi.control().enabled(), msi.allotted()), (2, 4));
    let (_, mut msi) = function(32, true, true);
    msi.write(2, &(7_u16 << 4).to_le_bytes());
    assert_eq!((msi.control().enabled(), msi.allotted()), (5, 32));
}

#[test]
fn number_of_vectors_is_checked() {
    let pool = VectorPool::new(FakePath::new(1));
    for vectors in [3, 5, 31, 33, 64, 2048] {
        let strategy = InjectorMask::new(&pool, vectors, InjectorOptions::default()).unwrap();
        assert!(MsiCapability::new(strategy, MsiOptions::default()).is_err());
    }
}

#[test]
fn masked_vector_is_pending_and_fires_once_on_unmask() {
    let (path, mut msi) = running();
    msi.write(16, &0b10_0001_u32.to_le_bytes());
    for _ in 0..3 {
        assert_eq!(fire(&msi, 5), VectorEvent::Pending);
    }
    assert_eq!((sent(&path), read(&msi, 20)), (vec![], 0b10_0000));
    msi.write(20, &[0; 4]);
    assert_eq!(read(&msi, 20), 0b10_0000, "the pending bits are read-only");
    msi.write(12, &0x80_u16.to_le_bytes());
    msi.write(16, &[0; 4]);
    assert_eq!((sent(&path), read(&msi, 20)), (vec![0x85], 0));
}

#[test]
fn disabled_function_keeps_events_and_holds_no_gsi() {
    let (path, mut msi) = running();
    msi.write(2, &[0; 2]);
    assert_eq!((fire(&msi, 0), path.lent()), (VectorEvent::Pending, 0));
    msi.write(2, &(ENABLE | 3 << 4).to_le_bytes());
    assert_eq!(sent(&path), [0x40]);
}

#[test]
fn message_changed_while_enabled_takes_effect() {
    let (path, mut msi) = running();
    msi.write(4, &0x1_0000_0000_u64.to_le_bytes());
    fire(&msi, 2);
    assert_eq!(path.take_sent(), [MsiMessage::new(0x1_0000_0000, 0x42)]);
}

#[test]
fn every_form_reads_as_its_layout() {
    for (address_64, masking, bytes) in [(false, false, 10), (true, false, 14), (false, true, 20), (true, true, 24)] {
        let (_, mut msi) = function(16, address_64, masking);
        msi.write(0, &[0xff; 32]);
        let mut all = [0xaa; 26];
        msi.read(0, &mut all);
        let control = 1 | 4 << 1 | 4 << 4 | u8::from(address_64) << 7;
        let mut expected = vec![0x05, 0x50, control, u8::from(masking), 0xfc, 0xff, 0xff, 0xff];
        if address_64 {
            expected.extend([0xff; 4]);
        }
        expected.extend([0xff; 2]);
        if masking {
            expected.extend([0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(expected.len(), bytes);
        expected.resize(26, 0);
        assert_eq!((msi.bytes(), all.to_vec()), (bytes, expected));
        msi.write(usize::MAX, &[0; 4]);
        msi.read(usize::MAX, &mut all);
        assert_eq!(all, [0; 26]);
    }
}

#[test]
fn reset_returns_to_the_beginning() {
    let (path, mut msi) = running();
    msi.write(16, &u32::MAX.to_le_bytes());
    fire(&msi, 3);
    msi.reset();
    let fresh = function(8, true, true).1;
    assert_eq!((msi.save(), path.lent()), (fresh.save(), 0));
}

#[test]
fn saved_state_comes_back_and_nothing_is_replayed_twice() {
    let (path, mut msi) = running();
    msi.write(16, &0b1000_u32.to_le_bytes());
    fire(&msi, 3);
    fire(&msi, 4);
    let state = msi.save();
    assert_eq!((sent(&path), state.pending), (vec![0x44], 0b1000));
    let (other, mut restored) = function(8, true, true);
    restored.restore(&state).unwrap();
    assert_eq!((restored.save(), sent(&other)), (state, vec![]));
    restored.write(16, &[0; 4]);
    assert_eq!(sent(&other), [0x43]);
}

#[test]
fn hostile_states_are_refused_and_change_nothing() {
    let (_, mut msi) = function(8, false, false);
    let good = MsiState { control: 3 << 1 | 1, address: 0xfee0_0000, data: 7, mask: 0, pending: 1, strategy: vec![] };
    let before = msi.save();
    for bad in [
        MsiState { control: 4 << 1, ..good.clone() },
        MsiState { control: 3 << 1 | 4 << 4, ..good.clone() },
        MsiState { control: 3 << 1 | 1 << 7, ..good.clone() },
        MsiState { control: 3 << 1 | 1 << 15, ..good.clone() },
        MsiState { address: 0xfee0_0002, ..good.clone() },
        MsiState { address: 1 << 32, ..good.clone() },
        MsiState { mask: 1, ..good.clone() },
        MsiState { pending: 1 << 8, ..good.clone() },
        MsiState { strategy: vec![0], ..good.clone() },
    ] {
        assert!(msi.restore(&bad).is_err(), "{bad:?}");
        assert_eq!(msi.save(), before);
    }
    msi.restore(&good).unwrap();
    assert_eq!(msi.save(), MsiState { pending: 0, ..good }, "vector 0 is unmasked: its event was sent");
}
