//! The sockets: qtest, QMP, and the server of an ivshmem device, in one loop on one thread.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::machine::Machine;
use super::monitor::{self, Monitor};
use super::options::{Channel, CommandLine, Model};
use super::protocol;

/// How much one read takes.
const CHUNK: usize = 64 << 10;
/// The version of the ivshmem server's protocol.
const IVSHMEM_VERSION: i64 = 0;

/// A client's lines.
struct Client {
    input: File,
    output: Box<dyn Write>,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    longest: usize,
    closed: bool,
}

impl Client {
    fn open(channel: &Channel, longest: usize) -> Result<Self, String> {
        let (input, output): (OwnedFd, Box<dyn Write>) = match channel {
            Channel::Stdio => {
                let input = io::stdin().as_fd().try_clone_to_owned();
                (input.map_err(|error| format!("standard input: {error}"))?, Box::new(io::stdout()))
            }
            Channel::Unix { path, server } => {
                let stream = if *server {
                    // A socket that an earlier run left behind would be in the way.
                    let _ = std::fs::remove_file(path);
                    let accepted = UnixListener::bind(path).and_then(|listener| listener.accept());
                    let _ = std::fs::remove_file(path);
                    accepted.map(|(stream, _)| stream)
                } else {
                    UnixStream::connect(path)
                };
                let named = |error: io::Error| format!("{}: {error}", path.display());
                let stream = stream.map_err(named)?;
                (stream.try_clone().map_err(named)?.into(), Box::new(stream))
            }
        };
        Ok(Self { input: input.into(), output, begun: Vec::new(), longest, closed: false })
    }

    /// The whole lines that have come, without their ends.
    fn lines(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut chunk = vec![0; CHUNK];
        let read = self.input.read(&mut chunk)?;
        self.closed = read == 0;
        self.begun.extend_from_slice(&chunk[..read]);
        let mut lines = Vec::new();
        if let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.begun.split_off(end + 1);
            let whole = std::mem::replace(&mut self.begun, rest);
            lines.extend(whole[..end].split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
        }
        if self.begun.len() > self.longest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line of more than {} bytes", self.longest),
            ));
        }
        Ok(lines)
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.output.write_all(text.as_bytes())?;
        self.output.flush()
    }
}

/// The events of one ivshmem device, from its server.
struct Peer {
    devfn: u8,
    vectors: u16,
    stream: UnixStream,
    /// Numbers received so far; our own id is the second.
    received: usize,
    id: i64,
    /// Part of a number.
    begun: Vec<u8>,
    events: Vec<OwnedFd>,
    closed: bool,
}

