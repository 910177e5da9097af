//! Where messages go on Arm: to one of several frames at guest-physical addresses.
//!
//! | frame | takes |
//! |---|---|
//! | an ITS | EventIDs at GITS_TRANSLATER, with the DeviceID beside the message |
//! | [`Gicv2m`](super::Gicv2m) | numbers of SPIs at MSI_SETSPI_NS |
//! | [`MessageSpis`] | numbers of SPIs at GICD_SETSPI_NSR and GICD_CLRSPI_NSR |
//!
//! [`DataIsNumber`] is the design of 2015 that needs no frame: the data of every message is the number of an interrupt.

use std::sync::{Arc, OnceLock};

use super::Gic;
use crate::{
    Delivery, Errno, Error, MsiMessage, MsiTarget, Target,
    sync::{AtomicU32, Ordering},
};

#[cfg(all(test, not(loom)))]
mod tests;

/// How many bits of a frame's [`Target`]s are its own.
pub const TARGET_BITS: u32 = 20;

/// Something that takes messages somewhere in a range of guest-physical addresses.
pub trait MsiFrame: Send + Sync {
    /// How many bytes of addresses are the frame's.
    fn size(&self) -> u64;

    /// A message that was sent to `offset` in the frame.
    ///
    /// # Errors
    /// As [`MsiTarget::send`].
    fn send(&self, offset: u64, message: &MsiMessage) -> Result<Delivery, Error>;

    /// Resolves it, as [`MsiTarget::prepare`]; into less than 2^[`TARGET_BITS`].
    fn prepare(&self, offset: u64, message: &MsiMessage) -> Option<Target>;

    /// Sends what was prepared, as [`MsiTarget::fire`].
    fn fire(&self, target: Target) -> Delivery;

    /// Whether messages need a DeviceID, as [`MsiTarget::takes_device_ids`].
    fn takes_device_ids(&self) -> bool {
        false
    }
}

/// A frame where it was placed.
struct Placed {
    base: u64,
    frame: Arc<dyn MsiFrame>,
}

/// Up to 16 frames at guest-physical addresses, as one [`MsiTarget`]. A frame stays where it was placed.
///
/// ```
/// use std::sync::Arc;
/// use doorbell::{Errno, MsiMessage, MsiTarget, chips::arm::{Gicv2m, MsiFrames}, route::NoPins};
/// let frames = MsiFrames::new();
/// let message = MsiMessage::new(0x0802_0040, 85);
/// assert_eq!(frames.send(&message).unwrap_err().errno(), Errno::NODEV, "no MSI controller at all");
/// frames.place(0x0802_0000, Arc::new(Gicv2m::new(Arc::new(NoPins), 80, 32)?))?;
/// assert!(frames.send(&message).is_ok());
/// assert_eq!(frames.send(&MsiMessage::new(0xfee0_0000, 85)).unwrap_err().errno(), Errno::INVAL, "no frame there");
/// # Ok::<(), doorbell::Error>(())
/// ```
#[derive(Default)]
pub struct MsiFrames {
    /// From the first on; a slot is filled for ever.
    slots: [OnceLock<Placed>; Self::MOST],
    /// How many controllers there are, those without an address included.
    announced: AtomicU32,
}

impl MsiFrames {
    /// The most frames.
    pub const MOST: usize = 1 << (Target::BITS - TARGET_BITS);

