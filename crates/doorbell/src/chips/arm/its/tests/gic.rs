//! The ITS over the GIC's LPIs: what a vCPU acknowledges.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::*;
use crate::{
    Delivery, DeviceId, Errno, MsiMessage, MsiTarget, VcpuId,
    chips::arm::{
        Behaviour, CpuInterface, Gic, GicOptions, Group, IccRegister, Identity, MsiFrames,
        its::{Its, ItsOptions},
    },
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
};

const PROPERTIES: u64 = RAM + 0x5_0000;
const PENDING: u64 = RAM + 0x6_0000;
const ITS: u64 = 0x0808_0000;

/// A machine as in the recorded runs, with one ITS or more.
struct Machine {
    gic: Arc<Gic>,
    its: Arc<Its>,
    ram: Arc<RamBlock>,
    cpus: Vec<CpuInterface>,
}

impl Machine {
    fn new(behaviour: Behaviour) -> Self {
        let mut options = GicOptions::new(2);
        options.behaviour = behaviour;
        if behaviour == Behaviour::KVM {
            options.identity = Identity::Kvm;
        }
        let ram = Arc::new(RamBlock::new(RAM, RAM_BYTES));
        let gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(())).unwrap();
        let its = Its::new(gic.clone(), ItsOptions::default());
        gic.distributor().write(0, 4, 0x12);
        ram.write(PROPERTIES, &[0xa1; 0x8000]).unwrap();
        let cpus = (0..2).map(|cpu| {
            let redistributor = gic.redistributor(VcpuId(cpu)).unwrap();
            redistributor.write(0x70, 8, PROPERTIES | 15);
            redistributor.write(0x78, 8, PENDING + u64::from(cpu) * 0x1_0000);
            redistributor.write(0, 4, 1);
            // GICR_WAKER: awake.
            redistributor.write(0x14, 4, 0);
            let mut cpu = gic.cpu_interface(VcpuId(cpu)).unwrap();
            cpu.write(IccRegister::Pmr, 0xff);
            cpu.write(IccRegister::Igrpen1, 1);
            cpu
        });
        let cpus = cpus.collect();
        let machine = Self { gic, its, ram, cpus };
        machine.bring_up(&machine.its, QUEUE, DEVICES, COLLECTIONS);
        machine
    }

    fn bring_up(&self, its: &Its, queue: u64, devices: u64, collections: u64) {
        its.write(offset::CBASER, 8, VALID | queue | 15);
        its.write(offset::BASER0, 8, VALID | devices | PAGES_64K);
        its.write(offset::BASER1, 8, VALID | collections | PAGES_64K);
        its.write(offset::CTLR, 4, 1);
    }

    fn run_on(&self, its: &Its, queue: u64, commands: &[Words]) {
        let mut at = its.read(offset::CWRITER, 8);
        for command in commands {
            for (word, value) in (0..).zip(command) {
                self.ram.write_le(queue + at + 8 * word, *value).unwrap();
            }
            at = (at + 32) % 0x1_0000;
        }
        its.write(offset::CWRITER, 8, at);
        assert_eq!(its.read(offset::CREADR, 8), at);
    }

    fn run(&self, commands: &[Words]) {
        self.run_on(&self.its, QUEUE, commands);
    }

    fn map_both(&self) {
        self.run(&[mapd(DEVICE, 5, ITT, true), mapc(0, 0, true), mapc(1, 1, true)]);
        self.run(&[mapti(DEVICE, 3, 8195, 0), mapti(DEVICE, 4, 8200, 1), inv(3)]);
    }

    fn ring(&self, event: u32) -> Result<Delivery, Errno> {
        self.its.send(DeviceId(DEVICE), event).map_err(|error| error.errno())
    }

    fn configure(&self, lpi: u32, byte: u8) {
        self.ram.write_le(PROPERTIES + u64::from(lpi - 8192), byte).unwrap();
    }

    fn next(&mut self, cpu: usize) -> u32 {
        self.cpus[cpu].acknowledge(Group::One)
    }

    fn end(&mut self, cpu: usize, lpi: u32) {
        self.cpus[cpu].end(Group::One, lpi);
    }

    /// Acknowledges and ends until nothing is left, or for a while.
    fn drain(&mut self, cpu: usize) -> Vec<u32> {
        let mut order = Vec::new();
        while order.len() < 64 {
            match self.next(cpu) {
                1023 => break,
                lpi => {
                    order.push(lpi);
                    self.end(cpu, lpi);
                }
            }
        }
        order
    }
}

