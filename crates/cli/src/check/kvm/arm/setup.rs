//! How a VM comes to where a program begins, what is looked at, and how it is saved and restored.

use doorbell::kvm_abi::KvmIrqRoutingEntry;
use doorbell::kvm_abi::arm::SystemRegister;
use doorbell::kvm_abi::arm::types::{addr, ctrl, device, group};
use doorbell::kvm_abi::types::MSI_VALID_DEVID;

use super::call::{Call, Command};
use super::code;
use super::guest::Live;
use super::layout::{
    CODE, COLLECTIONS, CONFIG, DEVICES, EVENTS, GIC, GICD, GICR, GITS, INTIDS, ITS, ITT, ITT_BYTES, ITTS, LPIS,
    PENDING, PENDING_STRIDE, QUEUE, QUEUE_SLOTS, TRANSLATER,
};
use super::program::{End, Kind, Program};
use super::registers::{
    GICD_CTLR, GICD_IIDR, GICD_IROUTER, GICR_CTLR, GICR_PENDBASER, GICR_PROPBASER, GITS_BASER, GITS_CBASER,
    GITS_CREADR, GITS_CTLR, GITS_CWRITER, GITS_IIDR, ICFGR, IGROUPR, IPRIORITYR, ISACTIVER, ISENABLER, ISPENDR,
    PAGES_64K, SGI_FRAME, VALID,
};
use super::side::Answer;

/// The slot of each command queue behind the prelude's commands.
pub const FIRST_SLOT: [u64; 2] = [9, 6];
/// The priority of an LPI and that it is enabled.
const CONFIGURED: u8 = 0xa1;
/// Words of LPI configuration that are written.
const CONFIGURED_LPIS: usize = 256;

/// The attribute of a register of a redistributor.
pub fn of_vcpu(vcpu: u32, offset: u64) -> u64 {
    u64::from(vcpu) << 32 | offset
}

fn set(slot: usize, group: u32, attr: u64, value: u64) -> Call {
    Call::SetAttr { slot, group, attr, value }
}

fn distributor(offset: u64, value: u64) -> Call {
    set(GIC, group::DIST_REGS, offset, value)
}

fn redistributor(vcpu: u32, offset: u64, value: u64) -> Call {
    set(GIC, group::REDIST_REGS, of_vcpu(vcpu, offset), value)
}

/// vCPUs, the GIC and both ITSs, placed and initialised.
fn furnish(vcpus: u32) -> Vec<Call> {
    let mut calls: Vec<_> = (0..vcpus).map(|id| Call::CreateVcpu { id }).collect();
    calls.push(Call::CreateDevice { slot: GIC, kind: device::VGIC_V3 });
    calls.extend(ITS.map(|slot| Call::CreateDevice { slot, kind: device::ITS }));
    calls.extend((0..vcpus).map(|vcpu| Call::InitVcpu { vcpu }));
    calls.push(set(GIC, group::NR_IRQS, 0, INTIDS.into()));
    calls.push(set(GIC, group::ADDR, addr::V3_DIST, GICD));
    calls.push(set(GIC, group::ADDR, addr::V3_REDIST, GICR));
    calls.push(Call::action(GIC, ctrl::INIT));
    for (slot, address) in ITS.into_iter().zip(GITS) {
        calls.push(set(slot, group::ADDR, addr::ITS, address));
        calls.push(Call::action(slot, ctrl::INIT));
    }
    calls
}

