//! Faults that the check must find: a check that finds nothing has to be able to find something.

use std::sync::Arc;

use doorbell::guest_ram::RamBlock;
use doorbell::kvm_abi::arm::types::{ctrl, group};
use doorbell::kvm_abi::arm::{Device, KvmDeviceAttr, SystemRegister};
use doorbell::kvm_abi::types::IRQFD_DEASSIGN;
use doorbell::kvm_abi::{
    Answer, ArmCalls, ArmGuestCalls, Errno, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqfd, KvmMsi, SoftArmVm,
    SoftArmVmOptions,
};

use super::layout::{COLLECTIONS, RAM, RAM_BYTES};
use super::registers::{GICD_IROUTER, GITS_CREADR};
use super::soft::Make;

/// What is wrong with doorbell on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A deassign that removes something says that it does not.
    DeassignErrno,
    /// A refused table empties the old one.
    RefusedTable,
    /// Lowering a line is forgotten.
    LineStaysHigh,
    /// A message that nothing is mapped for was taken.
    MessageCount,
    /// GITS_CREADR stands still.
    Creadr,
    /// GICD_IROUTER cannot be written.
    Router,
    /// Pending LPIs are not saved.
    PendingTables,
    /// A saved collection names the wrong redistributor.
    SavedCollection,
    /// The ITS's tables are not read when they are restored.
    Restore,
    /// The end of an interrupt is ignored.
    End,
    /// An SGI to all others is lost.
    Broadcast,
}

/// Makes doorbell's VMs, with a fault or none.
pub fn maker(fault: Option<Fault>) -> Make {
    Box::new(move || {
        let ram = Arc::new(RamBlock::new(RAM, RAM_BYTES));
        let vm = SoftArmVm::new(SoftArmVmOptions::default(), ram, Arc::new(()));
        let vm = vm.map_err(|error| format!("doorbell's VM: {error}"))?;
        Ok(Box::new(Crippled { vm, fault }))
    })
}

/// A VM with a fault, or none.
struct Crippled<V> {
    vm: V,
    fault: Option<Fault>,
}

impl<V> Crippled<V> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl<V: ArmCalls> ArmCalls for Crippled<V> {
    fn check_extension(&self, capability: u32) -> Answer {
        self.vm.check_extension(capability)
    }

    fn create_vcpu(&self, id: u32) -> Answer {
        self.vm.create_vcpu(id)
    }

    fn vcpu_init(&self, vcpu: u32) -> Answer {
        self.vm.vcpu_init(vcpu)
    }

    fn create_device(&self, kind: u32, flags: u32) -> Result<Option<Device>, Errno> {
        self.vm.create_device(kind, flags)
    }

    fn set_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: u64) -> Answer {
        match (attribute.group, attribute.attr) {
            (group::DIST_REGS, GICD_IROUTER..) if self.has(Fault::Router) => return Ok(0),
            (group::CTRL, ctrl::SAVE_PENDING_TABLES) if self.has(Fault::PendingTables) => return Ok(0),
            (group::CTRL, ctrl::ITS_RESTORE_TABLES) if self.has(Fault::Restore) => return Ok(0),
            _ => {}
        }
        let answer = self.vm.set_device_attr(device, attribute, value);
        if (attribute.group, attribute.attr) == (group::CTRL, ctrl::ITS_SAVE_TABLES) && self.has(Fault::SavedCollection)
        {
            // The redistributor is in bits 51:16.
            self.vm.write_ram(COLLECTIONS[0] + 2, &[5])?;
        }
        answer
    }

    fn get_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: &mut u64) -> Answer {
        let answer = self.vm.get_device_attr(device, attribute, value);
        if (attribute.group, attribute.attr) == (group::ITS_REGS, GITS_CREADR) && self.has(Fault::Creadr) {
            *value = 0;
        }
        answer
    }

    fn has_device_attr(&self, device: Device, attribute: KvmDeviceAttr) -> Answer {
        self.vm.has_device_attr(device, attribute)
    }

    fn irqfd(&self, request: &KvmIrqfd) -> Answer {
        let answer = self.vm.irqfd(request);
        let wrong = request.flags & IRQFD_DEASSIGN != 0 && self.has(Fault::DeassignErrno);
        if wrong && answer.is_ok() { Err(Errno::NOENT) } else { answer }
    }

    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer {
        let answer = self.vm.set_gsi_routing(nr, flags, entries);
        if answer.is_err() && self.has(Fault::RefusedTable) {
            self.vm.set_gsi_routing(0, 0, &[])?;
        }
        answer
    }

    fn irq_line(&self, request: KvmIrqLevel) -> Answer {
        if request.level == 0 && self.has(Fault::LineStaysHigh) { Ok(0) } else { self.vm.irq_line(request) }
    }

    fn signal_msi(&self, message: &KvmMsi) -> Answer {
        let answer = self.vm.signal_msi(message);
        if self.has(Fault::MessageCount) { answer.map(|_| 1) } else { answer }
    }

    fn read_ram(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.vm.read_ram(address, bytes)
    }

    fn write_ram(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.vm.write_ram(address, bytes)
    }

    fn settle(&self) {
        self.vm.settle();
    }
}

impl<V: ArmGuestCalls> ArmGuestCalls for Crippled<V> {
    fn read_register(&self, vcpu: u32, register: SystemRegister) -> Result<u64, Errno> {
        self.vm.read_register(vcpu, register)
    }

    fn write_register(&self, vcpu: u32, register: SystemRegister, value: u64) -> Result<(), Errno> {
        let to_others = value >> 40 & 1 == 1;
        match register {
            SystemRegister::ICC_EOIR0_EL1 | SystemRegister::ICC_EOIR1_EL1 if self.has(Fault::End) => Ok(()),
            SystemRegister::ICC_SGI1R_EL1 if to_others && self.has(Fault::Broadcast) => Ok(()),
            _ => self.vm.write_register(vcpu, register, value),
        }
    }

    fn load(&self, vcpu: u32, address: u64, bytes: u8) -> Result<u64, Errno> {
        self.vm.load(vcpu, address, bytes)
    }

    fn store(&self, vcpu: u32, address: u64, bytes: u8, value: u64) -> Result<(), Errno> {
        self.vm.store(vcpu, address, bytes, value)
    }
}