const ONE: Result<Delivery, Errno> = Ok(Delivery::Delivered(1));
const NONE: Result<Delivery, Errno> = Ok(Delivery::Coalesced);

/// The steps of `its_cpu_interface`, with its values.
#[test]
fn a_vcpu_sees_what_qemus_sees() {
    let mut it = Machine::new(Behaviour::SPEC);
    it.run(&[mapc(0, 0, true), mapd(DEVICE, 4, ITT, true)]);
    for (event, config) in [(2, 0xa1), (3, 0x81), (4, 0xa0)] {
        it.configure(8192 + event, config);
        it.run(&[mapti(DEVICE, event, 8192 + event, 0), inv(event)]);
    }
    assert_eq!(it.cpus[0].highest_pending(Group::One), 1023);
    assert_eq!((it.next(0), it.cpus[0].running_priority()), (1023, 0xff));
    assert_eq!((it.ring(2), it.ring(3)), (ONE, ONE));
    assert_eq!(it.cpus[0].highest_pending(Group::One), 8195, "two_pending");
    assert_eq!((it.next(0), it.cpus[0].running_priority()), (8195, 0x80), "first_acknowledge");
    assert_eq!((it.cpus[0].highest_pending(Group::One), it.next(0)), (8194, 1023));
    assert_eq!(it.ring(3), ONE, "retrigger_while_running");
    assert_eq!((it.cpus[0].highest_pending(Group::One), it.next(0)), (8195, 1023));
    it.end(0, 8195);
    assert_eq!(it.drain(0), [8195, 8194], "after_eoi.acknowledge_order");
    // Preemption.
    assert_eq!((it.ring(2), it.next(0), it.ring(3), it.next(0)), (ONE, 8194, ONE, 8195));
    assert_eq!(it.cpus[0].running_priority(), 0x80);
    it.end(0, 8195);
    assert_eq!(it.cpus[0].running_priority(), 0xa0);
    it.end(0, 8194);
    // An LPI that is disabled, until INV (I14, H24).
    assert_eq!((it.ring(4), it.next(0)), (ONE, 1023), "disabled_lpi");
    it.configure(8196, 0xa1);
    assert_eq!(it.next(0), 1023, "disabled_lpi.enabled_in_table");
    it.run(&[inv(4)]);
    assert_eq!(it.drain(0), [8196]);
    // I8.
    it.its.write(offset::CTLR, 4, 0);
    assert_eq!(it.ring(2), Err(Errno::BUSY));
    it.its.write(offset::CTLR, 4, 1);
    assert_eq!(it.drain(0), [], "its_reenabled");
}

/// I13, I13a: ours at once, without the old vCPU having run.
#[test]
fn a_pending_lpi_that_moves_is_at_its_new_vcpu_at_once() {
    for behaviour in [Behaviour::SPEC, Behaviour::KVM] {
        let mut it = Machine::new(behaviour);
        it.map_both();
        assert_eq!(it.ring(4), ONE);
        it.run(&[movi(DEVICE, 4, 0)]);
        assert_eq!((it.drain(1), it.drain(0)), (vec![], vec![8200]));
    }
}

/// I16 to I16b.
#[test]
fn movall_moves_what_is_pending() {
    for (behaviour, later) in [(Behaviour::SPEC, 0), (Behaviour::KVM, 1)] {
        let mut it = Machine::new(behaviour);
        it.map_both();
        assert_eq!(it.ring(3), ONE);
        it.run(&[movall(0, 1)]);
        assert_eq!((it.drain(0), it.drain(1)), (vec![], vec![8195]));
        assert_eq!(it.ring(3), ONE);
        assert_eq!((it.drain(later), it.drain(1 - later)), (vec![8195], vec![]), "rules.doorbell_after_movall");
    }
}

/// I17, I17a, I20, I20a.
#[test]
fn a_pending_lpi_whose_mapping_goes_is_dropped_but_not_in_kvm() {
    for (behaviour, kept) in [(Behaviour::SPEC, false), (Behaviour::KVM, true)] {
        for (command, name) in [(discard(3), "DISCARD"), (mapd(DEVICE, 5, ITT, false), "MAPD")] {
            let mut it = Machine::new(behaviour);
            it.map_both();
            assert_eq!(it.ring(3), ONE);
            it.run(&[command]);
            assert_eq!(it.ring(3), NONE);
            assert_eq!(it.drain(0), if kept { vec![8195] } else { vec![] }, "{name}");
        }
    }
}

