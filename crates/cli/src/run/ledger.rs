//! The ledger: who signalled which number, and which number a handler saw, in memory that the devices' processes, the
//! vCPU threads and a guest under KVM share.
//!
//! One memfd, `PAGE` (4096) bytes to a page, little-endian words, all naturally aligned:
//!
//! | page | what | written by |
//! |---|---|---|
//! | 0 | the header: [`Header`] | the coordinator, and each device its own [`DeviceWords`] |
//! | 1 + *c* | the CPU page of vCPU *c*: [`CpuPage`] | handlers of *c*; `sequence` by the devices |
//! | 1 + *vcpus* + 8 *c* … | the signal pages of vCPU *c*: [`SignalPages`] | the devices |
//!
//! A **slot** is one source vector: a vCPU and an x86 vector from 0x20 to 0xff; its index in the arrays is
//! `vector - 0x20`. The CPU page is all that a handler in a guest needs:
//!
//! | offset | type | word | meaning |
//! |---|---|---|---|
//! | 0x000 | u32\[224\] | `sequence` | the last number that the device published; written *before* it signals |
//! | 0x380 | u32\[224\] | `seen` | the last number that a handler saw |
//! | 0x700 | u32\[224\] | `count` | how often the handler saw a new number |
//! | 0xa80 | u32\[224\] | `again` | how often it was entered and found none |
//! | 0xe00 | u8\[224\] | `span` | how many slots, from this one on, the vector serves: 1 for an edge vector, the number of sharers for a level line (bit 7 set), 0 if the vector is not in use |
//! | 0xee0 | u32 | `taken` | interrupts acknowledged; written *before* they are handled |
//! | 0xee4 | u32 | `ended` | interrupts ended; written *after* the EOI |
//! | 0xee8 | u32 | `stray` | vectors that arrived although `span` says that nobody uses them |
//! | 0xeec | u32 | `last` | the vector acknowledged last |
//! | 0xef0 – 0xfff | | | free for the guest |
//!
//! What a handler does for vector *v*, in this order (on x86 plain loads and stores will do):
//!
//! ```text
//! taken += 1; last = v
//! i = v - 0x20; n = span[i] & 0x7f; any = false
//! if n == 0 { stray += 1 }
//! for k in i .. i + n {
//!     s = sequence[k]                                            // Acquire
//!     if s != seen[k] { count[k] += 1; seen[k] = s; any = true } // seen last: Release
//! }
//! if n != 0 && !any { again[i] += 1 }
//! EOI; ended += 1
//! ```

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

/// Bytes to a page of the ledger.
pub const PAGE: usize = 4096;
/// The lowest vector that has a slot.
pub const FIRST_VECTOR: u8 = 0x20;
/// Slots to a vCPU: the vectors 0x20 to 0xff.
pub const SLOTS: usize = 224;
/// In `span`: the vector belongs to a level line.
pub const SPAN_LEVEL: u8 = 0x80;
/// How many time stamps a slot keeps. A power of two, and at most this many numbers can be told apart by time.
pub const STAMPS: usize = 16;
/// How many device processes a ledger has room for.
pub const MAX_DEVICES: usize = 56;
/// How many vCPUs a ledger has room for.
pub const MAX_VCPUS: usize = 512;

const MAGIC: u32 = u32::from_le_bytes(*b"dbl1");
const SIGNAL_PAGES: usize = size_of::<SignalPages>() / PAGE;

/// Page 0.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Header {
    magic: AtomicU32,
    vcpus: AtomicU32,
    /// [`Header::HOLD`], [`Header::GO`] or [`Header::STOP`]; a futex.
    pub control: AtomicU32,
    /// How long a device waits for the handler of a lock-step number before it goes on without it, in µs.
    pub patience_us: AtomicU32,
    /// How long a device may sleep before it looks at `seen` again, in µs; 0: the handler rings its bell.
    pub poll_us: AtomicU32,
    unused: [u32; 123],
    /// One for each device process.
    pub devices: [DeviceWords; MAX_DEVICES],
}

impl Header {
    /// `control`: devices wait.
    pub const HOLD: u32 = 0;
    /// `control`: devices signal.
    pub const GO: u32 = 1;
    /// `control`: devices finish with what they have.
    pub const STOP: u32 = 2;
}

/// The words of one device process, on a cache line of their own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct DeviceWords {
    /// Handlers add 1 after each of this device's numbers that they saw; a futex.
    pub bell: AtomicU32,
    /// 1 while the device sleeps on the bell.
    pub asleep: AtomicU32,
    /// 1 once the device has signalled all it had to and seen it handled.
    pub done: AtomicU32,
    /// How many vectors the device gave up, because handlers stopped answering.
    pub given_up: AtomicU32,
}

