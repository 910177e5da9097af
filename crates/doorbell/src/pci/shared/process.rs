//! The shared form with a device in a process of its own.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{
    ProducerEvent, SharedMsix, SharedProducer,
    layout::{AREA_BYTES, GUEST_AREA},
    mapping::Area,
};
use crate::{
    MsiMessage,
    pci::{
        InjectorOptions, MaskStrategy, VectorEvent, VectorPool,
        fake_path::{FakePath, TestPath},
    },
};

const VECTORS: u16 = 4;
const STORM: Duration = Duration::from_millis(300);
/// Words of the ledger: the number of the last event of each vector, and two signs for the device.
const STOP: usize = 8;
const QUIT: usize = 9;
/// The device has opened everything.
const READY: u8 = 0xff;
const CHILD: &str = "DOORBELL_TEST_PRODUCER";

fn open(path: &str, write: bool) -> File {
    OpenOptions::new().read(!write).write(write).open(path).unwrap()
}

/// Not a test by itself: what the other process runs.
#[test]
#[ignore = "the other process of the tests below"]
fn producer_process() {
    let Ok(paths) = std::env::var(CHILD) else { return };
    let [memory, ledger, notify] = paths.split(' ').collect::<Vec<_>>()[..] else { panic!("{paths}") };
    let file = |path| OwnedFd::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
    let producer = SharedProducer::open(file(memory)).unwrap();
    let ledger = Area::map(file(ledger).as_fd(), 0, true).unwrap();
    let words = ledger.words();
    let mut notify = open(notify, true);
    notify.write_all(&[READY]).unwrap();
    let mut turn = 0u32;
    while words[STOP].load(Ordering::SeqCst) == 0 {
        for vector in 0..VECTORS {
            words[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
            if producer.signal(vector).unwrap() == ProducerEvent::Notify {
                notify.write_all(&[vector as u8]).unwrap();
            }
        }
        turn += 1;
        if turn % 8 == 0 {
            producer.poll(|vector| notify.write_all(&[vector as u8]).unwrap());
        }
    }
    while words[QUIT].load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    producer.poll(|vector| notify.write_all(&[vector as u8]).unwrap());
}

struct Machine {
    path: Arc<FakePath>,
    msix: SharedMsix<FakePath>,
    guest: Area,
    ledger: Arc<Area>,
    /// For each vector, the messages received and the last number that one of them stood for.
    received: Arc<[AtomicU64; 2 * VECTORS as usize]>,
    child: Child,
    reader: thread::JoinHandle<()>,
}

impl Machine {
    /// Starts the other process; its notifications go to the vectors, as those of eventfds would.
    fn start() -> Self {
        let path = FakePath::new(16);
        let msix = SharedMsix::new(&VectorPool::new(path.clone()), VECTORS, InjectorOptions::default()).unwrap();
        let guest = Area::map(msix.memory(), GUEST_AREA, true).unwrap();
        let ledger_fd = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&ledger_fd, AREA_BYTES as u64).unwrap();
        let ledger = Arc::new(Area::map(ledger_fd.as_fd(), 0, true).unwrap());
        let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let of = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        let paths = [msix.memory().as_raw_fd(), ledger_fd.as_raw_fd(), write_end.as_raw_fd()].map(of).join(" ");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pci::shared::process::producer_process", "--ignored", "--test-threads=1"])
            .env(CHILD, paths)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut notified = File::from(read_end);
        let mut ready = [0];
        notified.read_exact(&mut ready).unwrap();
        assert_eq!(ready, [READY]);
        // From here on the end of the child is the end of the pipe.
        drop(write_end);

        // On a busy machine it may take a while until it does something.
        while ledger.words()[usize::from(VECTORS) - 1].load(Ordering::SeqCst) == 0 {
            assert_eq!(child.try_wait().unwrap(), None);
            thread::yield_now();
        }

        let received: Arc<[AtomicU64; 2 * VECTORS as usize]> = Arc::new(Default::default());
        let (to, numbers) = (received.clone(), ledger.clone());
        path.watch(Box::new(move |message| {
            let vector = message.data as usize;
            to[vector].fetch_add(1, Ordering::SeqCst);
            to[usize::from(VECTORS) + vector].store(numbers.words()[vector].load(Ordering::SeqCst), Ordering::SeqCst);
        }));
        let handles: Vec<_> = (0..VECTORS).map(|vector| msix.vector(vector).unwrap()).collect();
        let reader = thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = notified.read(&mut bytes) {
                for &vector in &bytes[..count] {
                    handles[usize::from(vector)].fire();
                }
            }
        });
        Self { path, msix, guest, ledger, received, child, reader }
    }

    fn message(vector: u16) -> MsiMessage {
        MsiMessage::new(0, vector.into())
    }

    /// Masks and unmasks at random, through the table and without an exit.
    fn storm(&mut self) {
        let end = Instant::now() + STORM;
        let mut random = 0x2545_f491_u32;
        self.msix.set_enabled(true);
        while Instant::now() < end {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let vector = (random >> 8) as u16 % VECTORS;
            let word = &self.guest.words()[0];
            match random % 4 {
                0 => self.msix.mask(vector),
                1 => self.msix.unmask(vector, &Self::message(vector)),
                2 => drop(word.fetch_or(1 << vector, Ordering::SeqCst)),
                _ => drop(word.fetch_and(!(1 << vector), Ordering::SeqCst)),
            }
        }
    }

    fn unmask_all(&mut self) {
        self.guest.words()[0].store(0, Ordering::SeqCst);
        for vector in 0..VECTORS {
            self.msix.unmask(vector, &Self::message(vector));
        }
    }

    /// For each vector: events published, messages received, the last number that one stood for.
    fn counts(&self) -> Vec<[u64; 3]> {
        let load = |word: &AtomicU64| word.load(Ordering::SeqCst);
        let counts = (0..usize::from(VECTORS)).map(|at| {
            [load(&self.ledger.words()[at]), load(&self.received[at]), load(&self.received[usize::from(VECTORS) + at])]
        });
        counts.collect()
    }
}

#[test]
fn device_in_another_process_loses_nothing() {
    let mut machine = Machine::start();
    machine.storm();
    machine.unmask_all();
    machine.ledger.words()[STOP].store(1, Ordering::SeqCst);
    machine.ledger.words()[QUIT].store(1, Ordering::SeqCst);
    assert!(machine.child.wait().unwrap().success());
    while !machine.reader.is_finished() {
        thread::yield_now();
    }
    for [published, received, seen] in machine.counts() {
        assert!(0 < received && received <= published, "{received} messages for {published} events");
        assert_eq!(seen, published, "the last event was lost");
    }
}

/// A device that is killed takes with it at most the event that it was just signalling.
#[test]
fn device_killed_in_a_storm_harms_nobody() {
    let mut machine = Machine::start();
    machine.storm();
    machine.child.kill().unwrap();
    machine.child.wait().unwrap();
    machine.unmask_all();
    while !machine.reader.is_finished() {
        thread::yield_now();
    }
    // What it left behind in the pending words is sent by the VMM.
    machine.msix.poll();
    let counts = machine.counts();
    let behind = counts.iter().filter(|[published, _, seen]| seen < published).count();
    assert!(behind <= 1, "published, received, seen: {counts:?}");
    assert!((0..VECTORS).all(|vector| !machine.msix.is_pending(vector)));
    for vector in 0..VECTORS {
        let event = machine.msix.vector(vector).unwrap().fire();
        assert!(matches!(event, VectorEvent::Sent(_)), "another source can go on: {event:?}");
    }
    machine.msix.reset();
    assert_eq!(machine.path.lent(), 0);
}
