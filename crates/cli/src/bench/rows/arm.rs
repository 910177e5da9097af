//! A GICv3 and its ITS: SPIs, LPIs and SGIs from where they are raised to the end of interrupt, with one vCPU and with 512.
//! With 512, what is raised goes to the vCPUs in turn.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use doorbell::{
    Delivery, DeviceId, LineSource, PinInput, Target, VcpuId,
    chips::arm::{
        Affinity, CpuInterface, Gic, GicOptions, Group, IccRegister,
        its::{Its, ItsOptions},
        line::CHIP,
    },
    guest_ram::RamBlock,
};

use super::Work;
use crate::arm_guest::{self, Driver, Tables, gicd};

/// The most vCPUs.
const CROWD: u32 = 512;
/// The most events of a row.
const EVENTS: u32 = 65_536;
/// Bits of an INTID: 65,536 LPIs from 8192 on need more than 16.
const ID_BITS: u64 = 17;
const FIRST_LPI: u32 = 8192;
const DEVICE: u32 = 8;

/// The guest's memory.
const BASE: u64 = 0x4000_0000;
const PAGE: u64 = 0x1_0000;
/// A byte for each LPI.
const CONFIGURATION: u64 = BASE;
const TABLES: Tables = Tables { queue: BASE + 2 * PAGE, devices: BASE + 3 * PAGE, collections: BASE + 4 * PAGE };
/// Eight bytes for each event.
const ITT: u64 = BASE + 8 * PAGE;
/// A bit for each INTID, of each vCPU.
const PENDING: u64 = BASE + 16 * PAGE;

/// A GIC whose guest has set up so many vCPUs.
struct Machine {
    gic: Arc<Gic>,
    its: Arc<Its>,
    cpus: Vec<CpuInterface>,
    ram: Arc<RamBlock>,
}

impl Machine {
    fn new(vcpus: u32) -> Result<Self, String> {
        let ram = Arc::new(RamBlock::new(BASE, (PENDING - BASE + PAGE * u64::from(vcpus)) as usize));
        let mut options = GicOptions::new(vcpus);
        options.id_bits = ID_BITS as u8;
        let kick = |_: VcpuId| ();
        let gic = Gic::new(options, ram.clone(), Arc::new(kick)).map_err(|error| error.to_string())?;
        let its = Its::new(Arc::clone(&gic), ItsOptions::default());
        gic.distributor().write(gicd::CTLR, 4, gicd::GROUP1);
        let lpi = |at| doorbell::guest_ram::GuestRamExt::write_le(&*ram, CONFIGURATION + u64::from(at), 0xa1u8);
        (0..EVENTS).try_for_each(lpi).map_err(|error| error.to_string())?;
        let cpu = |vcpu| {
            let pending = PENDING + PAGE * u64::from(vcpu);
            arm_guest::start_vcpu(&gic, vcpu, ID_BITS, CONFIGURATION, pending).ok_or("a vCPU is missing")
        };
        let cpus = (0..vcpus).map(cpu).collect::<Result<_, _>>()?;
        Ok(Self { gic, its, cpus, ram })
    }

    /// Takes what is pending on a vCPU and ends it.
    fn take(&mut self, vcpu: usize) -> u32 {
        let cpu = &mut self.cpus[vcpu];
        let intid = cpu.acknowledge(Group::One);
        cpu.end(Group::One, intid);
        intid
    }
}

/// Times a cycle that takes this INTID.
fn checked(intid: u32, mut cycle: impl FnMut() -> u32 + 'static) -> Result<Work, String> {
    // Every vCPU once, so that each page is there.
    for _ in 0..CROWD {
        let taken = cycle();
        if taken != intid {
            return Err(format!("INTID {taken} was taken, and {intid} was raised"));
        }
    }
    Ok(super::timed(cycle))
}