/// The page of one vCPU that its handlers work on.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct CpuPage {
    /// The last number published.
    pub sequence: [AtomicU32; SLOTS],
    /// The last number a handler saw.
    pub seen: [AtomicU32; SLOTS],
    /// How often a handler saw a new one.
    pub count: [AtomicU32; SLOTS],
    /// How often a handler found none.
    pub again: [AtomicU32; SLOTS],
    /// How many slots a vector serves.
    pub span: [AtomicU8; SLOTS],
    /// Interrupts acknowledged.
    pub taken: AtomicU32,
    /// Interrupts ended.
    pub ended: AtomicU32,
    /// Interrupts that nobody sent.
    pub stray: AtomicU32,
    /// What was acknowledged last: an x86 vector, or an INTID.
    pub last: AtomicU32,
    guest: [u32; 68],
}

/// The pages of one vCPU that only the devices write.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct SignalPages {
    /// How many signals have certainly been given: written *after* the eventfd.
    pub sent: [AtomicU32; SLOTS],
    /// How many lock-step numbers the device went past because no handler answered in time.
    pub missed: [AtomicU32; SLOTS],
    /// When number *n* was published, at index *n* mod [`STAMPS`]: ns of `CLOCK_MONOTONIC`.
    pub stamps: [[AtomicU64; STAMPS]; SLOTS],
}

const _: () = {
    assert!(size_of::<Header>() == PAGE);
    assert!(size_of::<CpuPage>() == PAGE);
    assert!(size_of::<SignalPages>() == 8 * PAGE);
    assert!(std::mem::offset_of!(Header, devices) == 512);
    assert!(std::mem::offset_of!(CpuPage, seen) == 0x380);
    assert!(std::mem::offset_of!(CpuPage, count) == 0x700);
    assert!(std::mem::offset_of!(CpuPage, again) == 0xa80);
    assert!(std::mem::offset_of!(CpuPage, span) == 0xe00);
    assert!(std::mem::offset_of!(CpuPage, taken) == 0xee0);
    assert!(std::mem::offset_of!(CpuPage, guest) == 0xef0);
};

/// Now, in ns of `CLOCK_MONOTONIC`, which all processes of the machine share.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One source vector: a vCPU and an x86 vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Slot {
    /// The vCPU, from 0.
    pub vcpu: u32,
    /// The x86 vector, from [`FIRST_VECTOR`].
    pub vector: u8,
}

impl Slot {
    /// The index of the slot in the arrays of its vCPU; `None` for a vector below [`FIRST_VECTOR`].
    pub fn index(self) -> Option<usize> {
        self.vector.checked_sub(FIRST_VECTOR).map(usize::from)
    }
}

/// What a handler found when it was entered for a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Slots that had a new number.
    pub fresh: u32,
    /// The vector is not in use.
    pub stray: bool,
}

/// The mapped ledger. All of it is atomic words, so that it can be shared by reference.
#[derive(Debug)]
pub struct Ledger {
    base: *mut u8,
    length: usize,
    vcpus: usize,
}

// SAFETY: the mapping belongs to this value for its whole life, and everything in it is reached as atomics only.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and every reference into it borrows `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.length) };
    }
}

impl Ledger {
    fn length(vcpus: usize) -> usize {
        (1 + vcpus + vcpus * SIGNAL_PAGES) * PAGE
    }

    /// A ledger of zeros for this many vCPUs, and the descriptor to hand to the devices.
    ///
    /// # Errors
    /// What the operating system says; `InvalidInput` for more than [`MAX_VCPUS`].
    pub fn create(vcpus: u32) -> io::Result<(Self, OwnedFd)> {
        let vcpus = vcpus as usize;
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let memory = rustix::fs::memfd_create("doorbell-ledger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&memory, Self::length(vcpus) as u64)?;
        // A device that shrank the file would kill everybody else with SIGBUS.
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let ledger = Self::map(&memory, vcpus)?;
        ledger.header().vcpus.store(vcpus as u32, Ordering::Relaxed);
        // Release: pairs with the Acquire in `open`.
        ledger.header().magic.store(MAGIC, Ordering::Release);
        Ok((ledger, memory))
    }

    /// The ledger behind a descriptor that came from [`create`](Self::create).
    ///
    /// # Errors
    /// What the operating system says; `InvalidData` if this is no ledger.
    pub fn open(memory: OwnedFd) -> io::Result<Self> {
        let memory = File::from(memory);
        let length = memory.metadata()?.len();
        let pages = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)? / PAGE;
        let vcpus = pages.saturating_sub(1) / (1 + SIGNAL_PAGES);
        if vcpus == 0 || vcpus > MAX_VCPUS || Self::length(vcpus) as u64 != length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let ledger = Self::map(&memory, vcpus)?;
        // Acquire: pairs with the Release in `create`.
        if ledger.header().magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(ledger)
    }

