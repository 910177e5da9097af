//! What went wrong, and who is told: fault status, fault recording registers and the fault event (VT-d specification,
//! sections "Fault Reporting" and "Fault Event").

use super::{
    event::Event,
    registers::{FaultRecord, FaultStatus},
};
use crate::MsiTarget;

/// Why a message was blocked: the fault reasons of interrupt remapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Reserved bits of the message are set.
    ReservedInRequest = 0x20,
    /// The table has no such entry.
    IndexTooLarge = 0x21,
    /// The entry is not present.
    NotPresent = 0x22,
    /// There is no memory where the table should be.
    TableUnreadable = 0x23,
    /// Reserved bits of the entry are set, or it holds a value that is reserved.
    ReservedInEntry = 0x24,
    /// A message in compatibility format, which may not pass.
    Compatibility = 0x25,
    /// The entry is for another requester.
    WrongSource = 0x26,
    /// There is no memory where the posted-interrupt descriptor should be.
    DescriptorUnreadable = 0x27,
    /// Reserved bits of the posted-interrupt descriptor are set.
    ReservedInDescriptor = 0x28,
}

/// A message that was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub reason: Reason,
    /// The index of its entry.
    pub index: u32,
    /// Who sent it.
    pub requester: u16,
    /// It is not recorded, because the entry says so (spec T9).
    pub quiet: bool,
}

/// Two words for each fault recording register.
pub type Records = Vec<[u64; 2]>;

/// The registers of primary fault logging.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Without `pending` and `index`, which follow from the records.
    pub status: FaultStatus,
    pub event: Event,
    pub records: Records,
    /// Where the next fault is recorded.
    pub next: u8,
    /// The oldest record since the last time that none was pending.
    pub first: u8,
}

impl Faults {
    /// With so many records, 1 to 256.
    pub fn new(records: usize) -> Self {
        Self {
            status: FaultStatus::new(),
            event: Event::new(),
            records: vec![[0; 2]; records.clamp(1, 256)],
            next: 0,
            first: 0,
        }
    }

    fn is_taken(record: &[u64; 2]) -> bool {
        FaultRecord::from_bits(record[1]).fault()
    }

    fn is_pending(&self) -> bool {
        self.records.iter().any(Self::is_taken)
    }

    /// Whether any condition of the fault event holds.
    fn is_raised(&self) -> bool {
        self.is_pending() || self.status.overflow() || self.status.queue_error()
    }

    /// The fault status register.
    pub fn read_status(&self) -> FaultStatus {
        let pending = self.is_pending();
        self.status.with_pending(pending).with_index(if pending { self.first } else { 0 })
    }

    /// Records a message that was blocked.
    pub fn record(&mut self, fault: &Fault, target: &dyn MsiTarget) {
        if fault.quiet {
            return;
        }
        let raised = self.is_raised();
        let pending = self.is_pending();
        let next = usize::from(self.next);
        if self.status.overflow() {
            return;
        }
        match self.records.get_mut(next) {
            Some(record) if !Self::is_taken(record) => {
                let high =
                    FaultRecord::new().with_source(fault.requester).with_reason(fault.reason as u8).with_fault(true);
                // The field has 16 bits; an index beyond them is beyond every table too.
                *record = [u64::from(fault.index as u16) << 48, high.into_bits()];
                if !pending {
                    self.first = self.next;
                }
                self.next = ((next + 1) % self.records.len()) as u8;
            }
            _ => self.status.set_overflow(true),
        }
        self.event.raise(!raised, target);
    }

    /// The invalidation queue has stopped at an error.
    pub fn stop_queue(&mut self, target: &dyn MsiTarget) {
        let raised = self.is_raised();
        self.status.set_queue_error(true);
        self.event.raise(!raised, target);
    }

    /// A guest's store to the fault status register.
    pub fn write_status(&mut self, value: FaultStatus) {
        self.status.set_overflow(self.status.overflow() && !value.overflow());
        self.status.set_queue_error(self.status.queue_error() && !value.queue_error());
        self.settle();
    }

    /// A guest's store to the highest word of a record: a 1 in the fault bit frees it.
    pub fn write_record(&mut self, number: usize, value: u32) {
        if let Some(record) = self.records.get_mut(number).filter(|_| value >> 31 == 1) {
            let freed = FaultRecord::from_bits(record[1]).with_fault(false);
            record[1] = freed.into_bits();
            // The index names the oldest that is left.
            let count = self.records.len();
            if let Some(first) = (0..count)
                .map(|step| (usize::from(self.first) + step) % count)
                .find(|&at| Self::is_taken(&self.records[at]))
            {
                self.first = first as u8;
            }
            self.settle();
        }
    }

    /// An event that software has dealt with by hand is not sent any more.
    fn settle(&mut self) {
        if !self.is_raised() {
            self.event.withdraw();
        }
    }
}
