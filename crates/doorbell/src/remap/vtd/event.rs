//! An event of the unit itself: four registers that say whether and where it is told (VT-d specification, section
//! "Remapping Hardware Event Interrupt Programming"). Its messages are never remapped.

use super::registers::EventControl;
use crate::{MsiMessage, MsiTarget};

/// Control, data, address and upper address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub control: EventControl,
    pub data: u32,
    pub address: u32,
    pub upper: u32,
}

/// What is kept of the data: with 16 bits, the upper half is reserved.
const DATA: u32 = 0xffff;
/// What is kept of the address.
const ADDRESS: u32 = !3;

impl Event {
    /// After reset: masked.
    pub fn new() -> Self {
        Self { control: EventControl::new().with_masked(true), data: 0, address: 0, upper: 0 }
    }

    fn send(&mut self, target: &dyn MsiTarget) {
        self.control.set_pending(false);
        let address = u64::from(self.upper) << 32 | u64::from(self.address);
        if let Err(error) = target.send(&MsiMessage::new(address, self.data)) {
            tracing::debug!(%error, "the message of a remapping unit was refused");
        }
    }

    /// A condition of the event came up; `first`: none was there before.
    pub fn raise(&mut self, first: bool, target: &dyn MsiTarget) {
        if !first {
            return;
        }
        if self.control.masked() {
            self.control.set_pending(true);
        } else {
            self.send(target);
        }
    }

    /// No condition of the event is left.
    pub fn withdraw(&mut self) {
        self.control.set_pending(false);
    }

    /// One of its registers: `offset` is 0, 4, 8 or 12.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0 => self.control.into_bits(),
            4 => self.data,
            8 => self.address,
            _ => self.upper,
        }
    }

    /// A guest's store to one of them.
    pub fn write(&mut self, offset: u64, value: u32, target: &dyn MsiTarget) {
        match offset {
            0 => {
                self.control.set_masked(EventControl::from_bits(value).masked());
                if self.control.pending() && !self.control.masked() {
                    self.send(target);
                }
            }
            4 => self.data = value & DATA,
            8 => self.address = value & ADDRESS,
            _ => self.upper = value,
        }
    }
}
