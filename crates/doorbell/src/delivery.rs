//! The seams between the stations: what may be sent to the right, and what comes back.

use crate::{Error, MsiMessage, inflight::OwnerState, irq_line::LineSource, list::List};

/// What became of an interrupt; KVM's status of a line call (> 0, 0, -1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Nobody took it: masked, unrouted, or no CPU matches.
    Ignored,
    /// Merged with an earlier one that is still pending.
    Coalesced,
    /// This many CPUs took it.
    Delivered(u32),
}

impl Delivery {
    /// The number that `KVM_IRQ_LINE_STATUS` reports: -1, 0, or how many took it.
    pub fn status(self) -> i32 {
        match self {
            Self::Ignored => -1,
            Self::Coalesced => 0,
            Self::Delivered(n) => i32::try_from(n).unwrap_or(i32::MAX),
        }
    }

    /// The result of one interrupt that went two ways (x86: to the 8259 and to the IOAPIC). As in KVM, a way that
    /// ignored it counts only if all did.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ignored, way) | (way, Self::Ignored) => way,
            (Self::Delivered(a), Self::Delivered(b)) => Self::Delivered(a.saturating_add(b)),
            (Self::Delivered(n), Self::Coalesced) | (Self::Coalesced, Self::Delivered(n)) => Self::Delivered(n),
            (Self::Coalesced, Self::Coalesced) => Self::Coalesced,
        }
    }
}

/// A message resolved in advance by an [`MsiTarget`]: 24 bits whose meaning only that target knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target(u32);

impl Target {
    /// How many bits a target has.
    pub const BITS: u32 = 24;

    /// The target with this number, or `None` if it does not fit.
    pub const fn new(bits: u32) -> Option<Self> {
        if bits >> Self::BITS == 0 { Some(Self(bits)) } else { None }
    }

    /// The number given to [`Target::new`].
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Something that messages can be sent to: the local APICs, an ITS, an interrupt remapper in front of either, KVM.
pub trait MsiTarget: Send + Sync {
    /// Sends a message. `Ok(Delivered(0))` does not occur: KVM's 0, "no CPU matches", is [`Delivery::Coalesced`] in
    /// status and is reported so.
    ///
    /// # Errors
    /// Where the architecture makes a message an error ([`Error::errno`] says which of KVM's it is).
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error>;

    /// Resolves a message for the hot path, or `None` if it must go through [`send`](Self::send) each time.
    ///
    /// A target stays valid for ever: what it resolves to must follow later changes of the controller (an APIC that
    /// changes its id, an event that is mapped elsewhere) by itself.
    fn prepare(&self, message: &MsiMessage) -> Option<Target>;

    /// Sends the message that `target` was prepared from. Takes no lock, allocates nothing, makes no system call
    /// other than the [`Kick`](crate::Kick). A target of another controller delivers nothing or something harmless,
    /// and never panics.
    fn fire(&self, target: Target) -> Delivery;

    /// Whether a message's DeviceID counts, as for an ITS (KVM_CAP_MSI_DEVID).
    fn takes_device_ids(&self) -> bool {
        false
    }
}

/// The number of a chip that has pins; KVM's `irqchip` field (x86: 0 and 1 the 8259 pair, 2 the IOAPIC).
pub type ChipId = u8;

/// Something with input pins: the 8259 pair, an IOAPIC, a distributor.
pub trait PinInput: Send + Sync {
    /// How many pins `chip` has; 0 if there is no such chip.
    fn pins(&self, chip: ChipId) -> u16;

    /// Drives one source of a pin; the pin's level is the OR of its sources.
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery;

    /// Up and down again, as an irqfd does; the answer is that of the rising edge.
    fn pulse(&self, chip: ChipId, pin: u16, source: LineSource) -> Delivery {
        let delivery = self.set(chip, pin, source, true);
        self.set(chip, pin, source, false);
        delivery
    }

    /// Looks again at pins whose interrupt has ended: what is still high is sent again.
    fn reevaluate(&self, chip: ChipId, pins: &Pins);

