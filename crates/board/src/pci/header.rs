//! The type 0 configuration header (PCI Express Base Specification 5.0, section 7.5.1).

use doorbell::Error;

const IDENTITY: u16 = 0x00;
const COMMAND_STATUS: u16 = 0x04;
const CLASS_REVISION: u16 = 0x08;
const BAR_0: u16 = 0x10;
const BAR_5: u16 = 0x24;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT: u16 = 0x3c;
/// The first byte behind the header.
const END: u16 = 0x40;

/// Command, section 7.5.1.1.3, as far as it can be written here.
#[bitfield_struct::bitfield(u16)]
struct Command {
    io_space: bool,
    memory_space: bool,
    bus_master: bool,
    #[bits(5)]
    __: u8,
    serr: bool,
    __: bool,
    interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

impl Command {
    const WRITABLE: u16 =
        Self::new().with_memory_space(true).with_bus_master(true).with_interrupt_disable(true).into_bits();
}

/// Status.Capabilities_List.
const HAS_CAPABILITIES: u32 = 1 << 20;

/// What a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code: base class, sub-class, interface.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A base address register for memory, section 7.5.1.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    bytes: u64,
    wide: bool,
    address: u64,
}

impl Bar {
    /// One below 4 GiB, of this many bytes: a power of two from 16 to 2^31.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another size.
    pub fn memory32(bytes: u64) -> Result<Self, Error> {
        Self::new(bytes, false)
    }

    /// One anywhere, of this many bytes: a power of two from 16 to 2^31. It takes two registers.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another size.
    pub fn memory64(bytes: u64) -> Result<Self, Error> {
        Self::new(bytes, true)
    }

    fn new(bytes: u64, wide: bool) -> Result<Self, Error> {
        if !bytes.is_power_of_two() || !(16..=1 << 31).contains(&bytes) {
            return Err(Error::Invalid {
                what: "size of a BAR",
                value: bytes,
                allowed: "powers of two from 16 to 2^31",
            });
        }
        Ok(Self { bytes, wide, address: 0 })
    }
}

/// What stands in one of the six registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nothing,
    Bar(Bar),
    /// The upper half of the one before.
    Upper,
}

/// A header: who the function is, where its BARs are, and where its capabilities begin.
#[derive(Clone, Debug)]
pub struct Header {
    identity: Identity,
    command: Command,
    bars: [Place; 6],
    capabilities: u8,
    /// Interrupt Line, which only software uses.
    line: u8,
}

