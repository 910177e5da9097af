//! What the fuzz targets share: a machine, and bytes read as a program.

pub mod arm;

use std::sync::Arc;

use doorbell::{
    MsiTarget, VcpuId,
    chips::x86::{
        ioapic::{IoApic, IoApicOptions, Version},
        lapic::{ApicOptions, ApicSet, LocalApic, TimerModes, TimerOptions},
    },
    clock::VirtualClock,
    guest_ram::RamBlock,
    remap::vtd::{VtdOptions, VtdUnit},
};

/// Bytes that are taken from the front.
pub struct Program<'a>(pub &'a [u8]);

impl Program<'_> {
    /// The next `N` bytes; `None` at the end.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    /// Two bytes, little-endian.
    pub fn half(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    pub fn quad(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// An IOAPIC in front of two vCPUs.
pub struct Machine {
    /// The shared half of the local APICs.
    pub apics: Arc<ApicSet>,
    /// The vCPUs' halves.
    pub cpus: [LocalApic; 2],
    /// What their timers go by.
    pub clock: Arc<VirtualClock>,
    /// The IOAPIC.
    pub ioapic: IoApic,
}

impl Machine {
    /// After reset. The bits of `options` choose what an embedder can choose.
    pub fn new(options: u8) -> Self {
        let bit = |n: u8| options >> n & 1 == 1;
        let apic_options = ApicOptions {
            strict: bit(0),
            extended_ids: bit(1),
            no_broadcast_quirk: bit(2),
            eoi_suppression: bit(3),
            timer: TimerOptions {
                modes: if bit(6) { TimerModes::Periodic } else { TimerModes::TscDeadline },
                min_period_ns: if bit(7) { 0 } else { 200_000 },
                tsc_hz: 2_500_000_000,
                ..TimerOptions::default()
            },
            ..ApicOptions::default()
        };
        let clock = Arc::new(VirtualClock::default());
        let apics = ApicSet::with_clock(&[0, 1], Arc::new(()), clock.clone(), apic_options).expect("distinct ids");
        let version = if bit(4) { Version::V11 } else { Version::V20 };
        let ioapic_options = IoApicOptions { version, storm_guard: bit(5), ..IoApicOptions::default() };
        let target: Arc<dyn doorbell::MsiTarget> = apics.clone();
        let cpus = [0, 1].map(|vcpu| apics.local(VcpuId(vcpu)).expect("each half is taken once"));
        Self { cpus, clock, ioapic: IoApic::new(target, ioapic_options), apics }
    }
}

/// How much memory a [`vtd`] machine has.
pub const RAM: usize = 0x2_0000;

/// A VT-d unit with so many fault records, and its guest's memory.
pub fn vtd(fault_records: usize, target: Arc<dyn MsiTarget>) -> (VtdUnit, Arc<RamBlock>) {
    let ram = Arc::new(RamBlock::new(0, RAM));
    let options = VtdOptions { fault_records, messages: 64, ..VtdOptions::default() };
    (VtdUnit::new(options, target, ram.clone()), ram)
}
