//! One call of a program, and how it reads.

use std::fmt;

use doorbell::kvm_abi::arm::{SystemRegister, types};
use doorbell::kvm_abi::types::{IRQFD_DEASSIGN, IRQFD_RESAMPLE, ROUTING_IRQCHIP, ROUTING_MSI};
use doorbell::kvm_abi::{KvmIrqRoutingEntry, KvmMsi};

use super::layout;

/// A descriptor as a call names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// One of the program's eventfds.
    Event(u64),
    /// -1.
    MinusOne,
    /// Something that is open and no eventfd.
    NoEvent,
}

/// A command of an ITS: its four doublewords.
pub type Command = [u64; 4];

/// A group of interrupts at the CPU interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// By ICC_IAR0_EL1 and ICC_EOIR0_EL1.
    Zero,
    /// By ICC_IAR1_EL1 and ICC_EOIR1_EL1.
    One,
}

/// What code in the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It acknowledges an interrupt of this group.
    Acknowledge(Group),
    /// It ends what it acknowledged last, if anything: in another order the architecture leaves open what happens.
    End,
    /// `MRS`.
    Read(SystemRegister),
    /// `MSR`.
    Write(SystemRegister, u64),
    /// A load of so many bytes.
    Load { address: u64, bytes: u8 },
    /// A store of so many bytes.
    Store { address: u64, bytes: u8, value: u64 },
}

/// One call. A device is named by its slot, a vCPU by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `KVM_CREATE_VCPU`.
    CreateVcpu { id: u32 },
    /// `KVM_ARM_VCPU_INIT` with the preferred target.
    InitVcpu { vcpu: u32 },
    /// `KVM_CREATE_DEVICE`; the new device has this slot, if that is free.
    CreateDevice { slot: usize, kind: u32 },
    /// `KVM_SET_DEVICE_ATTR`.
    SetAttr { slot: usize, group: u32, attr: u64, value: u64 },
    /// `KVM_GET_DEVICE_ATTR`; `value` is in the buffer before.
    GetAttr { slot: usize, group: u32, attr: u64, value: u64 },
    /// `KVM_HAS_DEVICE_ATTR`.
    HasAttr { slot: usize, group: u32, attr: u64 },
    /// `KVM_CHECK_EXTENSION` on the VM.
    CheckExtension { capability: u32 },
    /// `KVM_IRQ_LINE`.
    Line { irq: u32, level: u32 },
    /// `KVM_SIGNAL_MSI`.
    Msi(KvmMsi),
    /// `KVM_SET_GSI_ROUTING`.
    Routes { nr: u32, flags: u32, entries: Vec<KvmIrqRoutingEntry> },
    /// `KVM_IRQFD`.
    Irqfd { fd: Fd, gsi: u32, flags: u32, resample: Fd },
    /// A write to an eventfd.
    Signal { event: u64, value: u64 },
    /// A read from an eventfd.
    Take { event: u64 },
    /// User space writes the guest's memory.
    WriteRam { address: u64, bytes: Vec<u8> },
    /// User space reads the guest's memory, in words of 8 bytes.
    ReadRam { address: u64, bytes: u64 },
    /// Commands are put into the queue of an ITS at a slot, and CWRITER is set behind them.
    Commands { its: usize, at: u64, list: Vec<Command> },
    /// Code in the guest does one thing and reports.
    Guest { vcpu: u32, deed: Deed },
    /// Which of the LPIs that are watched are pending, by `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`; memory is left as it was.
    PendingLpis { vcpus: u32 },
}

impl Call {
    /// An attribute of the GIC or an ITS that is an action.
    pub fn action(slot: usize, attr: u64) -> Self {
        Self::SetAttr { slot, group: types::group::CTRL, attr, value: 0 }
    }

    /// Reads an attribute.
    pub fn get(slot: usize, group: u32, attr: u64) -> Self {
        Self::GetAttr { slot, group, attr, value: 0 }
    }

