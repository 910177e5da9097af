//! What can be refused, in words, and the number that KVM has for it.

use crate::Errno;

/// Why a call was refused. [`errno`](Error::errno) is the number that the kernel's KVM returns for the same mistake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GSI that the table does not have.
    #[error("GSI {gsi} is out of range: the table has GSIs 0 to {last}")]
    NoSuchGsi {
        /// The GSI asked for.
        gsi: u32,
        /// The highest one there is.
        last: u32,
    },
    /// More routes than a table may have.
    #[error("{count} routes are too many: a table takes {most}")]
    TooManyRoutes {
        /// How many were given.
        count: usize,
        /// How many are allowed.
        most: usize,
    },
    /// Routes of one GSI that exclude each other.
    #[error("GSI {gsi} has routes that exclude each other: a GSI takes one message, or one pin of each chip")]
    ConflictingRoutes {
        /// The GSI.
        gsi: u32,
    },
    /// A pin that no chip has.
    #[error("chip {chip} has no pin {pin}: {pins} pins")]
    NoSuchPin {
        /// The chip.
        chip: u32,
        /// The pin asked for.
        pin: u32,
        /// How many pins the chip has; 0 if there is no such chip.
        pins: u16,
    },
    /// A value outside what the interface allows.
    #[error("{what} {value:#x} is not allowed: {allowed}")]
    Invalid {
        /// Which value, as a noun.
        what: &'static str,
        /// The value.
        value: u64,
        /// What would have been accepted.
        allowed: &'static str,
    },
    /// No GSI is free.
    #[error("no GSI is free: all {0} are taken")]
    NoFreeGsi(u32),
    /// A GSI was asked to deliver before it had a route, under the policy that makes this an error.
    #[error("GSI {0} has no route, and this table injects only through routes")]
    Unrouted(u32),
    /// The interrupt controller is missing or not ready.
    #[error("there is no interrupt controller that could take this")]
    NoController,
    /// The eventfd, or another single-owner resource, is taken.
    #[error("{0} is in use")]
    Busy(&'static str),
    /// A descriptor is not what it must be.
    #[error("{what}: {source}")]
    Descriptor {
        /// Which descriptor.
        what: &'static str,
        /// What is wrong with it.
        source: Errno,
    },
    /// This set-up cannot do it.
    #[error("{0} is not supported here")]
    Unsupported(&'static str),
    /// A saved state that cannot be restored.
    #[error("the saved state is not valid: {0}")]
    Snapshot(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: Errno,
    },
}

impl Error {
    /// The number that KVM returns for this mistake.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoSuchGsi { .. }
            | Self::TooManyRoutes { .. }
            | Self::ConflictingRoutes { .. }
            | Self::NoSuchPin { .. }
            | Self::Invalid { .. }
            | Self::Unrouted(_)
            | Self::NoController
            | Self::Snapshot(_)
            | Self::Unsupported(_) => Errno::INVAL,
            Self::NoFreeGsi(_) => Errno::NOSPC,
            Self::Busy(_) => Errno::BUSY,
            Self::Descriptor { source, .. } | Self::Os { source, .. } => *source,
        }
    }
}