/// The start of a program: everything enabled and in group 1 (or only what is live, with priorities of its own), LPIs and both
/// ITSs on, some devices, collections and events mapped, and routes to SPIs and messages.
pub fn prelude(vcpus: u32, live: Option<&Live>) -> Vec<Call> {
    let mut calls = furnish(vcpus);
    // Revision 3 of the identity, as a VMM that restores a guest says.
    calls.push(distributor(GICD_CTLR, 0x13));
    let enabled = |first| live.map_or(u32::MAX, |live| live.word(first)).into();
    let priorities = |first: u32| live.map_or(0xa0a0_a0a0, |live| live.priorities(first)).into();
    let groups = u64::from(live.map_or(u32::MAX, Live::group_1));
    for first in (32..INTIDS).step_by(32) {
        let word = u64::from(first / 8);
        calls.push(distributor(IGROUPR + word, groups));
        calls.push(distributor(ISENABLER + word, enabled(first)));
        // One half follows its level.
        calls.push(distributor(ICFGR + 2 * word, 0));
        calls.extend(
            (first..first + 32).step_by(4).map(|intid| distributor(IPRIORITYR + u64::from(intid), priorities(intid))),
        );
    }
    let config: Vec<u8> = (0..CONFIGURED_LPIS as u32)
        .map(|at| {
            live.map_or(CONFIGURED, |live| match live.priority(LPIS + at) {
                0xf8 => 0xf8,
                priority => priority | 1,
            })
        })
        .collect();
    calls.push(Call::WriteRam { address: CONFIG, bytes: config });
    for vcpu in 0..vcpus {
        calls.push(redistributor(vcpu, SGI_FRAME + IGROUPR, groups));
        calls.push(redistributor(vcpu, SGI_FRAME + ISENABLER, enabled(0)));
        calls.extend(
            (0..32)
                .step_by(4)
                .map(|intid| redistributor(vcpu, SGI_FRAME + IPRIORITYR + u64::from(intid), priorities(intid))),
        );
        let pending = PENDING + PENDING_STRIDE * u64::from(vcpu);
        calls.push(redistributor(vcpu, GICR_PROPBASER, CONFIG | 15));
        calls.push(redistributor(vcpu, GICR_PENDBASER, pending));
        calls.push(redistributor(vcpu, GICR_CTLR, 1));
    }
    let lpi = |at: usize| live.map_or(LPIS + at as u32, |live| live.lpis()[at % 3]);
    for its in 0..2 {
        let slot = ITS[its];
        calls.push(set(slot, group::ITS_REGS, GITS_CBASER, VALID | QUEUE[its] | (32 * QUEUE_SLOTS / 0x1000 - 1)));
        calls.push(set(slot, group::ITS_REGS, GITS_BASER, VALID | DEVICES[its] | PAGES_64K));
        calls.push(set(slot, group::ITS_REGS, GITS_BASER + 8, VALID | COLLECTIONS[its] | PAGES_64K));
        calls.push(set(slot, group::ITS_REGS, GITS_CTLR, 1));
        let mut list: Vec<Command> = vec![map_device(its, 8, 5), map_collection(0, 0)];
        if its == 0 {
            list.extend([map_device(its, 9, 3), map_collection(1, u64::from(vcpus - 1))]);
            list.extend([map_event(8, 3, lpi(0), 0), map_event(8, 4, lpi(1), 1), map_event(9, 0, lpi(2), 0)]);
            list.extend([[0x0d, 0, 0, 0], [0x0d, 0, 1, 0]]);
        } else {
            let more = if live.is_some() { [0x05, 0, 0, 0] } else { map_event(8, 3, lpi(5), 0) };
            list.extend([more, map_collection(2, u64::from(vcpus - 1)), [0x0d, 0, 0, 0], [0x0d, 0, 2, 0]]);
        }
        debug_assert_eq!(list.len() as u64, FIRST_SLOT[its]);
        calls.push(Call::Commands { its, at: 0, list });
    }
    let pins = (0..INTIDS - 32).map(|pin| KvmIrqRoutingEntry::pin(pin, 0, pin));
    let messages = [(100, 0, 8, 3), (101, 0, 8, 4), (102, 0, 9, 0), (103, 1, 8, 3), (104, 0, 99, 0)];
    let entries: Vec<_> =
        pins.chain(messages.map(|(gsi, its, device, event)| message(gsi, its, device, event))).collect();
    calls.push(Call::Routes { nr: entries.len() as u32, flags: 0, entries });
    // What a CPU that has run would hold: until then KVM keeps whatever it was given, and nothing at first.
    let system_registers = [
        (SystemRegister::ICC_PMR_EL1, 0xf8),
        (SystemRegister::ICC_CTLR_EL1, 0x8c00 | live.map_or(0, |live| live.common)),
        (SystemRegister::ICC_BPR0_EL1, live.map_or(2, |live| live.binary_points[0])),
        (SystemRegister::ICC_BPR1_EL1, live.map_or(3, |live| live.binary_points[1])),
        (SystemRegister::ICC_IGRPEN0_EL1, 1),
        (SystemRegister::ICC_IGRPEN1_EL1, 1),
    ];
    calls.extend((0..vcpus).flat_map(|vcpu| {
        system_registers
            .map(|(register, value)| set(GIC, group::CPU_SYSREGS, of_vcpu(vcpu, register.into_bits().into()), value))
    }));
    if live.is_some() {
        calls.push(Call::WriteRam { address: CODE, bytes: code::all() });
    }
    calls
}

