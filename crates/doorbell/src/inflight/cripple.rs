//! The protocol with a part left out. Each test of the promise is run against these as well and must fail.

use super::Latch;

/// The part that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cripple {
    /// None.
    Nothing,
    /// A configurer that took the bias away does not make the owner pass a barrier.
    NoBarrier,
    /// It does not wait for the owner's passage either.
    NoWaitForOwner,
    /// An event left with a configurer is forgotten.
    HandedIsDropped,
    /// A mask does not wait for those inside.
    MaskWaitsForNobody,
}

impl Latch {
    /// A latch whose protocol lacks a part.
    pub(super) fn crippled(payload: u64, cripple: Cripple) -> Self {
        Self { cripple, ..Self::new(payload) }
    }
}
