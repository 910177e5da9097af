//! The shared form: masks without exits, what the memory must look like, and what it may hold.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::{
    ProducerEvent, SharedMsix, SharedProducer,
    layout::{self, BYTES, GUEST_AREA, HOST_AREA, Header, MAGIC, PENDING_AREA},
    mapping::Area,
};
use crate::{
    Errno, MsiMessage,
    pci::{
        InjectorOptions, MaskStrategy, MsixTable, VectorEvent, VectorPool, WhileDisabled,
        fake_path::{FakePath, TestPath},
        msix::registers::MessageControl,
    },
};

struct Machine {
    path: Arc<FakePath>,
    msix: SharedMsix<FakePath>,
    producer: SharedProducer,
    /// The guest's mappings.
    guest: Area,
    pending: Area,
}

/// A function of 70 vectors, enabled, of which `open` are unmasked with their number as data.
fn machine(open: &[u16]) -> Machine {
    let path = FakePath::new(128);
    let mut msix = SharedMsix::new(&VectorPool::new(path.clone()), 70, InjectorOptions::default()).unwrap();
    let memory = msix.memory().try_clone_to_owned().unwrap();
    let guest = Area::map(memory.as_fd(), GUEST_AREA, true).unwrap();
    let pending = Area::map(memory.as_fd(), PENDING_AREA, false).unwrap();
    msix.set_enabled(true);
    for &vector in open {
        msix.unmask(vector, &MsiMessage::new(0, vector.into()));
    }
    Machine { path, msix, producer: SharedProducer::open(memory).unwrap(), guest, pending }
}

