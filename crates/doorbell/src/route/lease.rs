//! GSIs on loan to the vectors of devices: taken lazily, given back, and never confused.

use super::{
    RouteTable,
    cell::{Kind, Payload},
    table::outcome,
};
use crate::{
    Delivery, Error, MsiMessage, SlotFire, VectorPath, VectorSlot,
    inflight::{Fired, OwnerState, Slot},
};

/// Which GSIs are lent, routed by the VMM, or kept by it.
pub(super) struct Leases {
    lent: Box<[u64]>,
    /// Not to be lent: routed or reserved, or no number at all.
    kept: Box<[u64]>,
    /// How many numbers there are.
    numbers: u32,
    /// Reserved for good: the GSIs of pins.
    reserved: u32,
    /// Where the search for a free GSI goes on, so that a GSI given back rests before it is lent again.
    next: u32,
    /// The number of the last loan.
    tag: u32,
}

impl Leases {
    pub(super) fn new(numbers: u32, reserved: u32) -> Self {
        let words = || vec![0; numbers.div_ceil(64) as usize].into_boxed_slice();
        let mut leases = Self { lent: words(), kept: words(), numbers, reserved, next: reserved, tag: 0 };
        for gsi in (0..reserved).chain(numbers..numbers.next_multiple_of(64)) {
            set_bit(&mut leases.kept, gsi, true);
        }
        leases
    }

    pub(super) fn is_lent(&self, gsi: u32) -> bool {
        self.lent[gsi as usize / 64] >> (gsi % 64) & 1 != 0
    }

    pub(super) fn set_routed(&mut self, gsi: u32, routed: bool) {
        set_bit(&mut self.kept, gsi, routed || gsi < self.reserved);
    }

    /// How many are lent.
    pub(super) fn count(&self) -> u32 {
        self.lent.iter().map(|word| word.count_ones()).sum()
    }

    /// Takes a free GSI and numbers the loan.
    fn take(&mut self) -> Result<VectorSlot, Error> {
        let gsi = self.free_from(self.next).or_else(|| self.free_from(0)).ok_or(Error::NoFreeGsi(self.numbers))?;
        set_bit(&mut self.lent, gsi, true);
        self.next = (gsi + 1) % self.numbers;
        self.tag = self.tag.wrapping_add(1).max(1);
        Ok(VectorSlot { gsi, tag: self.tag })
    }

    fn free_from(&self, first: u32) -> Option<u32> {
        let from = first as usize / 64;
        (from..self.lent.len()).find_map(|at| {
            let skip = if at == from { (1 << (first % 64)) - 1 } else { 0 };
            let free = !(self.lent[at] | self.kept[at] | skip);
            (free != 0).then(|| at as u32 * 64 + free.trailing_zeros())
        })
    }
}

fn set_bit(bits: &mut [u64], gsi: u32, value: bool) {
    let bit = 1 << (gsi % 64);
    if value {
        bits[gsi as usize / 64] |= bit;
    } else {
        bits[gsi as usize / 64] &= !bit;
    }
}

fn stale(slot: VectorSlot) -> Error {
    Error::Invalid {
        what: "the slot of GSI",
        value: slot.gsi.into(),
        allowed: "a slot is valid until it is given back",
    }
}

impl RouteTable {
    /// How many GSIs are on loan.
    pub fn lent(&self) -> u32 {
        self.config.lock().leases.count()
    }

    /// Changes a slot's configuration if it is not stale.
    fn change<T>(&self, slot: VectorSlot, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let cell = self.cells.get(slot.gsi as usize)?;
        cell.latch.configure(
            |state| (Payload(state.payload).tag() == slot.tag).then(|| change(state)),
            |payload| self.deliver(cell, payload),
        )
    }

    /// Ends a loan if the slot is not stale and `may` allows it: whether an event was pending.
    fn end_loan(&self, slot: VectorSlot, may: impl Fn(&Slot) -> bool) -> Option<bool> {
        let cell = self.cells.get(slot.gsi as usize).filter(|_| slot.tag != 0)?;
        let mut config = self.config.lock();
        let (pending, handed) = cell.latch.configure_taking(|state| {
            (Payload(state.payload).tag() == slot.tag && may(state)).then(|| {
                let pending = state.pending;
                *state = Slot { payload: 0, masked: false, pending: false };
                pending
            })
        });
        match pending {
            Some(pending) => {
                set_bit(&mut config.leases.lent, slot.gsi, false);
                Some(pending || handed)
            }
            None => {
                if handed {
                    // It was meant for whoever has the GSI now.
                    cell.latch.fire(|payload| self.deliver(cell, payload));
                }
                None
            }
        }
    }
}

