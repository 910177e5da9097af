//! A disk (section 5.2).

use super::{Chain, Device, QUEUE_SIZE, Rings};

const SECTOR: u64 = 512;

/// `VIRTIO_BLK_F_RO` and `VIRTIO_BLK_F_FLUSH`.
const READ_ONLY: u32 = 1 << 5;
const FLUSHES: u32 = 1 << 9;

/// Request types, section 5.2.6.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// What a request ends with.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: u64 = 16;
const ID: &[u8; 20] = b"doorbell\0\0\0\0\0\0\0\0\0\0\0\0";
const PIECE: usize = 64 << 10;

/// Where the sectors are: a file, memory.
pub trait Storage: Send {
    /// How many bytes there are; what is beyond the last whole sector is not used.
    fn bytes(&self) -> u64;

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// Whatever the storage has; the driver sees a failed request.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()>;

    /// Stores `bytes` from `offset` on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;

    /// Returns when what was written is safe.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn flush(&mut self) -> std::io::Result<()>;

    /// Whether it refuses to be written.
    fn is_read_only(&self) -> bool {
        false
    }
}

impl Storage for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.copy_from_slice(slice(self, offset, bytes.len())?);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        slice(self, offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn slice(all: &mut [u8], offset: u64, length: usize) -> std::io::Result<&mut [u8]> {
    let start = usize::try_from(offset).ok();
    let range = start.and_then(|start| Some(start..start.checked_add(length)?));
    range.and_then(|range| all.get_mut(range)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

#[cfg(unix)]
impl Storage for std::fs::File {
    fn bytes(&self) -> u64 {
        self.metadata().map_or(0, |file| file.len())
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sync_data()
    }
}

/// A disk over a [`Storage`], whose size is what it is when this is made.
pub struct Block<S> {
    storage: S,
    /// The capacity in sectors, as the configuration has it.
    capacity: [u8; 8],
    sectors: u64,
}

impl<S: Storage> Block<S> {
    /// The disk.
    pub fn new(storage: S) -> Self {
        let sectors = storage.bytes() / SECTOR;
        Self { storage, capacity: sectors.to_le_bytes(), sectors }
    }

    /// Serves a request. How many bytes were written into its buffers, and its status.
    fn serve(&mut self, rings: &Rings<'_>, chain: &Chain) -> (u64, u8) {
        let mut header = [0; HEADER as usize];
        if rings.read(chain, 0, &mut header) != Ok(header.len()) {
            return (0, IO_ERROR);
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let sector = u64::from_le_bytes(sector);
        match kind {
            IN => self.read(rings, chain, sector),
            OUT if self.storage.is_read_only() => (0, IO_ERROR),
            OUT => (0, self.write(rings, chain, sector)),
            FLUSH => (0, if self.storage.flush().is_ok() { OK } else { IO_ERROR }),
            GET_ID => match rings.write(chain, 0, &ID[..ID.len().min(data_room(chain) as usize)]) {
                Ok(written) => (written as u64, OK),
                Err(_) => (0, IO_ERROR),
            },
            _ => (0, UNSUPPORTED),
        }
    }

    /// Where a request of this many bytes begins, if it is of whole sectors that exist.
    fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        (bytes % SECTOR == 0 && end <= self.sectors).then(|| sector * SECTOR)
    }

    fn read(&mut self, rings: &Rings<'_>, chain: &Chain, sector: u64) -> (u64, u8) {
        let length = data_room(chain);
        let Some(start) = self.place(sector, length) else { return (0, IO_ERROR) };
        let (mut bytes, mut done) = (vec![0; PIECE], 0);
        while done < length {
            let piece = &mut bytes[..((length - done) as usize).min(PIECE)];
            if self.storage.read(start + done, piece).is_err() || rings.write(chain, done, piece) != Ok(piece.len()) {
                return (done, IO_ERROR);
            }
            done += piece.len() as u64;
        }
        (done, OK)
    }

    fn write(&mut self, rings: &Rings<'_>, chain: &Chain, sector: u64) -> u8 {
        let all: u64 = chain.readable.iter().map(|span| u64::from(span.length)).sum();
        let length = all.saturating_sub(HEADER);
        let Some(start) = self.place(sector, length) else { return IO_ERROR };
        let (mut bytes, mut done) = (vec![0; PIECE], 0);
        while done < length {
            let piece = &mut bytes[..((length - done) as usize).min(PIECE)];
            let read = rings.read(chain, HEADER + done, piece);
            if read != Ok(piece.len()) || self.storage.write(start + done, piece).is_err() {
                return IO_ERROR;
            }
            done += piece.len() as u64;
        }
        OK
    }
}

/// What the driver lets us write but for the last byte, which is the status.
fn data_room(chain: &Chain) -> u64 {
    chain.room().saturating_sub(1)
}

impl<S: Storage> Device for Block<S> {
    fn kind(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_8000
    }

    fn features(&self) -> u32 {
        FLUSHES | if self.storage.is_read_only() { READ_ONLY } else { 0 }
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> &[u8] {
        &self.capacity
    }

    fn work(&mut self, queue: u16, rings: &mut Rings<'_>) {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = rings.pop(queue) else { return };
            let (written, status) = self.serve(rings, &chain);
            let status_written = rings.write(&chain, data_room(&chain), &[status]).unwrap_or(0);
            rings.complete(queue, &chain, written as u32 + status_written as u32);
        }
    }
}
