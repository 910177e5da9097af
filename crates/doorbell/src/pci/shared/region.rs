//! The memory as a whole: made by the VMM, opened by the device.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    io::Errno,
};

use super::{
    layout::{AREA_BYTES, BYTES, Flags, GUEST_AREA, HOST_AREA, Header, MAGIC, PENDING_AREA, VERSION, WORDS, valid},
    mapping::Area,
    words::Words,
};
use crate::{Error, pci::msix::registers::MAX_VECTORS};

const MAGIC_WORD: usize = 0;
const HEADER_WORD: usize = 1;
const FLAGS_WORD: usize = 2;
const HOST_MASKS: usize = 8;

/// The three areas, mapped.
pub(super) struct Region {
    fd: OwnedFd,
    host: Area,
    guest: Area,
    pending: Area,
    /// Read from the header once: what stands there later is of no account.
    vectors: u16,
}

impl Region {
    /// New memory for this many vectors, all masked by the host.
    pub(super) fn create(vectors: u16) -> Result<Self, Error> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(Error::Invalid { what: "number of vectors", value: vectors.into(), allowed: "1 to 2,048" });
        }
        let os = |what| move |source: Errno| Error::Os { what, source: source.into() };
        let fd = memfd_create("doorbell-msix", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(os("cannot create the shared MSI-X memory"))?;
        ftruncate(&fd, BYTES as u64).map_err(os("cannot size the shared MSI-X memory"))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(os("cannot seal the shared MSI-X memory"))?;
        let region = Self::map(fd, true, vectors).map_err(os("cannot map the shared MSI-X memory"))?;
        let host = region.host.words();
        // Relaxed: the descriptor reaches the other process by a system call.
        host[HEADER_WORD]
            .store(Header::new().with_version(VERSION).with_vectors(vectors.into()).into_bits(), Ordering::Relaxed);
        for word in 0..WORDS {
            region.words(word).mask(valid(word, vectors));
        }
        host[MAGIC_WORD].store(MAGIC, Ordering::Relaxed);
        Ok(region)
    }

    /// The memory behind a descriptor from another process.
    pub(super) fn open(fd: OwnedFd) -> Result<Self, Error> {
        let descriptor = |source: Errno| Error::Descriptor { what: "the shared MSI-X memory", source: source.into() };
        // Before its first load: a file that can shrink could end this process.
        let seals = fcntl_get_seals(&fd).map_err(descriptor)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(descriptor(Errno::PERM));
        }
        let size = fstat(&fd).map_err(descriptor)?.st_size;
        if size != BYTES as i64 {
            return Err(Error::Invalid {
                what: "size of the shared MSI-X memory",
                value: size as u64,
                allowed: "three areas of 64 KiB",
            });
        }
        let mut region = Self::map(fd, false, 0).map_err(descriptor)?;
        let host = region.host.words();
        // Relaxed: see `create`.
        let magic = host[MAGIC_WORD].load(Ordering::Relaxed);
        let header = Header::from_bits(host[HEADER_WORD].load(Ordering::Relaxed));
        if magic != MAGIC {
            return Err(Error::Invalid { what: "magic", value: magic, allowed: "the word \"doorbell\"" });
        }
        if header.version() != VERSION {
            return Err(Error::Invalid { what: "version", value: header.version().into(), allowed: "1" });
        }
        region.vectors =
            u16::try_from(header.vectors()).ok().filter(|vectors| (1..=MAX_VECTORS).contains(vectors)).ok_or(
                Error::Invalid { what: "number of vectors", value: header.vectors().into(), allowed: "1 to 2,048" },
            )?;
        Ok(region)
    }

    fn map(fd: OwnedFd, host_writable: bool, vectors: u16) -> Result<Self, Errno> {
        let host = Area::map(fd.as_fd(), HOST_AREA, host_writable)?;
        let guest = Area::map(fd.as_fd(), GUEST_AREA, host_writable)?;
        let pending = Area::map(fd.as_fd(), PENDING_AREA, true)?;
        Ok(Self { fd, host, guest, pending, vectors })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn vectors(&self) -> u16 {
        self.vectors
    }

    /// The words of the vectors from 64 times `word`; `word` is below [`WORDS`].
    #[inline]
    pub(super) fn words(&self, word: usize) -> Words<'_> {
        Words {
            host: &self.host.words()[HOST_MASKS + word],
            guest: &self.guest.words()[word],
            pending: &self.pending.words()[word],
        }
    }

    /// Whether events are dropped at the moment.
    #[inline]
    pub(super) fn is_dropping(&self) -> bool {
        Flags::from_bits(self.flags().load(Ordering::Relaxed)).dropping()
    }

    /// For the VMM only: the area is mapped writable there.
    pub(super) fn set_dropping(&self, dropping: bool) {
        // Release: what the function's change of state did before comes first.
        self.flags().store(Flags::new().with_dropping(dropping).into_bits(), Ordering::Release);
    }

    fn flags(&self) -> &AtomicU64 {
        &self.host.words()[FLAGS_WORD]
    }

    /// Calls `send` for every vector that is pending and not masked, and takes its pending bit before. One by one, so
    /// that a process that dies in between takes no more than one event with it.
    pub(super) fn poll(&self, mut send: impl FnMut(u16)) {
        for word in 0..usize::from(self.vectors.div_ceil(64)) {
            let words = self.words(word);
            let mut pending = words.pending.load(Ordering::Relaxed) & valid(word, self.vectors);
            while pending != 0 {
                let bit = pending.trailing_zeros();
                if words.due(1 << bit) != 0 {
                    send((word * 64) as u16 + bit as u16);
                }
                pending &= pending - 1;
            }
        }
    }
}

const _: () = assert!((HOST_MASKS + WORDS) * 8 <= AREA_BYTES && WORDS * 64 == MAX_VECTORS as usize);
