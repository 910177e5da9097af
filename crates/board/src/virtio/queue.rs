//! Split virtqueues (section 2.7), as their device sees them.

use std::sync::atomic::{Ordering, fence};

use doorbell::guest_ram::{GuestRam, GuestRamExt, NoMemory};

/// Entries of a queue, at most.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of one chain of buffers, at most: what is longer breaks the queue, so that no request is unbounded work.
pub const MOST_BYTES: u64 = 16 << 20;

/// A descriptor, section 2.7.5.
const DESCRIPTOR_BYTES: u64 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// In the available ring: the driver wants no interrupts (section 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// The driver's rings make no sense; the device needs a reset (section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<NoMemory> for Broken {
    fn from(_: NoMemory) -> Self {
        Self
    }
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub address: u64,
    /// How many bytes it has.
    pub length: u32,
}

/// The buffers of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    /// What the driver has written, in its order.
    pub readable: Vec<Span>,
    /// What the device is to write.
    pub writable: Vec<Span>,
}

impl Chain {
    /// Bytes that the device may write.
    pub fn room(&self) -> u64 {
        self.writable.iter().map(|span| u64::from(span.length)).sum()
    }
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    pub size: u16,
    pub enabled: bool,
    pub vector: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            size: QUEUE_SIZE,
            enabled: false,
            vector: super::pci::NO_VECTOR,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// Where entry `index` of a ring of `entry` bytes each is, behind the ring's header of 4 bytes.
    fn place(&self, ring: u64, index: u16, entry: u64) -> Result<u64, Broken> {
        ring.checked_add(4 + entry * u64::from(index % self.size)).ok_or(Broken)
    }

    fn pop(&mut self, ram: &dyn GuestRam) -> Result<Option<Chain>, Broken> {
        if !self.enabled {
            return Ok(None);
        }
        let index: u16 = ram.read_le(self.available.checked_add(2).ok_or(Broken)?)?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(Broken);
        }
        if waiting == 0 {
            return Ok(None);
        }
        // The driver wrote the entry before the index.
        fence(Ordering::Acquire);
        let head: u16 = ram.read_le(self.place(self.available, self.next_available, 2)?)?;
        let chain = self.walk(ram, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    fn walk(&self, ram: &dyn GuestRam, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let (mut at, mut bytes) = (head, 0u64);
        // A chain that is longer than the queue has a loop.
        for _ in 0..self.size {
            if at >= self.size {
                return Err(Broken);
            }
            let descriptor = self.descriptors.checked_add(DESCRIPTOR_BYTES * u64::from(at)).ok_or(Broken)?;
            let word: u64 = ram.read_le(descriptor.checked_add(8).ok_or(Broken)?)?;
            let span = Span { address: ram.read_le(descriptor)?, length: word as u32 };
            let (flags, next) = ((word >> 32) as u16, (word >> 48) as u16);
            bytes += u64::from(span.length);
            match flags & !NEXT {
                // What the device writes comes last (section 2.7.4.2).
                0 if chain.writable.is_empty() => chain.readable.push(span),
                WRITE => chain.writable.push(span),
                _ => return Err(Broken),
            }
            if bytes > MOST_BYTES {
                return Err(Broken);
            }
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            at = next;
        }
        Err(Broken)
    }

    /// Gives a chain back, into which `written` bytes were written. True if the driver wants an interrupt.
    fn complete(&mut self, ram: &dyn GuestRam, chain: &Chain, written: u32) -> Result<bool, Broken> {
        let entry = self.place(self.used, self.next_used, 8)?;
        ram.write_le(entry, u64::from(written) << 32 | u64::from(chain.head))?;
        self.next_used = self.next_used.wrapping_add(1);
        // The driver reads the entry after the index.
        fence(Ordering::Release);
        ram.write_le(self.used.checked_add(2).ok_or(Broken)?, self.next_used)?;
        // And its wish after the index was written (section 2.7.7).
        fence(Ordering::SeqCst);
        let flags: u16 = ram.read_le(self.available)?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}

/// The queues of a device, while it works.
pub struct Rings<'a> {
    pub(super) queues: &'a mut [Queue],
    pub(super) ram: &'a dyn GuestRam,
    /// A bit for each queue whose driver is to be interrupted.
    pub(super) interrupts: u32,
    pub(super) broken: bool,
}

impl Rings<'_> {
    /// The next request of a queue, if there is one.
    pub fn pop(&mut self, queue: u16) -> Option<Chain> {
        let popped = match self.queues.get_mut(usize::from(queue)) {
            Some(_) if self.broken => return None,
            Some(queue) => queue.pop(self.ram),
            None => return None,
        };
        popped.unwrap_or_else(|Broken| {
            self.broken = true;
            None
        })
    }

