//! What the commands of an ITS do to LPIs.

use super::{Config, tables::configured, unmapped};
#[cfg(test)]
use crate::chips::arm::cripple;
use crate::{
    chips::arm::{
        Gic,
        irq::{Irq, IrqState, NOBODY},
    },
    guest_ram::NoMemory,
    sync::crippled,
};

impl Gic {
    /// The index of a vCPU that there is, or [`NOBODY`].
    fn existing(&self, cpu: Option<u16>) -> u16 {
        cpu.filter(|cpu| usize::from(*cpu) < self.cpus.len()).unwrap_or(NOBODY)
    }

    /// A state with these two vCPUs, and what they have to say about it. By who holds the lock.
    pub(super) fn placed(&self, state: IrqState, home: u16, target: u16) -> IrqState {
        let off = |cpu| cpu != NOBODY && !self.lpis_enabled(cpu);
        state.with_home(home).with_home_off(off(home)).with_target(target).with_off(off(target))
    }

    /// MAPTI, MAPI: one more event is mapped to this LPI, and its collection is on `cpu`. Reads its configuration, and takes
    /// over (and clears) its bit in the pending table (I24).
    ///
    /// # Errors
    /// If guest memory refuses either; the LPI is as it was then.
    pub(crate) fn map_lpi(&self, lpi: u32, cpu: Option<u16>) -> Result<(), NoMemory> {
        let cpu = self.existing(cpu);
        let looked =
            crippled!(self, LooksAtTableWithoutLock).then(|| self.entries(lpi).pending(self, cpu, lpi) == Ok(true));
        let mut config = self.lpis.config.lock();
        let recalled = self.recall(&mut config, |it, _| it == lpi);
        let result = self.map(&mut config, lpi, cpu, looked);
        self.forward_again(&mut config, recalled);
        result
    }

    /// `looked`: what a crippled version saw of the pending table too early.
    fn map(&self, config: &mut Config, lpi: u32, cpu: u16, looked: Option<bool>) -> Result<(), NoMemory> {
        let behaviour = &self.options.behaviour;
        let Some(irq) = self.lpis.create(config, lpi) else { return Ok(()) };
        let Some(mapped) = config.mapped(lpi) else { return Ok(()) };
        let known = *mapped != 0 || self.lingers(irq.state());
        if !(known && behaviour.mapped_lpi_stays) {
            // A redistributor with LPIs off reads nothing; it will when they are switched on.
            let reads = behaviour.one_propbaser || cpu != NOBODY && self.lpis_enabled(cpu);
            let configuration = if reads { self.read_configuration(cpu, lpi)? } else { Default::default() };
            let pending = reads && cpu != NOBODY && self.swap_pending_bit(cpu, lpi, false)?;
            let pending = looked.unwrap_or(pending);
            self.update(irq, lpi, |state| {
                // One that was restored, and is mapped again now, stays pending where it was.
                let stays = !known && state.latch() && state.target() != NOBODY;
                let state = self.placed(state, cpu, if stays { state.target() } else { cpu });
                configured(state, configuration).with_latch(state.latch() || pending)
            });
            self.leave_in_table(irq, lpi);
        }
        *mapped = mapped.saturating_add(1);
        Ok(())
    }

    /// MOVI, and MAPC as in KVM: events go to `cpu` from now on, and what is pending moves there, too (I13, H23).
    pub(crate) fn target_lpi(&self, lpi: u32, cpu: Option<u16>) {
        let cpu = self.existing(cpu);
        let mut config = self.lpis.config.lock();
        if let Some(irq) = self.lpis.get(lpi) {
            let recalled = self.recall(&mut config, |it, _| it == lpi);
            self.move_lpi(irq, lpi, cpu);
            self.forward_again(&mut config, recalled);
        }
    }

    /// MAPC: events go to `cpu` from now on; what is pending stays where it is (I19).
    pub(crate) fn rehome_lpi(&self, lpi: u32, cpu: Option<u16>) {
        let cpu = self.existing(cpu);
        let mut config = self.lpis.config.lock();
        let Some(irq) = self.lpis.get(lpi) else { return };
        let recalled = self.recall(&mut config, |it, _| it == lpi);
        self.update(irq, lpi, |state| {
            let target = if state.latch() && state.target() != NOBODY { state.target() } else { cpu };
            self.placed(state, cpu, target)
        });
        self.leave_in_table(irq, lpi);
        self.forward_again(&mut config, recalled);
    }

    /// DISCARD, MAPD: one event less is mapped to this LPI. Drops what is pending (I17), unless `keep_pending`: then an LPI
    /// that waits for its vCPU goes on to do so (I17a, I20a).
    pub(crate) fn unmap_lpi(&self, lpi: u32, keep_pending: bool) {
        let mut config = self.lpis.config.lock();
        let Some(irq) = self.lpis.get(lpi) else { return };
        let recalled = self.recall(&mut config, |it, _| it == lpi);
        let Some(mapped) = config.mapped(lpi) else { return };
        *mapped = mapped.saturating_sub(1);
        if *mapped != 0 {
            if !keep_pending {
                self.update(irq, lpi, |state| state.with_latch(false));
            }
        } else if !(keep_pending && self.waits(irq.state())) {
            self.update(irq, lpi, |state| unmapped().with_queued(state.queued()).with_holder(state.holder()));
        }
        self.forward_again(&mut config, recalled);
    }

    /// Whether an LPI is on its way to a vCPU, as KVM sees it: nothing is while the distributor does not forward Group 1.
    fn waits(&self, state: IrqState) -> bool {
        state.queued() && state.wanted() && self.groups() & 2 != 0
    }

    /// MOVALL: what is pending on `from` is pending on `to` afterwards (I16). `every`: each LPI that waits, or would wait, on
    /// `from` belongs to `to` from now on (I16b).
    pub(crate) fn move_all_lpis(&self, from: u16, to: u16, every: bool) {
        let (from, to) = (self.existing(Some(from)), self.existing(Some(to)));
        if from == NOBODY || to == NOBODY || from == to {
            return;
        }
        let mut config = self.lpis.config.lock();
        let recalled = self.recall(&mut config, |_, state| state.target() == from);
        self.each_lpi(&config, |lpi, irq| {
            if irq.state().target() != from {
            } else if every {
                self.move_lpi(irq, lpi, to);
            } else {
                let moves = |state: IrqState| state.latch() && state.target() == from;
                self.update(irq, lpi, |state| if moves(state) { self.placed(state, state.home(), to) } else { state });
                self.leave_in_table(irq, lpi);
            }
        });
        self.forward_again(&mut config, recalled);
    }

    /// Everything about an LPI moves to another vCPU.
    fn move_lpi(&self, irq: &Irq, lpi: u32, cpu: u16) {
        let (was, next) = self.update(irq, lpi, |state| self.placed(state, cpu, cpu));
        if was.home() == NOBODY && cpu != NOBODY && !next.off() && !self.options.behaviour.lpis_off_keeps_pending {
            // No redistributor could say what its configuration is before.
            self.load(&mut self.entries(lpi), lpi, irq, cpu, true);
        }
        self.leave_in_table(irq, lpi);
    }
}
