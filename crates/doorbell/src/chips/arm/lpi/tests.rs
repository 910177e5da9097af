//! LPIs, step by step.

mod commands;
mod direct;
mod machine;
mod registers;
mod state;
mod switching;
mod tables;

use std::sync::Arc;

use super::{LpiRegister, LpiSent};
use crate::{
    chips::arm::{Behaviour, Gic, GicOptions, Identity, gic::View},
    guest_ram::{GuestRam, GuestRamExt, NoMemory, RamBlock},
};

const RAM: u64 = 0x4000_0000;
const PROPERTIES: u64 = RAM + 0x1_0000;
/// Of vCPU 0; the others follow.
const PENDING: u64 = RAM + 0x4_0000;
/// PENDBASER.PTZ.
const ZERO: u64 = 1 << 62;

/// A GIC with LPIs, whose tables are in RAM.
pub(super) struct Rig {
    gic: Arc<Gic>,
    ram: Arc<RamBlock>,
}

impl Rig {
    /// All vCPUs have their LPIs on; every LPI is disabled in the configuration table.
    fn new(vcpus: u32, behaviour: Behaviour) -> Self {
        let rig = Self::off(vcpus, behaviour);
        (0..vcpus as u16).for_each(|cpu| rig.switch(cpu, true));
        rig
    }

    /// The same with LPIs off.
    fn off(vcpus: u32, behaviour: Behaviour) -> Self {
        let mut options = GicOptions::new(vcpus);
        options.behaviour = behaviour;
        let ram = Arc::new(RamBlock::new(RAM, 0x10_0000));
        let gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(())).unwrap();
        gic.attach_its();
        gic.ctlr.store(3, crate::sync::Ordering::SeqCst);
        let rig = Self { gic, ram };
        for cpu in 0..vcpus as u16 {
            rig.write(cpu, LpiRegister::Properties, PROPERTIES | 15);
            rig.write(cpu, LpiRegister::Pending, rig.table(cpu));
        }
        rig
    }

    fn table(&self, cpu: u16) -> u64 {
        PENDING + u64::from(cpu) * 0x1_0000
    }

    fn write(&self, cpu: u16, register: LpiRegister, value: u64) {
        self.gic.write_lpi_register(cpu, register, u64::MAX, value);
    }

    fn read(&self, cpu: u16, register: LpiRegister) -> u64 {
        self.gic.read_lpi_register(cpu, register)
    }

    fn switch(&self, cpu: u16, on: bool) {
        self.write(cpu, LpiRegister::Control, on.into());
        assert_eq!(self.gic.lpis_enabled(cpu), on);
    }

    /// Writes a byte of the configuration table.
    fn configure(&self, lpi: u32, byte: u8) {
        self.ram.write_le(PROPERTIES + u64::from(lpi - 8192), byte).unwrap();
    }

    /// An LPI that is enabled, with priority 0xa0, on a vCPU.
    fn mapped(&self, lpi: u32, cpu: u16) {
        self.configure(lpi, 0xa1);
        self.gic.map_lpi(lpi, Some(cpu)).unwrap();
    }

    fn bit(&self, cpu: u16, lpi: u32) -> bool {
        self.ram.read_le::<u8>(self.table(cpu) + u64::from(lpi / 8)).unwrap() >> (lpi % 8) & 1 != 0
    }

    fn set_bit(&self, cpu: u16, lpi: u32) {
        let at = self.table(cpu) + u64::from(lpi / 8);
        let byte: u8 = self.ram.read_le(at).unwrap();
        self.ram.write_le(at, byte | 1 << (lpi % 8)).unwrap();
    }

    /// What a vCPU acknowledges next.
    fn take(&self, cpu: u16) -> Option<u32> {
        let shared = &self.gic.cpus[usize::from(cpu)];
        let irqs = View { gic: &self.gic, cpu: shared };
        shared.queue.take(&irqs, |_| true, |_| true).map(|it| it.intid)
    }

    /// All that a vCPU acknowledges.
    fn taken(&self, cpu: u16) -> Vec<u32> {
        std::iter::from_fn(|| self.take(cpu)).collect()
    }

    /// What the pending tables, empty before, say once they are saved: as vCPU and LPI.
    fn saved(&self) -> Vec<(u16, u32)> {
        (0..self.gic.vcpus() as u16).for_each(|cpu| self.ram.write(self.table(cpu), &[0; 0x2000]).unwrap());
        self.gic.save_pending_tables().unwrap();
        let all = (0..self.gic.vcpus() as u16).flat_map(|cpu| (8192..8192 + 2048).map(move |lpi| (cpu, lpi)));
        all.filter(|(cpu, lpi)| self.bit(*cpu, *lpi)).collect()
    }
}