    fn map(memory: impl AsFd, vcpus: usize) -> io::Result<Self> {
        let length = Self::length(vcpus);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice disturbs nobody's memory.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, memory, 0) }?.cast();
        Ok(Self { base, length, vcpus })
    }

    /// Page 0.
    pub fn header(&self) -> &Header {
        // SAFETY: page 0 exists in every ledger, is aligned, and a `Header` is atomics and unused words only.
        unsafe { &*self.base.cast() }
    }

    /// How many vCPUs the ledger is for.
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// The page of `vcpu`.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn cpu(&self, vcpu: u32) -> &CpuPage {
        let vcpu = vcpu as usize;
        assert!(vcpu < self.vcpus, "no vCPU {vcpu} in this ledger");
        // SAFETY: the page lies within the mapping, is aligned, and a `CpuPage` is atomics and unused words only.
        unsafe { &*self.base.add((1 + vcpu) * PAGE).cast() }
    }

    /// The offset in the memfd, and in the mapping, of the page of `vcpu`, for who maps it into a guest.
    pub fn cpu_page_offset(vcpu: u32) -> usize {
        (1 + vcpu as usize) * PAGE
    }

    /// The address at which the page of `vcpu` is mapped in this process.
    pub fn cpu_page_address(&self, vcpu: u32) -> *mut u8 {
        assert!((vcpu as usize) < self.vcpus, "no vCPU {vcpu} in this ledger");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(Self::cpu_page_offset(vcpu)) }
    }

    /// The signal pages of `vcpu`.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn signals(&self, vcpu: u32) -> &SignalPages {
        let vcpu = vcpu as usize;
        assert!(vcpu < self.vcpus, "no vCPU {vcpu} in this ledger");
        // SAFETY: the pages lie within the mapping, are aligned, and `SignalPages` is atomics only.
        unsafe { &*self.base.add((1 + self.vcpus + vcpu * SIGNAL_PAGES) * PAGE).cast() }
    }

    /// The device's half: publishes the next number of a slot. The signal must follow, and then [`sent`](Self::sent).
    pub fn publish(&self, slot: Slot) -> u32 {
        let Some(index) = slot.index() else { return 0 };
        let sequence = &self.cpu(slot.vcpu).sequence[index];
        // Relaxed: only the slot's device writes it.
        let number = sequence.load(Ordering::Relaxed).wrapping_add(1);
        let stamp = &self.signals(slot.vcpu).stamps[index][number as usize % STAMPS];
        // Relaxed: ordered by the Release below.
        stamp.store(now_ns(), Ordering::Relaxed);
        // Release: pairs with the Acquire in `enter`, which must find the time stamp.
        sequence.store(number, Ordering::Release);
        number
    }

    /// The device's half: the signal of `number` has been given.
    pub fn sent(&self, slot: Slot, number: u32) {
        if let Some(index) = slot.index() {
            // Release: a coordinator that reads it (Acquire) counts on everything before it.
            self.signals(slot.vcpu).sent[index].store(number, Ordering::Release);
        }
    }

    /// The last number of a slot that its device published.
    pub fn published(&self, slot: Slot) -> u32 {
        // Acquire: pairs with the Release in `publish`.
        slot.index().map_or(0, |index| self.cpu(slot.vcpu).sequence[index].load(Ordering::Acquire))
    }

    /// The last number of a slot that a handler saw.
    pub fn seen(&self, slot: Slot) -> u32 {
        // Acquire: pairs with the Release in `enter`: the handler is done with that number.
        slot.index().map_or(0, |index| self.cpu(slot.vcpu).seen[index].load(Ordering::Acquire))
    }

    /// The handler's half: what the [module](self) prescribes between the acknowledge and the EOI. Calls `sample` with
    /// the slot's index and how long its oldest unseen number has waited, in ns, where that can still be told.
    #[inline]
    pub fn enter(&self, vcpu: u32, vector: u8, mut sample: impl FnMut(usize, u32, Option<u64>)) -> Entry {
        let page = self.cpu(vcpu);
        // Relaxed, here and below: only this vCPU's handlers write these words, one at a time.
        page.taken.store(page.taken.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        page.last.store(u32::from(vector), Ordering::Relaxed);
        let first = usize::from(vector.wrapping_sub(FIRST_VECTOR));
        let span = page.span.get(first).map_or(0, |span| usize::from(span.load(Ordering::Relaxed) & !SPAN_LEVEL));
        if span == 0 {
            page.stray.store(page.stray.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            return Entry { fresh: 0, stray: true };
        }
        let mut fresh = 0;
        for index in first..(first + span).min(SLOTS) {
            // Acquire: pairs with the Release in `publish`.
            let number = page.sequence[index].load(Ordering::Acquire);
            let seen = page.seen[index].load(Ordering::Relaxed);
            if number == seen {
                continue;
            }
            fresh += 1;
            sample(index, number, self.age(vcpu, index, seen.wrapping_add(1), number));
            let count = &page.count[index];
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            // Release: pairs with the Acquire in `seen`.
            page.seen[index].store(number, Ordering::Release);
        }
        if fresh == 0 {
            let again = &page.again[first];
            again.store(again.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        Entry { fresh, stray: false }
    }

    /// [`enter`](Self::enter) where `slot` may be that of another vCPU, from where the interrupt was re-targeted; `arrival`
    /// is what this vCPU acknowledged. Its handlers may run on two vCPUs at once: for the last interrupt that went to the
    /// one, and for the first that goes to the other.
    pub fn enter_at(
        &self,
        vcpu: u32,
        arrival: u32,
        slot: Slot,
        mut sample: impl FnMut(usize, u32, Option<u64>),
    ) -> Entry {
        let own = self.cpu(vcpu);
        // Relaxed: as in `enter`.
        own.taken.store(own.taken.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        own.last.store(arrival, Ordering::Relaxed);
        let page = self.cpu(slot.vcpu);
        let first = slot.index().unwrap_or(SLOTS);
        let span = page.span.get(first).map_or(0, |span| usize::from(span.load(Ordering::Relaxed) & !SPAN_LEVEL));
        if span == 0 {
            own.stray.fetch_add(1, Ordering::Relaxed);
            return Entry { fresh: 0, stray: true };
        }
        let mut fresh = 0;
        for index in first..(first + span).min(SLOTS) {
            // Acquire: pairs with the Release in `publish`.
            let number = page.sequence[index].load(Ordering::Acquire);
            let before = page.seen[index].load(Ordering::Relaxed);
            let age = self.age(slot.vcpu, index, before.wrapping_add(1), number);
            if self.see(page, index, number) {
                // Counted before it is seen would need no order, because the figures are added up when all handlers have gone.
                page.count[index].fetch_add(1, Ordering::Relaxed);
                fresh += 1;
                sample(index, number, age);
            }
        }
        if fresh == 0 {
            page.again[first].fetch_add(1, Ordering::Relaxed);
        }
        Entry { fresh, stray: false }
    }

    /// A driver that has no interrupt of a slot looks at its device, and sees `number`. Returns whether that is new.
    pub fn look(&self, slot: Slot, number: u32) -> bool {
        slot.index().is_some_and(|index| self.see(self.cpu(slot.vcpu), index, number))
    }

    /// Raises `seen` to `number`; whoever raises it has seen the number, and nobody else has.
    fn see(&self, page: &CpuPage, index: usize, number: u32) -> bool {
        // Release: pairs with the Acquire in `seen`.
        page.seen[index].fetch_max(number, Ordering::Release) < number
    }

    /// The handler's half: the EOI of the interrupt entered last has been written.
    #[inline]
    pub fn leave(&self, vcpu: u32) {
        let ended = &self.cpu(vcpu).ended;
        // Relaxed: only this vCPU writes it. Release: the watchdog reads it first and `taken` second.
        ended.store(ended.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// How long ago `oldest` was published, unless its time stamp may have been overwritten by now.
    fn age(&self, vcpu: u32, index: usize, oldest: u32, newest: u32) -> Option<u64> {
        if newest.wrapping_sub(oldest) >= STAMPS as u32 {
            return None;
        }
        let stamp = self.signals(vcpu).stamps[index][oldest as usize % STAMPS].load(Ordering::Relaxed);
        // Orders the load of the stamp before that of the sequence number, as in a seqlock. The device stores the stamp
        // of the next number before it publishes it, so the last of the ring may be on its way out.
        std::sync::atomic::fence(Ordering::Acquire);
        let latest = self.cpu(vcpu).sequence[index].load(Ordering::Relaxed);
        if latest.wrapping_sub(oldest) >= STAMPS as u32 - 1 {
            return None;
        }
        Some(now_ns().saturating_sub(stamp))
    }
}

#[cfg(test)]
mod tests;
