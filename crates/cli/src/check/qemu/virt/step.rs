//! One step of a program, how it reads, and what both machines do for it.

use std::fmt;

use super::icc::Register;
use super::side::{CPUS, Input, Op};
use crate::qtest::virt::{ECAM, GICD, GICR, GICR_STRIDE, GITS, INTIDS, TRANSLATER};

/// Where the prelude puts the tables.
pub const QUEUE: u64 = 0x4010_0000;
pub const DEVICES: u64 = 0x4020_0000;
pub const LEVEL_1: u64 = 0x402f_0000;
pub const COLLECTIONS: u64 = 0x4030_0000;
pub const ITTS: u64 = 0x4040_0000;
pub const CONFIG: u64 = 0x4050_0000;
pub const PENDING: [u64; 2] = [0x4060_0000, 0x4070_0000];
/// Bytes of the queue that the set-up gives to an ITS.
pub const QUEUE_BYTES: u64 = 0x1_0000;
/// Where a device's interrupt translation table is: bytes between two of them.
pub const ITT_STRIDE: u64 = 0x4000;
/// The table of a device.
pub fn itt(device: u32) -> u64 {
    ITTS + u64::from(device % 0x20) * ITT_STRIDE
}

/// The first LPI.
pub const FIRST_LPI: u32 = 8192;
/// BAR 0 of the MSI function, and its DeviceID.
pub const EDU_BAR: u64 = 0x1000_0000;
pub const EDU: u32 = 3 << 3;
/// The capability of the MSI function, in its configuration space.
pub const EDU_MSI: u64 = ECAM + ((EDU as u64) << 12) + 0x40;

const VALID: u64 = 1 << 63;
/// Collections that programs map.
pub const COLLECTION_IDS: u64 = 3;
/// Of MAPD: where the table is. What programs use of one: 32 events of up to 12 bytes.
pub const ITT_ADDRESS: u64 = 0x000f_ffff_ffff_ff00;
const ITT_BYTES: u64 = 32 * 12;
/// Of GITS_BASER: two levels.
const INDIRECT: u64 = 1 << 62;
/// Of GITS_BASER: pages of 64 KiB.
pub const PAGES_64K: u64 = 2 << 8;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A store to a register in memory: bytes, address, value.
    Store(u8, u64, u64),
    /// A load.
    Load(u8, u64),
    /// A load of a register of a CPU.
    Read(u32, Register),
    /// A store.
    Write(u32, Register, u64),
    /// A store of the INTID that the CPU took last.
    WriteLast(u32, Register),
    /// A line.
    Line(Input, bool),
    /// LPIs on, in both redistributors, with their tables; and the ITS with its own, of which that of devices can have two
    /// levels.
    LpisOn(bool),
    /// A command of the ITS.
    Command([u64; 4]),
    /// Everything of the first redistributor goes to the second: its collections by MAPC, and then what is pending by
    /// MOVALL.
    Retire(u64, u64),
    /// The byte of an LPI in the configuration table.
    Config(u32, u8),
    /// The same, of a mapped LPI, and INV of its device and event.
    ConfigAndInv(u32, u8, u32, u32),
    /// A message by a CPU, which is DeviceID 0.
    Message(u32),
    /// A message by the MSI function.
    Edu(u16),
}

/// A command's name, by its number.
pub fn command_name(number: u8) -> &'static str {
    match number {
        0x01 => "MOVI",
        0x03 => "INT",
        0x04 => "CLEAR",
        0x05 => "SYNC",
        0x08 => "MAPD",
        0x09 => "MAPC",
        0x0a => "MAPTI",
        0x0b => "MAPI",
        0x0c => "INV",
        0x0d => "INVALL",
        0x0e => "MOVALL",
        0x0f => "DISCARD",
        _ => "unknown",
    }
}

