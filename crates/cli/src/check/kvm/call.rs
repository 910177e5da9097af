//! One call of a program, and how it reads.

use std::fmt;

use doorbell::kvm_abi::types::{self, IRQFD_DEASSIGN, IRQFD_RESAMPLE, regs};
use doorbell::kvm_abi::{KvmIrqRoutingEntry, KvmMsi};

/// How many vCPUs each of the two VMs has.
pub const VCPUS: [u32; 2] = [3, 2];
/// Eventfds that programs bind and write.
pub const SOURCES: usize = 6;
/// All eventfds of a program; those behind the sources are signalled when an interrupt ends.
pub const EVENTS: usize = 10;

/// A descriptor as a call names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// One of the program's eventfds.
    Event(usize),
    /// A number that is not open.
    NotOpen,
    /// -1.
    MinusOne,
    /// Something else: `/dev/null`.
    NoEvent,
}

/// One call. `vm` is 0 or 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `KVM_IRQFD`.
    Irqfd { vm: usize, fd: Fd, gsi: u32, flags: u32, resample: Fd },
    /// `KVM_SET_GSI_ROUTING`.
    Routes { vm: usize, nr: u32, flags: u32, entries: Vec<KvmIrqRoutingEntry> },
    /// `KVM_IRQ_LINE`, or `KVM_IRQ_LINE_STATUS`.
    Line { vm: usize, gsi: u32, level: u32, status: bool },
    /// `KVM_SIGNAL_MSI`.
    Msi { vm: usize, message: KvmMsi },
    /// A write to an eventfd.
    Write { event: usize, value: u64 },
    /// A read from an eventfd.
    Read { event: usize },
    /// The eventfd goes on under another number, and the old one is closed.
    Renumber { event: usize },
    /// `KVM_GET_IRQCHIP`, one entry changed, `KVM_SET_IRQCHIP`.
    SetEntry { vm: usize, pin: usize, entry: u64 },
    /// The same with the latches of the pins.
    SetLatches { vm: usize, irr: u32 },
    /// The same with one byte of an 8259's state.
    SetPic { vm: usize, chip: u32, at: usize, value: u8 },
    /// `KVM_GET_LAPIC`, one register changed, `KVM_SET_LAPIC`.
    SetRegister { vm: usize, vcpu: u32, offset: usize, value: u32 },
    /// The vCPU takes its highest interrupt.
    Acknowledge { vm: usize, vcpu: u32 },
    /// The guest writes the EOI register.
    End { vm: usize, vcpu: u32 },
    /// The guest writes another register of its local APIC.
    StoreLapic { vm: usize, vcpu: u32, offset: usize, value: u32 },
    /// The guest reads a register of its local APIC.
    LoadLapic { vm: usize, vcpu: u32, offset: usize },
    /// The guest writes one half of an entry of the IOAPIC, through its index register.
    StoreEntry { vm: usize, vcpu: u32, index: u32, value: u32 },
    /// The guest reads it.
    LoadEntry { vm: usize, vcpu: u32, index: u32 },
    /// The guest writes a port of the 8259 pair.
    StorePort { vm: usize, vcpu: u32, port: u16, value: u8 },
    /// The guest reads one.
    LoadPort { vm: usize, vcpu: u32, port: u16 },
}

