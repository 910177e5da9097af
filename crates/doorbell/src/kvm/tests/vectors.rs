use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::fixture::{Machine, counter, event, full, to, write};
use crate::kvm::{Calls, Promotion};
use crate::manager::Irqfd;
use crate::pci::msix::RegisterPlace;
use crate::pci::msix::registers::{ADDRESS_LOW, CONTROL, DATA, ENTRY_BYTES, MessageControl, VECTOR_CONTROL};
use crate::pci::{InjectorMask, InjectorOptions, MsixCapability, MsixTable, VectorPool};
use crate::{Delivery, EventSink, MsiMessage, SlotFire, VectorPath, VectorSlot, VectorSource};

/// A vector of a device: the slot that it has, and the events that came while it had none.
struct Vector {
    path: Arc<dyn VectorPath>,
    slot: Mutex<Option<VectorSlot>>,
    homeless: Mutex<u32>,
}

impl EventSink for Vector {
    fn signal(&self) -> Delivery {
        let slot = *self.slot.lock();
        match slot.map_or(SlotFire::Stale, |slot| self.path.fire(slot)) {
            SlotFire::Sent(delivery) => delivery,
            SlotFire::Pending => Delivery::Coalesced,
            SlotFire::Stale => {
                *self.homeless.lock() += 1;
                Delivery::Ignored
            }
        }
    }
}

impl VectorSource for Vector {
    fn slot(&self) -> Option<VectorSlot> {
        *self.slot.lock()
    }
}

fn device(machine: &Machine, vector: u8) -> (Arc<Vector>, VectorSlot, OwnedFd, Irqfd) {
    let path = machine.manager.vectors();
    let slot = path.lease().unwrap();
    path.set_message(slot, &to(vector)).unwrap();
    path.unmask(slot);
    let device = Arc::new(Vector { path, slot: Mutex::new(Some(slot)), homeless: Mutex::new(0) });
    let fd = event();
    let irqfd = machine.irqs.bind_vector(&fd, Arc::clone(&device) as Arc<dyn VectorSource>).unwrap();
    (device, slot, fd, irqfd)
}

#[test]
fn a_vector_goes_to_the_kernel_and_back_with_its_slot() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let (device, slot, fd, _irqfd) = device(&machine, 0x51);
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x51);
    let before = machine.irqs.vm().calls();
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    write(&fd, 1);
    machine.arrives(0x51);
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, assign: 1, ..Calls::default() });

    device.path.mask(slot);
    write(&fd, 1);
    machine.nothing_arrives();
    assert!(device.path.is_pending(slot));
    device.path.set_message(slot, &to(0x52)).unwrap();
    assert_eq!(device.path.unmask(slot), Some(Delivery::Delivered(1)), "with the message that it has now");
    machine.arrives(0x52);
    machine.nothing_arrives();
}

#[test]
fn messages_of_a_batch_are_one_routing_call() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let devices: Vec<_> = (0x60..0x68).map(|vector| device(&machine, vector)).collect();
    assert_eq!(machine.irqs.promote().unwrap(), 8);
    let before = machine.irqs.vm().calls();
    let batch: Vec<(VectorSlot, MsiMessage)> =
        devices.iter().enumerate().map(|(n, (_, slot, ..))| (*slot, to(0x70 + n as u8))).collect();
    machine.manager.vectors().set_messages(&batch).unwrap();
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, ..Calls::default() });
    for (n, (_, _, fd, _)) in devices.iter().enumerate() {
        write(fd, 1);
        machine.arrives(0x70 + n as u8);
    }
    machine.nothing_arrives();
}

#[test]
fn a_gsi_is_detached_before_it_is_lent_again() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let (old, slot, fd, _irqfd) = device(&machine, 0x51);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    assert!(!old.path.release(slot));
    // Until the number comes round again.
    let path = machine.manager.vectors();
    let others: Vec<_> = std::iter::from_fn(|| path.lease().ok()).collect();
    assert!(others.iter().any(|other| other.gsi == slot.gsi), "the number is lent again");
    for other in &others {
        path.set_message(*other, &to(0x66)).unwrap();
        path.unmask(*other);
    }
    write(&fd, 1);
    machine.dispatch();
    machine.nothing_arrives();
    assert_eq!(*old.homeless.lock(), 1, "the event came to its own device (H-G)");
    assert_eq!(machine.irqs.promote().unwrap(), 0, "a stale slot is not promoted");
    assert_eq!(counter(&fd), 0);
}