fn slot_outcome(fired: Option<Fired<Delivery>>) -> SlotFire {
    match fired {
        None => SlotFire::Stale,
        Some(Fired::Pending { .. }) => SlotFire::Pending,
        Some(fired) => SlotFire::Sent(outcome(fired)),
    }
}

impl VectorPath for RouteTable {
    fn lease(&self) -> Result<VectorSlot, Error> {
        let mut config = self.config.lock();
        let slot = config.leases.take()?;
        let cell = &self.cells[slot.gsi as usize];
        // An irqfd may be bound to the number without a route (F7); its events stay swallowed, so those that came
        // meanwhile are not delivered by the loan.
        let _swallowed = cell.latch.configure_taking(|state| {
            *state = Slot { payload: Payload::new(slot.tag, Kind::None).0, masked: true, pending: false };
        });
        Ok(slot)
    }

    fn release(&self, slot: VectorSlot) -> bool {
        self.end_loan(slot, |_| true).unwrap_or(false)
    }

    fn reclaim(&self, slot: VectorSlot) -> Option<bool> {
        self.end_loan(slot, |state| state.masked)
    }

    fn is_current(&self, slot: VectorSlot) -> bool {
        let cell = self.cells.get(slot.gsi as usize);
        slot.tag != 0 && cell.is_some_and(|cell| Payload(cell.latch.peek().payload).tag() == slot.tag)
    }

    fn set_message(&self, slot: VectorSlot, message: &MsiMessage) -> Result<(), Error> {
        let kind = self.message_kind(message);
        self.change(slot, |state| {
            self.cells[slot.gsi as usize].set_message(message);
            state.payload = Payload::new(slot.tag, kind).0;
        })
        .filter(|_| slot.tag != 0)
        .ok_or_else(|| stale(slot))
    }

    fn set_messages(&self, batch: &[(VectorSlot, MsiMessage)]) -> Result<(), Error> {
        if let Some((slot, _)) = batch.iter().find(|(slot, _)| !self.is_current(*slot)) {
            return Err(stale(*slot));
        }
        batch.iter().try_for_each(|(slot, message)| self.set_message(*slot, message))
    }

    fn mask(&self, slot: VectorSlot) {
        let Some(cell) = self.cells.get(slot.gsi as usize).filter(|_| slot.tag != 0) else { return };
        cell.latch.mask_if(|payload| Payload(payload).tag() == slot.tag, |payload| self.deliver(cell, payload));
    }

    fn unmask(&self, slot: VectorSlot) -> Option<Delivery> {
        let cell = self.cells.get(slot.gsi as usize).filter(|_| slot.tag != 0)?;
        cell.latch.unmask_if(|payload| Payload(payload).tag() == slot.tag, |payload| self.deliver(cell, payload))
    }

    fn is_pending(&self, slot: VectorSlot) -> bool {
        self.is_current(slot) && self.cells[slot.gsi as usize].latch.peek().pending
    }

    #[inline]
    fn fire(&self, slot: VectorSlot) -> SlotFire {
        let Some(cell) = self.cells.get(slot.gsi as usize) else { return SlotFire::Stale };
        slot_outcome(
            cell.latch.fire_if(|payload| Payload(payload).tag() == slot.tag, |payload| self.deliver(cell, payload)),
        )
    }

    fn own(&self, slot: VectorSlot) -> Option<OwnerState> {
        if self.is_current(slot) { RouteTable::own(self, slot.gsi) } else { None }
    }

    #[inline]
    fn fire_owned(&self, slot: VectorSlot, owner: &mut OwnerState) -> SlotFire {
        let Some(cell) = self.cells.get(slot.gsi as usize) else { return SlotFire::Stale };
        slot_outcome(cell.latch.fire_owned_if(
            owner,
            |payload| Payload(payload).tag() == slot.tag,
            |payload| self.deliver(cell, payload),
        ))
    }

    fn disown(&self, slot: VectorSlot, owner: OwnerState) {
        RouteTable::disown(self, slot.gsi, owner);
    }
}
