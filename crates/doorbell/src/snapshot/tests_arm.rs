//! An Arm machine, saved in mid-flight and restored into another one.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    DeviceId, Error, MsiMessage, MsiTarget, PinInput, VcpuId,
    chips::arm::{
        CpuInterface, Gic, GicOptions, Group, IccRegister, MsiFrame, MsiFrames,
        its::{Its, ItsOptions, registers::offset},
        line::CHIP,
    },
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    manager::{IrqManager, SoftOptions},
    pci::{InjectorMask, InjectorOptions, MsixTable, VectorPool, msix::registers::MessageControl},
    route::{Pin, Route, RouteEntry},
};

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: usize = 0x10_0000;
const CONFIGURATION: u64 = RAM;
const QUEUE: u64 = RAM + 0x3_0000;
const DEVICES: u64 = RAM + 0x4_0000;
const COLLECTIONS: u64 = RAM + 0x5_0000;
const ITT: u64 = RAM + 0x6_0000;
const DOORBELL: u64 = 0x0809_0040;
const DEVICE: DeviceId = DeviceId(8);

struct Machine {
    ram: Arc<RamBlock>,
    gic: Arc<Gic>,
    its: Arc<Its>,
    irqs: IrqManager,
    cpus: Vec<CpuInterface>,
    msix: MsixTable<InjectorMask>,
}

/// A machine after reset, around this memory.
fn machine(memory: &[u8]) -> Machine {
    let ram = Arc::new(RamBlock::new(RAM, RAM_BYTES));
    ram.write(RAM, memory).unwrap();
    let gic = Gic::new(GicOptions::new(2), ram.clone(), Arc::new(())).unwrap();
    let its = Its::new(gic.clone(), ItsOptions::default());
    let frames = MsiFrames::new();
    frames.place(0x0808_0000, its.clone() as Arc<dyn MsiFrame>).unwrap();
    let frames: Arc<dyn MsiTarget> = Arc::new(frames);
    let pins: Arc<dyn PinInput> = gic.clone();
    let irqs = IrqManager::soft(SoftOptions::new(frames, pins)).unwrap();
    let cpus = (0..2).filter_map(|cpu| gic.cpu_interface(VcpuId(cpu))).collect();
    let pool = VectorPool::new(irqs.vectors());
    let msix = MsixTable::new(InjectorMask::new(&pool, 4, InjectorOptions::default()).unwrap()).unwrap();
    Machine { ram, gic, its, irqs, cpus, msix: msix.from_device(DEVICE) }
}

impl Machine {
    /// The snapshot, and the guest's memory.
    fn save(&self) -> (Snapshot, Vec<u8>) {
        self.its.save_tables().unwrap();
        let arm = ArmState {
            gic: self.gic.save(),
            cpus: self.cpus.iter().map(CpuInterface::save).collect(),
            its: vec![self.its.save()],
        };
        let snapshot = Snapshot {
            manager: self.irqs.save(),
            x86: None,
            arm: Some(arm),
            msix: vec![self.msix.save()],
            msi: vec![],
        };
        let mut memory = vec![0; RAM_BYTES];
        self.ram.read(RAM, &mut memory).unwrap();
        (snapshot, memory)
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { manager, x86: _, arm, msix, msi: _ } = snapshot;
        let ArmState { gic, cpus, its } = arm.as_ref().unwrap();
        self.irqs.restore(manager)?;
        self.gic.restore(gic)?;
        for (cpu, state) in self.cpus.iter_mut().zip(cpus) {
            cpu.restore(state)?;
        }
        for state in its {
            self.its.restore(state)?;
        }
        self.msix.restore(&msix[0])
    }

    /// What the guest takes on a vCPU, in order, and ends.
    fn taken(&mut self, cpu: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        // More than there can be: one that comes again and again must not go on for ever.
        while taken.len() < 64 {
            let intid = self.cpus[cpu].acknowledge(Group::One);
            if (1020..8192).contains(&intid) {
                break;
            }
            taken.push(intid);
            if let Some(pin) = self.cpus[cpu].end(Group::One, intid).and_then(|ended| ended.pin) {
                self.irqs.end(CHIP, &[pin].into_iter().collect());
            }
        }
        taken
    }

    fn commands(&self, commands: &[[u64; 4]]) {
        let mut tail = self.its.read(offset::CWRITER, 8);
        for word in commands.iter().flatten() {
            self.ram.write_le(QUEUE + tail, *word).unwrap();
            tail += 8;
        }
        self.its.write(offset::CWRITER, 8, tail);
        assert_eq!(self.its.read(offset::CREADR, 8), tail);
    }
}

