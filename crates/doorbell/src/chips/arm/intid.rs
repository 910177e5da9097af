//! Interrupt numbers: INTIDs (Arm IHI 0069, "The GIC logical components", "INTIDs").

use std::ops::RangeInclusive;

/// Software-generated interrupts, one set for each vCPU. Always edges.
pub const SGIS: RangeInclusive<u32> = 0..=15;
/// Private peripheral interrupts, one set for each vCPU.
pub const PPIS: RangeInclusive<u32> = 16..=31;
/// How many INTIDs are private to a vCPU.
pub const PRIVATE: u32 = 32;
/// The first shared peripheral interrupt.
pub const FIRST_SPI: u32 = 32;
/// The last INTID that can be one; from 1020 to 1023 they have special meanings.
pub const LAST_SPI: u32 = 1019;
/// How many SPIs there can be: the pins of the chip.
pub const SPIS: u16 = 988;
/// Nothing to acknowledge.
pub const SPURIOUS: u32 = 1023;
/// The first locality-specific interrupt.
pub const FIRST_LPI: u32 = 8192;

/// The pin of an SPI: SPI = pin + 32.
pub const fn pin_of(intid: u32) -> Option<u16> {
    if intid >= FIRST_SPI && intid <= LAST_SPI { Some((intid - FIRST_SPI) as u16) } else { None }
}
