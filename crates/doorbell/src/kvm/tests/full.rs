use std::os::fd::{AsFd, OwnedFd};

use super::fixture::{Machine, counter, event, full, to, write};
use crate::Delivery;
use crate::kvm::{Calls, Promotion};
use crate::manager::{Capability, Irqfd};
use crate::route::{GsiRoutes, Pin, Route, RouteEntry, RouteUpdate};

/// An eventfd bound to a GSI.
fn bind(machine: &Machine, gsi: u32) -> (OwnedFd, Irqfd) {
    let fd = event();
    let irqfd = machine.manager.irqfd(machine.manager.routed(gsi).unwrap(), fd.as_fd()).unwrap();
    (fd, irqfd)
}

/// One GSI, 24, to vector 0x30, with an eventfd that the kernel has.
fn promoted() -> Option<(Machine, OwnedFd, Irqfd)> {
    let machine = full(Promotion::Manual)?;
    machine.route(1);
    let (fd, irqfd) = bind(&machine, 24);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    Some((machine, fd, irqfd))
}

fn is_pending(machine: &Machine, gsi: u32) -> bool {
    let mut bits = [0];
    machine.manager.pending(gsi..gsi + 1, &mut bits);
    bits[0] == 1
}

#[test]
fn until_it_is_promoted_an_event_is_a_message_without_a_route() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(1);
    let (fd, _irqfd) = bind(&machine, 24);
    let before = machine.irqs.vm().calls();
    write(&fd, 3);
    machine.nothing_arrives();
    assert_eq!(machine.dispatch(), 1);
    machine.arrives(0x30);
    assert_eq!(counter(&fd), 0);
    assert_eq!(machine.calls_since(before), Calls { signal_msi: 1, ..Calls::default() });
}

#[test]
fn a_batch_is_one_routing_call() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(200);
    let bound: Vec<_> = (24..224).map(|gsi| bind(&machine, gsi)).collect();
    let before = machine.irqs.vm().calls();
    assert_eq!(machine.irqs.promote().unwrap(), 200);
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, assign: 200, ..Calls::default() });
    for n in [0, 57, 199] {
        write(&bound[n].0, 1);
        machine.arrives(0x30 + n as u8);
        assert_eq!(counter(&bound[n].0), 0, "the kernel takes the counter");
    }
    machine.nothing_arrives();
    assert_eq!(machine.calls_since(before).signal_msi, 0);
    assert_eq!(machine.irqs.promote().unwrap(), 0, "there is nobody left");
    assert_eq!(machine.calls_since(before).set_routing, 1);
}

#[test]
fn an_event_that_nobody_dispatched_survives_the_promotion_once() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(1);
    let (fd, _irqfd) = bind(&machine, 24);
    write(&fd, 7);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    machine.arrives(0x30);
    assert_eq!(counter(&fd), 0);
    machine.manager.mask(24).unwrap();
    assert!(!is_pending(&machine, 24));
    assert_eq!(machine.manager.unmask(24).unwrap(), None);
    machine.nothing_arrives();
}

#[test]
fn a_counter_that_was_there_at_the_bind_is_not_an_event_again_at_the_promotion() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(1);
    let fd = event();
    write(&fd, 5);
    let _irqfd = machine.manager.irqfd(machine.manager.routed(24).unwrap(), fd.as_fd()).unwrap();
    assert_eq!(machine.dispatch(), 1);
    machine.arrives(0x30);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    machine.nothing_arrives();
}

#[test]
fn masking_keeps_what_the_kernel_would_have_injected() {
    let Some((machine, fd, _irqfd)) = promoted() else { return };
    let before = machine.irqs.vm().calls();
    assert!(!machine.manager.mask(24).unwrap());
    assert_eq!(machine.calls_since(before), Calls { deassign: 1, ..Calls::default() });
    assert!(!is_pending(&machine, 24));
    write(&fd, 2);
    write(&fd, 1);
    machine.nothing_arrives();
    assert!(is_pending(&machine, 24), "the counter is read");
    assert!(is_pending(&machine, 24), "and remembered (H15)");
    write(&fd, 1);
    assert_eq!(machine.manager.unmask(24).unwrap(), Some(Delivery::Delivered(1)), "one for all three");
    machine.arrives(0x30);
    machine.nothing_arrives();
    let calls = machine.calls_since(before);
    assert_eq!(calls, Calls { deassign: 1, assign: 1, signal_msi: 1, ..Calls::default() }, "no route was changed");
    write(&fd, 1);
    machine.arrives(0x30);
    assert_eq!(machine.calls_since(before).signal_msi, 1, "by the kernel again");
}

#[test]
fn mask_and_unmask_with_nothing_pending_deliver_nothing() {
    let Some((machine, _fd, _irqfd)) = promoted() else { return };
    for _ in 0..3 {
        machine.manager.mask(24).unwrap();
        assert!(machine.manager.mask(24).unwrap(), "masked before");
        assert_eq!(machine.manager.unmask(24).unwrap(), None);
        assert_eq!(machine.manager.unmask(24).unwrap(), None, "unmasked before");
    }
    machine.nothing_arrives();
}

