//! What a unit saves.

use super::{
    bank::{Bank, Features, OwnMsi, Reasons, Ring},
    registers::{BufferBase, Control, DeviceTableBase, Status, XtInterrupt, offset},
};
use crate::Error;

/// A saved unit. What is remembered of the tables is not part of it: they are read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs, reason = "the names are the manual's registers")]
pub struct AmdUnitState {
    pub device_table_base: u64,
    pub control: u64,
    /// Only the bits that a stored 1 clears.
    pub status: u64,
    pub commands: AmdRingState,
    pub events: AmdRingState,
    pub guests: AmdRingState,
    pub exclusion: [u64; 2],
    pub guest_tail_address: u64,
    /// General, PPR, guest virtual APIC log.
    pub xt: [u64; 3],
    pub msi_enable: bool,
    pub msi_address: u64,
    pub msi_data: u16,
}

/// A saved buffer of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AmdRingState {
    /// The base address register.
    pub base: u64,
    /// The head pointer.
    pub head: u64,
    /// The tail pointer.
    pub tail: u64,
    /// It has stopped over a mistake.
    pub halted: bool,
}

impl AmdRingState {
    fn of(ring: &Ring) -> Self {
        let Ring { base, head, tail, halted } = *ring;
        Self { base: base.into_bits(), head, tail, halted }
    }

    fn ring(&self) -> Ring {
        let Self { base, head, tail, halted } = *self;
        Ring { base: BufferBase::from_bits(base), head, tail, halted }
    }
}

impl AmdUnitState {
    pub(super) fn of(bank: &Bank) -> Self {
        let Bank {
            device_table,
            control,
            status,
            commands,
            events,
            guests,
            exclusion,
            guest_tail_address,
            xt,
            msi,
            // Follows from the rest.
            told: _,
        } = bank;
        let OwnMsi { enable, address, data } = *msi;
        Self {
            device_table_base: device_table.into_bits(),
            control: control.into_bits(),
            status: status.into_bits(),
            commands: AmdRingState::of(commands),
            events: AmdRingState::of(events),
            guests: AmdRingState::of(guests),
            exclusion: *exclusion,
            guest_tail_address: *guest_tail_address,
            xt: xt.map(XtInterrupt::into_bits),
            msi_enable: enable,
            msi_address: address,
            msi_data: data,
        }
    }

    /// The registers, if a guest could have made them so.
    pub(super) fn bank(&self, features: Features) -> Result<Bank, Error> {
        let Self {
            device_table_base,
            control,
            status,
            commands,
            events,
            guests,
            exclusion,
            guest_tail_address,
            xt,
            msi_enable,
            msi_address,
            msi_data,
        } = self;
        if status & !Status::CLEARED_BY_1 != 0 {
            let most = Status::CLEARED_BY_1;
            return Err(Error::Snapshot(format!("AMD-Vi unit: status {status:#x}, but only {most:#x} is saved")));
        }
        let runs = Control::from_bits(*control);
        for (what, ring, enabled) in [
            ("command buffer", commands, runs.command_buffer()),
            ("event log", events, runs.event_log()),
            ("guest virtual APIC log", guests, runs.guest_log()),
        ] {
            if ring.halted && !(runs.enable() && enabled) {
                return Err(Error::Snapshot(format!("AMD-Vi unit: the {what} has stopped, but is not enabled")));
            }
        }
        let mut bank = Bank {
            device_table: DeviceTableBase::from_bits(*device_table_base),
            control: Control::from_bits(*control),
            status: Status::from_bits(*status),
            commands: commands.ring(),
            events: events.ring(),
            guests: guests.ring(),
            exclusion: *exclusion,
            guest_tail_address: *guest_tail_address,
            xt: xt.map(XtInterrupt::from_bits),
            msi: OwnMsi { enable: *msi_enable, address: *msi_address, data: *msi_data },
            told: Reasons::new(),
        };
        // A guest could have stored it, so what comes back after a store must be what was saved.
        let mut again = bank.clone();
        for at in [
            offset::DEVICE_TABLE_BASE,
            offset::COMMAND_BUFFER_BASE,
            offset::COMMAND_HEAD,
            offset::COMMAND_TAIL,
            offset::EVENT_LOG_BASE,
            offset::EVENT_HEAD,
            offset::EVENT_TAIL,
            offset::GA_LOG_BASE,
            offset::GA_LOG_HEAD,
            offset::GA_LOG_TAIL,
            offset::CONTROL,
            offset::EXCLUSION_BASE,
            offset::EXCLUSION_LIMIT,
            offset::GA_LOG_TAIL_ADDRESS,
            offset::MSI_HEADER,
            offset::MSI_DATA,
            offset::XT_GENERAL,
            offset::XT_PPR,
            offset::XT_GA_LOG,
        ] {
            let saved = bank.read(at, features);
            again.write(at, 0, u64::MAX, features);
            again.write(at, saved, u64::MAX, features);
            if again.read(at, features) != saved {
                return Err(Error::Snapshot(format!("AMD-Vi unit: register {at:#x} cannot be {saved:#x}")));
            }
        }
        // What stood when it was saved has been told.
        bank.told = bank.reasons();
        Ok(bank)
    }
}
