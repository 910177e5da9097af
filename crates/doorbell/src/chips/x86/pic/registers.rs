//! The layouts of the 8259A (Intel 8259A data sheet, order number 231468) and of the chipset's trigger registers (82371AB
//! PIIX4 data sheet, section 4.2.3, "ELCR").

use bitfield_struct::bitfield;

/// Command port of the master; that of the slave is [`SLAVE_COMMAND`].
pub const MASTER_COMMAND: u16 = 0x20;
/// Data port of the master: the mask, and the initialisation words after the first.
pub const MASTER_DATA: u16 = 0x21;
/// Command port of the slave.
pub const SLAVE_COMMAND: u16 = 0xa0;
/// Data port of the slave.
pub const SLAVE_DATA: u16 = 0xa1;
/// Which pins of the master are level.
pub const MASTER_ELCR: u16 = 0x4d0;
/// Which pins of the slave are level.
pub const SLAVE_ELCR: u16 = 0x4d1;
/// All ports of the pair.
pub const PORTS: [u16; 6] = [MASTER_COMMAND, MASTER_DATA, SLAVE_COMMAND, SLAVE_DATA, MASTER_ELCR, SLAVE_ELCR];

/// The pins that can be level: not the timer (0), the keyboard (1), the cascade (2), the clock (8) and the coprocessor (13).
pub const ELCR_MASK: u16 = 0xdef8;

/// A byte to the command port; bits 4 and 3 say which word it is.
#[bitfield(u8)]
pub struct Command {
    #[bits(3)]
    __: u8,
    /// OCW3, unless bit 4 is set; OCW2 if neither is.
    pub third: bool,
    /// ICW1.
    pub first_initialisation: bool,
    #[bits(3)]
    __: u8,
}

/// The first initialisation word (data sheet, "Initialization Command Words 1 and 2").
///
/// Single mode (bit 1), the call interval (2) and level mode for all pins (3) have no place in a PC's chipset and are
/// ignored, as everybody does.
#[bitfield(u8)]
pub struct Icw1 {
    /// A fourth word follows.
    pub fourth_follows: bool,
    #[bits(7)]
    __: u8,
}

/// The second: the vector of pin 0 without its low three bits.
#[bitfield(u8)]
pub struct Icw2 {
    #[bits(3)]
    __: u8,
    /// Bits 7:3 of the vectors.
    #[bits(5)]
    pub base: u8,
}

/// The fourth (data sheet, "Initialization Command Word 4"). Buffered mode and the 8085's are ignored.
#[bitfield(u8)]
pub struct Icw4 {
    __: bool,
    /// The acknowledge ends the interrupt.
    pub auto_eoi: bool,
    #[bits(2)]
    __: u8,
    /// The slave's pin does not block itself.
    pub special_fully_nested: bool,
    #[bits(3)]
    __: u8,
}

/// What the second operation word asks for (data sheet, "Operation Command Word 2").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EoiCommand {
    /// 000: no rotation on automatic EOI.
    StopRotating,
    /// 001: non-specific EOI.
    End,
    /// 010: nothing.
    Nothing,
    /// 011: specific EOI.
    EndPin,
    /// 100: rotation on automatic EOI.
    Rotate,
    /// 101: non-specific EOI, and what ended has the lowest priority.
    EndAndRotate,
    /// 110: the pin has the lowest priority.
    SetLowest,
    /// 111: specific EOI, and the pin has the lowest priority.
    EndPinAndRotate,
}

impl EoiCommand {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::StopRotating,
            1 => Self::End,
            2 => Self::Nothing,
            3 => Self::EndPin,
            4 => Self::Rotate,
            5 => Self::EndAndRotate,
            6 => Self::SetLowest,
            _ => Self::EndPinAndRotate,
        }
    }
}

/// The second operation word.
#[bitfield(u8)]
pub struct Ocw2 {
    /// The pin that a specific command names.
    #[bits(3)]
    pub pin: u8,
    #[bits(2)]
    __: u8,
    /// The command.
    #[bits(3)]
    pub command: EoiCommand,
}

/// The third operation word (data sheet, "Operation Command Word 3").
#[bitfield(u8)]
pub struct Ocw3 {
    /// With [`select`](Self::select): reads of the command port give ISR, else IRR.
    pub in_service: bool,
    /// Bit 0 counts.
    pub select: bool,
    /// The next read polls.
    pub poll: bool,
    #[bits(2)]
    __: u8,
    /// With [`change_special_mask`](Self::change_special_mask): special mask mode.
    pub special_mask: bool,
    /// Bit 5 counts.
    pub change_special_mask: bool,
    __: bool,
}

/// What a poll answers (data sheet, "Poll Command").
#[bitfield(u8)]
pub struct Polled {
    /// The pin that asks with the highest priority.
    #[bits(3)]
    pub pin: u8,
    #[bits(4)]
    __: u8,
    /// There is one.
    pub pending: bool,
}