    /// Gives a request back, with the number of bytes that were written into it.
    pub fn complete(&mut self, queue: u16, chain: &Chain, written: u32) {
        let Some(ring) = self.queues.get_mut(usize::from(queue)) else { return };
        match ring.complete(self.ram, chain, written) {
            Ok(true) => self.interrupts |= 1 << queue,
            Ok(false) => {}
            Err(Broken) => self.broken = true,
        }
    }

    /// Reads what the driver has written, from byte `skip` on: as many bytes as there are, at most those of `bytes`.
    ///
    /// # Errors
    /// If a span is no memory.
    pub fn read(&self, chain: &Chain, skip: u64, bytes: &mut [u8]) -> Result<usize, NoMemory> {
        let mut done = 0;
        for (address, length) in pieces(&chain.readable, skip, bytes.len()) {
            self.ram.read(address, &mut bytes[done..done + length])?;
            done += length;
        }
        Ok(done)
    }

    /// Writes into the driver's buffers, from byte `skip` on: as many bytes as there is room for.
    ///
    /// # Errors
    /// If a span is no memory.
    pub fn write(&self, chain: &Chain, skip: u64, bytes: &[u8]) -> Result<usize, NoMemory> {
        let mut done = 0;
        for (address, length) in pieces(&chain.writable, skip, bytes.len()) {
            self.ram.write(address, &bytes[done..done + length])?;
            done += length;
        }
        Ok(done)
    }
}

