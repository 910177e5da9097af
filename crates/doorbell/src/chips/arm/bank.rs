//! The registers with a field for each interrupt, over the interrupts' words: one load or one exchange a field.

use super::{
    Gic,
    intid::{PPIS, SGIS},
    irq::{IrqState, PRIORITY},
    registers::fields::{Fields, Kind},
};

/// The bit of a field of ICFGR that says edge; the other one is reserved (C4).
const EDGE: u32 = 0b10;

impl Gic {
    /// What a guest reads. `cpu` says whose SGIs and PPIs are meant.
    pub(super) fn read_fields(&self, cpu: u16, fields: Fields) -> u32 {
        self.gather(cpu, fields, |state| match fields.kind {
            Kind::Group => state.group1().into(),
            Kind::SetEnable | Kind::ClearEnable => state.enabled().into(),
            Kind::SetPending | Kind::ClearPending => state.pending().into(),
            Kind::SetActive | Kind::ClearActive => state.active().into(),
            Kind::Priority => state.priority().into(),
            Kind::Trigger if state.edge() => EDGE,
            Kind::Trigger => 0,
        })
    }

    /// A guest's store.
    pub(super) fn write_fields(&self, cpu: u16, fields: Fields, value: u32) {
        self.scatter(cpu, fields, value, |intid, state, field| {
            let bit = field & 1 == 1;
            match fields.kind {
                Kind::Group => state.with_group1(bit),
                Kind::SetEnable if bit => state.with_enabled(true),
                Kind::ClearEnable if bit => state.with_enabled(false),
                // C10, C12: the latch alone; the line goes on counting.
                Kind::SetPending if bit => state.with_latch(true),
                Kind::ClearPending if bit => state.with_latch(false),
                Kind::SetActive if bit => state.with_active(true),
                Kind::ClearActive if bit => state.with_active(false),
                Kind::Priority => state.with_priority(field as u8 & PRIORITY),
                Kind::Trigger if self.has_fixed_trigger(intid) => state,
                Kind::Trigger => state.with_edge(field & EDGE != 0),
                _ => state,
            }
        });
    }

    /// The fields of one access, each made from the state of its interrupt. One that does not exist reads 0.
    pub(super) fn gather(&self, cpu: u16, fields: Fields, field: impl Fn(IrqState) -> u32) -> u32 {
        fields.places().fold(0, |value, (intid, at)| {
            let part = self.irq(cpu, intid).map_or(0, |irq| field(irq.state()));
            value | part << at
        })
    }

    /// Changes the interrupts of one access, each by its field.
    pub(super) fn scatter(
        &self,
        cpu: u16,
        fields: Fields,
        value: u32,
        change: impl Fn(u32, IrqState, u32) -> IrqState,
    ) {
        for (intid, at) in fields.places() {
            let field = value >> at & fields.mask();
            let Some(irq) = self.irq(cpu, intid) else { continue };
            let now = irq.state();
            // Most fields of most stores change nothing, and a store must not stand in the way of devices for that.
            if change(intid, now, field) != now {
                self.update(irq, intid, |state| change(intid, state, field));
            }
        }
    }

    fn has_fixed_trigger(&self, intid: u32) -> bool {
        SGIS.contains(&intid) || PPIS.contains(&intid) && self.options.behaviour.ppis_keep_trigger
    }
}
