//! The wires to a local APIC that are no messages (Intel SDM volume 3, section 11.5.1): LINT0 and LINT1 of each CPU, and INTR
//! of the 8259 pair, which is connected to LINT0 of all of them.
//!
//! A wire is driven by any thread and looked at by the vCPU's own, in [`next`](LocalApic::next): a rising edge is kept until
//! then, a level is what it is at that moment.

use super::{
    ApicSet, DeliveryMode, LocalApic,
    registers::{LvtEntry, slot},
    shared::Events,
};
use crate::{
    VcpuId,
    sync::{Ordering, fence},
};

/// A pin of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lint {
    /// LINT0, where boards connect the 8259.
    Lint0,
    /// LINT1, where boards connect NMIs.
    Lint1,
}

impl Lint {
    const ALL: [Self; 2] = [Self::Lint0, Self::Lint1];

    /// The register of its entry.
    const fn slot(self) -> usize {
        match self {
            Self::Lint0 => slot::LVT_LINT0,
            Self::Lint1 => slot::LVT_LINT1,
        }
    }

    /// Its level, and a rising edge that nobody has looked at.
    const fn events(self) -> (Events, Events) {
        match self {
            Self::Lint0 => (Events::new().with_lint0(true), Events::new().with_lint0_edge(true)),
            Self::Lint1 => (Events::new().with_lint1(true), Events::new().with_lint1_edge(true)),
        }
    }
}

impl ApicSet {
    /// Drives a pin of one vCPU's APIC; `true` is asserted, whatever polarity its entry says. What comes of it is up to the
    /// entry: an edge-triggered or NMI, SMI or INIT entry takes the rising edge, a level-triggered fixed one the level, until
    /// it is ended and again while it lasts; an ExtINT entry makes it [`Work::extint`](super::Work::extint). A masked entry
    /// loses edges. Absent vCPUs ignore it.
    ///
    /// An NMI button is a pulse of LINT1: what `KVM_NMI` stands for if LINT1 is an NMI.
    pub fn set_lint(&self, vcpu: VcpuId, lint: Lint, level: bool) {
        let (high, edge) = lint.events();
        let (high, edge) = (high.into_bits(), edge.into_bits());
        self.post_to(vcpu, |events| {
            let now = events.into_bits();
            Events::from_bits(match level {
                true if now & high == 0 => now | high | edge,
                true => now,
                false => now & !high,
            })
        });
    }

    /// Drives INTR, the output of the 8259 pair, to all vCPUs at once: made for
    /// [`Intr`](crate::chips::x86::pic::Intr). As in KVM, each vCPU accepts it whose LINT0 is an unmasked ExtINT, or whose
    /// APIC is off; such vCPUs are woken if they sleep. Usually that is the boot CPU alone. Where several accept it, the
    /// first to acknowledge takes the interrupt.
    pub fn set_intr(&self, level: bool) {
        // SeqCst: as for what is pending in `Shared`: a vCPU that arms looks at it afterwards, or is found armed below.
        self.intr.swap(level.into(), Ordering::SeqCst);
        if !level {
            return;
        }
        // Pairs with the fence in `configure`: a vCPU that has come to accept it is seen here, or sees it when it arms.
        fence(Ordering::SeqCst);
        for (index, cpu) in self.cpus.iter().enumerate() {
            if self.map.config(index).accepts_pic() && cpu.take_arming() {
                self.kick(index);
            }
        }
    }
}

impl LocalApic {
    /// Whether the 8259's output reaches this CPU, as KVM has it: through LINT0, or with the APIC off.
    pub fn accepts_pic(&self) -> bool {
        !self.base.enabled() || self.is_extint(Lint::Lint0)
    }

    /// Whether an interrupt of the 8259 waits for this CPU.
    #[inline]
    pub(super) fn has_extint(&self, events: Events) -> bool {
        // SeqCst: see `set_intr`.
        let intr = events.pic() || self.set.intr.load(Ordering::SeqCst) != 0;
        let lint = |lint: Lint, high: bool| high && self.base.enabled() && self.is_extint(lint);
        events.extint()
            || (intr && self.accepts_pic())
            || lint(Lint::Lint0, events.lint0())
            || lint(Lint::Lint1, events.lint1())
    }

    fn is_extint(&self, lint: Lint) -> bool {
        let entry = LvtEntry::from_bits(self.registers[lint.slot()]);
        !entry.masked() && entry.delivery_mode() == DeliveryMode::ExtInt
    }

    /// Delivers what the pins have for this CPU.
    #[cold]
    pub(super) fn deliver_lints(&mut self, events: Events) {
        for lint in Lint::ALL {
            let (high, edge) = lint.events();
            let is_set = |bit: Events| events.into_bits() & bit.into_bits() != 0;
            let risen = is_set(edge) && self.take_event(edge).is_some();
            let entry = LvtEntry::from_bits(self.registers[lint.slot()]);
            let (mode, register) = (entry.delivery_mode(), lint.slot());
            // By the manual, only fixed interrupts can be level-triggered.
            if mode == DeliveryMode::Fixed && entry.level() {
                if is_set(high) && !entry.remote_irr() && self.deliver_local(register).status() > 0 {
                    self.registers[register] = entry.with_remote_irr(true).into_bits();
                }
            } else if risen && mode != DeliveryMode::ExtInt {
                self.deliver_local(register);
            }
        }
    }

    /// The end of a level-triggered interrupt: if a pin had sent it, it may send again.
    pub(super) fn end_lints(&mut self, vector: u8) {
        for register in Lint::ALL.map(Lint::slot) {
            let entry = LvtEntry::from_bits(self.registers[register]);
            if entry.level() && entry.vector() == vector {
                self.registers[register] = entry.with_remote_irr(false).into_bits();
            }
        }
    }
}
