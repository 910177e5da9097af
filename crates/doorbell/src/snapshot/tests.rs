//! A whole machine, saved in mid-flight and restored into another one.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId,
    chips::x86::{
        PcPins,
        ioapic::{CHIP, INDEX, IoApic, IoApicOptions, WINDOW},
        lapic::{ApicOptions, ApicSet, LocalApic},
        pic::{Pic, PicOptions},
    },
    clock::VirtualClock,
    guest_ram::RamBlock,
    manager::{IrqManager, SoftOptions},
    pci::{InjectorMask, InjectorOptions, MsixTable, VectorPool, msix::registers::MessageControl},
    remap::{
        amd::{AmdUnitOptions, AmdVi, registers::offset},
        vtd::{VtdOptions, VtdUnit, registers},
    },
    route::{Route, RouteEntry, RoutePolicy},
};

struct Machine {
    clock: Arc<VirtualClock>,
    irqs: IrqManager,
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    cpus: Vec<LocalApic>,
    msix: MsixTable<InjectorMask>,
    vtd: VtdUnit,
    amd_vi: Arc<AmdVi>,
}

fn machine() -> Machine {
    let clock = Arc::new(VirtualClock::default());
    let apics = ApicSet::with_clock(&[0, 1], Arc::new(()), clock.clone(), ApicOptions::default()).unwrap();
    let mut cpus: Vec<LocalApic> = (0..2).filter_map(|cpu| apics.local(VcpuId(cpu))).collect();
    for cpu in &mut cpus {
        cpu.write(0xf0, 0x1ff);
    }
    let ioapic = Arc::new(IoApic::new(apics.clone(), IoApicOptions::default()));
    let vtd = VtdUnit::new(VtdOptions::default(), apics.clone(), Arc::new(RamBlock::new(0, 0x4000)));
    let ram = Arc::new(RamBlock::new(0, 0x4000));
    let amd_vi = AmdVi::new(apics.clone(), ram, Arc::new(()), &[AmdUnitOptions::default()]).unwrap();
    let wire = apics.clone();
    let pic = Arc::new(Pic::new(move |level| wire.set_pic_output(VcpuId(0), level), PicOptions::default()));
    let pins = PcPins { pic: pic.clone(), ioapic: ioapic.clone() };
    let options = SoftOptions::new(apics, Arc::new(pins)).policy(RoutePolicy::KVM_X86);
    let irqs = IrqManager::soft(options).unwrap();
    let pool = VectorPool::new(irqs.vectors());
    let msix = MsixTable::new(InjectorMask::new(&pool, 4, InjectorOptions::default()).unwrap()).unwrap();
    Machine { clock, irqs, pic, ioapic, cpus, msix, vtd, amd_vi }
}

impl Machine {
    fn save(&self) -> Snapshot {
        let apics = self.cpus.iter().map(LocalApic::save).collect();
        Snapshot {
            manager: self.irqs.save(),
            x86: Some(X86State {
                pic: Some(self.pic.save()),
                ioapic: self.ioapic.save(),
                apics,
                vtd: vec![self.vtd.save()],
                amd_vi: self.amd_vi.save(),
            }),
            arm: None,
            msix: vec![self.msix.save()],
            msi: vec![],
        }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { manager, x86, arm: _, msix, msi: _ } = snapshot;
        self.irqs.restore(manager)?;
        let X86State { pic, ioapic, apics, vtd, amd_vi } = x86.as_ref().unwrap();
        for state in vtd {
            self.vtd.restore(state)?;
        }
        self.amd_vi.restore(amd_vi)?;
        self.pic.restore(pic.as_ref().unwrap())?;
        self.ioapic.restore(ioapic)?;
        for (cpu, state) in self.cpus.iter_mut().zip(apics) {
            cpu.restore(state)?;
        }
        self.msix.restore(&msix[0])
    }

    /// What the guest takes on a CPU, in order.
    fn taken(&mut self, cpu: usize) -> Vec<u8> {
        let mut vectors = Vec::new();
        while let Some(vector) = self.cpus[cpu].acknowledge() {
            vectors.push(vector);
            if self.cpus[cpu].eoi().is_some_and(|eoi| eoi.level) {
                self.irqs.end(CHIP, &self.ioapic.end(vector));
            }
        }
        vectors
    }
}

