//! A guest with a unit: tables, command buffer and event log in memory, and local APICs that only write down.

use std::sync::{Arc, Mutex};

use crate::{
    Delivery, DeviceId, Error, MsiMessage, MsiTarget, Target,
    guest_ram::{GuestRamExt, RamBlock},
    remap::amd::{AmdUnit, AmdUnitOptions, AmdVi, registers::offset},
};

/// 00:03.0.
pub const DEVICE: u16 = 0x18;
/// 128 KiB: entries for buses 0 to 15.
pub const DEVICES: u64 = 0x10_0000;
pub const TABLE: u64 = 0x8000;
pub const COMMANDS: u64 = 0x2_0000;
pub const EVENTS: u64 = 0x3_0000;
pub const GUESTS: u64 = 0x4_0000;
/// Where COMPLETION_WAIT stores.
pub const FLAG: u64 = 0x5_0000;
/// The vector of the unit's own interrupts.
pub const OWN: (u64, u32) = (0xfee0_0000, 0xe0);

const RAM: usize = 0x12_0000;
/// Both buffers have 256 entries.
const BASE_256: u64 = 8 << 56;

/// Takes what it is sent; fixed physical messages also prepared.
#[derive(Default)]
pub struct Sink(Mutex<Vec<(u64, u32)>>);

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.lock().unwrap().push((message.address, message.data));
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let simple = message.address & !0xf_f000 == 0xfee0_0000 && message.data < 0x100;
        let bits = (message.address >> 12 & 0xff) << 8 | u64::from(message.data);
        if simple { Target::new(bits as u32) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        let (destination, vector) = (u64::from(target.bits() >> 8), target.bits() & 0xff);
        self.0.lock().unwrap().push((0xfee0_0000 | destination << 12, vector));
        Delivery::Delivered(1)
    }
}

pub struct Rig {
    pub ram: Arc<RamBlock>,
    pub sink: Arc<Sink>,
    pub remap: Arc<AmdVi>,
    pub rung: Arc<Mutex<Vec<u32>>>,
}

pub fn message(device: u16, data: u32) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, data).from_device(DeviceId(device.into()))
}

/// An enabled 32-bit entry: fixed, physical.
pub fn entry(vector: u8, destination: u8) -> u32 {
    1 | u32::from(destination) << 8 | u32::from(vector) << 16
}

/// An enabled 128-bit entry: fixed, physical.
pub fn wide(vector: u8, destination: u32) -> [u64; 2] {
    let (low, high) = (u64::from(destination & 0xff_ffff), u64::from(destination >> 24));
    [1 | low << 8, u64::from(vector) | high << 56]
}

impl Rig {
    /// A unit whose buffers are enabled.
    pub fn new() -> Self {
        let rig = Self::disabled();
        rig.control(0);
        rig
    }

    pub fn disabled() -> Self {
        Self::with(&[AmdUnitOptions::default()])
    }

    pub fn with(units: &[AmdUnitOptions]) -> Self {
        let ram = Arc::new(RamBlock::new(0, RAM));
        let (sink, rung) = (Arc::new(Sink::default()), Arc::new(Mutex::new(Vec::new())));
        let bell = rung.clone();
        let doorbell = Arc::new(move |apic_id| bell.lock().unwrap().push(apic_id));
        let remap = AmdVi::new(sink.clone(), ram.clone(), doorbell, units).unwrap();
        let rig = Self { ram, sink, remap, rung };
        for unit in rig.remap.units() {
            unit.write(offset::DEVICE_TABLE_BASE, 8, DEVICES | 31);
            unit.write(offset::COMMAND_BUFFER_BASE, 8, COMMANDS | BASE_256);
            unit.write(offset::EVENT_LOG_BASE, 8, EVENTS | BASE_256);
            unit.write(offset::GA_LOG_BASE, 8, GUESTS | BASE_256);
            unit.set_own_message(Some(&MsiMessage::new(OWN.0, OWN.1)));
        }
        rig
    }

    pub fn unit(&self) -> &AmdUnit {
        self.remap.unit(0).unwrap()
    }

    /// Enables the unit, its command buffer and its event log, and these.
    pub fn control(&self, more: u64) {
        self.unit().write(offset::CONTROL, 8, 1 | 1 << 2 | 1 << 12 | more);
    }

    pub fn read(&self, at: u64) -> u64 {
        self.unit().read(at, 8)
    }

    pub fn store<const N: usize>(&self, at: u64, words: [u64; N]) {
        for (place, word) in (at..).step_by(8).zip(words) {
            self.ram.write_le(place, word).unwrap();
        }
    }

    pub fn load<const N: usize>(&self, at: u64) -> [u64; N] {
        std::array::from_fn(|word| self.ram.read_le(at + 8 * word as u64).unwrap())
    }

    /// The third quadword of a device's entry.
    pub fn device_with(&self, device: u16, interrupts: u64) {
        // Domain 0x1234, and a translation that concerns nobody here.
        self.store(DEVICES + 32 * u64::from(device), [3, 0x1234, interrupts, 0]);
    }

    /// A device that is remapped by a table of 2^`length` entries.
    pub fn device(&self, device: u16, table: u64, length: u64) {
        self.device_with(device, 1 | length << 1 | table | 2 << 60);
    }

    pub fn store_entry(&self, table: u64, index: u64, entry: u32) {
        self.ram.write_le(table + 4 * index, entry).unwrap();
    }

    pub fn store_wide(&self, table: u64, index: u64, entry: [u64; 2]) {
        self.store(table + 16 * index, entry);
    }

    pub fn send(&self, message: &MsiMessage) -> Delivery {
        self.remap.send(message).unwrap()
    }

    /// Fires prepared messages.
    pub fn fire(&self, targets: &[Target]) {
        for target in targets {
            self.remap.fire(*target);
        }
    }

    /// Fires a message that is prepared for it, or sends it.
    pub fn fire_or_send(&self, message: &MsiMessage, prepared: bool) {
        match self.remap.prepare(message).filter(|_| prepared) {
            Some(target) => self.fire(&[target]),
            None => assert!(self.remap.send(message).is_ok()),
        }
    }

    /// What came out since the last call.
    pub fn taken(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.sink.0.lock().unwrap())
    }

    /// Puts commands into the buffer and has them run.
    pub fn commands(&self, commands: &[[u64; 2]]) {
        let mut tail = self.read(offset::COMMAND_TAIL);
        for command in commands {
            self.store(COMMANDS + tail, *command);
            tail = (tail + 16) % 0x1000;
        }
        self.unit().write(offset::COMMAND_TAIL, 8, tail);
    }

    /// INVALIDATE_INTERRUPT_TABLE and COMPLETION_WAIT with a store, which is awaited.
    pub fn invalidate(&self, device: u16) {
        self.store(FLAG, [0]);
        self.commands(&[[5 << 60 | u64::from(device), 0], [1 << 60 | FLAG | 1, 0x600d]]);
        assert_eq!(self.load(FLAG), [0x600d]);
    }

    /// The events that were logged since the last call.
    pub fn events(&self) -> Vec<[u64; 2]> {
        let (head, tail) = (self.read(offset::EVENT_HEAD), self.read(offset::EVENT_TAIL));
        let count = (tail + 0x1000 - head) % 0x1000 / 16;
        let events = (0..count).map(|n| self.load(EVENTS + (head + 16 * n) % 0x1000)).collect();
        self.unit().write(offset::EVENT_HEAD, 8, tail);
        events
    }
}
