//! The ways on which interrupts become pending, and are taken and ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use doorbell::{
    LineSource, MsiMessage, MsiTarget, PinInput, VcpuId,
    chips::x86::{
        ioapic::{CHIP, IoApic, IoApicOptions},
        lapic::{ApicOptions, ApicSet, LocalApic},
    },
    gate::Gate,
    guest_ram::{GuestRamExt, RamBlock},
    inflight::BiasPermit,
    pci::{InjectorMask, InjectorOptions, MsixTable, VectorPool, msix::registers::MessageControl},
    remap::vtd::{VtdOptions, VtdUnit, registers},
    route::{IrqTrigger, NoPins, Route, RouteEntry, RoutePolicy, RouteTable, SharedTrigger},
};

/// A name for the failure message, and what to do.
pub type Operation = (&'static str, Box<dyn FnMut()>);

/// One vCPU, which never sleeps unless an operation says so.
struct Machine {
    apics: Arc<ApicSet>,
    cpu: LocalApic,
    table: Arc<RouteTable>,
    kicks: Arc<AtomicU64>,
}

const VECTOR: u8 = 0x41;

fn message() -> MsiMessage {
    MsiMessage::new(0xfee0_0000, VECTOR.into())
}

fn machine(bias: Option<BiasPermit>) -> Machine {
    let kicks = Arc::new(AtomicU64::new(0));
    let kick = {
        let kicks = Arc::clone(&kicks);
        move |_: VcpuId| {
            kicks.fetch_add(1, Ordering::Relaxed);
        }
    };
    let apics = ApicSet::new(1, Arc::new(kick), ApicOptions::default());
    let mut cpu = apics.local(VcpuId(0)).unwrap();
    cpu.write(0xf0, 0x1ff);
    let target: Arc<dyn MsiTarget> = apics.clone();
    let table = RouteTable::with_bias(target, Arc::new(NoPins), RoutePolicy::default(), bias);
    table.set(&[RouteEntry { gsi: 7, route: Route::Msi(message()) }]).unwrap();
    Machine { apics, cpu, table: Arc::new(table), kicks }
}

fn take(cpu: &mut LocalApic) {
    assert_eq!(cpu.acknowledge(), Some(VECTOR));
    cpu.eoi();
}

/// All of them, each on a machine of its own.
pub fn operations() -> Vec<Operation> {
    vec![
        ("a single owner's event, taken", owned(None)),
        ("a biased owner's event, taken", owned(BiasPermit::request().ok())),
        ("a shared trigger's event, taken", shared()),
        ("an event that is merged", merged()),
        ("an event behind a mask", masked()),
        ("an event that wakes a sleeping vCPU", kicking()),
        ("a message that is not resolved in advance", direct()),
        ("a message through VT-d, taken", remapped()),
        ("an MSI-X event, taken", msix()),
        ("an MSI-X event behind the mask bit", msix_masked()),
        ("an edge pulse of an IOAPIC pin, taken", edge()),
        ("a level interrupt of an IOAPIC pin, to its end", level()),
        ("a line call", line()),
    ]
}

fn owned(bias: Option<BiasPermit>) -> Box<dyn FnMut()> {
    let Machine { mut cpu, table, .. } = machine(bias);
    let mut trigger = IrqTrigger::new(table, 7);
    Box::new(move || {
        trigger.fire();
        take(&mut cpu);
    })
}

fn shared() -> Box<dyn FnMut()> {
    let Machine { mut cpu, table, .. } = machine(None);
    let trigger = SharedTrigger::new(table, 7);
    Box::new(move || {
        trigger.fire();
        take(&mut cpu);
    })
}

fn merged() -> Box<dyn FnMut()> {
    let Machine { cpu, table, .. } = machine(None);
    Box::new(move || {
        table.fire(7);
        assert!(cpu.holds(VECTOR));
    })
}

fn masked() -> Box<dyn FnMut()> {
    let Machine { cpu, table, .. } = machine(None);
    Gate::new(&table).mask(7).unwrap();
    Box::new(move || {
        table.fire(7);
        assert!(Gate::new(&table).is_pending(7) && !cpu.holds(VECTOR));
    })
}

fn kicking() -> Box<dyn FnMut()> {
    let Machine { mut cpu, table, kicks, .. } = machine(None);
    Box::new(move || {
        let before = kicks.load(Ordering::Relaxed);
        assert!(cpu.arm().is_idle());
        table.fire(7);
        assert_eq!(kicks.load(Ordering::Relaxed), before + 1);
        take(&mut cpu);
    })
}

fn direct() -> Box<dyn FnMut()> {
    let Machine { apics, mut cpu, .. } = machine(None);
    Box::new(move || {
        apics.send(&message()).unwrap();
        take(&mut cpu);
    })
}

fn remapped() -> Box<dyn FnMut()> {
    let Machine { apics, mut cpu, .. } = machine(None);
    let ram = Arc::new(RamBlock::new(0, 0x2000));
    // Entry 5 of a table at 0x1000.
    ram.write_le(0x1050, 1 | u64::from(VECTOR) << 16).unwrap();
    let unit = VtdUnit::new(VtdOptions::default(), apics, ram);
    unit.write(registers::TABLE_ADDRESS, 8, 0x1007);
    for command in [1 << 24, 1 << 25] {
        unit.write(registers::GLOBAL_COMMAND, 4, command);
    }
    let target = unit.prepare(&MsiMessage::new(0xfee0_0010 | 5 << 5, 0)).unwrap();
    Box::new(move || {
        unit.fire(target);
        take(&mut cpu);
    })
}

fn msix_table(table: &Arc<RouteTable>) -> MsixTable<InjectorMask<RouteTable>> {
    let pool = VectorPool::new(Arc::clone(table));
    let mut msix = MsixTable::new(InjectorMask::new(&pool, 4, InjectorOptions::default()).unwrap()).unwrap();
    msix.write(0, &message().address.to_le_bytes());
    msix.write(8, &u64::from(message().data).to_le_bytes());
    msix.set_control(MessageControl::new().with_enable(true));
    msix
}

fn msix() -> Box<dyn FnMut()> {
    let Machine { mut cpu, table, .. } = machine(None);
    let msix = msix_table(&table);
    let vector = msix.strategy().vector(0).unwrap();
    Box::new(move || {
        // Without the table, its GSIs are taken back.
        let _alive = &msix;
        vector.fire();
        take(&mut cpu);
    })
}

fn msix_masked() -> Box<dyn FnMut()> {
    let Machine { cpu, table, .. } = machine(None);
    let mut msix = msix_table(&table);
    msix.write(12, &1u32.to_le_bytes());
    let vector = msix.strategy().vector(0).unwrap();
    Box::new(move || {
        vector.fire();
        assert!(msix.is_pending(0) && !cpu.holds(VECTOR));
    })
}

/// An IOAPIC whose pin 5 has this low half of its entry.
fn ioapic(apics: &Arc<ApicSet>, low: u32) -> Arc<IoApic> {
    let target: Arc<dyn MsiTarget> = apics.clone();
    let ioapic = IoApic::new(target, IoApicOptions::default());
    for (offset, value) in [(0x00, 0x1b), (0x10, 0), (0x00, 0x1a), (0x10, low | u32::from(VECTOR))] {
        let _ = ioapic.write(offset, value);
    }
    Arc::new(ioapic)
}

fn edge() -> Box<dyn FnMut()> {
    let Machine { apics, mut cpu, .. } = machine(None);
    let ioapic = ioapic(&apics, 0);
    Box::new(move || {
        ioapic.pulse(CHIP, 5, LineSource::USER);
        take(&mut cpu);
    })
}

fn level() -> Box<dyn FnMut()> {
    let Machine { apics, mut cpu, .. } = machine(None);
    let ioapic = ioapic(&apics, 1 << 15);
    Box::new(move || {
        ioapic.set(CHIP, 5, LineSource::USER, true);
        assert_eq!(cpu.acknowledge(), Some(VECTOR));
        ioapic.set(CHIP, 5, LineSource::USER, false);
        let ended = ioapic.end(cpu.eoi().unwrap().vector);
        assert_eq!(ended[..], [5]);
        ioapic.reevaluate(CHIP, &ended);
    })
}

fn line() -> Box<dyn FnMut()> {
    let Machine { mut cpu, table, .. } = machine(None);
    Box::new(move || {
        table.line(7, LineSource::USER, true);
        table.line(7, LineSource::USER, false);
        take(&mut cpu);
    })
}
