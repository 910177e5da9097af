//! Error numbers, as KVM's calls return them.

use std::fmt;

/// An error number of the operating system.
///
/// ```
/// use doorbell::Errno;
/// assert_eq!(Errno::INVAL.raw_os_error(), 22);
/// assert_eq!(Errno::INVAL.to_string(), std::io::Error::from_raw_os_error(22).to_string());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $value:ident;)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($value), "`.")]
                pub const $name: Self = Self(rustix::io::Errno::$name.raw_os_error());
            )*

            /// Its name, such as `EINVAL`; `None` for those that none of KVM's calls here returns.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    TOOBIG = E2BIG;
    PERM = EPERM;
    NOENT = ENOENT;
    SRCH = ESRCH;
    INTR = EINTR;
    NXIO = ENXIO;
    NOEXEC = ENOEXEC;
    BADF = EBADF;
    AGAIN = EAGAIN;
    NOMEM = ENOMEM;
    ACCESS = EACCES;
    FAULT = EFAULT;
    BUSY = EBUSY;
    EXIST = EEXIST;
    NODEV = ENODEV;
    INVAL = EINVAL;
    NFILE = ENFILE;
    MFILE = EMFILE;
    NOTTY = ENOTTY;
    NOSPC = ENOSPC;
    RANGE = ERANGE;
    DEADLK = EDEADLK;
    PROTO = EPROTO;
    OPNOTSUPP = EOPNOTSUPP;
}

impl Errno {
    /// The error with this number.
    pub const fn from_raw_os_error(number: i32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn raw_os_error(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}
