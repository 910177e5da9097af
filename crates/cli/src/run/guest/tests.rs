use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use doorbell::kvm::{KvmOptions, Promotion};
use doorbell::manager::Irqfd;
use doorbell::route::{Pin, Route, RouteEntry};
use doorbell::{Delivery, MsiMessage};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

use super::{Chips, KernelMachine};
use crate::run::ledger::{Ledger, SPAN_LEVEL, Slot};

const ALL: [Chips; 3] = [Chips::Kernel, Chips::Split, Chips::None];

/// A machine over a fresh ledger, or a loud line where there is no /dev/kvm.
fn machine(chips: Chips, vcpus: u32, promotion: Promotion) -> Option<(Ledger, KernelMachine)> {
    let (ledger, memory) = Ledger::create(vcpus).unwrap();
    match KernelMachine::new(chips, &ledger, memory.as_fd(), KvmOptions::default().promotion(promotion)) {
        Ok(machine) => Some((ledger, machine)),
        Err(error) if !std::path::Path::new("/dev/kvm").exists() => {
            eprintln!("SKIPPED, nothing was tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(8), "{what} did not happen in 8 s");
        std::thread::yield_now();
    }
}

fn message(slot: Slot) -> MsiMessage {
    MsiMessage::new(0xfee0_0000 | u64::from(slot.vcpu) << 12, slot.vector.into())
}

fn use_slot(ledger: &Ledger, slot: Slot) {
    ledger.cpu(slot.vcpu).span[slot.index().unwrap()].store(1, Ordering::Relaxed);
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn write(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn counter(fd: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    rustix::io::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
}

/// Binds an eventfd to a GSI that leads to `slot`; the GSI is `24 + index`.
fn bind(machine: &KernelMachine, index: u32) -> (OwnedFd, Irqfd) {
    let fd = event();
    let irqs = machine.manager();
    let irqfd = irqs.irqfd(irqs.routed(24 + index).unwrap(), fd.as_fd()).unwrap();
    (fd, irqfd)
}

fn route(machine: &KernelMachine, slots: &[Slot]) {
    let entries = (24..).zip(slots).map(|(gsi, slot)| RouteEntry { gsi, route: Route::Msi(message(*slot)) });
    machine.manager().set_routes(&entries.collect::<Vec<_>>()).unwrap();
}

#[test]
fn the_guest_sees_each_number_once_and_ends_each_interrupt() {
    for chips in ALL {
        let Some((ledger, mut machine)) = machine(chips, 2, Promotion::Manual) else { return };
        let slots = [Slot { vcpu: 0, vector: 0x20 }, Slot { vcpu: 1, vector: 0x20 }, Slot { vcpu: 1, vector: 0xff }];
        slots.iter().for_each(|slot| use_slot(&ledger, *slot));
        machine.start(&ledger).unwrap();
        let irqs = machine.manager();
        for round in 1..=50 {
            for slot in slots {
                assert_eq!(ledger.publish(slot), round);
                assert_eq!(irqs.signal_msi(&message(slot)).unwrap(), Delivery::Delivered(1), "{chips:?}");
                wait_for("the handler", || ledger.seen(slot) == round);
            }
        }
        // A vector that nobody uses, and one that finds nothing new.
        irqs.signal_msi(&message(Slot { vcpu: 0, vector: 0x77 })).unwrap();
        irqs.signal_msi(&message(slots[0])).unwrap();
        let first = ledger.cpu(0);
        wait_for("the last end of interrupt", || first.ended.load(Ordering::Relaxed) == 52);
        wait_for("the last end of interrupt", || ledger.cpu(1).ended.load(Ordering::Relaxed) == 100);
        assert!(machine.stop().into_iter().all(|vcpu| vcpu.is_ok()), "{chips:?}");
        for slot in slots {
            let count = &ledger.cpu(slot.vcpu).count[slot.index().unwrap()];
            assert_eq!(count.load(Ordering::Relaxed), 50, "{chips:?} {slot:?}");
        }
        assert_eq!((first.taken.load(Ordering::Relaxed), first.stray.load(Ordering::Relaxed)), (52, 1), "{chips:?}");
        assert_eq!(first.again[0].load(Ordering::Relaxed), 1, "{chips:?}");
        assert_eq!(ledger.cpu(1).last.load(Ordering::Relaxed), 0xff, "{chips:?}");
    }
}

#[test]
fn the_handler_of_a_shared_vector_looks_at_every_sharer() {
    let Some((ledger, mut machine)) = machine(Chips::Kernel, 1, Promotion::Manual) else { return };
    let sharers = [0x40, 0x41, 0x42].map(|vector| Slot { vcpu: 0, vector });
    let page = ledger.cpu(0);
    page.span[0x20].store(3 | SPAN_LEVEL, Ordering::Relaxed);
    machine.start(&ledger).unwrap();
    ledger.publish(sharers[0]);
    ledger.publish(sharers[2]);
    machine.manager().signal_msi(&message(sharers[0])).unwrap();
    wait_for("the end of interrupt", || page.ended.load(Ordering::Relaxed) == 1);
    assert_eq!(sharers.map(|slot| ledger.seen(slot)), [1, 0, 1]);
    machine.manager().signal_msi(&message(sharers[0])).unwrap();
    wait_for("the end of interrupt", || page.ended.load(Ordering::Relaxed) == 2);
    assert_eq!(page.again[0x20].load(Ordering::Relaxed), 1, "nobody had anything new");
    assert_eq!(page.stray.load(Ordering::Relaxed), 0);
}

#[test]
fn the_end_of_a_level_interrupt_lowers_its_line_and_tells_every_sharer() {
    const ROUNDS: u32 = 20;
    for chips in ALL {
        let Some((ledger, mut machine)) = machine(chips, 2, Promotion::Manual) else { return };
        let slot = Slot { vcpu: 1, vector: 0x50 };
        ledger.cpu(1).span[0x30].store(1 | SPAN_LEVEL, Ordering::Relaxed);
        let irqs = machine.manager().clone();
        irqs.set_routes(&[RouteEntry { gsi: 10, route: Route::Pin(Pin { chip: 2, pin: 10 }) }]).unwrap();
        // Level, fixed, to vCPU 1.
        machine.set_redirection(10, 0x8050 | 1 << 56).unwrap();
        machine.start(&ledger).unwrap();
        let fds: Vec<_> = (0..2).map(|_| (event(), event())).collect();
        let routed = irqs.routed(10).unwrap();
        let bound: Vec<_> = fds
            .iter()
            .map(|(fd, resample)| irqs.irqfd_resample(routed, fd.as_fd(), resample.as_fd()).unwrap())
            .collect();
        let dispatching = irqs.dispatcher().spawn("dispatcher").unwrap();
        for round in 1..=ROUNDS {
            ledger.publish(slot);
            write(&fds[round as usize % 2].0);
            wait_for("the handler", || ledger.seen(slot) == round);
            for (_, resample) in &fds {
                let mut told = 0;
                wait_for(&format!("the resample event of {chips:?} in round {round}"), || {
                    told += counter(resample);
                    told != 0
                });
                assert_eq!(told, 1, "{chips:?}, round {round}");
            }
        }
        let page = ledger.cpu(1);
        assert_eq!(page.taken.load(Ordering::Relaxed), ROUNDS, "{chips:?}: the line was low after each end");
        assert_eq!(fds.iter().map(|(_, resample)| counter(resample)).sum::<u64>(), 0, "{chips:?}");
        drop((bound, dispatching));
        let reports: Vec<_> = machine.stop().into_iter().map(Result::unwrap).collect();
        let expected = if chips == Chips::Split { u64::from(ROUNDS) } else { 0 };
        assert_eq!(reports[1].eoi_exits, expected, "{chips:?}");
    }
}

/// Whether all that was written to an eventfd has been taken.
fn is_drained(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
}

#[test]
fn what_comes_behind_a_mask_is_handled_once_after_it() {
    for chips in ALL {
        let Some((ledger, mut machine)) = machine(chips, 1, Promotion::Manual) else { return };
        let slot = Slot { vcpu: 0, vector: 0x61 };
        use_slot(&ledger, slot);
        route(&machine, &[slot]);
        machine.start(&ledger).unwrap();
        let (fd, _irqfd) = bind(&machine, 0);
        let irqs = machine.manager().clone();
        let _dispatching = irqs.dispatcher().spawn("dispatcher").unwrap();
        let promoted = machine.kernel_irqs().map(|kernel| kernel.promote().unwrap());
        assert_eq!(promoted, (chips != Chips::None).then_some(1));
        let page = ledger.cpu(0);
        for round in 1..=20 {
            irqs.mask(24).unwrap();
            let taken = page.taken.load(Ordering::Relaxed);
            for _ in 0..3 {
                ledger.publish(slot);
                write(&fd);
            }
            wait_for("the pending bit", || {
                let mut bits = [0];
                irqs.pending(24..25, &mut bits);
                bits == [1] && is_drained(&fd)
            });
            // The last of the three was taken from the eventfd, and is being made pending.
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(page.taken.load(Ordering::Relaxed), taken, "{chips:?}: masked");
            assert!(irqs.unmask(24).unwrap().is_some());
            wait_for("the handler", || ledger.seen(slot) == 3 * round);
            wait_for("the end", || page.ended.load(Ordering::Relaxed) == page.taken.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(page.taken.load(Ordering::Relaxed), taken + 1, "{chips:?}, round {round}");
        }
    }
}

#[test]
fn a_storm_through_promotion_masks_and_new_routes_loses_and_duplicates_nothing() {
    const VECTORS: usize = 8;
    for chips in [Chips::Kernel, Chips::Split] {
        let Some((ledger, mut machine)) = machine(chips, 2, Promotion::Hot { events: 8, batch: 3 }) else { return };
        let slots: Vec<_> = (0..VECTORS).map(|n| Slot { vcpu: n as u32 % 2, vector: 0x30 + n as u8 }).collect();
        slots.iter().for_each(|slot| use_slot(&ledger, *slot));
        route(&machine, &slots);
        machine.start(&ledger).unwrap();
        let (fds, irqfds): (Vec<_>, Vec<_>) = (0..VECTORS as u32).map(|n| bind(&machine, n)).unzip();
        let kernel = machine.kernel_irqs().unwrap().clone();
        let irqs = machine.manager().clone();
        let dispatching = irqs.dispatcher().spawn("dispatcher").unwrap();
        let promoter = kernel.spawn_promoter().unwrap();
        let stop = AtomicBool::new(false);
        let before = kernel.vm().calls();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (ledger, slots, fds, stop) = (&ledger, &slots, &fds, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for n in (half..VECTORS).step_by(2) {
                            ledger.publish(slots[n]);
                            write(&fds[n]);
                        }
                        // The guest handles some 50,000 a second; a flood would only coalesce.
                        std::thread::sleep(Duration::from_micros(200));
                    }
                });
            }
            let end = Instant::now() + Duration::from_millis(1500);
            let mut turn = 0usize;
            // On a machine that is busy with something else, the time alone would be over after a few turns.
            while Instant::now() < end || turn < 600 {
                turn += 1;
                let gsi = 24 + (turn * 5 % VECTORS) as u32;
                match turn % 7 {
                    0 => route(&machine, &slots),
                    1 => drop(kernel.promote().unwrap()),
                    2 => irqs.pending(24..24 + VECTORS as u32, &mut [0]),
                    _ => {
                        irqs.mask(gsi).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                        irqs.unmask(gsi).unwrap();
                    }
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let published = |slot: Slot| ledger.cpu(slot.vcpu).sequence[slot.index().unwrap()].load(Ordering::Relaxed);
        wait_for("the last number of each source", || slots.iter().all(|slot| ledger.seen(*slot) == published(*slot)));
        drop((irqfds, promoter, dispatching));
        assert!(machine.stop().into_iter().all(|vcpu| vcpu.is_ok()));
        for slot in slots {
            let (page, at) = (ledger.cpu(slot.vcpu), slot.index().unwrap());
            let handled = page.count[at].load(Ordering::Relaxed) + page.again[at].load(Ordering::Relaxed);
            assert!(handled <= published(slot), "{chips:?} {slot:?}: {handled} of {}", published(slot));
            assert!(published(slot) > 100, "{chips:?}: there was a storm");
        }
        let calls = kernel.vm().calls();
        assert!(calls.assign - before.assign > 50 && calls.deassign - before.deassign > 50, "{chips:?}: {calls:?}");
        assert!(calls.signal_msi > before.signal_msi, "{chips:?}: some events were lazy");
    }
}
