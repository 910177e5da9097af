//! Whose chips the guest has, and what its exits mean to those in user space.

use std::sync::Arc;

use doorbell::chips::x86::ioapic::{CHIP, Effect, FIRST_ENTRY, INDEX, IoApic, IoApicOptions, RedirectionEntry, WINDOW};
use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
use doorbell::kvm::{Entry, KvmIrqs, KvmOptions, SPLIT_PINS, SplitChip, UserCpu, VcpuKick, Vm, X86_CHIPS};
use doorbell::manager::{IrqManager, SoftOptions};
use doorbell::{Kick, MsiTarget, PinInput, VcpuId};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_IRQCHIP_IOAPIC, kvm_enable_cap, kvm_irqchip};
use kvm_ioctls::{VcpuFd, VmFd};

use super::code::AfterLevel;
use super::vcpu::Exits;

/// Whose chips the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    /// All in the kernel.
    Kernel,
    /// Local APICs in the kernel, doorbell's IOAPIC.
    Split,
    /// All of them doorbell's.
    None,
}

/// The spurious-vector register's offset in a local APIC's page, and its value that enables the APIC.
const SPURIOUS: u64 = 0xf0;
const SOFTWARE_ENABLE: u32 = 0x1ff;
/// The IOAPIC's window.
const IOAPIC_BASE: u64 = 0xfec0_0000;
const IOAPIC_SIZE: u64 = 0x100;

/// The chips of one machine.
pub(super) enum ChipSet {
    Kernel { irqs: KvmIrqs, manager: IrqManager },
    Split { chip: Arc<SplitChip>, manager: IrqManager },
    None { apics: Arc<ApicSet>, ioapic: Arc<IoApic>, manager: IrqManager },
}

/// Makes the kernel's part of the chips; before any vCPU.
pub(super) fn create(vm: &VmFd, chips: Chips) -> Result<(), String> {
    match chips {
        Chips::Kernel => vm.create_irq_chip().map_err(|error| format!("KVM_CREATE_IRQCHIP: {error}")),
        Chips::Split => {
            let args = [SPLIT_PINS, 0, 0, 0];
            let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args, ..Default::default() };
            vm.enable_cap(&split).map_err(|error| format!("KVM_CAP_SPLIT_IRQCHIP: {error}"))
        }
        Chips::None => Ok(()),
    }
}

