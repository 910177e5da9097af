//! The Arm machine: a GICv3 with its ITSs. Lines are SPIs, MSI-X vectors are LPIs.

mod account;
mod guest;
mod memory;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

use doorbell::{
    Kick, MsiTarget, PinInput, Pins,
    chips::arm::{
        Affinity, CpuInterface, Gic, GicOptions, Group, MsiFrame, MsiFrames,
        its::{Its, ItsOptions},
        line::CHIP,
    },
    delivery::ChipId,
    guest_ram::RamBlock,
    manager::IrqManager,
};

use super::{
    Shared,
    platform::{Platform, Processor},
};
use crate::{
    arm_guest::{self, gicd},
    run::{
        coordinator::Ended,
        ledger::Ledger,
        plan::{Plan, Wire, arm as numbers},
        report::{Problem, grouped},
    },
};
use account::Account;
use guest::Guest;
use memory::Layout;

/// The INTID that says that there is none.
const SPURIOUS: u32 = 1023;

/// See the [module](self).
pub struct Arm {
    gic: Arc<Gic>,
    ram: Arc<RamBlock>,
    layout: Layout,
    its: Vec<Arc<Its>>,
    account: Arc<Account>,
    books: Books,
    /// The guest's drivers of the ITSs, until its thread has them.
    drivers: Mutex<Vec<arm_guest::Driver>>,
}

/// What the guest knows of its tables. Only its thread changes it; others read it for reports.
pub struct Books {
    /// By vector: the collection of an LPI, or the vCPU of an SPI.
    places: Vec<AtomicU32>,
    /// By ITS and collection: its vCPU.
    collections: Vec<Vec<AtomicU32>>,
    /// By vector: how often the guest had an interrupt sent again, and how often it found one itself.
    replayed: Vec<AtomicU32>,
    fetched: Vec<AtomicU32>,
    /// What the guest has done.
    work: guest::Work,
}

impl Books {
    fn new(plan: &Plan) -> Self {
        // Each vCPU has a collection of its own at first.
        let places = plan.vectors.iter().map(|vector| AtomicU32::new(vector.slot.vcpu)).collect();
        let collections = (0..plan.its).map(|_| (0..plan.vcpus).map(AtomicU32::new).collect()).collect();
        let zeros = || plan.vectors.iter().map(|_| AtomicU32::new(0)).collect();
        Self { places, collections, replayed: zeros(), fetched: zeros(), work: guest::Work::default() }
    }

    /// The vCPU to which a vector goes. Relaxed throughout: nothing is ordered by it.
    fn vcpu(&self, plan: &Plan, index: usize) -> u32 {
        let place = self.places[index].load(Ordering::Relaxed);
        match plan.vectors[index].wire {
            Wire::Line(_) => place,
            Wire::MsiX { .. } => {
                let its = plan.its_of(plan.vectors[index].device) as usize;
                self.collections[its][place as usize].load(Ordering::Relaxed)
            }
        }
    }
}

impl Arm {
    /// The bit of an INTID in a register of the distributor that has one for each.
    fn bit(&self, register: u64, intid: u32) -> bool {
        self.gic.distributor().read(register + u64::from(intid / 32) * 4, 4) >> (intid % 32) & 1 != 0
    }

    /// Sets the bit of an INTID in a register in which zeros change nothing.
    fn set_bit(&self, register: u64, intid: u32) {
        self.gic.distributor().write(register + u64::from(intid / 32) * 4, 4, 1 << (intid % 32));
    }

    fn route(&self, intid: u32, vcpu: u32) {
        let router = Affinity::of_vcpu(vcpu).to_router();
        self.gic.distributor().write(gicd::IROUTER + u64::from(intid) * 8, 8, router);
    }
}

impl Platform for Arm {
    type Cpu = Interface;
    const PINS: ChipId = CHIP;

    fn new(plan: &Plan, ledger: &Arc<Ledger>, kick: Arc<dyn Kick>) -> Result<Self, String> {
        let layout = Layout::new(plan);
        let ram = layout.ram(plan.devices.len());
        let gic = Gic::new(GicOptions::new(plan.vcpus), ram.clone(), kick).map_err(|error| error.to_string())?;
        let its: Vec<_> = (0..plan.its).map(|_| Its::new(Arc::clone(&gic), ItsOptions::default())).collect();
        let frames = MsiFrames::new();
        for (its, number) in its.iter().zip(0..) {
            let address = numbers::its_address(number);
            frames.place(address, Arc::clone(its) as Arc<dyn MsiFrame>).map_err(|error| error.to_string())?;
        }
        let account = Account::new(plan, ledger, Arc::new(frames));
        Ok(Self { gic, ram, layout, its, account, books: Books::new(plan), drivers: Mutex::default() })
    }

    fn msi(&self) -> Arc<dyn MsiTarget> {
        Arc::clone(&self.account) as Arc<dyn MsiTarget>
    }

    fn pins(&self) -> Arc<dyn PinInput> {
        Arc::clone(&self.gic) as Arc<dyn PinInput>
    }

