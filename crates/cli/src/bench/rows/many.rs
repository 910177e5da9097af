//! Big machines: the same work with 64 and 1,024 vCPUs, and what reaches all of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use doorbell::{
    Delivery, MsiMessage, MsiTarget, VcpuId,
    chips::x86::lapic::{ApicBase, ApicOptions, ApicSet, LocalApic},
};

use super::{
    Work,
    machine::{FIRST_VECTOR, drain},
};

/// The spurious-interrupt vector register and the interrupt command register, as MSRs.
const SVR: u32 = 0x80f;
const ICR: u32 = 0x830;
/// Shorthand: all but the sender.
const ALL_BUT_SELF: u64 = 3 << 18;

/// A machine whose vCPUs are all in x2APIC mode.
fn machine(vcpus: u32) -> Result<(Arc<ApicSet>, Vec<LocalApic>), String> {
    let options = ApicOptions { ext_dest_id: true, no_broadcast_quirk: true, ..ApicOptions::default() };
    let apics = ApicSet::new(vcpus, Arc::new(()), options);
    let cpu = |vcpu| {
        let mut cpu = apics.local(VcpuId(vcpu)).ok_or("each half is taken once")?;
        let base = cpu.base().with_x2apic(true).into_bits();
        let stored = cpu.msr_write(ApicBase::MSR, base).and_then(|_| cpu.msr_write(SVR, 0x1ff));
        stored.map(|_| cpu).map_err(|error| error.to_string())
    };
    let cpus = (0..vcpus).map(cpu).collect::<Result<_, String>>()?;
    Ok((apics, cpus))
}

/// Inject, acknowledge, end, on each vCPU in turn.
fn cycle(vcpus: u32) -> Result<Work, String> {
    let (apics, mut cpus) = machine(vcpus)?;
    let target = |vcpu: u32| {
        let (low, ext) = (u64::from(vcpu & 0xff), u64::from(vcpu >> 8));
        // Id 255 alone cannot be resolved in advance: in xAPIC mode it is a broadcast.
        let message = MsiMessage::new(0xfee0_0000 | low << 12 | ext << 5, FIRST_VECTOR.into());
        apics.prepare(&message).map(|target| (target, vcpu as usize))
    };
    let targets: Vec<_> = (0..vcpus).filter_map(target).collect();
    let mut next = 0;
    Ok(super::timed(move || {
        next = (next + 1) % targets.len();
        let (target, vcpu) = targets[next];
        assert_eq!(apics.fire(target), Delivery::Delivered(1));
        cpus[vcpu].acknowledge();
        cpus[vcpu].eoi()
    }))
}

/// On 64.
pub fn cycle_64() -> Result<Work, String> {
    cycle(64)
}

/// On 1,024.
pub fn cycle_1024() -> Result<Work, String> {
    cycle(1_024)
}

/// An interrupt of one vCPU to 1,023 others; each counts as one.
pub fn broadcast() -> Result<Work, String> {
    let (_, mut cpus) = machine(1_024)?;
    let targets = cpus.len() as u64 - 1;
    let mut once = move || {
        let started = Instant::now();
        let sent = cpus[0].msr_write(ICR, ALL_BUT_SELF | u64::from(FIRST_VECTOR));
        let took = started.elapsed();
        let taken = cpus.iter().filter(|cpu| cpu.holds(FIRST_VECTOR)).count() as u64;
        cpus.iter_mut().for_each(drain);
        if sent.is_err() || taken != targets || cpus.iter().any(|cpu| cpu.holds(FIRST_VECTOR)) {
            return Err(format!("{taken} of {targets} vCPUs took a broadcast"));
        }
        Ok(took)
    };
    once()?;
    Ok(Box::new(move |times| {
        let rounds = times.div_ceil(targets);
        let took: Duration = (0..rounds).filter_map(|_| once().ok()).sum();
        took.mul_f64(times as f64 / (rounds * targets) as f64)
    }))
}
