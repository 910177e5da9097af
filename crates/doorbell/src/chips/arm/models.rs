//! loom models of one interrupt and the queues: every interleaving of two or three threads.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib chips::arm::models`

mod moves;
mod states;
mod wakes;

use loom::{
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};
use std::sync::Arc;

use super::{CpuInterface, Gic, Group, IccRegister, cripple::Cripple, irq::IrqState};
use crate::VcpuId;

const SPI: u32 = 32;
const NONE: u32 = 1023;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A GIC whose first SPI is an edge of Group 1 for vCPU 0, enabled, at priority 0x80.
struct Rig {
    gic: Arc<Gic>,
    /// Like an eventfd for each vCPU: kicks since it last slept.
    kicks: Arc<[AtomicU32; 2]>,
}

impl Rig {
    fn new(vcpus: u32, cripple: Cripple) -> Arc<Self> {
        let kicks = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let told = Arc::clone(&kicks);
        let kick = move |vcpu: VcpuId| {
            told[vcpu.0 as usize].fetch_add(1, Ordering::AcqRel);
        };
        let rig = Self { gic: Gic::crippled(vcpus, Arc::new(kick), cripple), kicks };
        rig.gic.ctlr.store(3, Ordering::SeqCst);
        rig.set(|state| state.with_enabled(true).with_group1(true).with_edge(true).with_priority(0x80).with_target(0));
        for index in 0..vcpus {
            rig.gic.set_enables(index as u16, |enables| enables.with_awake(true));
        }
        Arc::new(rig)
    }

    /// The interface of a vCPU, ready to take everything. Keep it until the other threads have ended.
    fn cpu(&self, index: u32) -> CpuInterface {
        let mut cpu = self.gic.cpu_interface(VcpuId(index)).unwrap();
        cpu.write(IccRegister::Pmr, 0xff);
        cpu.write(IccRegister::Igrpen1, 1);
        cpu
    }

    fn set(&self, change: impl Fn(IrqState) -> IrqState) {
        self.gic.update(self.gic.shared(SPI).unwrap(), SPI, change);
    }

    fn state(&self) -> IrqState {
        self.gic.shared(SPI).unwrap().state()
    }

    fn pend(&self) {
        self.set(|state| state.with_latch(true));
    }

    fn target(&self, index: u16) {
        self.set(|state| state.with_target(index));
    }

    fn enable(&self, enabled: bool) {
        self.set(|state| state.with_enabled(enabled));
    }

    fn level(&self, line: bool) {
        self.set(|state| state.with_edge(false).with_line(line));
    }
}

/// Takes and ends once; whether there was anything.
fn take(cpu: &mut CpuInterface) -> bool {
    let intid = cpu.acknowledge(Group::One);
    if intid == NONE {
        return false;
    }
    cpu.end(Group::One, intid).unwrap();
    true
}

/// Runs a step of the model on a thread of its own.
fn spawn<T: 'static>(rig: &Arc<Rig>, step: impl FnOnce(&Rig) -> T + 'static) -> JoinHandle<T> {
    let rig = Arc::clone(rig);
    loom::thread::spawn(move || step(&rig))
}
