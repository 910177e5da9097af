//! GICv2m: messages become SPIs, in a frame of registers (Arm Server Base System Architecture, appendix "GICv2m Architecture").
//!
//! A frame has SPIs of its own. A device's message is a store of the SPI's number to MSI_SETSPI_NS.

use std::sync::Arc;

use bitfield_struct::bitfield;

use super::{
    intid::{FIRST_SPI, LAST_SPI, pin_of},
    msi_frames::MsiFrame,
};
use crate::{Delivery, Error, LineSource, MsiMessage, PinInput, Target, delivery::ChipId};

/// The size of a frame.
pub const FRAME: u64 = 0x1000;
/// MSI_TYPER: which SPIs are the frame's.
pub const TYPER: u64 = 0x008;
/// MSI_SETSPI_NS: raises the SPI whose INTID is stored.
pub const SETSPI: u64 = 0x040;
/// MSI_IIDR.
pub const IIDR: u64 = 0xfcc;

/// The distributor, as a chip with pins.
const CHIP: ChipId = 0;

/// MSI_TYPER.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Typer {
    /// How many SPIs the frame has.
    #[bits(10)]
    pub count: u16,
    #[bits(6)]
    __: u8,
    /// The INTID of the first.
    #[bits(10)]
    pub first: u16,
    #[bits(6)]
    __: u8,
}

/// MSI_IIDR.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Identification {
    /// The JEP106 code of who made it; 0 for nobody.
    #[bits(12)]
    pub implementer: u16,
    #[bits(4)]
    pub revision: u8,
    /// 0: GICv2m.
    #[bits(4)]
    pub architecture: u8,
    #[bits(12)]
    pub product: u16,
}

/// MSI_SETSPI_NS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
struct SetSpi {
    #[bits(10)]
    intid: u16,
    #[bits(22)]
    __: u32,
}

/// One frame. Its SPIs must be edges, and the guest makes them so: a level would be gone at once.
///
/// ```
/// use std::sync::Arc;
/// use doorbell::chips::arm::{Gicv2m, gicv2m};
/// use doorbell::route::NoPins;
/// let frame = Gicv2m::new(Arc::new(NoPins), 80, 32)?;
/// assert_eq!(frame.read(gicv2m::TYPER, 4), 80 << 16 | 32);
/// # Ok::<(), doorbell::Error>(())
/// ```
pub struct Gicv2m {
    pins: Arc<dyn PinInput>,
    spis: std::ops::Range<u32>,
}

impl Gicv2m {
    /// A frame with `count` SPIs of the distributor behind `pins`, from INTID `first` on.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are no SPIs with these numbers.
    pub fn new(pins: Arc<dyn PinInput>, first: u32, count: u32) -> Result<Self, Error> {
        let invalid = |what, value, allowed| Err(Error::Invalid { what, value: u64::from(value), allowed });
        if !(FIRST_SPI..=LAST_SPI).contains(&first) {
            return invalid("first SPI", first, "32 to 1019");
        }
        if count == 0 || count > LAST_SPI + 1 - first {
            return invalid("number of SPIs", count, "at least 1, and none beyond 1019");
        }
        Ok(Self { pins, spis: first..first + count })
    }

    /// A guest's load of `size` bytes. Registers take 4; all other loads are 0.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let value = match (offset, size) {
            (TYPER, 4) => {
                let count = self.spis.end - self.spis.start;
                Typer::new().with_first(self.spis.start as u16).with_count(count as u16).into_bits()
            }
            (IIDR, 4) => Identification::new().into_bits(),
            _ => 0,
        };
        value.into()
    }

    /// A store of `size` bytes by a guest or a device: MSI_SETSPI_NS takes 2 and 4, everything else does nothing.
    pub fn write(&self, offset: u64, size: u8, value: u64) -> Delivery {
        match (offset, size) {
            (SETSPI, 2 | 4) => self.pin(value as u32).map_or(Delivery::Ignored, |pin| self.pulse(pin)),
            _ => Delivery::Ignored,
        }
    }

    /// The pin of the SPI that a message names, if it is the frame's.
    fn pin(&self, data: u32) -> Option<u16> {
        let intid = SetSpi::from_bits(data).intid().into();
        pin_of(intid).filter(|_| self.spis.contains(&intid))
    }

    fn pulse(&self, pin: u16) -> Delivery {
        self.pins.pulse(CHIP, pin, LineSource::USER)
    }
}

impl MsiFrame for Gicv2m {
    fn size(&self) -> u64 {
        FRAME
    }

    fn send(&self, offset: u64, message: &MsiMessage) -> Result<Delivery, Error> {
        Ok(self.write(offset, 4, message.data.into()))
    }

    fn prepare(&self, offset: u64, message: &MsiMessage) -> Option<Target> {
        if offset == SETSPI { Target::new(self.pin(message.data)?.into()) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        let pin = target.bits() as u16;
        if self.spis.contains(&(u32::from(pin) + FIRST_SPI)) { self.pulse(pin) } else { Delivery::Ignored }
    }
}