impl Peer {
    /// Takes what the server sends: a version, an id, shared memory, then for each vector of each peer an eventfd.
    fn receive(&mut self) -> io::Result<()> {
        let mut number = [0; 8];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // Never more than one number: each may come with a descriptor.
        let wanted = 8 - self.begun.len();
        let mut parts = [IoSliceMut::new(&mut number[..wanted])];
        let received = recvmsg(&self.stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptor = descriptors.next().and_then(|mut rights| rights.next());
        self.closed = received.bytes == 0;
        self.begun.extend_from_slice(&number[..received.bytes]);
        let Ok(bytes) = <[u8; 8]>::try_from(&self.begun[..]) else { return Ok(()) };
        self.begun.clear();
        let value = i64::from_le_bytes(bytes);
        match self.received {
            0 if value != IVSHMEM_VERSION => {
                let error = format!("ivshmem protocol version {value}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            1 => self.id = value,
            // The shared memory comes with -1; another peer's id without a descriptor says that it left.
            _ => {
                if let Some(event) = descriptor.filter(|_| value == self.id && self.received > 1) {
                    if self.events.len() < usize::from(self.vectors) {
                        self.events.push(event);
                    }
                }
            }
        }
        self.received = self.received.saturating_add(1);
        Ok(())
    }
}

/// The machine and its clients.
pub struct Server {
    machine: Machine,
    monitor: Monitor,
    peers: Vec<Peer>,
    qtest: Client,
    qmp: Option<Client>,
}

/// Makes the machine and opens its sockets.
///
/// # Errors
/// One line: what cannot be made or reached.
pub fn open(line: &CommandLine) -> Result<Server, String> {
    let machine = Machine::new(line.machine.clone())?;
    let peers = connect(&machine)?;
    // As QEMU: the monitor first.
    let mut qmp = line.qmp.as_ref().map(|channel| Client::open(channel, monitor::LONGEST_LINE)).transpose()?;
    let qtest = line.qtest.as_ref().ok_or("--qtest unix:PATH (or stdio) is needed")?;
    let qtest = Client::open(qtest, protocol::LONGEST_LINE)?;
    if let Some(qmp) = &mut qmp {
        qmp.say(&monitor::greeting()).map_err(|error| format!("QMP: {error}"))?;
    }
    Ok(Server { machine, monitor: Monitor::default(), peers, qtest, qmp })
}

impl Server {
    /// Answers clients until the qtest client leaves or one of them says so.
    ///
    /// # Errors
    /// One line: a client that broke the protocol or does not listen.
    pub fn run(&mut self) -> Result<(), String> {
        while !self.qtest.closed {
            let ready = wait(&self.qtest, self.qmp.as_ref(), &self.peers).map_err(|error| format!("poll: {error}"))?;
            for (peer, ready) in self.peers.iter_mut().zip(&ready.peers) {
                if ready.stream {
                    peer.receive().map_err(|error| format!("ivshmem server: {error}"))?;
                }
                for vector in &ready.vectors {
                    take(peer.events[*vector].as_fd());
                    self.machine.ivshmem_event(peer.devfn, *vector as u16);
                }
            }
            if ready.qtest {
                self.answer_qtest().map_err(|error| format!("qtest: {error}"))?;
            }
            if ready.qmp && self.answer_qmp().map_err(|error| format!("QMP: {error}"))? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer_qtest(&mut self) -> io::Result<()> {
        for line in self.qtest.lines()? {
            let answer = protocol::execute(&mut self.machine, &line);
            self.qtest.say(&answer)?;
        }
        Ok(())
    }

    /// True if the client said `quit`.
    fn answer_qmp(&mut self) -> io::Result<bool> {
        let Some(client) = &mut self.qmp else { return Ok(false) };
        for line in client.lines()? {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let reply = self.monitor.execute(&mut self.machine, &line);
            client.say(&reply.text)?;
            if reply.quit {
                return Ok(true);
            }
        }
        if client.closed {
            self.qmp = None;
        }
        Ok(false)
    }
}

fn connect(machine: &Machine) -> Result<Vec<Peer>, String> {
    let mut peers = Vec::new();
    for device in &machine.options().devices {
        if let Model::Ivshmem { vectors, server: Some(path) } = &device.model {
            let stream = UnixStream::connect(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let (devfn, vectors) = (device.devfn, *vectors);
            let (begun, events) = (Vec::new(), Vec::new());
            peers.push(Peer { devfn, vectors, stream, received: 0, id: -1, begun, events, closed: false });
        }
    }
    Ok(peers)
}

/// Sets an event's counter back.
fn take(event: BorrowedFd<'_>) {
    // It was readable; if somebody else was faster, there is nothing to do.
    let _ = rustix::io::read(event, &mut [0; 8]);
}

struct Ready {
    qtest: bool,
    qmp: bool,
    peers: Vec<PeerReady>,
}

#[derive(Default)]
struct PeerReady {
    stream: bool,
    vectors: Vec<usize>,
}

fn wait(qtest: &Client, qmp: Option<&Client>, peers: &[Peer]) -> io::Result<Ready> {
    let mut polled = vec![PollFd::new(&qtest.input, PollFlags::IN)];
    polled.extend(qmp.map(|qmp| PollFd::new(&qmp.input, PollFlags::IN)));
    for peer in peers {
        polled.extend((!peer.closed).then(|| PollFd::new(&peer.stream, PollFlags::IN)));
        polled.extend(peer.events.iter().map(|event| PollFd::new(event, PollFlags::IN)));
    }
    loop {
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map(drop)?,
        }
    }
    let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
    let mut next = || ready.next().unwrap_or(false);
    let (qtest, qmp) = (next(), qmp.is_some() && next());
    let peers = peers.iter().map(|peer| PeerReady {
        stream: !peer.closed && next(),
        vectors: (0..peer.events.len()).filter(|_| next()).collect(),
    });
    let peers = peers.collect();
    Ok(Ready { qtest, qmp, peers })
}
