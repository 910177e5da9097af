//! A GIC with its vCPUs, and the distributor's side in the words of a guest.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    VcpuId,
    chips::arm::{
        Behaviour, CpuInterface, Ended, Gic, GicOptions, Group, IccRegister, irq::IrqState, lpi::LpiRegister,
    },
    guest_ram::{GuestRam, RamBlock},
};

/// A Group 1 edge at priority 0xa0 for vCPU 0, after [`Rig::new`]: SPIs A to C.
pub const A: u32 = 40;
pub const B: u32 = 41;
pub const C: u32 = 42;

pub struct Rig {
    pub gic: Arc<Gic>,
    pub cpus: Vec<CpuInterface>,
    pub kicks: Arc<Mutex<Vec<u32>>>,
    pub ram: Arc<RamBlock>,
}

impl Rig {
    /// Everything on: groups, redistributors, and a mask that lets all through.
    pub fn new(vcpus: u32) -> Self {
        Self::with(GicOptions::new(vcpus))
    }

    pub fn kvm(vcpus: u32) -> Self {
        let mut options = GicOptions::new(vcpus);
        options.behaviour = Behaviour::KVM;
        Self::with(options)
    }

    /// With an ITS, and LPIs on.
    pub fn with_lpis(vcpus: u32) -> Self {
        let rig = Self::new(vcpus);
        rig.gic.attach_its();
        for cpu in 0..vcpus as u16 {
            let tables = [
                (LpiRegister::Properties, Self::PROPERTIES | 15),
                (LpiRegister::Pending, 0x4_0000 + u64::from(cpu) * 0x1_0000),
                (LpiRegister::Control, 1),
            ];
            for (register, value) in tables {
                rig.gic.write_lpi_register(cpu, register, u64::MAX, value);
            }
        }
        rig
    }

    /// Where the configuration table of LPIs is.
    pub const PROPERTIES: u64 = 0x1_0000;

    pub fn with(options: GicOptions) -> Self {
        let kicks = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&kicks);
        let kick = move |vcpu: VcpuId| told.lock().push(vcpu.0);
        let ram = Arc::new(RamBlock::new(0, 0x10_0000));
        let gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(kick)).unwrap();
        let cpus = (0..gic.vcpus()).map(|vcpu| gic.cpu_interface(VcpuId(vcpu)).unwrap()).collect();
        let mut rig = Self { gic, cpus, kicks, ram };
        rig.set_groups(3);
        for index in 0..rig.cpus.len() {
            rig.set_awake(index, true);
            let cpu = &mut rig.cpus[index];
            cpu.write(IccRegister::Pmr, 0xff);
            cpu.write(IccRegister::Igrpen0, 1);
            cpu.write(IccRegister::Igrpen1, 1);
            for sgi in 0..16 {
                rig.change(index, sgi, |state| state.with_enabled(true).with_group1(true).with_priority(0xa0));
            }
        }
        for intid in [A, B, C] {
            let state = |state: IrqState| state.with_enabled(true).with_group1(true).with_edge(true);
            rig.change(0, intid, |it| state(it).with_priority(0xa0).with_target(0));
        }
        rig
    }

    /// GICD_CTLR's group enables.
    pub fn set_groups(&self, groups: u32) {
        self.gic.ctlr.store(groups, crate::sync::Ordering::SeqCst);
        self.gic.wake_all();
    }

    pub fn set_awake(&self, index: usize, awake: bool) {
        self.gic.set_enables(index as u16, |enables| enables.with_awake(awake));
    }

    pub fn change(&self, index: usize, intid: u32, change: impl Fn(IrqState) -> IrqState) {
        let irq = self.gic.irq(index as u16, intid).unwrap();
        self.gic.update(irq, intid, change);
    }

    pub fn state(&self, index: usize, intid: u32) -> IrqState {
        self.gic.irq(index as u16, intid).unwrap().state()
    }

    /// Pending and active, as the reference prints them.
    pub fn pending_active(&self, intid: u32) -> (bool, bool) {
        let state = self.state(0, intid);
        (state.pending(), state.active())
    }

    pub fn pend(&self, intid: u32) {
        self.change(0, intid, |state| state.with_latch(true));
    }

    pub fn set_line(&self, intid: u32, level: bool) {
        self.change(0, intid, |state| state.with_line(level).with_latch(state.latch() || level && state.edge()));
    }

    pub fn level(&self, intid: u32) {
        self.change(0, intid, |state| state.with_edge(false));
    }

    pub fn priority(&self, intid: u32, priority: u8) {
        self.change(0, intid, |state| state.with_priority(priority));
    }

    pub fn iar1(&mut self) -> u32 {
        self.cpus[0].acknowledge(Group::One)
    }

    pub fn iar0(&mut self) -> u32 {
        self.cpus[0].acknowledge(Group::Zero)
    }

    pub fn hppir1(&mut self) -> u32 {
        self.cpus[0].highest_pending(Group::One)
    }

    pub fn eoir1(&mut self, intid: u32) -> Option<Ended> {
        self.cpus[0].end(Group::One, intid)
    }

    pub fn rpr(&self) -> u8 {
        self.cpus[0].running_priority()
    }

    pub fn write(&mut self, register: IccRegister, value: u64) {
        assert_eq!(self.cpus[0].write(register, value), None);
    }

    pub fn read(&mut self, register: IccRegister) -> u64 {
        self.cpus[0].read(register)
    }
}
