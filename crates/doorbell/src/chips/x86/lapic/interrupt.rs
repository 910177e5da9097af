//! One interrupt on its way to local APICs, and the forms it comes in.

use super::{
    ApicOptions, DeliveryMode, MessageAddress, MessageData,
    registers::{Icr, Shorthand},
};
use crate::{MsiMessage, Target};

/// An interrupt with its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub destination: u32,
    pub logical: bool,
    pub shorthand: Shorthand,
    pub mode: DeliveryMode,
    pub vector: u8,
    pub level: bool,
    pub assert: bool,
    /// Redirection hint.
    pub hint: bool,
}

impl Interrupt {
    /// As KVM reads a message: spec L10, Q5 and the extended ids of `KVM_CAP_X2APIC_API`; and as hypervisors read the
    /// extended destination.
    pub fn of_message(message: &MsiMessage, options: &ApicOptions) -> Self {
        let address = MessageAddress::from_bits(message.address);
        let data = MessageData::from_bits(message.data);
        Self {
            destination: address.wide_destination(options.extended_ids, options.ext_dest_id),
            logical: address.logical(),
            shorthand: Shorthand::None,
            mode: data.delivery_mode(),
            vector: data.vector(),
            level: data.level(),
            assert: true,
            hint: address.hint(),
        }
    }

    pub fn of_icr(icr: Icr, destination: u32) -> Self {
        Self {
            destination,
            logical: icr.logical(),
            shorthand: icr.shorthand(),
            mode: icr.delivery_mode(),
            vector: icr.vector(),
            level: icr.level(),
            assert: icr.assert(),
            hint: false,
        }
    }

    /// Exactly one of the CPUs that match is to take it.
    pub fn is_for_one(&self) -> bool {
        self.mode == DeliveryMode::LowestPriority || self.hint
    }

    /// A fixed interrupt for one CPU that is named by its id, packed; `None` for others.
    pub fn pack(&self) -> Option<Target> {
        let simple = self.mode == DeliveryMode::Fixed
            && !self.logical
            && self.shorthand == Shorthand::None
            && !self.hint
            && self.assert
            // The broadcast of xAPIC mode.
            && self.destination != 0xff
            && self.destination < 1 << 15;
        let packed = Packed::new()
            .with_vector(self.vector)
            .with_destination(self.destination as u16 & 0x7fff)
            .with_level(self.level);
        if simple { Target::new(packed.into_bits()) } else { None }
    }

    pub fn unpack(packed: Packed) -> Self {
        Self {
            destination: u32::from(packed.destination()),
            logical: false,
            shorthand: Shorthand::None,
            mode: DeliveryMode::Fixed,
            vector: packed.vector(),
            level: packed.level(),
            assert: true,
            hint: false,
        }
    }
}

/// The 24 bits of a [`Target`] of the local APICs.
#[bitfield_struct::bitfield(u32)]
pub(super) struct Packed {
    pub vector: u8,
    #[bits(15)]
    pub destination: u16,
    pub level: bool,
    __: u8,
}
