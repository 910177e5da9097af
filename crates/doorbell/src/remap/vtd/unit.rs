//! The registers in motion: what a guest's loads and stores do.

use super::{
    VtdUnit,
    event::Event,
    queue::{EVERYTHING, MAX_MASK},
    registers::{
        self as r, Capability, CompletionStatus, ExtendedCapability, FaultStatus, Global, QueueAddress,
        QueueErrorRecord, QueuePointer, TableAddress, Version,
    },
};
use crate::{MsiTarget, sync::Ordering};

/// The registers that only a guest's stores touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    pub status: Global,
    pub root: u64,
    /// As it was stored; [`Tables::table`](super::tables::Tables::table) is the one in use.
    pub table: TableAddress,
    pub queue: QueueAddress,
    pub head: QueuePointer,
    pub tail: QueuePointer,
    pub queue_error: QueueErrorRecord,
    pub completion: CompletionStatus,
    pub completion_event: Event,
}

impl Registers {
    pub fn new() -> Self {
        Self {
            status: Global::new(),
            root: 0,
            table: TableAddress::new(),
            queue: QueueAddress::new(),
            head: QueuePointer::new(),
            tail: QueuePointer::new(),
            queue_error: QueueErrorRecord::new(),
            completion: CompletionStatus::new(),
            completion_event: Event::new(),
        }
    }

    /// A wait descriptor that asked for an interrupt is complete.
    pub fn complete(&mut self, target: &dyn MsiTarget) {
        let first = !self.completion.complete();
        self.completion.set_complete(true);
        self.completion_event.raise(first, target);
    }
}

/// A register of 64 bits after a store to one of its halves.
fn with_half(old: u64, high: bool, value: u32) -> u64 {
    if high { old & 0xffff_ffff | u64::from(value) << 32 } else { old & !0xffff_ffff | u64::from(value) }
}

/// Splits a register of 64 bits that begins at `base`; `None` if `offset` is not in it.
fn half_of(base: u64, offset: u64) -> Option<bool> {
    match offset.checked_sub(base) {
        Some(0) => Some(false),
        Some(4) => Some(true),
        _ => None,
    }
}

const LAST_RECORD: u64 = r::WINDOW - 1;

impl VtdUnit {
    /// A guest's load of 4 or 8 bytes at a multiple of its size. Anything else, and what has no register, reads 0.
    pub fn read(&self, offset: u64, size: usize) -> u64 {
        match size {
            4 if offset % 4 == 0 => self.load(offset).into(),
            8 if offset % 8 == 0 => u64::from(self.load(offset)) | u64::from(self.load(offset + 4)) << 32,
            _ => 0,
        }
    }

