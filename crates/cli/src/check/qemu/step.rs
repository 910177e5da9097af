//! One step of a program, how it reads, and what it is in the protocol.

use std::fmt;

use super::wire::{EDU, IVSHMEM};
use crate::qtest::machine::Chip;

/// Where the prelude puts the BARs.
pub const EDU_BAR: u64 = 0xe000_0000;
/// BAR 1 of the MSI-X function.
pub const MSIX_BAR: u64 = 0xe020_0000;
/// RAM that messages of MSI-X vectors may go to: a dword each.
pub const MAILBOXES: u64 = 0x10_0000;
/// The IOAPIC.
const IOAPIC: u64 = 0xfec0_0000;
/// Where messages go.
const MESSAGES: u64 = 0xfee0_0000;
/// Offset of the PBA in its BAR, with so few vectors.
const PBA: u64 = 0x800;

/// What a field of an MSI-X table entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Its address, low half.
    Address,
    /// High half.
    AddressHigh,
    /// The data.
    Data,
    /// Bit 0 masks.
    Control,
    /// Data and control in one store.
    DataAndControl,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A store to a register of the IOAPIC, through its index.
    IoApicStore { index: u8, value: u32 },
    /// A load.
    IoApicLoad { index: u8 },
    /// A store to its EOI register.
    IoApicEnd { vector: u8 },
    /// A line of a chip.
    Line { chip: Chip, pin: u16, level: bool },
    /// A message from a CPU.
    Message { offset: u32, data: u32 },
    /// A store to a port.
    PortStore { port: u16, value: u8 },
    /// A load from a port.
    PortLoad { port: u16 },
    /// A store to a table entry.
    MsixStore { vector: u16, field: Field, value: u64 },
    /// A load.
    MsixLoad { vector: u16, field: Field },
    /// Enable and Function Mask.
    MsixControl { enable: bool, function_mask: bool },
    /// A store to the pending bits.
    PbaStore { value: u64 },
    /// So many events of a vector.
    Event { vector: u16, times: u32 },
    /// The message of the MSI function, and whether it is enabled.
    Msi { address: u32, data: u16, enable: bool },
    /// Its event.
    MsiEvent,
}

/// The configuration address of a function's register.
pub fn config(devfn: u8, register: u8) -> String {
    format!("outl 0xcf8 {:#x}", 1 << 31 | u32::from(devfn) << 8 | u32::from(register & 0xfc))
}

/// Where both machines have the capability.
pub const CAPABILITY: u8 = 0x40;

fn place(vector: u16, field: Field) -> u64 {
    let field = match field {
        Field::Address => 0,
        Field::AddressHigh => 4,
        Field::Data | Field::DataAndControl => 8,
        Field::Control => 12,
    };
    MSIX_BAR + 16 * u64::from(vector) + field
}

