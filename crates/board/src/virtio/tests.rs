//! Each device, driven through configuration space and BAR as a guest's driver does it.

use std::sync::Arc;

use doorbell::{
    Delivery, Error, MsiMessage, MsiTarget, Target, VectorPath,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    manager::{IrqManager, SoftOptions},
    pci::VectorPool,
    route::NoPins,
};
use parking_lot::Mutex;

use super::{
    VirtioPci, block::Block, console::Console, entropy::Entropy, net::LoopBack, queue::tests::Driver,
    queue::tests::RAM, *,
};
use crate::pci::{PciHost, Slot};

/// Notes each message's data and sender.
#[derive(Default)]
struct Messages(Mutex<Vec<(u32, u32)>>);

impl MsiTarget for Messages {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.lock().push((message.data, message.device_id.map_or(u32::MAX, |id| id.0)));
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

const WINDOW: u64 = 0x1000_0000;
const COMMON: u64 = WINDOW;
const NOTIFY: u64 = WINDOW + 0x3000;
const TABLE: u64 = WINDOW + 0x4000;

/// A machine with one virtio device in slot 2.0.
struct Machine<D> {
    ram: Arc<RamBlock>,
    host: PciHost,
    device: Arc<VirtioPci<D>>,
    messages: Arc<Messages>,
    drivers: Vec<Driver>,
}

impl<D: Device + 'static> Machine<D> {
    fn new(device: D) -> Self {
        let (ram, messages) = (Arc::new(RamBlock::new(RAM, 0x10_0000)), Arc::new(Messages::default()));
        let irqs = IrqManager::soft(SoftOptions::new(messages.clone(), Arc::new(NoPins))).unwrap();
        let pool: Arc<VectorPool<dyn VectorPath>> = VectorPool::new(irqs.vectors());
        let slot = Slot::new(2, 0).unwrap();
        let device = Arc::new(VirtioPci::new(device, slot, ram.clone(), &pool).unwrap());
        let host = PciHost::new();
        host.plug(slot, device.clone()).unwrap();
        let queues = device.with(|device, _| device.queues());
        let drivers = (0..queues).map(|at| Driver::new(RAM + 0x4000 * u64::from(at))).collect();
        let machine = Self { ram, host, device, messages, drivers };
        machine.config_write(0x20, 4, WINDOW);
        machine.config_write(0x24, 4, 0);
        machine.config_write(0x04, 2, 6);
        machine
    }

    fn config_write(&self, register: u64, bytes: u8, value: u64) {
        self.host.ecam_write(2 << 15 | register, bytes, value);
    }

    fn store(&self, address: u64, bytes: u8, value: u64) {
        assert!(self.host.memory_write(address, bytes, value));
    }

    fn load(&self, address: u64, bytes: u8) -> u64 {
        self.host.memory_read(address, bytes).unwrap()
    }

    /// Brings the device up, with vector n + 1 for queue n.
    fn up(device: D) -> Self {
        let machine = Self::new(device);
        machine.store(COMMON + 0x14, 1, 3);
        machine.store(COMMON + 0x08, 4, 1);
        machine.store(COMMON + 0x0c, 4, 1);
        machine.store(COMMON + 0x14, 1, 0xb);
        assert_eq!(machine.load(COMMON + 0x14, 1), 0xb, "features accepted");
        machine.config_write(0x42, 2, 0x8000);
        for (at, driver) in machine.drivers.iter().enumerate() {
            let entry = TABLE + 16 * (at as u64 + 1);
            machine.store(entry, 4, 0xfee0_0000);
            machine.store(entry + 8, 4, 0x40 + at as u64);
            machine.store(entry + 12, 4, 0);
            machine.store(COMMON + 0x16, 2, at as u64);
            machine.store(COMMON + 0x18, 2, 8);
            machine.store(COMMON + 0x1a, 2, at as u64 + 1);
            for (place, register) in driver.places().into_iter().zip([0x20, 0x28, 0x30]) {
                machine.store(COMMON + register, 8, place);
            }
            machine.store(COMMON + 0x1c, 2, 1);
        }
        machine.store(COMMON + 0x14, 1, 0xf);
        machine
    }