/// A machine with something of everything in flight.
fn busy() -> Machine {
    let mut machine = machine();
    let route = |gsi, vector| RouteEntry { gsi, route: Route::Msi(MsiMessage::new(0xfee0_1000, vector)) };
    let pin = RouteEntry { gsi: 9, route: Route::Pin(crate::route::Pin { chip: CHIP, pin: 9 }) };
    let legacy = RouteEntry { gsi: 6, route: Route::Pin(crate::route::Pin { chip: 0, pin: 6 }) };
    machine.irqs.set_routes(&[route(24, 0x41), route(25, 0x42), pin, legacy]).unwrap();
    // Pin 6 of the 8259 asks, while pin 3 is in service above it.
    for (port, word) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)] {
        machine.pic.settle(machine.pic.write(port, &[word]));
    }
    machine.pic.pulse(0, 3, LineSource::USER);
    assert_eq!(machine.pic.acknowledge().vector, 0x23);
    machine.irqs.irq_line(6, true);
    machine.irqs.mask(25).unwrap();
    machine.irqs.trigger(24).fire();
    machine.irqs.trigger(25).fire();
    let _ = machine.ioapic.write(INDEX, 0x10 + 2 * 9);
    let _ = machine.ioapic.write(WINDOW, 0x8051);
    machine.irqs.irq_line(9, true);
    // MSI-X vector 1 is unmasked, vector 2 is masked with an event pending.
    machine.msix.set_control(MessageControl::from_bits(1 << 15));
    for (vector, data) in [(1u64, 0x61u32), (2, 0x62)] {
        machine.msix.write(vector * 16, &0xfee0_1000u32.to_le_bytes());
        machine.msix.write(vector * 16 + 8, &data.to_le_bytes());
    }
    machine.msix.write(16 + 12, &0u32.to_le_bytes());
    for vector in [1, 2] {
        machine.msix.strategy().vector(vector).unwrap().fire();
    }
    // CPU 0 counts 1 ms over and over, CPU 1 waits for its time-stamp counter; both have 0.6 ms to go.
    machine.cpus[0].write(0x3e0, 0xb);
    machine.cpus[0].write(0x320, 0x2_0071);
    machine.cpus[0].write(0x380, 1_000_000);
    machine.cpus[1].write(0x320, 0x4_0072);
    machine.cpus[1].msr_write(0x6e0, 1_000_000).unwrap();
    machine.clock.advance(400_000);
    // A remapping unit has blocked a message, and its masked event waits; its queue has stopped.
    machine.vtd.write(registers::TABLE_ADDRESS, 8, 0x1000);
    machine.vtd.write(registers::GLOBAL_COMMAND, 4, 0x100_0000);
    machine.vtd.write(registers::GLOBAL_COMMAND, 4, 0x600_0000);
    machine.vtd.write(registers::FAULT_EVENT + 4, 4, 0x75);
    machine.vtd.write(registers::FAULT_EVENT + 8, 4, 0xfee0_0000);
    assert_eq!(machine.vtd.send(&MsiMessage::new(0xfee0_0030, 0)).unwrap(), Delivery::Ignored);
    machine.vtd.write(registers::QUEUE_TAIL, 8, 0x10);
    // The other kind of unit has logged an event without an interrupt, and stopped at an illegal command.
    let unit = machine.amd_vi.unit(0).unwrap();
    unit.set_own_message(Some(&MsiMessage::new(0xfee0_0000, 0x76)));
    unit.write(offset::EVENT_LOG_BASE, 8, 0x1000 | 8 << 56);
    unit.write(offset::COMMAND_BUFFER_BASE, 8, 0x2000 | 8 << 56);
    unit.write(offset::CONTROL, 8, 1 | 1 << 2 | 1 << 12);
    unit.write(offset::COMMAND_TAIL, 8, 0x10);
    machine
}

