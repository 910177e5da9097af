//! The registers of a unit as they stand, its two logs, and when it interrupts.

use super::{
    event::{EVENT, Event},
    registers::{
        BufferBase, Control, DeviceTableBase, ExtendedFeatures, ExtendedFeatures2, GA_POINTER, MsiHeader, POINTER,
        Status, XtInterrupt, offset,
    },
    tables::GuestLogEntry,
};
use crate::{
    MsiMessage,
    guest_ram::{GuestRam, GuestRamExt},
    list::List,
};

/// What a unit claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub first: ExtendedFeatures,
    pub second: ExtendedFeatures2,
}

/// The message of the unit's own MSI capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnMsi {
    pub enable: bool,
    pub address: u64,
    pub data: u16,
}

/// What a store asks of the unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// What is remembered of the tables is void.
    pub tables: bool,
    /// There may be commands to run.
    pub commands: bool,
}

/// Reasons to interrupt. Each is told once when it arises.
#[bitfield_struct::bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Reasons {
    pub event: bool,
    pub overflow: bool,
    pub wait: bool,
    pub guest: bool,
    pub guest_overflow: bool,
    #[bits(3)]
    __: u8,
}

/// Messages of the unit itself: one for each of [`Reasons`] at most.
pub type Own = List<MsiMessage, 5>;

/// A buffer of entries that one side fills and the other empties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    pub base: BufferBase,
    pub head: u64,
    pub tail: u64,
    /// It has stopped over a mistake and waits to be started anew.
    pub halted: bool,
}

impl Ring {
    /// The size in bytes of a ring of entries of `entry` bytes that pointers with these bits can reach.
    fn size(&self, entry: u64, pointer: u64) -> Option<u64> {
        Some((u64::from(self.base.entries()?) * entry).min(pointer + entry))
    }

    /// Where the next entry goes, or `None` if the ring is full; advances the tail.
    fn put(&mut self, entry: u64, pointer: u64) -> Option<u64> {
        let size = self.size(entry, pointer)?;
        let (at, head) = (self.tail % size, self.head % size);
        let next = (at + entry) % size;
        if next == head {
            return None;
        }
        self.tail = next;
        Some(self.base.address() + at)
    }

    fn set_base(&mut self, bits: u64) {
        self.base = BufferBase::from_bits(bits & BufferBase::WRITABLE);
        (self.head, self.tail) = (0, 0);
    }
}

/// All registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    pub device_table: DeviceTableBase,
    pub control: Control,
    /// Only the bits that a 1 clears; the others follow from the rest.
    pub status: Status,
    pub commands: Ring,
    pub events: Ring,
    pub guests: Ring,
    /// Base and limit of the exclusion range, which concerns no interrupt.
    pub exclusion: [u64; 2],
    /// Kept for the guest; the tail is read from its register.
    pub guest_tail_address: u64,
    /// General, PPR, guest virtual APIC log.
    pub xt: [XtInterrupt; 3],
    pub msi: OwnMsi,
    /// What has been told.
    pub told: Reasons,
}

const EXCLUSION: [u64; 2] = [0x000f_ffff_ffff_f003, 0x000f_ffff_ffff_f000];
const TAIL_ADDRESS: u64 = 0x000f_ffff_ffff_fff8;
const MSI_CAPABILITY: u8 = 5;

impl Bank {
    fn commands_run(&self) -> bool {
        self.control.enable()
            && self.control.command_buffer()
            && self.commands.base.entries().is_some()
            && !self.commands.halted
    }

    fn events_run(&self) -> bool {
        self.control.enable()
            && self.control.event_log()
            && self.events.base.entries().is_some()
            && !self.events.halted
            && !self.status.event_overflow()
    }

    fn guests_run(&self) -> bool {
        self.control.enable()
            && self.control.guest_log()
            && self.guests.base.entries().is_some()
            && !self.guests.halted
            && !self.status.guest_overflow()
    }

