//! The protocol of an interrupt's word and the queues with a part left out. Each model is run against the part that it is
//! about, and must fail.

use std::sync::Arc;

use super::{Gic, GicOptions};
use crate::{Kick, guest_ram::RamBlock};

/// The part that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cripple {
    /// None.
    Nothing,
    /// Who puts an interrupt into an inbox does not look at it again.
    NoLookAfterPush,
    /// Who moves an interrupt elsewhere does not take it out of the queue that it is in.
    NoRequeue,
    /// Who takes an interrupt out of a queue says so only after giving the lock back.
    UnqueuesWithoutLock,
    /// An acknowledge overwrites what changed since it looked.
    TakesBlindly,
    /// So does who throws out what is not wanted.
    ThrowsOutBlindly,
    /// The vCPU is woken before there is something in its inbox.
    WakesTooEarly,
    /// What changes nothing is not written.
    SkipsWhatIsPending,
    /// The vCPU of a 1-of-N interrupt is chosen before the interrupt is pending.
    ChoosesTooEarly,
    /// A vCPU that stops participating keeps what it was chosen for.
    KeepsWhatItRefuses,
    /// An event looks whether LPIs are on, and is pending then, instead of in one step.
    LooksAtSwitchFirst,
    /// INV overwrites what changed since it looked.
    ConfiguresBlindly,
    /// MAPTI looks at the pending table before it takes the lock.
    LooksAtTableWithoutLock,
}

impl Gic {
    /// A GIC of `vcpus` whose protocol lacks a part.
    pub(super) fn crippled(vcpus: u32, kick: Arc<dyn Kick>, cripple: Cripple) -> Arc<Self> {
        let ram = Arc::new(RamBlock::new(0, 8));
        // As few LPIs as there can be: each execution of a model makes a GIC.
        let options = GicOptions { id_bits: 14, ..GicOptions::new(vcpus) };
        let mut gic = Self::new(options, ram, kick).unwrap();
        Arc::get_mut(&mut gic).unwrap().cripple(cripple);
        gic
    }

    /// Leaves out a part.
    pub(super) fn cripple(&mut self, cripple: Cripple) {
        self.cripple = cripple;
        for cpu in &mut self.cpus {
            cpu.queue.cripple = cripple;
        }
    }
}
