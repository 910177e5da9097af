//! Software-generated interrupts: ICC_SGI0R_EL1, ICC_SGI1R_EL1 and ICC_ASGI1R_EL1 (Arm IHI 0069, "Software Generated
//! Interrupts").

use super::{Affinity, Gic, cpu_interface::registers::IccSgi, gic::Cpu, irq::IrqState};

/// Which SGIs a request may raise. In one Security state ICC_ASGI1R_EL1 has no other group than ICC_SGI0R_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SgiRequest {
    Group0,
    Group1,
}

impl Gic {
    /// Whether SGIs reach every Aff0, and not only 0 to 15.
    pub(super) fn has_range_selector(&self) -> bool {
        !self.options.behaviour.no_range_selector
    }

    /// Raises an SGI on the vCPUs that `value` names. It is latched wherever it is in the right group, also while it is
    /// disabled (C31) or the redistributor sleeps (H-C4).
    pub(super) fn send_sgi(&self, sender: u16, request: SgiRequest, value: IccSgi) {
        let intid = u32::from(value.intid());
        if value.all_but_self() {
            for (index, cpu) in (0..).zip(&self.cpus) {
                if index != sender {
                    self.raise_sgi(cpu, request, intid);
                }
            }
            return;
        }
        let range = if self.has_range_selector() { value.range() } else { 0 };
        let mut targets = value.targets();
        while targets != 0 {
            let aff0 = range << 4 | targets.trailing_zeros() as u8;
            targets &= targets - 1;
            let name = Affinity::new(value.aff3(), value.aff2(), value.aff1(), aff0);
            if let Some(index) = self.named(name) {
                self.raise_sgi(&self.cpus[usize::from(index)], request, intid);
            }
        }
    }

    fn raise_sgi(&self, cpu: &Cpu, request: SgiRequest, intid: u32) {
        let any_group = request == SgiRequest::Group1 && self.options.behaviour.sgi1_raises_group0;
        let raise = |state: IrqState| {
            let right = state.group1() == (request == SgiRequest::Group1);
            if right || any_group { state.with_latch(true) } else { state }
        };
        if let Some(irq) = cpu.private.get(intid as usize) {
            self.update(irq, intid, raise);
        }
    }
}
