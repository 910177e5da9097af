//! The manager over the soft chips: what a VMM sees.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::*;
use crate::{
    Errno, VcpuId,
    chips::x86::{
        ioapic::{CHIP, Effect, INDEX, IoApic, IoApicOptions, WINDOW},
        lapic::{ApicOptions, ApicSet, LocalApic},
    },
    route::{GsiRoutes, Pin, Route, RoutePolicy},
};

struct Machine {
    irqs: IrqManager,
    ioapic: Arc<IoApic>,
    cpu: LocalApic,
}

fn machine() -> Machine {
    let apics = ApicSet::new(1, Arc::new(()), ApicOptions::default());
    let mut cpu = apics.local(VcpuId(0)).unwrap();
    cpu.write(0xf0, 0x1ff);
    let ioapic = Arc::new(IoApic::new(apics.clone(), IoApicOptions::default()));
    let options = SoftOptions::new(apics, ioapic.clone()).policy(RoutePolicy::KVM_X86);
    Machine { irqs: IrqManager::soft(options).unwrap(), ioapic, cpu }
}

impl Machine {
    /// The guest gives a pin the low half of its redirection entry; the machine does the rest.
    fn redirect(&self, pin: u32, low: u32) {
        assert_eq!(self.ioapic.write(INDEX, 0x10 + 2 * pin), Effect::None);
        match self.ioapic.write(WINDOW, low) {
            Effect::None => {}
            Effect::Ended(pins) => self.irqs.end(CHIP, &pins),
            Effect::Unmasked(pins) => self.irqs.unmasked(CHIP, &pins),
        }
    }

