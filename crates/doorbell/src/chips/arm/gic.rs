//! What all threads share of a GIC.

use std::sync::Arc;

use super::{
    Affinity, GicOptions,
    intid::{FIRST_LPI, FIRST_SPI, LAST_SPI, PRIVATE, SPIS},
    irq::{Irq, IrqState, NOBODY},
    lpi::Lpis,
    queue::{Irqs, Queue},
    registers::distributor::Router,
};
use crate::{
    Error, Kick, VcpuId,
    guest_ram::GuestRam,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering, crippled},
};

#[cfg(test)]
use super::cripple;

/// A GICv3 with one Security state: distributor, redistributors, and the shared halves of the CPU interfaces.
///
/// Everything here may be called from any thread. A vCPU's own half is its `CpuInterface`.
pub struct Gic {
    pub(super) options: GicOptions,
    pub(super) kick: Arc<dyn Kick>,
    /// Where the tables of LPIs are.
    pub(super) ram: Arc<dyn GuestRam>,
    /// The groups that GICD_CTLR forwards, in the place of its enables. A change wakes every vCPU for which something waits.
    pub(super) ctlr: AtomicU32,
    /// SPI n is at n - 32; a few more than `intids`, so that none is looked for in vain.
    pub(super) spis: Box<[Irq]>,
    /// GICD_IROUTER of each SPI, as the guest reads it: a name that no vCPU has must not be lost. Lock order: before any queue.
    pub(super) routers: Mutex<Box<[Router]>>,
    /// The sources that drive the line of each SPI.
    pub(super) lines: Box<[AtomicU64]>,
    /// GICD_IIDR.Revision.
    pub(super) revision: AtomicU32,
    pub(super) cpus: Box<[Cpu]>,
    pub(super) lpis: Lpis,
    /// The affinities, sorted, with the index of the vCPU of each.
    pub(super) names: Box<[(Affinity, u16)]>,
    /// What is left out of the protocol, to see that the tests notice.
    #[cfg(test)]
    pub(super) cripple: cripple::Cripple,
}

/// How many interrupts of one kind there are: a model has no more than it looks at.
const SPIS_KEPT: usize = if cfg!(loom) { 2 } else { SPIS as usize };
const PRIVATE_KEPT: usize = if cfg!(loom) { 2 } else { PRIVATE as usize };

/// One vCPU as the others see it.
pub(super) struct Cpu {
    pub affinity: Affinity,
    /// SGIs and PPIs.
    pub private: [Irq; PRIVATE_KEPT],
    pub queue: Queue,
    /// An [`Enables`](super::participation::Enables).
    pub enables: AtomicU32,
    /// 1 if GICR_TYPER.Last says so.
    pub last: AtomicU32,
    /// 1 while the private half is in use.
    pub taken: AtomicU32,
}

/// The interrupts as one vCPU numbers them.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub gic: &'a Gic,
    pub cpu: &'a Cpu,
}

impl Irqs for View<'_> {
    #[inline]
    fn irq(&self, intid: u32) -> Option<&Irq> {
        if intid < PRIVATE { self.cpu.private.get(intid as usize) } else { self.gic.shared(intid) }
    }
}