    /// The register at `at`, a multiple of 8; others are 0.
    pub fn read(&self, at: u64, features: Features) -> u64 {
        match at {
            offset::DEVICE_TABLE_BASE => self.device_table.into_bits(),
            offset::COMMAND_BUFFER_BASE => self.commands.base.into_bits(),
            offset::EVENT_LOG_BASE => self.events.base.into_bits(),
            offset::CONTROL => self.control.into_bits(),
            offset::EXCLUSION_BASE => self.exclusion[0],
            offset::EXCLUSION_LIMIT => self.exclusion[1],
            offset::EXTENDED_FEATURES => features.first.into_bits(),
            offset::EXTENDED_FEATURES_2 => features.second.into_bits(),
            offset::GA_LOG_BASE => self.guests.base.into_bits(),
            offset::GA_LOG_TAIL_ADDRESS => self.guest_tail_address,
            offset::MSI_HEADER => {
                let header = MsiHeader::new().with_id(MSI_CAPABILITY).with_enable(self.msi.enable).with_wide(true);
                u64::from(header.into_bits()) | self.msi.address << 32
            }
            offset::MSI_DATA => self.msi.address >> 32 | u64::from(self.msi.data) << 32,
            offset::XT_GENERAL => self.xt[0].into_bits(),
            offset::XT_PPR => self.xt[1].into_bits(),
            offset::XT_GA_LOG => self.xt[2].into_bits(),
            offset::COMMAND_HEAD => self.commands.head,
            offset::COMMAND_TAIL => self.commands.tail,
            offset::EVENT_HEAD => self.events.head,
            offset::EVENT_TAIL => self.events.tail,
            offset::GA_LOG_HEAD => self.guests.head,
            offset::GA_LOG_TAIL => self.guests.tail,
            offset::STATUS => self
                .status
                .with_command_buffer_runs(self.commands_run())
                .with_event_log_runs(self.events_run())
                .with_guest_log_runs(self.guests_run())
                .into_bits(),
            _ => 0,
        }
    }

    /// A store of those bits of `value` that are in `mask` to the register at `at`, a multiple of 8.
    pub fn write(&mut self, at: u64, value: u64, mask: u64, features: Features) -> Effect {
        let old = self.read(at, features);
        let new = old & !mask | value & mask;
        let commands = Effect { commands: true, ..Effect::default() };
        match at {
            offset::DEVICE_TABLE_BASE => {
                self.device_table = DeviceTableBase::from_bits(new & DeviceTableBase::WRITABLE);
                return Effect { tables: true, commands: false };
            }
            offset::COMMAND_BUFFER_BASE => self.commands.set_base(new),
            offset::EVENT_LOG_BASE => self.events.set_base(new),
            offset::CONTROL => {
                let bits = new & Control::writable(features.first, features.second);
                self.set_control(Control::from_bits(bits));
                return Effect { tables: bits != old, commands: true };
            }
            offset::EXCLUSION_BASE => self.exclusion[0] = new & EXCLUSION[0],
            offset::EXCLUSION_LIMIT => self.exclusion[1] = new & EXCLUSION[1],
            offset::GA_LOG_BASE if features.first.guest_apic() => self.guests.set_base(new),
            offset::GA_LOG_TAIL_ADDRESS if features.first.guest_apic() => {
                self.guest_tail_address = new & TAIL_ADDRESS;
            }
            offset::MSI_HEADER => {
                self.msi.enable = MsiHeader::from_bits(new as u32).enable();
                self.msi.address = self.msi.address & !0xffff_ffff | new >> 32 & !3;
            }
            offset::MSI_DATA => {
                self.msi.address = self.msi.address & 0xffff_ffff | new << 32;
                self.msi.data = (new >> 32) as u16;
            }
            offset::XT_GENERAL | offset::XT_PPR | offset::XT_GA_LOG if features.first.x2apic() => {
                self.xt[(at - offset::XT_GENERAL) as usize / 8] = XtInterrupt::from_bits(new & XtInterrupt::WRITABLE);
            }
            offset::COMMAND_HEAD => {
                self.commands.head = new & POINTER;
                return commands;
            }
            offset::COMMAND_TAIL => {
                self.commands.tail = new & POINTER;
                return commands;
            }
            offset::EVENT_HEAD => self.events.head = new & POINTER,
            offset::EVENT_TAIL => self.events.tail = new & POINTER,
            offset::GA_LOG_HEAD if features.first.guest_apic() => self.guests.head = new & GA_POINTER,
            offset::GA_LOG_TAIL if features.first.guest_apic() => self.guests.tail = new & GA_POINTER,
            offset::STATUS => {
                let cleared = value & mask & Status::CLEARED_BY_1;
                self.status = Status::from_bits(self.status.into_bits() & !cleared);
            }
            _ => {}
        }
        Effect::default()
    }

    /// What stopped over a mistake starts anew when it is enabled once more; a log that overflowed, also when it is
    /// enabled still and the overflow has been cleared.
    fn set_control(&mut self, control: Control) {
        self.control = control;
        if !control.enable() || !control.command_buffer() {
            self.commands.halted = false;
        }
        if !control.enable() || !control.event_log() || !self.status.event_overflow() {
            self.events.halted = false;
        }
        if !control.enable() || !control.guest_log() || !self.status.guest_overflow() {
            self.guests.halted = false;
        }
    }

    /// Where the next command is, if there is one and commands run.
    pub fn next_command(&self, entry: u64) -> Option<u64> {
        let size = self.commands.size(entry, POINTER).filter(|_| self.commands_run())?;
        let head = self.commands.head % size;
        (head != self.commands.tail % size).then(|| self.commands.base.address() + head)
    }