    /// Distributor, redistributors, CPU interfaces, and the ITSs with their tables.
    fn boot(shared: &Arc<Shared<Self>>) -> Result<Vec<Interface>, String> {
        let (plan, arm) = (&shared.plan, &shared.platform);
        arm.gic.distributor().write(gicd::CTLR, 4, gicd::GROUP1);
        let lines: BTreeMap<_, _> =
            plan.vectors.iter().filter_map(|vector| Some((vector.line()?, vector.slot.vcpu))).collect();
        for (line, vcpu) in lines {
            let router = Affinity::of_vcpu(vcpu).to_router();
            arm_guest::start_spi(&arm.gic, numbers::FIRST_SPI + u32::from(line.pin), !line.resample, router);
        }
        let lpis = plan.vectors.iter().filter(|vector| vector.line().is_none());
        lpis.for_each(|vector| memory::configure(&*arm.ram, arm.layout, vector.arrival, true));
        let mut interfaces = Vec::new();
        for vcpu in 0..plan.vcpus {
            let (configuration, pending) = (arm.layout.configuration(), arm.layout.pending(vcpu));
            let cpu = arm_guest::start_vcpu(&arm.gic, vcpu, memory::ID_BITS, configuration, pending);
            let cpu = cpu.ok_or_else(|| format!("vCPU {vcpu} has no part of the GIC"))?;
            interfaces.push(Interface { vcpu, cpu });
        }
        let drivers = Guest::boot(plan, arm);
        *arm.drivers.lock().unwrap_or_else(PoisonError::into_inner) = drivers;
        Ok(interfaces)
    }

    fn meanwhile(shared: &Arc<Shared<Self>>, seed: u64, faulty: bool) -> Result<Option<JoinHandle<()>>, String> {
        let drivers = std::mem::take(&mut *shared.platform.drivers.lock().unwrap_or_else(PoisonError::into_inner));
        let guest = Guest::new(shared, drivers, seed, faulty);
        let thread = std::thread::Builder::new().name("guest".into()).spawn(move || guest.run());
        thread.map(Some).map_err(|error| format!("a thread for the guest: {error}"))
    }

    fn path(&self, plan: &Plan, index: usize) -> String {
        let vector = &plan.vectors[index];
        let (vcpu, arrival) = (vector.slot.vcpu, vector.arrival);
        match vector.wire {
            Wire::Line(_) => format!("SPI {arrival} → vCPU {vcpu}"),
            Wire::MsiX { entry } => {
                let (its, device) = (plan.its_of(vector.device), plan.device_id(vector.device).0);
                format!("ITS {its} device {device:#x} event {entry} → LPI {arrival} → vCPU {vcpu}")
            }
        }
    }

    fn standing(&self, plan: &Plan, index: usize) -> String {
        let vector = &plan.vectors[index];
        let (arrival, vcpu) = (vector.arrival, self.books.vcpu(plan, index));
        match vector.wire {
            Wire::Line(_) => {
                let is = |register| if self.bit(register, arrival) { "" } else { "not " };
                let [enabled, pending, active] = [gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER].map(is);
                format!("SPI {arrival} is {enabled}enabled, {pending}pending, {active}active and goes to vCPU {vcpu}; ")
            }
            Wire::MsiX { .. } => {
                let its = plan.its_of(vector.device);
                let arrived = grouped(self.account.arrived(index).into());
                format!("ITS {its} has been sent its interrupts up to {arrived}, LPI {arrival} goes to vCPU {vcpu}; ")
            }
        }
    }

    fn finish(&self, plan: &Plan, _: &IrqManager, ended: &mut Ended) {
        // The pending tables of the guest say which LPIs are left.
        if let Err(error) = self.gic.save_pending_tables() {
            ended.problems.push(Problem(format!("the pending tables: {error}")));
        }
        for (index, vector) in plan.vectors.iter().enumerate() {
            ended.pending[index] = match vector.wire {
                Wire::Line(_) => self.bit(gicd::ISPENDR, vector.arrival),
                Wire::MsiX { .. } => (0..plan.vcpus)
                    .filter(|&vcpu| plan.may_arrive(vector, vcpu))
                    .any(|vcpu| memory::is_pending(&*self.ram, self.layout, vcpu, vector.arrival)),
            };
        }
        let read = |counts: &[AtomicU32]| counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        ended.replayed = read(&self.books.replayed);
        ended.fetched = read(&self.books.fetched);
        guest::report(self, ended);
    }
}

/// A vCPU's half of the GIC.
pub struct Interface {
    vcpu: u32,
    cpu: CpuInterface,
}

impl Processor for Interface {
    fn vcpu(&self) -> u32 {
        self.vcpu
    }

    fn acknowledge(&mut self) -> Option<u32> {
        Some(self.cpu.acknowledge(Group::One)).filter(|intid| *intid != SPURIOUS)
    }

    fn end(&mut self, arrival: u32) -> Option<Pins> {
        let pin = self.cpu.end(Group::One, arrival)?.pin?;
        Some(Pins::from_iter([pin]))
    }

    fn arm(&mut self) -> bool {
        self.cpu.arm().is_idle()
    }

    fn disarm(&mut self) {
        self.cpu.disarm();
    }

    fn is_shared(&self, _: usize) -> bool {
        true
    }
}
