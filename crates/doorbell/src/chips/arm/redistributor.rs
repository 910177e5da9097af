//! The redistributors: what belongs to one vCPU (Arm IHI 0069, "The GIC programmers' model").

use super::{
    Gic, Identity,
    distributor::Part,
    intid::PRIVATE,
    lpi::LpiRegister,
    registers::{
        fields::Fields,
        identification::{FIRST, Frame},
        redistributor::{
            CTLR, IIDR, INVALLR, INVLPIR, PENDBASER, PROPBASER, SGI_FRAME, STRIDE, SYNCR, TYPER, Type, WAKER, Waker,
        },
    },
};
use crate::{VcpuId, sync::Ordering};

/// The redistributor of one vCPU, as a guest sees it: two frames of 64K, the second one with the registers of its SGIs and
/// PPIs.
///
/// Registers are 32 bits wide. Priorities can also be accessed by bytes, and GICR_TYPER and the registers of LPIs by 64
/// bits. Any other access reads 0 and stores nothing.
///
/// ```
/// # use std::sync::Arc;
/// # use doorbell::{VcpuId, chips::arm::{Gic, GicOptions}, guest_ram::RamBlock};
/// let gic = Gic::new(GicOptions::new(2), Arc::new(RamBlock::new(0, 0)), Arc::new(()))?;
/// let redistributor = gic.redistributor(VcpuId(1)).expect("there are two");
/// assert_eq!(redistributor.read(0x0014, 4), 0b110, "GICR_WAKER: it sleeps after reset");
/// redistributor.write(0x0014, 4, 0);
/// assert_eq!(redistributor.read(0x0014, 4), 0);
/// assert!(gic.redistributor(VcpuId(2)).is_none());
/// # Ok::<(), doorbell::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Redistributor<'a> {
    gic: &'a Gic,
    /// The index of its vCPU, which exists.
    cpu: u16,
}

impl Gic {
    /// The redistributor of a vCPU; `None` if there is no such vCPU.
    pub fn redistributor(&self, vcpu: VcpuId) -> Option<Redistributor<'_>> {
        (vcpu.0 < self.vcpus()).then_some(Redistributor { gic: self, cpu: vcpu.0 as u16 })
    }

    /// Says whether a redistributor is the last one of a run of frames without a gap, which its GICR_TYPER.Last then shows
    /// (C9). A guest finds the redistributors of a region by it. At first it is so for the last vCPU alone: for one region.
    ///
    /// Does nothing if there is no such vCPU.
    pub fn set_last_of_region(&self, vcpu: VcpuId, last: bool) {
        if let Some(cpu) = self.cpus.get(vcpu.0 as usize) {
            // Relaxed: decided before the guest looks.
            cpu.last.store(last.into(), Ordering::Relaxed);
        }
    }
}

impl Redistributor<'_> {
    pub(super) fn gic(&self) -> &Gic {
        self.gic
    }

    pub(super) fn cpu(&self) -> u16 {
        self.cpu
    }

    /// A load of so many bytes.
    pub fn read(&self, offset: u64, bytes: u8) -> u64 {
        if let Some(fields) = self.private_fields(offset, bytes) {
            return self.gic.read_fields(self.cpu, fields).into();
        }
        match (offset & !7, Part::at(offset & 7, bytes)) {
            (TYPER, Some(part)) => return part.of(self.kind().into_bits()),
            (PROPBASER, Some(part)) => return part.of(self.read_lpis(LpiRegister::Properties)),
            (PENDBASER, Some(part)) => return part.of(self.read_lpis(LpiRegister::Pending)),
            _ => {}
        }
        match (offset, bytes) {
            (CTLR, 4) => self.control(),
            (IIDR, 4) => self.gic.options.identity.implementer().into_bits().into(),
            (WAKER, 4) => self.waker().into_bits().into(),
            (SYNCR, 4) => self.read_lpis(LpiRegister::Sync),
            (FIRST..SGI_FRAME, 4) => self.gic.options.identity.register(Frame::Redistributor, offset).into(),
            _ => 0,
        }
    }

    /// A store of so many bytes; the others of `value` do not count.
    pub fn write(&self, offset: u64, bytes: u8, value: u64) {
        if let Some(fields) = self.private_fields(offset, bytes) {
            return self.gic.write_fields(self.cpu, fields, value as u32);
        }
        match (offset & !7, Part::at(offset & 7, bytes)) {
            (PROPBASER, Some(part)) => return self.write_lpis(LpiRegister::Properties, part, value),
            (PENDBASER, Some(part)) => return self.write_lpis(LpiRegister::Pending, part, value),
            (INVLPIR, Some(part)) => return self.write_lpis(LpiRegister::InvalidateOne, part, value),
            (INVALLR, Some(part)) => return self.write_lpis(LpiRegister::InvalidateAll, part, value),
            _ => {}
        }
        match (offset, bytes) {
            (CTLR, 4) => self.gic.write_lpi_register(self.cpu, LpiRegister::Control, u32::MAX.into(), value),
            (WAKER, 4) => self.set_waker(Waker::from_bits(value as u32)),
            _ => {}
        }
    }

    /// The fields of SGIs and PPIs that an access covers.
    pub(super) fn private_fields(&self, offset: u64, bytes: u8) -> Option<Fields> {
        if offset >= STRIDE {
            return None;
        }
        Fields::at(offset.checked_sub(SGI_FRAME)?, bytes).filter(|fields| fields.first < PRIVATE)
    }

    fn read_lpis(&self, register: LpiRegister) -> u64 {
        self.gic.read_lpi_register(self.cpu, register)
    }

    fn write_lpis(&self, register: LpiRegister, part: Part, value: u64) {
        self.gic.write_lpi_register(self.cpu, register, part.merge(0, u64::MAX), part.merge(0, value));
    }

    /// GICR_CTLR. Up to its revision 2, KVM's could neither switch LPIs off nor invalidate them by a register.
    fn control(&self) -> u64 {
        let control = self.read_lpis(LpiRegister::Control);
        let old = self.gic.options.identity == Identity::Kvm && self.gic.distributor_implementer().revision() < 3;
        if old { control & 1 } else { control }
    }

    fn kind(&self) -> Type {
        let shared = &self.gic.cpus[usize::from(self.cpu)];
        Type::new()
            .with_lpis(self.gic.has_lpis())
            .with_last(shared.last.load(Ordering::Relaxed) != 0)
            .with_number(self.cpu)
            .with_common(u8::from(self.gic.options.identity == Identity::Qemu))
            .with_affinity(shared.affinity.packed())
    }

    fn waker(&self) -> Waker {
        if self.gic.cpus[usize::from(self.cpu)].enables().awake() { Waker::new() } else { Waker::ASLEEP }
    }

    fn set_waker(&self, waker: Waker) {
        if !self.gic.options.behaviour.always_awake {
            self.gic.set_enables(self.cpu, |enables| enables.with_awake(!waker.processor_sleep()));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