impl Call {
    /// The name of the call in the coverage table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Irqfd { flags, .. } if flags & IRQFD_DEASSIGN != 0 => "KVM_IRQFD deassign",
            Self::Irqfd { flags, .. } if flags & IRQFD_RESAMPLE != 0 => "KVM_IRQFD resample",
            Self::Irqfd { .. } => "KVM_IRQFD assign",
            Self::Routes { .. } => "KVM_SET_GSI_ROUTING",
            Self::Line { status: false, .. } => "KVM_IRQ_LINE",
            Self::Line { status: true, .. } => "KVM_IRQ_LINE_STATUS",
            Self::Msi { .. } => "KVM_SIGNAL_MSI",
            Self::Write { .. } => "eventfd write",
            Self::Read { .. } => "eventfd read",
            Self::Renumber { .. } => "eventfd dup, close",
            Self::SetEntry { .. } | Self::SetLatches { .. } => "KVM_SET_IRQCHIP",
            Self::SetPic { .. } => "KVM_SET_IRQCHIP, 8259",
            Self::SetRegister { .. } => "KVM_SET_LAPIC",
            Self::Acknowledge { .. } => "acknowledge",
            Self::End { .. } => "guest EOI",
            Self::StoreLapic { .. } => "guest store, LAPIC",
            Self::LoadLapic { .. } => "guest load, LAPIC",
            Self::StoreEntry { .. } => "guest store, IOAPIC",
            Self::LoadEntry { .. } => "guest load, IOAPIC",
            Self::StorePort { .. } => "guest store, 8259",
            Self::LoadPort { .. } => "guest load, 8259",
        }
    }

    /// Whether its effects may come later than its return.
    pub fn is_deferred(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Irqfd { .. } | Self::Renumber { .. } | Self::End { .. })
            || matches!(self, Self::StoreEntry { .. } | Self::StorePort { .. } | Self::LoadPort { .. })
    }

    /// Simpler calls of the same kind, to try when a failing program is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        let mut simpler = Vec::new();
        match self {
            Self::Routes { vm, nr, flags, entries } if *nr as usize == entries.len() => {
                for left_out in 0..entries.len() {
                    let mut fewer = entries.clone();
                    fewer.remove(left_out);
                    simpler.push(Self::Routes { vm: *vm, nr: nr - 1, flags: *flags, entries: fewer });
                }
            }
            Self::Write { event, value } if *value > 1 => simpler.push(Self::Write { event: *event, value: 1 }),
            Self::SetLatches { vm, irr } => {
                let bits = (0..24).filter(|bit| irr >> bit & 1 == 1 && irr.count_ones() > 1);
                simpler.extend(bits.map(|bit| Self::SetLatches { vm: *vm, irr: irr & !(1 << bit) }));
            }
            Self::SetEntry { vm, pin, entry } => {
                // The mode stays: another one may not be for this program.
                let bits = (11..64).filter(|bit| entry >> bit & 1 == 1);
                simpler.extend(bits.map(|bit| Self::SetEntry { vm: *vm, pin: *pin, entry: entry & !(1 << bit) }));
            }
            Self::Msi { vm, message } => {
                let KvmMsi { address_lo, data, .. } = *message;
                let bits = (0..24).filter(|bit| !(8..11).contains(bit) && data >> bit & 1 == 1);
                simpler.extend(
                    bits.map(|bit| Self::Msi { vm: *vm, message: KvmMsi { data: data & !(1 << bit), ..*message } }),
                );
                let bits = (2..20).filter(|bit| address_lo >> bit & 1 == 1);
                simpler.extend(bits.map(|bit| {
                    let address_lo = address_lo & !(1 << bit);
                    Self::Msi { vm: *vm, message: KvmMsi { address_lo, ..*message } }
                }));
            }
            Self::SetRegister { vm, vcpu, offset, value } => {
                let bits = (0..32).filter(|bit| value >> bit & 1 == 1 && value.count_ones() > 1);
                simpler.extend(bits.map(|bit| {
                    let value = value & !(1 << bit);
                    Self::SetRegister { vm: *vm, vcpu: *vcpu, offset: *offset, value }
                }));
            }
            _ => {}
        }
        simpler
    }
}

