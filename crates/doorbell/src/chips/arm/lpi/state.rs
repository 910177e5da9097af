//! Save and restore of the LPIs.

use super::{
    CHUNK, Config, FIRST_LPI,
    registers::{Control, Pending, Properties},
    unmapped,
};
use crate::{
    Error,
    chips::arm::{Gic, irq::NOBODY},
    sync::Ordering,
};

/// What is pending, and the redistributors' registers for LPIs.
///
/// What is mapped is not in here: the ITSs map it again when they are restored, after this, and configurations are read
/// again then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LpisState {
    /// For each vCPU.
    pub redistributors: Vec<RedistributorLpisState>,
    /// In the order of their numbers.
    pub pending: Vec<PendingLpi>,
}

/// A redistributor's registers for LPIs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RedistributorLpisState {
    /// GICR_CTLR.EnableLPIs.
    pub enabled: bool,
    /// GICR_PROPBASER.
    pub properties: u64,
    /// GICR_PENDBASER, with PTZ as it was written.
    pub pending: u64,
}

/// An LPI that is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PendingLpi {
    /// Its INTID.
    pub intid: u32,
    /// The index of the vCPU on which it is pending, if there is one.
    pub vcpu: Option<u16>,
}

impl Gic {
    pub(crate) fn save_lpis(&self) -> LpisState {
        let config = self.lpis.config.lock();
        let redistributors = (0..self.cpus.len() as u16)
            .map(|cpu| RedistributorLpisState {
                enabled: self.lpis_enabled(cpu),
                properties: self.lpis.redistributors[usize::from(cpu)].properties.load(Ordering::Relaxed),
                pending: self.pending_of(cpu).into_bits(),
            })
            .collect();
        let mut pending = Vec::new();
        self.each_lpi(&config, |intid, irq| {
            let state = irq.state();
            if self.is_lpi_pending(&config, intid, state) {
                pending.push(PendingLpi { intid, vcpu: Some(state.target()).filter(|cpu| *cpu != NOBODY) });
            }
        });
        LpisState { redistributors, pending }
    }

    /// Whether a state is one of this GIC's.
    ///
    /// # Errors
    /// [`Error::Snapshot`], naming what does not fit.
    pub(crate) fn check_lpis(&self, state: &LpisState) -> Result<(), Error> {
        let LpisState { redistributors, pending } = state;
        if redistributors.len() != self.cpus.len() {
            let (saved, here) = (redistributors.len(), self.cpus.len());
            return Err(Error::Snapshot(format!("it has {saved} redistributors, and this GIC {here}")));
        }
        let last = (1 << self.options.id_bits) - 1;
        let mut first = FIRST_LPI;
        for PendingLpi { intid, vcpu } in pending {
            if !(first..=last).contains(intid) {
                let text = format!("LPI {intid} is out of order, or not one of {FIRST_LPI} to {last}");
                return Err(Error::Snapshot(text));
            }
            if vcpu.is_some_and(|vcpu| usize::from(vcpu) >= self.cpus.len()) {
                return Err(Error::Snapshot(format!("LPI {intid} is pending on a vCPU that there is not")));
            }
            first = intid + 1;
        }
        Ok(())
    }

    /// Takes over a saved state; no event is mapped to any LPI afterwards.
    ///
    /// # Errors
    /// As [`check_lpis`](Self::check_lpis); nothing has changed then.
    pub(crate) fn restore_lpis(&self, state: &LpisState) -> Result<(), Error> {
        self.check_lpis(state)?;
        let LpisState { redistributors, pending } = state;
        let mut config = self.lpis.config.lock();
        self.forget_lpis(&mut config);
        for (redistributor, saved) in self.lpis.redistributors.iter().zip(redistributors) {
            let RedistributorLpisState { enabled, properties, pending } = *saved;
            // Release, as when the guest switches them on. Relaxed for the tables, as everywhere.
            redistributor.control.store(Control::new().with_enable_lpis(enabled).into_bits(), Ordering::Release);
            redistributor.properties.store(properties & Properties::WRITABLE.into_bits(), Ordering::Relaxed);
            redistributor.pending.store(pending & Pending::WRITABLE.into_bits(), Ordering::Relaxed);
        }
        for PendingLpi { intid, vcpu } in pending {
            if let Some(irq) = self.lpis.create(&mut config, *intid) {
                let target = vcpu.unwrap_or(NOBODY);
                self.update(irq, *intid, |state| self.placed(state, NOBODY, target).with_latch(true));
            }
        }
        Ok(())
    }

    /// After reset: no event is mapped to any LPI, none is pending, and all redistributors have them off.
    pub(crate) fn reset_lpis(&self) {
        let mut config = self.lpis.config.lock();
        self.forget_lpis(&mut config);
        self.lpis.redistributors.iter().for_each(|redistributor| redistributor.reset(&self.options));
    }

    fn forget_lpis(&self, config: &mut Config) {
        self.recall(config, |_, _| true);
        for (number, chunk) in self.lpis.chunks.iter().enumerate() {
            config.mapped[number].fill(0);
            for (irq, at) in chunk.get().into_iter().flatten().zip(0..) {
                let lpi = FIRST_LPI + (number * CHUNK + at) as u32;
                self.update(irq, lpi, |state| unmapped().with_queued(state.queued()).with_holder(state.holder()));
            }
        }
    }
}