/// I18, I18a.
#[test]
fn a_collection_that_comes_back_brings_its_events_but_not_in_kvm() {
    for (behaviour, answer) in [(Behaviour::SPEC, ONE), (Behaviour::KVM, NONE)] {
        let mut it = Machine::new(behaviour);
        it.map_both();
        it.run(&[mapc(0, 0, false)]);
        assert_eq!(it.ring(3), NONE);
        it.run(&[mapc(0, 1, true)]);
        assert_eq!(it.ring(3), answer);
        assert_eq!(it.drain(1), if answer == ONE { vec![8195] } else { vec![] });
    }
}

/// I19: what is pending stays, what comes goes elsewhere; both are acknowledged.
#[test]
fn a_collection_mapped_elsewhere_loses_nothing() {
    for (behaviour, old) in [(Behaviour::SPEC, vec![8195]), (Behaviour::KVM, vec![])] {
        let mut it = Machine::new(behaviour);
        it.map_both();
        assert_eq!(it.ring(3), ONE);
        it.run(&[mapc(0, 1, true)]);
        let kvm = old.is_empty();
        assert_eq!(it.drain(0), old);
        assert_eq!(it.drain(1), if kvm { vec![8195] } else { vec![] });
        assert_eq!(it.ring(3), ONE);
        assert_eq!((it.drain(0), it.drain(1)), (vec![], vec![8195]));
    }
}

/// I31, Q13.
#[test]
fn a_redistributor_with_lpis_off_has_the_sender_told() {
    let it = Machine::new(Behaviour::SPEC);
    it.map_both();
    it.gic.redistributor(VcpuId(0)).unwrap().write(0, 4, 0);
    assert_eq!((it.ring(3), it.ring(4)), (Err(Errno::BUSY), ONE));
    assert_eq!(it.its.counters().dropped_lpis_off, 1);
}

/// Q10 to Q15, through frames at addresses.
#[test]
fn messages_reach_an_its_by_its_address() {
    for (behaviour, anywhere) in [(Behaviour::SPEC, Err(Errno::INVAL)), (Behaviour::KVM, ONE)] {
        let mut it = Machine::new(behaviour);
        it.map_both();
        let frames = MsiFrames::new();
        frames.place(ITS, it.its.clone()).unwrap();
        let message = |address, data| MsiMessage::new(address, data).from_device(DeviceId(DEVICE));
        let send = |message: MsiMessage| frames.send(&message).map_err(|error| error.errno());
        let door = ITS + offset::TRANSLATER;
        assert_eq!(send(MsiMessage::new(door, 3)), Err(Errno::INVAL), "Q10");
        assert_eq!(send(message(door, 3)), ONE);
        assert_eq!(send(MsiMessage::new(door, 3)), Err(Errno::INVAL), "Q10a: ours always asks for the DeviceID");
        assert_eq!(send(message(door, 5)), NONE, "Q14");
        assert_eq!(send(message(door + 4, 3)), anywhere, "Q12");
        assert_eq!(send(message(ITS, 3)), anywhere, "Q12");
        assert_eq!(send(message(0x0900_0000, 3)), Err(Errno::INVAL), "Q12");
        assert_eq!(frames.prepare(&MsiMessage::new(door, 3)), None);
        let target = frames.prepare(&message(door, 4)).unwrap();
        assert_eq!(frames.fire(target), Delivery::Delivered(1));
        assert_eq!((it.drain(0), it.drain(1)), (vec![8195], vec![8200]));
    }
}

/// A CPU's store has no DeviceID, and a device's store is no configuration.
#[test]
fn a_store_to_the_doorbell_is_an_event_only_from_a_device() {
    let mut it = Machine::new(Behaviour::SPEC);
    it.map_both();
    it.its.write(offset::TRANSLATER, 4, 3);
    assert_eq!(it.drain(0), []);
    let device = DeviceId(DEVICE);
    assert_eq!(it.its.translate(device, offset::TRANSLATER, 4, 3), Delivery::Delivered(1));
    assert_eq!(it.its.translate(device, offset::TRANSLATER, 2, 0xffff_0004), Delivery::Delivered(1));
    assert_eq!(it.its.translate(device, offset::TRANSLATER, 8, 3), Delivery::Ignored);
    assert_eq!(it.its.translate(device, offset::CTLR, 4, 0), Delivery::Ignored);
    assert_eq!(it.its.read(offset::CTLR, 4), 0x8000_0001);
    assert_eq!((it.drain(0), it.drain(1)), (vec![8195], vec![8200]));
}

