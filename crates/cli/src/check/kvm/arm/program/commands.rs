//! Commands for the ITSs, and the memory around them.

use doorbell::kvm_abi::arm::types::ctrl;

use super::super::call::{Call, Command};
use super::super::layout::{CODE, CONFIG, ITS, ITT, LPIS, QUEUE_SLOTS, RAM, RAM_BYTES};
use super::super::registers::VALID;
use super::super::setup::{map_collection, map_device, map_event};
use super::Source;

impl Source {
    pub(super) fn commands(&mut self) -> Call {
        let its = self.its();
        let count = self.random.pick(&[1, 1, 1, 2, 3]);
        let list: Vec<_> = (0..count).map(|_| self.command(its)).collect();
        let at = self.slots[its];
        self.slots[its] = (at + count) % QUEUE_SLOTS;
        Call::Commands { its, at, list }
    }

    fn collection(&mut self) -> u64 {
        if self.random.one_in(16) { self.random.pick(&[9, 0x1fff, 0x2000, 0xffff]) } else { self.random.below(4) }
    }

    /// The collection of a new event: where tables are saved, one that has been mapped.
    fn new_events_collection(&mut self, its: usize) -> u64 {
        if self.unmaps { self.collection() } else { self.random.pick(&[0, 1 + its as u64]) }
    }

    fn target(&mut self) -> u64 {
        if self.random.one_in(16) { self.random.pick(&[7, 0xffff, 0x7_ffff_ffff]) } else { self.vcpu().into() }
    }

    fn command(&mut self, its: usize) -> Command {
        let (device, event) = self.event();
        let (device, event) = (u64::from(device), u64::from(event));
        let of_event = |opcode: u64| [opcode | device << 32, event, 0, 0];
        match self.random.below(40) {
            0..4 => [0x01 | device << 32, event, self.collection(), 0],
            4..8 => of_event(0x03),
            8..11 => of_event(0x04),
            11 => [0x05, 0, self.target() << 16, 0],
            12..15 if !self.disables => self.map_device(its, device),
            15..19 => {
                let unmap = if self.unmaps && self.random.one_in(4) { VALID } else { 0 };
                // KVM refuses to unmap where the command names a vCPU that there is not, which does not matter otherwise.
                let target = if unmap == 0 { self.target() } else { 0 };
                let collection = self.collection();
                let mut command = map_collection(collection, target);
                command[2] ^= unmap;
                command
            }
            19..25 => map_event(device, event, self.lpi(), self.new_events_collection(its)),
            25 if self.live.is_none() => {
                [0x0b | device << 32, u64::from(self.lpi()), self.new_events_collection(its), 0]
            }
            25..30 => of_event(0x0c),
            30..32 => [0x0d, 0, self.collection(), 0],
            32..35 => [0x0e, 0, self.target() << 16, self.target() << 16],
            35..38 if !self.disables => of_event(0x0f),
            38 => [0x10 + self.random.below(0xf0), self.word(), self.word(), 0],
            _ => of_event(0x03),
        }
    }

    fn map_device(&mut self, its: usize, device: u64) -> Command {
        let bits = if self.random.one_in(10) { self.random.pick(&[16, 17, 32]) } else { 2 + self.random.below(5) };
        let mut command = map_device(its, device, bits);
        match self.random.below(12) {
            // Its table is where there is no memory.
            0 => command[2] = VALID | self.random.pick(&[0x1000_0000, RAM + RAM_BYTES as u64, 0xf_ffff_ffff_ff00]),
            1..4 => command[2] &= !VALID,
            _ => {}
        }
        command
    }

    pub(super) fn save_tables(&mut self) -> Call {
        let save = if self.unmaps { ctrl::INIT } else { ctrl::ITS_SAVE_TABLES };
        Call::action(ITS[self.its()], self.random.pick(&[save, save, ctrl::INIT]))
    }

    /// The configuration of an LPI.
    pub(super) fn configuration(&mut self) -> Call {
        let lpi = self.lpi().max(LPIS);
        let byte = match &self.live {
            Some(live) => live.priority(lpi) | u8::from(!self.random.one_in(3)),
            None => self.random.next() as u8,
        };
        let byte = if self.disables { byte } else { byte | 1 };
        Call::WriteRam { address: CONFIG + u64::from(lpi - LPIS), bytes: vec![byte] }
    }

    /// Some bytes of the tables of events, which the ITS must not trust.
    pub(super) fn memory(&mut self) -> Call {
        let address = self.random.pick(&ITT) + self.random.below(0x400) * 8;
        debug_assert!(address > CODE);
        Call::WriteRam { address, bytes: self.word().to_le_bytes().to_vec() }
    }
}
