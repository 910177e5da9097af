//! Which vCPU takes an interrupt that any one of them may take: GICD_IROUTER.Interrupt_Routing_Mode, 1 of N (C27).
//!
//! The vCPU is chosen when the interrupt becomes deliverable, in turn among those that participate: that are awake, and
//! have enabled its group in their CPU interface (Arm IHI 0069, "Routing SPIs and LPIs", "The 1 of N model"). While none
//! does, it is in no queue. Whoever changes a vCPU's participation looks afterwards at every such interrupt; whoever makes
//! one deliverable, or puts it into a queue, looks afterwards at the participation. One of the two sees the other, because
//! these accesses are sequentially consistent: none is stuck with a vCPU that will not take it.

use bitfield_struct::bitfield;

use super::{
    Gic,
    gic::Cpu,
    intid::FIRST_SPI,
    irq::{Irq, IrqState, NOBODY},
};
use crate::sync::{Ordering, crippled, load_to_change, seqcst_boundary};

#[cfg(test)]
use super::cripple;

/// What a vCPU is ready to take.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Enables {
    /// ICC_IGRPEN0_EL1.
    pub group0: bool,
    /// ICC_IGRPEN1_EL1.
    pub group1: bool,
    /// GICR_WAKER.ProcessorSleep is clear: the redistributor hands interrupts to the CPU interface.
    pub awake: bool,
    #[bits(29)]
    __: u32,
}

impl Enables {
    /// Bit 0 for Group 0 and bit 1 for Group 1, as in GICD_CTLR: what can be signalled.
    #[inline]
    pub fn groups(self) -> u32 {
        if self.awake() { self.into_bits() & 3 } else { 0 }
    }
}

impl Cpu {
    #[inline]
    pub fn enables(&self) -> Enables {
        // SeqCst: see above.
        Enables::from_bits(self.enables.load(Ordering::SeqCst))
    }
}

impl Gic {
    /// Changes what a vCPU is ready to take. What waits for it is seen when it looks next; it is woken for that.
    pub(super) fn set_enables(&self, index: u16, change: impl Fn(Enables) -> Enables) {
        let Some(cpu) = self.cpus.get(usize::from(index)) else { return };
        // Relaxed: the exchange decides.
        let mut was = Enables::from_bits(load_to_change!(cpu.enables, Ordering::Relaxed));
        loop {
            let next = change(was);
            // SeqCst: see above.
            let (now, to) = (was.into_bits(), next.into_bits());
            match cpu.enables.compare_exchange(now, to, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) if was == next => return,
                Ok(_) => break,
                Err(found) => was = Enables::from_bits(found),
            }
        }
        seqcst_boundary();
        self.wake(index);
        if crippled!(self, KeepsWhatItRefuses) {
            return;
        }
        for (intid, irq) in (FIRST_SPI..).zip(&self.spis) {
            if irq.state().any() {
                self.place(irq, intid);
            }
        }
    }

    /// Puts a 1-of-N interrupt where it belongs, after its state or the participation of some vCPU has changed.
    #[cold]
    pub(super) fn place(&self, irq: &Irq, intid: u32) {
        seqcst_boundary();
        let now = irq.state();
        if !now.queued() {
            self.enqueue(irq, intid);
        } else if now.is_misplaced() || self.is_refused(now) {
            self.requeue(irq, intid, now.holder());
        }
    }

    /// Whether it waits for a vCPU that will not take it, while another might.
    #[inline]
    pub(super) fn is_refused(&self, state: IrqState) -> bool {
        state.any() && !self.takes(state.holder(), state)
    }

    /// The state with the vCPU chosen, if any may take it.
    #[inline]
    pub(super) fn with_choice(&self, state: IrqState) -> IrqState {
        if state.any() { self.choose(state) } else { state }
    }

    #[cold]
    fn choose(&self, state: IrqState) -> IrqState {
        let count = self.cpus.len();
        let first = if state.target() == NOBODY { 0 } else { usize::from(state.target()) + 1 };
        let chosen = (first..first + count).map(|index| (index % count) as u16).find(|&index| self.takes(index, state));
        state.with_target(chosen.unwrap_or(NOBODY))
    }

    fn takes(&self, index: u16, state: IrqState) -> bool {
        let group = 1 << u32::from(state.group1());
        self.cpus.get(usize::from(index)).is_some_and(|cpu| cpu.enables().groups() & group != 0)
    }
}