impl fmt::Display for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(number) if *number < SOURCES => write!(f, "event {number}"),
            Self::Event(number) => write!(f, "resample event {number}"),
            Self::NotOpen => f.write_str("a descriptor that is not open"),
            Self::MinusOne => f.write_str("-1"),
            Self::NoEvent => f.write_str("/dev/null"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Irqfd { vm, fd, gsi, flags, resample } => {
                write!(f, "vm{vm} {}: {fd}, GSI {gsi}, flags {flags:#x}", self.name())?;
                if flags & IRQFD_RESAMPLE != 0 { write!(f, ", {resample}") } else { Ok(()) }
            }
            Self::Routes { vm, nr, flags, entries } => {
                write!(f, "vm{vm} {}: nr {nr}, flags {flags:#x}", self.name())?;
                let mut entries = entries.iter();
                entries.by_ref().take(12).try_for_each(|entry| write!(f, "; {}", Entry(entry)))?;
                match entries.len() {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
            Self::Line { vm, gsi, level, .. } => write!(f, "vm{vm} {}: GSI {gsi}, level {level}", self.name()),
            Self::Msi { vm, message: KvmMsi { address_lo, address_hi, data, flags, .. } } => write!(
                f,
                "vm{vm} {}: address {address_lo:#x}, high {address_hi:#x}, data {data:#x}, flags {flags:#x}",
                self.name()
            ),
            Self::Write { event, value } => write!(f, "write {value} to {}", Fd::Event(*event)),
            Self::Read { event } => write!(f, "read {}", Fd::Event(*event)),
            Self::Renumber { event } => write!(f, "dup {} and close the original", Fd::Event(*event)),
            Self::SetEntry { vm, pin, entry } => write!(f, "vm{vm} {}: entry {pin} = {entry:#x}", self.name()),
            Self::SetLatches { vm, irr } => write!(f, "vm{vm} {}: irr = {irr:#x}", self.name()),
            Self::SetPic { vm, chip, at, value } => {
                write!(f, "vm{vm} {} {chip}: {} = {value:#x}", self.name(), pic_byte_name(*at))
            }
            Self::SetRegister { vm, vcpu, offset, value } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: {} = {value:#x}", self.name(), register_name(*offset))
            }
            Self::Acknowledge { vm, vcpu } | Self::End { vm, vcpu } => write!(f, "vm{vm} vcpu{vcpu} {}", self.name()),
            Self::StoreLapic { vm, vcpu, offset, value } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: {} = {value:#x}", self.name(), register_name(*offset))
            }
            Self::LoadLapic { vm, vcpu, offset } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: {}", self.name(), register_name(*offset))
            }
            Self::StoreEntry { vm, vcpu, index, value } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: register {index:#x} = {value:#x}", self.name())
            }
            Self::LoadEntry { vm, vcpu, index } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: register {index:#x}", self.name())
            }
            Self::StorePort { vm, vcpu, port, value } => {
                write!(f, "vm{vm} vcpu{vcpu} {}: port {port:#x} = {value:#x}", self.name())
            }
            Self::LoadPort { vm, vcpu, port } => write!(f, "vm{vm} vcpu{vcpu} {}: port {port:#x}", self.name()),
        }
    }
}

struct Entry<'a>(&'a KvmIrqRoutingEntry);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KvmIrqRoutingEntry { gsi, kind, flags, payload, .. } = self.0;
        match *kind {
            types::ROUTING_IRQCHIP => write!(f, "GSI {gsi} -> chip {} pin {}", payload[0], payload[1])?,
            types::ROUTING_MSI => write!(f, "GSI {gsi} -> MSI {:#x}/{:#x}", payload[0], payload[2])?,
            other => write!(f, "GSI {gsi} -> type {other}")?,
        }
        if *flags == 0 { Ok(()) } else { write!(f, ", flags {flags:#x}") }
    }
}

/// The name of a byte of an 8259's state, as `struct kvm_pic_state` has it.
pub fn pic_byte_name(at: usize) -> &'static str {
    const NAMES: [&str; 16] = [
        "last_irr",
        "irr",
        "imr",
        "isr",
        "priority_add",
        "irq_base",
        "read_reg_select",
        "poll",
        "special_mask",
        "init_state",
        "auto_eoi",
        "rotate_on_auto_eoi",
        "special_fully_nested_mode",
        "init4",
        "elcr",
        "elcr_mask",
    ];
    NAMES[at]
}

/// The name of a register of the local APIC.
pub fn register_name(offset: usize) -> String {
    let name = match offset {
        regs::ID => "ID",
        regs::VERSION => "VERSION",
        regs::TPR => "TPR",
        regs::PPR => "PPR",
        regs::LDR => "LDR",
        regs::DFR => "DFR",
        regs::SVR => "SVR",
        regs::ESR => "ESR",
        regs::ICR_LOW => "ICR",
        regs::ICR_HIGH => "ICR2",
        regs::LVT_TIMER => "LVT timer",
        regs::LVT_THERMAL => "LVT thermal",
        regs::LVT_PERFORMANCE => "LVT performance",
        regs::LVT_LINT0 => "LVT LINT0",
        regs::LVT_LINT1 => "LVT LINT1",
        regs::LVT_ERROR => "LVT error",
        0x100..0x180 => return format!("ISR word {}", (offset - regs::ISR) / 0x10),
        0x180..0x200 => return format!("TMR word {}", (offset - regs::TMR) / 0x10),
        0x200..0x280 => return format!("IRR word {}", (offset - regs::IRR) / 0x10),
        _ => return format!("register {offset:#x}"),
    };
    name.into()
}
