//! The guest's thread that is no vCPU's: it re-programs the chips while interrupts come, as drivers of ITSs and devices do
//! when vCPUs come and go, devices are reset and interrupts are moved.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Arm, Shared, memory};
use crate::{
    arm_guest::{self, gicd},
    run::{
        coordinator::Ended,
        device,
        function::Random,
        plan::{Plan, Wire},
        report::{ArmCounters, Problem, grouped},
    },
};

/// Between two pieces of work.
const PAUSE: Duration = Duration::from_micros(100);
/// How long something is off at most.
const OFF: u64 = 60;

/// What it has done. Relaxed: counts.
#[derive(Default)]
pub struct Work {
    movi: AtomicU64,
    mapc_movall: AtomicU64,
    mapc_off: AtomicU64,
    mapd: AtomicU64,
    discard: AtomicU64,
    inv: AtomicU64,
    its_off: AtomicU64,
    irouter: AtomicU64,
    icenabler: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// See the [module](self).
pub struct Guest {
    shared: Arc<Shared<Arm>>,
    /// By ITS.
    drivers: Vec<arm_guest::Driver>,
    random: Random,
    /// With a fault, devices go on without an answer: the driver then asks them instead of having events sent again.
    faulty: bool,
    /// The vectors that are LPIs.
    lpis: Vec<usize>,
    /// The first vector of each line.
    lines: Vec<usize>,
}

impl Guest {
    /// The guest of a machine whose ITSs [have been brought up](Self::boot).
    pub fn new(shared: &Arc<Shared<Arm>>, drivers: Vec<arm_guest::Driver>, seed: u64, faulty: bool) -> Self {
        let vectors = || shared.plan.vectors.iter().enumerate();
        let lpis = vectors().filter(|(_, vector)| vector.line().is_none()).map(|(index, _)| index).collect();
        let first = |line| vectors().position(|(_, vector)| vector.line() == Some(line));
        let lines = vectors().filter(|(index, vector)| vector.line().is_some_and(|line| first(line) == Some(*index)));
        let lines = lines.map(|(index, _)| index).collect();
        Self { shared: Arc::clone(shared), drivers, random: Random::new(seed), faulty, lpis, lines }
    }

    /// Brings up the ITSs of a machine: a collection for each vCPU, and every event of every device.
    pub fn boot(plan: &Plan, arm: &Arm) -> Vec<arm_guest::Driver> {
        let mut drivers: Vec<_> = (arm.its.iter().zip(0..))
            .map(|(its, number)| arm_guest::Driver::start(its, &arm.ram, arm.layout.tables(number)))
            .collect();
        let collections: Vec<_> = (0..plan.vcpus).map(|vcpu| arm_guest::mapc(vcpu, Some(vcpu))).collect();
        drivers.iter_mut().for_each(|driver| driver.run(&collections));
        for device in 0..plan.devices.len() {
            let commands = map_device(plan, arm, device);
            drivers[plan.its_of(device) as usize].run(&commands);
        }
        drivers
    }

