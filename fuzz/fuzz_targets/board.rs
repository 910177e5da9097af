//! Any bytes as a guest's accesses to the devices around the chips: configuration space, BARs, virtqueues, serial ports,
//! clock. Whatever it does: no panic, no endless work, and what a device was never told to send does not come out.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use doorbell::{
    Delivery, Error, MsiMessage, MsiTarget, Target, VectorPath,
    clock::VirtualClock,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    pci::VectorPool,
    route::{NoPins, RoutePolicy, RouteTable},
};
use doorbell_board::{
    Mmio,
    pci::{PciHost, Slot},
    pl011::Pl011,
    pl031::Pl031,
    uart16550::Uart16550,
    virtio::{Device, VirtioPci, block::Block, console::Console, entropy::Entropy, net::LoopBack},
};
use doorbell_fuzz::Program;
use libfuzzer_sys::fuzz_target;

/// Takes every message.
struct Sink;

impl MsiTarget for Sink {
    fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 0x8000;
const WINDOW: u64 = 0x1000_0000;
const BAR_BYTES: u64 = 0x8000;
const DEVICES: u8 = 4;
const SECTORS: usize = 4;
/// A bound for what one input can ask for.
const STEPS: usize = 2_000;

struct Machine {
    ram: Arc<RamBlock>,
    host: PciHost,
    serial: [Box<dyn Mmio>; 3],
    clock: Arc<VirtualClock>,
    /// Frames that were sent, and frames that came back.
    frames: Arc<AtomicU64>,
}

impl Machine {
    fn new() -> Self {
        let ram = Arc::new(RamBlock::new(RAM, RAM_BYTES as usize));
        let table = RouteTable::new(Arc::new(Sink), Arc::new(NoPins), RoutePolicy::S2_TABLE);
        let pool: Arc<VectorPool<dyn VectorPath>> = VectorPool::new(Arc::new(table));
        let frames = Arc::new(AtomicU64::new(0));
        let sent = Arc::clone(&frames);
        let net = LoopBack::new([2, 0, 0, 0, 0, 1], move |frame: &[u8]| {
            assert!((1..=1514).contains(&frame.len()));
            sent.fetch_add(1, Ordering::Relaxed);
            Some(frame.to_vec())
        });
        let clock = Arc::new(VirtualClock::default());
        let machine = Self {
            host: PciHost::new(),
            serial: [
                Box::new(Pl011::new(|_| (), |_| ())),
                Box::new(Uart16550::new(|_| (), |_| ())),
                Box::new(Pl031::new(clock.clone(), 1_700_000_000, |_| ())),
            ],
            clock,
            frames,
            ram,
        };
        machine.plug(0, Block::new(vec![7; SECTORS * 512]), &pool);
        machine.plug(1, Console::new(|_: &[u8]| ()), &pool);
        machine.plug(2, net, &pool);
        machine.plug(3, Entropy::new(|bytes: &mut [u8]| bytes.fill(0x5a)), &pool);
        machine
    }

    /// Plugs a device in and brings it up with rings of 4 entries, so that an input need not.
    fn plug(&self, number: u8, device: impl Device + 'static, pool: &Arc<VectorPool<dyn VectorPath>>) {
        let slot = Slot::new(number, 0).expect("below 32");
        let device = VirtioPci::new(device, slot, self.ram.clone(), pool).expect("it has queues");
        self.host.plug(slot, Arc::new(device)).expect("the slot is free");
        let config = u64::from(number) << 15;
        let bar = WINDOW + BAR_BYTES * u64::from(number);
        self.host.ecam_write(config | 0x20, 4, bar);
        self.host.ecam_write(config | 0x04, 2, 6);
        self.host.ecam_write(config | 0x42, 2, 0x8000);
        let store = |register: u64, bytes: u8, value: u64| assert!(self.host.memory_write(bar + register, bytes, value));
        store(0x08, 4, 1);
        store(0x0c, 4, 1);
        store(0x14, 1, 0xb);
        for queue in 0..2u64 {
            store(0x16, 2, queue);
            store(0x18, 2, 4);
            store(0x1a, 2, queue);
            for (register, offset) in [(0x20, 0), (0x28, 0x80), (0x30, 0x100)] {
                store(register, 8, RAM + 0x400 * u64::from(number) + 0x200 * queue + offset);
            }
            store(0x1c, 2, 1);
        }
        store(0x14, 1, 0xf);
    }

    fn step(&self, program: &mut Program<'_>) -> Option<()> {
        let op = program.byte()?;
        let bytes = 1 << (op >> 3 & 3);
        match op & 7 {
            0 => {
                let offset = u64::from(program.half()?);
                self.host.ecam_write(offset << 1 & 0xf_8000 | offset & 0xfff, bytes, program.quad()?);
            }
            1 => {
                let offset = u64::from(program.half()?);
                self.host.ecam_read(offset << 1 & 0xf_8000 | offset & 0xfff, bytes);
            }
            2 => {
                let address = WINDOW + u64::from(program.half()?) * 2 % (BAR_BYTES * u64::from(DEVICES));
                self.host.memory_write(address, bytes, program.quad()?);
            }
            3 => {
                let address = WINDOW + u64::from(program.half()?) * 2 % (BAR_BYTES * u64::from(DEVICES));
                self.host.memory_read(address, bytes);
            }
            4 => {
                let address = RAM + u64::from(program.half()?) % RAM_BYTES;
                // Outside of memory: refused.
                let _ = self.ram.write(address, &program.quad()?.to_le_bytes());
            }
            5 => {
                let (device, queue) = (program.byte()? % DEVICES, u64::from(program.byte()? % 2));
                // One more entry of the available ring, and the notification.
                let ring = RAM + 0x400 * u64::from(device) + 0x200 * queue + 0x80;
                if let Ok(index) = self.ram.read_le::<u16>(ring + 2) {
                    let _ = self.ram.write_le(ring + 2, index.wrapping_add(1));
                }
                let notify = WINDOW + BAR_BYTES * u64::from(device) + 0x3000 + 4 * queue;
                self.host.memory_write(notify, 2, queue);
            }
            6 => {
                let (device, register) = (program.byte()?, program.half()?);
                let device = &self.serial[usize::from(device) % 3];
                device.write(u64::from(register) % 0x1000, bytes, program.quad()?);
            }
            _ => {
                self.clock.advance(program.quad()? % (1 << 40));
                let register = u64::from(program.half()?) % 0x1000;
                self.serial.iter().for_each(|device| _ = device.read(register, bytes));
            }
        }
        Some(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let machine = Machine::new();
    let mut program = Program(bytes);
    for _ in 0..STEPS {
        if machine.step(&mut program).is_none() {
            break;
        }
    }
    assert!(machine.frames.load(Ordering::Relaxed) <= STEPS as u64 * 256, "each frame was asked for");
});
