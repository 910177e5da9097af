//! An eventfd that was handed in: what it is, which one it is, and how its counter is taken.

use std::{
    fmt,
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags},
    io::{Errno, ReadWriteFlags},
    process::Pid,
};

use crate::Error;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Which eventfd it is, whatever descriptor of whatever process leads to it.
///
/// The kernel's own number (`eventfd-id` in fdinfo, since Linux 5.2). It is given to another eventfd once the last
/// descriptor of this one is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventfdId(u64);

impl EventfdId {
    /// The identity of an eventfd.
    ///
    /// # Errors
    /// [`Error::Descriptor`] with `EBADF` if it is not open, `EINVAL` if it is not an eventfd (F4); [`Error::Os`] if
    /// `/proc` cannot be read.
    pub fn of(fd: impl AsFd) -> Result<Self, Error> {
        FdInfoDir::open()?.id_of(fd.as_fd())
    }
}

impl fmt::Display for EventfdId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eventfd {}", self.0)
    }
}

/// What fdinfo says of an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FdInfo {
    pub(super) id: EventfdId,
    pub(super) count: u64,
}

impl FdInfo {
    /// Reads the lines of an fdinfo file; `EINVAL` if they are not those of an eventfd.
    fn parse(text: &str) -> Result<Self, Errno> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        let count = value("eventfd-count").ok_or(Errno::INVAL)?;
        // A kernel before 5.2 has the count, but not the number.
        let id = value("eventfd-id").ok_or(Errno::OPNOTSUPP)?;
        Ok(Self {
            id: EventfdId(id.parse().map_err(|_| Errno::OPNOTSUPP)?),
            count: u64::from_str_radix(count, 16).map_err(|_| Errno::OPNOTSUPP)?,
        })
    }
}

/// `/proc/self/fdinfo`, opened early so that it still works in a chroot without `/proc`.
pub(super) struct FdInfoDir {
    dir: OwnedFd,
    /// Whose descriptors it lists; another process' after a fork.
    process: Pid,
}

impl FdInfoDir {
    pub(super) fn open() -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, "/proc/self/fdinfo", flags, Mode::empty()).map_err(|source| Error::Os {
            what: "opening /proc/self/fdinfo, which tells eventfds apart",
            source: source.into(),
        })?;
        Ok(Self { dir, process: rustix::process::getpid() })
    }

    /// [`EventfdId::of`].
    pub(super) fn id_of(&self, fd: BorrowedFd<'_>) -> Result<EventfdId, Error> {
        let what = "the descriptor";
        rustix::io::fcntl_getfd(fd).map_err(|source| Error::Descriptor { what, source: source.into() })?;
        Ok(self.read(fd, what)?.id)
    }

    /// `fd` is known to be open, so that only a missing `/proc` can hide it; `what` names it in an error.
    fn read(&self, fd: BorrowedFd<'_>, what: &'static str) -> Result<FdInfo, Error> {
        if rustix::process::getpid() != self.process {
            return Self::open()?.read(fd, what);
        }
        let os = |source: Errno| Error::Os { what: "reading /proc/self/fdinfo", source: source.into() };
        let name = fd.as_raw_fd().to_string();
        let file = rustix::fs::openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(os)?;
        // Those of an eventfd have about 120 bytes, and come in one piece; what is longer is not an eventfd.
        let mut text = [0; 512];
        let length = rustix::io::read(&file, &mut text).map_err(os)?;
        let text = String::from_utf8_lossy(&text[..length]);
        FdInfo::parse(&text).map_err(|source| Error::Descriptor { what, source: source.into() })
    }
}

/// A descriptor of its own for an eventfd, so that the one handed in may be closed (F12).
#[derive(Debug)]
pub(super) struct Eventfd {
    fd: OwnedFd,
    pub(super) id: EventfdId,
}

impl Eventfd {
    /// Duplicates `fd` and checks the duplicate, so that what was checked is what is used even if another thread
    /// closes the number and opens something else under it (H4). Returns the counter too.
    pub(super) fn adopt(fd: BorrowedFd<'_>, what: &'static str, info: &FdInfoDir) -> Result<(Self, u64), Error> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)
            .map_err(|source| Error::Descriptor { what, source: source.into() })?;
        let FdInfo { id, count } = info.read(fd.as_fd(), what)?;
        Ok((Self { fd, id }, count))
    }

    /// Takes the counter (a semaphore: one of it), whatever it is, without ever waiting for it.
    pub(super) fn drain(&self) {
        let mut counter = [0; 8];
        let all = u64::MAX;
        // NOWAIT, because the descriptor belongs to somebody who may want it to block.
        let taken = rustix::io::preadv2(&self.fd, &mut [IoSliceMut::new(&mut counter)], all, ReadWriteFlags::NOWAIT);
        // Empty (EAGAIN): another reader was faster, which takes nothing away from the event that was reported.
        if matches!(taken, Err(Errno::OPNOTSUPP | Errno::NOSYS)) && self.is_ready(PollFlags::IN) {
            // Before Linux 5.8.
            let _ = rustix::io::read(&self.fd, &mut counter);
        }
    }

    /// The counter as it is now; `None` if it cannot be told.
    pub(super) fn count(&self, info: &FdInfoDir) -> Option<u64> {
        info.read(self.fd.as_fd(), "the eventfd").ok().map(|info| info.count)
    }

    /// Adds 1, unless the counter is full: then its reader has not seen the last event yet, and one is as good as two.
    pub(super) fn signal(&self) {
        // The write would wait for its reader: the descriptor need not be non-blocking.
        if self.has_room() {
            // EAGAIN: filled meanwhile.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Whether a write of 1 would not wait.
    pub(super) fn has_room(&self) -> bool {
        self.is_ready(PollFlags::OUT)
    }

    fn is_ready(&self, flags: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.fd, flags)];
        matches!(poll(&mut fds, Some(&NO_WAIT)), Ok(1)) && fds[0].revents().contains(flags)
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_read_as_the_kernel_writes_it() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\neventfd-count:               1f\neventfd-id: 12\n";
        assert_eq!(FdInfo::parse(text), Ok(FdInfo { id: EventfdId(12), count: 0x1f }));
        assert_eq!(FdInfo::parse("pos:\t0\nflags:\t02\n"), Err(Errno::INVAL), "not an eventfd");
        assert_eq!(FdInfo::parse("eventfd-count: 0\n"), Err(Errno::OPNOTSUPP), "Linux before 5.2");
        assert_eq!(FdInfo::parse("eventfd-count: x\neventfd-id: 1\n"), Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn the_directory_is_not_inherited_and_names_what_is_open() {
        let info = FdInfoDir::open().unwrap();
        let flags = rustix::io::fcntl_getfd(&info.dir).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let id = info.id_of(fd.as_fd()).unwrap();
        assert_eq!((id.to_string(), EventfdId::of(&fd).unwrap()), (format!("eventfd {}", id.0), id));
    }

    #[test]
    fn a_full_resample_counter_does_not_block_the_notifier() {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (eventfd, count) = Eventfd::adopt(fd.as_fd(), "it", &FdInfoDir::open().unwrap()).unwrap();
        assert_eq!(count, u64::MAX - 1);
        eventfd.signal();
        assert_eq!(eventfd.count(&FdInfoDir::open().unwrap()), Some(u64::MAX - 1));
    }
}
