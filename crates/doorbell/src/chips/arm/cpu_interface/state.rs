//! What a CPU interface remembers.

use super::{
    CpuInterface,
    registers::{IccBpr, IccCtlr, PRIORITY_MASK},
};
use crate::Error;

/// Everything that a [`CpuInterface`] remembers, to be restored into one of a GIC with the same options. What is pending
/// and active belongs to the GIC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CpuInterfaceState {
    /// ICC_PMR_EL1.
    pub pmr: u8,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1, each as it is kept: the second does not follow CBPR.
    pub bpr: [u8; 2],
    /// The bits of ICC_CTLR_EL1 that can be written.
    pub ctlr: u64,
    /// ICC_IGRPEN0_EL1 in bit 0 and ICC_IGRPEN1_EL1 in bit 1.
    pub igrpen: u8,
    /// ICC_AP0R0_EL1 and ICC_AP1R0_EL1.
    pub apr: [u32; 2],
}

impl CpuInterface {
    /// Everything, for [`restore`](Self::restore).
    pub fn save(&self) -> CpuInterfaceState {
        let enables = self.cpu().enables();
        let Self { gic: _, index: _, priority_mask, binary_points, control, active } = self;
        CpuInterfaceState {
            pmr: *priority_mask,
            bpr: *binary_points,
            ctlr: control.into_bits(),
            igrpen: u8::from(enables.group0()) | u8::from(enables.group1()) << 1,
            apr: *active,
        }
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no interface can be in that state; nothing is changed then.
    pub fn restore(&mut self, state: &CpuInterfaceState) -> Result<(), Error> {
        let CpuInterfaceState { pmr, bpr, ctlr, igrpen, apr } = state;
        let invalid = |what: &str, value: u64| Err(Error::Snapshot(format!("CPU interface: {what} {value:#x}")));
        if pmr & !PRIORITY_MASK != 0 {
            return invalid("a priority mask of more than 5 bits,", (*pmr).into());
        }
        for (value, least) in bpr.iter().zip([IccBpr::LEAST_0, IccBpr::LEAST_1]) {
            if !(least..=7).contains(value) {
                return invalid("a binary point out of range,", (*value).into());
            }
        }
        if ctlr & !IccCtlr::WRITABLE != 0 {
            return invalid("unknown bits in ICC_CTLR_EL1", *ctlr);
        }
        if igrpen & !3 != 0 {
            return invalid("unknown groups", (*igrpen).into());
        }
        self.priority_mask = *pmr;
        self.binary_points = *bpr;
        self.control = IccCtlr::from_bits(*ctlr);
        self.active = *apr;
        self.set_group_enables((*igrpen).into());
        Ok(())
    }
}