#[test]
fn two_sources_of_a_masked_gsi_are_one_pending_event() {
    let Some((machine, first, _irqfd)) = promoted() else { return };
    let (second, _also) = bind(&machine, 24);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    machine.manager.mask(24).unwrap();
    write(&first, 1);
    write(&second, 1);
    assert_eq!(machine.manager.unmask(24).unwrap(), Some(Delivery::Delivered(1)));
    machine.arrives(0x30);
    machine.nothing_arrives();
}

#[test]
fn a_source_bound_or_lazy_while_masked_is_not_promoted() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(1);
    let (fd, _irqfd) = bind(&machine, 24);
    machine.manager.mask(24).unwrap();
    assert_eq!(machine.irqs.promote().unwrap(), 0);
    write(&fd, 1);
    machine.dispatch();
    assert!(is_pending(&machine, 24));
    machine.nothing_arrives();
    machine.manager.unmask(24).unwrap();
    machine.arrives(0x30);
}

#[test]
fn a_changed_route_is_committed_before_the_call_returns() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(10);
    let bound: Vec<_> = (24..34).map(|gsi| bind(&machine, gsi)).collect();
    machine.irqs.promote().unwrap();
    let before = machine.irqs.vm().calls();
    let moved =
        |n: u32| RouteUpdate::Set { gsi: 24 + n, routes: GsiRoutes::from_slice(&[Route::Msi(to(0x80 + n as u8))]) };
    machine.manager.update_routes(&(0..10).map(moved).collect::<Vec<_>>()).unwrap();
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, ..Calls::default() }, "one for the batch");
    for (n, (fd, _)) in bound.iter().enumerate() {
        write(fd, 1);
        machine.arrives(0x80 + n as u8);
    }
    machine.nothing_arrives();

    machine.route(10);
    assert_eq!(machine.calls_since(before).set_routing, 2, "a whole table is one call too");
    write(&bound[3].0, 1);
    machine.arrives(0x33);
    machine.nothing_arrives();
}

#[test]
fn a_message_changed_behind_the_mask_costs_no_routing_call() {
    let Some((machine, fd, _irqfd)) = promoted() else { return };
    machine.manager.mask(24).unwrap();
    let before = machine.irqs.vm().calls();
    write(&fd, 1);
    let routes = GsiRoutes::from_slice(&[Route::Msi(to(0x99))]);
    machine.manager.update_routes(&[RouteUpdate::Set { gsi: 24, routes }]).unwrap();
    assert_eq!(machine.manager.unmask(24).unwrap(), Some(Delivery::Delivered(1)));
    machine.arrives(0x99);
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x99);
    machine.nothing_arrives();
    assert_eq!(machine.calls_since(before), Calls { signal_msi: 2, ..Calls::default() });
    assert_eq!(machine.irqs.promote().unwrap(), 1, "lazy again");
    write(&fd, 1);
    machine.arrives(0x99);
}

#[test]
fn without_its_route_a_source_is_swallowed_and_not_replayed() {
    let Some((machine, fd, _irqfd)) = promoted() else { return };
    machine.manager.update_routes(&[RouteUpdate::Remove { gsi: 24 }]).unwrap();
    write(&fd, 1);
    machine.dispatch();
    machine.nothing_arrives();
    assert_eq!(counter(&fd), 0, "drained all the same (F7)");
    machine.route(1);
    machine.dispatch();
    machine.nothing_arrives();
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x30);
}

#[test]
fn a_dropped_irqfd_leaves_its_events_in_the_counter() {
    let Some((machine, fd, irqfd)) = promoted() else { return };
    drop(irqfd);
    write(&fd, 1);
    assert_eq!(machine.dispatch(), 0);
    machine.nothing_arrives();
    assert_eq!(counter(&fd), 1, "F8b");
    // The eventfd is free again, for the dispatcher and for the kernel.
    let _irqfd = machine.manager.irqfd(machine.manager.routed(24).unwrap(), fd.as_fd()).unwrap();
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    write(&fd, 1);
    machine.arrives(0x30);
}

#[test]
fn hot_sources_are_promoted_in_batches() {
    let Some(machine) = full(Promotion::Hot { events: 3, batch: 2 }) else { return };
    machine.route(3);
    let bound: Vec<_> = (24..27).map(|gsi| bind(&machine, gsi)).collect();
    let fire = |n: usize| {
        write(&bound[n].0, 1);
        machine.dispatch();
        machine.arrives(0x30 + n as u8);
    };
    (0..3).for_each(|_| fire(0));
    assert_eq!(machine.irqs.promote_hot().unwrap(), 0, "one is no batch");
    (0..3).for_each(|_| fire(1));
    fire(2);
    let before = machine.irqs.vm().calls();
    assert_eq!(machine.irqs.promote_hot().unwrap(), 2, "the third is not hot");
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, assign: 2, ..Calls::default() });
}

#[test]
fn an_eventfd_that_the_kernel_refuses_stays_with_the_dispatcher() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.route(1);
    let (fd, _irqfd) = bind(&machine, 24);
    let Some(other) = full(Promotion::Manual) else { return };
    other.irqs.vm().assign(fd.as_fd(), 5, None).unwrap();
    assert_eq!(machine.irqs.promote().unwrap(), 0, "EBUSY");
    other.irqs.vm().deassign(fd.as_fd(), 5).unwrap();
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x30);
}