    fn request(&mut self, queue: usize, spans: &[(u64, u32, bool)]) -> (u16, u32, u32) {
        self.drivers[queue].offer(&self.ram, spans);
        self.store(NOTIFY + 4 * queue as u64, 2, queue as u64);
        self.drivers[queue].used(&self.ram)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }

    fn messages(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut *self.messages.0.lock())
    }
}

const DATA: u64 = RAM + 0x2_0000;

fn block_request(machine: &Machine<Block<Vec<u8>>>, kind: u32, sector: u64) {
    machine.ram.write_le(DATA, u64::from(kind)).unwrap();
    machine.ram.write_le(DATA + 8, sector).unwrap();
}

#[test]
fn a_disk_is_read_and_written_in_whole_sectors_and_tells_by_its_vector() {
    let disk: Vec<u8> = (0..4 * 512u32).map(|at| (at / 512) as u8).collect();
    let mut machine = Machine::up(Block::new(disk));
    assert_eq!(machine.load(WINDOW + 0x2000, 4), 4, "sectors");
    block_request(&machine, 0, 2);
    let read = [(DATA, 16, false), (DATA + 0x1000, 1024, true), (DATA + 0x2000, 1, true)];
    assert_eq!(machine.request(0, &read), (1, 0, 1025));
    assert_eq!(machine.bytes(DATA + 0x1000, 1024), [[2; 512], [3; 512]].concat());
    assert_eq!(machine.messages(), [(0x40, 0x10)], "sent by 00:02.0");

    block_request(&machine, 1, 3);
    machine.ram.write(DATA + 0x1000, &[9; 512]).unwrap();
    let write = [(DATA, 16, false), (DATA + 0x1000, 512, false), (DATA + 0x2000, 1, true)];
    assert_eq!((machine.request(0, &write), machine.bytes(DATA + 0x2000, 1)), ((2, 0, 1), vec![0]));
    block_request(&machine, 0, 3);
    machine.request(0, &[(DATA, 16, false), (DATA + 0x3000, 512, true), (DATA + 0x2000, 1, true)]);
    assert_eq!(machine.bytes(DATA + 0x3000, 512), [9; 512]);
}

#[test]
fn requests_that_cannot_be_served_fail_with_a_status_and_change_nothing() {
    let mut machine = Machine::up(Block::new(vec![5; 2 * 512]));
    let cases: [(u32, u64, u32, u8); 4] = [(0, 1, 1024, 1), (0, u64::MAX, 512, 1), (0, 0, 100, 1), (77, 0, 512, 2)];
    for (kind, sector, length, status) in cases {
        block_request(&machine, kind, sector);
        machine.ram.write_le(DATA + 0x2000, 0xffu8).unwrap();
        let spans = [(DATA, 16, false), (DATA + 0x1000, length, true), (DATA + 0x2000, 1, true)];
        assert_eq!(machine.request(0, &spans).2, 1, "{kind} {sector} {length}");
        assert_eq!(machine.bytes(DATA + 0x2000, 1), [status], "{kind} {sector} {length}");
    }
    assert_eq!(machine.bytes(DATA + 0x1000, 4), [0; 4]);
}

#[test]
fn random_numbers_fill_what_the_driver_offers() {
    let mut next = 0u8;
    let mut machine = Machine::up(Entropy::new(move |bytes: &mut [u8]| {
        bytes.fill_with(|| {
            next = next.wrapping_add(1);
            next
        });
    }));
    assert_eq!(machine.request(0, &[(DATA, 3, true), (DATA + 0x100, 4, true)]), (1, 0, 7));
    assert_eq!((machine.bytes(DATA, 3), machine.bytes(DATA + 0x100, 4)), (vec![1, 2, 3], vec![4, 5, 6, 7]));
}

