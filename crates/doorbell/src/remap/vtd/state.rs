//! Save and restore of a unit, a faulted one too.

use super::{
    VtdUnit,
    event::Event,
    faults::Faults,
    queue::EVERYTHING,
    registers::{
        CompletionStatus, EventControl, FaultStatus, Global, QueueAddress, QueueErrorRecord, QueuePointer, TableAddress,
    },
    unit::{Registers, mode},
};
use crate::{Error, sync::Ordering};

/// Everything that a [`VtdUnit`] remembers, to be restored into one with the same options. The cache is not part of it: the
/// tables are in guest memory, and whatever was cached was either there or to be invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VtdState {
    /// Global status.
    pub status: u32,
    /// Root table address.
    pub root: u64,
    /// Address of the remapping table, as stored.
    pub table: u64,
    /// Address of the remapping table in use.
    pub table_in_use: u64,
    /// Address of the invalidation queue.
    pub queue: u64,
    /// Its head.
    pub head: u64,
    /// Its tail.
    pub tail: u64,
    /// Its error record.
    pub queue_error: u64,
    /// Invalidation completion status.
    pub completion: u32,
    /// Invalidation completion event.
    pub completion_event: EventState,
    /// Fault status, without what follows from the records.
    pub fault_status: u32,
    /// Fault event.
    pub fault_event: EventState,
    /// Fault recording registers, low half first.
    pub records: Vec<[u64; 2]>,
    /// Where the next fault is recorded.
    pub next_record: u8,
    /// The oldest record.
    pub first_record: u8,
}

/// The registers of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EventState {
    /// Control.
    pub control: u32,
    /// Data.
    pub data: u32,
    /// Address.
    pub address: u32,
    /// Upper address.
    pub upper: u32,
}

impl EventState {
    fn save(event: &Event) -> Self {
        let Event { control, data, address, upper } = *event;
        Self { control: control.into_bits(), data, address, upper }
    }

    fn restore(self) -> Option<Event> {
        let Self { control, data, address, upper } = self;
        let control = EventControl::from_bits(control);
        let known = EventControl::new().with_pending(control.pending()).with_masked(control.masked());
        let sound = control == known && data >> 16 == 0 && address & 3 == 0 && (control.masked() || !control.pending());
        sound.then_some(Event { control, data, address, upper })
    }
}

impl VtdUnit {
    /// Everything, for [`restore`](Self::restore). Its sources are to be quiet.
    pub fn save(&self) -> VtdState {
        let Registers { status, root, table, queue, head, tail, queue_error, completion, completion_event } =
            self.registers.lock().clone();
        let Faults { status: fault_status, event, records, next, first } = self.tables.faults.lock().clone();
        VtdState {
            status: status.into_bits(),
            root,
            table: table.into_bits(),
            // Relaxed: written under the lock that was just held.
            table_in_use: self.tables.table.load(Ordering::Relaxed),
            queue: queue.into_bits(),
            head: head.into_bits(),
            tail: tail.into_bits(),
            queue_error: queue_error.into_bits(),
            completion: completion.into_bits(),
            completion_event: EventState::save(&completion_event),
            fault_status: fault_status.into_bits(),
            fault_event: EventState::save(&event),
            records,
            next_record: next,
            first_record: first,
        }
    }

    /// Takes over a saved state; nothing is sent.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no unit with these options can be in that state; nothing is changed then.
    pub fn restore(&self, state: &VtdState) -> Result<(), Error> {
        let (registers, faults) = self.check(state)?;
        let mut held = self.registers.lock();
        self.tables.table.store(state.table_in_use, Ordering::Relaxed);
        // Release: as in `command`.
        self.tables.mode.store(mode(registers.status), Ordering::Release);
        *held = registers;
        *self.tables.faults.lock() = faults;
        self.cache.invalidate(&self.tables, EVERYTHING);
        Ok(())
    }

    fn check(&self, state: &VtdState) -> Result<(Registers, Faults), Error> {
        let VtdState {
            status,
            root,
            table,
            table_in_use,
            queue,
            head,
            tail,
            queue_error,
            completion,
            completion_event,
            fault_status,
            fault_event,
            records,
            next_record,
            first_record,
        } = state;
        let refuse = |what: &str, value: u64| Error::Snapshot(format!("VT-d: {what} {value:#x} cannot be"));
        let event = |what, event: EventState| event.restore().ok_or_else(|| refuse(what, event.control.into()));
        let options = &self.tables.options;

        let known = Global::new()
            .with_compatibility(true)
            .with_set_table(true)
            .with_remapping(true)
            .with_queue(true)
            .with_set_root(true);
        if status & !known.into_bits() != 0 {
            return Err(refuse("global status", (*status).into()));
        }
        for &address in [table, table_in_use] {
            let address_bits = TableAddress::from_bits(address);
            let known = TableAddress::new()
                .with_size(address_bits.size())
                .with_extended_mode(address_bits.extended_mode() && options.extended_mode)
                .with_page(address_bits.page());
            if address_bits != known {
                return Err(refuse("table address", address));
            }
        }
        let queue_bits = QueueAddress::from_bits(*queue);
        if queue_bits != QueueAddress::new().with_size(queue_bits.size()).with_page(queue_bits.page()) {
            return Err(refuse("queue address", *queue));
        }
        for &pointer in [head, tail] {
            let bits = QueuePointer::from_bits(pointer);
            if bits != QueuePointer::new().with_index(bits.index()) {
                return Err(refuse("queue pointer", pointer));
            }
        }
        let queue_error_bits = QueueErrorRecord::from_bits(*queue_error);
        if *queue_error > 0xf {
            return Err(refuse("queue error record", *queue_error));
        }
        if *completion > 1 {
            return Err(refuse("completion status", (*completion).into()));
        }
        let fault_bits = FaultStatus::from_bits(*fault_status);
        let known = FaultStatus::new().with_overflow(fault_bits.overflow()).with_queue_error(fault_bits.queue_error());
        if fault_bits != known {
            return Err(refuse("fault status", (*fault_status).into()));
        }
        let count = self.tables.faults.lock().records.len();
        if records.len() != count {
            return Err(refuse("the number of fault records", records.len() as u64));
        }
        for &number in [next_record, first_record] {
            if usize::from(number) >= count {
                return Err(refuse("the number of a fault record", number.into()));
            }
        }
        let registers = Registers {
            status: Global::from_bits(*status),
            root: *root,
            table: TableAddress::from_bits(*table),
            queue: queue_bits,
            head: QueuePointer::from_bits(*head),
            tail: QueuePointer::from_bits(*tail),
            queue_error: queue_error_bits,
            completion: CompletionStatus::from_bits(*completion),
            completion_event: event("completion event", *completion_event)?,
        };
        let faults = Faults {
            status: fault_bits,
            event: event("fault event", *fault_event)?,
            records: records.clone(),
            next: *next_record,
            first: *first_record,
        };
        Ok((registers, faults))
    }
}
