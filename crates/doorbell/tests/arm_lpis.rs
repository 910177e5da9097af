//! LPIs and ITSs as a whole: what they take of memory, and whom an event waits for.
#![cfg(feature = "arm")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use doorbell::{
    Delivery, DeviceId, MsiMessage, MsiTarget, VcpuId,
    chips::arm::{
        Gic, GicOptions, Group, IccRegister, MsiFrames,
        its::{Its, ItsOptions, registers::offset},
    },
    guest_ram::{GuestRam, GuestRamExt, NoMemory, RamBlock},
};
use parking_lot::Mutex;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what each thread allocates, and what it has not given back.
struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged; counting touches plain cells.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get() + layout.size() as isize);
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RAM: u64 = 0x4000_0000;
const PROPERTIES: u64 = RAM + 0x10_0000;
const PENDING: u64 = RAM + 0x20_0000;
const QUEUE: u64 = RAM + 0x30_0000;
const ITTS: u64 = RAM + 0x50_0000;
const DOORBELL: u64 = 0x0809_0040;
const VALID: u64 = 1 << 63;
const FIRST: u32 = 8192;

/// A GIC whose LPIs are all enabled, with LPIs on; its tables are in `ram`.
fn gic(vcpus: u32, ram: Arc<dyn GuestRam>) -> Arc<Gic> {
    let mut options = GicOptions::new(vcpus);
    options.id_bits = 17;
    Gic::new(options, ram, Arc::new(())).unwrap()
}

fn switch_on(gic: &Gic) {
    for vcpu in 0..gic.vcpus() {
        let redistributor = gic.redistributor(VcpuId(vcpu)).unwrap();
        redistributor.write(0x70, 8, PROPERTIES | 16);
        // The tables are zero; one address does for all.
        redistributor.write(0x78, 8, PENDING | 1 << 62);
        redistributor.write(0x00, 4, 1);
        // It is awake.
        redistributor.write(0x14, 4, 0);
    }
}

fn start(its: &Its) {
    its.write(offset::BASER0, 8, VALID | 2 << 8 | RAM);
    its.write(offset::BASER1, 8, VALID | 2 << 8 | (RAM + 0x1_0000));
    its.write(offset::CBASER, 8, VALID | QUEUE | 0xff);
    its.write(offset::CTLR, 4, 1);
}

/// Runs commands, as many at once as the queue takes.
fn run(its: &Its, ram: &dyn GuestRam, commands: impl Iterator<Item = [u64; 4]>) {
    let mut at = its.read(offset::CREADR, 8);
    let mut flush = 0;
    for command in commands {
        for (word, address) in command.into_iter().zip((QUEUE + at..).step_by(8)) {
            ram.write_le(address, word).unwrap();
        }
        at = (at + 32) % (256 << 12);
        flush += 1;
        if flush == 16_384 {
            its.write(offset::CWRITER, 8, at);
            settle(its);
            flush = 0;
        }
    }
    its.write(offset::CWRITER, 8, at);
    settle(its);
}

/// The work of one access is bounded: reads until the queue is empty.
fn settle(its: &Its) {
    for _ in 0..1000 {
        if its.read(offset::CTLR, 4) >> 31 == 1 {
            return;
        }
    }
    panic!("the queue is not done");
}

fn mapc(collection: u64, vcpu: u64) -> [u64; 4] {
    [0x09, 0, VALID | vcpu << 16 | collection, 0]
}

fn mapd(device: u64, bits: u64, itt: u64) -> [u64; 4] {
    [0x08 | device << 32, bits - 1, VALID | itt, 0]
}

fn mapti(device: u64, event: u64, lpi: u64, collection: u64) -> [u64; 4] {
    [0x0a | device << 32, lpi << 32 | event, collection, 0]
}

/// What 65,536 LPIs take in bytes, with the ITS that maps events to them.
fn bytes_of_65536_lpis(vcpus: u32) -> isize {
    let ram: Arc<dyn GuestRam> = Arc::new(RamBlock::new(RAM, 0xa0_0000));
    let gic = gic(vcpus, Arc::clone(&ram));
    let before = HELD.get();
    let its = Its::new(Arc::clone(&gic), ItsOptions::default());
    switch_on(&gic);
    start(&its);
    let vcpus = u64::from(vcpus);
    run(&its, &*ram, (0..vcpus).map(|vcpu| mapc(vcpu, vcpu)));
    // Sixteen devices of 4,096 events each.
    run(&its, &*ram, (0..16).map(|device| mapd(device, 12, ITTS + device * 0x8000)));
    let lpis = (0..16u64).flat_map(|device| (0..4096u64).map(move |event| (device, event)));
    run(
        &its,
        &*ram,
        lpis.map(|(device, event)| {
            let number = device * 4096 + event;
            mapti(device, event, u64::from(FIRST) + number, number % vcpus)
        }),
    );
    let counters = its.counters();
    assert_eq!(counters.commands, vcpus + 16 + 65_536, "{counters:?}");
    assert_eq!(its.send(DeviceId(15), 4095).unwrap(), Delivery::Delivered(1));
    let held = HELD.get() - before;
    // The directory of chunks was made with the GIC.
    let told = (gic.lpi_memory() + its.memory()) as isize;
    assert!((told - held).abs() < held / 100, "{told} bytes are told of, {held} are taken");
    println!("{vcpus} vCPUs: {held} bytes for 65,536 LPIs and their events, {told} as told");
    held.max(told)
}