impl Machine {
    /// The guest masks by a store of its own, with no exit.
    fn guest_mask(&self, vector: u16, masked: bool) {
        let word = &self.guest.words()[usize::from(vector / 64)];
        let bit = 1 << (vector % 64);
        if masked {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    fn guest_sees_pending(&self, vector: u16) -> bool {
        self.pending.words()[usize::from(vector / 64)].load(Ordering::Relaxed) >> (vector % 64) & 1 != 0
    }

    fn sent(&self) -> Vec<u32> {
        self.path.take_sent().iter().map(|message| message.data).collect()
    }
}

#[test]
fn guest_masks_and_unmasks_without_an_exit() {
    let machine = machine(&[3, 69]);
    for vector in [3, 69] {
        machine.guest_mask(vector, true);
        for _ in 0..3 {
            assert_eq!(machine.producer.signal(vector).unwrap(), ProducerEvent::Pending);
        }
        assert!(machine.guest_sees_pending(vector) && machine.msix.is_pending(vector));
        machine.producer.poll(|_| panic!("still masked"));
        machine.guest_mask(vector, false);
        let mut due = vec![];
        machine.producer.poll(|vector| due.push(vector));
        assert_eq!(due, [vector]);
        assert!(!machine.guest_sees_pending(vector));
        machine.producer.poll(|_| panic!("taken already"));
        assert_eq!(machine.producer.signal(vector).unwrap(), ProducerEvent::Notify);
    }
}

#[test]
fn vmm_can_poll_in_place_of_the_device() {
    let machine = machine(&[64]);
    machine.guest_mask(64, true);
    assert_eq!(machine.producer.signal(64).unwrap(), ProducerEvent::Pending);
    machine.msix.poll();
    assert_eq!(machine.sent(), []);
    machine.guest_mask(64, false);
    machine.msix.poll();
    machine.msix.poll();
    assert_eq!(machine.sent(), [64]);
}

/// M15: the device looked, the guest masked, the eventfd arrives: the VMM looks again.
#[test]
fn event_under_way_when_the_guest_masks_is_pending() {
    let machine = machine(&[0]);
    assert_eq!(machine.producer.signal(0).unwrap(), ProducerEvent::Notify);
    machine.guest_mask(0, true);
    assert_eq!(machine.msix.vector(0).unwrap().fire(), VectorEvent::Pending);
    assert_eq!((machine.sent(), machine.guest_sees_pending(0)), (vec![], true));
}

#[test]
fn either_mask_is_enough() {
    let mut machine = machine(&[0]);
    machine.guest_mask(0, true);
    machine.msix.mask(0);
    machine.producer.signal(0).unwrap();
    machine.guest_mask(0, false);
    machine.producer.poll(|_| panic!("the table's mask still holds"));
    machine.guest_mask(0, true);
    machine.msix.unmask(0, &MsiMessage::new(0, 5));
    machine.producer.poll(|_| panic!("the guest's mask still holds"));
    assert_eq!(machine.sent(), []);
    machine.guest_mask(0, false);
    machine.msix.poll();
    assert_eq!(machine.sent(), [5]);
}

#[test]
fn events_in_both_pending_bits_are_one_message() {
    let mut machine = machine(&[0]);
    assert_eq!(machine.producer.signal(0).unwrap(), ProducerEvent::Notify);
    machine.msix.mask(0);
    // Under way when it was masked, and then a second one.
    machine.msix.vector(0).unwrap().fire();
    assert_eq!(machine.producer.signal(0).unwrap(), ProducerEvent::Pending);
    machine.msix.unmask(0, &MsiMessage::new(0, 7));
    assert_eq!((machine.sent(), machine.msix.is_pending(0)), (vec![7], false));
}

/// A device that ignores the mask, or rewrites the host's words, gets nothing past the GSI's own mask.
#[test]
fn hostile_device_cannot_unmask() {
    let mut machine = machine(&[0]);
    machine.msix.mask(0);
    let memory = machine.msix.memory().try_clone_to_owned().unwrap();
    let host = Area::map(memory.as_fd(), HOST_AREA, true).unwrap();
    for word in host.words() {
        word.store(0, Ordering::SeqCst);
    }
    assert_eq!(machine.msix.vector(0).unwrap().fire(), VectorEvent::Pending);
    for word in host.words() {
        word.store(u64::MAX, Ordering::SeqCst);
    }
    assert_eq!(machine.msix.vector(0).unwrap().fire(), VectorEvent::Pending, "dropping is the VMM's to decide");
    assert_eq!(machine.sent(), []);
    machine.msix.unmask(0, &MsiMessage::new(0, 9));
    assert_eq!(machine.sent(), [9]);
    assert_eq!(machine.producer.vectors(), 70, "read once");
    assert!(machine.producer.signal(70).is_err() && machine.producer.is_masked(u16::MAX).is_err());
}

#[test]
fn pending_bits_of_no_vector_are_ignored() {
    let mut machine = machine(&[0]);
    let memory = machine.msix.memory().try_clone_to_owned().unwrap();
    for word in Area::map(memory.as_fd(), PENDING_AREA, true).unwrap().words() {
        word.store(u64::MAX, Ordering::SeqCst);
    }
    let (first, last) = (machine.msix.pending_word(0), machine.msix.pending_word(1));
    assert_eq!((first, last, machine.msix.pending_word(2)), (u64::MAX, 0b11_1111, 0));
    machine.msix.poll();
    assert_eq!(machine.sent(), [0], "the one vector that is unmasked");
    machine.msix.reset();
    assert_eq!((machine.msix.pending_word(0), machine.msix.pending_word(1)), (0, 0));
}

#[test]
fn reset_masks_everything_and_forgets_the_guests_masks() {
    let mut machine = machine(&[0]);
    machine.guest_mask(0, true);
    machine.producer.signal(0).unwrap();
    machine.msix.reset();
    assert!((0..70).all(|vector| machine.producer.is_masked(vector).unwrap()));
    assert!(!machine.guest_sees_pending(0));
    machine.msix.set_enabled(true);
    machine.msix.unmask(0, &MsiMessage::new(0, 0));
    assert_eq!((machine.sent(), machine.producer.signal(0).unwrap()), (vec![], ProducerEvent::Notify));
}

#[test]
fn disabled_function_that_drops_tells_its_device() {
    let options = InjectorOptions { while_disabled: WhileDisabled::Drop };
    let mut msix = SharedMsix::new(&VectorPool::new(FakePath::new(1)), 1, options).unwrap();
    let producer = SharedProducer::open(msix.memory().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(producer.signal(0).unwrap(), ProducerEvent::Dropped);
    msix.set_enabled(true);
    assert_eq!(producer.signal(0).unwrap(), ProducerEvent::Pending);
    msix.set_enabled(false);
    assert_eq!(producer.signal(0).unwrap(), ProducerEvent::Dropped);
    assert!(msix.is_pending(0));
}

#[test]
fn saved_state_holds_the_guests_masks() {
    let Machine { path, msix, producer, guest, .. } = machine(&[]);
    let mut table = MsixTable::new(msix).unwrap();
    table.set_control(MessageControl::new().with_enable(true));
    table.write(12, &0_u32.to_le_bytes());
    guest.words()[0].store(1, Ordering::SeqCst);
    producer.signal(0).unwrap();
    let state = table.save();
    assert_eq!((&state.strategy, &state.pending), (&vec![1, 0], &vec![1, 0]));

    let Machine { path: other, msix, producer, guest, .. } = machine(&[]);
    let mut restored = MsixTable::new(msix).unwrap();
    for bad in [vec![], vec![0], vec![0, 1 << 6], vec![0; 3]] {
        let bad = crate::pci::msix::MsixState { strategy: bad, ..state.clone() };
        assert_eq!(restored.restore(&bad).unwrap_err().errno(), Errno::INVAL);
    }
    restored.restore(&state).unwrap();
    assert_eq!((restored.save(), path.take_sent(), other.take_sent()), (state, vec![], vec![]));
    guest.words()[0].store(0, Ordering::SeqCst);
    let mut due = vec![];
    producer.poll(|vector| due.push(vector));
    assert_eq!(due, [0]);
}

/// A memory file with these first words.
fn memory(bytes: usize, seals: SealFlags, words: [u64; 2]) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    if bytes >= BYTES {
        let area = Area::map(fd.as_fd(), HOST_AREA, true).unwrap();
        for (to, word) in area.words().iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

#[test]
fn foreign_memory_is_refused() {
    let good = [MAGIC, Header::new().with_version(1).with_vectors(2048).into_bits()];
    let header = |version, vectors| [MAGIC, Header::new().with_version(version).with_vectors(vectors).into_bits()];
    let open =
        |bytes, seals, words| SharedProducer::open(memory(bytes, seals, words)).map(|producer| producer.vectors());
    assert_eq!(open(BYTES, SealFlags::SHRINK, good).unwrap(), 2048);
    let refused = [
        (open(BYTES, SealFlags::empty(), good), Errno::PERM),
        (open(BYTES - 1, SealFlags::SHRINK, good), Errno::INVAL),
        (open(BYTES + 1, SealFlags::SHRINK, good), Errno::INVAL),
        (open(0, SealFlags::SHRINK, good), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, [0, good[1]]), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, header(0, 1)), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, header(2, 1)), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, header(1, 0)), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, header(1, 2049)), Errno::INVAL),
        (open(BYTES, SealFlags::SHRINK, header(1, u32::MAX)), Errno::INVAL),
    ];
    for (at, (result, errno)) in refused.into_iter().enumerate() {
        assert_eq!(result.expect_err("must be refused").errno(), errno, "case {at}");
    }
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(SharedProducer::open(reader).err().unwrap().errno(), Errno::INVAL);
}

#[test]
fn memory_is_sealed() {
    let machine = machine(&[]);
    let fd = machine.msix.memory();
    assert_eq!(ftruncate(fd, 0), Err(rustix::io::Errno::PERM));
    assert_eq!(ftruncate(fd, 2 * BYTES as u64), Err(rustix::io::Errno::PERM));
}

#[test]
fn layout_is_as_documented() {
    let machine = machine(&[1]);
    let memory = machine.msix.memory().try_clone_to_owned().unwrap();
    let host = Area::map(memory.as_fd(), HOST_AREA, false).unwrap();
    let words: Vec<_> = host.words()[..11].iter().map(|word| word.load(Ordering::Relaxed)).collect();
    let magic = u64::from_le_bytes(*b"doorbell");
    assert_eq!(words, [magic, 70 << 32 | 1, 0, 0, 0, 0, 0, 0, !0b10, 0b11_1111, 0]);
    assert_eq!((GUEST_AREA, PENDING_AREA, BYTES), (0x1_0000, 0x2_0000, 0x3_0000));
    let last = (layout::valid(31, 2048), layout::valid(31, 2047), layout::valid(32, 2048), layout::valid(0, 1));
    assert_eq!(last, (u64::MAX, u64::MAX >> 1, 0, 1));
}