/// The pieces of memory that hold up to `most` bytes of `spans` from byte `skip` on.
fn pieces(spans: &[Span], mut skip: u64, mut most: usize) -> impl Iterator<Item = (u64, usize)> {
    spans.iter().filter_map(move |span| {
        let length = u64::from(span.length);
        let before = skip.min(length);
        skip -= before;
        let piece = usize::try_from(length - before).unwrap_or(usize::MAX).min(most);
        most -= piece;
        (piece > 0).then(|| (span.address.wrapping_add(before), piece))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use doorbell::guest_ram::RamBlock;

    use super::*;

    pub const RAM: u64 = 0x4000_0000;

    /// A driver's half of one queue, in the plainest way.
    pub struct Driver {
        pub base: u64,
        made: u16,
    }

    impl Driver {
        pub fn new(base: u64) -> Self {
            Self { base, made: 0 }
        }

        pub fn places(&self) -> [u64; 3] {
            [self.base, self.base + 0x1000, self.base + 0x2000]
        }

        pub fn queue(&self) -> Queue {
            let [descriptors, available, used] = self.places();
            Queue { size: 8, enabled: true, descriptors, available, used, ..Queue::new() }
        }

        /// Offers one chain: (address, bytes, whether the device writes it).
        pub fn offer(&mut self, ram: &RamBlock, spans: &[(u64, u32, bool)]) {
            for (at, &(address, length, write)) in spans.iter().enumerate() {
                let more = at + 1 < spans.len();
                let flags = u64::from(more) | u64::from(write) << 1;
                let place = self.base + 16 * at as u64;
                ram.write_le(place, address).unwrap();
                ram.write_le(place + 8, u64::from(length) | flags << 32 | (at as u64 + 1) << 48).unwrap();
            }
            let ring = self.base + 0x1000;
            ram.write_le(ring + 4 + 2 * u64::from(self.made % 8), 0u16).unwrap();
            self.made = self.made.wrapping_add(1);
            ram.write_le(ring + 2, self.made).unwrap();
        }

        /// How many came back, and the last of them: (head, bytes written).
        pub fn used(&self, ram: &RamBlock) -> (u16, u32, u32) {
            let ring = self.base + 0x2000;
            let index: u16 = ram.read_le(ring + 2).unwrap();
            let last = ring + 4 + 8 * u64::from(index.wrapping_sub(1) % 8);
            (index, ram.read_le(last).unwrap(), ram.read_le(last + 4).unwrap())
        }
    }

    fn ram() -> RamBlock {
        RamBlock::new(RAM, 0x10_0000)
    }

    #[test]
    fn a_chain_comes_and_goes_back() {
        let (ram, mut driver) = (ram(), Driver::new(RAM));
        driver.offer(&ram, &[(RAM + 0x8000, 4, false), (RAM + 0x9000, 2, true), (RAM + 0xa000, 6, true)]);
        ram.write(RAM + 0x8000, b"ping").unwrap();
        let mut queues = [driver.queue()];
        let mut rings = Rings { queues: &mut queues, ram: &ram, interrupts: 0, broken: false };
        let chain = rings.pop(0).unwrap();
        let mut bytes = [0; 10];
        assert_eq!((rings.read(&chain, 1, &mut bytes), &bytes[..3]), (Ok(3), &b"ing"[..]));
        assert_eq!((chain.room(), rings.write(&chain, 1, b"hello!!!")), (8, Ok(7)));
        rings.complete(0, &chain, 7);
        assert_eq!((rings.pop(0), rings.interrupts, rings.broken), (None, 1, false));
        assert_eq!(driver.used(&ram), (1, 0, 7));
        let mut written = [0; 6];
        ram.read(RAM + 0xa000, &mut written).unwrap();
        assert_eq!(&written, b"ello!!");
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        let (ram, mut driver) = (ram(), Driver::new(RAM));
        ram.write_le(RAM + 0x1000, NO_INTERRUPT).unwrap();
        driver.offer(&ram, &[(RAM + 0x8000, 4, false)]);
        let mut queues = [driver.queue()];
        let mut rings = Rings { queues: &mut queues, ram: &ram, interrupts: 0, broken: false };
        let chain = rings.pop(0).unwrap();
        rings.complete(0, &chain, 0);
        assert_eq!(rings.interrupts, 0);
    }

    #[test]
    fn rings_that_make_no_sense_break_the_queue_and_nothing_else() {
        type Spoil = fn(&RamBlock, &mut Queue);
        let spoilers: [(&str, Spoil); 8] = [
            ("an index too far ahead", |ram, _| ram.write_le(RAM + 0x1002, 100u16).unwrap()),
            ("a head beyond the queue", |ram, _| ram.write_le(RAM + 0x1004, 8u16).unwrap()),
            ("a chain that bites its tail", |ram, _| ram.write_le(RAM + 12, 1u32).unwrap()),
            ("an indirect table", |ram, _| ram.write_le(RAM + 12, 4u32).unwrap()),
            ("a chain too long to serve", |ram, _| ram.write_le(RAM + 8, u32::MAX).unwrap()),
            ("a ring outside of memory", |_, queue| queue.available = 0),
            ("descriptors at the end of the address space", |_, queue| queue.descriptors = u64::MAX),
            ("a ring at the end of the address space", |_, queue| queue.available = u64::MAX - 1),
        ];
        for (what, spoil) in spoilers {
            let (ram, mut driver) = (ram(), Driver::new(RAM));
            driver.offer(&ram, &[(RAM + 0x8000, 4, false)]);
            let mut queues = [driver.queue()];
            spoil(&ram, &mut queues[0]);
            let mut rings = Rings { queues: &mut queues, ram: &ram, interrupts: 0, broken: false };
            assert_eq!((rings.pop(0), rings.broken), (None, true), "{what}");
            assert_eq!(rings.pop(0), None);
        }
    }
}