    /// Works until the machine stops.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            self.work();
            std::thread::sleep(PAUSE);
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.random.next() >> 16) as usize % limit.max(1)
    }

    /// One piece of work. When it is over, everything is mapped and enabled again.
    fn work(&mut self) {
        let any = |lpis: &[usize], at: usize| lpis.get(at).copied();
        let (lpis, lines) = (self.lpis.len(), self.lines.len());
        let (lpi, line) = (self.below(lpis), self.below(lines));
        let (lpi, line) = (any(&self.lpis, lpi), any(&self.lines, line));
        match (self.below(16), lpi, line) {
            (0..=3, Some(index), _) => self.move_event(index),
            (4, Some(index), _) => self.move_collection(index),
            (5, Some(index), _) => self.unmap_collection(index),
            (6, Some(index), _) => self.unmap_device(index),
            (7..=8, Some(index), _) => self.unmap_event(index),
            (9..=10, Some(index), _) => self.disable_lpi(index),
            (11, Some(index), _) => self.disable_its(index),
            (12..=13, _, Some(index)) => self.route_line(index),
            (14..=15, _, Some(index)) => self.disable_line(index),
            _ => {}
        }
    }

    /// Something stays off for a while.
    fn off(&mut self) {
        let while_off = self.below(OFF as usize) as u64;
        std::thread::sleep(Duration::from_micros(while_off));
    }

    /// DeviceID and EventID of a vector, and its ITS.
    fn event(&self, index: usize) -> (u32, u32, usize) {
        let (plan, vector) = (&self.shared.plan, &self.shared.plan.vectors[index]);
        (plan.device_id(vector.device).0, vector.number, plan.its_of(vector.device) as usize)
    }

    /// A vCPU, and a collection, at which a vector may arrive.
    fn neighbour(&mut self, index: usize) -> u32 {
        let plan = &self.shared.plan;
        let (vcpus, group) = (plan.vcpus, plan.group());
        let first = plan.vectors[index].slot.vcpu / group * group;
        first + self.below(group.min(vcpus - first) as usize) as u32
    }

    fn place(&self, index: usize) -> &AtomicU32 {
        &self.shared.platform.books.places[index]
    }

    /// The LPIs for which something holds.
    fn lpis_that(&self, holds: impl Fn(usize) -> bool) -> Vec<usize> {
        self.lpis.iter().copied().filter(|&index| holds(index)).collect()
    }

    /// MOVI: an interrupt is given to another vCPU.
    fn move_event(&mut self, index: usize) {
        let (device, event, its) = self.event(index);
        let icid = self.neighbour(index);
        let vcpu = self.shared.platform.books.collections[its][icid as usize].load(Ordering::Relaxed);
        self.place(index).store(icid, Ordering::Relaxed);
        self.drivers[its].run(&[arm_guest::movi(device, event, icid), arm_guest::sync(vcpu)]);
        count(&self.shared.platform.books.work.movi);
    }

    /// MAPC and MOVALL: everything of a vCPU goes to another one.
    fn move_collection(&mut self, index: usize) {
        let (_, _, its) = self.event(index);
        let icid = self.place(index).load(Ordering::Relaxed);
        let to = self.neighbour(index);
        let from = self.shared.platform.books.collections[its][icid as usize].swap(to, Ordering::Relaxed);
        let commands = [
            arm_guest::mapc(icid, Some(to)),
            arm_guest::sync(from),
            arm_guest::movall(from, to),
            arm_guest::sync(from),
            arm_guest::invall(icid),
        ];
        self.drivers[its].run(&commands);
        count(&self.shared.platform.books.work.mapc_movall);
    }

    /// MAPC with V = 0, and back: events of the collection are dropped meanwhile (I18).
    fn unmap_collection(&mut self, index: usize) {
        let (_, _, its) = self.event(index);
        let icid = self.place(index).load(Ordering::Relaxed);
        let vcpu = self.shared.platform.books.collections[its][icid as usize].load(Ordering::Relaxed);
        let in_it =
            self.lpis_that(|other| self.event(other).2 == its && self.place(other).load(Ordering::Relaxed) == icid);
        self.window(&in_it, false, |guest| {
            guest.drivers[its].run(&[arm_guest::mapc(icid, None), arm_guest::sync(vcpu)]);
            guest.off();
            guest.drivers[its].run(&[arm_guest::mapc(icid, Some(vcpu)), arm_guest::sync(vcpu)]);
        });
        count(&self.shared.platform.books.work.mapc_off);
    }

    /// MAPD with V = 0, and everything of the device mapped again: its events are dropped meanwhile, and what was pending is
    /// (I20).
    fn unmap_device(&mut self, index: usize) {
        let (id, _, its) = self.event(index);
        let device = self.shared.plan.vectors[index].device;
        let of_it = self.lpis_that(|other| self.shared.plan.vectors[other].device == device);
        self.window(&of_it, true, |guest| {
            guest.drivers[its].run(&[arm_guest::mapd(id, memory::EVENT_BITS, None), arm_guest::sync(0)]);
            guest.off();
            let commands = map_device(&guest.shared.plan, &guest.shared.platform, device);
            guest.drivers[its].run(&commands);
        });
        count(&self.shared.platform.books.work.mapd);
    }

    /// DISCARD and MAPTI of one event (I17).
    fn unmap_event(&mut self, index: usize) {
        let (device, event, its) = self.event(index);
        let lpi = self.shared.plan.vectors[index].arrival;
        let icid = self.place(index).load(Ordering::Relaxed);
        self.window(&[index], true, |guest| {
            guest.drivers[its].run(&[arm_guest::discard(device, event), arm_guest::sync(0)]);
            guest.off();
            guest.drivers[its].run(&[arm_guest::mapti(device, event, lpi, icid), arm_guest::sync(0)]);
        });
        count(&self.shared.platform.books.work.discard);
    }

    /// The configuration byte and INV, twice: the LPI is pending meanwhile, and nothing is dropped (I11, I14).
    fn disable_lpi(&mut self, index: usize) {
        let (device, event, its) = self.event(index);
        let lpi = self.shared.plan.vectors[index].arrival;
        for enabled in [false, true] {
            let arm = &self.shared.platform;
            memory::configure(&*arm.ram, arm.layout, lpi, enabled);
            self.drivers[its].run(&[arm_guest::inv(device, event), arm_guest::sync(0)]);
            if !enabled {
                self.off();
            }
        }
        count(&self.shared.platform.books.work.inv);
    }

    /// GITS_CTLR.Enabled cleared and set: events are dropped meanwhile, what is pending stays so (I8).
    fn disable_its(&mut self, index: usize) {
        let (_, _, its) = self.event(index);
        let through_it = self.lpis_that(|other| self.event(other).2 == its);
        self.window(&through_it, false, |guest| {
            guest.drivers[its].enable(false);
            guest.off();
            guest.drivers[its].enable(true);
        });
        count(&self.shared.platform.books.work.its_off);
    }

    /// GICD_IROUTER.
    fn route_line(&mut self, index: usize) {
        let vcpu = self.neighbour(index);
        self.place(index).store(vcpu, Ordering::Relaxed);
        self.shared.platform.route(self.shared.plan.vectors[index].arrival, vcpu);
        count(&self.shared.platform.books.work.irouter);
    }

    /// GICD_ICENABLER and GICD_ISENABLER: the SPI is pending meanwhile.
    fn disable_line(&mut self, index: usize) {
        let intid = self.shared.plan.vectors[index].arrival;
        self.shared.platform.set_bit(gicd::ICENABLER, intid);
        self.off();
        self.shared.platform.set_bit(gicd::ISENABLER, intid);
        count(&self.shared.platform.books.work.icenabler);
    }

    /// Does something in the course of which events of these vectors are dropped, and asks for them afterwards. `clears`:
    /// what is pending is dropped, too.
    fn window(&mut self, vectors: &[usize], clears: bool, work: impl FnOnce(&mut Self)) {
        let shared = Arc::clone(&self.shared);
        shared.platform.account.open(vectors);
        work(self);
        for (index, arrived) in shared.platform.account.close(vectors, clears) {
            self.ask(index, arrived);
        }
    }

    /// The driver of a device asks for what may have been dropped, up to a number of which an event has arrived. Of a vector
    /// that waits for its handler it has the event sent again (INT): nothing else of it can be on its way. Else it looks at
    /// the device.
    fn ask(&mut self, index: usize, arrived: u32) {
        let shared = Arc::clone(&self.shared);
        let (vector, books) = (&shared.plan.vectors[index], &shared.platform.books);
        if shared.ledger.seen(vector.slot) >= arrived {
            return;
        }
        if vector.lockstep && !self.faulty {
            let (device, event, its) = self.event(index);
            // Before it: who is entered because of it may be counted at once.
            books.replayed[index].fetch_add(1, Ordering::Relaxed);
            self.drivers[its].run(&[arm_guest::int(device, event)]);
        } else if shared.ledger.look(vector.slot, arrived) {
            books.fetched[index].fetch_add(1, Ordering::Relaxed);
            device::ring(&shared.ledger.header().devices[vector.device]);
        }
    }
}

