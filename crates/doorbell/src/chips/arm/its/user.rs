//! Registers as a VMM saves and restores them: KVM's attribute group `KVM_DEV_ARM_VGIC_GRP_ITS_REGS`.

use super::{
    registers::{FRAME, offset},
    sink::LpiSink,
    unit::{Unit, is_wide},
};
use crate::Errno;

/// The register that an attribute names.
fn register(at: u64) -> Result<u64, Errno> {
    let narrow = !(offset::TYPER..offset::PIDR4).contains(&at);
    if at % if narrow { 4 } else { 8 } != 0 {
        return Err(Errno::INVAL);
    }
    // As in KVM, the upper half of an attribute does not count.
    let at = at & u64::from(u32::MAX);
    let known = matches!(at, offset::CTLR | offset::IIDR) || is_wide(at) || (offset::PIDR4..FRAME / 2).contains(&at);
    if known { Ok(at) } else { Err(Errno::NXIO) }
}

impl<L: LpiSink> Unit<L> {
    pub fn user_read(&self, at: u64) -> Result<u64, Errno> {
        let at = register(at)?;
        Ok(self.with(|state| state.bank.read(at, self.nature())))
    }

    pub fn user_write(&self, at: u64, value: u64) -> Result<(), Errno> {
        let at = register(at)?;
        self.with(|state| match at {
            // The revision of the format of the tables in guest memory; there is one.
            offset::IIDR if value >> 12 & 0xf != 0 => Err(Errno::INVAL),
            offset::IIDR => Ok(()),
            // I7.
            offset::CREADR if state.bank.enabled => Err(Errno::BUSY),
            offset::CREADR if !state.bank.set_creadr(value) => Err(Errno::INVAL),
            offset::CREADR => Ok(()),
            _ => {
                let mask = if is_wide(at) { u64::MAX } else { 0xffff_ffff };
                self.store(state, at, value, mask);
                Ok(())
            }
        })
    }
}
