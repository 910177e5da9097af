//! The server of an ivshmem device: the few messages that one peer needs, which is QEMU.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::super::Error;
use super::child::eventfd;

const SHARED_BYTES: u64 = 4 << 20;

/// The events of the peer's vectors.
pub struct Server {
    events: Vec<OwnedFd>,
    /// The peer stays as long as this.
    _connection: UnixStream,
}

impl Server {
    /// Gives a peer that has connected what it needs.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(connection: UnixStream, vectors: u16) -> Result<Self, Error> {
        let events: Vec<OwnedFd> = (0..vectors).map(|_| eventfd()).collect::<Result<_, _>>()?;
        let shared = || -> rustix::io::Result<OwnedFd> {
            let memory = rustix::fs::memfd_create("doorbell-ivshmem", MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&memory, SHARED_BYTES)?;
            Ok(memory)
        };
        let memory = shared().map_err(|error| format!("shared memory: {error}"))?;
        greet(&connection, &memory, &events)?;
        Ok(Self { events, _connection: connection })
    }

    /// One event.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn fire(&self, vector: u16) -> Result<(), Error> {
        let event = self.events.get(usize::from(vector)).ok_or("ivshmem: no such vector")?;
        rustix::io::write(event, &1u64.to_ne_bytes()).map(drop).map_err(|error| format!("eventfd: {error}"))
    }
}

/// The version, the peer's own id, the shared memory, an eventfd for each of its vectors.
fn greet(peer: &UnixStream, memory: &OwnedFd, events: &[OwnedFd]) -> Result<(), Error> {
    let send = |value: i64, descriptor: Option<BorrowedFd<'_>>| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_ref().map(std::slice::from_ref);
        if let Some(descriptors) = descriptors {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let bytes = value.to_le_bytes();
        let sent = sendmsg(peer, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
        sent.map(drop).map_err(|error| format!("ivshmem: {error}"))
    };
    send(0, None)?;
    send(0, None)?;
    send(-1, Some(memory.as_fd()))?;
    events.iter().try_for_each(|event| send(0, Some(event.as_fd())))
}
