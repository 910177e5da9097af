//! Any bytes as a saved machine: refused, with nothing changed, or taken, and then saved again as it was.
#![no_main]

use std::sync::Arc;

use doorbell::{
    MsiTarget, VcpuId,
    chips::{
        arm::{
            Gic, GicOptions, Group,
            its::{Its, ItsOptions},
        },
        x86::{
            ioapic::CHIP,
            pic::{Pic, PicOptions},
        },
    },
    guest_ram::RamBlock,
    manager::{IrqManager, SoftOptions},
    pci::{InjectorMask, InjectorOptions, MsixTable, VectorPool},
    remap::amd::{AmdUnitOptions, AmdVi},
    route::NoPins,
    snapshot::{ArmState, Snapshot},
};
use doorbell_fuzz::{Machine, RAM};
use libfuzzer_sys::fuzz_target;

/// The length of the word and the version.
const HEADER: usize = 12;

/// A GIC of two vCPUs with an ITS: what the GIC refuses changes nothing, what it takes is saved as it was, and all of it runs.
fn arm(state: &ArmState) {
    let ArmState { gic: saved, cpus, its: itss } = state;
    let gic = || {
        let ram = Arc::new(RamBlock::new(0, RAM));
        let gic = Gic::new(GicOptions::new(2), ram, Arc::new(())).expect("two vCPUs");
        let its = Its::new(Arc::clone(&gic), ItsOptions::default());
        (gic, its)
    };
    let (machine, its) = gic();
    let before = machine.save();
    match machine.restore(saved) {
        Ok(()) => {
            let again = machine.save();
            let (other, _its) = gic();
            other.restore(&again).expect("it was saved by a GIC");
            assert_eq!(other.save(), again);
        }
        Err(_) => assert_eq!(machine.save(), before),
    }
    for (vcpu, state) in (0..2).map(VcpuId).zip(cpus) {
        let mut cpu = machine.cpu_interface(vcpu).expect("nobody has it");
        let before = cpu.save();
        match cpu.restore(state) {
            // Not `state` itself: what a register does not have is dropped.
            Ok(()) => {
                let saved = cpu.save();
                cpu.restore(&saved).expect("it was saved by a CPU interface");
                assert_eq!(cpu.save(), saved);
            }
            Err(_) => assert_eq!(cpu.save(), before),
        }
        for _ in 0..300 {
            let intid = cpu.acknowledge(Group::One);
            cpu.end(Group::One, intid);
        }
    }
    for state in itss.iter().take(4) {
        // One that is enabled goes on with its queue, so that it is not saved as it was.
        let _ = its.restore(state);
        let _ = its.save();
    }
}

fuzz_target!(|bytes: &[u8]| {
    // Most have no header.
    let _ = Snapshot::from_bytes(bytes);
    // What a snapshot begins with, so that the fuzzer need not find it.
    let mut whole = Snapshot::default().to_bytes().expect("there is nothing in it");
    whole.truncate(HEADER);
    whole.extend(bytes);
    let Ok(snapshot) = Snapshot::from_bytes(&whole) else { return };
    let again = snapshot.to_bytes().expect("it was just decoded");
    assert_eq!(Snapshot::from_bytes(&again).expect("it was just encoded"), snapshot);

    let mut machine = Machine::new(0);
    let target: Arc<dyn MsiTarget> = machine.apics.clone();
    let irqs = IrqManager::soft(SoftOptions::new(target, Arc::new(NoPins))).expect("descriptors are left");
    let before = irqs.save();
    match irqs.restore(&snapshot.manager) {
        // Not `snapshot.manager` itself: an entry that says nothing is not saved again.
        Ok(()) => {
            let saved = irqs.save();
            irqs.restore(&saved).expect("it was saved by a manager");
            assert_eq!(irqs.save(), saved);
        }
        Err(_) => assert_eq!(irqs.save(), before),
    }
    if let Some(x86) = &snapshot.x86 {
        if let Some(state) = &x86.pic {
            let pic = Pic::new((), PicOptions::default());
            let before = pic.save();
            match pic.restore(state) {
                Ok(()) => assert_eq!(pic.save(), *state),
                Err(_) => assert_eq!(pic.save(), before),
            }
        }
        let vtd = doorbell_fuzz::vtd(2, machine.apics.clone()).0;
        for state in &x86.vtd {
            let before = vtd.save();
            match vtd.restore(state) {
                Ok(()) => assert_eq!(vtd.save(), *state),
                Err(_) => assert_eq!(vtd.save(), before),
            }
        }
        let unit = |n: u32| AmdUnitOptions { requesters: n..=n, ..AmdUnitOptions::default() };
        let units: Vec<_> = (0..2).zip(&x86.amd_vi).map(|(n, _)| unit(n)).collect();
        let ram = Arc::new(RamBlock::new(0, RAM));
        let amd_vi = AmdVi::new(machine.apics.clone(), ram, Arc::new(()), &units).expect("distinct requesters");
        let before = amd_vi.save();
        match amd_vi.restore(&x86.amd_vi) {
            Ok(()) => assert_eq!(amd_vi.save(), x86.amd_vi),
            Err(_) => assert_eq!(amd_vi.save(), before),
        }
        let before = machine.ioapic.save();
        match machine.ioapic.restore(&x86.ioapic) {
            Ok(()) => assert_eq!(machine.ioapic.save(), x86.ioapic),
            Err(_) => assert_eq!(machine.ioapic.save(), before),
        }
        for (cpu, state) in machine.cpus.iter_mut().zip(&x86.apics) {
            let before = cpu.save();
            match cpu.restore(state) {
                // Not `state` itself: reserved bits are dropped, as a guest's store drops them.
                Ok(()) => {
                    let saved = cpu.save();
                    cpu.restore(&saved).expect("it was saved by a local APIC");
                    assert_eq!(cpu.save(), saved);
                }
                Err(_) => assert_eq!(cpu.save(), before),
            }
        }
    }
    if let Some(state) = &snapshot.arm {
        arm(state);
    }
    let pool = VectorPool::new(irqs.vectors());
    for state in snapshot.msix.iter().take(4) {
        let vectors = u16::try_from(state.entries.len().clamp(1, 2048)).expect("at most 2,048");
        let mask = InjectorMask::new(&pool, vectors, InjectorOptions::default()).expect("1 to 2,048");
        let mut table = MsixTable::new(mask).expect("1 to 2,048");
        let before = table.save();
        if table.restore(state).is_err() {
            assert_eq!(table.save(), before);
        }
    }
    // What was restored runs.
    let high =
        machine.ioapic.save().pins.iter().zip(0u16..).filter(|(pin, _)| pin.line != 0).map(|(_, at)| at).collect();
    doorbell::PinInput::reevaluate(&machine.ioapic, CHIP, &high);
    for cpu in &mut machine.cpus {
        for _ in 0..300 {
            cpu.acknowledge();
            cpu.eoi();
        }
    }
});
