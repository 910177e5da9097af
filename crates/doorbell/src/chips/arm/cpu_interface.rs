//! The CPU interface by system registers (Arm IHI 0069, "AArch64 System register descriptions").
//!
//! A vCPU's thread owns its interface; what others must see of it is in [`Gic`]. A trapped MRS or MSR becomes
//! [`read`](CpuInterface::read) or [`write`](CpuInterface::write); an emulator that knows what it wants calls
//! [`acknowledge`](CpuInterface::acknowledge) and its neighbours.
//!
//! Where the specification leaves a choice:
//!
//! * the highest priority pending interrupt is looked for among the groups that are enabled, in GICD_CTLR and here: what
//!   waits in a disabled group hides nothing;
//! * it is reported by ICC_HPPIR whatever the priority mask and the running priority are (C23);
//! * an end of interrupt drops the highest active priority, whatever INTID it names (C19). If that belongs to the other
//!   group, or none is active, the write does nothing;
//! * the registers of active priorities that 5 bits do not need are read as zero.

#[cfg(all(test, not(loom)))]
mod machine;
pub mod registers;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;

use self::registers::{
    IDLE_PRIORITY, IccBpr, IccCtlr, IccIgrpen, IccIntid, IccPmr, IccRegister, IccSgi, IccSre, PRIORITY_BITS,
    PRIORITY_MASK,
};
pub use self::state::CpuInterfaceState;
use super::{
    Gic, Identity,
    gic::{Cpu, View},
    intid::{FIRST_LPI, SPURIOUS, pin_of},
    queue::{Candidate, Lane},
    sgi::SgiRequest,
};
use crate::{VcpuId, sync::Ordering};

/// An interrupt group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Signalled as FIQ.
    Zero,
    /// Signalled as IRQ.
    One,
}

impl Group {
    fn of(lane: Lane) -> Self {
        if lane == Lane::Group0 { Self::Zero } else { Self::One }
    }
}

/// What the CPU interface signals to its CPU: at most one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// A Group 1 interrupt can be acknowledged.
    pub irq: bool,
    /// A Group 0 interrupt can be acknowledged.
    pub fiq: bool,
}

impl Lines {
    /// Neither.
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

/// An interrupt that was active and is not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub intid: u32,
    /// The pin of a level-sensitive SPI, for [`IrqManager::end`](crate::manager::IrqManager::end): what resamples it wants to know.
    pub pin: Option<u16>,
}

/// A vCPU's own half of the GIC. Only its thread has it; dropping it resets it, and the vCPU takes nothing until there is
/// another.
///
/// ```
/// use std::sync::Arc;
/// use doorbell::{VcpuId, guest_ram::RamBlock};
/// use doorbell::chips::arm::{Gic, GicOptions, IccRegister};
///
/// let gic = Gic::new(GicOptions::new(2), Arc::new(RamBlock::new(0, 0x1000)), Arc::new(()))?;
/// let mut cpu = gic.cpu_interface(VcpuId(0)).unwrap();
/// assert!(gic.cpu_interface(VcpuId(0)).is_none(), "there is one");
/// cpu.write(IccRegister::Pmr, 0xff);
/// assert_eq!(cpu.read(IccRegister::Pmr), 0xf8, "five bits");
/// assert_eq!(cpu.read(IccRegister::Iar1), 1023, "nothing to acknowledge");
/// # Ok::<_, doorbell::Error>(())
/// ```
#[derive(Debug)]
pub struct CpuInterface {
    gic: Arc<Gic>,
    index: u16,
    /// ICC_PMR_EL1.
    priority_mask: u8,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1.
    binary_points: [u8; 2],
    /// The bits of ICC_CTLR_EL1 that can be written.
    control: IccCtlr,
    /// ICC_AP0R0_EL1 and ICC_AP1R0_EL1.
    active: [u32; 2],
}

impl Gic {
    /// The private half of a vCPU's GIC, after reset. `None` if there is no such vCPU, or somebody has it.
    pub fn cpu_interface(self: &Arc<Self>, vcpu: VcpuId) -> Option<CpuInterface> {
        let cpu = self.cpus.get(vcpu.0 as usize)?;
        // Acquire: pairs with the Release of who gave it back.
        if cpu.taken.swap(1, Ordering::Acquire) != 0 {
            return None;
        }
        let gic = Arc::clone(self);
        Some(CpuInterface {
            gic,
            index: vcpu.0 as u16,
            priority_mask: 0,
            binary_points: RESET_BINARY_POINTS,
            control: IccCtlr::new(),
            active: [0; 2],
        })
    }
}