impl Step {
    /// The name in the coverage table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Store(_, address, _) if *address < GITS => "distributor store",
            Self::Store(_, address, _) if *address < GICR => "ITS store",
            Self::Store(..) => "redistributor store",
            Self::Load(_, address) if *address < GITS => "distributor load",
            Self::Load(_, address) if *address < GICR => "ITS load",
            Self::Load(..) => "redistributor load",
            Self::Read(_, register) if register.acknowledges() => "acknowledge",
            Self::Read(..) => "CPU interface load",
            Self::Write(..) => "CPU interface store",
            Self::WriteLast(..) => "end of the last",
            Self::Line(Input::Spi(_), _) => "SPI line",
            Self::Line(Input::Ppi(..), _) => "PPI line",
            Self::LpisOn(false) => "LPI set-up",
            Self::LpisOn(true) => "LPI set-up, indirect",
            Self::Command(words) => match command_name(words[0] as u8) {
                "MOVI" => "ITS MOVI",
                "INT" => "ITS INT",
                "CLEAR" => "ITS CLEAR",
                "SYNC" => "ITS SYNC",
                "MAPD" => "ITS MAPD",
                "MAPC" => "ITS MAPC",
                "MAPTI" => "ITS MAPTI",
                "MAPI" => "ITS MAPI",
                "INV" => "ITS INV",
                "INVALL" => "ITS INVALL",
                "MOVALL" => "ITS MOVALL",
                "DISCARD" => "ITS DISCARD",
                _ => "ITS unknown command",
            },
            Self::Retire(..) => "ITS MAPC and MOVALL",
            Self::Config(..) => "LPI configuration",
            Self::ConfigAndInv(..) => "LPI configuration, ITS INV",
            Self::Message(_) => "message",
            Self::Edu(_) => "device message",
        }
    }

    /// The commands that it gives to the ITS.
    pub fn commands(&self) -> Vec<[u64; 4]> {
        match *self {
            Self::Command(words) => vec![words],
            Self::ConfigAndInv(_, _, device, event) => vec![[0x0c | u64::from(device) << 32, event.into(), 0, 0]],
            Self::Retire(from, to) => {
                let map = |collection| [0x09, 0, VALID | to << 16 | collection, 0];
                (0..COLLECTION_IDS).map(map).chain([[0x0e, 0, from << 16, to << 16]]).collect()
            }
            _ => vec![],
        }
    }

    /// What both machines do. `tail` is where in the queue the next command goes.
    pub fn ops(&self, tail: u64) -> Vec<Op> {
        match *self {
            Self::Store(bytes, address, value) => vec![Op::store(bytes, address, value)],
            Self::Load(bytes, address) => vec![Op::load(bytes, address)],
            Self::Read(cpu, register) => vec![Op::Read(cpu, register)],
            Self::Write(cpu, register, value) => vec![Op::Write(cpu, register, value)],
            Self::WriteLast(cpu, register) => vec![Op::WriteLast(cpu, register)],
            Self::Line(input, level) => vec![Op::Line(input, level)],
            Self::LpisOn(indirect) => set_up(indirect),
            Self::Command(_) | Self::Retire(..) | Self::ConfigAndInv(..) => {
                let mut ops = Vec::new();
                if let Self::ConfigAndInv(lpi, byte, ..) = *self {
                    ops.extend(Self::Config(lpi, byte).ops(tail));
                }
                let mut at = tail;
                for words in self.commands() {
                    // Guests give an empty table to a device; a size that is refused leaves the old one in use.
                    if words[0] as u8 == 0x08 && words[2] & VALID != 0 && words[1] & 0x1f < 16 {
                        let table = words[2] & ITT_ADDRESS;
                        ops.extend((0..ITT_BYTES).step_by(8).map(|at| Op::store(8, table + at, 0)));
                    }
                    ops.extend((0u64..).zip(words).map(|(word, value)| Op::store(8, QUEUE + at + 8 * word, value)));
                    at = (at + 32) % QUEUE_BYTES;
                }
                ops.push(Op::store(8, GITS + 0x88, at));
                ops
            }
            Self::Config(lpi, byte) => vec![Op::store(1, CONFIG + u64::from(lpi - FIRST_LPI), byte.into())],
            Self::Message(event) => vec![Op::store(4, TRANSLATER, event.into())],
            Self::Edu(event) => vec![
                Op::store(2, EDU_MSI + 12, event.into()),
                Op::store(4, EDU_BAR + 0x60, 1),
                Op::store(4, EDU_BAR + 0x64, 1),
            ],
        }
    }

    /// Simpler steps of the same kind, to try when a failing program is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        let without = |value: u64| (0..64).filter(move |bit| value >> bit & 1 == 1).map(move |bit| value & !(1 << bit));
        match *self {
            Self::Store(bytes, address, value) => {
                without(value).map(|value| Self::Store(bytes, address, value)).collect()
            }
            Self::Write(cpu, register, value) => {
                without(value).map(|value| Self::Write(cpu, register, value)).collect()
            }
            Self::WriteLast(cpu, register) => vec![Self::Write(cpu, register, 1023)],
            Self::Command(words) => (1..4)
                .flat_map(|at| {
                    without(words[at]).map(move |word| {
                        let mut words = words;
                        words[at] = word;
                        Self::Command(words)
                    })
                })
                .collect(),
            Self::Edu(event) => vec![Self::Message(event.into())],
            Self::Retire(from, to) => vec![Self::Command([0x0e, 0, from << 16, to << 16])],
            Self::LpisOn(true) => vec![Self::LpisOn(false)],
            _ => vec![],
        }
    }
}