#[test]
fn an_event_behind_the_mask_of_a_reclaimed_slot_goes_to_its_device() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let (device, slot, fd, _irqfd) = device(&machine, 0x51);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    assert_eq!(device.path.reclaim(slot), None, "it is not masked");
    write(&fd, 1);
    machine.arrives(0x51);
    device.path.mask(slot);
    write(&fd, 1);
    assert_eq!(device.path.reclaim(slot), Some(false), "nobody has looked at the counter");
    machine.dispatch();
    assert_eq!(*device.homeless.lock(), 1);
    machine.nothing_arrives();
}

#[test]
fn an_msix_vector_keeps_its_rules_on_the_kernels_chips() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let pool = VectorPool::new(machine.manager.vectors());
    let place = |offset| RegisterPlace { bar: 0, offset };
    let capability = MsixCapability::new(2, 0, place(0), place(0x800)).unwrap();
    let mut table = MsixTable::new(InjectorMask::new(&pool, 2, InjectorOptions::default()).unwrap()).unwrap();
    let fds = [event(), event()];
    let _irqfds: Vec<_> = (0..2)
        .map(|at| {
            let vector = table.strategy().vector(at).unwrap();
            machine.irqs.bind_vector(&fds[usize::from(at)], Arc::new(vector)).unwrap()
        })
        .collect();
    assert_eq!(machine.irqs.promote().unwrap(), 0, "no vector has a slot yet");
    let store = |table: &mut MsixTable<InjectorMask>, entry: u64, register, value: u32| {
        table.write(entry * ENTRY_BYTES + register, &value.to_le_bytes());
    };
    capability.write(&mut table, CONTROL, &MessageControl::new().with_enable(true).into_bits().to_le_bytes());
    for entry in 0..2 {
        store(&mut table, entry, ADDRESS_LOW, 0xfee0_0000);
        store(&mut table, entry, DATA, 0x71 + entry as u32);
        store(&mut table, entry, VECTOR_CONTROL, 0);
    }
    assert_eq!(machine.irqs.promote().unwrap(), 2);
    let before = machine.irqs.vm().calls();
    write(&fds[0], 1);
    write(&fds[1], 1);
    machine.arrives(0x71);
    machine.arrives(0x72);
    assert_eq!(machine.calls_since(before), Calls::default(), "by the kernel");

    // M2 to M5, with the eventfd parked meanwhile.
    store(&mut table, 0, VECTOR_CONTROL, 1);
    write(&fds[0], 1);
    write(&fds[0], 1);
    machine.nothing_arrives();
    let mut pba = [0; 8];
    table.read_pba(0, &mut pba);
    assert_eq!(u64::from_le_bytes(pba), 1);
    store(&mut table, 0, DATA, 0x73);
    store(&mut table, 0, VECTOR_CONTROL, 0);
    machine.arrives(0x73);
    machine.nothing_arrives();

    // M7: the Function Mask.
    let control = MessageControl::new().with_enable(true);
    capability.write(&mut table, CONTROL, &control.with_function_mask(true).into_bits().to_le_bytes());
    write(&fds[1], 1);
    machine.nothing_arrives();
    capability.write(&mut table, CONTROL, &control.into_bits().to_le_bytes());
    machine.arrives(0x72);
    machine.nothing_arrives();

    // M11: disabled, the vectors have no slots, and this device drops its events.
    capability.write(&mut table, CONTROL, &MessageControl::new().into_bits().to_le_bytes());
    write(&fds[1], 1);
    machine.dispatch();
    machine.nothing_arrives();
    assert_eq!(counter(&fds[1]), 0);
}

#[test]
fn more_vectors_than_the_kernel_has_routes_all_arrive() {
    let Some(machine) = full(Promotion::Manual) else { return };
    const VECTORS: usize = 4_200;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let devices: Vec<_> = (0..VECTORS).map(|at| device(&machine, 0x31 + (at % 64) as u8)).collect();

    // Those of the pins, of the 8259 pair and the IOAPIC, are taken.
    const PROMOTED: usize = 4_096 - 40;
    assert_eq!(machine.irqs.promote().unwrap(), PROMOTED);
    let before = machine.irqs.vm().calls();
    for at in [0, PROMOTED - 1, PROMOTED, VECTORS - 1] {
        let (_, slot, fd, _) = &devices[at];
        assert_eq!(slot.gsi, at as u32);
        write(fd, 1);
        machine.dispatch();
        machine.arrives(0x31 + (at % 64) as u8);
    }
    assert_eq!(machine.calls_since(before), Calls { signal_msi: 2, ..Calls::default() }, "two are in the kernel");
}
