//! Save and restore of the LPIs.

use super::{
    CHUNK, Config, FIRST_LPI,
    registers::{Control, Pending, Properties},
    unmapped,
};
use crate::{
    Error,
    chips::arm::{
        Gic,
        irq::{NOBODY, PRIORITY},
    },
    sync::Ordering,
};

/// The LPIs, and the redistributors' registers for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LpisState {
    /// For each vCPU.
    pub redistributors: Vec<RedistributorLpisState>,
    /// In the order of their numbers.
    pub lpis: Vec<LpiState>,
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

/// One LPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LpiState {
    /// Its INTID.
    pub intid: u32,
    /// How many events are mapped to it.
    pub events: u32,
    /// Its priority and enable bit, as they were last read.
    pub priority: u8,
    /// See `priority`.
    pub enabled: bool,
    /// Whether it is pending.
    pub pending: bool,
    /// The vCPU that its events are for.
    pub home: Option<u16>,
    /// The vCPU that it is pending on, or would be.
    pub target: Option<u16>,
}

impl Gic {
    pub(crate) fn save_lpis(&self) -> LpisState {
        let mut config = self.lpis.config.lock();
        let redistributors = (0..self.cpus.len() as u16)
            .map(|cpu| RedistributorLpisState {
                enabled: self.lpis_enabled(cpu),
                properties: self.properties_of(cpu).into_bits(),
                pending: self.pending_of(cpu).into_bits(),
            })
            .collect();
        let mut lpis = Vec::new();
        self.each_lpi(&config, |intid, irq| {
            let state = irq.state();
            let named = |cpu| Some(cpu).filter(|cpu| *cpu != NOBODY);
            lpis.push(LpiState {
                intid,
                events: 0,
                priority: state.priority(),
                enabled: state.enabled(),
                pending: state.latch(),
                home: named(state.home()),
                target: named(state.target()),
            });
        });
        for lpi in &mut lpis {
            lpi.events = config.mapped(lpi.intid).map_or(0, |count| *count);
        }
        LpisState { redistributors, lpis }
    }

    /// Whether a state is one of this GIC's.
    ///
    /// # Errors
    /// [`Error::Snapshot`], naming what does not fit.
    pub(crate) fn check_lpis(&self, state: &LpisState) -> Result<(), Error> {
        let LpisState { redistributors, lpis } = state;
        if redistributors.len() != self.cpus.len() {
            let (saved, here) = (redistributors.len(), self.cpus.len());
            return Err(Error::Snapshot(format!("it has {saved} redistributors, and this GIC {here}")));
        }
        let last = 1 << self.options.id_bits;
        let mut next = FIRST_LPI;
        for LpiState { intid, events: _, priority, enabled: _, pending: _, home, target } in lpis {
            if !(next..last).contains(intid) {
                return Err(Error::Snapshot(format!(
                    "LPI {intid} is out of order, or not one of {FIRST_LPI} to {}",
                    last - 1
                )));
            }
            if priority & !PRIORITY != 0 {
                return Err(Error::Snapshot(format!(
                    "LPI {intid} has a priority of {priority:#x}: five bits are kept"
                )));
            }
            let nobody = |cpu: &Option<u16>| cpu.is_some_and(|cpu| usize::from(cpu) >= self.cpus.len());
            if nobody(home) || nobody(target) {
                return Err(Error::Snapshot(format!("LPI {intid} is for a vCPU that there is not")));
            }
            next = intid + 1;
        }
        Ok(())
    }

    /// Makes the LPIs those of `state`. The ITSs and their events are restored apart, and map nothing anew.
    ///
    /// # Errors
    /// As [`check_lpis`](Self::check_lpis); nothing has changed then.
    pub(crate) fn restore_lpis(&self, state: &LpisState) -> Result<(), Error> {
        self.check_lpis(state)?;
        let LpisState { redistributors, lpis } = state;
        let mut config = self.lpis.config.lock();
        self.forget_lpis(&mut config);
        for (redistributor, saved) in self.lpis.redistributors.iter().zip(redistributors) {
            let RedistributorLpisState { enabled, properties, pending } = *saved;
            // Release, as when the guest switches them on. Relaxed for the tables, as everywhere.
            redistributor.control.store(Control::new().with_enable_lpis(enabled).into_bits(), Ordering::Release);
            redistributor.properties.store(properties & Properties::WRITABLE.into_bits(), Ordering::Relaxed);
            redistributor.pending.store(pending & Pending::WRITABLE.into_bits(), Ordering::Relaxed);
        }
        for LpiState { intid, events, priority, enabled, pending, home, target } in lpis {
            let Some(irq) = self.lpis.create(&mut config, *intid) else { continue };
            if let Some(mapped) = config.mapped(*intid) {
                *mapped = *events;
            }
            self.update(irq, *intid, |state| {
                let state = state.with_enabled(*enabled).with_priority(*priority).with_latch(*pending);
                self.placed(state, home.unwrap_or(NOBODY), target.unwrap_or(NOBODY))
            });
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
        for (number, chunk) in self.lpis.chunks.iter().enumerate() {
            config.mapped[number].fill(0);
            for (irq, at) in chunk.get().into_iter().flatten().zip(0..) {
                let lpi = FIRST_LPI + (number * CHUNK + at) as u32;
                self.update(irq, lpi, |state| unmapped().with_queued(state.queued()).with_holder(state.holder()));
            }
        }
    }
}