#[test]
fn a_machine_in_flight_goes_on_where_it_was() {
    let snapshot = busy().save();
    let mut restored = machine();
    restored.restore(&Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap()).unwrap();
    assert_eq!(restored.save(), snapshot);
    assert_eq!(restored.taken(1), [0x61, 0x41], "pending in the local APIC");
    assert!(!restored.cpus[0].next().extint);
    for (chip, pins) in restored.pic.write(0x20, &[0x20]).chips() {
        restored.irqs.end(chip, &pins);
    }
    assert!(restored.cpus[0].next().extint, "pending behind what was in service");
    assert_eq!(restored.pic.acknowledge().vector, 0x26);
    assert_eq!(restored.irqs.irq_line(6, true), Delivery::Delivered(1));
    assert_eq!(restored.pic.state(0).irr, 0, "its line was high already: no edge");
    restored.irqs.unmask(25).unwrap();
    restored.msix.write(2 * 16 + 12, &0u32.to_le_bytes());
    assert_eq!(restored.taken(1), [0x62, 0x42], "pending behind their masks");
    restored.irqs.irq_line(9, false);
    assert_eq!(restored.taken(0), [0x51], "the level line that was up is sent once and then low");
    assert_eq!(restored.vtd.read(registers::FAULT_STATUS, 4), 0x12);
    assert_eq!(restored.vtd.read(registers::FAULT_RECORDS, 8), 1 << 48);
    restored.vtd.write(registers::FAULT_EVENT, 4, 0);
    assert_eq!(restored.taken(0), [0x75], "the fault event of the remapping unit");
    let unit = restored.amd_vi.unit(0).unwrap();
    let [tail, status] = [offset::EVENT_TAIL, offset::STATUS].map(|at| unit.read(at, 8));
    assert_eq!((tail, status), (0x10, 0xa), "an event logged; the log runs, the commands do not");
    unit.write(offset::CONTROL, 8, 1 | 1 << 2 | 1 << 3 | 1 << 12);
    assert_eq!(restored.taken(0), [0x76], "of which the guest now wants to hear");
    for (ns, taken) in [(599_999, [false, false]), (1, [true, true]), (999_999, [false, false]), (1, [true, false])] {
        restored.clock.advance(ns);
        assert_eq!([0, 1].map(|cpu: usize| restored.cpus[cpu].tick()), taken);
        let expected = [0, 1].map(|cpu: usize| if taken[cpu] { vec![0x71 + cpu as u8] } else { vec![] });
        assert_eq!([restored.taken(0), restored.taken(1)], expected, "the timers go on as if nothing had happened");
    }
}

#[test]
fn bytes_of_another_kind_are_refused_in_words() {
    let good = Snapshot::default().to_bytes().unwrap();
    assert_eq!(Snapshot::from_bytes(&good).unwrap(), Snapshot::default());
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Snapshot::from_bytes(&bytes).unwrap_err().to_string()
    };
    assert!(with(0, b'D').contains("does not begin with the word doorbell"));
    assert!(with(8, 99).contains("version 99"), "{}", with(8, 99));
    assert!(Snapshot::from_bytes(&good[..5]).unwrap_err().to_string().contains("5 bytes are too few"));
    assert!(Snapshot::from_bytes(&good[..good.len() - 1]).is_err());
    assert!(Snapshot::from_bytes(&[&good[..], b"x"].concat()).unwrap_err().to_string().contains("1 bytes behind"));
}

proptest! {
    /// A forged snapshot is refused, or restored into a machine that can be saved again and goes on working.
    #[test]
    fn a_forged_snapshot_does_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = busy().save().to_bytes().unwrap();
        for (at, byte) in changes {
            let at = 12 + at.index(bytes.len() - 12);
            bytes[at] = byte;
        }
        if let Ok(snapshot) = Snapshot::from_bytes(&bytes) {
            let mut machine = machine();
            let complete = snapshot.x86.is_some() && !snapshot.msix.is_empty();
            if complete && machine.restore(&snapshot).is_ok() {
                machine.save().to_bytes().unwrap();
            }
            machine.irqs.trigger(24).fire();
            for cpu in &mut machine.cpus {
                cpu.acknowledge();
            }
        }
    }
}