#[test]
fn two_itss_share_a_gic() {
    let mut it = Machine::new(Behaviour::SPEC);
    it.map_both();
    let queue = RAM + 0x20_0000;
    let second = Its::new(it.gic.clone(), ItsOptions::default());
    it.bring_up(&second, queue, queue + 0x1_0000, queue + 0x2_0000);
    it.run_on(&second, queue, &[mapd(DEVICE, 5, queue + 0x3_0000, true), mapc(7, 0, true), mapti(DEVICE, 3, 9000, 7)]);
    assert_eq!(second.send(DeviceId(DEVICE), 3).unwrap(), Delivery::Delivered(1));
    assert_eq!(it.drain(0), [9000], "the same device and event, of the other ITS");
    assert_eq!(it.ring(3), ONE);
    second.reset();
    assert!(second.send(DeviceId(DEVICE), 3).is_err());
    assert_eq!(it.drain(0), [8195]);
}

/// Saved with what is pending, and restored into a new machine.
#[test]
fn a_machine_comes_back_with_its_mappings() {
    let it = Machine::new(Behaviour::SPEC);
    it.map_both();
    it.its.save_tables().unwrap();
    let state = it.its.save();
    let mut other = Machine::new(Behaviour::SPEC);
    let mut bytes = vec![0; RAM_BYTES];
    it.ram.read(RAM, &mut bytes).unwrap();
    other.ram.write(RAM, &bytes).unwrap();
    other.its.restore(&state).unwrap();
    assert_eq!((other.ring(3), other.ring(4), other.ring(5)), (ONE, ONE, NONE));
    assert_eq!((other.drain(0), other.drain(1)), (vec![8195], vec![8200]));
}

/// H20, H23: devices ring while the guest moves, discards, unmaps and disables. What was said to be delivered is
/// acknowledged, and once a command is done, no event goes where it was.
#[test]
fn a_storm_of_doorbells_against_commands() {
    const EVENTS: u32 = 8;
    let mut it = Machine::new(Behaviour::SPEC);
    it.run(&[mapc(0, 0, true), mapc(1, 1, true), mapd(DEVICE, 5, ITT, true)]);
    let map: Vec<_> = (0..EVENTS).map(|event| mapti(DEVICE, event, 8192 + event, 0)).collect();
    it.run(&map);
    let (stop, rung) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let (its, stop, rung) = (it.its.clone(), &stop, &rung);
            let targets: Vec<_> = (0..EVENTS).map(|event| its.prepare(DeviceId(DEVICE), event).unwrap()).collect();
            scope.spawn(move || {
                let mut at = thread;
                while !stop.load(Ordering::Relaxed) {
                    at = (at + 3) % EVENTS;
                    its.fire(targets[at as usize]);
                    rung.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while rung.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        for round in 0..300u32 {
            let event = round % EVENTS;
            match round % 4 {
                0 => {
                    it.run(&[discard(event)]);
                    let lpi = 8192 + event;
                    assert!(!it.drain(0).contains(&lpi) && !it.drain(1).contains(&lpi), "late after DISCARD");
                    it.run(&[mapti(DEVICE, event, lpi, (round / 4 % 2) as u16)]);
                }
                1 => {
                    it.its.write(offset::CTLR, 4, 0);
                    (0..2).for_each(|cpu| drop(it.drain(cpu)));
                    assert_eq!((it.drain(0), it.drain(1)), (vec![], vec![]), "late after disable");
                    it.its.write(offset::CTLR, 4, 1);
                }
                2 => {
                    it.run(&[movi(DEVICE, event, 1)]);
                    assert!(!it.drain(0).contains(&(8192 + event)), "at the old vCPU after MOVI");
                    it.run(&[movi(DEVICE, event, 0)]);
                }
                _ => {
                    it.run(&[mapd(DEVICE, 5, ITT, true)]);
                    (0..2).for_each(|cpu| drop(it.drain(cpu)));
                    assert_eq!((it.drain(0), it.drain(1)), (vec![], vec![]), "late after MAPD");
                    it.run(&map);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    (0..2).for_each(|cpu| drop(it.drain(cpu)));
    for event in 0..EVENTS {
        assert_eq!(it.ring(event), ONE);
    }
    let mut all = it.drain(0);
    all.extend(it.drain(1));
    all.sort_unstable();
    assert_eq!(all, (8192..8192 + EVENTS).collect::<Vec<_>>(), "everything still comes through");
}
