//! One step of a program, how it reads, and what it is in the protocol.

use std::fmt;

use super::wire::{EDU, IVSHMEM};
use crate::qtest::q35::Chip;

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
    /// What a guest does with a VT-d unit.
    Vtd(Vtd),
    /// What a guest does with an AMD-Vi unit.
    Amd(Amd),
}

/// A device that an AMD-Vi unit knows, with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The MSI function.
    Edu,
    /// The MSI-X function.
    Ivshmem,
    /// The IOAPIC.
    IoApic,
}

impl Source {
    /// By number, from 0 to 2.
    pub const ALL: [Self; 3] = [Self::Edu, Self::Ivshmem, Self::IoApic];

    fn requester(self) -> u16 {
        match self {
            Self::Edu => EDU.into(),
            Self::Ivshmem => IVSHMEM.into(),
            Self::IoApic => 0xa0,
        }
    }

    fn table(self) -> u64 {
        INTERRUPT_TABLES + 0x2000 * self as u64
    }
}

/// What a guest does with an AMD-Vi unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amd {
    /// The whole set-up: device table, command buffer, remapping on.
    On,
    /// A device's entry stored, invalidated and waited for; the table's address is the source's own.
    Device { source: Source, interrupts: u64 },
    /// An entry of a device's table stored, invalidated and waited for.
    Entry { source: Source, index: u16, entry: u32 },
}

/// What a guest does with a VT-d unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vtd {
    /// The whole set-up: a table of 2^(size + 1) entries, the queue, and remapping on.
    On { size: u8 },
    /// Another table, or another size.
    Table { second: bool, size: u8 },
    /// An entry stored, invalidated (by its index or with all), and waited for.
    Entry { second: bool, index: u16, low: u64, high: u64, all: bool, interrupt: bool },
    /// A store to a register of the completion event, or to its status.
    Store { offset: u16, value: u32 },
    /// A load of a register.
    Load { offset: u16 },
}

/// The VT-d unit.
pub const VTD: u64 = 0xfed9_0000;
/// Its two tables, and its queue of 256 descriptors.
pub const TABLES: [u64; 2] = [0x20_0000, 0x30_0000];
const QUEUE: u64 = 0x40_0000;
/// What programs use of a table.
pub const TABLE_BYTES: u64 = 0x2000;
/// Where wait descriptors say that they are done, and what.
pub const STATUS: u64 = QUEUE + 0x1000;
/// Global command: remapping, take the table, the queue, and messages in compatibility format, which QEMU lets pass
/// anyhow.
const REMAPPING: u32 = 1 << 25;
const TAKE_TABLE: u32 = 1 << 24;
const QUEUED: u32 = 1 << 26;
const COMPATIBILITY: u32 = 1 << 23;

impl Vtd {
    /// The lines of the protocol. `tail` is the next free place of the queue.
    fn lines(&self, tail: u16) -> Vec<String> {
        let writel = |offset: u64, value: u32| format!("writel {:#x} {value:#x}", VTD + offset);
        let writeq = |offset: u64, value: u64| format!("writeq {:#x} {value:#x}", VTD + offset);
        match *self {
            Self::On { size } => vec![
                writeq(0xb8, TABLES[0] | u64::from(size)),
                writel(0x18, TAKE_TABLE),
                writeq(0x88, 0),
                writeq(0x90, QUEUE),
                writel(0x18, QUEUED | COMPATIBILITY),
                writel(0x18, REMAPPING | QUEUED | COMPATIBILITY),
            ],
            Self::Table { second, size } => vec![
                writeq(0xb8, TABLES[usize::from(second)] | u64::from(size)),
                writel(0x18, REMAPPING | QUEUED | COMPATIBILITY | TAKE_TABLE),
            ],
            Self::Entry { second, index, low, high, all, interrupt } => {
                let entry = TABLES[usize::from(second)] + 16 * u64::from(index);
                // Interrupt entry cache; then wait, and write a status that says which.
                let forget = 4 | u64::from(!all) << 4 | if all { 0 } else { u64::from(index) << 32 };
                // Not both: QEMU ends itself then.
                let wait = 5 | 1 << (if interrupt { 4 } else { 5 }) | (u64::from(tail) + 1) << 32;
                let at = |place: u16| QUEUE + 16 * u64::from(place % QUEUE_PLACES);
                let mut lines = Vec::new();
                for (address, value) in [
                    (entry, low),
                    (entry + 8, high),
                    (at(tail), forget),
                    (at(tail) + 8, 0),
                    (at(tail + 1), wait),
                    (at(tail + 1) + 8, STATUS),
                ] {
                    lines.push(format!("writeq {address:#x} {value:#x}"));
                }
                lines.push(writel(0x88, u32::from((tail + 2) % QUEUE_PLACES) << 4));
                lines.push(format!("readl {STATUS:#x}"));
                lines
            }
            Self::Store { offset, value } => vec![writel(offset.into(), value)],
            Self::Load { offset } => vec![format!("readl {:#x}", VTD + u64::from(offset))],
        }
    }
}

