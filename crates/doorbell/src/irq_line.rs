//! A level line: the OR of its sources.

/// One of the sources that share a level line (KVM's `irq_source_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineSource(u8);

impl LineSource {
    /// The line call of the VMM, `KVM_IRQ_LINE`, and the pulse of a plain irqfd.
    pub const USER: Self = Self(0);
    /// All irqfds with a resample descriptor.
    pub const RESAMPLE: Self = Self(1);
    /// How many sources a line can have.
    pub const COUNT: u8 = 64;

    /// Source `id`, for a VMM's own use from 2 to 63.
    pub const fn new(id: u8) -> Option<Self> {
        if id < Self::COUNT { Some(Self(id)) } else { None }
    }

    /// The bit that stands for this source in a [`IrqLine`].
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// A wired-OR line: which of its sources drive it.
///
/// ```
/// use doorbell::irq_line::{IrqLine, LineSource};
/// let mut line = IrqLine::default();
/// assert!(line.set(LineSource::USER, true));
/// assert!(line.set(LineSource::RESAMPLE, true));
/// assert!(line.set(LineSource::USER, false), "the other source still drives it");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IrqLine(u64);

impl IrqLine {
    /// The line with exactly these sources driving it.
    pub const fn from_bits(sources: u64) -> Self {
        Self(sources)
    }

    /// The sources that drive the line, a bit each.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Drives one source and returns the level of the line.
    pub fn set(&mut self, source: LineSource, level: bool) -> bool {
        if level {
            self.0 |= source.bit();
        } else {
            self.0 &= !source.bit();
        }
        self.is_high()
    }

    /// The level of the line.
    pub const fn is_high(self) -> bool {
        self.0 != 0
    }
}