#[test]
fn pins_of_the_kernel_are_reached_through_the_table() {
    let Some(machine) = full(Promotion::Manual) else { return };
    let pin = |gsi, chip, pin| RouteEntry { gsi, route: Route::Pin(Pin { chip, pin }) };
    machine.manager.set_routes(&[pin(4, 2, 4), pin(4, 0, 4), pin(100, 2, 9)]).unwrap();
    program(&machine, 4, 0x44);
    program(&machine, 9, 0x49);
    assert_eq!(machine.manager.irq_line(4, true), Delivery::Delivered(1).and(Delivery::Delivered(1)));
    machine.arrives(0x44);
    machine.manager.irq_line(4, false);
    assert_eq!(machine.manager.irq_line(100, true), Delivery::Delivered(1));
    machine.arrives(0x49);
    assert_eq!(machine.manager.irq_line(100, true), Delivery::Coalesced, "A7: no second edge");
    machine.manager.irq_line(100, false);
    let (fd, _irqfd) = bind(&machine, 100);
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x49);
    assert_eq!(machine.irqs.promote().unwrap(), 1);
    let before = machine.irqs.vm().calls();
    write(&fd, 1);
    machine.arrives(0x49);
    assert_eq!(machine.calls_since(before), Calls::default(), "by the kernel");
    assert!(machine.manager.set_routes(&[pin(4, 2, 24)]).is_err(), "G6");
    assert!(machine.manager.set_routes(&[pin(4, 3, 0)]).is_err(), "G6");
}

#[test]
fn a_masked_level_line_falls_and_its_device_is_asked_at_the_unmask() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.manager.set_routes(&[RouteEntry { gsi: 10, route: Route::Pin(Pin { chip: 2, pin: 10 }) }]).unwrap();
    program(&machine, 10, 0x804a);
    let (fd, resample) = (event(), event());
    let routed = machine.manager.routed(10).unwrap();
    let irqfd = machine.manager.irqfd_resample(routed, fd.as_fd(), resample.as_fd()).unwrap();
    write(&fd, 1);
    machine.arrives(0x4a);
    assert!(latched(&machine, 10), "the line stays up (R1)");
    machine.manager.mask(10).unwrap();
    assert!(!latched(&machine, 10));
    assert_eq!(counter(&resample), 0);
    machine.manager.unmask(10).unwrap();
    assert_eq!(counter(&resample), 1, "the device raises it again if it still wants to");
    write(&fd, 1);
    let start = std::time::Instant::now();
    while !latched(&machine, 10) {
        assert!(start.elapsed().as_secs() < 5, "the line is up again");
    }
    drop(irqfd);
    assert!(!latched(&machine, 10), "R4");
    assert_eq!(counter(&resample), 0, "R5");
}

#[test]
fn a_level_source_of_a_masked_gsi_waits_for_the_unmask() {
    let Some(machine) = full(Promotion::Manual) else { return };
    machine.manager.set_routes(&[RouteEntry { gsi: 10, route: Route::Pin(Pin { chip: 2, pin: 10 }) }]).unwrap();
    program(&machine, 10, 0x804a);
    machine.manager.mask(10).unwrap();
    let (fd, resample) = (event(), event());
    let routed = machine.manager.routed(10).unwrap();
    let _irqfd = machine.manager.irqfd_resample(routed, fd.as_fd(), resample.as_fd()).unwrap();
    write(&fd, 1);
    machine.nothing_arrives();
    machine.manager.unmask(10).unwrap();
    machine.arrives(0x4a);
}

#[test]
fn capabilities_are_the_kernels() {
    let Some(machine) = full(Promotion::Manual) else { return };
    assert_eq!(machine.manager.capability(Capability::Routes), 4096);
    assert_eq!(machine.manager.capability(Capability::Irqfd), 1);
    assert_eq!(machine.manager.capability(Capability::IrqfdResample), 1);
    assert_eq!(machine.manager.capability(Capability::SignalMsi), 1);
    assert_eq!(machine.manager.capability(Capability::MsiDeviceId), 0);
    assert_eq!(machine.manager.capability(Capability::Mask), 0, "masking detaches");
}

/// Writes an IOAPIC redirection entry by KVM_SET_IRQCHIP.
fn program(machine: &Machine, pin: usize, entry: u64) {
    let mut chip = kvm_bindings::kvm_irqchip { chip_id: 2, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: chip 2 is the IOAPIC, whose state the kernel has just written; any bits are valid in it.
    unsafe { chip.chip.ioapic.redirtbl[pin].bits = entry };
    machine.vm.set_irqchip(&chip).unwrap();
}

/// Whether the IOAPIC sees the line of a pin high.
fn latched(machine: &Machine, pin: u32) -> bool {
    let mut chip = kvm_bindings::kvm_irqchip { chip_id: 2, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: as in `program`.
    unsafe { chip.chip.ioapic.irr >> pin & 1 == 1 }
}