    /// The next command is done.
    pub fn command_done(&mut self, entry: u64) {
        if let Some(size) = self.commands.size(entry, POINTER) {
            self.commands.head = (self.commands.head + entry) % size;
        }
    }

    /// Writes an event, if events are logged and there is room. An event log that is no memory swallows it.
    pub fn log(&mut self, ram: &dyn GuestRam, event: &Event) {
        if !self.events_run() {
            return;
        }
        let Some(at) = self.events.put(EVENT, POINTER) else {
            self.status.set_event_overflow(true);
            self.events.halted = true;
            return;
        };
        let mut bytes = [0; EVENT as usize];
        bytes[..8].copy_from_slice(&event.head.into_bits().to_le_bytes());
        bytes[8..].copy_from_slice(&event.address.to_le_bytes());
        if let Err(error) = ram.write(at, &bytes) {
            tracing::debug!(%error, "the event log is no memory");
        }
        self.status.set_event_logged(true);
    }

    /// The same of the guest virtual APIC log.
    pub fn log_guest(&mut self, ram: &dyn GuestRam, entry: GuestLogEntry) {
        if !self.guests_run() {
            return;
        }
        let Some(at) = self.guests.put(size_of::<GuestLogEntry>() as u64, GA_POINTER) else {
            self.status.set_guest_overflow(true);
            self.guests.halted = true;
            return;
        };
        if let Err(error) = ram.write_le(at, entry.into_bits()) {
            tracing::debug!(%error, "the guest virtual APIC log is no memory");
        }
        self.status.set_guest_logged(true);
    }

    /// Why the unit interrupts, as things stand.
    pub fn reasons(&self) -> Reasons {
        let (status, control) = (self.status, self.control);
        Reasons::new()
            .with_event(status.event_logged() && control.event_interrupt())
            .with_overflow(status.event_overflow() && control.event_interrupt())
            .with_wait(status.wait_completed() && control.wait_interrupt())
            .with_guest(status.guest_logged() && control.guest_interrupt())
            .with_guest_overflow(status.guest_overflow() && control.guest_interrupt())
    }

    /// The messages for the reasons that have arisen since the last call.
    pub fn take_messages(&mut self) -> Own {
        let now = self.reasons();
        let new = Reasons::from_bits(now.into_bits() & !self.told.into_bits());
        self.told = now;
        let general = [new.event(), new.overflow(), new.wait()].into_iter().filter(|&it| it).map(|_| 0);
        let guest = [new.guest(), new.guest_overflow()].into_iter().filter(|&it| it).map(|_| 2);
        general.chain(guest).filter_map(|which| self.own_message(which)).collect()
    }

    fn own_message(&self, which: usize) -> Option<MsiMessage> {
        if self.control.x2apic_own() {
            return Some(self.xt[which].message());
        }
        let OwnMsi { enable, address, data } = self.msi;
        enable.then(|| MsiMessage::new(address, data.into()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Enabled, by itself, overflowed.
    const ALL: [[bool; 3]; 8] = [
        [false, false, false],
        [false, false, true],
        [false, true, false],
        [false, true, true],
        [true, false, false],
        [true, false, true],
        [true, true, false],
        [true, true, true],
    ];

    #[test]
    fn what_has_stopped_starts_anew_when_it_has_been_off_or_its_overflow_is_cleared() {
        for [enable, own, overflow] in ALL {
            let mut bank = Bank::default();
            bank.commands.halted = true;
            bank.events.halted = true;
            bank.guests.halted = true;
            bank.status.set_event_overflow(overflow);
            bank.status.set_guest_overflow(overflow);
            let control = Control::new().with_enable(enable).with_command_buffer(own);
            bank.set_control(control.with_event_log(own).with_guest_log(own));
            let halted = [bank.commands.halted, bank.events.halted, bank.guests.halted];
            let log = enable && own && overflow;
            assert_eq!(halted, [enable && own, log, log], "enable {enable}, own {own}, overflow {overflow}");
        }
    }

    #[test]
    fn the_halves_of_the_message_s_address_are_stored_apart() {
        let features = Features { first: ExtendedFeatures::new(), second: ExtendedFeatures2::new() };
        let mut bank = Bank::default();
        for (low, high) in [(0xfee0_1000u64, 0x12u64), (0xfee0_2000, 0x21)] {
            let _ = bank.write(offset::MSI_HEADER, low << 32, u64::MAX, features);
            let _ = bank.write(offset::MSI_DATA, 0x41 << 32 | high, u64::MAX, features);
            assert_eq!((bank.msi.address, bank.msi.data), (high << 32 | low, 0x41));
        }
    }
}
