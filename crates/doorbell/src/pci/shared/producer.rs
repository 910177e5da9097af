//! The device's side, in its own process.

use std::os::fd::OwnedFd;

use super::region::Region;
use crate::Error;

/// What a device has to do about an event that it has just signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProducerEvent {
    /// Write the vector's eventfd.
    Notify,
    /// Nothing now: the vector is masked and the event is pending. [`SharedProducer::poll`] tells when it is due.
    Pending,
    /// Nothing: the function is disabled and drops its events.
    Dropped,
}

/// The memory as a device in another process sees it.
///
/// ```no_run
/// use doorbell::pci::shared::{ProducerEvent, SharedProducer};
/// # fn device(memory: std::os::fd::OwnedFd, write_eventfd: impl Fn(u16)) -> Result<(), doorbell::Error> {
/// let vectors = SharedProducer::open(memory)?;
/// if vectors.signal(3)? == ProducerEvent::Notify {
///     write_eventfd(3);
/// }
/// // Between other work, while something is pending:
/// vectors.poll(|vector| write_eventfd(vector));
/// # Ok(()) }
/// ```
pub struct SharedProducer {
    region: Region,
}

impl SharedProducer {
    /// Opens the memory that the VMM's [`SharedMsix`](super::SharedMsix) has made.
    ///
    /// # Errors
    /// [`Error::Descriptor`] if this is not a memory file sealed against shrinking; [`Error::Invalid`] if its size or
    /// its header is another one.
    pub fn open(memory: OwnedFd) -> Result<Self, Error> {
        Region::open(memory).map(|region| Self { region })
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.region.vectors()
    }

    /// An event of a vector.
    ///
    /// # Errors
    /// [`Error::Invalid`] beyond the last vector.
    #[inline]
    pub fn signal(&self, vector: u16) -> Result<ProducerEvent, Error> {
        let (word, bit) = self.place(vector)?;
        Ok(if self.region.is_dropping() {
            ProducerEvent::Dropped
        } else if self.region.words(word).signal(bit) {
            ProducerEvent::Notify
        } else {
            ProducerEvent::Pending
        })
    }

    /// Whether a vector is masked at the moment.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn is_masked(&self, vector: u16) -> Result<bool, Error> {
        let (word, bit) = self.place(vector)?;
        Ok(self.region.words(word).masked() & bit != 0)
    }

    /// Calls `notify` for each vector that was pending and has been unmasked by a guest without an exit: write its
    /// eventfd. At most 32 words are looked at.
    pub fn poll(&self, notify: impl FnMut(u16)) {
        self.region.poll(notify);
    }

    fn place(&self, vector: u16) -> Result<(usize, u64), Error> {
        if vector < self.vectors() {
            Ok((usize::from(vector / 64), 1 << (vector % 64)))
        } else {
            Err(Error::Invalid { what: "vector", value: vector.into(), allowed: "below the number of vectors" })
        }
    }
}
