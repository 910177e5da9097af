//! The commands of an ITS (Arm IHI 0069, "ITS commands").

use bitfield_struct::bitfield;

/// The size of a command in bytes.
pub const COMMAND: u64 = 32;

/// One event of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// DeviceID.
    pub device: u32,
    /// EventID.
    pub event: u32,
}

/// A physical command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the manual's, and described at the layouts below")]
pub enum Command {
    Movi {
        event: Event,
        icid: u16,
    },
    Int(Event),
    Clear(Event),
    /// Everything is complete when its command is, so there is nothing to wait for.
    Sync,
    /// `event_bits` is 1 to 32.
    Mapd {
        device: u32,
        event_bits: u8,
        itt: u64,
        valid: bool,
    },
    Mapc {
        icid: u16,
        redistributor: u64,
        valid: bool,
    },
    /// MAPI too, whose INTID is the EventID.
    Mapti {
        event: Event,
        lpi: u32,
        icid: u16,
    },
    Inv(Event),
    Invall {
        icid: u16,
    },
    Movall {
        from: u64,
        to: u64,
    },
    Discard(Event),
}

/// The opcodes.
mod opcode {
    pub const MOVI: u8 = 0x01;
    pub const INT: u8 = 0x03;
    pub const CLEAR: u8 = 0x04;
    pub const SYNC: u8 = 0x05;
    pub const MAPD: u8 = 0x08;
    pub const MAPC: u8 = 0x09;
    pub const MAPTI: u8 = 0x0a;
    pub const MAPI: u8 = 0x0b;
    pub const INV: u8 = 0x0c;
    pub const INVALL: u8 = 0x0d;
    pub const MOVALL: u8 = 0x0e;
    pub const DISCARD: u8 = 0x0f;
}

/// The first doubleword of every command.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Head {
    /// What to do.
    pub opcode: u8,
    #[bits(24)]
    __: u32,
    /// DeviceID, of those that have one.
    pub device: u32,
}

/// The second doubleword of commands about an event.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventField {
    /// EventID.
    pub event: u32,
    /// pINTID, of MAPTI.
    pub lpi: u32,
}

/// The second doubleword of MAPD.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Size {
    /// Bits of an EventID of the device, less one.
    #[bits(5)]
    pub event_bits: u8,
    #[bits(59)]
    __: u64,
}

/// The third doubleword of MAPD.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Itt {
    #[bits(8)]
    __: u8,
    /// Bits 51:8 of the address of the interrupt translation table.
    #[bits(44)]
    pub address: u64,
    #[bits(11)]
    __: u16,
    /// V.
    pub valid: bool,
}

/// The third doubleword of commands about a collection, and the last one of MOVALL.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Place {
    /// The collection.
    pub icid: u16,
    /// RDbase: with GITS_TYPER.PTA 0 the processor number of a redistributor.
    #[bits(35)]
    pub redistributor: u64,
    #[bits(12)]
    __: u16,
    /// V.
    pub valid: bool,
}

impl Command {
    /// What the bytes say; `None` for a command that is not physical, or none at all.
    pub fn decode(bytes: &[u8; COMMAND as usize]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let [head, second, third, fourth] = std::array::from_fn(|_| words.next().unwrap_or_default());
        let head = Head::from_bits(head);
        let field = EventField::from_bits(second);
        let event = Event { device: head.device(), event: field.event() };
        let place = Place::from_bits(third);
        let icid = place.icid();
        Some(match head.opcode() {
            opcode::MOVI => Self::Movi { event, icid },
            opcode::INT => Self::Int(event),
            opcode::CLEAR => Self::Clear(event),
            opcode::SYNC => Self::Sync,
            opcode::MAPD => {
                let itt = Itt::from_bits(third);
                let event_bits = Size::from_bits(second).event_bits() + 1;
                Self::Mapd { device: head.device(), event_bits, itt: itt.address() << 8, valid: itt.valid() }
            }
            opcode::MAPC => Self::Mapc { icid, redistributor: place.redistributor(), valid: place.valid() },
            opcode::MAPTI => Self::Mapti { event, lpi: field.lpi(), icid },
            opcode::MAPI => Self::Mapti { event, lpi: event.event, icid },
            opcode::INV => Self::Inv(event),
            opcode::INVALL => Self::Invall { icid },
            opcode::MOVALL => {
                Self::Movall { from: place.redistributor(), to: Place::from_bits(fourth).redistributor() }
            }
            opcode::DISCARD => Self::Discard(event),
            _ => return None,
        })
    }
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// Why a command did nothing. The number is what an ITS that reports errors to software would say.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum CommandError {
            $($(#[$doc])* $name = $code,)*
        }

        impl CommandError {
            /// All of them, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

errors! {
    /// MOVI: the event is not mapped.
    MoviUnmappedEvent = 0x01_0107;
    /// MOVI: the collection is not mapped.
    MoviUnmappedCollection = 0x01_0109;
    /// INT: the event is not mapped.
    IntUnmappedEvent = 0x01_0307;
    /// CLEAR: the event is not mapped.
    ClearUnmappedEvent = 0x01_0507;
    /// MAPD: the device table has no such entry, or there is no memory for it.
    MapdDevice = 0x01_0801;
    /// MAPD: more bits than an EventID has.
    MapdSize = 0x01_0802;
    /// MAPC: no such redistributor.
    MapcRedistributor = 0x01_0902;
    /// MAPC, MAPTI, MAPI: the collection table has no such entry, or there is no memory for it.
    MapcCollection = 0x01_0903;
    /// MAPTI, MAPI: the device is not mapped.
    MaptiUnmappedDevice = 0x01_0a04;
    /// MAPTI, MAPI: the device has no such event, or there is no memory for its entry.
    MaptiEvent = 0x01_0a05;
    /// MAPTI, MAPI: the INTID is none of an LPI.
    MaptiLpi = 0x01_0a06;
    /// INV: the event is not mapped.
    InvUnmappedEvent = 0x01_0c07;
    /// INVALL: the collection is not mapped.
    InvallUnmappedCollection = 0x01_0d09;
    /// MOVALL: no such redistributor.
    MovallRedistributor = 0x01_0e01;
    /// DISCARD: the event is not mapped.
    DiscardUnmappedEvent = 0x01_0f07;
}

impl CommandError {
    /// Its number, 24 bits: `01`, the opcode, and which mistake.
    pub const fn code(self) -> u32 {
        self as u32
    }
}
