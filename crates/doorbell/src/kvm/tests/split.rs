use std::os::fd::AsFd;

use super::fixture::{counter, event, split, write};
use crate::Delivery;
use crate::chips::x86::ioapic::{INDEX, RedirectionEntry, WINDOW};
use crate::kvm::{Calls, SplitChip};
use crate::manager::Capability;
use crate::route::{Pin, Route, RouteEntry};

const LEVEL: u32 = 0x8000;
const MASKED: u32 = 0x1_0000;

/// A guest's store to one register of the IOAPIC.
fn store(chip: &SplitChip, register: u32, value: u32) {
    chip.mmio_write(INDEX, &register.to_le_bytes()).unwrap();
    chip.mmio_write(WINDOW, &value.to_le_bytes()).unwrap();
}

/// GSI 10 leads to pin 10.
fn routed(machine: &super::fixture::Machine) {
    machine.manager.set_routes(&[RouteEntry { gsi: 10, route: Route::Pin(Pin { chip: 2, pin: 10 }) }]).unwrap();
}

#[test]
fn only_what_can_send_a_level_interrupt_becomes_a_route() {
    let Some((machine, chip)) = split() else { return };
    let before = machine.irqs.vm().calls();
    let routings = || machine.calls_since(before).set_routing;
    store(&chip, 0x25, 0);
    store(&chip, 0x24, MASKED | LEVEL | 0x4a);
    assert_eq!(routings(), 0, "masked");
    store(&chip, 0x24, LEVEL | 0x4a);
    assert_eq!(routings(), 1);
    store(&chip, 0x24, MASKED | LEVEL | 0x4a);
    store(&chip, 0x24, LEVEL | 0x4a);
    assert_eq!(routings(), 1, "the same as before");
    store(&chip, 0x24, LEVEL | 0x4b);
    assert_eq!(routings(), 2);
    store(&chip, 0x24, 0x4b);
    assert_eq!(routings(), 3, "an edge entry needs none");
    store(&chip, 0x26, 0x55);
    assert_eq!(routings(), 3);
}

#[test]
fn entries_stored_together_are_one_routing_call() {
    let Some((machine, chip)) = split() else { return };
    let before = machine.irqs.vm().calls();
    let entries: Vec<_> =
        (0..24).map(|pin| (pin, RedirectionEntry::from_bits(u64::from(LEVEL) | (0x40 + pin as u64)))).collect();
    chip.write_entries(&entries).unwrap();
    assert_eq!(machine.calls_since(before), Calls { set_routing: 1, ..Calls::default() });
    let snapshot = chip.ioapic().save();
    let Some((other, restored)) = split() else { return };
    let before = other.irqs.vm().calls();
    restored.restore(&snapshot).unwrap();
    assert_eq!(other.calls_since(before).set_routing, 1);
    assert_eq!(restored.ioapic().save(), snapshot);
}

#[test]
fn a_level_line_goes_through_the_ioapic_here_and_the_apic_there() {
    let Some((machine, chip)) = split() else { return };
    routed(&machine);
    store(&chip, 0x24, LEVEL | 0x4a);
    let (fd, resample) = (event(), event());
    let gsi = machine.manager.routed(10).unwrap();
    let _irqfd = machine.manager.irqfd_resample(gsi, fd.as_fd(), resample.as_fd()).unwrap();
    assert_eq!(machine.manager.capability(Capability::IrqfdResample), 1, "here, not in the kernel (F3)");
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x4a);
    assert_eq!(machine.manager.irq_line(10, true), Delivery::Ignored, "remote IRR (A4)");
    machine.manager.irq_line(10, false);
    machine.nothing_arrives();
    assert_eq!(counter(&resample), 0);
    chip.end_of_interrupt(0x4a);
    assert_eq!(counter(&resample), 1);
    machine.nothing_arrives();

    // The device still wants it.
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x4a);
    machine.manager.irq_line(10, true);
    chip.end_of_interrupt(0x4a);
    machine.arrives(0x4a);
}

#[test]
fn an_unmasked_pin_with_a_stale_latch_asks_its_device() {
    let Some((machine, chip)) = split() else { return };
    routed(&machine);
    store(&chip, 0x24, MASKED | LEVEL | 0x4a);
    let (fd, resample) = (event(), event());
    let gsi = machine.manager.routed(10).unwrap();
    let irqfd = machine.manager.irqfd_resample(gsi, fd.as_fd(), resample.as_fd()).unwrap();
    write(&fd, 1);
    machine.dispatch();
    store(&chip, 0x24, LEVEL | 0x4a);
    assert_eq!(counter(&resample), 1, "R6");
    machine.nothing_arrives();
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x4a);
    drop(irqfd);
    chip.end_of_interrupt(0x4a);

    // Nobody can be asked: it is sent (A3).
    store(&chip, 0x24, MASKED | LEVEL | 0x4a);
    machine.manager.irq_line(10, true);
    machine.nothing_arrives();
    store(&chip, 0x24, LEVEL | 0x4a);
    machine.arrives(0x4a);
}

#[test]
fn an_edge_source_of_a_pin_is_never_given_to_the_kernel() {
    let Some((machine, chip)) = split() else { return };
    routed(&machine);
    store(&chip, 0x24, 0x4a);
    let fd = event();
    let _irqfd = machine.manager.irqfd(machine.manager.routed(10).unwrap(), fd.as_fd()).unwrap();
    assert_eq!(machine.irqs.promote().unwrap(), 0);
    write(&fd, 1);
    machine.dispatch();
    machine.arrives(0x4a);
}
