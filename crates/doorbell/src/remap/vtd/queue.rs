//! The invalidation queue (VT-d specification, section "Queued Invalidation Interface"): its descriptors, and how they are
//! worked off.
//!
//! All that is there is done before the store that announced it returns, which is at most one round of the queue: 32,767
//! descriptors. Invalidations of everything are done once for all that follow each other.

use bitfield_struct::bitfield;

use super::{
    VtdUnit,
    registers::{QueueErrorRecord, QueuePointer},
    unit::Registers,
};
use crate::guest_ram::GuestRamExt;

/// Why the queue stopped, as the error record says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueError {
    /// A status could not be written; there is no number for that.
    Unspecified = 0,
    /// Head or tail are beyond the end of the queue.
    Pointer = 1,
    /// There is no memory where the descriptor should be.
    Fetch = 2,
    /// A descriptor of a type that does not exist or is not offered.
    Type = 3,
    /// A reserved bit is set, or a field holds a value that is reserved.
    Reserved = 4,
}

/// What all descriptors have.
#[bitfield(u64)]
struct Common {
    #[bits(4)]
    kind: u8,
    #[bits(5)]
    __: u8,
    #[bits(3)]
    kind_high: u8,
    #[bits(52)]
    __: u64,
}

const CONTEXT: u8 = 1;
const IOTLB: u8 = 2;
const ENTRY_CACHE: u8 = 4;
const WAIT: u8 = 5;

/// Context-cache invalidation: the low half. Nothing is cached here, so only its form matters.
#[bitfield(u64)]
struct Context {
    #[bits(4)]
    kind: u8,
    #[bits(2)]
    granularity: u8,
    #[bits(10)]
    __: u16,
    domain: u16,
    source: u16,
    #[bits(2)]
    function_mask: u8,
    #[bits(14)]
    __: u16,
}

/// IOTLB invalidation: the low half. Nothing is cached here either.
#[bitfield(u64)]
struct Iotlb {
    #[bits(4)]
    kind: u8,
    #[bits(2)]
    granularity: u8,
    #[bits(2)]
    drain: u8,
    __: u8,
    domain: u16,
    __: u32,
}

/// IOTLB invalidation: the high half.
#[bitfield(u64)]
struct IotlbAddress {
    #[bits(6)]
    mask: u8,
    hint: bool,
    #[bits(5)]
    __: u8,
    #[bits(52)]
    page: u64,
}

/// Invalidation of the interrupt entry cache: the low half. The high half is reserved.
#[bitfield(u64)]
struct EntryCache {
    #[bits(4)]
    kind: u8,
    /// Only some indices.
    selective: bool,
    #[bits(22)]
    __: u32,
    /// The low bits of the index that are not looked at.
    #[bits(5)]
    mask: u8,
    index: u16,
    __: u16,
}

/// Wait: the low half. The high half is the address of the status.
#[bitfield(u64)]
struct Wait {
    #[bits(4)]
    kind: u8,
    /// Set the completion status, which may interrupt.
    interrupt: bool,
    /// Write the status.
    write: bool,
    /// Descriptors behind this one wait for those before it. They always do.
    fence: bool,
    #[bits(25)]
    __: u32,
    status: u32,
}

/// The largest index mask, as the extended capability says.
pub const MAX_MASK: u8 = 15;
/// Every tag there is.
pub const EVERYTHING: std::ops::RangeInclusive<u32> = 0..=u32::MAX;

/// A descriptor that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// There is nothing to do.
    Nothing,
    /// Forget all entries.
    All,
    /// Forget entries with these indices.
    Indices(std::ops::RangeInclusive<u32>),
    /// Tell that everything before is done.
    Wait { status: Option<(u64, u32)>, interrupt: bool },
}