#[test]
fn lpi_memory_65536_lpis_take_4_mib_with_8_and_with_512_vcpus() {
    let (few, many) = (bytes_of_65536_lpis(8), bytes_of_65536_lpis(512));
    assert!(few <= 4 << 20, "{few}");
    assert!(many <= 4 << 20, "{many}");
    assert!(many - few < 64 << 10, "with {few} and {many} bytes it depends on the number of vCPUs");
}

/// RAM in which a load from one place waits until the test lets it go on.
struct Blocking {
    ram: RamBlock,
    at: u64,
    armed: AtomicBool,
    reached: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl GuestRam for Blocking {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory> {
        let here = (address..address + bytes.len() as u64).contains(&self.at);
        if here && self.armed.swap(false, Ordering::SeqCst) {
            self.reached.send(()).unwrap();
            self.go_on.lock().recv().unwrap();
        }
        self.ram.read(address, bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        self.ram.write(address, bytes)
    }
}

/// All that a vCPU acknowledges and ends.
fn taken(gic: &Arc<Gic>, vcpu: u32) -> Vec<u32> {
    let mut cpu = gic.cpu_interface(VcpuId(vcpu)).unwrap();
    cpu.write(IccRegister::Pmr, 0xff);
    cpu.write(IccRegister::Igrpen1, 1);
    let next = || {
        let lpi = cpu.acknowledge(Group::One);
        cpu.end(Group::One, lpi);
        (lpi != 1023).then_some(lpi)
    };
    std::iter::from_fn(next).collect()
}

/// A command stands still inside, with every lock of the ITS and of the LPIs held. Events of other vCPUs and of the same
/// one, prepared or not, arrive all the same: they take none of these locks.
#[test]
fn an_event_waits_for_no_command() {
    let (reached, reaches) = channel();
    let (goes_on, go_on) = channel();
    let at = PROPERTIES + 1;
    let ram = Arc::new(Blocking {
        ram: RamBlock::new(RAM, 0xa0_0000),
        at,
        armed: AtomicBool::new(false),
        reached,
        go_on: Mutex::new(go_on),
    });
    for lpi in 0..4 {
        ram.write_le(PROPERTIES + lpi, 0xa1u8).unwrap();
    }
    let gic = gic(2, Arc::clone(&ram) as Arc<dyn GuestRam>);
    gic.distributor().write(0, 4, 3);
    let its = Its::new(Arc::clone(&gic), ItsOptions::default());
    switch_on(&gic);
    start(&its);
    let commands =
        [mapc(0, 0), mapc(1, 1), mapd(8, 5, ITTS), mapti(8, 0, 8192, 0), mapti(8, 1, 8193, 0), mapti(8, 2, 8194, 1)];
    run(&its, &*ram, commands.into_iter());
    let frames = MsiFrames::new();
    frames.place(DOORBELL - 0x1_0040, its.clone()).unwrap();
    let message = |event| MsiMessage::new(DOORBELL, event).from_device(DeviceId(8));
    let prepared = frames.prepare(&message(0)).unwrap();

    ram.armed.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        // INV of event 1.
        scope.spawn(|| run(&its, &*ram, [[0x0c | 8 << 32, 1, 0, 0]].into_iter()));
        reaches.recv().unwrap();
        let before = ALLOCATIONS.get();
        let sent = [frames.fire(prepared), frames.send(&message(1)).unwrap(), frames.send(&message(2)).unwrap()];
        let allocated = ALLOCATIONS.get() - before;
        let taken = [0, 1].map(|vcpu| taken(&gic, vcpu));
        goes_on.send(()).unwrap();
        assert_eq!(sent, [Delivery::Delivered(1); 3]);
        assert_eq!(allocated, 0);
        assert_eq!(taken, [vec![8192, 8193], vec![8194]]);
    });
    assert_eq!(its.counters().commands, 7);
}
