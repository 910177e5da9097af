//! The GIC after reset.

use super::{
    Gic,
    intid::{FIRST_SPI, SGIS},
    irq::{Irq, IrqState},
    registers::distributor::Router,
};
use crate::sync::Ordering;

/// What GICD_IIDR.Revision is at first: KVM's has three of them (C9a).
fn first_revision(identity: super::Identity) -> u32 {
    if identity == super::Identity::Kvm { 3 } else { 0 }
}

impl Gic {
    /// Puts the registers of the distributor and of the redistributors into their state after reset. The lines keep the
    /// levels that devices drive. The CPU interfaces have resets of their own.
    pub fn reset(&self) {
        self.reset_lpis();
        let behaviour = self.options.behaviour;
        // SeqCst: see `groups`.
        self.ctlr.store(0, Ordering::SeqCst);
        // Relaxed: means nothing but itself.
        self.revision.store(first_revision(self.options.identity), Ordering::Relaxed);
        let group1 = behaviour.groups_reset_to_1;
        let mut routers = self.routers.lock();
        for (intid, router) in (FIRST_SPI..).zip(routers.iter_mut()) {
            *router = Router::new();
            if let Some(irq) = self.shared(intid) {
                self.forget(irq, intid, |state| state.with_edge(behaviour.spis_reset_to_edge).with_group1(group1));
            }
            self.follow_router(intid, *router);
        }
        drop(routers);
        for (index, cpu) in (0u16..).zip(&self.cpus) {
            for (intid, irq) in (0u32..).zip(&cpu.private) {
                // C4, C4a.
                let sgi = SGIS.contains(&intid);
                let enabled = sgi && behaviour.sgis_reset_to_enabled;
                self.forget(irq, intid, |state| state.with_edge(sgi).with_group1(group1).with_enabled(enabled));
            }
            self.set_enables(index, |enables| enables.with_awake(behaviour.always_awake));
        }
    }

    /// Resets one interrupt, apart from its line and its target.
    fn forget(&self, irq: &Irq, intid: u32, reset: impl Fn(IrqState) -> IrqState) {
        self.update(irq, intid, |state| {
            let state = state.with_priority(0).with_enabled(false).with_latch(false).with_active(false);
            reset(state)
        });
    }
}
