//! Looking a message up: mode, table, entry, and the posted-interrupt descriptor.

use std::sync::Arc;

use bitfield_struct::bitfield;

use super::{
    VtdOptions,
    entry::{self, PREFIX, Post, RequestAddress, Rules},
    faults::{Fault, Faults, Reason},
    registers::{Global, TableAddress},
};
use crate::{
    Delivery, MsiMessage, MsiTarget,
    guest_ram::{GuestRam, GuestRamExt, NoMemory},
    remap::{Remapper, Way, read_128},
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// The tag of messages that name no entry; above every index.
const NO_ENTRY: u32 = 1 << 20;

/// What a message is looked up in.
pub struct Tables {
    pub options: VtdOptions,
    pub ram: Arc<dyn GuestRam>,
    pub inner: Arc<dyn MsiTarget>,
    /// [`Global`]: remapping and compatibility. Whoever stores it invalidates the cache afterwards.
    pub mode: AtomicU32,
    /// [`TableAddress`] in use. Whoever stores it invalidates the cache afterwards.
    pub table: AtomicU64,
    /// Lock order: after the cache's buckets and latches; the inner target is called while it is held.
    pub faults: Mutex<Faults>,
}

impl Tables {
    pub fn rules(&self) -> Rules {
        // Relaxed: a message that is posted while the guest changes it may be told the old or the new way.
        let table = TableAddress::from_bits(self.table.load(Ordering::Relaxed));
        Rules { extended_mode: table.extended_mode(), posted: self.options.posted }
    }

    /// Records why a message was blocked.
    #[cold]
    pub fn block(&self, fault: Option<Fault>) -> Delivery {
        if let Some(fault) = fault {
            self.faults.lock().record(&fault, &*self.inner);
        }
        Delivery::Ignored
    }
}

fn pass(message: &MsiMessage) -> Way {
    Way::Message { address: message.address, data: message.data }
}

impl Remapper for Tables {
    /// `None`: it is no interrupt request, as its address is not 0xFEExxxxx.
    type Fault = Option<Fault>;

    fn tag(&self, message: &MsiMessage) -> u32 {
        let address = RequestAddress::from_bits(message.address);
        if address.remappable() {
            address.index(message.data)
        } else {
            NO_ENTRY | (message.data ^ (message.address >> 12) as u32) & 0xffff
        }
    }

    fn remap(&self, message: &MsiMessage) -> Result<Way, Option<Fault>> {
        // Acquire: pairs with the Release in `Unit::command`; whoever sees remapping on sees the table it was set with.
        let mode = Global::from_bits(self.mode.load(Ordering::Acquire));
        if !mode.remapping() {
            return Ok(pass(message));
        }
        // Relaxed: ordered by the mode, and by the bucket that is held.
        let table = TableAddress::from_bits(self.table.load(Ordering::Relaxed));
        let address = RequestAddress::from_bits(message.address);
        if address.prefix() != PREFIX {
            return Err(None);
        }
        let requester = entry::requester(message);
        let index = address.index(message.data);
        let fault = |reason, index| Some(Fault { reason, index, requester, quiet: false });
        if !address.remappable() {
            if mode.compatibility() && !table.extended_mode() {
                return Ok(pass(message));
            }
            return Err(fault(Reason::Compatibility, 0));
        }
        if address.subhandle_valid() && message.data >> 16 != 0 {
            return Err(fault(Reason::ReservedInRequest, index));
        }
        if index >= table.entries() {
            return Err(fault(Reason::IndexTooLarge, index));
        }
        let entry = read_128(&*self.ram, table.entry(index)).map_err(|_| fault(Reason::TableUnreadable, index))?;
        let rules = Rules { extended_mode: table.extended_mode(), posted: self.options.posted };
        entry::apply(rules, entry, index, requester).map_err(Some)
    }

    fn post(&self, [descriptor, rest]: [u64; 2]) -> Delivery {
        let post = Post::from_bits(rest);
        let urgent = descriptor & 1 == 1;
        self.post_to(descriptor & !0x3f, urgent, post.vector()).unwrap_or_else(|reason| {
            let (index, requester) = (u32::from(post.index()), post.requester());
            self.block(Some(Fault { reason, index, requester, quiet: post.fault_disable() }))
        })
    }
}

/// The fifth word of a posted-interrupt descriptor; the first four are the requests, a bit for each vector.
#[bitfield(u64)]
struct Control {
    /// A notification is outstanding.
    outstanding: bool,
    /// No notifications, unless urgent.
    suppress: bool,
    #[bits(14)]
    reserved: u16,
    notification_vector: u8,
    reserved_high: u8,
    destination: u32,
}

impl Tables {
    /// Posts an interrupt (VT-d specification, section "Interrupt-Posting Hardware Operation"). The words are updated one
    /// by one, by [`GuestRam::fetch_or`]: the request first, so that whoever takes `outstanding` away sees it.
    fn post_to(&self, descriptor: u64, urgent: bool, vector: u8) -> Result<Delivery, Reason> {
        let unreadable = |_: NoMemory| Reason::DescriptorUnreadable;
        let word = |number: u64| descriptor.wrapping_add(8 * number);
        let tail: [u64; 3] = [
            self.ram.read_le(word(5)).map_err(unreadable)?,
            self.ram.read_le(word(6)).map_err(unreadable)?,
            self.ram.read_le(word(7)).map_err(unreadable)?,
        ];
        let control = Control::from_bits(self.ram.read_le(word(4)).map_err(unreadable)?);
        if tail != [0; 3] || control.reserved() != 0 || control.reserved_high() != 0 {
            return Err(Reason::ReservedInDescriptor);
        }
        let request = 1 << (vector % 64);
        let before = self.ram.fetch_or(word(u64::from(vector / 64)), request).map_err(unreadable)?;
        let control = Control::from_bits(self.ram.read_le(word(4)).map_err(unreadable)?);
        if !control.outstanding() && (urgent || !control.suppress()) {
            let outstanding = Control::new().with_outstanding(true).into_bits();
            let old = Control::from_bits(self.ram.fetch_or(word(4), outstanding).map_err(unreadable)?);
            if !old.outstanding() {
                let message = entry::notification(self.rules(), old.notification_vector(), old.destination());
                if let Err(error) = self.inner.send(&message) {
                    tracing::debug!(%error, "a notification was refused");
                }
            }
        }
        Ok(if before & request == 0 { Delivery::Delivered(1) } else { Delivery::Coalesced })
    }
}
