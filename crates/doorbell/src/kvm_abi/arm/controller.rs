//! What `KVM_DEV_ARM_VGIC_CTRL_INIT` makes: a GIC with its vCPUs, default routes, and irqfds.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Errno, SoftArmVmOptions};
use crate::{
    Delivery, Error, LineSource, PinInput, Pins, VcpuId,
    chips::arm::{CpuInterface, Ended, Gic, MsiFrames, line::CHIP},
    kvm_abi::bindings::Bindings,
    route::{RoutePolicy, RouteTable},
};

/// A GIC in use.
pub(super) struct Controller {
    pub gic: Arc<Gic>,
    /// Lock order: after the VM's state, before the stations.
    cpus: Vec<Mutex<CpuInterface>>,
    pub table: Arc<RouteTable>,
    pub bindings: Bindings,
}

impl Controller {
    pub(super) fn new(gic: Arc<Gic>, doorbells: Arc<MsiFrames>, options: &SoftArmVmOptions) -> Result<Self, Error> {
        let cpus = (0..gic.vcpus()).filter_map(|vcpu| gic.cpu_interface(VcpuId(vcpu))).map(Mutex::new).collect();
        let table = Arc::new(RouteTable::new(doorbells, Arc::clone(&gic) as Arc<dyn PinInput>, RoutePolicy::KVM_ARM));
        let bindings = Bindings::new(Arc::clone(&table), options.exclusive)?;
        Ok(Self { gic, cpus, table, bindings })
    }

    /// The CPU interface of a vCPU, by the order of creation.
    pub(super) fn on_cpu<R>(&self, vcpu: usize, act: impl FnOnce(&mut CpuInterface) -> R) -> Result<R, Errno> {
        Ok(act(&mut self.cpus.get(vcpu).ok_or(Errno::BADF)?.lock()))
    }

    /// The line of an SPI, by `KVM_IRQ_LINE`, which looks at no route (G14).
    pub(super) fn set_spi(&self, intid: u16, level: bool) -> Result<Delivery, Errno> {
        if intid >= self.gic.options().intids {
            return Err(Errno::INVAL);
        }
        Ok(self.table.line(u32::from(intid) - 32, LineSource::USER, level))
    }

    /// The line of a PPI.
    pub(super) fn set_ppi(&self, vcpu: u32, intid: u16, level: bool) -> Delivery {
        self.gic.set_ppi(VcpuId(vcpu), intid as u8, level)
    }

    /// A vCPU has ended an interrupt.
    pub(super) fn ended(&self, ended: Ended) {
        if let Some(pin) = ended.pin {
            let pins = Pins::from_slice(&[pin]);
            self.bindings.resamplers().ended(CHIP, &pins);
            self.gic.reevaluate(CHIP, &pins);
        }
    }
}