    /// No frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// There is an ITS that has no address yet: messages meet with `EINVAL` from now on, no longer with `ENODEV`
    /// (Q11).
    pub fn announce(&self) {
        // Relaxed: means nothing beyond itself.
        self.announced.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a frame at a guest-physical address.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it would reach beyond the addresses that there are, [`Error::Busy`] if another frame is there,
    /// [`Error::Unsupported`] for the 17th.
    pub fn place(&self, base: u64, frame: Arc<dyn MsiFrame>) -> Result<(), Error> {
        self.put(base, frame, false)
    }

    /// The same where another frame may be: messages go to the one that was there first, as in KVM.
    pub(crate) fn place_behind(&self, base: u64, frame: Arc<dyn MsiFrame>) -> Result<(), Error> {
        self.put(base, frame, true)
    }

    fn put(&self, base: u64, frame: Arc<dyn MsiFrame>, shares: bool) -> Result<(), Error> {
        let Some(end) = base.checked_add(frame.size()).filter(|end| *end != base) else {
            return Err(Error::Invalid {
                what: "address of a frame",
                value: base,
                allowed: "one from which on the frame ends below 2^64",
            });
        };
        let mut placed = Placed { base, frame };
        for slot in &self.slots {
            // Another thread may fill it meanwhile: each slot is looked at after that.
            placed = match slot.set(placed) {
                Ok(()) => return Ok(()),
                Err(placed) => placed,
            };
            let overlaps = |other: &Placed| base < other.base + other.frame.size() && other.base < end;
            if !shares && slot.get().is_some_and(overlaps) {
                return Err(Error::Busy("an address of the frame"));
            }
        }
        Err(Error::Unsupported("a 17th frame for messages"))
    }

    /// The frame with this address, its number, and the offset in it.
    fn at(&self, address: u64) -> Option<(u32, &dyn MsiFrame, u64)> {
        self.slots.iter().map_while(OnceLock::get).zip(0..).find_map(|(placed, number)| {
            let offset = address.checked_sub(placed.base)?;
            (offset < placed.frame.size()).then_some((number, &*placed.frame, offset))
        })
    }
}

impl MsiTarget for MsiFrames {
    /// # Errors
    /// With errno `ENODEV` if there is no controller at all, `EINVAL` if there is none at the address (Q11, Q12), and what
    /// the frame says.
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        match self.at(message.address) {
            Some((_, frame, offset)) => frame.send(offset, message),
            None if self.slots[0].get().is_some() || self.announced.load(Ordering::Relaxed) != 0 => {
                Err(Error::Invalid {
                    what: "address of a message",
                    value: message.address,
                    allowed: "one in the frame of an MSI controller",
                })
            }
            None => Err(Error::Os { what: "there is no MSI controller", source: Errno::NODEV }),
        }
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let (number, frame, offset) = self.at(message.address)?;
        let target = frame.prepare(offset, message)?.bits();
        if target >> TARGET_BITS == 0 { Target::new(number << TARGET_BITS | target) } else { None }
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        let placed = self.slots.get((target.bits() >> TARGET_BITS) as usize).and_then(OnceLock::get);
        match (placed, Target::new(target.bits() & ((1 << TARGET_BITS) - 1))) {
            (Some(placed), Some(target)) => placed.frame.fire(target),
            _ => Delivery::Ignored,
        }
    }

    fn takes_device_ids(&self) -> bool {
        let placed = || self.slots.iter().map_while(OnceLock::get);
        self.announced.load(Ordering::Relaxed) != 0 || placed().any(|placed| placed.frame.takes_device_ids())
    }
}

/// The distributor's frame, as far as it takes messages: GICD_SETSPI_NSR raises an SPI, GICD_CLRSPI_NSR takes it back
/// (Arm IHI 0069, "Message-based SPIs").
pub struct MessageSpis(Arc<Gic>);

impl MessageSpis {
    /// GICD_SETSPI_NSR.
    pub const SET: u64 = 0x40;
    /// GICD_CLRSPI_NSR.
    pub const CLEAR: u64 = 0x48;

    /// In a target: the message takes the SPI back.
    const CLEARS: u32 = 1 << 16;

    /// Those of this GIC.
    pub fn new(gic: Arc<Gic>) -> Self {
        Self(gic)
    }
}

impl MsiFrame for MessageSpis {
    fn size(&self) -> u64 {
        0x1_0000
    }

    fn send(&self, offset: u64, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.prepare(offset, message).map_or(Delivery::Ignored, |target| self.fire(target)))
    }

    fn prepare(&self, offset: u64, message: &MsiMessage) -> Option<Target> {
        let clears = match offset {
            Self::SET => 0,
            Self::CLEAR => Self::CLEARS,
            _ => return None,
        };
        // Thirteen bits are an INTID; the others do not count.
        Target::new(message.data & 0x1fff | clears)
    }

    fn fire(&self, target: Target) -> Delivery {
        let bits = target.bits();
        self.0.message_spi(bits & !Self::CLEARS, bits & Self::CLEARS == 0)
    }
}

/// The data of a message is the INTID of an SPI, whatever its address is: the RFC of 2015 for GICv2m.
pub struct DataIsNumber(Arc<Gic>);

impl DataIsNumber {
    /// SPIs of this GIC.
    pub fn new(gic: Arc<Gic>) -> Self {
        Self(gic)
    }
}

impl MsiTarget for DataIsNumber {
    /// # Errors
    /// [`Error::Invalid`] if the data is not the number of an SPI.
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        match self.prepare(message) {
            Some(target) => Ok(self.fire(target)),
            None => Err(Error::Invalid {
                what: "data of a message",
                value: message.data.into(),
                allowed: "the INTID of an SPI, 32 to 1019",
            }),
        }
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        super::intid::pin_of(message.data).and_then(|_| Target::new(message.data))
    }

    fn fire(&self, target: Target) -> Delivery {
        self.0.message_spi(target.bits(), true)
    }
}