impl Header {
    /// A header without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        Self { identity, command: Command::new(), bars: [Place::Nothing; 6], capabilities: 0, line: 0 }
    }

    /// With a BAR, 0 to 5.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such BAR, or [`Error::Busy`] if it is in use.
    pub fn with_bar(mut self, number: u8, bar: Bar) -> Result<Self, Error> {
        let at = usize::from(number);
        let end = at + usize::from(bar.wide);
        let Some(places) = self.bars.get_mut(at..=end) else {
            return Err(Error::Invalid { what: "BAR", value: number.into(), allowed: "0 to 5, 64-bit ones 0 to 4" });
        };
        if places.iter().any(|place| *place != Place::Nothing) {
            return Err(Error::Busy("the BAR"));
        }
        places.fill(Place::Upper);
        places[0] = Place::Bar(bar);
        Ok(self)
    }

    /// With capabilities, the first of them at this offset, which the function itself answers.
    pub fn with_capabilities(self, first: u8) -> Self {
        Self { capabilities: first & !3, ..self }
    }

    /// Whether the guest lets the function write to memory, and so send messages.
    pub fn is_bus_master(&self) -> bool {
        self.command.bus_master()
    }

    /// The function is reset: BARs nowhere, Command 0.
    pub fn reset(&mut self) {
        let Self { identity: _, command, bars, capabilities: _, line } = self;
        *command = Command::new();
        *line = 0;
        for place in bars {
            if let Place::Bar(bar) = place {
                bar.address = 0;
            }
        }
    }

    /// A register of the header; `None` behind it.
    pub(super) fn read(&self, offset: u16) -> Option<u32> {
        let Identity { vendor, device, class, revision, subsystem_vendor, subsystem } = self.identity;
        Some(match offset {
            IDENTITY => u32::from(device) << 16 | u32::from(vendor),
            COMMAND_STATUS => {
                let status = if self.capabilities == 0 { 0 } else { HAS_CAPABILITIES };
                status | u32::from(self.command.into_bits())
            }
            CLASS_REVISION => class << 8 | u32::from(revision),
            BAR_0..=BAR_5 => self.read_bar(usize::from(offset - BAR_0) / 4),
            SUBSYSTEM => u32::from(subsystem) << 16 | u32::from(subsystem_vendor),
            CAPABILITIES => self.capabilities.into(),
            INTERRUPT => self.line.into(),
            END.. => return None,
            _ => 0,
        })
    }

    fn read_bar(&self, number: usize) -> u32 {
        match self.bars[number] {
            Place::Nothing => 0,
            Place::Bar(bar) => bar.address as u32 | if bar.wide { 4 } else { 0 },
            Place::Upper => match self.bars[number - 1] {
                Place::Bar(bar) => (bar.address >> 32) as u32,
                _ => 0,
            },
        }
    }

    /// A store of 1, 2 or 4 aligned bytes; false if it is not to the header.
    pub(super) fn write(&mut self, offset: u16, bytes: u8, value: u32) -> bool {
        let word = offset & !3;
        let Some(old) = self.read(word) else { return false };
        let shift = 8 * u32::from(offset & 3);
        let mask = (u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)))) << shift;
        let new = old & !mask | value << shift & mask;
        match word {
            COMMAND_STATUS => self.command = Command::from_bits(new as u16 & Command::WRITABLE),
            BAR_0..=BAR_5 => self.write_bar(usize::from(word - BAR_0) / 4, new),
            INTERRUPT => self.line = new as u8,
            _ => {}
        }
        true
    }

    fn write_bar(&mut self, number: usize, value: u32) {
        match self.bars[number] {
            Place::Nothing => {}
            Place::Bar(ref mut bar) => {
                // Bits below the size do not exist, which is how a guest finds the size.
                bar.address = bar.address & !0xffff_ffff | u64::from(value) & !(bar.bytes - 1);
            }
            Place::Upper => {
                if let Place::Bar(bar) = &mut self.bars[number - 1] {
                    bar.address = bar.address & 0xffff_ffff | u64::from(value) << 32;
                }
            }
        }
    }

    /// The BAR that holds all bytes of an access, and the offset in it.
    pub(super) fn decode(&self, address: u64, bytes: u8) -> Option<(u8, u64)> {
        if !self.command.memory_space() {
            return None;
        }
        (0u8..).zip(&self.bars).find_map(|(number, place)| {
            let Place::Bar(bar) = place else { return None };
            let offset = address.checked_sub(bar.address)?;
            (offset.checked_add(bytes.into())? <= bar.bytes).then_some((number, offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let identity = Identity { vendor: 0x1af4, device: 0x1042, class: 0x01_0000, revision: 1, ..Default::default() };
        let header = Header::new(identity).with_bar(1, Bar::memory32(0x1000).unwrap()).unwrap();
        header.with_bar(4, Bar::memory64(0x4000).unwrap()).unwrap().with_capabilities(0x40)
    }

    #[test]
    fn a_guest_finds_the_size_of_a_bar_by_writing_ones() {
        let mut header = header();
        for (register, size) in [(0x10, 0), (0x14, 0xffff_f000), (0x20, 0xffff_c004), (0x24, 0xffff_ffff)] {
            assert!(header.write(register, 4, 0xffff_ffff));
            assert_eq!(header.read(register), Some(size), "{register:#x}");
        }
    }

    #[test]
    fn a_bar_answers_where_it_is_and_only_while_memory_space_is_on() {
        let mut header = header();
        header.write(0x14, 4, 0x1000_0000);
        header.write(0x20, 4, 0x2000_0000);
        header.write(0x24, 4, 0x80);
        assert_eq!(header.decode(0x1000_0004, 4), None);
        header.write(0x04, 2, 0xffff);
        assert_eq!(header.read(0x04), Some(0x0010_0406), "only what exists");
        assert_eq!(header.decode(0x1000_0ffc, 4), Some((1, 0xffc)));
        assert_eq!(header.decode(0x1000_0ffc, 8), None, "reaches beyond it");
        assert_eq!(header.decode(0x80_2000_3ff8, 8), Some((4, 0x3ff8)));
        assert_eq!(header.decode(u64::MAX, 8), None);
        header.reset();
        assert_eq!((header.read(0x04), header.read(0x24)), (Some(0x0010_0000), Some(0)));
    }

    #[test]
    fn single_bytes_reach_their_place() {
        let mut header = header();
        assert!(header.write(0x3c, 1, 0x2a));
        assert!(header.write(0x17, 1, 0x12));
        assert_eq!((header.read(0x3c), header.read(0x14)), (Some(0x2a), Some(0x1200_0000)));
        assert!(!header.write(0x40, 4, 0), "a capability is not the header's");
    }

    #[test]
    fn bars_that_do_not_fit_are_refused() {
        let bar = Bar::memory64(0x1000).unwrap();
        assert!(header().with_bar(5, bar).is_err(), "no register for its upper half");
        assert!(header().with_bar(0, bar).is_err(), "BAR 1 is in use");
        assert!(header().with_bar(6, Bar::memory32(16).unwrap()).is_err());
        assert!(Bar::memory32(0x1800).is_err());
        assert!(Bar::memory32(8).is_err());
    }
}
