use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use doorbell::{Delivery, MsiMessage};

use super::{Chips, KernelMachine};
use crate::run::ledger::{Ledger, SPAN_LEVEL, Slot};

/// A machine over a fresh ledger, or a loud line where there is no /dev/kvm.
fn machine(chips: Chips, vcpus: u32) -> Option<(Ledger, OwnedFd, KernelMachine)> {
    let (ledger, memory) = Ledger::create(vcpus).unwrap();
    match KernelMachine::new(chips, &ledger, memory.as_fd()) {
        Ok(machine) => Some((ledger, memory, machine)),
        Err(error) if !std::path::Path::new("/dev/kvm").exists() => {
            eprintln!("SKIPPED, nothing was tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen in 10 s");
        std::thread::yield_now();
    }
}

fn message(slot: Slot) -> MsiMessage {
    MsiMessage::new(0xfee0_0000 | u64::from(slot.vcpu) << 12, slot.vector.into())
}

#[test]
fn the_guest_sees_each_number_once_and_ends_each_interrupt() {
    let Some((ledger, _memory, mut machine)) = machine(Chips::Kernel, 2) else { return };
    let slots = [Slot { vcpu: 0, vector: 0x20 }, Slot { vcpu: 1, vector: 0x20 }, Slot { vcpu: 1, vector: 0xff }];
    for slot in slots {
        ledger.cpu(slot.vcpu).span[slot.index().unwrap()].store(1, Ordering::Relaxed);
    }
    machine.start(&ledger).unwrap();
    for round in 1..=50 {
        for slot in slots {
            assert_eq!(ledger.publish(slot), round);
            assert_eq!(machine.irqs().signal_msi(&message(slot)).unwrap(), Delivery::Delivered(1));
            wait_for("the handler", || ledger.seen(slot) == round);
        }
    }
    // A vector that nobody uses, and one that finds nothing new.
    machine.irqs().signal_msi(&message(Slot { vcpu: 0, vector: 0x77 })).unwrap();
    machine.irqs().signal_msi(&message(slots[0])).unwrap();
    let first = ledger.cpu(0);
    wait_for("the last end of interrupt", || first.ended.load(Ordering::Relaxed) == 52);
    wait_for("the last end of interrupt", || ledger.cpu(1).ended.load(Ordering::Relaxed) == 100);
    assert!(machine.stop().into_iter().all(|vcpu| vcpu.is_ok()));
    for slot in slots {
        assert_eq!(ledger.cpu(slot.vcpu).count[slot.index().unwrap()].load(Ordering::Relaxed), 50, "{slot:?}");
    }
    assert_eq!((first.taken.load(Ordering::Relaxed), first.stray.load(Ordering::Relaxed)), (52, 1));
    assert_eq!(first.again[0].load(Ordering::Relaxed), 1);
    assert_eq!(ledger.cpu(1).last.load(Ordering::Relaxed), 0xff);
}

#[test]
fn the_handler_of_a_shared_vector_looks_at_every_sharer() {
    let Some((ledger, _memory, mut machine)) = machine(Chips::Kernel, 1) else { return };
    let sharers = [0x40, 0x41, 0x42].map(|vector| Slot { vcpu: 0, vector });
    let page = ledger.cpu(0);
    page.span[0x20].store(3 | SPAN_LEVEL, Ordering::Relaxed);
    machine.start(&ledger).unwrap();
    ledger.publish(sharers[0]);
    ledger.publish(sharers[2]);
    machine.irqs().signal_msi(&message(sharers[0])).unwrap();
    wait_for("the end of interrupt", || page.ended.load(Ordering::Relaxed) == 1);
    assert_eq!(sharers.map(|slot| ledger.seen(slot)), [1, 0, 1]);
    machine.irqs().signal_msi(&message(sharers[0])).unwrap();
    wait_for("the end of interrupt", || page.ended.load(Ordering::Relaxed) == 2);
    assert_eq!(page.again[0x20].load(Ordering::Relaxed), 1, "nobody had anything new");
    assert_eq!(page.stray.load(Ordering::Relaxed), 0);
}
