//! The only unsafe code of this station: words of a sealed memory file, mapped and shared with other processes.
#![allow(unsafe_code, reason = "a mapping cannot be had without it")]

use std::{os::fd::BorrowedFd, ptr::NonNull, sync::atomic::AtomicU64};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::layout::AREA_BYTES;

/// One area of the memory, as words.
pub(super) struct Area {
    base: NonNull<AtomicU64>,
}

// SAFETY: the area is only reached through shared references to atomics, from whatever thread.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps [`AREA_BYTES`] from `offset`, which must lie within the file. The file must be sealed against shrinking,
    /// or a load may end the process with SIGBUS.
    pub(super) fn map(fd: BorrowedFd<'_>, offset: usize, writable: bool) -> Result<Self, Errno> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let base = unsafe { mmap(std::ptr::null_mut(), AREA_BYTES, protection, MapFlags::SHARED, fd, offset as u64) }?;
        NonNull::new(base.cast()).map(|base| Self { base }).ok_or(Errno::NOMEM)
    }

    /// The words. If the area was not mapped writable, they may only be loaded, with relaxed ordering.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long as this value and page-aligned; every bit pattern is a valid AtomicU64, and
        // other processes change it at any time, which is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), AREA_BYTES / size_of::<AtomicU64>()) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this is what `map` mapped, and no reference outlives this value.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), AREA_BYTES) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