/// `MAPD`, with the device's own table of events.
pub fn map_device(its: usize, device: u64, bits: u64) -> Command {
    [0x08 | device << 32, bits - 1, VALID | (ITT[its] + ITT_BYTES * (device % ITTS)), 0]
}

/// `MAPC`.
pub fn map_collection(collection: u64, vcpu: u64) -> Command {
    [0x09, 0, VALID | vcpu << 16 | collection, 0]
}

/// `MAPTI`.
pub fn map_event(device: u64, event: u64, lpi: u32, collection: u64) -> Command {
    [0x0a | device << 32, event | u64::from(lpi) << 32, collection, 0]
}

/// A route to an event of an ITS.
pub fn message(gsi: u32, its: usize, device: u32, event: u32) -> KvmIrqRoutingEntry {
    let mut entry = KvmIrqRoutingEntry::msi(gsi, GITS[its] + TRANSLATER, event);
    entry.flags = MSI_VALID_DEVID;
    entry.payload[3] = device;
    entry
}

fn level_attr(vcpu: u32, first: u32) -> u64 {
    of_vcpu(vcpu, first.into())
}

/// What is looked at after each call.
pub fn watch(kind: Kind, vcpus: u32) -> Vec<Call> {
    let mut watch = vec![Call::get(GIC, group::DIST_REGS, GICD_CTLR)];
    for first in (32..INTIDS).step_by(32) {
        let registers = [ISENABLER, ISPENDR, ISACTIVER];
        watch.extend(registers.map(|register| Call::get(GIC, group::DIST_REGS, register + u64::from(first / 8))));
        watch.push(Call::get(GIC, group::LEVEL_INFO, level_attr(0, first)));
    }
    for vcpu in 0..vcpus {
        let registers = [GICR_CTLR, SGI_FRAME + ISENABLER, SGI_FRAME + ISPENDR, SGI_FRAME + ISACTIVER];
        watch.extend(registers.map(|register| Call::get(GIC, group::REDIST_REGS, of_vcpu(vcpu, register))));
        watch.push(Call::get(GIC, group::LEVEL_INFO, level_attr(vcpu, 0)));
    }
    for slot in ITS {
        watch.extend([GITS_CTLR, GITS_CWRITER, GITS_CREADR].map(|offset| Call::get(slot, group::ITS_REGS, offset)));
    }
    if kind != Kind::BringUp {
        watch.push(Call::PendingLpis { vcpus });
    }
    watch
}

/// The registers of a VM in the order in which they are restored. ITSs come last, and their CTLR behind their tables.
fn registers(vcpus: u32) -> Vec<(usize, u32, u64)> {
    let mut all = vec![(GIC, group::DIST_REGS, GICD_IIDR)];
    let mut dist = |register: u64, step: u64| {
        let count = u64::from(INTIDS - 32) / step;
        let bytes = if register == GICD_IROUTER { 8 } else { 4 };
        all.extend((0..count).map(|at| (GIC, group::DIST_REGS, register + bytes * (32 / step + at))));
    };
    dist(ICFGR, 16);
    [IGROUPR, ISENABLER, ISPENDR, ISACTIVER].into_iter().for_each(|register| dist(register, 32));
    dist(IPRIORITYR, 4);
    dist(GICD_IROUTER, 1);
    all.extend([32, 64].map(|first| (GIC, group::LEVEL_INFO, level_attr(0, first))));
    for vcpu in 0..vcpus {
        let sgi_frame = [ICFGR, ICFGR + 4, IGROUPR, ISENABLER, ISPENDR, ISACTIVER].map(|register| SGI_FRAME + register);
        let priorities = (0..8).map(|at| SGI_FRAME + IPRIORITYR + 4 * at);
        let tables = [GICR_PROPBASER, GICR_PROPBASER + 4, GICR_PENDBASER, GICR_PENDBASER + 4];
        let offsets = sgi_frame.into_iter().chain(priorities).chain(tables).chain([GICR_CTLR]);
        all.extend(offsets.map(|offset| (GIC, group::REDIST_REGS, of_vcpu(vcpu, offset))));
        all.push((GIC, group::LEVEL_INFO, level_attr(vcpu, 0)));
        all.extend(
            SYSTEM_REGISTERS.map(|register| (GIC, group::CPU_SYSREGS, of_vcpu(vcpu, register.into_bits().into()))),
        );
    }
    all.push((GIC, group::DIST_REGS, GICD_CTLR));
    for slot in ITS {
        let offsets = [GITS_IIDR, GITS_CBASER, GITS_CREADR, GITS_CWRITER, GITS_BASER, GITS_BASER + 8, GITS_CTLR];
        all.extend(offsets.map(|offset| (slot, group::ITS_REGS, offset)));
    }
    all
}