impl Step {
    /// The name in the coverage table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::IoApicStore { .. } => "IOAPIC store",
            Self::IoApicLoad { .. } => "IOAPIC load",
            Self::IoApicEnd { .. } => "IOAPIC EOI",
            Self::Line { chip: Chip::IoApic, .. } => "IOAPIC line",
            Self::Line { .. } => "8259 line",
            Self::Message { .. } => "message",
            Self::PortStore { .. } => "8259 store",
            Self::PortLoad { .. } => "8259 load",
            Self::MsixStore { .. } => "MSI-X table store",
            Self::MsixLoad { .. } => "MSI-X table load",
            Self::MsixControl { .. } => "MSI-X control",
            Self::PbaStore { .. } => "MSI-X PBA store",
            Self::Event { .. } => "MSI-X event",
            Self::Msi { .. } => "MSI control",
            Self::MsiEvent => "MSI event",
        }
    }

    /// The lines of the protocol, with the machine's names for its chips.
    pub fn lines(&self, path: impl Fn(Chip) -> String) -> Vec<String> {
        match *self {
            Self::IoApicStore { index, value } => {
                vec![format!("writel {IOAPIC:#x} {index:#x}"), format!("writel {:#x} {value:#x}", IOAPIC + 0x10)]
            }
            Self::IoApicLoad { index } => {
                vec![format!("writel {IOAPIC:#x} {index:#x}"), format!("readl {:#x}", IOAPIC + 0x10)]
            }
            Self::IoApicEnd { vector } => vec![format!("writel {:#x} {vector:#x}", IOAPIC + 0x40)],
            Self::Line { chip, pin, level } => {
                vec![format!("set_irq_in {} unnamed-gpio-in {pin} {}", path(chip), u8::from(level))]
            }
            Self::Message { offset, data } => vec![format!("writel {:#x} {data:#x}", MESSAGES + u64::from(offset))],
            Self::PortStore { port, value } => vec![format!("outb {port:#x} {value:#x}")],
            Self::PortLoad { port } => vec![format!("inb {port:#x}")],
            Self::MsixStore { vector, field: field @ Field::DataAndControl, value } => {
                vec![format!("writeq {:#x} {value:#x}", place(vector, field))]
            }
            Self::MsixStore { vector, field, value } => vec![format!("writel {:#x} {value:#x}", place(vector, field))],
            Self::MsixLoad { vector, field } => vec![format!("readl {:#x}", place(vector, field))],
            Self::MsixControl { enable, function_mask } => {
                let value = u16::from(enable) << 15 | u16::from(function_mask) << 14;
                vec![config(IVSHMEM, CAPABILITY), format!("outw 0xcfe {value:#x}")]
            }
            Self::PbaStore { value } => vec![format!("writeq {:#x} {value:#x}", MSIX_BAR + PBA)],
            Self::Event { .. } => vec![],
            Self::Msi { address, data, enable } => vec![
                config(EDU, CAPABILITY + 4),
                format!("outl 0xcfc {address:#x}"),
                config(EDU, CAPABILITY + 12),
                format!("outw 0xcfc {data:#x}"),
                config(EDU, CAPABILITY),
                format!("outw 0xcfe {:#x}", u8::from(enable)),
            ],
            Self::MsiEvent => {
                vec![format!("writel {:#x} 1", EDU_BAR + 0x60), format!("writel {:#x} 1", EDU_BAR + 0x64)]
            }
        }
    }

    /// Simpler steps of the same kind, to try when a failing program is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        let without = |value: u64, bits: std::ops::Range<u32>| {
            bits.filter(move |bit| value >> bit & 1 == 1).map(move |bit| value & !(1 << bit))
        };
        match *self {
            Self::IoApicStore { index, value } if index >= 0x10 => {
                without(value.into(), 0..32).map(|value| Self::IoApicStore { index, value: value as u32 }).collect()
            }
            Self::Message { offset, data } => {
                let data_bits = without(data.into(), 0..32).map(|data| Self::Message { offset, data: data as u32 });
                let bits = without(offset.into(), 2..20).map(|offset| Self::Message { offset: offset as u32, data });
                data_bits.chain(bits).collect()
            }
            Self::Event { vector, times } if times > 1 => vec![Self::Event { vector, times: 1 }],
            Self::MsixStore { vector, field: Field::DataAndControl, value } => vec![
                Self::MsixStore { vector, field: Field::Data, value: value & 0xffff_ffff },
                Self::MsixStore { vector, field: Field::Control, value: value >> 32 },
            ],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::IoApicStore { index, value } => write!(f, "{name}: register {index:#x} = {value:#x}"),
            Self::IoApicLoad { index } => write!(f, "{name}: register {index:#x}"),
            Self::IoApicEnd { vector } => write!(f, "{name}: vector {vector:#x}"),
            Self::Line { chip, pin, level } => {
                let pin = if *chip == Chip::Slave { pin + 8 } else { *pin };
                write!(f, "{name}: pin {pin} {}", if *level { "high" } else { "low" })
            }
            Self::Message { offset, data } => {
                write!(f, "{name}: address {:#x}, data {data:#x}", MESSAGES + u64::from(*offset))
            }
            Self::PortStore { port, value } => write!(f, "{name}: port {port:#x} = {value:#x}"),
            Self::PortLoad { port } => write!(f, "{name}: port {port:#x}"),
            Self::MsixStore { vector, field, value } => write!(f, "{name}: vector {vector} {field:?} = {value:#x}"),
            Self::MsixLoad { vector, field } => write!(f, "{name}: vector {vector} {field:?}"),
            Self::MsixControl { enable, function_mask } => {
                write!(f, "{name}: enable {}, function mask {}", u8::from(*enable), u8::from(*function_mask))
            }
            Self::PbaStore { value } => write!(f, "{name}: {value:#x}"),
            Self::Event { vector, times } => write!(f, "{name}: vector {vector}, {times} times"),
            Self::Msi { address, data, enable } => {
                write!(f, "{name}: address {address:#x}, data {data:#x}, enable {}", u8::from(*enable))
            }
            Self::MsiEvent => f.write_str(name),
        }
    }
}
