//! What the local APICs answer, by theme.

mod bounds;
mod crowds;
mod destinations;
mod events;
mod many;
mod messages;
mod modes;
mod priorities;
mod registers;
mod state;
mod timer;
mod timer_machine;
mod wires;

use std::sync::Arc;

use super::*;
use crate::{MsiMessage, MsiTarget, VcpuId, clock::VirtualClock};

const SVR: u64 = 0xf0;
const TPR: u64 = 0x80;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const ESR: u64 = 0x280;
const LOGICAL: u64 = 1 << 2;
const HINT: u64 = 1 << 3;
const LOWEST: u32 = 1 << 8;

fn machine_with(vcpus: u32, options: ApicOptions) -> (Arc<ApicSet>, Vec<LocalApic>) {
    let ids: Vec<_> = (0..vcpus).collect();
    // A clock that stands still: what is saved twice is the same.
    let set = ApicSet::with_clock(&ids, Arc::new(()), Arc::new(VirtualClock::default()), options).unwrap();
    let mut cpus: Vec<_> = (0..vcpus).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    cpus.iter_mut().for_each(|cpu| assert_eq!(cpu.write(SVR, 0x1ff), None));
    (set, cpus)
}

fn machine(vcpus: u32) -> (Arc<ApicSet>, Vec<LocalApic>) {
    machine_with(vcpus, ApicOptions::default())
}

fn address(destination: u64) -> u64 {
    0xfee0_0000 | destination << 12
}

fn send(set: &ApicSet, address: u64, data: u32) -> i32 {
    let message = MsiMessage::new(address, data);
    if let Some(target) = set.prepare(&message) {
        return set.fire(target).status();
    }
    set.send(&message).unwrap().status()
}

/// The vectors in IRR, which are taken out.
fn arrived(cpu: &mut LocalApic) -> Vec<u8> {
    let mut page = cpu.page();
    let mut vectors = Vec::new();
    for vector in 0..=255u8 {
        let byte = &mut page[0x200 + usize::from(vector >> 5) * 16 + usize::from(vector >> 3 & 3)];
        if *byte >> (vector & 7) & 1 == 1 {
            vectors.push(vector);
            *byte &= !(1 << (vector & 7));
        }
    }
    cpu.set_page(&page).unwrap();
    vectors
}

fn to_x2apic(cpu: &mut LocalApic) {
    let base = cpu.base().into_bits();
    assert_eq!(cpu.msr_write(0x1b, base | 1 << 10), Ok(None));
}
