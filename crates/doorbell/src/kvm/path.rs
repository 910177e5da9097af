//! The vectors of devices on a VM of the kernel: GSIs of the table, whose eventfds may be in the kernel.

use std::sync::Arc;

use super::irqfds::Irqfds;
use crate::inflight::OwnerState;
use crate::{Delivery, Error, MsiMessage, SlotFire, VectorPath, VectorSlot};

/// The table's own way, and after each change the places of the eventfds that it concerns.
pub(super) struct KvmPath(pub(super) Arc<Irqfds>);

impl VectorPath for KvmPath {
    fn lease(&self) -> Result<VectorSlot, Error> {
        self.0.table.lease()
    }

    fn release(&self, slot: VectorSlot) -> bool {
        let pending = self.0.table.release(slot);
        // An event in a parked counter goes to the device's own sink again.
        self.0.settle([slot.gsi]);
        pending
    }

    fn reclaim(&self, slot: VectorSlot) -> Option<bool> {
        let pending = self.0.table.reclaim(slot);
        self.0.settle([slot.gsi]);
        pending
    }

    fn is_current(&self, slot: VectorSlot) -> bool {
        self.0.table.is_current(slot)
    }

    fn set_message(&self, slot: VectorSlot, message: &MsiMessage) -> Result<(), Error> {
        self.0.table.set_message(slot, message)?;
        self.0.settle([slot.gsi]);
        Ok(())
    }

    fn set_messages(&self, batch: &[(VectorSlot, MsiMessage)]) -> Result<(), Error> {
        self.0.table.set_messages(batch)?;
        self.0.settle(batch.iter().map(|(slot, _)| slot.gsi));
        Ok(())
    }

    fn mask(&self, slot: VectorSlot) {
        self.0.table.mask(slot);
        self.0.settle([slot.gsi]);
    }

    fn unmask(&self, slot: VectorSlot) -> Option<Delivery> {
        if !self.0.is_held(slot.gsi) {
            // Nobody is parked, and who is promoted meanwhile looks at the table after this or before.
            return self.0.table.unmask(slot);
        }
        let mut places = self.0.lock();
        if places.is_held_for(slot.gsi, slot.tag) {
            places.remember(slot.gsi);
        }
        let delivery = self.0.table.unmask(slot);
        places.settle(&[slot.gsi]);
        delivery
    }

    fn is_pending(&self, slot: VectorSlot) -> bool {
        if self.0.is_held(slot.gsi) {
            let mut places = self.0.lock();
            if places.is_held_for(slot.gsi, slot.tag) {
                places.remember(slot.gsi);
            }
        }
        self.0.table.is_pending(slot)
    }

    #[inline]
    fn fire(&self, slot: VectorSlot) -> SlotFire {
        VectorPath::fire(&*self.0.table, slot)
    }

    fn own(&self, slot: VectorSlot) -> Option<OwnerState> {
        VectorPath::own(&*self.0.table, slot)
    }

    #[inline]
    fn fire_owned(&self, slot: VectorSlot, owner: &mut OwnerState) -> SlotFire {
        VectorPath::fire_owned(&*self.0.table, slot, owner)
    }

    fn disown(&self, slot: VectorSlot, owner: OwnerState) {
        VectorPath::disown(&*self.0.table, slot, owner);
    }
}