impl std::fmt::Debug for Gic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gic").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Gic {
    /// A GIC after reset. `ram` is the guest's memory, where it keeps the tables of its LPIs; `kick` wakes vCPUs.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option that is out of range.
    pub fn new(options: GicOptions, ram: Arc<dyn GuestRam>, kick: Arc<dyn Kick>) -> Result<Arc<Self>, Error> {
        options.check()?;
        let mut names: Box<[_]> = options.affinities.iter().copied().zip(0u16..).collect();
        names.sort_unstable();
        let spis = usize::from(options.intids.saturating_sub(FIRST_SPI as u16)).min(SPIS_KEPT);
        let cpus = options.affinities.iter().copied().zip(0u16..).map(|(name, index)| Cpu::new(name, index)).collect();
        let gic = Self {
            kick,
            ram,
            ctlr: AtomicU32::new(0),
            spis: (0..spis).map(|_| Irq::new(IrqState::new().with_target(NOBODY))).collect(),
            routers: Mutex::new(vec![Router::new(); spis].into()),
            lines: (0..spis).map(|_| AtomicU64::new(0)).collect(),
            revision: AtomicU32::new(0),
            cpus,
            lpis: Lpis::new(&options),
            names,
            options,
            #[cfg(test)]
            cripple: cripple::Cripple::Nothing,
        };
        gic.set_last_of_region(VcpuId(gic.vcpus() - 1), true);
        gic.reset();
        Ok(Arc::new(gic))
    }

    /// How it was built.
    pub fn options(&self) -> &GicOptions {
        &self.options
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// The index of the vCPU with this affinity.
    pub(super) fn named(&self, name: Affinity) -> Option<u16> {
        self.names.binary_search_by_key(&name, |entry| entry.0).ok().map(|at| self.names[at].1)
    }

    /// An interrupt that no vCPU owns: an SPI or an LPI.
    #[inline]
    pub(super) fn shared(&self, intid: u32) -> Option<&Irq> {
        match intid {
            FIRST_SPI..=LAST_SPI => self.spis.get((intid - FIRST_SPI) as usize),
            FIRST_LPI.. => self.lpis.get(intid),
            _ => None,
        }
    }

    /// An interrupt as the vCPU with this index numbers it.
    #[inline]
    pub(super) fn irq(&self, cpu: u16, intid: u32) -> Option<&Irq> {
        if intid < PRIVATE { self.cpus.get(usize::from(cpu))?.private.get(intid as usize) } else { self.shared(intid) }
    }

    /// Whether there is an interrupt with this number, for some vCPU.
    #[inline]
    pub(super) fn has_intid(&self, intid: u32) -> bool {
        intid < u32::from(self.options.intids) || intid >= FIRST_LPI && intid >> self.options.id_bits == 0
    }

    /// Changes an interrupt in one step, and does what follows: it gets into the queue of its vCPU if it is wanted now,
    /// out of a queue in which it does not belong any more, and its vCPU is woken. Returns the states before and after.
    ///
    /// `change` is called again if somebody else was faster. It leaves `queued` and `holder` alone.
    #[inline]
    pub(super) fn update(&self, irq: &Irq, intid: u32, change: impl Fn(IrqState) -> IrqState) -> (IrqState, IrqState) {
        let mut was = irq.state_to_change();
        loop {
            let mut next = change(was);
            if crippled!(self, SkipsWhatIsPending) && next == was {
                return (was, next);
            }
            if crippled!(self, ChoosesTooEarly) && !next.queued() {
                next = self.with_choice(next);
            }
            let push = next.wanted() && !next.queued() && (!next.any() || crippled!(self, ChoosesTooEarly));
            if push {
                next = next.with_queued(true).with_holder(next.target());
            }
            match irq.exchange(was, next) {
                Ok(()) => {
                    if push {
                        self.push(irq, intid, next.target());
                    } else if was.is_displaced_by(next) && !crippled!(self, NoRequeue) {
                        self.requeue(irq, intid, next.holder());
                    } else if next.any() && !crippled!(self, ChoosesTooEarly) {
                        self.place(irq, intid);
                    }
                    // One that stood in the way of others, which its vCPU would have taken before it slept.
                    if was.queued() && was.wanted() && !(next.wanted() && next.holder() == next.target()) {
                        self.wake(was.holder());
                    }
                    return (was, next);
                }
                Err(found) => was = found,
            }
        }
    }

    /// Puts an interrupt, whose `queued` the caller has just set, into the queue of its holder.
    #[inline]
    fn push(&self, irq: &Irq, intid: u32, mut holder: u16) {
        while let Some(cpu) = self.cpus.get(usize::from(holder)) {
            if crippled!(self, WakesTooEarly) {
                self.wake(holder);
            }
            cpu.queue.push(intid, irq);
            // Who moved it while it was on the way did not find it.
            let now = irq.state();
            let astray = !crippled!(self, NoLookAfterPush)
                && now.wanted()
                && (!now.queued() || now.is_misplaced() || self.is_refused(now));
            if !crippled!(self, WakesTooEarly) {
                self.wake(holder);
            }
            if !astray {
                return;
            }
            match self.relocate(irq, holder) {
                Some(next) => holder = next,
                None => return,
            }
        }
    }

    /// Moves an interrupt, which `holder` had when it was looked at, to where it belongs by now.
    #[cold]
    pub(super) fn requeue(&self, irq: &Irq, intid: u32, holder: u16) {
        if let Some(next) = self.relocate(irq, holder) {
            self.push(irq, intid, next);
        }
    }

    /// Puts an interrupt into a queue, if it is wanted and in none.
    pub(super) fn enqueue(&self, irq: &Irq, intid: u32) {
        if let Some(holder) = self.claim(irq) {
            self.push(irq, intid, holder);
        }
    }

    /// Takes an interrupt out of the queue of `holder` if it is there, and returns whose queue it must be pushed into. `None`
    /// if it is not wanted, or is in somebody else's hands: who pushes it looks again afterwards.
    #[cold]
    fn relocate(&self, irq: &Irq, holder: u16) -> Option<u16> {
        let cpu = self.cpus.get(usize::from(holder))?;
        cpu.queue.remove(&View { gic: self, cpu }, irq);
        self.claim(irq)
    }

    /// Marks an interrupt as queued, if it is wanted and is not: the caller must push it.
    fn claim(&self, irq: &Irq) -> Option<u16> {
        let mut was = irq.state_to_change();
        loop {
            if was.queued() {
                return None;
            }
            let next = self.with_choice(was);
            if !next.wanted() {
                return None;
            }
            match irq.exchange(was, next.with_queued(true).with_holder(next.target())) {
                Ok(()) => return Some(next.target()),
                Err(found) => was = found,
            }
        }
    }

    /// Wakes a vCPU that has asked for it.
    #[inline]
    pub(super) fn wake(&self, cpu: u16) {
        if self.cpus.get(usize::from(cpu)).is_some_and(|cpu| cpu.queue.take_arming()) {
            self.kick.kick(VcpuId(cpu.into()));
        }
    }

    /// Wakes every vCPU that has asked for it: something changed that all of them look at.
    pub(super) fn wake_all(&self) {
        (0..self.cpus.len()).for_each(|cpu| self.wake(cpu as u16));
    }

    /// The group enables of GICD_CTLR: bit 0 for Group 0, bit 1 for Group 1.
    #[inline]
    pub(super) fn groups(&self) -> u32 {
        // SeqCst: whoever changes it wakes every armed vCPU afterwards; a vCPU arms first and then looks.
        self.ctlr.load(Ordering::SeqCst) & 3
    }
}