/// Reads a descriptor.
///
/// # Errors
/// What is wrong with it.
pub fn decode([low, high]: [u64; 2]) -> Result<Descriptor, QueueError> {
    let reserved = |known: u64, known_high: u64| {
        if low & !known == 0 && high & !known_high == 0 { Ok(()) } else { Err(QueueError::Reserved) }
    };
    let common = Common::from_bits(low);
    if common.kind_high() != 0 {
        return Err(QueueError::Type);
    }
    let granularity =
        |granularity: u8| if granularity == 0 { Err(QueueError::Reserved) } else { Ok(Descriptor::Nothing) };
    match common.kind() {
        CONTEXT => {
            const KNOWN: Context =
                Context::new().with_kind(15).with_granularity(3).with_domain(!0).with_source(!0).with_function_mask(3);
            reserved(KNOWN.into_bits(), 0)?;
            granularity(Context::from_bits(low).granularity())
        }
        IOTLB => {
            const KNOWN: Iotlb = Iotlb::new().with_kind(15).with_granularity(3).with_drain(3).with_domain(!0);
            const ADDRESS: IotlbAddress = IotlbAddress::new().with_mask(0x3f).with_hint(true).with_page((1 << 52) - 1);
            reserved(KNOWN.into_bits(), ADDRESS.into_bits())?;
            granularity(Iotlb::from_bits(low).granularity())
        }
        ENTRY_CACHE => {
            const KNOWN: EntryCache = EntryCache::new().with_kind(15).with_selective(true).with_mask(31).with_index(!0);
            reserved(KNOWN.into_bits(), 0)?;
            let descriptor = EntryCache::from_bits(low);
            if !descriptor.selective() {
                return Ok(Descriptor::All);
            }
            if descriptor.mask() > MAX_MASK {
                return Err(QueueError::Reserved);
            }
            let (index, low) = (u32::from(descriptor.index()), (1 << descriptor.mask()) - 1);
            Ok(Descriptor::Indices(index & !low..=index | low))
        }
        WAIT => {
            const KNOWN: Wait =
                Wait::new().with_kind(15).with_interrupt(true).with_write(true).with_fence(true).with_status(!0);
            reserved(KNOWN.into_bits(), !3)?;
            let descriptor = Wait::from_bits(low);
            let status = descriptor.write().then_some((high, descriptor.status()));
            Ok(Descriptor::Wait { status, interrupt: descriptor.interrupt() })
        }
        _ => Err(QueueError::Type),
    }
}

impl VtdUnit {
    /// Works off the queue, as far as it goes.
    pub(super) fn work_off(&self, registers: &mut Registers) {
        if !registers.status.queue() || self.tables.faults.lock().status.queue_error() {
            return;
        }
        let size = 256u16 << registers.queue.size();
        let mut stale = false;
        let mut worked = || -> Result<(), QueueError> {
            if registers.tail.index() >= size || registers.head.index() >= size {
                return Err(QueueError::Pointer);
            }
            while registers.head != registers.tail {
                let index = registers.head.index();
                let address = (registers.queue.page() << 12).wrapping_add(16 * u64::from(index));
                let ram = &*self.tables.ram;
                let fetch = |address| ram.read_le(address).map_err(|_| QueueError::Fetch);
                match decode([fetch(address)?, fetch(address.wrapping_add(8))?])? {
                    Descriptor::Nothing => {}
                    Descriptor::All => stale = true,
                    Descriptor::Indices(indices) => self.cache.invalidate(&self.tables, indices),
                    Descriptor::Wait { status, interrupt } => {
                        if std::mem::take(&mut stale) {
                            self.cache.invalidate(&self.tables, EVERYTHING);
                        }
                        if let Some((address, status)) = status {
                            ram.write_le(address, status).map_err(|_| QueueError::Unspecified)?;
                        }
                        if interrupt {
                            registers.complete(self.cache.inner());
                        }
                    }
                }
                registers.head = QueuePointer::new().with_index((index + 1) % size);
            }
            Ok(())
        };
        let result = worked();
        if stale {
            self.cache.invalidate(&self.tables, EVERYTHING);
        }
        if let Err(error) = result {
            registers.queue_error = QueueErrorRecord::new().with_information(error as u8);
            self.tables.faults.lock().stop_queue(self.cache.inner());
        }
    }
}
