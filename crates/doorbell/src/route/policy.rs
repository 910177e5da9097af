//! What the threads of 2015 argued over, as options of one table.

use crate::delivery::ChipId;

/// Who may route pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinRoutes {
    /// Any GSI may be routed to any pin.
    #[default]
    Settable,
    /// GSI n is pin n of this chip, for ever; only messages can be routed, on GSIs beyond its pins.
    Identity(ChipId),
}

/// Which way a line call takes (`KVM_IRQ_LINE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineCalls {
    /// Through the table, as on x86; on Arm the design that was not merged.
    #[default]
    Routed,
    /// Straight to this chip's pin of the same number, whatever the table says, as KVM does on Arm.
    Direct(ChipId),
}

/// What a table holds before it is set for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initial {
    /// Nothing: no table, no injection.
    #[default]
    Empty,
    /// GSI n leads to pin n of this chip.
    Identity(ChipId),
    /// As KVM on x86: GSI n leads to pin n of the IOAPIC, chip 2, and the first 16 to the 8259 pair as well, chips 0 and 1,
    /// where the machine has one.
    Pc,
}

/// How a [`RouteTable`](super::RouteTable) behaves where the designs differ.
///
/// Two further designs of the thread are not policies of the table. S2-ext is an encoding of its own for messages with
/// a DeviceID, which `kvm_abi` can decode. S2-direct binds DeviceID and EventID to the irqfd, with no table at all
/// (`irqfd`).
///
/// | constant | pins | line call | before the first table |
/// |---|---|---|---|
/// | [`S2_TABLE`](Self::S2_TABLE) | settable | through the table | empty |
/// | [`KVM_X86`](Self::KVM_X86) | settable | through the table | GSI n = IOAPIC pin n, and 8259 pin n |
/// | [`KVM_ARM`](Self::KVM_ARM) | settable | direct | GSI n = SPI n + 32 |
/// | [`S2_IDENT`](Self::S2_IDENT) | fixed identity | direct | GSI n = SPI n + 32 |
/// | [`S2_LINE`](Self::S2_LINE) | settable | through the table | GSI n = SPI n + 32 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutePolicy {
    /// Who may route pins.
    pub pins: PinRoutes,
    /// Which way a line call takes.
    pub lines: LineCalls,
    /// What is there before the first table.
    pub initial: Initial,
    /// How many numbers there are beyond [`GSIS`](super::RouteTable::GSIS): they cannot be routed, only be lent to the vectors
    /// of devices. 0 to [`MOST_LOANS`](Self::MOST_LOANS), beyond which there are no more; each takes some 50 bytes.
    pub loans: u32,
}

impl RoutePolicy {
    /// The most [`loans`](Self::loans): with the table's own GSIs, 65,536 numbers.
    pub const MOST_LOANS: u32 = 61_440;

    /// The merged design: a table of messages and pins; no table, no injection.
    pub const S2_TABLE: Self =
        Self { pins: PinRoutes::Settable, lines: LineCalls::Routed, initial: Initial::Empty, loans: 0 };
    /// As KVM on x86, with the 8259 pair as chips 0 and 1 and the IOAPIC as chip 2.
    pub const KVM_X86: Self = Self { initial: Initial::Pc, ..Self::S2_TABLE };
    /// As KVM on Arm: the line call never looks at the table.
    pub const KVM_ARM: Self = Self { lines: LineCalls::Direct(0), initial: Initial::Identity(0), ..Self::S2_TABLE };
    /// Half merged: pins keep their identity, only messages can be routed.
    pub const S2_IDENT: Self = Self { pins: PinRoutes::Identity(0), ..Self::KVM_ARM };
    /// Not merged: Arm's line call looks at the table.
    pub const S2_LINE: Self = Self { lines: LineCalls::Routed, ..Self::KVM_ARM };
}
