//! What an Arm guest's drivers do with a GICv3 and its ITSs (Arm IHI 0069). It is written from the specification alone: it
//! shares no layout with the chips.

use std::sync::Arc;

use doorbell::{
    VcpuId,
    chips::arm::{CpuInterface, Gic, IccRegister, its::Its},
    guest_ram::{GuestRamExt, RamBlock},
};

/// Offsets in the distributor's frame (Arm IHI 0069, "The GIC Distributor register descriptions").
pub mod gicd {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const CTLR: u64 = 0x0000;
    pub const IGROUPR: u64 = 0x0080;
    pub const ISENABLER: u64 = 0x0100;
    pub const ICENABLER: u64 = 0x0180;
    pub const ISPENDR: u64 = 0x0200;
    pub const ISACTIVER: u64 = 0x0300;
    pub const IPRIORITYR: u64 = 0x0400;
    pub const ICFGR: u64 = 0x0c00;
    pub const IROUTER: u64 = 0x6000;
    /// GICD_CTLR.EnableGrp1 with one Security state.
    pub const GROUP1: u64 = 1 << 1;
}

/// Offsets in a redistributor's frames.
pub mod gicr {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const CTLR: u64 = 0x0000;
    pub const WAKER: u64 = 0x0014;
    pub const PROPBASER: u64 = 0x0070;
    pub const PENDBASER: u64 = 0x0078;
    /// GICR_CTLR.EnableLPIs.
    pub const ENABLE_LPIS: u64 = 1;
    /// GICR_PENDBASER.PTZ.
    pub const ALL_ZERO: u64 = 1 << 62;
}

/// Brings up a vCPU's redistributor, with a configuration table for INTIDs of so many bits and an empty pending table, and
/// its CPU interface: Group 1 of every priority. `None` if there is no such vCPU, or somebody has its interface.
pub fn start_vcpu(gic: &Arc<Gic>, vcpu: u32, id_bits: u64, configuration: u64, pending: u64) -> Option<CpuInterface> {
    let redistributor = gic.redistributor(VcpuId(vcpu))?;
    redistributor.write(gicr::WAKER, 4, 0);
    redistributor.write(gicr::PROPBASER, 8, configuration | (id_bits - 1));
    redistributor.write(gicr::PENDBASER, 8, pending | gicr::ALL_ZERO);
    redistributor.write(gicr::CTLR, 4, gicr::ENABLE_LPIS);
    let mut cpu = gic.cpu_interface(VcpuId(vcpu))?;
    cpu.write(IccRegister::Pmr, 0xff);
    cpu.write(IccRegister::Igrpen1, 1);
    Some(cpu)
}

/// Sets up an SPI: Group 1, its trigger, priority 0xa0, one vCPU, enabled.
pub fn start_spi(gic: &Gic, intid: u32, edge: bool, router: u64) {
    let distributor = gic.distributor();
    let change = |register: u64, change: &dyn Fn(u64) -> u64| {
        distributor.write(register, 4, change(distributor.read(register, 4)));
    };
    let bit = 1 << (intid % 32);
    change(gicd::IGROUPR + u64::from(intid / 32) * 4, &|groups| groups | bit);
    let trigger = 0b10 << (intid % 16 * 2);
    change(gicd::ICFGR + u64::from(intid / 16) * 4, &|all| if edge { all | trigger } else { all & !trigger });
    distributor.write(gicd::IPRIORITYR + u64::from(intid), 1, 0xa0);
    distributor.write(gicd::IROUTER + u64::from(intid) * 8, 8, router);
    distributor.write(gicd::ISENABLER + u64::from(intid / 32) * 4, 4, bit);
}

/// A command: four doublewords.
pub type Command = [u64; 4];

const VALID: u64 = 1 << 63;

fn of_event(opcode: u64, device: u32, event: u32) -> Command {
    [opcode | u64::from(device) << 32, event.into(), 0, 0]
}

/// The event goes by another collection.
pub fn movi(device: u32, event: u32, icid: u32) -> Command {
    let [head, second, ..] = of_event(0x01, device, event);
    [head, second, icid.into(), 0]
}

/// As if the device had sent it.
pub fn int(device: u32, event: u32) -> Command {
    of_event(0x03, device, event)
}

/// Everything before it is done.
pub fn sync(vcpu: u32) -> Command {
    [0x05, 0, u64::from(vcpu) << 16, 0]
}