    /// The name of the call in the coverage table.
    pub fn name(&self) -> String {
        let attribute = |what: &str, slot: usize, group: u32| format!("{what} {}", group_name(slot, group));
        match self {
            Self::CreateVcpu { .. } => "KVM_CREATE_VCPU".into(),
            Self::InitVcpu { .. } => "KVM_ARM_VCPU_INIT".into(),
            Self::CreateDevice { .. } => "KVM_CREATE_DEVICE".into(),
            Self::SetAttr { slot, group, .. } => attribute("set", *slot, *group),
            Self::GetAttr { slot, group, .. } => attribute("get", *slot, *group),
            Self::HasAttr { .. } => "KVM_HAS_DEVICE_ATTR".into(),
            Self::CheckExtension { .. } => "KVM_CHECK_EXTENSION".into(),
            Self::Line { .. } => "KVM_IRQ_LINE".into(),
            Self::Msi(_) => "KVM_SIGNAL_MSI".into(),
            Self::Routes { .. } => "KVM_SET_GSI_ROUTING".into(),
            Self::Irqfd { flags, .. } if flags & IRQFD_DEASSIGN != 0 => "KVM_IRQFD deassign".into(),
            Self::Irqfd { flags, .. } if flags & IRQFD_RESAMPLE != 0 => "KVM_IRQFD resample".into(),
            Self::Irqfd { .. } => "KVM_IRQFD assign".into(),
            Self::Signal { .. } => "eventfd write".into(),
            Self::Take { .. } => "eventfd read".into(),
            Self::WriteRam { .. } => "memory write".into(),
            Self::ReadRam { .. } => "memory read".into(),
            Self::Commands { .. } => "ITS commands".into(),
            Self::Guest { deed: Deed::Acknowledge(Group::Zero), .. } => "guest acknowledges, group 0".into(),
            Self::Guest { deed: Deed::Acknowledge(Group::One), .. } => "guest acknowledges, group 1".into(),
            Self::Guest { deed: Deed::End, .. } => "guest ends the last".into(),
            Self::Guest { deed: Deed::Read(register), .. } => format!("guest MRS {}", register_name(*register)),
            Self::Guest { deed: Deed::Write(register, _), .. } => format!("guest MSR {}", register_name(*register)),
            Self::Guest { deed: Deed::Load { .. }, .. } => "guest load".into(),
            Self::Guest { deed: Deed::Store { .. }, .. } => "guest store".into(),
            Self::PendingLpis { .. } => "pending LPIs".into(),
        }
    }

    /// Simpler calls of the same kind, to try when a failing program is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        let without = |count: usize| (0..count).map(|at| move |other: &usize| *other != at);
        match self {
            Self::Routes { nr, flags, entries } if *nr as usize == entries.len() => without(entries.len())
                .map(|kept| {
                    let entries =
                        entries.iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, entry)| *entry).collect();
                    Self::Routes { nr: nr - 1, flags: *flags, entries }
                })
                .collect(),
            Self::Commands { its, at, list } if list.len() > 1 => without(list.len())
                .map(|kept| {
                    let list =
                        list.iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, command)| *command).collect();
                    Self::Commands { its: *its, at: *at, list }
                })
                .collect(),
            Self::Signal { event, value } if *value > 1 => vec![Self::Signal { event: *event, value: 1 }],
            Self::SetAttr { slot, group, attr, value } if value.count_ones() > 1 => (0..64)
                .filter(|bit| value >> bit & 1 == 1)
                .map(|bit| Self::SetAttr { slot: *slot, group: *group, attr: *attr, value: value & !(1 << bit) })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// The name of a group of attributes.
pub fn group_name(slot: usize, group: u32) -> String {
    use types::group;
    let name = match group {
        group::ADDR => "ADDR",
        group::DIST_REGS => "DIST_REGS",
        group::CPU_REGS => "CPU_REGS",
        group::NR_IRQS => "NR_IRQS",
        group::CTRL => "CTRL",
        group::REDIST_REGS => "REDIST_REGS",
        group::CPU_SYSREGS => "CPU_SYSREGS",
        group::LEVEL_INFO => "LEVEL_INFO",
        group::ITS_REGS => "ITS_REGS",
        group::MAINT_IRQ => "MAINT_IRQ",
        _ => "an unknown group",
    };
    format!("{} {name}", device_name(slot))
}

fn device_name(slot: usize) -> String {
    match slot {
        layout::GIC => "gic".into(),
        1 | 2 => format!("its{}", slot - 1),
        _ => format!("device{slot}"),
    }
}

