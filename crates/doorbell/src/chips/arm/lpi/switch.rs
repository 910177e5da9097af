//! EnableLPIs: a redistributor's LPIs on and off (Arm IHI 0069, "LPI Pending tables", and GICR_CTLR).

use super::{
    access::Redistributor,
    registers::Control,
    tables::{Entries, configured},
};
use crate::{
    chips::arm::{Gic, irq::Irq},
    sync::Ordering,
};

impl Gic {
    /// Whether a vCPU has its LPIs switched on.
    pub(crate) fn lpis_enabled(&self, cpu: u16) -> bool {
        let redistributor = self.lpis.redistributors.get(usize::from(cpu));
        // Acquire: pairs with the Release of who switched them on.
        redistributor.is_some_and(|it| {
            Control::from_bits(it.control.load(Ordering::Acquire)) == Control::new().with_enable_lpis(true)
        })
    }

    /// A store to GICR_CTLR.EnableLPIs.
    pub(super) fn switch_lpis(&self, cpu: u16, on: bool) {
        let Some(redistributor) = self.lpis.redistributors.get(usize::from(cpu)) else { return };
        let mut config = self.lpis.config.lock();
        if !self.has_lpis() || self.lpis_enabled(cpu) == on {
            return;
        }
        if on {
            self.switch_on(redistributor, &config, cpu);
        } else {
            // Not forwarded again: that is the embedder's to decide when they are on again.
            self.recall(&mut config, |_, state| state.target() == cpu);
            self.switch_off(redistributor, &config, cpu);
        }
    }

    /// Reads what the tables say, unless the pending table is known to be zero (I33), and lets events through.
    fn switch_on(&self, redistributor: &Redistributor, config: &super::Config, cpu: u16) {
        // Release: pairs with the Acquire in `lpis_enabled`.
        redistributor.control.store(Control::new().with_enable_lpis(true).into_bits(), Ordering::Release);
        let table = !self.pending_of(cpu).table_is_zero();
        self.each_lpi_by_chunk(config, |entries, lpi, irq| {
            if self.options.behaviour.lpis_off_keeps_pending {
                let bit = table.then(|| entries.pending(self, cpu, lpi).ok()).flatten();
                self.update(irq, lpi, |state| {
                    let state = self.placed(state, state.home(), state.target());
                    state.with_latch(bit.filter(|_| state.target() == cpu).unwrap_or(state.latch()))
                });
            } else {
                self.load(entries, lpi, irq, cpu, table);
            }
        });
    }

    /// What the tables of a redistributor that is switched on say of an LPI. A pending bit is taken over: it is the
    /// redistributor's from now on, and cleared in memory, so that it counts once (H25).
    pub(super) fn load(&self, entries: &mut Entries, lpi: u32, irq: &Irq, cpu: u16, table: bool) {
        let pending = table
            && entries.pending(self, cpu, lpi).unwrap_or(false)
            && self.swap_pending_bit(cpu, lpi, false).unwrap_or(false);
        let configuration = if irq.state().home() == cpu { entries.configuration(self, cpu, lpi).ok() } else { None };
        self.update(irq, lpi, |state| {
            // One that is pending elsewhere as well is pending once.
            let arrives = pending && !state.latch();
            let state = self.placed(state, state.home(), if arrives { cpu } else { state.target() });
            let state = configuration.map_or(state, |configuration| configured(state, configuration));
            state.with_latch(state.latch() || pending)
        });
    }

    /// Lets no more events through; what is pending leaves the vCPU (I31, H26).
    fn switch_off(&self, redistributor: &Redistributor, config: &super::Config, cpu: u16) {
        // Release: as above. Whoever reads GICR_CTLR meanwhile is told to wait.
        redistributor.control.store(Control::new().with_write_pending(true).into_bits(), Ordering::Release);
        self.each_lpi(config, |lpi, irq| {
            let state = irq.state();
            if state.home() == cpu || state.target() == cpu {
                self.update(irq, lpi, |state| self.placed(state, state.home(), state.target()));
                self.leave_in_table(irq, lpi);
            }
        });
        redistributor.control.store(Control::new().into_bits(), Ordering::Release);
    }

    /// An LPI whose vCPU has LPIs off is pending in the table only. Where memory refuses that, it is lost, as it would be
    /// in hardware.
    pub(super) fn leave_in_table(&self, irq: &Irq, lpi: u32) {
        if !self.options.behaviour.lpis_off_keeps_pending {
            let (was, _) = self.update(irq, lpi, |state| if state.off() { state.with_latch(false) } else { state });
            if was.off() && was.latch() {
                let _refused = self.swap_pending_bit(was.target(), lpi, true);
            }
        }
    }
}
