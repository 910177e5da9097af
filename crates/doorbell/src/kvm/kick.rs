//! Waking a vCPU thread, whether it runs in the guest, sleeps, or is on its way to either.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use std::thread::Thread;

use rustix::mm::{MapFlags, ProtFlags};

use crate::Error;

/// Offset of `immediate_exit` in the page that the kernel shares with a vCPU thread (`struct kvm_run`).
const IMMEDIATE_EXIT: usize = 1;
const PAGE: usize = 4096;

/// In user space, or on the way between there and the guest: a kick needs no system call.
const OUTSIDE: u32 = 0;
/// In `KVM_RUN`, or about to be.
const INSIDE: u32 = 1;
/// Waits for a kick with its CPU halted.
const ASLEEP: u32 = 2;

/// Brings one vCPU thread back to its loop.
///
/// The thread calls [`begin`](Self::begin) once, then in each turn [`clear`](Self::clear), looks for work, and goes
/// into [`enter`](Self::enter) or [`sleep`](Self::sleep). A kick after the `clear` of a turn ends what follows.
///
/// System calls used, for seccomp filters: `mmap`, `munmap`, `rt_sigaction`, `gettid`, `tgkill`, `futex`.
#[derive(Debug)]
pub struct VcpuKick {
    /// The `kvm_run` page of the vCPU, mapped a second time so that it lives as long as this.
    page: NonNull<u8>,
    /// `OUTSIDE`, `INSIDE` or `ASLEEP`; written by the vCPU thread only.
    place: AtomicU32,
    thread: OnceLock<(Thread, i32)>,
    signal: i32,
}

// SAFETY: the mapping belongs to this value; only its byte `immediate_exit` is used, as an atomic.
unsafe impl Send for VcpuKick {}
// SAFETY: as above.
unsafe impl Sync for VcpuKick {}

impl VcpuKick {
    /// For the vCPU behind `vcpu`. `signal` interrupts its `KVM_RUN`; this installs a handler that does nothing, so it
    /// must be one that the program does not use (`None`: the first real-time signal).
    ///
    /// # Errors
    /// Where the descriptor is no vCPU, or the signal cannot be handled.
    pub fn new(vcpu: BorrowedFd<'_>, signal: Option<i32>) -> Result<Self, Error> {
        let signal = signal.unwrap_or_else(|| libc::SIGRTMIN());
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: a zeroed sigaction is valid (no flags, empty mask), and a handler that does nothing is
        // async-signal-safe. Without SA_RESTART, the interrupted call returns.
        let refused = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut()) != 0
        };
        if refused {
            return Err(Error::Invalid {
                what: "kick signal",
                value: signal as u64,
                allowed: "a signal that a program may handle",
            });
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping where the kernel likes; no memory of this process is affected.
        let page = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, protection, MapFlags::SHARED, vcpu, 0) }
            .map_err(|source| Error::Descriptor { what: "vCPU", source: source.into() })?;
        let page = NonNull::new(page.cast()).ok_or(Error::Unsupported("a mapping at address 0"))?;
        Ok(Self { page, place: AtomicU32::new(OUTSIDE), thread: OnceLock::new(), signal })
    }

    /// To be called by the vCPU's thread before its first turn; what came earlier is not lost.
    pub fn begin(&self) {
        // SAFETY: gettid has no preconditions.
        let id = unsafe { libc::gettid() };
        let _ = self.thread.set((std::thread::current(), id));
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: within the mapping, which lives as long as `self`; a byte is always aligned. The kernel and other
        // mappings of the page access the byte too, which atomics allow for.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(IMMEDIATE_EXIT)) }
    }

    /// The vCPU's thread, at the start of a turn, before it looks for work.
    pub fn clear(&self) {
        // AcqRel: pairs with the swap in `kick`. A kick before this one has published what it is for, and the look that
        // follows here sees it; a later one ends the turn.
        self.immediate_exit().swap(0, Ordering::AcqRel);
    }

    /// The vCPU's thread: runs the guest. `run` must make the `KVM_RUN`.
    pub fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
        self.place.store(INSIDE, Ordering::Relaxed);
        // Pairs with the fence in `kick`: it sees INSIDE and sends a signal, or KVM_RUN sees `immediate_exit`.
        fence(Ordering::SeqCst);
        let result = run();
        self.place.store(OUTSIDE, Ordering::Relaxed);
        result
    }

    /// The vCPU's thread: sleeps until a kick that came after [`clear`](Self::clear); may also wake without one.
    pub fn sleep(&self) {
        self.place.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `kick`, as in `enter`.
        fence(Ordering::SeqCst);
        if self.immediate_exit().load(Ordering::Relaxed) == 0 {
            std::thread::park();
        }
        self.place.store(OUTSIDE, Ordering::Relaxed);
    }

    /// Any thread: ends the turn that the vCPU's thread is in.
    pub fn kick(&self) {
        // AcqRel: pairs with the swap in `clear`.
        if self.immediate_exit().swap(1, Ordering::AcqRel) != 0 {
            // An earlier kick has ended this turn, or is about to.
            return;
        }
        // Pairs with the fences in `enter` and `sleep`.
        fence(Ordering::SeqCst);
        let Some((thread, id)) = self.thread.get() else { return };
        match self.place.load(Ordering::Relaxed) {
            INSIDE => {
                // SAFETY: tgkill only takes numbers. A thread that has ended answers ESRCH, which is all right.
                unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), *id, self.signal) };
            }
            ASLEEP => thread.unpark(),
            _ => {}
        }
    }
}

impl Drop for VcpuKick {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
