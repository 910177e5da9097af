//! Guest memory, as far as interrupt controllers look at it: bounded, typed, in either byte order.

/// An access to guest memory that no memory answers, in whole or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at {address:#x} for {length} bytes")]
pub struct NoMemory {
    /// The guest-physical address.
    pub address: u64,
    /// How many bytes were wanted.
    pub length: usize,
}

/// The memory of a guest, by guest-physical address.
///
/// The guest writes it at the same time, so two reads of one place may differ: whoever checks a value must use that
/// value, not read it again. Naturally aligned accesses of 2, 4 and 8 bytes are expected to be single copies.
///
/// ```
/// use doorbell::guest_ram::{GuestRamExt, NoMemory, RamBlock};
/// let ram = RamBlock::new(0x4000_0000, 0x1000);
/// ram.write_le(0x4000_0008, 0x1122_3344u32)?;
/// assert_eq!(ram.read_be::<u32>(0x4000_0008)?, 0x4433_2211);
/// assert!(ram.read_le::<u64>(0x4000_0ffc).is_err(), "reaches beyond the end");
/// # Ok::<(), NoMemory>(())
/// ```
pub trait GuestRam: Send + Sync {
    /// Fills `bytes` from guest memory.
    ///
    /// # Errors
    /// If any of it is no memory; `bytes` may then be partly filled.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory>;

    /// Stores `bytes` to guest memory.
    ///
    /// # Errors
    /// If any of it is no memory; nothing beyond the start of the hole is then stored.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory>;

    /// Sets bits of the little-endian number of 8 bytes at `address`, a multiple of 8, and returns what it was.
    ///
    /// The guest's CPUs clear such bits by locked instructions at the same time (posted interrupts), so memory that they
    /// share must do this in one atomic step. The default does not, and is for memory that only this thread writes.
    ///
    /// # Errors
    /// If any of it is no memory; nothing is changed then.
    fn fetch_or(&self, address: u64, bits: u64) -> Result<u64, NoMemory> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        let old = u64::from_le_bytes(bytes);
        self.write(address, &(old | bits).to_le_bytes())?;
        Ok(old)
    }
}

/// Numbers in guest memory; every [`GuestRam`] has these, a `dyn GuestRam` too.
pub trait GuestRamExt: GuestRam {
    /// Loads a little-endian number.
    ///
    /// # Errors
    /// As [`read`](GuestRam::read).
    fn read_le<T: Word>(&self, address: u64) -> Result<T, NoMemory> {
        let mut bytes = T::Bytes::default();
        self.read(address, bytes.as_mut())?;
        Ok(T::from_le(bytes))
    }

    /// Loads a big-endian number.
    ///
    /// # Errors
    /// As [`read`](GuestRam::read).
    fn read_be<T: Word>(&self, address: u64) -> Result<T, NoMemory> {
        let mut bytes = T::Bytes::default();
        self.read(address, bytes.as_mut())?;
        Ok(T::from_be(bytes))
    }

    /// Stores a number, little-endian.
    ///
    /// # Errors
    /// As [`write`](GuestRam::write).
    fn write_le<T: Word>(&self, address: u64, value: T) -> Result<(), NoMemory> {
        self.write(address, value.to_le().as_ref())
    }

    /// Stores a number, big-endian.
    ///
    /// # Errors
    /// As [`write`](GuestRam::write).
    fn write_be<T: Word>(&self, address: u64, value: T) -> Result<(), NoMemory> {
        self.write(address, value.to_be().as_ref())
    }
}

impl<R: GuestRam + ?Sized> GuestRamExt for R {}

/// A number that fits a register or a table entry: `u8`, `u16`, `u32`, `u64`.
pub trait Word: Copy {
    /// Its bytes.
    type Bytes: Default + AsRef<[u8]> + AsMut<[u8]>;
    /// The number with these little-endian bytes.
    fn from_le(bytes: Self::Bytes) -> Self;
    /// The number with these big-endian bytes.
    fn from_be(bytes: Self::Bytes) -> Self;
    /// Its bytes, little-endian.
    fn to_le(self) -> Self::Bytes;
    /// Its bytes, big-endian.
    fn to_be(self) -> Self::Bytes;
}

