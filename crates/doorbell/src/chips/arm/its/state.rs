//! What an ITS saves beside its tables.

use super::{
    bank::{Bank, Nature},
    registers::offset,
    save::Plan,
    sink::LpiSink,
    unit::Unit,
};
use crate::Error;

/// The registers of a saved ITS. Devices, collections and events are in guest memory: [`Its::save_tables`](super::Its::save_tables).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs, reason = "the names are the manual's registers")]
pub struct ItsState {
    pub enabled: bool,
    pub cbaser: u64,
    pub cwriter: u64,
    pub creadr: u64,
    /// GITS_BASER0, of devices.
    pub devices: u64,
    /// GITS_BASER1, of collections.
    pub collections: u64,
}

impl ItsState {
    fn of(bank: &Bank) -> Self {
        let Bank { enabled, cbaser, cwriter, creadr, devices, collections } = bank;
        Self {
            enabled: *enabled,
            cbaser: cbaser.into_bits(),
            cwriter: *cwriter,
            creadr: *creadr,
            devices: devices.into_bits(),
            collections: collections.into_bits(),
        }
    }

    /// The registers, not enabled yet, if a guest could have made them so.
    fn bank(&self, nature: Nature) -> Result<Bank, Error> {
        let Self { enabled, cbaser, cwriter, creadr, devices, collections } = *self;
        let mut bank = Bank::new(nature);
        let wrong = |what, value: u64| Err(Error::Snapshot(format!("ITS: {what} cannot be {value:#x}")));
        for (what, at, value) in [
            ("GITS_CBASER", offset::CBASER, cbaser),
            ("GITS_BASER0", offset::BASER0, devices),
            ("GITS_BASER1", offset::BASER1, collections),
            ("GITS_CWRITER", offset::CWRITER, cwriter),
        ] {
            // At reset, a KVM-like ITS shows memory attributes that no store gives it.
            let reset = bank.read(at, nature) == value;
            if !reset {
                bank.write(at, value, u64::MAX, nature);
            }
            if bank.read(at, nature) != value {
                return wrong(what, value);
            }
        }
        if !bank.set_creadr(creadr) || bank.creadr != creadr {
            return wrong("GITS_CREADR", creadr);
        }
        if enabled && !bank.is_complete() {
            return Err(Error::Snapshot("ITS: it is enabled without a queue or a table".into()));
        }
        Ok(bank)
    }
}

impl<L: LpiSink> Unit<L> {
    pub fn save(&self) -> ItsState {
        self.with(|state| ItsState::of(&state.bank))
    }

    pub fn restore(&self, saved: &ItsState) -> Result<(), Error> {
        let bank = saved.bank(self.nature())?;
        let cx = self.context();
        self.with(|state| {
            // What is mapped now will not be there.
            let empty = state.mappings.emptied();
            let plan = Plan::read(&cx, bank.devices, bank.collections, &empty)?;
            self.enable(state, false);
            state.mappings.free_devices(&cx);
            state.mappings.free_collections(&cx);
            let result = state.mappings.apply(&cx, &plan);
            state.bank = bank;
            if result.is_ok() {
                state.bank.enabled = saved.enabled;
                self.enable(state, saved.enabled);
            }
            result
        })
    }

    pub fn save_tables(&self) -> Result<(), Error> {
        let cx = self.context();
        self.with(|state| state.mappings.save(&cx, state.bank.devices, state.bank.collections))
    }

    pub fn restore_tables(&self) -> Result<(), Error> {
        let cx = self.context();
        self.with(|state| {
            let plan = Plan::read(&cx, state.bank.devices, state.bank.collections, &state.mappings)?;
            state.mappings.apply(&cx, &plan)
        })
    }
}
