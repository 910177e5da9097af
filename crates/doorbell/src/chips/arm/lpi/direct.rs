//! Direct injection: hardware delivers the events of an assigned device to a running vCPU without the host (Arm IHI 0069,
//! "GICv4 and virtual LPIs").
//!
//! What makes hardware do so is the embedder's: on a host it takes a GICv4 and a kernel that owns it. This is the seam:
//! which LPIs are forwarded, and that a pending one is pending in one place (H32). What was seen on a kernel with GICv4.0:
//!
//! | fact | seen |
//! |---|---|
//! | I50 | with an irqfd on the eventfd of a VFIO interrupt, and a route to a mapped event, the device's message reaches the guest while the host's count of that interrupt stands still |
//! | I51 | a saved pending table does not show an LPI that is pending in hardware; the guest still acknowledges it. GICv4.1 can be asked |
//! | I52 | all else that a VMM and its guest can observe of VFIO, irqfd and ITS is the same as without |
//!
//! A command that moves, configures or unmaps a forwarded LPI takes it back into software first, with what was pending, and
//! forwards it again afterwards if it is still mapped. So there are only two transfers, and each happens with the lock held.

use std::sync::Arc;

use super::{Config, LpiSent};
use crate::{
    Error, VcpuId,
    chips::arm::{
        Gic,
        irq::{Irq, IrqState, NOBODY},
    },
};

/// Hardware that takes LPIs. It is called with a lock of the GIC held, and must not call the GIC.
pub trait DirectInjection: Send + Sync {
    /// Delivers this LPI from now on, and makes it pending if its event comes. It is not pending yet. False if it cannot.
    fn map(&self, lpi: DirectLpi) -> bool;

    /// Does not deliver it any more; returns whether it was pending.
    fn unmap(&self, intid: u32) -> bool;

    /// Makes it pending, as its event does: what was pending in software, and the INT command.
    fn pend(&self, intid: u32);

    /// It is not pending any more: the CLEAR command.
    fn clear(&self, intid: u32);

    /// Whether it is pending; `None` if hardware does not tell (GICv4.0, I51).
    fn pending(&self, intid: u32) -> Option<bool>;
}

/// An LPI as hardware must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectLpi {
    /// Its INTID.
    pub intid: u32,
    /// The vCPU that it is for.
    pub vcpu: VcpuId,
    /// Its priority; the low three bits are 0.
    pub priority: u8,
    /// Whether it is enabled in the configuration table.
    pub enabled: bool,
}

/// LPIs that were taken back, to be forwarded again.
type Recalled = Vec<(u32, Arc<dyn DirectInjection>)>;

impl Gic {
    /// Lets hardware deliver an LPI to which an event is mapped. What is pending moves there.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use doorbell::{chips::arm::{DirectInjection, DirectLpi, Gic, GicOptions}, guest_ram::RamBlock};
    /// struct Nothing;
    /// impl DirectInjection for Nothing {
    ///     fn map(&self, _: DirectLpi) -> bool { true }
    ///     fn unmap(&self, _: u32) -> bool { false }
    ///     fn pend(&self, _: u32) {}
    ///     fn clear(&self, _: u32) {}
    ///     fn pending(&self, _: u32) -> Option<bool> { None }
    /// }
    /// let gic = Gic::new(GicOptions::new(1), Arc::new(RamBlock::new(0, 0)), Arc::new(()))?;
    /// assert!(gic.forward_lpi(8192, Arc::new(Nothing)).is_err(), "no event is mapped to it");
    /// # Ok::<(), doorbell::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if no event is mapped to it, or it has no vCPU with LPIs switched on; [`Error::Busy`] if it is
    /// forwarded; [`Error::Unsupported`] if hardware does not take it.
    pub fn forward_lpi(&self, intid: u32, hardware: Arc<dyn DirectInjection>) -> Result<(), Error> {
        let mut config = self.lpis.config.lock();
        if config.forwarded.contains_key(&intid) {
            return Err(Error::Busy("the forwarding of the LPI"));
        }
        let irq = self.lpis.get(intid).filter(|_| config.mapped(intid).is_some_and(|events| *events != 0));
        match irq {
            Some(irq) if Self::can_be_forwarded(irq.state()) => {
                if self.forward(&mut config, intid, irq, hardware) {
                    Ok(())
                } else {
                    Err(Error::Unsupported("the forwarding of this LPI by the hardware"))
                }
            }
            _ => Err(Error::Invalid {
                what: "forwarded LPI",
                value: intid.into(),
                allowed: "one that an event is mapped to, of a vCPU with LPIs switched on",
            }),
        }
    }