    /// A guest's store of 4 or 8 bytes at a multiple of its size. Anything else is ignored. When it returns, the command
    /// that it gave is complete.
    pub fn write(&self, offset: u64, size: usize, value: u64) {
        match size {
            4 if offset % 4 == 0 => self.store(offset, value as u32),
            8 if offset % 8 == 0 => {
                self.store(offset, value as u32);
                self.store(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    /// The capability register.
    pub fn capability(&self) -> Capability {
        let records = self.tables.faults.lock().records.len();
        Capability::new()
            .with_domains(6)
            .with_fault_offset((r::FAULT_RECORDS / 16) as u16)
            .with_fault_records((records - 1) as u8)
            .with_posted(self.tables.options.posted)
            .with_table_pointer_invalidates(true)
    }

    /// The extended capability register.
    pub fn extended_capability(&self) -> ExtendedCapability {
        ExtendedCapability::new()
            .with_coherent(true)
            .with_queued_invalidation(true)
            .with_interrupt_remapping(true)
            .with_extended_mode(self.tables.options.extended_mode)
            .with_iotlb_offset(0xf)
            .with_handle_mask(MAX_MASK)
    }

    fn load(&self, offset: u64) -> u32 {
        let wide = |base: u64, value: u64| {
            half_of(base, offset).map(|high| if high { (value >> 32) as u32 } else { value as u32 })
        };
        match offset {
            r::VERSION => Version::new().with_major(1).into_bits(),
            r::GLOBAL_STATUS => self.registers.lock().status.into_bits(),
            r::FAULT_STATUS => self.tables.faults.lock().read_status().into_bits(),
            r::COMPLETION_STATUS => self.registers.lock().completion.into_bits(),
            0x38..=0x44 => self.tables.faults.lock().event.read(offset - r::FAULT_EVENT),
            0xa0..=0xac => self.registers.lock().completion_event.read(offset - r::COMPLETION_EVENT),
            r::CAPABILITY..r::GLOBAL_COMMAND => wide(r::CAPABILITY, self.capability().into_bits())
                .or_else(|| wide(r::EXTENDED_CAPABILITY, self.extended_capability().into_bits()))
                .unwrap_or(0),
            r::FAULT_RECORDS..=LAST_RECORD => {
                let at = (offset - r::FAULT_RECORDS) as usize;
                let faults = self.tables.faults.lock();
                let word = faults.records.get(at / 16).map_or(0, |record| record[at / 8 % 2]);
                if at % 8 == 0 { word as u32 } else { (word >> 32) as u32 }
            }
            _ => {
                let registers = self.registers.lock();
                wide(r::ROOT_TABLE, registers.root)
                    .or_else(|| wide(r::QUEUE_HEAD, registers.head.into_bits()))
                    .or_else(|| wide(r::QUEUE_TAIL, registers.tail.into_bits()))
                    .or_else(|| wide(r::QUEUE_ADDRESS, registers.queue.into_bits()))
                    .or_else(|| wide(r::QUEUE_ERROR, registers.queue_error.into_bits()))
                    .or_else(|| wide(r::TABLE_ADDRESS, registers.table.into_bits()))
                    .unwrap_or(0)
            }
        }
    }

    fn store(&self, offset: u64, value: u32) {
        let inner = self.cache.inner();
        match offset {
            0x38..=0x44 => self.tables.faults.lock().event.write(offset - r::FAULT_EVENT, value, inner),
            r::FAULT_RECORDS..=LAST_RECORD => {
                let at = (offset - r::FAULT_RECORDS) as usize;
                if at % 16 == 12 {
                    self.tables.faults.lock().write_record(at / 16, value);
                }
            }
            _ => self.store_locked(offset, value),
        }
    }

    fn store_locked(&self, offset: u64, value: u32) {
        let registers = &mut *self.registers.lock();
        match offset {
            r::GLOBAL_COMMAND => self.command(registers, Global::from_bits(value)),
            r::FAULT_STATUS => {
                self.tables.faults.lock().write_status(FaultStatus::from_bits(value));
                // A queue that had stopped goes on.
                self.work_off(registers);
            }
            r::COMPLETION_STATUS => {
                if CompletionStatus::from_bits(value).complete() {
                    registers.completion.set_complete(false);
                    registers.completion_event.withdraw();
                }
            }
            0xa0..=0xac => {
                registers.completion_event.write(offset - r::COMPLETION_EVENT, value, self.cache.inner());
            }
            _ => {
                if let Some(high) = half_of(r::ROOT_TABLE, offset) {
                    registers.root = with_half(registers.root, high, value);
                } else if let Some(high) = half_of(r::QUEUE_ADDRESS, offset) {
                    let stored = QueueAddress::from_bits(with_half(registers.queue.into_bits(), high, value));
                    registers.queue = QueueAddress::new().with_size(stored.size()).with_page(stored.page());
                } else if let Some(high) = half_of(r::TABLE_ADDRESS, offset) {
                    let stored = TableAddress::from_bits(with_half(registers.table.into_bits(), high, value));
                    registers.table = TableAddress::new()
                        .with_size(stored.size())
                        .with_extended_mode(stored.extended_mode() && self.tables.options.extended_mode)
                        .with_page(stored.page());
                } else if offset == r::QUEUE_TAIL {
                    let stored = QueuePointer::from_bits(value.into());
                    registers.tail = QueuePointer::new().with_index(stored.index());
                    self.work_off(registers);
                }
            }
        }
    }

    /// A store to the global command register.
    fn command(&self, registers: &mut Registers, command: Global) {
        let status = &mut registers.status;
        if command.set_root() {
            status.set_set_root(true);
        }
        let before = *status;
        status.set_compatibility(command.compatibility());
        status.set_remapping(command.remapping());
        if command.set_table() {
            // Relaxed: published by the mode below and by the buckets that the invalidation takes.
            self.tables.table.store(registers.table.into_bits(), Ordering::Relaxed);
            status.set_set_table(true);
        }
        if command.set_table() || before != *status {
            // Release: pairs with the Acquire in `remap`.
            self.tables.mode.store(mode(*status), Ordering::Release);
            // Waits for messages that are still on their way in the old manner.
            self.cache.invalidate(&self.tables, EVERYTHING);
        }
        if command.queue() != registers.status.queue() {
            registers.status.set_queue(command.queue());
            registers.head = QueuePointer::new();
            self.work_off(registers);
        }
    }
}

/// The part of the status by which messages are looked up.
pub fn mode(status: Global) -> u32 {
    Global::new().with_remapping(status.remapping()).with_compatibility(status.compatibility()).into_bits()
}