/// A machine with something of everything in flight.
fn busy() -> Machine {
    let mut machine = machine(&[]);
    let distributor = machine.gic.distributor();
    distributor.write(0x0000, 4, 2);
    // SPIs 40 (level), 41 and 42 (edges): Group 1, enabled but for 42, on vCPU 0.
    distributor.write(0x0084, 4, 0x700);
    distributor.write(0x0c08, 4, 0x28_0000);
    distributor.write(0x0104, 4, 0x300);
    (0..3).for_each(|n| distributor.write(0x0428 + n, 1, 0xa0));
    (0..8).for_each(|n| machine.ram.write_le(CONFIGURATION + n, 0xb1u8).unwrap());
    // The last event's LPI is disabled.
    machine.ram.write_le(CONFIGURATION + 3, 0xb0u8).unwrap();
    for (vcpu, cpu) in (0..).zip(&mut machine.cpus) {
        let redistributor = machine.gic.redistributor(VcpuId(vcpu)).unwrap();
        redistributor.write(0x0014, 4, 0);
        redistributor.write(0x0070, 8, CONFIGURATION | 15);
        redistributor.write(0x0078, 8, (RAM + 0x1_0000 * u64::from(vcpu + 1)) | (1 << 62));
        redistributor.write(0x0000, 4, 1);
        cpu.write(IccRegister::Pmr, 0xff);
        cpu.write(IccRegister::Igrpen1, 1);
    }
    machine.its.write(offset::BASER0, 8, 1 << 63 | DEVICES);
    machine.its.write(offset::BASER1, 8, 1 << 63 | COLLECTIONS);
    machine.its.write(offset::CBASER, 8, 1 << 63 | QUEUE);
    machine.its.write(offset::CTLR, 4, 1);
    // MAPC of collections 0 and 1, MAPD, MAPTI of events 0 to 3 to LPIs 8192 to 8195, the even ones on vCPU 0.
    let mapc = |vcpu: u64| [0x09, 0, 1 << 63 | vcpu << 16 | vcpu, 0];
    let mapti = |event: u64| [0x0a | 8 << 32, event | (8192 + event) << 32, event % 2, 0];
    machine.commands(&[mapc(0), mapc(1), [0x08 | 8 << 32, 4, 1 << 63 | ITT, 0]]);
    machine.commands(&[0, 1, 2, 3].map(mapti));
    let pin = |gsi| RouteEntry { gsi, route: Route::Pin(Pin { chip: CHIP, pin: gsi as u16 }) };
    machine.irqs.set_routes(&[pin(8), pin(9), pin(10)]).unwrap();
    // MSI-X vectors 0, 1 and 3 are unmasked, vector 2 is masked.
    machine.msix.set_control(MessageControl::from_bits(1 << 15));
    for vector in 0..4u64 {
        machine.msix.write(vector * 16, &(DOORBELL as u32).to_le_bytes());
        machine.msix.write(vector * 16 + 8, &(vector as u32).to_le_bytes());
        machine.msix.write(vector * 16 + 12, &u32::from(vector == 2).to_le_bytes());
    }
    // SPI 41 is active on vCPU 0 while the level of SPI 40 is high behind it, and the disabled SPI 42 is pending.
    machine.irqs.trigger(9).fire();
    assert_eq!(machine.cpus[0].acknowledge(Group::One), 41);
    machine.irqs.irq_line(8, true);
    machine.irqs.trigger(10).fire();
    for vector in 0..4 {
        machine.msix.strategy().vector(vector).unwrap().fire();
    }
    machine
}

#[test]
fn an_arm_machine_in_flight_goes_on_where_it_was() {
    let (snapshot, memory) = busy().save();
    let mut restored = machine(&memory);
    restored.restore(&Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap()).unwrap();
    assert_eq!(restored.save().0, snapshot);
    assert_eq!(restored.taken(0), [], "SPI 41 is in service");
    assert_eq!(restored.taken(1), [8193], "H31: pending, once; 8195 is disabled");
    assert!(restored.cpus[0].end(Group::One, 41).is_some());
    restored.irqs.irq_line(8, false);
    restored.irqs.irq_line(8, true);
    // A higher line comes again and again: the device lowers it after the first.
    assert_eq!(
        restored.cpus[0].acknowledge(Group::One),
        40,
        "the level that was high is sent, before LPIs of priority 0xb0"
    );
    restored.irqs.irq_line(8, false);
    restored.cpus[0].end(Group::One, 40);
    assert_eq!(restored.taken(0), [8192]);
    restored.gic.distributor().write(0x0104, 4, 0x400);
    assert_eq!(restored.taken(0), [42], "pending behind its mask");
    restored.msix.write(2 * 16 + 12, &0u32.to_le_bytes());
    assert_eq!(restored.taken(0), [8194], "pending behind the mask of MSI-X");
    restored.ram.write_le(CONFIGURATION + 3, 0xb1u8).unwrap();
    restored.commands(&[[0x0c | 8 << 32, 3, 0, 0]]);
    assert_eq!(restored.taken(1), [8195], "pending while disabled, and enabled by INV");
    // Everything is mapped as it was.
    for vector in 0..4 {
        restored.msix.strategy().vector(vector).unwrap().fire();
    }
    assert_eq!([restored.taken(0), restored.taken(1)], [vec![8192, 8194], vec![8193, 8195]]);
    let message = MsiMessage::new(DOORBELL, 1).from_device(DEVICE);
    assert!(restored.irqs.signal_msi(&message).is_ok());
    assert_eq!([restored.taken(0), restored.taken(1)], [vec![], vec![8193]]);
}

proptest! {
    /// A forged snapshot is refused, or restored into a machine that can be saved again and goes on working.
    #[test]
    fn a_forged_snapshot_of_an_arm_machine_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let (snapshot, memory) = busy().save();
        let mut bytes = snapshot.to_bytes().unwrap();
        for (at, byte) in changes {
            let at = 12 + at.index(bytes.len() - 12);
            bytes[at] = byte;
        }
        if let Ok(snapshot) = Snapshot::from_bytes(&bytes) {
            let mut machine = machine(&memory);
            let complete = snapshot.arm.is_some() && !snapshot.msix.is_empty();
            if complete && machine.restore(&snapshot).is_ok() {
                machine.gic.save();
            }
            machine.irqs.trigger(9).fire();
            for cpu in 0..2 {
                machine.taken(cpu);
            }
        }
    }
}
