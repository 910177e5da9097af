//! Messages: from a trigger to the local APIC, through MSI-X, and to the end of the interrupt.

use std::sync::Arc;

use doorbell::{
    Delivery, MsiTarget,
    pci::{
        InjectorMask, InjectorOptions, MsixTable, MsixTrigger, VectorPool,
        msix::registers::{MessageControl, VECTOR_CONTROL},
    },
    route::{IrqTrigger, RouteTable, SharedTrigger},
};

use super::{
    Work,
    machine::{FIRST_VECTOR, Machine, ROUND, drain, in_rounds, message},
};

/// After so many fires a single owner has the bias.
const WARM_UP: u32 = 2 * doorbell::inflight::QUIET_FIRES;

/// One GSI per vector of one vCPU.
fn one_cpu() -> Result<Machine, String> {
    let machine = Machine::new(1);
    machine.route((0..ROUND).map(|n| message(0, FIRST_VECTOR + n)))?;
    Ok(machine)
}

/// One GSI per vCPU, all asleep.
fn sleeping_cpus() -> Result<Machine, String> {
    let machine = Machine::new(ROUND.into());
    machine.route((0..ROUND).map(|vcpu| message(vcpu, FIRST_VECTOR)))?;
    Ok(machine)
}

fn owned(machine: &Machine) -> Vec<IrqTrigger> {
    let trigger = |gsi| {
        let mut trigger = IrqTrigger::new(Arc::clone(&machine.table), gsi);
        for _ in 0..WARM_UP {
            trigger.fire();
        }
        trigger
    };
    (0..ROUND.into()).map(trigger).collect()
}

fn shared(machine: &Machine) -> Vec<SharedTrigger> {
    (0..ROUND.into()).map(|gsi| SharedTrigger::new(Arc::clone(&machine.table), gsi)).collect()
}

fn tidy_one<T>((machine, _): &mut (Machine, T)) {
    drain(&mut machine.cpus[0]);
}

fn tidy_sleeping<T>((machine, _): &mut (Machine, T)) {
    for cpu in &mut machine.cpus {
        drain(cpu);
        cpu.arm();
    }
}

fn fire_owned((_, triggers): &mut (Machine, Vec<IrqTrigger>), times: usize) {
    for trigger in &mut triggers[..times] {
        std::hint::black_box(trigger.fire());
    }
}

fn fire_shared((_, triggers): &mut (Machine, Vec<SharedTrigger>), times: usize) {
    for trigger in &triggers[..times] {
        std::hint::black_box(trigger.fire());
    }
}

/// Checks that one round reaches the local APICs, then hands the work out.
fn checked<T: 'static>(
    mut state: (Machine, T),
    fire: fn(&mut (Machine, T), usize),
    tidy: fn(&mut (Machine, T)),
) -> Result<Work, String> {
    tidy(&mut state);
    fire(&mut state, ROUND.into());
    let pending: u32 =
        state.0.cpus.iter().map(|cpu| (0..=255).filter(|&vector| cpu.holds(vector)).count() as u32).sum();
    if pending != u32::from(ROUND) {
        return Err(format!("{ROUND} events were fired and {pending} vectors are pending"));
    }
    tidy(&mut state);
    Ok(in_rounds(state, fire, tidy))
}

/// A single owner fires; the vCPU is awake.
pub fn pending() -> Result<Work, String> {
    let machine = one_cpu()?;
    let triggers = owned(&machine);
    checked((machine, triggers), fire_owned, tidy_one)
}

/// Any thread may fire; the vCPU is awake.
pub fn pending_shared() -> Result<Work, String> {
    let machine = one_cpu()?;
    let triggers = shared(&machine);
    checked((machine, triggers), fire_shared, tidy_one)
}

/// A single owner fires, and each event is the first for its sleeping vCPU.
pub fn kick() -> Result<Work, String> {
    let machine = sleeping_cpus()?;
    let triggers = owned(&machine);
    checked((machine, triggers), fire_owned, tidy_sleeping)
}

/// Any thread may fire, and each event is the first for its sleeping vCPU.
pub fn kick_shared() -> Result<Work, String> {
    let machine = sleeping_cpus()?;
    let triggers = shared(&machine);
    checked((machine, triggers), fire_shared, tidy_sleeping)
}

/// Inject, acknowledge, end.
pub fn lapic_cycle() -> Result<Work, String> {
    let Machine { apics, mut cpus, .. } = Machine::new(1);
    let targets: Vec<_> = (0..ROUND).filter_map(|n| apics.prepare(&message(0, FIRST_VECTOR + n))).collect();
    if targets.len() != usize::from(ROUND) {
        return Err("a fixed message cannot be resolved in advance".into());
    }
    let mut next = 0;
    Ok(super::timed(move || {
        next = (next + 1) % targets.len();
        let delivered = apics.fire(targets[next]);
        assert_eq!(delivered, Delivery::Delivered(1));
        cpus[0].acknowledge();
        cpus[0].eoi()
    }))
}

type Table = MsixTable<InjectorMask<RouteTable>>;

/// An enabled function whose vectors are all unmasked.
fn msix() -> Result<(Machine, Table), String> {
    let machine = Machine::new(1);
    let pool = VectorPool::new(Arc::clone(&machine.table));
    let function = InjectorMask::new(&pool, ROUND.into(), InjectorOptions::default()).and_then(MsixTable::new);
    let mut table = function.map_err(|error| error.to_string())?;
    for n in 0..ROUND {
        let (entry, message) = (16 * u64::from(n), message(0, FIRST_VECTOR + n));
        table.write(entry, &message.address.to_le_bytes());
        // Data, and a Vector Control without its mask bit.
        table.write(entry + 8, &u64::from(message.data).to_le_bytes());
    }
    table.set_control(MessageControl::new().with_enable(true));
    Ok((machine, table))
}

/// An event of an unmasked MSI-X vector.
pub fn msix_deliver() -> Result<Work, String> {
    let (machine, table) = msix()?;
    let trigger = |vector| {
        let mut trigger = table.strategy().trigger(vector)?;
        for _ in 0..WARM_UP {
            trigger.fire();
        }
        Some(trigger)
    };
    let triggers: Vec<_> = (0..ROUND.into()).filter_map(trigger).collect();
    let fire = |(_, (_, triggers)): &mut (Machine, (Table, Vec<MsixTrigger<RouteTable>>)), times: usize| {
        for trigger in &mut triggers[..times] {
            std::hint::black_box(trigger.fire());
        }
    };
    checked((machine, (table, triggers)), fire, tidy_one)
}

/// The guest masks a vector, an event comes, the guest unmasks it.
pub fn msix_mask_cycle() -> Result<Work, String> {
    let (machine, table) = msix()?;
    let vectors: Vec<_> = (0..ROUND.into()).filter_map(|vector| table.strategy().vector(vector)).collect();
    let fire = |(_, (table, vectors)): &mut (Machine, (Table, Vec<_>)), times: usize| {
        for (at, vector) in vectors[..times].iter().enumerate() {
            let vector: &doorbell::pci::MsixVector<RouteTable> = vector;
            let control = 16 * at as u64 + VECTOR_CONTROL;
            table.write(control, &1u32.to_le_bytes());
            std::hint::black_box(vector.fire());
            table.write(control, &0u32.to_le_bytes());
        }
    };
    checked((machine, (table, vectors)), fire, tidy_one)
}
