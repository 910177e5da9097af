//! The GIC after reset, and its save and restore.

use super::{
    Gic, Identity, LpisState,
    gic::Cpu,
    intid::{FIRST_SPI, PPIS, PRIVATE, SGIS},
    irq::{Irq, IrqState, PRIORITY},
    registers::distributor::Router,
};
use crate::{Error, sync::Ordering};

/// Everything that the shared half of a GIC remembers, to be restored into one with the same options. The CPU interfaces
/// and the ITSs have states of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GicState {
    /// The groups that GICD_CTLR forwards: Group 0 in bit 0, Group 1 in bit 1.
    pub groups: u8,
    /// GICD_IIDR.Revision.
    pub revision: u8,
    /// The SPIs, from INTID 32 on.
    pub spis: Vec<SpiState>,
    /// The redistributors, in the order of their vCPUs.
    pub redistributors: Vec<RedistributorState>,
    /// The LPIs.
    pub lpis: LpisState,
}

/// One SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpiState {
    /// What every interrupt has.
    pub interrupt: InterruptState,
    /// GICD_IROUTER.
    pub router: u64,
    /// The sources that drive its line, a bit each; 0 in KVM's way, where a line is one wire.
    pub sources: u64,
}

/// What belongs to one vCPU, apart from its LPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RedistributorState {
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// The SGIs and the PPIs.
    pub private: [InterruptState; PRIVATE as usize],
}

/// What an SGI, a PPI or an SPI remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InterruptState {
    /// Five bits of it exist.
    pub priority: u8,
    /// ISENABLER.
    pub enabled: bool,
    /// Pending by an edge or by software.
    pub latched: bool,
    /// The level of its line.
    pub line: bool,
    /// ISACTIVER.
    pub active: bool,
    /// Edge-triggered.
    pub edge: bool,
    /// Group 1.
    pub group1: bool,
}

impl InterruptState {
    fn of(state: IrqState) -> Self {
        Self {
            priority: state.priority(),
            enabled: state.enabled(),
            latched: state.latch(),
            line: state.line(),
            active: state.active(),
            edge: state.edge(),
            group1: state.group1(),
        }
    }

    /// The same interrupt in this state, still where it was.
    fn apply(self, state: IrqState) -> IrqState {
        let Self { priority, enabled, latched, line, active, edge, group1 } = self;
        let state = state.with_priority(priority).with_enabled(enabled).with_latch(latched).with_line(line);
        state.with_active(active).with_edge(edge).with_group1(group1)
    }
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
        self.revision.store(first_revision(self.options.identity).into(), Ordering::Relaxed);
        let reset = InterruptState { group1: behaviour.groups_reset_to_1, ..InterruptState::default() };
        let mut routers = self.routers.lock();
        for ((intid, irq), router) in (FIRST_SPI..).zip(&self.spis).zip(routers.iter_mut()) {
            *router = Router::new();
            self.put(irq, intid, InterruptState { edge: behaviour.spis_reset_to_edge, ..reset });
            self.follow_router(intid, *router);
        }
        drop(routers);
        for (index, cpu) in (0u16..).zip(&self.cpus) {
            for (intid, irq) in (0u32..).zip(&cpu.private) {
                // C4, C4a.
                let sgi = SGIS.contains(&intid);
                self.put(
                    irq,
                    intid,
                    InterruptState { edge: sgi, enabled: sgi && behaviour.sgis_reset_to_enabled, ..reset },
                );
            }
            self.set_enables(index, |enables| enables.with_awake(behaviour.always_awake));
        }
    }

    /// Puts an interrupt into a state, apart from its line.
    fn put(&self, irq: &Irq, intid: u32, to: InterruptState) {
        self.update(irq, intid, |state| InterruptState { line: state.line(), ..to }.apply(state));
    }

    /// Everything, for [`restore`](Self::restore). The devices must be quiet and the vCPUs stopped.
    pub fn save(&self) -> GicState {
        let Self {
            options: _,
            kick: _,
            ram: _,
            ctlr,
            spis,
            routers,
            lines,
            revision,
            cpus,
            // Saved by its own code.
            lpis: _,
            names: _,
            #[cfg(test)]
                cripple: _,
        } = self;
        // Relaxed, here and below: nobody else changes anything.
        GicState {
            groups: ctlr.load(Ordering::Relaxed) as u8,
            revision: revision.load(Ordering::Relaxed) as u8,
            spis: spis
                .iter()
                .zip(routers.lock().iter())
                .zip(lines)
                .map(|((irq, router), sources)| SpiState {
                    interrupt: InterruptState::of(irq.state()),
                    router: router.into_bits(),
                    sources: sources.load(Ordering::Relaxed),
                })
                .collect(),
            redistributors: cpus.iter().map(RedistributorState::of).collect(),
            lpis: self.save_lpis(),
        }
    }

    /// Takes over a saved state, and delivers what is pending in it. The vCPUs must be stopped; their CPU interfaces are
    /// restored afterwards, and the ITSs, too.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no GIC with these options can be in that state; nothing is changed then.
    pub fn restore(&self, state: &GicState) -> Result<(), Error> {
        self.check(state).map_err(Error::Snapshot)?;
        self.check_lpis(&state.lpis)?;
        let GicState { groups, revision, spis, redistributors, lpis } = state;
        // SeqCst: see `groups`.
        self.ctlr.store((*groups).into(), Ordering::SeqCst);
        // Relaxed, here and below: the vCPUs and the devices begin later.
        self.revision.store((*revision).into(), Ordering::Relaxed);
        let mut routers = self.routers.lock();
        for (pin, (saved, router)) in spis.iter().zip(routers.iter_mut()).enumerate() {
            let SpiState { interrupt, router: bits, sources } = *saved;
            let intid = FIRST_SPI + pin as u32;
            *router = Router::from_bits(bits);
            self.lines[pin].store(sources, Ordering::Relaxed);
            self.update(&self.spis[pin], intid, |state| interrupt.apply(state));
            self.follow_router(intid, *router);
        }
        drop(routers);
        for ((index, cpu), saved) in (0u16..).zip(&self.cpus).zip(redistributors) {
            let RedistributorState { asleep, private } = saved;
            for ((intid, irq), interrupt) in (0u32..).zip(&cpu.private).zip(private) {
                self.update(irq, intid, |state| interrupt.apply(state));
            }
            self.set_enables(index, |enables| enables.with_awake(!asleep));
        }
        self.restore_lpis(lpis)?;
        self.wake_all();
        Ok(())
    }

    /// What is wrong with a state, if no GIC like this one can be in it.
    fn check(&self, state: &GicState) -> Result<(), String> {
        let GicState { groups, revision, spis, redistributors, lpis: _ } = state;
        let behaviour = self.options.behaviour;
        if *groups > 3 || behaviour.one_group_enable && !matches!(groups, 0 | 3) {
            return Err(format!("GICD_CTLR: groups {groups:#x} cannot be forwarded"));
        }
        if !revisions(self.options.identity).contains(revision) {
            return Err(format!("GICD_IIDR: there is no revision {revision}"));
        }
        if (spis.len(), redistributors.len()) != (self.spis.len(), self.cpus.len()) {
            let (saved, own) = ((spis.len(), redistributors.len()), (self.spis.len(), self.cpus.len()));
            return Err(format!("{} SPIs and {} vCPUs, but this GIC has {} and {}", saved.0, saved.1, own.0, own.1));
        }
        for (intid, spi) in (FIRST_SPI..).zip(spis) {
            spi.check(intid, self)?;
        }
        for (index, redistributor) in redistributors.iter().enumerate() {
            redistributor.check(self).map_err(|what| format!("vCPU {index}: {what}"))?;
        }
        Ok(())
    }
}