const SYSTEM_REGISTERS: [SystemRegister; 9] = [
    SystemRegister::ICC_SRE_EL1,
    SystemRegister::ICC_CTLR_EL1,
    SystemRegister::ICC_IGRPEN0_EL1,
    SystemRegister::ICC_IGRPEN1_EL1,
    SystemRegister::ICC_PMR_EL1,
    SystemRegister::ICC_BPR0_EL1,
    SystemRegister::ICC_BPR1_EL1,
    SystemRegister::ICC_AP0R0_EL1,
    SystemRegister::ICC_AP1R0_EL1,
];

/// What ends every program: the counters of eventfds, and, if its VM was set up, all registers and what the ITSs save.
pub fn epilogue(program: &Program) -> Vec<Call> {
    let mut calls: Vec<_> = (0..EVENTS).map(|event| Call::Take { event }).collect();
    if program.kind == Kind::BringUp {
        return calls;
    }
    let registers = registers(program.vcpus).into_iter();
    calls.extend(registers.map(|(slot, group, attr)| Call::get(slot, group, attr)));
    if program.end != End::Look {
        calls.extend(ITS.map(|slot| Call::action(slot, ctrl::ITS_SAVE_TABLES)));
        calls.extend(saved_tables());
    }
    calls
}

fn saved_tables() -> Vec<Call> {
    let tables = [DEVICES, COLLECTIONS].into_iter().flatten().map(|address| (address, 0x400));
    let events = ITT.into_iter().map(|address| (address, ITTS * ITT_BYTES));
    tables.chain(events).map(|(address, bytes)| Call::ReadRam { address, bytes }).collect()
}

/// The same VM again, from what the epilogue read and what is in memory; then what it shows, and what its ITSs save.
pub fn restore(vcpus: u32, epilogue: &[(Call, Answer)]) -> Vec<Call> {
    let mut calls = vec![];
    let values = epilogue.iter().filter_map(|(call, answer)| match (call, &answer.data[..]) {
        (Call::GetAttr { slot, group, attr, .. }, [value]) => Some(set(*slot, *group, *attr, *value)),
        _ => None,
    });
    let is_its_control = |call: &Call| matches!(call, Call::SetAttr { group: group::ITS_REGS, attr: GITS_CTLR, .. });
    // The pending tables are part of what is saved, but belong to the VM before.
    calls.extend(furnish(vcpus));
    for call in values {
        if let (true, Call::SetAttr { slot, .. }) = (is_its_control(&call), &call) {
            calls.push(Call::action(*slot, ctrl::ITS_RESTORE_TABLES));
        }
        calls.push(call);
    }
    calls.push(Call::PendingLpis { vcpus });
    calls.extend(registers(vcpus).into_iter().map(|(slot, group, attr)| Call::get(slot, group, attr)));
    for its in 0..2 {
        let events = [(8, 3), (8, 4), (9, 0), (8, 0), (1, 0)];
        calls.extend(events.map(|(device, event)| super::program::to_event(its, device, event)));
    }
    calls.push(Call::PendingLpis { vcpus });
    calls.extend(ITS.map(|slot| Call::action(slot, ctrl::ITS_SAVE_TABLES)));
    calls.extend(saved_tables());
    calls
}