    /// The guest takes the highest vector and ends it; the machine does the rest.
    fn serve(&mut self) -> Option<u8> {
        let vector = self.cpu.acknowledge()?;
        let eoi = self.cpu.eoi()?;
        if eoi.level {
            self.irqs.end(CHIP, &self.ioapic.end(eoi.vector));
        }
        Some(vector)
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signal(fd: &impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn signalled(fd: &impl AsFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Default::default())).unwrap() == 1
}

#[test]
fn an_eventfd_becomes_a_vector_by_the_route_of_its_gsi() {
    let mut machine = machine();
    let fd = event();
    machine.irqs.set_routes(&[RouteEntry { gsi: 24, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) }]).unwrap();
    let irqfd = machine.irqs.irqfd(machine.irqs.routed(24).unwrap(), fd.as_fd()).unwrap();
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    assert_eq!((machine.serve(), machine.serve()), (Some(0x41), None));
    machine.irqs.mask(24).unwrap();
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    assert_eq!(machine.serve(), None);
    let mut bits = [0];
    machine.irqs.pending(0..64, &mut bits);
    assert_eq!(bits, [1 << 24]);
    assert_eq!(machine.irqs.unmask(24).unwrap(), Some(Delivery::Delivered(1)));
    assert_eq!((machine.serve(), machine.serve()), (Some(0x41), None));
    drop(irqfd);
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    assert_eq!(machine.serve(), None, "unbound");
    assert_eq!(machine.irqs.routed(25).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn r2_an_end_lowers_the_line_tells_the_device_and_looks_again() {
    let mut machine = machine();
    machine.redirect(10, 0x8051);
    let (fd, resample) = (event(), event());
    let routed = machine.irqs.routed(10).unwrap();
    let _irqfd = machine.irqs.irqfd_resample(routed, fd.as_fd(), resample.as_fd()).unwrap();
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    assert!(!signalled(&resample));
    machine.irqs.irq_line(10, true);
    assert_eq!(machine.serve(), Some(0x51));
    assert!(signalled(&resample));
    assert_eq!(machine.serve(), Some(0x51), "the user's source still holds the line");
    machine.irqs.irq_line(10, false);
    assert_eq!(machine.serve(), Some(0x51), "it was sent before the line fell");
    assert_eq!(machine.serve(), None);
}

#[test]
fn r6_a_pin_unmasked_with_its_latch_set_asks_the_device_first() {
    let mut machine = machine();
    machine.redirect(10, 0x1_8051);
    let (fd, resample) = (event(), event());
    let routed = machine.irqs.routed(10).unwrap();
    let _irqfd = machine.irqs.irqfd_resample(routed, fd.as_fd(), resample.as_fd()).unwrap();
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    machine.redirect(10, 0x8051);
    assert!(signalled(&resample), "the device is asked");
    assert_eq!(machine.serve(), None, "and its level not believed");
    assert_eq!(machine.ioapic.state().irr >> 10 & 1, 0, "not even remembered, as in KVM");
    signal(&fd);
    machine.irqs.dispatcher().dispatch().unwrap();
    assert_eq!(machine.serve(), Some(0x51), "it still wants service");

    machine.redirect(11, 0x1_8052);
    machine.irqs.irq_line(11, true);
    machine.redirect(11, 0x8052);
    assert_eq!(machine.serve(), Some(0x52), "nobody to ask");
}

#[test]
fn vectors_are_allotted_between_the_bounds_or_not_at_all() {
    let machine = machine();
    let most = machine.irqs.capability(Capability::Routes) as usize - 24;
    let first = machine.irqs.alloc_vectors(1, most - 10).unwrap();
    assert_eq!(first.slots().len(), most - 10);
    assert_eq!(machine.irqs.alloc_vectors(11, 20).err().unwrap().errno(), Errno::NOSPC);
    assert_eq!(machine.irqs.alloc_vectors(2, 20).unwrap().slots().len(), 10);
    assert_eq!(machine.irqs.alloc_vectors(0, 0).err().unwrap().errno(), Errno::INVAL);
    drop(first);
    assert_eq!(machine.irqs.alloc_vectors(most, most).unwrap().slots().len(), most);
}

#[test]
fn a_trigger_fires_whatever_the_route_is() {
    let mut machine = machine();
    let mut trigger = machine.irqs.trigger(5);
    machine.redirect(5, 0x61);
    assert_eq!(trigger.fire(), Delivery::Delivered(1));
    assert_eq!(machine.serve(), Some(0x61));
    let pin = RouteUpdate::Set { gsi: 5, routes: GsiRoutes::from_slice(&[Route::Pin(Pin { chip: CHIP, pin: 6 })]) };
    machine.redirect(6, 0x62);
    machine.irqs.update_routes(&[pin]).unwrap();
    trigger.fire();
    assert_eq!(machine.serve(), Some(0x62));
    assert_eq!(machine.irqs.signal_msi(&MsiMessage::new(0xfee0_0000, 0x63)).unwrap(), Delivery::Delivered(1));
    assert_eq!(machine.serve(), Some(0x63));
}

#[test]
fn a_saved_manager_is_restored_with_what_was_pending() {
    let mut machine = machine();
    let message = RouteEntry { gsi: 24, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) };
    machine.irqs.set_routes(&[message]).unwrap();
    machine.irqs.mask(24).unwrap();
    machine.irqs.trigger(24).fire();
    let state = machine.irqs.save();
    machine.irqs.set_routes(&[]).unwrap();
    machine.irqs.unmask(24).unwrap();
    machine.irqs.restore(&state).unwrap();
    assert_eq!(machine.irqs.save(), state);
    machine.irqs.unmask(24).unwrap();
    assert_eq!(machine.serve(), Some(0x41));
}

#[test]
fn a_state_whose_resampled_lines_are_refused_changes_no_route() {
    let machine = machine();
    let message = RouteEntry { gsi: 24, route: Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)) };
    machine.irqs.set_routes(&[message]).unwrap();
    let before = machine.irqs.save();
    let mut forged = before.clone();
    forged.routes.gsis.clear();
    forged.resamplers.raised.push(10);
    assert_eq!(machine.irqs.restore(&forged).unwrap_err().errno(), Errno::INVAL);
    assert_eq!(machine.irqs.save(), before);
}
