//! The protocol with a part left out. Models are run against these as well and must fail.

use super::translation::Translation;

/// The part that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cripple {
    /// None.
    Nothing,
    /// An event is delivered by whatever entry it finds.
    AnyKey,
    /// An event looks whether the ITS is enabled before it is inside its entry.
    EnabledLookedAtEarly,
    /// A disable does not wait for those inside.
    DisableWaitsForNobody,
    /// The LPI of an event is unmapped before its entry is empty.
    EmptiedLate,
}

#[cfg(loom)]
impl Translation {
    /// A translation whose protocol lacks a part.
    pub fn crippled(blocks: usize, cripple: Cripple) -> Self {
        let mut translation = Self::new(blocks);
        translation.cripple = cripple;
        translation
    }
}

impl Translation {
    /// Whether this part is left out.
    pub fn lacks(&self, part: Cripple) -> bool {
        self.cripple == part
    }
}