impl ChipSet {
    /// doorbell's part of them; after the vCPUs, which `kicks` stand for.
    pub(super) fn new(
        chips: Chips,
        vm: &Arc<Vm>,
        kicks: &[Arc<VcpuKick>],
        options: KvmOptions,
    ) -> Result<Self, doorbell::Error> {
        Ok(match chips {
            Chips::Kernel => {
                let irqs = KvmIrqs::full(Arc::clone(vm), &X86_CHIPS, options)?;
                Self::Kernel { manager: irqs.manager(), irqs }
            }
            Chips::Split => {
                let chip = Arc::new(SplitChip::new(Arc::clone(vm), IoApicOptions::default(), options)?);
                Self::Split { manager: chip.irqs().manager(), chip }
            }
            Chips::None => {
                let kick: Arc<dyn Kick> = Arc::new(kicks.to_vec());
                let apics = ApicSet::new(kicks.len() as u32, kick, ApicOptions::default());
                let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, IoApicOptions::default()));
                let msi = Arc::clone(&apics) as Arc<dyn MsiTarget>;
                let options = SoftOptions::new(msi, Arc::clone(&ioapic) as Arc<dyn PinInput>);
                Self::None { apics, ioapic, manager: IrqManager::soft(options)? }
            }
        })
    }

    pub(super) fn manager(&self) -> &IrqManager {
        match self {
            Self::Kernel { manager, .. } | Self::Split { manager, .. } | Self::None { manager, .. } => manager,
        }
    }

    /// Where eventfds can go to the kernel.
    pub(super) fn kernel_irqs(&self) -> Option<&KvmIrqs> {
        match self {
            Self::Kernel { irqs, .. } => Some(irqs),
            Self::Split { chip, .. } => Some(chip.irqs()),
            Self::None { .. } => None,
        }
    }

    /// What the guest must do after the end of a level interrupt.
    pub(super) fn after_level(&self) -> AfterLevel {
        if matches!(self, Self::Split { .. }) { AfterLevel::Exit } else { AfterLevel::Nothing }
    }

    /// What the exits of a vCPU mean.
    pub(super) fn exits(&self, vcpu: u32) -> Result<Box<dyn Exits>, String> {
        Ok(match self {
            Self::Kernel { .. } => Box::new(KernelCpu),
            Self::Split { chip, .. } => Box::new(SplitCpu(Arc::clone(chip))),
            Self::None { apics, ioapic, manager } => {
                let mut apic = apics.local(VcpuId(vcpu)).ok_or_else(|| format!("vCPU {vcpu} has no local APIC"))?;
                apic.write(SPURIOUS, SOFTWARE_ENABLE);
                Box::new(UserCpu::new(apic, Arc::clone(ioapic), manager.clone()))
            }
        })
    }

    /// Programs a redirection entry, as a guest would.
    pub(super) fn set_redirection(&self, vm: &VmFd, pin: u16, entry: u64) -> Result<(), String> {
        let absent = || format!("the IOAPIC has no pin {pin}");
        match self {
            Self::Kernel { .. } => {
                let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
                vm.get_irqchip(&mut chip).map_err(|error| format!("KVM_GET_IRQCHIP: {error}"))?;
                // SAFETY: the kernel wrote the state of an IOAPIC, as `chip_id` asks, and any bytes are a valid one.
                let ioapic = unsafe { &mut chip.chip.ioapic };
                ioapic.redirtbl.get_mut(usize::from(pin)).ok_or_else(absent)?.bits = entry;
                vm.set_irqchip(&chip).map_err(|error| format!("KVM_SET_IRQCHIP: {error}"))
            }
            Self::Split { chip, .. } => {
                let pin = Some(usize::from(pin)).filter(|&pin| pin < SPLIT_PINS as usize).ok_or_else(absent)?;
                chip.write_entries(&[(pin, RedirectionEntry::from_bits(entry))]).map_err(|error| error.to_string())
            }
            Self::None { ioapic, manager, .. } => {
                if pin >= ioapic.pins(CHIP) {
                    return Err(absent());
                }
                let register = FIRST_ENTRY + 2 * u32::from(pin);
                // The mask bit is in the low half, which therefore comes last.
                for (register, half) in [(register + 1, entry >> 32), (register, entry)] {
                    let _ = ioapic.write(INDEX, register);
                    match ioapic.write(WINDOW, half as u32) {
                        Effect::None => {}
                        Effect::Ended(pins) => manager.end(CHIP, &pins),
                        Effect::Unmasked(pins) => manager.unmasked(CHIP, &pins),
                    }
                }
                Ok(())
            }
        }
    }
}

/// All chips are the kernel's: the vCPU comes back for nothing but its end.
struct KernelCpu;

impl Exits for KernelCpu {
    fn before_entry(&mut self, _: &mut VcpuFd) -> Result<bool, String> {
        Ok(true)
    }
    fn ended(&mut self, _: u8) {}
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
    fn halt(&mut self) {}
}

/// The local APICs are the kernel's, the IOAPIC is not.
struct SplitCpu(Arc<SplitChip>);

impl Exits for SplitCpu {
    fn before_entry(&mut self, _: &mut VcpuFd) -> Result<bool, String> {
        Ok(true)
    }

    fn ended(&mut self, vector: u8) {
        self.0.end_of_interrupt(vector);
    }

    fn read(&mut self, address: u64, data: &mut [u8]) {
        match address.checked_sub(IOAPIC_BASE).filter(|&offset| offset < IOAPIC_SIZE) {
            Some(offset) => self.0.mmio_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), String> {
        match address.checked_sub(IOAPIC_BASE).filter(|&offset| offset < IOAPIC_SIZE) {
            Some(offset) => self.0.mmio_write(offset, data).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn halt(&mut self) {}
}

/// All chips are doorbell's.
impl Exits for UserCpu {
    fn before_entry(&mut self, vcpu: &mut VcpuFd) -> Result<bool, String> {
        match UserCpu::before_entry(self, vcpu).map_err(|error| error.to_string())? {
            Entry::Run => Ok(true),
            Entry::Sleep => Ok(false),
            Entry::Init | Entry::StartUp(_) => Err("the guest sends no INIT and no SIPI, but one came".into()),
        }
    }

    fn ended(&mut self, _: u8) {}

    fn read(&mut self, address: u64, data: &mut [u8]) {
        if !self.mmio_read(address, data) {
            data.fill(0xff);
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), String> {
        self.mmio_write(address, data);
        Ok(())
    }

    fn halt(&mut self) {
        UserCpu::halt(self);
    }
}