/// A device with its table, or none.
pub fn mapd(device: u32, event_bits: u32, itt: Option<u64>) -> Command {
    let third = itt.map_or(0, |itt| VALID | itt);
    [0x08 | u64::from(device) << 32, u64::from(event_bits) - 1, third, 0]
}

/// A collection goes to a vCPU, or to none.
pub fn mapc(icid: u32, vcpu: Option<u32>) -> Command {
    let place = vcpu.map_or(0, |vcpu| VALID | u64::from(vcpu) << 16);
    [0x09, 0, place | u64::from(icid), 0]
}

/// An event becomes an LPI.
pub fn mapti(device: u32, event: u32, lpi: u32, icid: u32) -> Command {
    let [head, second, ..] = of_event(0x0a, device, event);
    [head, second | u64::from(lpi) << 32, icid.into(), 0]
}

/// The configuration of an event's LPI has changed.
pub fn inv(device: u32, event: u32) -> Command {
    of_event(0x0c, device, event)
}

/// That of all LPIs of a collection has.
pub fn invall(icid: u32) -> Command {
    [0x0d, 0, icid.into(), 0]
}

/// What is pending on one vCPU becomes pending on another.
pub fn movall(from: u32, to: u32) -> Command {
    [0x0e, 0, u64::from(from) << 16, u64::from(to) << 16]
}

/// The event is mapped no more.
pub fn discard(device: u32, event: u32) -> Command {
    of_event(0x0f, device, event)
}

/// The bytes of a command, and of a queue.
const COMMAND: u64 = 32;
const QUEUE: u64 = 0x1_0000;
/// So many commands are put into a queue at a time.
const BATCH: usize = (QUEUE / COMMAND) as usize / 2;
/// How often a driver looks whether its commands are done, before it gives up.
const LOOKS: u32 = 1 << 20;

/// Offsets of an ITS's registers.
const CTLR: u64 = 0x0000;
const CBASER: u64 = 0x0080;
const CWRITER: u64 = 0x0088;
const CREADR: u64 = 0x0090;
const BASER: u64 = 0x0100;
/// GITS_CTLR.Enabled and .Quiescent.
const ENABLED: u64 = 1;
const QUIESCENT: u64 = 1 << 31;

/// Where an ITS has its memory: 64 KiB each, aligned.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// The command queue.
    pub queue: u64,
    /// The device table.
    pub devices: u64,
    /// The collection table.
    pub collections: u64,
}

/// An ITS as its driver has it.
pub struct Driver {
    its: Arc<Its>,
    ram: Arc<RamBlock>,
    queue: u64,
    tail: u64,
}

impl Driver {
    /// The driver brings up an ITS: tables, queue, and it is enabled.
    pub fn start(its: &Arc<Its>, ram: &Arc<RamBlock>, tables: Tables) -> Self {
        let Tables { queue, devices, collections } = tables;
        its.write(BASER, 8, VALID | devices);
        its.write(BASER + 8, 8, VALID | collections);
        // Less one, in pages of 4 KiB.
        its.write(CBASER, 8, VALID | queue | (QUEUE / 0x1000 - 1));
        its.write(CWRITER, 8, 0);
        let driver = Self { its: Arc::clone(its), ram: Arc::clone(ram), queue, tail: 0 };
        driver.enable(true);
        driver
    }

    /// Switches it on or off, and waits until it is.
    pub fn enable(&self, enabled: bool) {
        self.its.write(CTLR, 4, if enabled { ENABLED } else { 0 });
        let done = |control: u64| if enabled { control & ENABLED != 0 } else { control & QUIESCENT != 0 };
        assert!((0..LOOKS).any(|_| done(self.its.read(CTLR, 4))), "the ITS does not do what GITS_CTLR says");
    }

    /// Gives commands, and waits until they are done.
    pub fn run(&mut self, commands: &[Command]) {
        for batch in commands.chunks(BATCH) {
            for command in batch {
                for (at, word) in (self.queue + self.tail..).step_by(8).zip(command) {
                    self.ram.write_le(at, *word).unwrap_or_else(|error| panic!("the guest's own queue: {error}"));
                }
                self.tail = (self.tail + COMMAND) % QUEUE;
            }
            self.its.write(CWRITER, 8, self.tail);
            let done = (0..LOOKS).any(|_| self.its.read(CREADR, 8) == self.tail);
            assert!(done, "the ITS does not get to the end of its queue");
        }
    }
}
