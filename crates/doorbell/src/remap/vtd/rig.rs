//! For the tests of the unit: a guest's view of it, and a target that writes down what arrives.

use std::sync::{Arc, Mutex};

use super::{VtdOptions, VtdUnit, registers as r};
use crate::{
    Delivery, DeviceId, Error, MsiMessage, MsiTarget, Target,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
};

/// Everything that arrived. Messages with even vectors can be resolved in advance, by a number in the list of those that
/// were.
#[derive(Default)]
pub struct Sink {
    pub seen: Mutex<Vec<MsiMessage>>,
    resolved: Mutex<Vec<MsiMessage>>,
}

impl Sink {
    /// What arrived since the last call: address and data.
    pub fn take(&self) -> Vec<(u64, u32)> {
        self.seen.lock().unwrap().drain(..).map(|message| (message.address, message.data)).collect()
    }
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.seen.lock().unwrap().push(*message);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let mut resolved = self.resolved.lock().unwrap();
        if message.data & 1 == 1 {
            return None;
        }
        resolved.push(*message);
        Target::new(resolved.len() as u32 - 1)
    }

    fn fire(&self, target: Target) -> Delivery {
        let message = self.resolved.lock().unwrap()[target.bits() as usize];
        self.send(&message).unwrap()
    }
}

pub const TABLE: u64 = 0x1_0000;
pub const QUEUE: u64 = 0x8000;
pub const STATUS: u64 = 0x7000;
pub const RAM: usize = 0x4_0000;
/// The table's entries.
pub const ENTRIES: u32 = 256;
/// Who sends, unless something else is said.
pub const DEVICE: u16 = 0x0018;

pub const SET_TABLE: u32 = 1 << 24;
pub const REMAP: u32 = 1 << 25;
pub const USE_QUEUE: u32 = 1 << 26;
pub const COMPATIBILITY: u32 = 1 << 23;

pub struct Rig {
    pub unit: VtdUnit,
    pub ram: Arc<RamBlock>,
    pub sink: Arc<Sink>,
}

impl Rig {
    /// A unit after reset.
    pub fn new(options: VtdOptions) -> Self {
        let (ram, sink) = (Arc::new(RamBlock::new(0, RAM)), Arc::new(Sink::default()));
        let guest_ram: Arc<dyn GuestRam> = ram.clone();
        Self { unit: VtdUnit::new(options, sink.clone(), guest_ram), ram, sink }
    }

    /// A unit that remaps, with its queue.
    pub fn remapping() -> Self {
        let rig = Self::new(VtdOptions { fault_records: 2, ..VtdOptions::default() });
        rig.unit.write(r::TABLE_ADDRESS, 8, TABLE | 7);
        rig.unit.write(r::QUEUE_ADDRESS, 8, QUEUE);
        rig.command(SET_TABLE);
        rig.command(REMAP);
        rig.command(REMAP | USE_QUEUE);
        rig
    }

    pub fn command(&self, value: u32) {
        self.unit.write(r::GLOBAL_COMMAND, 4, value.into());
    }

    pub fn read32(&self, offset: u64) -> u32 {
        self.unit.read(offset, 4) as u32
    }

    pub fn set_entry(&self, index: u32, [low, high]: [u64; 2]) {
        let address = TABLE + 16 * u64::from(index);
        self.ram.write_le(address, low).unwrap();
        self.ram.write_le(address + 8, high).unwrap();
    }

    /// Puts descriptors into the queue and moves the tail behind them.
    pub fn submit(&self, descriptors: &[[u64; 2]]) {
        let mut tail = self.unit.read(r::QUEUE_TAIL, 8);
        for [low, high] in descriptors {
            self.ram.write_le(QUEUE + tail, *low).unwrap();
            self.ram.write_le(QUEUE + tail + 8, *high).unwrap();
            tail = (tail + 16) % 0x1000;
        }
        self.unit.write(r::QUEUE_TAIL, 8, tail);
    }

    /// Sends what a device sends: once as a message of its own, and once through a prepared target.
    pub fn send(&self, address: u64, data: u32, requester: u16) -> [Vec<(u64, u32)>; 2] {
        let message = MsiMessage::new(address, data).from_device(DeviceId(requester.into()));
        let sent = self.unit.send(&message).unwrap();
        let first = self.sink.take();
        let fired = self.unit.fire(self.unit.prepare(&message).unwrap());
        let second = self.sink.take();
        assert_eq!(sent == Delivery::Ignored, first.is_empty(), "blocked messages are ignored: {first:x?}");
        assert_eq!(fired == Delivery::Ignored, second.is_empty(), "blocked messages are ignored: {second:x?}");
        [first, second]
    }

    /// The pending records: reason, index, requester; they are freed.
    pub fn faults(&self) -> Vec<(u8, u16, u16)> {
        let status = self.read32(r::FAULT_STATUS);
        let first = status >> 8 & 0xff;
        let mut found = Vec::new();
        if status & 2 == 0 {
            return found;
        }
        for step in 0..2 {
            let at = r::FAULT_RECORDS + 16 * u64::from((first + step) % 2);
            let (low, high) = (self.unit.read(at, 8), self.unit.read(at + 8, 8));
            if high >> 63 == 1 {
                found.push(((high >> 32) as u8, (low >> 48) as u16, high as u16));
                self.unit.write(at + 12, 4, 1 << 31);
            }
        }
        self.unit.write(r::FAULT_STATUS, 4, 1);
        found
    }
}

/// The address of a message for this handle.
pub fn handle(handle: u32) -> u64 {
    0xfee0_0010 | u64::from(handle & 0x7fff) << 5 | u64::from(handle >> 15) << 2
}

/// The same with a valid subhandle.
pub fn handle_with_subhandle(index: u32) -> u64 {
    handle(index) | 1 << 3
}

/// An entry for this vector on a CPU, for anybody.
pub fn entry(vector: u8, cpu: u8) -> [u64; 2] {
    [1 | u64::from(vector) << 16 | u64::from(cpu) << 40, 0]
}

/// What arrives by [`entry`].
pub fn arrives(vector: u8, cpu: u8) -> (u64, u32) {
    (0xfee0_0000 | u64::from(cpu) << 12, 1 << 14 | u32::from(vector))
}

pub const INVALIDATE_ALL: [u64; 2] = [4, 0];

pub fn invalidate(index: u32, mask: u8) -> [u64; 2] {
    [4 | 1 << 4 | u64::from(mask) << 27 | u64::from(index) << 32, 0]
}

/// A wait descriptor that writes a status to [`STATUS`].
pub fn wait(status: u32) -> [u64; 2] {
    [5 | 1 << 5 | u64::from(status) << 32, STATUS]
}