/// An edge of an SPI, which goes to the last vCPU.
fn spi(intid: u32, vcpus: u32) -> Result<Work, String> {
    let mut machine = Machine::new(vcpus)?;
    let last = vcpus - 1;
    arm_guest::start_spi(&machine.gic, intid, true, Affinity::of_vcpu(last).to_router());
    let pin = (intid - 32) as u16;
    checked(intid, move || {
        machine.gic.pulse(CHIP, pin, LineSource::USER);
        machine.take(last as usize)
    })
}

/// SPI 40, one vCPU.
pub fn spi_40() -> Result<Work, String> {
    spi(40, 1)
}

/// SPI 40, 512 vCPUs.
pub fn spi_40_crowd() -> Result<Work, String> {
    spi(40, CROWD)
}

/// SPI 900, one vCPU.
pub fn spi_900() -> Result<Work, String> {
    spi(900, 1)
}

/// SPI 900, 512 vCPUs.
pub fn spi_900_crowd() -> Result<Work, String> {
    spi(900, CROWD)
}

/// A level SPI: the line rises, the vCPU takes the interrupt, its driver makes the device lower the line, the vCPU ends it.
pub fn spi_level() -> Result<Work, String> {
    const INTID: u32 = 40;
    let mut machine = Machine::new(1)?;
    arm_guest::start_spi(&machine.gic, INTID, false, 0);
    checked(INTID, move || {
        machine.gic.set(CHIP, 8, LineSource::USER, true);
        let cpu = &mut machine.cpus[0];
        let intid = cpu.acknowledge(Group::One);
        machine.gic.set(CHIP, 8, LineSource::USER, false);
        cpu.end(Group::One, intid);
        intid
    })
}

/// An SGI of each vCPU to itself, in turn.
fn sgi(vcpus: u32) -> Result<Work, String> {
    const INTID: u32 = 3;
    let mut machine = Machine::new(vcpus)?;
    for vcpu in 0..vcpus {
        let redistributor = machine.gic.redistributor(VcpuId(vcpu)).ok_or("a redistributor is missing")?;
        // GICR_IGROUPR0 and GICR_ISENABLER0, in the second frame.
        redistributor.write(0x1_0080, 4, u64::from(u32::MAX));
        redistributor.write(0x1_0100, 4, 1 << INTID);
    }
    // Aff1 in 23:16, the list of Aff0 in 15:0.
    let requests: Vec<_> =
        (0..vcpus).map(|vcpu| u64::from(INTID) << 24 | u64::from(vcpu >> 4) << 16 | 1 << (vcpu & 15)).collect();
    let mut next = 0;
    checked(INTID, move || {
        let vcpu = next;
        next = (next + 1) % machine.cpus.len();
        machine.cpus[vcpu].write(IccRegister::Sgi1r, requests[vcpu]);
        machine.take(vcpu)
    })
}

/// One vCPU.
pub fn sgi_self() -> Result<Work, String> {
    sgi(1)
}

/// 512 vCPUs.
pub fn sgi_crowd() -> Result<Work, String> {
    sgi(CROWD)
}

/// An ITS whose guest has mapped events, the first to vCPU 0, the next to vCPU 1, and so on.
struct Events {
    machine: Machine,
    /// What each event was prepared as.
    targets: Vec<Target>,
}

impl Events {
    fn new(vcpus: u32, events: u32) -> Result<Self, String> {
        let machine = Machine::new(vcpus)?;
        let its = &machine.its;
        let mut driver = Driver::start(its, &machine.ram, TABLES);
        let mut commands: Vec<_> = (0..vcpus).map(|vcpu| arm_guest::mapc(vcpu, Some(vcpu))).collect();
        commands.push(arm_guest::mapd(DEVICE, 16, Some(ITT)));
        commands.extend((0..events).map(|event| arm_guest::mapti(DEVICE, event, FIRST_LPI + event, event % vcpus)));
        driver.run(&commands);
        let done = its.counters().commands;
        if done != commands.len() as u64 {
            return Err(format!("{done} of {} commands were done", commands.len()));
        }
        let targets = (0..events).filter_map(|event| its.prepare(DeviceId(DEVICE), event)).collect();
        let mut all = Self { machine, targets };
        // Each once: the memory is there, and each goes where it should.
        for event in 0..events {
            let taken = all.cycle(event);
            if all.targets.len() != events as usize || taken != (Delivery::Delivered(1), FIRST_LPI + event) {
                return Err(format!("event {event} gave {taken:?}"));
            }
        }
        Ok(all)
    }