    /// Forgets the latches of pins that the guest has just unmasked, before their devices are asked to raise the lines
    /// again (irqfd R6). For chips that latch a level; others have nothing to forget.
    fn withdraw(&self, _chip: ChipId, _pins: &Pins) {}
}

/// Pins of one chip, as an end of interrupt returns them.
pub type Pins = List<u16, 24>;

/// A GSI on loan to one vector of one device: the GSI and the number of the loan.
///
/// The number makes a stale slot harmless: a GSI that has been taken back and lent to another device answers
/// [`SlotFire::Stale`] to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorSlot {
    /// The GSI.
    pub gsi: u32,
    /// Which loan of it this is; never 0.
    pub tag: u32,
}

/// What became of an event that was fired through a [`VectorSlot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFire {
    /// It reached the controller (or a configuration call that delivers it at its end).
    Sent(Delivery),
    /// The slot is masked: it is pending there.
    Pending,
    /// The slot belongs to somebody else by now; nothing happened.
    Stale,
}

/// What a source that owns vectors (MSI-X, MSI) needs to its right: GSIs on loan, each with a message, a mask and a
/// pending bit. Every call is complete in the sense of [`inflight`](crate::inflight) when it returns; a call with a
/// stale slot is refused with [`Error::Invalid`] or does nothing.
pub trait VectorPath: Send + Sync {
    /// Lends a free GSI, masked and without a message.
    ///
    /// # Errors
    /// [`Error::NoFreeGsi`].
    fn lease(&self) -> Result<VectorSlot, Error>;

    /// Takes it back and says whether an event was pending. Afterwards the slot is stale.
    fn release(&self, slot: VectorSlot) -> bool;

    /// Takes a slot back if it is masked, in one step, from any thread: `Some` of whether an event was pending, `None`
    /// if the slot is not masked or stale, or if the path cannot do this.
    ///
    /// This is how a device that finds no free GSI takes one from a masked vector of another device. A path that has
    /// it must also have [`is_current`](Self::is_current), and its `mask` and `unmask` must do nothing to a slot that
    /// is taken back meanwhile.
    fn reclaim(&self, slot: VectorSlot) -> Option<bool> {
        let _ = slot;
        None
    }

    /// Whether the loan still runs. The default is for paths that never [`reclaim`](Self::reclaim).
    fn is_current(&self, slot: VectorSlot) -> bool {
        let _ = slot;
        true
    }

    /// Gives the slot its message; events from now on carry it.
    ///
    /// # Errors
    /// Where the controller cannot take such a message, or the slot is stale.
    fn set_message(&self, slot: VectorSlot, message: &MsiMessage) -> Result<(), Error>;

    /// The same for many at once: one commit on a path where a commit is dear (KVM).
    ///
    /// # Errors
    /// As [`set_message`](Self::set_message); a batch that fails changes nothing.
    fn set_messages(&self, batch: &[(VectorSlot, MsiMessage)]) -> Result<(), Error>;

    /// Makes events pending.
    fn mask(&self, slot: VectorSlot);

    /// Lets events through and delivers the pending one, if any.
    fn unmask(&self, slot: VectorSlot) -> Option<Delivery>;

    /// Whether an event is pending behind the mask.
    fn is_pending(&self, slot: VectorSlot) -> bool;

    /// An event, from any thread.
    fn fire(&self, slot: VectorSlot) -> SlotFire;

    /// Makes the caller the single owner of the slot's source, which may then use
    /// [`fire_owned`](Self::fire_owned); `None` while there is one, or where the path knows no owners.
    fn own(&self, slot: VectorSlot) -> Option<OwnerState>;

    /// An event from the single owner.
    fn fire_owned(&self, slot: VectorSlot, owner: &mut OwnerState) -> SlotFire;

    /// Ends an ownership, of a stale slot too.
    fn disown(&self, slot: VectorSlot, owner: OwnerState);
}

/// Where the events of one descriptor go.
pub trait EventSink: Send + Sync {
    /// One event, however often the descriptor was written since the last one.
    fn signal(&self) -> Delivery;
}

/// A sink whose events do nothing but fire one slot, for as long as it has one: a station further right, such as the
/// kernel, can then take the descriptor in its place.
pub trait VectorSource: EventSink {
    /// The slot that an event would fire at the moment; `None` while it would do anything else. Takes no lock, and calls
    /// nothing back.
    fn slot(&self) -> Option<VectorSlot>;
}

impl<F: Fn() -> Delivery + Send + Sync> EventSink for F {
    fn signal(&self) -> Delivery {
        self()
    }
}
