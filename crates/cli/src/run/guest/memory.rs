//! Guest memory: a mapping of this process that is a memory slot of the VM.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags};

/// One mapping; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value for its whole life. It is written to by `copy_in` only before vCPUs run.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references give out nothing but addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of its own.
    pub fn anonymous(length: usize) -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes affects no other memory.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
        Self::new(base, length)
    }

    /// The first `length` bytes behind a descriptor, shared with all who map them.
    pub fn shared(memory: BorrowedFd<'_>, length: usize) -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, memory, 0) }?;
        Self::new(base, length)
    }

    fn new(base: *mut core::ffi::c_void, length: usize) -> rustix::io::Result<Self> {
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { base, length })
    }

    /// Writes bytes at an offset; while no vCPU runs.
    pub fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "within guest memory");
        // SAFETY: within the mapping as just checked; `&mut self` excludes other writers in this process.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) }
    }

    /// Reads 32 bits at an offset; while no vCPU runs.
    pub fn load(&self, at: usize) -> u32 {
        assert!(at.checked_add(4).is_some_and(|end| end <= self.length), "within guest memory");
        // SAFETY: within the mapping as just checked, of any alignment; guests, which write here, do not run.
        unsafe { self.base.as_ptr().add(at).cast::<u32>().read_unaligned() }
    }

    /// Shows the mapping to the guest as memory slot `slot` from `address` on. It must outlive the VM's vCPUs.
    pub fn insert(&self, vm: &VmFd, slot: u32, address: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: self.length as u64,
            userspace_addr: self.base.as_ptr() as u64,
        };
        // SAFETY: the mapping is this value's own; the guest may do with it what it likes. `KernelMachine` drops its
        // vCPU threads before its mappings.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this value with this length.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