/// What a guest does before it uses LPIs.
fn set_up(indirect: bool) -> Vec<Op> {
    let mut ops = vec![];
    for (cpu, pending) in (0..).zip(PENDING) {
        let frame = GICR + cpu * GICR_STRIDE;
        // The tables have 16 bits of INTID, and nothing is pending.
        ops.push(Op::store(4, frame, 0));
        ops.push(Op::store(8, frame + 0x70, CONFIG | 0xf));
        ops.push(Op::store(8, frame + 0x78, pending | 1 << 62));
        ops.push(Op::store(4, frame, 1));
    }
    let devices = if indirect { VALID | INDIRECT | LEVEL_1 | PAGES_64K } else { VALID | DEVICES | PAGES_64K | 0x7 };
    ops.extend([
        // Of the pages of the second level only the first is there.
        Op::store(8, LEVEL_1, VALID | DEVICES),
        Op::store(8, GITS + 0x100, devices),
        Op::store(8, GITS + 0x108, VALID | COLLECTIONS | PAGES_64K),
        Op::store(8, GITS + 0x80, VALID | QUEUE | (QUEUE_BYTES / 0x1000 - 1)),
        Op::store(8, GITS + 0x88, 0),
        Op::store(4, GITS, 1),
    ]);
    ops
}

/// What the prelude does on both machines: the MSI function gets its address, and its message one of the ITS.
pub fn prelude() -> Vec<Op> {
    let config = ECAM + (u64::from(EDU) << 12);
    let mut ops = vec![
        // It takes the second CPU a while to begin.
        Op::Read(1, Register::Pmr),
        Op::store(4, config + 0x10, EDU_BAR),
        Op::store(2, config + 0x04, 6),
        Op::load(1, EDU_MSI),
        Op::store(4, EDU_MSI + 4, TRANSLATER & 0xffff_ffff),
        Op::store(4, EDU_MSI + 8, TRANSLATER >> 32),
        Op::store(2, EDU_MSI + 2, 1),
    ];
    // Everybody is awake, all interrupts are of Group 1, and both groups are on.
    for cpu in 0..CPUS {
        let frame = GICR + u64::from(cpu) * GICR_STRIDE;
        ops.extend([Op::store(4, frame + 0x14, 0), Op::store(4, frame + 0x1_0080, 0xffff_ffff)]);
        ops.extend([Register::Igrpen0, Register::Igrpen1].map(|register| Op::Write(cpu, register, 1)));
    }
    ops.extend((1..u64::from(INTIDS) / 32).map(|word| Op::store(4, GICD + 0x80 + 4 * word, 0xffff_ffff)));
    ops
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Store(bytes, address, value) => write!(f, "{}", Op::store(bytes, address, value)),
            Self::Load(bytes, address) => write!(f, "{}", Op::load(bytes, address)),
            Self::Read(cpu, register) => write!(f, "{}", Op::Read(cpu, register)),
            Self::Write(cpu, register, value) => write!(f, "{}", Op::Write(cpu, register, value)),
            Self::WriteLast(cpu, register) => write!(f, "{}", Op::WriteLast(cpu, register)),
            Self::Line(input, level) => write!(f, "{}", Op::Line(input, level)),
            Self::LpisOn(false) => f.write_str("LPIs and ITS on"),
            Self::LpisOn(true) => f.write_str("LPIs and ITS on, with devices in two levels"),
            Self::Command([first, second, third, fourth]) => {
                write!(f, "ITS {} {first:#x} {second:#x} {third:#x} {fourth:#x}", command_name(first as u8))
            }
            Self::Retire(from, to) => write!(f, "ITS MAPC of all collections to {to}, MOVALL {from} {to}"),
            Self::Config(lpi, byte) => write!(f, "configuration of LPI {lpi} = {byte:#x}"),
            Self::ConfigAndInv(lpi, byte, device, event) => {
                write!(f, "configuration of LPI {lpi} = {byte:#x}, ITS INV {device:#x} {event:#x}")
            }
            Self::Message(event) => write!(f, "message of device 0, event {event:#x}"),
            Self::Edu(event) => write!(f, "message of device {EDU:#x}, event {event:#x}"),
        }
    }
}

/// An address as a register of a frame.
pub fn register(address: u64) -> String {
    match address {
        GICD..0x0801_0000 => format!("GICD+{:#x}", address - GICD),
        GITS..GICR => format!("GITS+{:#x}", address - GITS),
        GICR..0x080e_0000 => {
            format!("GICR{}+{:#x}", (address - GICR) / GICR_STRIDE, (address - GICR) % GICR_STRIDE)
        }
        _ => format!("{address:#x}"),
    }
}