/// MAPD and a MAPTI for each event.
fn map_device(plan: &Plan, arm: &Arm, device: usize) -> Vec<arm_guest::Command> {
    let id = plan.device_id(device).0;
    let events = plan.vectors.iter().enumerate().filter(|(_, vector)| vector.device == device);
    let events = events.filter(|(_, vector)| matches!(vector.wire, Wire::MsiX { .. }));
    let maptis = events.map(|(index, vector)| {
        let icid = arm.books.places[index].load(Ordering::Relaxed);
        arm_guest::mapti(id, vector.number, vector.arrival, icid)
    });
    let mut commands = vec![arm_guest::mapd(id, memory::EVENT_BITS, Some(arm.layout.itt(device)))];
    commands.extend(maptis);
    commands.push(arm_guest::sync(0));
    commands
}

/// What chips and guest counted, and whether they agree.
pub fn report(arm: &Arm, ended: &mut Ended) {
    let (books, of) = (&arm.books, |counter: &AtomicU64| counter.load(Ordering::Relaxed));
    let sum = |counts: &[AtomicU32]| counts.iter().map(|count| u64::from(count.load(Ordering::Relaxed))).sum();
    let Work { movi, mapc_movall, mapc_off, mapd, discard, inv, its_off, irouter, icenabler } = &books.work;
    let mut counters = ArmCounters {
        replayed: sum(&books.replayed),
        fetched: sum(&books.fetched),
        movi: of(movi),
        mapc_movall: of(mapc_movall),
        mapc_off: of(mapc_off),
        mapd: of(mapd),
        discard: of(discard),
        inv: of(inv),
        its_off: of(its_off),
        irouter: of(irouter),
        icenabler: of(icenabler),
        ..ArmCounters::default()
    };
    let mut dropped = 0;
    for its in arm.its.iter().map(|its| its.counters()) {
        counters.commands += its.commands;
        let errors: u64 = its.errors.iter().map(|(_, count)| count).sum();
        counters.refused_commands += errors + its.unknown + its.unreadable + its.full;
        counters.dropped_disabled += its.dropped_disabled;
        counters.dropped_unmapped += its.dropped_unmapped;
        counters.dropped_collection += its.dropped_collection;
        counters.dropped_lpis_off += its.dropped_lpis_off;
        counters.dropped_meanwhile += its.dropped_meanwhile;
        dropped += its.dropped();
    }
    let (refused, unexpected) = arm.account.refused();
    let mut problem = |text: String| ended.problems.push(Problem(text));
    if unexpected > 0 {
        problem(format!("the ITSs dropped {} events while nothing was unmapped", grouped(unexpected)));
    }
    if dropped > refused {
        let (dropped, refused) = (grouped(dropped), grouped(refused));
        problem(format!("the ITSs counted {dropped} dropped events, and told the sources of {refused}"));
    }
    if counters.refused_commands > 0 {
        problem(format!("the ITSs refused {} commands", grouped(counters.refused_commands)));
    }
    ended.notes.push(format!(
        "Meanwhile the guest moved events {}, collections {}; unmapped collections {}, devices {}, events {}; disabled LPIs {}, \
         ITSs {}; routed SPIs {}, disabled them {} times.",
        grouped(counters.movi),
        grouped(counters.mapc_movall),
        grouped(counters.mapc_off),
        grouped(counters.mapd),
        grouped(counters.discard),
        grouped(counters.inv),
        grouped(counters.its_off),
        grouped(counters.irouter),
        grouped(counters.icenabler),
    ));
    ended.notes.push(format!(
        "The specification made the ITSs drop {} events; afterwards the guest had {} sent again (INT), and found {} by looking \
         at its devices.",
        grouped(dropped),
        grouped(counters.replayed),
        grouped(counters.fetched),
    ));
    ended.arm = Some(counters);
}
