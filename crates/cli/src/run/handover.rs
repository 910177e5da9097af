//! What a device process is given: a description of its work, the ledger, and its eventfds, passed over a socket that is
//! its standard input.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::MemfdFlags,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, Slot};

/// Descriptors to a message; the kernel takes up to 253.
const BATCH: usize = 64;

/// The work of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Its index in the ledger.
    pub index: usize,
    /// Its vectors.
    pub vectors: Vec<SetupVector>,
}

/// One interrupt source of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupVector {
    /// Where its numbers are kept.
    pub slot: Slot,
    /// It waits for the handler after each signal.
    pub lockstep: bool,
    /// How often to signal.
    pub interrupts: u32,
    /// It is a level line: a resample descriptor follows its eventfd.
    pub level: bool,
}

impl Setup {
    fn descriptors(&self) -> usize {
        self.vectors.iter().map(|vector| 1 + usize::from(vector.level)).sum()
    }
}

fn send_batch(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(socket, &[IoSlice::new(b"d")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_batch(socket: BorrowedFd<'_>, into: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let before = into.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            into.extend(descriptors);
        }
    }
    if received.bytes == 0 || into.len() == before {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Sends a device its work. `descriptors` are in the order of its vectors, a resample descriptor behind its eventfd.
///
/// # Errors
/// What the operating system says.
pub fn send(
    socket: BorrowedFd<'_>,
    setup: &Setup,
    ledger: BorrowedFd<'_>,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    debug_assert_eq!(setup.descriptors(), descriptors.len());
    // A description can be larger than a socket's buffer.
    let mut text = File::from(rustix::fs::memfd_create("doorbell-device", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&mut text, setup)?;
    text.flush()?;
    send_batch(socket, &[ledger, text.as_fd()])?;
    descriptors.chunks(BATCH).try_for_each(|batch| send_batch(socket, batch))
}

/// The other end of [`send`].
///
/// # Errors
/// What the operating system says, or `InvalidData` for anything but what [`send`] sends.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Setup, Ledger, Vec<OwnedFd>)> {
    let mut first = Vec::new();
    receive_batch(socket, &mut first)?;
    let [ledger, text] = <[OwnedFd; 2]>::try_from(first).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut text = File::from(text);
    text.rewind()?;
    let mut json = String::new();
    text.read_to_string(&mut json)?;
    let setup: Setup = serde_json::from_str(&json)?;
    let ledger = Ledger::open(ledger)?;
    let mut descriptors = Vec::with_capacity(setup.descriptors());
    while descriptors.len() < setup.descriptors() {
        receive_batch(socket, &mut descriptors)?;
    }
    Ok((setup, ledger, descriptors))
}

#[cfg(test)]
mod tests {
    use rustix::{
        event::EventfdFlags,
        net::{AddressFamily, SocketFlags, SocketType},
    };

    use super::*;

    #[test]
    fn a_device_receives_its_work_its_ledger_and_its_descriptors_in_order() {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let vectors: Vec<_> = (0..100u8)
            .map(|n| SetupVector {
                slot: Slot { vcpu: 0, vector: 0x30 + n },
                lockstep: n % 2 == 0,
                interrupts: 5,
                level: n == 99,
            })
            .collect();
        let setup = Setup { index: 3, vectors };
        let (ledger, memory) = Ledger::create(1).unwrap();
        let eventfds: Vec<_> =
            (0..101).map(|n| rustix::event::eventfd(n + 1, EventfdFlags::CLOEXEC).unwrap()).collect();
        let borrowed: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        send(ours.as_fd(), &setup, memory.as_fd(), &borrowed).unwrap();
        let (received, theirs_ledger, descriptors) = receive(theirs.as_fd()).unwrap();
        assert_eq!(received, setup);
        assert_eq!(descriptors.len(), 101);
        for (n, descriptor) in descriptors.iter().enumerate() {
            let mut count = [0; 8];
            rustix::io::read(descriptor, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), n as u64 + 1);
        }
        let slot = Slot { vcpu: 0, vector: 0x30 };
        theirs_ledger.publish(slot);
        assert_eq!(ledger.cpu(0).sequence[0x10].load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[test]
    fn a_closed_socket_is_an_error() {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        drop(ours);
        assert_eq!(receive(theirs.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
