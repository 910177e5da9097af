//! The protocol with a part left out. Models are run against these as well and must fail.

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