/// The name of a system register.
pub fn register_name(register: SystemRegister) -> String {
    let known = SystemRegister::ICC.iter().find(|(_, known)| *known == register);
    known.map_or_else(|| format!("S{:#x}", register.into_bits()), |(name, _)| (*name).into())
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::CreateVcpu { id } => write!(f, "{name}: {id}"),
            Self::InitVcpu { vcpu } => write!(f, "vcpu{vcpu} {name}"),
            Self::CreateDevice { slot, kind } => write!(f, "{} {name}: type {kind}", device_name(*slot)),
            Self::SetAttr { attr, value, .. } => write!(f, "{name} {attr:#x} = {value:#x}"),
            Self::GetAttr { attr, .. } => write!(f, "{name} {attr:#x}"),
            Self::HasAttr { slot, group, attr } => write!(f, "has {} {attr:#x}", group_name(*slot, *group)),
            Self::CheckExtension { capability } => write!(f, "{name}: {capability}"),
            Self::Line { irq, level } => write!(f, "{name}: {irq:#x}, level {level}"),
            Self::Msi(KvmMsi { address_lo, address_hi, data, flags, devid, .. }) => {
                let address = u64::from(*address_hi) << 32 | u64::from(*address_lo);
                write!(f, "{name}: {address:#x}, event {data}, device {devid}, flags {flags:#x}")
            }
            Self::Routes { nr, flags, entries } => {
                write!(f, "{name}: nr {nr}, flags {flags:#x}")?;
                entries.iter().try_for_each(|entry| write!(f, "; {}", Entry(entry)))
            }
            Self::Irqfd { fd, gsi, flags, resample } => {
                write!(f, "{name}: {fd}, GSI {gsi}, flags {flags:#x}")?;
                if *resample == Fd::MinusOne { Ok(()) } else { write!(f, ", {resample}") }
            }
            Self::Signal { event, value } => write!(f, "{name}: {}, {value}", Fd::Event(*event)),
            Self::Take { event } => write!(f, "{name}: {}", Fd::Event(*event)),
            Self::WriteRam { address, bytes } => write!(f, "{name}: {address:#x} = {bytes:02x?}"),
            Self::ReadRam { address, bytes } => write!(f, "{name}: {address:#x}, {bytes} bytes"),
            Self::Commands { its, at, list } => {
                write!(f, "its{its} commands from slot {at}:")?;
                list.iter().try_for_each(|command| write!(f, " {}", Named(command)))
            }
            Self::Guest { vcpu, deed } => match deed {
                Deed::Acknowledge(_) | Deed::End | Deed::Read(_) => write!(f, "vcpu{vcpu} {name}"),
                Deed::Write(_, value) => write!(f, "vcpu{vcpu} {name} = {value:#x}"),
                Deed::Load { address, bytes } => write!(f, "vcpu{vcpu} {name}: {address:#x}, {bytes} bytes"),
                Deed::Store { address, bytes, value } => {
                    write!(f, "vcpu{vcpu} {name}: {address:#x}, {bytes} bytes = {value:#x}")
                }
            },
            Self::PendingLpis { .. } => f.write_str(&name),
        }
    }
}

impl fmt::Display for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(f, "event{event}"),
            Self::MinusOne => f.write_str("-1"),
            Self::NoEvent => f.write_str("no eventfd"),
        }
    }
}

struct Entry<'a>(&'a KvmIrqRoutingEntry);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KvmIrqRoutingEntry { gsi, kind, flags, payload, .. } = self.0;
        match *kind {
            ROUTING_IRQCHIP => write!(f, "GSI {gsi} -> chip {} pin {}", payload[0], payload[1])?,
            ROUTING_MSI => {
                write!(f, "GSI {gsi} -> MSI {:#x}, event {}, device {}", payload[0], payload[2], payload[3])?;
            }
            other => write!(f, "GSI {gsi} -> type {other}")?,
        }
        if *flags == 0 { Ok(()) } else { write!(f, ", flags {flags:#x}") }
    }
}

struct Named<'a>(&'a Command);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [dw0, dw1, dw2, dw3] = *self.0;
        let (device, event, collection) = (dw0 >> 32, dw1 as u32, dw2 as u16);
        let of = |name: &str| format!("{name}(device {device}, event {event})");
        let valid = dw2 >> 63;
        match dw0 as u8 {
            0x01 => write!(f, "MOVI(device {device}, event {event}, collection {collection})"),
            0x03 => f.write_str(&of("INT")),
            0x04 => f.write_str(&of("CLEAR")),
            0x05 => f.write_str("SYNC"),
            0x08 => {
                let table = dw2 & 0xf_ffff_ffff_ff00;
                write!(f, "MAPD(device {device}, {} bits, ITT {table:#x}, V {valid})", (dw1 & 0x1f) + 1)
            }
            0x09 => write!(f, "MAPC(collection {collection}, cpu {}, V {valid})", dw2 >> 16 & 0x7_ffff_ffff),
            0x0a => {
                write!(f, "MAPTI(device {device}, event {event}, LPI {}, collection {collection})", dw1 >> 32)
            }
            0x0b => write!(f, "MAPI(device {device}, event {event}, collection {collection})"),
            0x0c => f.write_str(&of("INV")),
            0x0d => write!(f, "INVALL(collection {collection})"),
            0x0e => write!(f, "MOVALL(cpu {}, cpu {})", dw2 >> 16, dw3 >> 16),
            0x0f => f.write_str(&of("DISCARD")),
            _ => write!(f, "{:#x?}", self.0),
        }
    }
}