#[test]
fn a_console_talks_both_ways_and_keeps_what_nobody_reads_yet() {
    let screen = Arc::new(Mutex::new(Vec::new()));
    let out = Arc::clone(&screen);
    let mut machine = Machine::up(Console::new(move |bytes: &[u8]| out.lock().extend_from_slice(bytes)));
    machine.ram.write(DATA, b"hello").unwrap();
    machine.request(1, &[(DATA, 5, false)]);
    assert_eq!((&screen.lock()[..], machine.messages()), (&b"hello"[..], vec![(0x41, 0x10)]));
    assert_eq!(machine.device.with(|console, rings| console.receive(rings, b"typed")), 5);
    assert!(machine.messages().is_empty(), "no buffer yet");
    assert_eq!(machine.request(0, &[(DATA, 16, true)]), (1, 0, 5));
    assert_eq!((machine.bytes(DATA, 5), machine.messages()), (b"typed".to_vec(), vec![(0x40, 0x10)]));
}

#[test]
fn a_frame_comes_back_by_the_other_queue() {
    let echo = |frame: &[u8]| Some(frame.iter().rev().copied().collect());
    let mut machine = Machine::up(LoopBack::new([2, 0, 0, 0, 0, 1], echo));
    assert_eq!(machine.load(COMMON + 0x04, 4), 1 << 5, "it has an address");
    machine.ram.write(DATA + 12, b"abc").unwrap();
    machine.request(1, &[(DATA, 15, false)]);
    assert_eq!(machine.messages(), [(0x41, 0x10)]);
    assert_eq!(machine.request(0, &[(DATA + 0x1000, 2048, true)]), (1, 0, 15));
    assert_eq!(machine.bytes(DATA + 0x1000, 15), *b"\0\0\0\0\0\0\0\0\0\0\x01\0cba");
    assert_eq!(machine.messages(), [(0x40, 0x10)]);
}

#[test]
fn features_must_include_version_1_and_nothing_that_was_not_offered() {
    let machine = Machine::new(Block::new(vec![0; 512]));
    let negotiate = |low: u64, high: u64| {
        machine.store(COMMON + 0x14, 1, 0);
        for (select, bits) in [(0, low), (1, high)] {
            machine.store(COMMON + 0x08, 4, select);
            machine.store(COMMON + 0x0c, 4, bits);
        }
        machine.store(COMMON + 0x14, 1, 0xb);
        machine.load(COMMON + 0x14, 1)
    };
    assert_eq!([negotiate(0, 0), negotiate(1 << 9, 1), negotiate(1 << 3, 1), negotiate(0, 3)], [3, 0xb, 3, 3]);
}

#[test]
fn broken_rings_ask_for_a_reset_by_the_configuration_vector_and_a_reset_helps() {
    let mut machine = Machine::up(Block::new(vec![0; 512]));
    machine.store(COMMON + 0x10, 2, 0);
    machine.store(TABLE, 4, 0xfee0_0000);
    machine.store(TABLE + 8, 4, 0x3f);
    machine.store(TABLE + 12, 4, 0);
    machine.ram.write_le(RAM + 0x1002, 100u16).unwrap();
    machine.store(NOTIFY, 2, 0);
    assert_eq!((machine.load(COMMON + 0x14, 1), machine.messages()), (0x4f, vec![(0x3f, 0x10)]));
    let idle = machine.request(0, &[(DATA, 16, false)]);
    assert_eq!(idle.0, 0, "it does nothing any more");
    machine.store(COMMON + 0x14, 1, 0);
    assert_eq!((machine.load(COMMON + 0x14, 1), machine.load(COMMON + 0x10, 2)), (0, 0xffff));
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let machine = Machine::new(Block::new(vec![0; 3 * 512]));
    for (register, value) in [(0x98, 4), (0x9c, 0x2000), (0xa0, 4)] {
        machine.config_write(register, 4, value);
    }
    assert_eq!(machine.host.ecam_read(2 << 15 | 0xa4, 4), 3, "the capacity");
    machine.config_write(0xa0, 4, 3);
    assert_eq!(machine.host.ecam_read(2 << 15 | 0xa4, 4), 0, "three bytes are no access");
}