/// The AMD-Vi unit.
pub const AMD: u64 = 0xfed8_0000;
/// The tables of its devices.
pub const INTERRUPT_TABLES: u64 = 0x21_0000;

impl Amd {
    /// The lines of the protocol. `tail` is the next free place of the command buffer.
    fn lines(&self, tail: u16) -> Vec<String> {
        const INVALIDATE_DEVICE: u64 = 2 << 60;
        const INVALIDATE_TABLE: u64 = 5 << 60;
        const WAIT: u64 = 1 << 60;
        const STORE: u64 = 1;
        let writeq = |address: u64, value: u64| format!("writeq {address:#x} {value:#x}");
        let at = |place: u16| QUEUE + 16 * u64::from(place % QUEUE_PLACES);
        let (stored, forget) = match *self {
            Self::On => {
                return vec![
                    // 256 devices, 256 commands; the unit, and then the buffer.
                    writeq(AMD, TABLES[0] | 1),
                    writeq(AMD + 8, QUEUE | 8 << 56),
                    writeq(AMD + 0x18, 1),
                    writeq(AMD + 0x18, 1 | 1 << 12),
                ];
            }
            Self::Device { source, interrupts } => {
                let at = TABLES[0] + 32 * u64::from(source.requester()) + 16;
                (writeq(at, interrupts | source.table()), INVALIDATE_DEVICE | u64::from(source.requester()))
            }
            Self::Entry { source, index, entry } => {
                let stored = format!("writel {:#x} {entry:#x}", source.table() + 4 * u64::from(index));
                (stored, INVALIDATE_TABLE | u64::from(source.requester()))
            }
        };
        vec![
            stored,
            writeq(at(tail), forget),
            writeq(at(tail) + 8, 0),
            writeq(at(tail + 1), WAIT | STATUS | STORE),
            writeq(at(tail + 1) + 8, u64::from(tail) + 1),
            writeq(AMD + 0x2008, u64::from((tail + 2) % QUEUE_PLACES) << 4),
            format!("readl {STATUS:#x}"),
        ]
    }
}

/// How many descriptors the queue has.
pub const QUEUE_PLACES: u16 = 256;

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
            Self::Vtd(Vtd::On { .. }) => "VT-d set-up",
            Self::Vtd(Vtd::Table { .. }) => "VT-d table",
            Self::Vtd(Vtd::Entry { .. }) => "VT-d entry",
            Self::Vtd(Vtd::Store { .. }) => "VT-d store",
            Self::Vtd(Vtd::Load { .. }) => "VT-d load",
            Self::Amd(Amd::On) => "AMD-Vi set-up",
            Self::Amd(Amd::Device { .. }) => "AMD-Vi device",
            Self::Amd(Amd::Entry { .. }) => "AMD-Vi entry",
        }
    }

    /// The lines of the protocol, with the machine's names for its chips.
    pub fn lines(&self, tail: u16, path: impl Fn(Chip) -> String) -> Vec<String> {
        match *self {
            Self::Vtd(ref vtd) => vtd.lines(tail),
            Self::Amd(ref amd) => amd.lines(tail),
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
            Self::Vtd(Vtd::Entry { second, index, low, high, all, interrupt }) => {
                let entry = |low, high, all| Self::Vtd(Vtd::Entry { second, index, low, high, all, interrupt });
                let lows = without(low, 1..64).map(|low| entry(low, high, all));
                let highs = without(high, 0..64).map(|high| entry(low, high, all));
                (!all).then(|| entry(low, high, true)).into_iter().chain(lows).chain(highs).collect()
            }
            Self::Amd(Amd::Entry { source, index, entry }) => without(entry.into(), 0..32)
                .map(|entry| Self::Amd(Amd::Entry { source, index, entry: entry as u32 }))
                .collect(),
            Self::Amd(Amd::Device { source, interrupts }) => {
                without(interrupts, 0..64).map(|interrupts| Self::Amd(Amd::Device { source, interrupts })).collect()
            }
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
            Self::Amd(Amd::On) => f.write_str(name),
            Self::Amd(Amd::Device { source, interrupts }) => write!(f, "{name}: {source:?} = {interrupts:#x}"),
            Self::Amd(Amd::Entry { source, index, entry }) => {
                write!(f, "{name}: {source:?}, index {index} = {entry:#x}")
            }
            Self::Vtd(Vtd::On { size }) => write!(f, "{name}: size {size}"),
            Self::Vtd(Vtd::Table { second, size }) => write!(f, "{name}: {}, size {size}", 1 + u8::from(*second)),
            Self::Vtd(Vtd::Entry { second, index, low, high, all, interrupt }) => write!(
                f,
                "{name}: table {}, index {index} = {high:#x}:{low:#x}{}{}",
                1 + u8::from(*second),
                if *all { ", all invalidated" } else { "" },
                if *interrupt { ", with an interrupt" } else { "" },
            ),
            Self::Vtd(Vtd::Store { offset, value }) => write!(f, "{name}: register {offset:#x} = {value:#x}"),
            Self::Vtd(Vtd::Load { offset }) => write!(f, "{name}: register {offset:#x}"),
        }
    }
}