const RESET_BINARY_POINTS: [u8; 2] = [IccBpr::LEAST_0, IccBpr::LEAST_1];

impl Drop for CpuInterface {
    fn drop(&mut self) {
        self.reset();
        self.cpu().queue.disarm();
        // Release: pairs with the Acquire of who takes it next.
        self.cpu().taken.store(0, Ordering::Release);
    }
}

impl CpuInterface {
    /// The vCPU that this is the interface of.
    pub fn vcpu(&self) -> VcpuId {
        VcpuId(self.index.into())
    }

    /// The GIC that it belongs to.
    pub fn gic(&self) -> &Arc<Gic> {
        &self.gic
    }

    #[inline]
    fn cpu(&self) -> &Cpu {
        &self.gic.cpus[usize::from(self.index)]
    }

    /// What the registers are after reset. What is pending or active in the distributor and the redistributor stays.
    pub fn reset(&mut self) {
        let Self { gic: _, index: _, priority_mask, binary_points, control, active } = self;
        *priority_mask = 0;
        *binary_points = RESET_BINARY_POINTS;
        *control = IccCtlr::new();
        *active = [0; 2];
        self.set_group_enables(0);
    }

    /// ICC_IAR0_EL1 or ICC_IAR1_EL1: takes the highest priority pending interrupt, if it is of this group and can preempt
    /// what runs. 1023 if not.
    #[inline]
    pub fn acknowledge(&mut self, group: Group) -> u32 {
        let groups = self.groups();
        let cpu = self.cpu();
        let taken = cpu.queue.take(
            &View { gic: &self.gic, cpu },
            |lane| groups & lane.group_bit() != 0,
            |candidate| Group::of(candidate.lane) == group && self.preempts(candidate),
        );
        let Some(Candidate { intid, state, .. }) = taken else { return SPURIOUS };
        if self.gic.options.behaviour.active_level_keeps_latch && state.latch() && !state.edge() && intid < FIRST_LPI {
            self.keep_latch(intid);
        }
        self.active[group as usize] |= 1 << (self.group_priority(group, state.priority()) >> (8 - PRIORITY_BITS));
        intid
    }

    /// ICC_EOIR0_EL1 or ICC_EOIR1_EL1: drops the running priority and, unless ICC_CTLR_EL1.EOImode is set, deactivates the
    /// interrupt. Bits of `intid` above 23 do not count.
    #[inline]
    pub fn end(&mut self, group: Group, intid: u32) -> Option<Ended> {
        let intid = intid & INTID;
        if !self.gic.has_intid(intid) || !self.drop_priority(group) || self.control.split_end() {
            return None;
        }
        self.set_inactive(intid)
    }

    /// ICC_DIR_EL1: deactivates an interrupt whose priority was dropped before. Nothing while ICC_CTLR_EL1.EOImode is clear
    /// (C18), nor for an LPI, which is never active. Any vCPU may deactivate any SPI.
    pub fn deactivate(&mut self, intid: u32) -> Option<Ended> {
        if self.control.split_end() { self.set_inactive(intid & INTID) } else { None }
    }

    /// ICC_HPPIR0_EL1 or ICC_HPPIR1_EL1: the highest priority pending interrupt, if it is of this group; else 1023.
    pub fn highest_pending(&mut self, group: Group) -> u32 {
        self.candidate().filter(|candidate| Group::of(candidate.lane) == group).map_or(SPURIOUS, |it| it.intid)
    }

    /// ICC_RPR_EL1: the highest active priority, or 0xff.
    #[inline]
    pub fn running_priority(&self) -> u8 {
        let level = (self.active[0] | self.active[1]).trailing_zeros();
        if level == u32::BITS { IDLE_PRIORITY } else { (level as u8) << (8 - PRIORITY_BITS) }
    }

