//! Messages in remappable format and the entries of the interrupt remapping table (VT-d specification, sections
//! "Interrupt Remapping" and "Interrupt Remapping Table Entry (IRTE)"): what they look like, and what is made of them.

use bitfield_struct::bitfield;

use super::faults::{Fault, Reason};
use crate::{
    DeviceId, MsiMessage,
    chips::x86::message::{DeliveryMode, MessageAddress, MessageData},
    remap::Way,
};

/// The prefix of the address of every interrupt message.
pub const PREFIX: u64 = MessageAddress::PREFIX as u64;
/// The requester that stands for a message whose sender is not named.
pub const NO_REQUESTER: u16 = 0xffff;

/// The address of a message.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RequestAddress {
    #[bits(2)]
    __: u8,
    /// Bit 15 of the handle.
    pub handle_high: bool,
    /// The data's low half is added to the handle.
    pub subhandle_valid: bool,
    /// Remappable format.
    pub remappable: bool,
    /// Bits 14:0 of the handle.
    #[bits(15)]
    pub handle: u16,
    /// [`PREFIX`], or it is not an interrupt.
    #[bits(44)]
    pub prefix: u64,
}

impl RequestAddress {
    /// The index of the entry for a message with these data: 0 to 131,070.
    pub fn index(self, data: u32) -> u32 {
        let handle = u32::from(self.handle()) | u32::from(self.handle_high()) << 15;
        handle + if self.subhandle_valid() { data & 0xffff } else { 0 }
    }
}

/// An entry for remapping: the low half.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Remapped {
    pub present: bool,
    /// Faults of this entry are not recorded.
    pub fault_disable: bool,
    /// The destination is logical.
    pub logical: bool,
    /// Redirection hint.
    pub hint: bool,
    /// Level-triggered.
    pub level: bool,
    #[bits(3)]
    pub delivery_mode: u8,
    /// For software.
    #[bits(4)]
    pub available: u8,
    #[bits(3)]
    reserved: u8,
    /// The entry is a [`Posted`] one.
    pub posted: bool,
    pub vector: u8,
    reserved_high: u8,
    /// All 32 bits in extended mode, else bits 15:8.
    pub destination: u32,
}

/// An entry for posting: the low half.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Posted {
    pub present: bool,
    /// Faults of this entry are not recorded.
    pub fault_disable: bool,
    #[bits(6)]
    reserved: u8,
    /// For software.
    #[bits(4)]
    pub available: u8,
    #[bits(2)]
    reserved_middle: u8,
    /// Notifies though notifications are suppressed.
    pub urgent: bool,
    /// Always true.
    pub posted: bool,
    pub vector: u8,
    #[bits(14)]
    reserved_high: u16,
    /// Bits 31:6 of the descriptor's address.
    #[bits(26)]
    pub descriptor_low: u32,
}

/// The high half of either.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Validation {
    /// Whom it is for.
    pub source: u16,
    /// Which bits of the requester are not looked at: 0 all are, 1 not bit 2, 2 not bits 2:1, 3 not bits 2:0.
    #[bits(2)]
    pub qualifier: u8,
    /// 0 nothing is checked, 1 the requester is [`source`](Self::source), 2 its bus is in the range there.
    #[bits(2)]
    pub kind: u8,
    #[bits(12)]
    reserved: u16,
    /// Posted: bits 63:32 of the descriptor's address.
    pub descriptor_high: u32,
}

impl Validation {
    /// Whether this requester may use the entry; `None` if the check is not one that exists.
    pub fn admits(self, requester: u16) -> Option<bool> {
        let ignored = [0, 0b100, 0b110, 0b111][usize::from(self.qualifier())];
        match self.kind() {
            0 => Some(true),
            1 => Some((requester ^ self.source()) & !ignored == 0),
            2 => {
                let [last, first] = self.source().to_le_bytes();
                Some((first..=last).contains(&(requester >> 8).to_le_bytes()[0]))
            }
            _ => None,
        }
    }
}

/// The delivery modes that exist: fixed, lowest priority, SMI, NMI, INIT, ExtINT.
const DELIVERY_MODES: [u8; 6] = [0, 1, 2, 4, 5, 7];

/// How entries are read.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Extended interrupt mode.
    pub extended_mode: bool,
    /// Posted entries are offered.
    pub posted: bool,
}

/// What an entry makes of a message from `requester`.
///
/// # Errors
/// Why it is blocked.
pub fn apply(rules: Rules, [low, high]: [u64; 2], index: u32, requester: u16) -> Result<Way, Fault> {
    let entry = Remapped::from_bits(low);
    let validation = Validation::from_bits(high);
    let fault = |reason| Fault { reason, index, requester, quiet: entry.fault_disable() };
    if !entry.present() {
        return Err(fault(Reason::NotPresent));
    }
    let posted = Posted::from_bits(low);
    let well_formed = validation.reserved() == 0
        && if entry.posted() {
            rules.posted && posted.reserved() == 0 && posted.reserved_middle() == 0 && posted.reserved_high() == 0
        } else {
            let destination = rules.extended_mode || entry.destination() & !0xff00 == 0;
            entry.reserved() == 0
                && entry.reserved_high() == 0
                && validation.descriptor_high() == 0
                && destination
                && DELIVERY_MODES.contains(&entry.delivery_mode())
        };
    match validation.admits(requester) {
        Some(admitted) if well_formed => {
            if !admitted {
                return Err(fault(Reason::WrongSource));
            }
        }
        _ => return Err(fault(Reason::ReservedInEntry)),
    }
    Ok(if entry.posted() { post(posted, validation, index, requester) } else { message(rules, entry) })
}

/// The address that reaches this destination.
fn address(rules: Rules, destination: u32) -> MessageAddress {
    let id = if rules.extended_mode { destination } else { destination >> 8 & 0xff };
    MessageAddress::to(id, false)
}

fn message(rules: Rules, entry: Remapped) -> Way {
    let address = address(rules, entry.destination()).with_logical(entry.logical()).with_hint(entry.hint());
    let data = MessageData::new()
        .with_vector(entry.vector())
        .with_delivery_mode(DeliveryMode::from_bits(entry.delivery_mode()))
        .with_assert(true)
        .with_level(entry.level());
    Way::Message { address: address.into_bits(), data: data.into_bits() }
}

/// The message that notifies of a posted interrupt: fixed, physical, an edge.
pub fn notification(rules: Rules, vector: u8, destination: u32) -> MsiMessage {
    let data = MessageData::new().with_vector(vector).with_assert(true);
    MsiMessage::new(address(rules, destination).into_bits(), data.into_bits())
}

/// What a posted entry says, as it is remembered: the descriptor's address with `urgent` in bit 0, and the rest.
#[bitfield(u64)]
pub struct Post {
    pub vector: u8,
    pub fault_disable: bool,
    #[bits(23)]
    __: u32,
    pub index: u16,
    pub requester: u16,
}

fn post(entry: Posted, validation: Validation, index: u32, requester: u16) -> Way {
    let descriptor = u64::from(validation.descriptor_high()) << 32 | u64::from(entry.descriptor_low()) << 6;
    let rest = Post::new()
        .with_vector(entry.vector())
        .with_fault_disable(entry.fault_disable())
        .with_index(index as u16)
        .with_requester(requester);
    Way::Post([descriptor | u64::from(entry.urgent()), rest.into_bits()])
}

/// The requester of a message, as PCI knows it.
pub fn requester(message: &MsiMessage) -> u16 {
    message.device_id.map_or(NO_REQUESTER, |DeviceId(id)| u16::try_from(id).unwrap_or(NO_REQUESTER))
}
