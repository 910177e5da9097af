//! A split chip: the kernel's local APICs, and doorbell's IOAPIC in front of them.
//!
//! The kernel reports an end of interrupt to user space only for vectors that a level route of GSIs 0 to 23 has
//! (`KVM_EXIT_IOAPIC_EOI`). So each redirection entry that can send a level interrupt is committed as the message route
//! of its pin's GSI, *before* the store that makes it so takes effect. Nothing is delivered by these routes: the IOAPIC
//! sends its messages itself. Resampling is done here, because the kernel refuses it without its own IOAPIC (F3).

use std::sync::Arc;

use parking_lot::Mutex;

use super::chips::KernelMsi;
use super::irqs::{KvmIrqs, KvmOptions};
use super::routes::KernelRoutes;
use super::{KernelRoute, Vm};
use crate::chips::x86::ioapic::{
    CHIP, Effect, FIRST_ENTRY, INDEX, IoApic, IoApicOptions, IoApicSnapshot, PINS, RedirectionEntry, WINDOW,
};
use crate::manager::IrqManager;
use crate::{Error, MsiMessage};

/// How many GSIs the kernel must keep for the IOAPIC: the first argument of `KVM_CAP_SPLIT_IRQCHIP`.
pub const SPLIT_PINS: u64 = PINS as u64;

/// The IOAPIC of a VM with a split chip, and its manager.
pub struct SplitChip {
    irqs: KvmIrqs,
    manager: IrqManager,
    ioapic: Arc<IoApic>,
    device_id: Option<crate::DeviceId>,
    routes: Arc<KernelRoutes>,
    /// What is committed for each pin. Lock order: left of everything, as a guest's store begins here; an
    /// end of interrupt does not take it.
    committed: Mutex<[Option<MsiMessage>; PINS]>,
}

impl SplitChip {
    /// For a VM on which `KVM_CAP_SPLIT_IRQCHIP` was enabled with [`SPLIT_PINS`]. Replaces its routing table.
    ///
    /// # Errors
    /// Where the kernel refuses the table, so where there is no split chip, or there are no more descriptors.
    pub fn new(vm: Arc<Vm>, ioapic: IoApicOptions, options: KvmOptions) -> Result<Self, Error> {
        let device_id = ioapic.device_id;
        let routes = Arc::new(KernelRoutes::new(Arc::clone(&vm), Vec::new()));
        routes.set_fixed(Vec::new())?;
        let ioapic = Arc::new(IoApic::new(Arc::new(KernelMsi::new(Arc::clone(&vm))), ioapic));
        let irqs = KvmIrqs::split(vm, Arc::clone(&ioapic), Arc::clone(&routes), PINS as u32, options)?;
        let manager = irqs.manager();
        Ok(Self { irqs, manager, ioapic, device_id, routes, committed: Mutex::new([None; PINS]) })
    }

    /// The interrupts of the VM.
    pub fn irqs(&self) -> &KvmIrqs {
        &self.irqs
    }

    /// The IOAPIC, to look at; a guest's stores go through [`mmio_write`](Self::mmio_write).
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// A guest's load from the IOAPIC's window.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.ioapic.mmio_read(offset, data);
    }

    /// A guest's store to the IOAPIC's window.
    ///
    /// # Errors
    /// Where the kernel refuses the route of an entry; the store has not happened then.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut committed = self.committed.lock();
        if let (WINDOW, Some(value)) = (offset, low_word(data)) {
            let register = self.ioapic.read(INDEX);
            let pin = register.checked_sub(FIRST_ENTRY).map(|register| (register / 2) as usize);
            if let Some(pin) = pin.filter(|&pin| pin < PINS) {
                let old = self.ioapic.entry(pin).into_bits();
                let new = if register & 1 == 0 {
                    old & !0xffff_ffff | u64::from(value)
                } else {
                    old & 0xffff_ffff | u64::from(value) << 32
                };
                self.commit(&mut committed, &[(pin, RedirectionEntry::from_bits(new))])?;
            }
        }
        let effect = self.ioapic.mmio_write(offset, data);
        drop(committed);
        self.follow(effect);
        Ok(())
    }

    /// Stores whole entries, as many as there are with one routing call.
    ///
    /// # Errors
    /// Where the kernel refuses the routes; no entry is stored then.
    pub fn write_entries(&self, entries: &[(usize, RedirectionEntry)]) -> Result<(), Error> {
        let mut committed = self.committed.lock();
        self.commit(&mut committed, entries)?;
        let effects: Vec<_> = entries.iter().map(|(pin, entry)| self.ioapic.write_entry(*pin, *entry)).collect();
        drop(committed);
        effects.into_iter().for_each(|effect| self.follow(effect));
        Ok(())
    }

    /// The guest ended a level interrupt with this vector (`KVM_EXIT_IOAPIC_EOI`): lines are lowered, devices told, and
    /// what is still high is sent again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let ended = self.ioapic.end(vector);
        if !ended.is_empty() {
            self.manager.end(CHIP, &ended);
        }
    }

    /// Restores the IOAPIC, and commits the routes of its entries.
    ///
    /// # Errors
    /// What the IOAPIC or the kernel refuses.
    pub fn restore(&self, state: &IoApicSnapshot) -> Result<(), Error> {
        let mut committed = self.committed.lock();
        let entries: Vec<_> = state.pins.iter().map(|pin| RedirectionEntry::from_bits(pin.entry)).enumerate().collect();
        self.commit(&mut committed, &entries)?;
        self.ioapic.restore(state)
    }

    fn follow(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Ended(pins) => self.manager.end(CHIP, &pins),
            Effect::Unmasked(pins) => self.manager.unmasked(CHIP, &pins),
        }
    }

    /// Commits the routes that these entries need and do not have. A masked entry keeps the route that it had: the end
    /// of its last interrupt may still come.
    fn commit(
        &self,
        committed: &mut [Option<MsiMessage>; PINS],
        entries: &[(usize, RedirectionEntry)],
    ) -> Result<(), Error> {
        let mut next = *committed;
        for &(pin, entry) in entries {
            let Some(slot) = next.get_mut(pin) else { continue };
            if !entry.masked() {
                *slot = entry.level().then(|| entry.message(self.device_id));
            }
        }
        if next != *committed {
            let routes = next.iter().enumerate();
            let routes = routes
                .filter_map(|(gsi, message)| message.map(|message| KernelRoute::Msi { gsi: gsi as u32, message }));
            self.routes.set_fixed(routes.collect())?;
            *committed = next;
        }
        Ok(())
    }
}

/// A store's value as the IOAPIC takes it.
fn low_word(data: &[u8]) -> Option<u32> {
    let mut word = [0; 4];
    match data.len() {
        1 | 2 | 4 => word[..data.len()].copy_from_slice(data),
        8 => word.copy_from_slice(&data[..4]),
        _ => return None,
    }
    Some(u32::from_le_bytes(word))
}
