//! What the registers hold, and what becomes of a store.

use super::registers::{Baser, Cbaser, Ctlr, QueuePointer, Typer, offset};
use crate::chips::arm::{Behaviour, Identity, registers::identification::Frame};

/// The registers of an ITS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bank {
    pub enabled: bool,
    pub cbaser: Cbaser,
    /// Offset of the first slot that the guest has not filled.
    pub cwriter: u64,
    /// Offset of the next command to run.
    pub creadr: u64,
    /// GITS_BASER0.
    pub devices: Baser,
    /// GITS_BASER1.
    pub collections: Baser,
}

/// What a store asks for beyond the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// It was enabled or disabled.
    pub enabled: Option<bool>,
    /// There is no device table any more.
    pub no_devices: bool,
    /// There is no collection table any more.
    pub no_collections: bool,
    /// There may be commands to run.
    pub commands: bool,
}

/// What an ITS is, as opposed to what its guest made of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    pub identity: Identity,
    pub behaviour: Behaviour,
}

impl Nature {
    fn typer(self) -> Typer {
        let typer = Typer::new().with_physical(true).with_event_bits(15).with_device_bits(15);
        match self.identity {
            // Entries of 8 bytes are written all the same; guests make room for 12.
            Identity::Qemu => typer.with_itt_entry_size(11).with_collection_limit(true).with_collection_bits(15),
            Identity::Doorbell | Identity::Kvm => typer.with_itt_entry_size(7),
        }
    }
}

impl Bank {
    pub fn new(nature: Nature) -> Self {
        let attributes = nature.identity != Identity::Qemu;
        Self {
            enabled: false,
            cbaser: Cbaser::new(),
            cwriter: 0,
            creadr: 0,
            devices: Baser::reset(Baser::DEVICES, attributes),
            collections: Baser::reset(Baser::COLLECTIONS, attributes),
        }
    }

    /// Back to reset, as KVM does it: of the tables, only their validity is forgotten.
    pub fn reset(&mut self) {
        let Self { enabled, cbaser, cwriter, creadr, devices, collections } = self;
        *enabled = false;
        *cbaser = Cbaser::new();
        (*cwriter, *creadr) = (0, 0);
        devices.set_valid(false);
        collections.set_valid(false);
    }

    /// Whether there is all that an enabled ITS needs.
    pub fn is_complete(&self) -> bool {
        self.devices.valid() && self.collections.valid() && self.cbaser.valid()
    }

    /// Whether the command queue has commands that have not been run.
    pub fn has_commands(&self) -> bool {
        self.creadr != self.cwriter
    }

    /// The value of the register, of 4 or 8 bytes, that begins at `at`.
    pub fn read(&self, at: u64, nature: Nature) -> u64 {
        match at {
            offset::CTLR => {
                Ctlr::new().with_enabled(self.enabled).with_quiescent(!self.has_commands()).into_bits().into()
            }
            offset::IIDR => nature.identity.implementer().into_bits().into(),
            offset::TYPER => nature.typer().into_bits(),
            offset::CBASER => self.cbaser.into_bits(),
            offset::CWRITER => self.cwriter,
            offset::CREADR => self.creadr,
            offset::BASER0 => self.devices.into_bits(),
            offset::BASER1 => self.collections.into_bits(),
            _ => nature.identity.register(Frame::Its, at).into(),
        }
    }

    /// Stores the bits of `value` that `mask` has to the register that begins at `at`.
    pub fn write(&mut self, at: u64, value: u64, mask: u64, nature: Nature) -> Effect {
        let merged = |old: u64| old & !mask | value & mask;
        let mut effect = Effect::default();
        match at {
            offset::CTLR => effect = self.write_ctlr(Ctlr::from_bits(value as u32)),
            // I3: the registers of an enabled ITS stay as they are.
            offset::CBASER if !self.enabled => self.write_cbaser(merged(self.cbaser.into_bits()), nature),
            offset::CWRITER => {
                let cwriter = merged(self.cwriter) & QueuePointer::WRITABLE;
                // I5.
                if cwriter < self.cbaser.bytes() {
                    self.cwriter = cwriter;
                    effect.commands = true;
                }
            }
            offset::BASER0 if !self.enabled => {
                self.devices = stored(self.devices, merged(self.devices.into_bits()), nature);
                effect.no_devices = !self.devices.valid();
            }
            offset::BASER1 if !self.enabled => {
                self.collections = stored(self.collections, merged(self.collections.into_bits()), nature);
                effect.no_collections = !self.collections.valid();
            }
            _ => {}
        }
        effect
    }

    fn write_ctlr(&mut self, value: Ctlr) -> Effect {
        // I1.
        if value.enabled() && !self.enabled && !self.is_complete() {
            return Effect::default();
        }
        let was = std::mem::replace(&mut self.enabled, value.enabled());
        let enabled = (was != self.enabled).then_some(self.enabled);
        Effect { enabled, commands: self.enabled, ..Effect::default() }
    }

    fn write_cbaser(&mut self, value: u64, nature: Nature) {
        self.cbaser = if nature.behaviour.own_table_attributes {
            Cbaser::from_bits(value).as_kvm()
        } else {
            Cbaser::from_bits(value & Cbaser::WRITABLE)
        };
        // I4. A pointer that is not in the queue would never be reached.
        self.creadr = 0;
        if nature.behaviour.cbaser_resets_cwriter || self.cwriter >= self.cbaser.bytes() {
            self.cwriter = 0;
        }
    }

    /// GITS_CREADR, by the VMM: `false` if there is no such place in the queue.
    pub fn set_creadr(&mut self, value: u64) -> bool {
        let creadr = value & QueuePointer::WRITABLE;
        let fits = creadr < self.cbaser.bytes();
        if fits {
            self.creadr = creadr;
        }
        fits
    }

    /// The next command of an enabled ITS is done.
    pub fn command_done(&mut self, bytes: u64) {
        let next = self.creadr + bytes;
        self.creadr = if next < self.cbaser.bytes() { next } else { 0 };
    }
}

fn stored(old: Baser, value: u64, nature: Nature) -> Baser {
    let new = old.stored(value);
    // Collections are saved as a list, for which one level is enough.
    let flat = new.kind() == Baser::COLLECTIONS && nature.identity != Identity::Qemu;
    let new = new.with_indirect(new.indirect() && !flat);
    if nature.behaviour.own_table_attributes { new.as_kvm() } else { new }
}