macro_rules! word {
    ($($type:ty),*) => {$(
        impl Word for $type {
            type Bytes = [u8; size_of::<$type>()];
            fn from_le(bytes: Self::Bytes) -> Self { Self::from_le_bytes(bytes) }
            fn from_be(bytes: Self::Bytes) -> Self { Self::from_be_bytes(bytes) }
            fn to_le(self) -> Self::Bytes { self.to_le_bytes() }
            fn to_be(self) -> Self::Bytes { self.to_be_bytes() }
        }
    )*};
}
word!(u8, u16, u32, u64);

/// One block of memory that nobody else maps: for tests, and for a VMM that has no better.
pub struct RamBlock {
    base: u64,
    /// Lock order: last of all.
    bytes: parking_lot::Mutex<Box<[u8]>>,
}

impl RamBlock {
    /// `length` zero bytes from guest-physical address `base` on.
    pub fn new(base: u64, length: usize) -> Self {
        Self { base, bytes: parking_lot::Mutex::new(vec![0; length].into()) }
    }

    fn range(&self, address: u64, length: usize, size: usize) -> Result<std::ops::Range<usize>, NoMemory> {
        let start = address.checked_sub(self.base).and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(length)).filter(|end| *end <= size);
        start.zip(end).map(|(start, end)| start..end).ok_or(NoMemory { address, length })
    }
}

impl GuestRam for RamBlock {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory> {
        let ram = self.bytes.lock();
        bytes.copy_from_slice(&ram[self.range(address, bytes.len(), ram.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        let mut ram = self.bytes.lock();
        let range = self.range(address, bytes.len(), ram.len())?;
        ram[range].copy_from_slice(bytes);
        Ok(())
    }

    fn fetch_or(&self, address: u64, bits: u64) -> Result<u64, NoMemory> {
        let mut ram = self.bytes.lock();
        let range = self.range(address, 8, ram.len())?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&ram[range.clone()]);
        let old = u64::from_le_bytes(bytes);
        ram[range].copy_from_slice(&(old | bits).to_le_bytes());
        Ok(old)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_a_block_hold() {
        let ram = RamBlock::new(0x1000, 0x10);
        ram.write_be(0x1008, 0x0102_0304_0506_0708u64).unwrap();
        assert_eq!(ram.read_le::<u8>(0x100f), Ok(8));
        assert_eq!(ram.read_le::<u16>(0x100e), Ok(0x0807));
        for (address, length) in [(0x1010, 1), (0xfff, 1), (0x100f, 2), (u64::MAX, 8), (0, 4)] {
            let outside = Err(NoMemory { address, length });
            assert_eq!(ram.read(address, &mut vec![0; length]), outside);
            assert_eq!(ram.write(address, &vec![0xff; length]), outside);
        }
        assert_eq!(ram.read_be::<u64>(0x1008), Ok(0x0102_0304_0506_0708), "a refused store changed nothing");
    }

    /// Only `read` and `write`, as an embedder's type may have it.
    struct Plain(RamBlock);

    impl GuestRam for Plain {
        fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory> {
            self.0.read(address, bytes)
        }

        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory> {
            self.0.write(address, bytes)
        }
    }

    #[test]
    fn bits_are_set_and_what_was_there_is_told() {
        let (block, plain) = (RamBlock::new(0x1000, 0x10), Plain(RamBlock::new(0x1000, 0x10)));
        for ram in [&block as &dyn GuestRam, &plain] {
            ram.write_le(0x1008, 0x11u64).unwrap();
            assert_eq!(ram.fetch_or(0x1008, 0x8000_0000_0000_0010), Ok(0x11));
            assert_eq!(ram.fetch_or(0x1008, 0), Ok(0x8000_0000_0000_0011));
            assert_eq!(ram.fetch_or(0x1010, 1), Err(NoMemory { address: 0x1010, length: 8 }));
        }
    }
}
