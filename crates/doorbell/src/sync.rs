//! The atomic types of every lock-free protocol: `std` in a build, `loom` under `cfg(loom)`.
//!
//! loom cannot express `membarrier`, so under it both halves of the asymmetric barrier are sequentially consistent
//! fences. A model built on them never relies on a sequentially consistent load or store, which loom weakens.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;

/// A cell in the shape of loom's, which finds two accesses at once.
#[cfg(not(loom))]
#[derive(Debug, Default)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Calls `access` with the place of the value, which only `access` may touch meanwhile.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// Orders a sequentially consistent access before a later one of the same thread.
///
/// The language promises that, so that a build needs nothing here; loom weakens such accesses and is told by a fence.
#[cfg(any(feature = "arm", feature = "x86"))]
#[inline(always)]
pub(crate) fn seqcst_boundary() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// The cheap half of the asymmetric barrier: orders the calling thread's accesses against a
/// [`heavy_barrier`] of another thread.
#[inline(always)]
pub(crate) fn light_barrier() {
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// The expensive half: on return, every thread of the process has passed a full barrier.
///
/// Needs the registration that [`BiasPermit::request`](crate::inflight::BiasPermit::request) makes.
pub(crate) fn heavy_barrier() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
    #[cfg(all(not(loom), target_os = "linux"))]
    {
        use rustix::thread::{MembarrierCommand, membarrier};
        if let Err(error) = membarrier(MembarrierCommand::PrivateExpedited) {
            // Going on would let an interrupt of the old configuration arrive after the call returned.
            panic!("membarrier was registered and then refused: {error}");
        }
    }
    #[cfg(all(not(loom), not(target_os = "linux")))]
    unreachable!("a bias is only granted where membarrier exists");
}

/// Asks the kernel for the right to call [`heavy_barrier`].
#[cfg(all(not(loom), target_os = "linux"))]
pub(crate) fn register_heavy_barrier() -> std::io::Result<()> {
    use rustix::thread::{MembarrierCommand, membarrier};
    Ok(membarrier(MembarrierCommand::RegisterPrivateExpedited)?)
}

/// See the Linux version.
#[cfg(all(not(loom), not(target_os = "linux")))]
pub(crate) fn register_heavy_barrier() -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(loom)]
pub(crate) fn register_heavy_barrier() -> std::io::Result<()> {
    Ok(())
}

/// Waiting for another thread that is a few instructions from done: spins briefly, then lets it run.
pub(crate) struct Backoff(u32);

impl Backoff {
    const SPINS: u32 = if cfg!(loom) { 1 } else { 64 };

    pub(crate) fn new() -> Self {
        Self(0)
    }

    #[inline]
    pub(crate) fn wait(&mut self) {
        self.0 = self.0.saturating_add(1);
        #[cfg(loom)]
        {
            // Two threads that wait for a third can go on so for ever; what follows a long wait is run, not explored.
            if self.0 > 3 {
                loom::skip_branch();
            }
            loom::thread::yield_now();
        }
        #[cfg(not(loom))]
        if self.0 <= Self::SPINS {
            std::hint::spin_loop();
        } else {
            // The other side was descheduled: on a single CPU, spinning would keep it so.
            std::thread::yield_now();
        }
    }

    /// Whether the other side had all the time it can have needed, and a turn on this CPU as well.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.0 > Self::SPINS + 2
    }

    /// Whether the wait went on for so long that a configurer should ask the firers to stand back.
    #[inline]
    pub(crate) fn is_long(&self) -> bool {
        self.0 >= if cfg!(loom) { 1 } else { 8 }
    }
}

/// The lock of configuration paths that a model walks through: `parking_lot` in a build, `loom` under `cfg(loom)`.
#[cfg(not(any(loom, test)))]
pub(crate) use parking_lot::Mutex;

#[cfg(all(test, not(loom)))]
pub(crate) use counted::Mutex;

/// See above.
#[cfg(loom)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// Whether a part of a protocol is left out, to see that its tests notice; never, outside of tests. The module that asks has
/// its `cripple::Cripple` in scope, and who is asked has it in a field.
macro_rules! crippled {
    ($who:expr, $what:ident) => {{
        #[cfg(test)]
        let crippled = $who.cripple == cripple::Cripple::$what;
        #[cfg(not(test))]
        let crippled = false;
        crippled
    }};
}
pub(crate) use crippled;

/// A load that an exchange by the same thread follows. A model reads by an exchange, too: loom remembers only the last access
/// to each place, so that such a load would hide from it that another thread has read before.
#[cfg(feature = "arm")]
macro_rules! load_to_change {
    ($atomic:expr, $ordering:expr) => {{
        #[cfg(not(loom))]
        let value = $atomic.load($ordering);
        #[cfg(loom)]
        let value = $atomic.fetch_or(0, $ordering);
        value
    }};
}
#[cfg(feature = "arm")]
pub(crate) use load_to_change;

/// The lock as unit tests have it, which counts what each thread takes.
#[cfg(all(test, not(loom)))]
pub(crate) mod counted {
    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<u64> = const { Cell::new(0) };
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(parking_lot::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
            TAKEN.set(TAKEN.get() + 1);
            self.0.lock()
        }
    }

    /// How many locks this thread takes in `work`.
    pub(crate) fn locks_taken(work: impl FnOnce()) -> u64 {
        let before = TAKEN.get();
        work();
        TAKEN.get() - before
    }
}