    /// What is signalled now. Nothing is taken by looking.
    #[inline]
    pub fn line(&mut self) -> Lines {
        match self.candidate() {
            Some(candidate) if self.preempts(&candidate) => {
                let irq = candidate.lane != Lane::Group0;
                Lines { irq, fiq: !irq }
            }
            _ => Lines::default(),
        }
    }

    /// Asks to be woken by who makes an interrupt deliverable, and returns what is signalled already. If that is something,
    /// act on it (after [`disarm`](Self::disarm)); if not, sleeping is safe.
    pub fn arm(&mut self) -> Lines {
        self.cpu().queue.arm();
        self.line()
    }

    /// The vCPU is awake and will look at [`line`](Self::line) before it sleeps again: nobody need wake it.
    pub fn disarm(&mut self) {
        self.cpu().queue.disarm();
    }

    /// A trapped MRS. Registers that cannot be read give 0.
    pub fn read(&mut self, register: IccRegister) -> u64 {
        match register {
            IccRegister::Pmr => IccPmr::new().with_priority(self.priority_mask).into_bits(),
            IccRegister::Iar0 => self.acknowledge(Group::Zero).into(),
            IccRegister::Iar1 => self.acknowledge(Group::One).into(),
            IccRegister::Hppir0 => self.highest_pending(Group::Zero).into(),
            IccRegister::Hppir1 => self.highest_pending(Group::One).into(),
            IccRegister::Bpr0 => IccBpr::new().with_binary_point(self.binary_points[0]).into_bits(),
            IccRegister::Bpr1 => IccBpr::new().with_binary_point(self.binary_point_1()).into_bits(),
            IccRegister::Ap0r(0) => self.active[0].into(),
            IccRegister::Ap1r(0) => self.active[1].into(),
            IccRegister::Rpr => self.running_priority().into(),
            IccRegister::Ctlr => self.ctlr().into_bits(),
            IccRegister::Sre => IccSre::FIXED.into_bits(),
            IccRegister::Igrpen0 => self.cpu().enables().group0().into(),
            IccRegister::Igrpen1 => self.cpu().enables().group1().into(),
            IccRegister::Ap0r(_) | IccRegister::Ap1r(_) => 0,
            IccRegister::Eoir0 | IccRegister::Eoir1 | IccRegister::Dir => 0,
            IccRegister::Sgi0r | IccRegister::Sgi1r | IccRegister::Asgi1r => 0,
        }
    }

    /// A trapped MSR. Writes to registers that cannot be written, and to bits that do not exist, do nothing.
    ///
    /// Returns the interrupt that became inactive, if one did.
    pub fn write(&mut self, register: IccRegister, value: u64) -> Option<Ended> {
        match register {
            IccRegister::Eoir0 => return self.end(Group::Zero, IccIntid::from_bits(value).intid()),
            IccRegister::Eoir1 => return self.end(Group::One, IccIntid::from_bits(value).intid()),
            IccRegister::Dir => return self.deactivate(IccIntid::from_bits(value).intid()),
            IccRegister::Pmr => self.priority_mask = IccPmr::from_bits(value).priority() & PRIORITY_MASK,
            IccRegister::Bpr0 => self.set_binary_point(Group::Zero, value),
            IccRegister::Bpr1 => self.set_binary_point(Group::One, value),
            IccRegister::Ap0r(0) => self.active[0] = value as u32,
            IccRegister::Ap1r(0) => self.active[1] = value as u32,
            IccRegister::Ctlr => self.control = IccCtlr::from_bits(value & IccCtlr::WRITABLE),
            IccRegister::Igrpen0 => self.set_group_enable(Group::Zero, IccIgrpen::from_bits(value).enable()),
            IccRegister::Igrpen1 => self.set_group_enable(Group::One, IccIgrpen::from_bits(value).enable()),
            IccRegister::Sgi0r | IccRegister::Asgi1r => self.send(SgiRequest::Group0, value),
            IccRegister::Sgi1r => self.send(SgiRequest::Group1, value),
            IccRegister::Sre | IccRegister::Ap0r(_) | IccRegister::Ap1r(_) => {}
            IccRegister::Iar0 | IccRegister::Iar1 | IccRegister::Hppir0 | IccRegister::Hppir1 | IccRegister::Rpr => {}
        }
        None
    }