impl Cpu {
    fn new(affinity: Affinity, index: u16) -> Self {
        Self {
            affinity,
            // Interrupts of a vCPU are its own for ever.
            private: std::array::from_fn(|_| Irq::new(IrqState::new().with_target(index))),
            queue: Queue::new(index),
            enables: AtomicU32::new(0),
            last: AtomicU32::new(0),
            taken: AtomicU32::new(0),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{chips::arm::queue::Candidate, guest_ram::RamBlock};
    use parking_lot::Mutex;

    fn gic(vcpus: u32) -> (Arc<Gic>, Arc<Mutex<Vec<u32>>>) {
        let kicks = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&kicks);
        let kick = move |vcpu: VcpuId| told.lock().push(vcpu.0);
        let ram = Arc::new(RamBlock::new(0, 0x1000));
        (Gic::new(GicOptions::new(vcpus), ram, Arc::new(kick)).unwrap(), kicks)
    }

    fn set(gic: &Gic, intid: u32, change: impl Fn(IrqState) -> IrqState) {
        gic.update(gic.shared(intid).unwrap(), intid, change);
    }

    fn enable(gic: &Gic, intid: u32, priority: u8, target: u16) {
        set(gic, intid, |state| {
            state.with_enabled(true).with_group1(true).with_edge(true).with_priority(priority).with_target(target)
        });
    }

    fn take(gic: &Gic, cpu: u16) -> Option<u32> {
        let cpu = &gic.cpus[usize::from(cpu)];
        let irqs = View { gic, cpu };
        let state = |candidate: &Candidate| candidate.state.wanted();
        cpu.queue.take(&irqs, |_| true, state).map(|it| it.intid)
    }

    #[test]
    fn the_most_urgent_comes_first_and_equals_by_their_number() {
        let (gic, _) = gic(1);
        for (intid, priority) in [(40, 0xa0), (36, 0xa0), (50, 0x80), (38, 0xa0), (33, 0xf8)] {
            enable(&gic, intid, priority, 0);
            set(&gic, intid, |state| state.with_latch(true));
        }
        let order: Vec<_> = std::iter::from_fn(|| take(&gic, 0)).collect();
        assert_eq!(order, [50, 36, 38, 40, 33], "C20");
    }

    #[test]
    fn what_is_disabled_meanwhile_is_not_taken_and_comes_back_when_enabled() {
        let (gic, _) = gic(1);
        enable(&gic, 40, 0xa0, 0);
        set(&gic, 40, |state| state.with_latch(true));
        set(&gic, 40, |state| state.with_enabled(false));
        assert_eq!(take(&gic, 0), None);
        set(&gic, 40, |state| state.with_enabled(true));
        assert_eq!(take(&gic, 0), Some(40), "C11");
        assert_eq!(take(&gic, 0), None);
    }

    #[test]
    fn a_pending_interrupt_moves_to_its_new_vcpu_at_once() {
        let (gic, kicks) = gic(2);
        enable(&gic, 40, 0xa0, 0);
        set(&gic, 40, |state| state.with_latch(true));
        gic.cpus[1].queue.arm();
        set(&gic, 40, |state| state.with_target(1));
        assert_eq!(*kicks.lock(), [1], "H23: woken there");
        assert_eq!(take(&gic, 0), None);
        assert_eq!(take(&gic, 1), Some(40), "C26");
        set(&gic, 40, |state| state.with_active(false));
        assert_eq!(take(&gic, 1), None, "once");
    }

    #[test]
    fn a_new_priority_counts_for_what_waits_already() {
        let (gic, _) = gic(1);
        for intid in [40, 41] {
            enable(&gic, intid, 0xa0, 0);
            set(&gic, intid, |state| state.with_latch(true));
        }
        // Filed by now.
        let cpu = &gic.cpus[0];
        assert_eq!(cpu.queue.peek(&View { gic: &gic, cpu }, |_| true).map(|it| it.intid), Some(40));
        set(&gic, 41, |state| state.with_priority(0x20));
        assert_eq!([take(&gic, 0), take(&gic, 0), take(&gic, 0)], [Some(41), Some(40), None]);
    }

    #[test]
    fn a_vcpu_is_woken_once_and_only_if_it_asked() {
        let (gic, kicks) = gic(1);
        enable(&gic, 40, 0xa0, 0);
        enable(&gic, 41, 0xa0, 0);
        set(&gic, 40, |state| state.with_latch(true));
        assert!(kicks.lock().is_empty());
        gic.cpus[0].queue.arm();
        set(&gic, 41, |state| state.with_latch(true));
        set(&gic, 40, |state| state.with_enabled(false));
        set(&gic, 40, |state| state.with_enabled(true));
        assert_eq!(*kicks.lock(), [0]);
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let ram = || Arc::new(RamBlock::new(0, 0x1000));
        let new = |change: fn(&mut GicOptions)| {
            let mut options = GicOptions::new(2);
            change(&mut options);
            Gic::new(options, ram(), Arc::new(())).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(new(|_| ()), Ok(()));
        assert_eq!(new(|it| it.intids = 1020), Ok(()));
        assert!(new(|it| it.intids = 1000).unwrap_err().contains("0x3e8 is not allowed"));
        assert!(new(|it| it.id_bits = 13).unwrap_err().contains("14 to 20"));
        assert!(new(|it| it.affinities.clear()).unwrap_err().contains("1 to 512"));
        assert!(new(|it| it.affinities[1] = it.affinities[0]).unwrap_err().contains("every affinity once"));
        assert!(Gic::new(GicOptions::new(513), ram(), Arc::new(())).is_err());
    }
}
