//! Devices made, placed and initialised, in any order.

use doorbell::kvm_abi::arm::types::{
    CAP_ARM_IRQ_LINE_LAYOUT_2, CAP_DEVICE_CTRL, CAP_MAX_VCPUS, addr, ctrl, device, group,
};
use doorbell::kvm_abi::types as kvm;

use super::super::call::Call;
use super::super::layout::{GIC, GICD, GICR, GICR_STRIDE, GITS, ITS, RAM};
use super::super::registers::{GICD_IIDR, GICD_TYPER, GICR_TYPER, GITS_IIDR};
use super::super::setup::of_vcpu;
use super::Source;

/// How far it has come.
#[derive(Default)]
pub struct Made {
    steps: usize,
    vcpus: u32,
}

impl Source {
    pub(super) fn bring_up(&mut self) -> Call {
        // The next step of a VM that is set up as it should be, more often than not.
        if self.random.below(5) < 2 {
            let step = self.made.steps;
            self.made.steps += 1;
            if let Some(call) = self.proper_step(step) {
                return call;
            }
        }
        match self.random.below(20) {
            0 => Call::CreateVcpu { id: self.next_vcpu() },
            1 => Call::InitVcpu { vcpu: self.vcpu() },
            2..4 => {
                let kind = self.random.pick(&[device::VGIC_V3, device::ITS, device::ITS, device::VGIC_V2, 1, 99]);
                Call::CreateDevice { slot: self.any_slot(), kind }
            }
            4..6 => {
                let value = self.random.pick(&[31, 32, 64, 96, 100, 256, 1024, 1056, 0]);
                Call::SetAttr { slot: GIC, group: group::NR_IRQS, attr: 0, value }
            }
            6..11 => self.place(),
            11..13 => {
                let attr = self.random.pick(&[ctrl::INIT, ctrl::INIT, ctrl::INIT, 1, 2, 3, 4, 5, 99]);
                Call::action(self.any_slot(), attr)
            }
            13..15 => self.any_attribute(),
            15..17 => {
                let attr = self.random.pick(&[GICD_TYPER, GICD_IIDR, GICR_TYPER, GITS_IIDR, 0x4]);
                let (slot, group) =
                    self.random.pick(&[(GIC, group::DIST_REGS), (GIC, group::REDIST_REGS), (ITS[0], group::ITS_REGS)]);
                let attr = if group == group::REDIST_REGS { of_vcpu(self.any_vcpu(), attr) } else { attr };
                Call::get(slot, group, attr)
            }
            17 => self.line(),
            18 => self.message(),
            _ => Call::CheckExtension { capability: self.capability() },
        }
    }

    fn proper_step(&mut self, step: usize) -> Option<Call> {
        let set = |slot, group, attr, value| Call::SetAttr { slot, group, attr, value };
        let vcpus = self.vcpus as usize;
        if step < vcpus {
            return Some(Call::CreateVcpu { id: self.next_vcpu() });
        }
        Some(match step - vcpus {
            0 => Call::CreateDevice { slot: GIC, kind: device::VGIC_V3 },
            1 => Call::CreateDevice { slot: ITS[0], kind: device::ITS },
            2 => set(GIC, group::NR_IRQS, 0, self.random.pick(&[64, 96, 256, 1024])),
            3 => set(GIC, group::ADDR, addr::V3_DIST, GICD),
            4 => match self.random.below(2) {
                0 => set(GIC, group::ADDR, addr::V3_REDIST, GICR),
                _ => set(GIC, group::ADDR, addr::V3_REDIST_REGION, u64::from(self.vcpus) << 52 | GICR),
            },
            5 => Call::action(GIC, ctrl::INIT),
            6 => set(ITS[0], group::ADDR, addr::ITS, GITS[0]),
            7 => Call::action(ITS[0], ctrl::INIT),
            _ => return None,
        })
    }

    /// Ids in order. None twice: the vCPU that the kernel then refuses has taken the place of a redistributor.
    fn next_vcpu(&mut self) -> u32 {
        self.made.vcpus += 1;
        self.made.vcpus - 1
    }

    fn any_slot(&mut self) -> usize {
        self.random.pick(&[GIC, GIC, ITS[0], ITS[0], ITS[1], 3])
    }

    fn place(&mut self) -> Call {
        let (slot, attr) = self.random.pick(&[
            (GIC, addr::V3_DIST),
            (GIC, addr::V3_REDIST),
            (GIC, addr::V3_REDIST_REGION),
            (GIC, addr::V2_DIST),
            (GIC, addr::V2_CPU),
            (ITS[0], addr::ITS),
            (ITS[1], addr::ITS),
            (ITS[0], addr::V3_DIST),
        ]);
        // An ITS shares no address with the GIC: the kernel does not look, and either answers.
        let address = match self.random.below(8) {
            0 => self.random.pick(&[0x1000, 0x100, 1 << 44, 1 << 52, u64::MAX, (1 << 44) - 0x1_0000, 0]),
            _ if slot != GIC => self.random.pick(&GITS),
            1 => GICR + GICR_STRIDE,
            2 => RAM,
            3 => GICD + 0x1000_0000,
            _ => self.random.pick(&[GICD, GICR]),
        };
        let group = group::ADDR;
        if self.random.one_in(4) {
            let value = if attr == addr::V3_REDIST_REGION { self.random.below(3) } else { 0 };
            return Call::GetAttr { slot, group, attr, value };
        }
        let value = if attr == addr::V3_REDIST_REGION { self.region(address) } else { address };
        Call::SetAttr { slot, group, attr, value }
    }

    fn region(&mut self, address: u64) -> u64 {
        let index = self.random.pick(&[0, 0, 0, 1, 1, 2]);
        let flags = if self.random.one_in(12) { 1 << 12 } else { 0 };
        let count = self.random.pick(&[0, 1, 1, 2, 3, 16]);
        count << 52 | address & 0xf_ffff_ffff_0000 | flags | index
    }

    /// An attribute of any kind, or of none that there is.
    pub(super) fn any_attribute(&mut self) -> Call {
        let slot = self.any_slot();
        let group = self.random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 77]);
        let attr = match self.random.below(6) {
            0 => self.word(),
            1 => u64::from(self.any_vcpu()) << 32 | self.random.below(0x1_1000) & !3,
            _ => self.random.below(8),
        };
        Call::HasAttr { slot, group, attr }
    }

    pub(super) fn capability(&mut self) -> u32 {
        self.random.pick(&[
            kvm::CAP_IRQCHIP,
            kvm::CAP_IRQ_ROUTING,
            kvm::CAP_IRQFD,
            kvm::CAP_SIGNAL_MSI,
            kvm::CAP_IRQFD_RESAMPLE,
            kvm::CAP_MSI_DEVID,
            CAP_DEVICE_CTRL,
            CAP_MAX_VCPUS,
            CAP_ARM_IRQ_LINE_LAYOUT_2,
        ])
    }
}
