//! What differs between the architectures on doorbell's own chips.

use std::{sync::Arc, thread::JoinHandle};

use doorbell::{Kick, MsiTarget, PinInput, Pins, delivery::ChipId, manager::IrqManager};

use super::Shared;
use crate::run::{coordinator::Ended, function::Random, ledger::Ledger, plan::Plan};

/// The chips of a machine, and what its guest does with them.
pub trait Platform: Sized + Send + Sync + 'static {
    /// The half of the chips that a vCPU's thread owns.
    type Cpu: Processor;
    /// The chip whose pins the lines are.
    const PINS: ChipId;

    /// The VMM's part: the chips, after reset.
    ///
    /// # Errors
    /// One line.
    fn new(plan: &Plan, ledger: &Arc<Ledger>, kick: Arc<dyn Kick>) -> Result<Self, String>;

    /// Where messages go.
    fn msi(&self) -> Arc<dyn MsiTarget>;

    /// Where lines go.
    fn pins(&self) -> Arc<dyn PinInput>;

    /// The guest's part: its tables, its lines, its vCPUs. MSI-X is not programmed yet.
    ///
    /// # Errors
    /// One line.
    fn boot(shared: &Arc<Shared<Self>>) -> Result<Vec<Self::Cpu>, String>;

    /// What the guest does beside its handlers while the machine runs, until `shared.stop`.
    ///
    /// # Errors
    /// One line.
    fn meanwhile(_shared: &Arc<Shared<Self>>, _seed: u64, _faulty: bool) -> Result<Option<JoinHandle<()>>, String> {
        Ok(None)
    }

    /// The path of the plan's `index`th vector, from its GSI on.
    fn path(&self, plan: &Plan, index: usize) -> String;

    /// Where an interrupt of the plan's `index`th vector stands in the chips, as part of a sentence; empty if that cannot
    /// be told.
    fn standing(&self, _plan: &Plan, _index: usize) -> String {
        String::new()
    }

    /// What is to be said when all threads have gone.
    fn finish(&self, plan: &Plan, irqs: &IrqManager, ended: &mut Ended);
}

/// A vCPU's half of the chips, and what its own driver's code does with them. Interrupts go by what the acknowledge says:
/// an x86 vector, an INTID.
pub trait Processor: Send + 'static {
    /// Which vCPU it is.
    fn vcpu(&self) -> u32;

    /// Takes the most urgent interrupt.
    fn acknowledge(&mut self) -> Option<u32>;

    /// Ends it. Returns the pins whose level interrupt that was.
    fn end(&mut self, arrival: u32) -> Option<Pins>;

    /// Asks to be kicked, and looks: whether there is nothing to take.
    fn arm(&mut self) -> bool;

    /// No kick is needed any more.
    fn disarm(&mut self);

    /// Whether an interrupt is pending here, as far as the vCPU can see: those that others can see are told by
    /// [`Platform::finish`].
    fn holds(&self, _arrival: u32) -> bool {
        false
    }

    /// Whether nothing of an interrupt whose source is masked can come any more, as far as the vCPU can tell.
    fn is_quiet(&self, _arrival: u32) -> bool {
        false
    }

    /// Whether it may arrive at several vCPUs.
    fn is_shared(&self, index: usize) -> bool;

    /// Whether it arrives here by now, so that this vCPU's driver is the one to mask it.
    fn is_here(&self, _index: usize) -> bool {
        true
    }

    /// An interrupt of a vector has come. Returns whether it should have gone to another vCPU.
    fn is_stale(&mut self, _index: usize) -> bool {
        false
    }

    /// The driver has just handled an interrupt of a vector that nobody has masked, and may now give it to another vCPU.
    fn retarget(&mut self, _index: usize, _random: &mut Random) {}
}
