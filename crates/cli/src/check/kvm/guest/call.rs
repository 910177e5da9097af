//! One step of a program with a guest, and how it reads.

use std::fmt;

use doorbell::MsiMessage;
use doorbell::kvm_abi::types::regs;

use super::chips::Outcome;
use super::code::{Event, IOAPIC, LAPIC, Operation, Policy};
use super::machine::Rest;
use crate::check::kvm::call::register_name;
use crate::check::kvm::compare;

/// Eventfds that programs bind and write; as many again are signalled when an interrupt ends.
pub const SOURCES: usize = 4;

/// One step: a call of the host, or something that a vCPU is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `KVM_SIGNAL_MSI`.
    Message(MsiMessage),
    /// `KVM_IRQ_LINE_STATUS`.
    Line { gsi: u32, level: bool },
    /// `KVM_IRQFD` that binds a source, with the event behind it as its resample event or not.
    Bind { source: usize, gsi: u32, resample: bool },
    /// `KVM_IRQFD` that unbinds it.
    Unbind { source: usize, gsi: u32 },
    /// A write to a source.
    Write { source: usize },
    /// A read from the resample event behind a source.
    Read { source: usize },
    /// What the handler of a vector does from now on.
    Handler { vcpu: u32, vector: u8, policy: Policy },
    /// The guest starts its timer; when it must have expired, the guest takes what came and stops it.
    Timer { vcpu: u32, vector: u8, periodic: bool },
    /// An operation of the guest.
    Guest { vcpu: u32, operation: Operation, arguments: [u64; 2] },
}

/// What a step answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A call of the host.
    Host(Outcome),
    /// An operation: what became of the vCPU, and the events of its log.
    Guest(Rest, Vec<Event>),
}

impl Call {
    /// A store of the guest to a register of its local APIC.
    pub fn store(vcpu: u32, offset: usize, value: u32) -> Self {
        let arguments = [LAPIC + offset as u64, value.into()];
        Self::Guest { vcpu, operation: Operation::Store, arguments }
    }

    /// A load of the guest from one.
    pub fn load(vcpu: u32, offset: usize) -> Self {
        Self::Guest { vcpu, operation: Operation::Load, arguments: [LAPIC + offset as u64, 0] }
    }

    /// An operation without arguments.
    pub fn told(vcpu: u32, operation: Operation) -> Self {
        Self::Guest { vcpu, operation, arguments: [0, 0] }
    }

    /// Whether it is the guest's store to the register at `offset` of its local APIC.
    pub fn stores(&self, offset: usize) -> bool {
        let address = LAPIC + offset as u64;
        matches!(self, Self::Guest { operation: Operation::Store, arguments: [first, _], .. } if *first == address)
    }

