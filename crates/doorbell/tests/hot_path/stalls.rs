//! One source, or one configuration call, is held still in the middle of what it does. All others must go on: whatever
//! they would wait for is a lock that they should not take.

use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::Duration,
};

use doorbell::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, Target, VcpuId,
    chips::x86::{
        ioapic::{CHIP, IoApic, IoApicOptions},
        lapic::{ApicOptions, ApicSet},
    },
    route::{NoPins, Route, RouteEntry, RoutePolicy, RouteTable},
};

/// Only how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The vector and the GSI that stall.
const STALLED: u32 = 0x50;
/// What the others use.
const FREE: u32 = 0x60;
const EVENTS: u32 = 1_000;

/// Runs `work` on a thread of its own; false if it does not come to its end.
fn ends(work: impl FnOnce() + Send + 'static) -> bool {
    let (done, end) = mpsc::channel();
    thread::spawn(move || {
        work();
        // The receiver is gone only if the test has failed already.
        let _ = done.send(());
    });
    end.recv_timeout(PATIENCE).is_ok()
}

/// Where something stands still until the test lets it go on.
#[derive(Clone)]
struct Stall(Arc<(Mutex<Place>, Condvar)>);

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Before,
    StandingStill,
    Released,
}

impl Stall {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(Place::Before), Condvar::new())))
    }

    fn wait_until(&self, wanted: Place) {
        let (place, changed) = &*self.0;
        let (_place, timeout) =
            changed.wait_timeout_while(place.lock().unwrap(), PATIENCE, |place| *place != wanted).unwrap();
        assert!(!timeout.timed_out(), "nothing stood still");
    }

    fn set(&self, to: Place) {
        let (place, changed) = &*self.0;
        *place.lock().unwrap() = to;
        changed.notify_all();
    }

    /// Once; whoever comes later passes.
    fn stand_still(&self) {
        if *self.0.0.lock().unwrap() == Place::Before {
            self.set(Place::StandingStill);
            self.wait_until(Place::Released);
        }
    }
}

/// Local APICs in front of which one message stalls: where it is resolved, or where it is delivered.
struct Slow {
    apics: Arc<ApicSet>,
    in_prepare: bool,
    stall: Stall,
}

impl Slow {
    fn table(in_prepare: bool) -> (Stall, Arc<ApicSet>, RouteTable) {
        let apics = apics(());
        let stall = Stall::new();
        let target = Self { apics: Arc::clone(&apics), in_prepare, stall: stall.clone() };
        (stall, apics, RouteTable::new(Arc::new(target), Arc::new(NoPins), RoutePolicy::default()))
    }
}

impl MsiTarget for Slow {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        if message.data & 0xff == STALLED && !self.in_prepare {
            self.stall.stand_still();
        }
        self.apics.send(message)
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if message.data & 0xff == STALLED {
            if self.in_prepare {
                self.stall.stand_still();
            }
            return None;
        }
        self.apics.prepare(message)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.apics.fire(target)
    }
}

/// Two vCPUs whose APICs are enabled, the halves kept alive by the set's test threads not at all: they are leaked.
fn apics(kick: impl doorbell::Kick + 'static) -> Arc<ApicSet> {
    let apics = ApicSet::new(2, Arc::new(kick), ApicOptions::default());
    for vcpu in 0..2 {
        let mut cpu = apics.local(VcpuId(vcpu)).unwrap();
        cpu.write(0xf0, 0x1ff);
        // vCPU 1 sleeps: the first event for it kicks.
        if vcpu == 1 {
            assert!(cpu.arm().is_idle());
        }
        // Without its private half an APIC takes nothing.
        std::mem::forget(cpu);
    }
    apics
}

fn message(vcpu: u64, vector: u32) -> MsiMessage {
    MsiMessage::new(0xfee0_0000 | vcpu << 12, vector)
}

fn route(gsi: u32) -> RouteEntry {
    RouteEntry { gsi, route: Route::Msi(message(0, gsi)) }
}

#[test]
fn sources_go_on_while_a_table_call_stands_still() {
    let (stall, _apics, table) = Slow::table(true);
    let table = Arc::new(table);
    table.set(&[route(FREE)]).unwrap();
    let configurer = thread::spawn({
        let table = Arc::clone(&table);
        move || table.set(&[route(FREE), route(STALLED)])
    });
    stall.wait_until(Place::StandingStill);
    assert!(ends({
        let table = Arc::clone(&table);
        move || (0..EVENTS).for_each(|_| assert_eq!(table.fire(FREE), Delivery::Delivered(1)))
    }));
    stall.set(Place::Released);
    configurer.join().unwrap().unwrap();
}

#[test]
fn sources_go_on_while_another_stands_still_in_its_delivery() {
    let (stall, _apics, table) = Slow::table(false);
    let table = Arc::new(table);
    table.set(&[route(FREE), route(STALLED)]).unwrap();
    let stalled = thread::spawn({
        let table = Arc::clone(&table);
        move || table.fire(STALLED)
    });
    stall.wait_until(Place::StandingStill);
    assert!(ends({
        let table = Arc::clone(&table);
        move || (0..EVENTS).for_each(|_| assert_eq!(table.fire(FREE), Delivery::Delivered(1)))
    }));
    stall.set(Place::Released);
    assert_eq!(stalled.join().unwrap(), Delivery::Delivered(1));
}

#[test]
fn sources_go_on_while_another_stands_still_in_the_kick() {
    let stall = Stall::new();
    let apics = apics({
        let stall = stall.clone();
        move |vcpu: VcpuId| {
            assert_eq!(vcpu, VcpuId(1));
            stall.stand_still();
        }
    });
    let stalled = thread::spawn({
        let apics = Arc::clone(&apics);
        move || apics.send(&message(1, STALLED)).unwrap()
    });
    stall.wait_until(Place::StandingStill);
    // To the other vCPU, and to the one that is being kicked.
    assert!(ends({
        let apics = Arc::clone(&apics);
        move || {
            for vcpu in 0..2 {
                let target = apics.prepare(&message(vcpu, FREE)).unwrap();
                (0..EVENTS).for_each(|_| assert_eq!(apics.fire(target), Delivery::Delivered(1)));
            }
        }
    }));
    stall.set(Place::Released);
    assert_eq!(stalled.join().unwrap(), Delivery::Delivered(1));
}

#[test]
fn pins_go_on_while_another_stands_still_in_its_delivery() {
    let stall = Stall::new();
    let target = Slow { apics: apics(()), in_prepare: false, stall: stall.clone() };
    let ioapic = Arc::new(IoApic::new(Arc::new(target), IoApicOptions::default()));
    for (pin, vector) in [(3, STALLED), (4, FREE)] {
        let _ = ioapic.write(0x00, 0x10 + 2 * pin);
        let _ = ioapic.write(0x10, vector);
    }
    let stalled = thread::spawn({
        let ioapic = Arc::clone(&ioapic);
        move || ioapic.set(CHIP, 3, LineSource::USER, true)
    });
    stall.wait_until(Place::StandingStill);
    assert!(ends({
        let ioapic = Arc::clone(&ioapic);
        move || {
            for _ in 0..EVENTS {
                assert_eq!(ioapic.pulse(CHIP, 4, LineSource::USER), Delivery::Delivered(1));
            }
        }
    }));
    stall.set(Place::Released);
    assert_eq!(stalled.join().unwrap(), Delivery::Delivered(1));
}