    fn send(&self, request: SgiRequest, value: u64) {
        self.gic.send_sgi(self.index, request, IccSgi::from_bits(value));
    }

    /// The groups that are enabled everywhere, as bits.
    #[inline]
    fn groups(&self) -> u32 {
        self.gic.groups() & self.cpu().enables().groups()
    }

    #[inline]
    fn candidate(&self) -> Option<Candidate> {
        let groups = self.groups();
        let cpu = self.cpu();
        cpu.queue.peek(&View { gic: &self.gic, cpu }, |lane| groups & lane.group_bit() != 0)
    }

    /// Whether it is signalled: above the mask, and above what runs (C21, C22).
    #[inline]
    fn preempts(&self, candidate: &Candidate) -> bool {
        let priority = candidate.state.priority();
        priority < self.priority_mask
            && self.group_priority(Group::of(candidate.lane), priority) < self.running_priority()
    }

    /// The part of a priority that preempts (Arm IHI 0069, "Priority grouping").
    #[inline]
    fn group_priority(&self, group: Group, priority: u8) -> u8 {
        let bits = match group {
            Group::One if !self.control.common_binary_point() => self.binary_points[1],
            _ => self.binary_points[0] + 1,
        };
        priority & (0xff_u32 << bits) as u8
    }

    /// Drops the highest active priority; false if there is none, or it is the other group's.
    #[inline]
    fn drop_priority(&mut self, group: Group) -> bool {
        let [zero, one] = self.active.map(u32::trailing_zeros);
        let highest = if zero <= one { Group::Zero } else { Group::One };
        let active = &mut self.active[group as usize];
        if highest != group || *active == 0 {
            return false;
        }
        *active &= *active - 1;
        true
    }

    /// The latch that an acknowledge took, for those who look.
    #[cold]
    fn keep_latch(&self, intid: u32) {
        if let Some(irq) = self.gic.irq(self.index, intid) {
            self.gic.update(irq, intid, |state| state.with_latch(true));
        }
    }

    #[inline]
    fn set_inactive(&self, intid: u32) -> Option<Ended> {
        if intid >= FIRST_LPI {
            return None;
        }
        let irq = self.gic.irq(self.index, intid)?;
        let forgets = self.gic.options.behaviour.active_level_keeps_latch;
        let (was, _) = self.gic.update(irq, intid, |state| {
            let forgotten = forgets && state.active() && !state.edge();
            state.with_active(false).with_latch(state.latch() && !forgotten)
        });
        was.active().then(|| Ended { intid, pin: if was.edge() { None } else { pin_of(intid) } })
    }

    fn ctlr(&self) -> IccCtlr {
        self.control
            .with_priority_bits(PRIORITY_BITS - 1)
            .with_id_bits(u8::from(self.gic.options.id_bits > 16 || self.gic.options.identity == Identity::Kvm))
            .with_affinity_3(true)
            .with_range_selector(self.gic.has_range_selector())
    }

    fn binary_point_1(&self) -> u8 {
        if self.control.common_binary_point() { (self.binary_points[0] + 1).min(7) } else { self.binary_points[1] }
    }

    fn set_binary_point(&mut self, group: Group, value: u64) {
        let value = IccBpr::from_bits(value).binary_point();
        match group {
            Group::Zero => self.binary_points[0] = value.max(IccBpr::LEAST_0),
            // With a common binary point, writes to the other one are ignored.
            Group::One if self.control.common_binary_point() => {}
            Group::One => self.binary_points[1] = value.max(IccBpr::LEAST_1),
        }
    }

    fn set_group_enable(&mut self, group: Group, enable: bool) {
        self.gic.set_enables(self.index, |enables| match group {
            Group::Zero => enables.with_group0(enable),
            Group::One => enables.with_group1(enable),
        });
    }

    /// Both at once: bit 0 for Group 0, bit 1 for Group 1.
    fn set_group_enables(&self, groups: u32) {
        let (zero, one) = (groups & 1 != 0, groups & 2 != 0);
        self.gic.set_enables(self.index, |enables| enables.with_group0(zero).with_group1(one));
    }
}

/// The bits of an INTID in a register.
const INTID: u32 = IccIntid::new().with_intid(0xff_ffff).into_bits() as u32;