    /// The name of the step in the coverage table.
    pub fn name(&self) -> &'static str {
        let Self::Guest { operation, arguments, .. } = self else {
            return match self {
                Self::Message(_) => "KVM_SIGNAL_MSI",
                Self::Line { .. } => "KVM_IRQ_LINE_STATUS",
                Self::Bind { resample: false, .. } => "KVM_IRQFD assign",
                Self::Bind { resample: true, .. } => "KVM_IRQFD resample",
                Self::Unbind { .. } => "KVM_IRQFD deassign",
                Self::Write { .. } => "eventfd write",
                Self::Read { .. } => "eventfd read",
                Self::Timer { periodic: false, .. } => "guest timer, once",
                Self::Timer { periodic: true, .. } => "guest timer, periodic",
                Self::Handler { .. } | Self::Guest { .. } => "guest handler",
            };
        };
        match operation {
            Operation::Nothing => "guest takes",
            Operation::Store if self.stores(regs::EOI) => "guest EOI",
            Operation::Store if self.stores(regs::ICR_LOW) => "guest IPI",
            Operation::Store if arguments[0] >= LAPIC => "guest store, LAPIC",
            Operation::Load if arguments[0] >= LAPIC => "guest load, LAPIC",
            Operation::Store | Operation::StoreIoApic => "guest store, IOAPIC",
            Operation::Load | Operation::LoadIoApic => "guest load, IOAPIC",
            Operation::SetCr8 | Operation::GetCr8 => "guest CR8",
            Operation::Enable => "guest sti",
            Operation::Disable => "guest cli",
            Operation::Halt => "guest hlt",
            Operation::Out => "guest OUT",
            Operation::In => "guest IN",
        }
    }

    /// Simpler steps of the same kind, to try when a failing program is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        let bits = |value: u64, range: std::ops::Range<u32>| {
            range.filter(move |bit| value >> bit & 1 == 1).map(move |bit| value & !(1 << bit))
        };
        match *self {
            Self::Message(message) => {
                let data = bits(message.data.into(), 8..16).map(|data| MsiMessage { data: data as u32, ..message });
                let address = bits(message.address, 2..20).map(|address| MsiMessage { address, ..message });
                data.chain(address).map(Self::Message).collect()
            }
            Self::Guest { vcpu, operation: Operation::StoreIoApic, arguments: [index, value] } => bits(value, 8..17)
                .map(|value| Self::Guest { vcpu, operation: Operation::StoreIoApic, arguments: [index, value] })
                .collect(),
            Self::Guest { vcpu, operation: Operation::Store, arguments: [address, value] }
                if self.stores(regs::ICR_LOW) =>
            {
                bits(value, 8..20)
                    .map(|value| Self::Guest { vcpu, operation: Operation::Store, arguments: [address, value] })
                    .collect()
            }
            Self::Handler { vcpu, vector, policy: Policy::NestAndEnd } => {
                vec![Self::Handler { vcpu, vector, policy: Policy::End }]
            }
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Message(MsiMessage { address, data, .. }) => {
                write!(f, "{name}: address {address:#x}, data {data:#x}")
            }
            Self::Line { gsi, level } => write!(f, "{name}: GSI {gsi}, level {}", u8::from(*level)),
            Self::Bind { source, gsi, .. } | Self::Unbind { source, gsi } => {
                write!(f, "{name}: event {source}, GSI {gsi}")
            }
            Self::Write { source } => write!(f, "write to event {source}"),
            Self::Read { source } => write!(f, "read resample event {source}"),
            Self::Handler { vcpu, vector, policy } => {
                let does = match policy {
                    Policy::Leave => "leaves it in service",
                    Policy::End => "ends it",
                    Policy::NestAndEnd => "lets others in and ends it",
                };
                write!(f, "vcpu{vcpu} handler of {vector:#04x} {does}")
            }
            Self::Timer { vcpu, vector, .. } => write!(f, "vcpu{vcpu} {name}: {vector:#04x}"),
            Self::Guest { vcpu, operation, arguments: [first, second] } => {
                write!(f, "vcpu{vcpu} {name}")?;
                match operation {
                    Operation::Store | Operation::Load if *first >= LAPIC => {
                        write!(f, ": {}", register_name((first - LAPIC) as usize))?;
                    }
                    Operation::Store | Operation::Load => write!(f, ": offset {:#x}", first - IOAPIC)?,
                    Operation::StoreIoApic | Operation::LoadIoApic => write!(f, ": register {first:#x}")?,
                    Operation::Out | Operation::In => write!(f, ": {first:#x}")?,
                    _ => {}
                }
                match operation {
                    Operation::Store | Operation::StoreIoApic | Operation::SetCr8 | Operation::Out => {
                        write!(f, " = {second:#x}")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(outcome) => f.write_str(&compare::outcome(*outcome)),
            Self::Guest(rest, events) => {
                match rest {
                    Rest::Idle(answer) => write!(f, "{answer:#x}")?,
                    Rest::Halted => f.write_str("halted")?,
                    Rest::WaitsForStart => f.write_str("waits for SIPI")?,
                    Rest::Stuck => f.write_str("stuck")?,
                }
                for event in events {
                    match event {
                        Event::Taken(vector) => write!(f, ", took {vector:#04x}")?,
                        Event::Ended(vector) => write!(f, ", ended {vector:#04x}")?,
                    }
                }
                Ok(())
            }
        }
    }
}