impl SpiState {
    fn check(&self, intid: u32, gic: &Gic) -> Result<(), String> {
        let Self { interrupt, router, sources } = *self;
        let behaviour = gic.options.behaviour;
        let writable = Router::writable(behaviour.short_router);
        if router & !writable != 0 {
            return Err(format!("GICD_IROUTER of SPI {intid} is {router:#x}: only {writable:#x} can be set"));
        }
        let fits = if behaviour.one_wire { sources == 0 } else { interrupt.line == (sources != 0) };
        if !fits {
            return Err(format!("the line of SPI {intid} and its sources {sources:#x} contradict each other"));
        }
        interrupt.check(intid)
    }
}

impl RedistributorState {
    fn of(cpu: &Cpu) -> Self {
        let Cpu {
            affinity: _,
            private,
            queue: _,
            // The group enables in it are the CPU interface's.
            enables: _,
            // Where the frames are is the VMM's to say.
            last: _,
            taken: _,
        } = cpu;
        Self {
            asleep: !cpu.enables().awake(),
            private: std::array::from_fn(|intid| {
                private.get(intid).map_or(InterruptState::default(), |irq| InterruptState::of(irq.state()))
            }),
        }
    }

    fn check(&self, gic: &Gic) -> Result<(), String> {
        let Self { asleep, private } = self;
        let behaviour = gic.options.behaviour;
        if *asleep && behaviour.always_awake {
            return Err("it sleeps, and is always awake".into());
        }
        for (intid, interrupt) in (0u32..).zip(private) {
            let trigger = if SGIS.contains(&intid) {
                interrupt.edge && !interrupt.line
            } else {
                PPIS.contains(&intid) && !(behaviour.ppis_keep_trigger && interrupt.edge)
            };
            if !trigger {
                return Err(format!("INTID {intid} has a trigger or a line that it cannot have"));
            }
            interrupt.check(intid)?;
        }
        Ok(())
    }
}

impl InterruptState {
    fn check(self, intid: u32) -> Result<(), String> {
        if self.priority & !PRIORITY != 0 {
            return Err(format!("the priority of INTID {intid} is {:#x}: its low bits do not exist", self.priority));
        }
        Ok(())
    }
}

/// What GICD_IIDR.Revision is at first: KVM's has three of them (C9a).
fn first_revision(identity: Identity) -> u8 {
    *revisions(identity).end()
}

/// What a VMM can make of it.
pub(super) fn revisions(identity: Identity) -> std::ops::RangeInclusive<u8> {
    match identity {
        Identity::Kvm => 2..=3,
        Identity::Doorbell | Identity::Qemu => 0..=0,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