    #[inline]
    fn cycle(&mut self, event: u32) -> (Delivery, u32) {
        let delivery = self.machine.its.fire(self.targets[event as usize]);
        let vcpu = event as usize % self.machine.cpus.len();
        (delivery, self.machine.take(vcpu))
    }

    /// Events in this order, over and over.
    fn in_order(mut self, order: Vec<u32>) -> Work {
        let mut at = 0;
        super::timed(move || {
            let event = order[at];
            at = if at + 1 == order.len() { 0 } else { at + 1 };
            self.cycle(event)
        })
    }
}

fn lpi(vcpus: u32, events: u32) -> Result<Work, String> {
    Ok(Events::new(vcpus, events)?.in_order((0..events).collect()))
}

/// 16 events, one vCPU.
pub fn lpi_16() -> Result<Work, String> {
    lpi(1, 16)
}

/// 16 events, 512 vCPUs of which 16 take them.
pub fn lpi_16_crowd() -> Result<Work, String> {
    lpi(CROWD, 16)
}

/// 65,536 events, one vCPU.
pub fn lpi_65536() -> Result<Work, String> {
    lpi(1, EVENTS)
}

/// 65,536 events, 512 vCPUs.
pub fn lpi_65536_crowd() -> Result<Work, String> {
    lpi(CROWD, EVENTS)
}

/// All events in an order without one, the same in each run.
fn shuffled() -> Vec<u32> {
    let mut order: Vec<u32> = (0..EVENTS).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        // xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(at, (random >> 16) as usize % (at + 1));
    }
    order
}

/// 65,536 events at random, one vCPU.
pub fn lpi_random() -> Result<Work, String> {
    Ok(Events::new(1, EVENTS)?.in_order(shuffled()))
}

/// The same with 512 vCPUs.
pub fn lpi_random_crowd() -> Result<Work, String> {
    Ok(Events::new(CROWD, EVENTS)?.in_order(shuffled()))
}

/// So many events are timed between two times that the caches are filled with something else.
const COLD_ROUND: u64 = 64;
/// More than the caches hold.
const CACHES: usize = 64 << 20;

/// 65,536 events at random, and nothing of them is in a cache.
pub fn lpi_cold() -> Result<Work, String> {
    let mut events = Events::new(1, EVENTS)?;
    let (order, mut at) = (shuffled(), 0);
    let mut other = vec![0u8; CACHES];
    Ok(Box::new(move |times| {
        let (mut left, mut took) = (times, Duration::ZERO);
        while left > 0 {
            other.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
            std::hint::black_box(&other);
            let now = left.min(COLD_ROUND);
            let started = Instant::now();
            for _ in 0..now {
                std::hint::black_box(events.cycle(order[at]));
                at = (at + 1) % order.len();
            }
            took += started.elapsed();
            left -= now;
        }
        took
    }))
}

fn memory(vcpus: u32) -> Result<u64, String> {
    let events = Events::new(vcpus, EVENTS)?;
    Ok((events.machine.gic.lpi_memory() + events.machine.its.memory()) as u64)
}

/// Bytes for 65,536 LPIs of one vCPU.
pub fn lpi_memory() -> Result<u64, String> {
    memory(1)
}

/// Bytes for 65,536 LPIs of 512 vCPUs.
pub fn lpi_memory_crowd() -> Result<u64, String> {
    memory(CROWD)
}