    /// Delivers an LPI in software again; what is pending in hardware moves there. False if it was not forwarded.
    pub fn take_back_lpi(&self, intid: u32) -> bool {
        let mut config = self.lpis.config.lock();
        !self.recall(&mut config, |lpi, _| lpi == intid).is_empty()
    }

    fn can_be_forwarded(state: IrqState) -> bool {
        state.home() != NOBODY && state.home() == state.target() && !state.off()
    }

    fn forward(&self, config: &mut Config, lpi: u32, irq: &Irq, hardware: Arc<dyn DirectInjection>) -> bool {
        let state = irq.state();
        let direct = DirectLpi {
            intid: lpi,
            vcpu: VcpuId(state.home().into()),
            priority: state.priority(),
            enabled: state.enabled(),
        };
        if !Self::can_be_forwarded(state) || !hardware.map(direct) {
            return false;
        }
        // One exchange decides which events are still software's; they are in its latch.
        let (was, _) = self.update(irq, lpi, |state| state.with_forwarded(true).with_latch(false));
        if was.latch() {
            hardware.pend(lpi);
        }
        config.forwarded.insert(lpi, hardware);
        true
    }

    /// Takes LPIs back into software.
    pub(super) fn recall(&self, config: &mut Config, which: impl Fn(u32, IrqState) -> bool) -> Recalled {
        let mut recalled = Vec::new();
        config.forwarded.retain(|lpi, hardware| {
            let Some(irq) = self.lpis.get(*lpi).filter(|irq| which(*lpi, irq.state())) else { return true };
            let pending = hardware.unmap(*lpi);
            self.update(irq, *lpi, |state| state.with_forwarded(false).with_latch(state.latch() || pending));
            recalled.push((*lpi, Arc::clone(hardware)));
            false
        });
        recalled
    }

    /// Forwards again what still can be. The others stay in software, where nothing of them is lost.
    pub(super) fn forward_again(&self, config: &mut Config, recalled: Recalled) {
        for (lpi, hardware) in recalled {
            if let Some(irq) = self.lpis.get(lpi).filter(|_| config.mapped(lpi).is_some_and(|events| *events != 0)) {
                self.forward(config, lpi, irq, hardware);
            }
        }
    }

    /// An event of a forwarded LPI that came in software: an INT command, or a message that hardware did not see.
    #[cold]
    pub(super) fn pend_forwarded(&self, lpi: u32) -> LpiSent {
        let config = self.lpis.config.lock();
        let Some(hardware) = config.forwarded.get(&lpi) else {
            drop(config);
            // Taken back meanwhile.
            return self.pend_lpi(lpi);
        };
        let already = hardware.pending(lpi) == Some(true);
        hardware.pend(lpi);
        if already { LpiSent::Already } else { LpiSent::Pended }
    }

    #[cold]
    pub(super) fn clear_forwarded(&self, lpi: u32) {
        let config = self.lpis.config.lock();
        match config.forwarded.get(&lpi) {
            Some(hardware) => hardware.clear(lpi),
            None => {
                drop(config);
                self.clear_lpi(lpi);
            }
        }
    }

    /// Whether an LPI is pending, wherever.
    pub(super) fn is_lpi_pending(&self, config: &Config, lpi: u32, state: IrqState) -> bool {
        let there = config.forwarded.get(&lpi).and_then(|hardware| hardware.pending(lpi));
        state.latch() || there == Some(true)
    }
}
