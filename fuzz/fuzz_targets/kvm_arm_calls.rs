//! Any bytes as the calls of a VMM on KVM's vgic and ITS devices, in any order: devices and their attributes, lines, messages,
//! routes, guest memory, and what a guest's code does in between.
#![no_main]

use std::sync::Arc;

use doorbell::chips::arm::Behaviour;
use doorbell::guest_ram::RamBlock;
use doorbell::kvm_abi::arm::types::{addr, ctrl, device, group};
use doorbell::kvm_abi::arm::{ArmCalls, ArmGuestCalls, Device, KvmDeviceAttr, SystemRegister};
use doorbell::kvm_abi::{KvmIrqLevel, KvmIrqRoutingEntry, KvmMsi, SoftArmVm, SoftArmVmOptions};
use doorbell_fuzz::Program;
use libfuzzer_sys::fuzz_target;

const GICD: u64 = 0x0800_0000;
const ITS: u64 = 0x0808_0000;
const GICR: u64 = 0x080a_0000;
const RAM: u64 = 0x4000_0000;
const RAM_BYTES: usize = 0x8_0000;
const QUEUE: u64 = RAM + 0x1_0000;
const VCPUS: u32 = 2;

/// Attributes that the fuzzer need not find.
const PLACES: [(u32, u64); 24] = [
    (group::ADDR, addr::V3_DIST),
    (group::ADDR, addr::V3_REDIST),
    (group::ADDR, addr::V3_REDIST_REGION),
    (group::ADDR, addr::ITS),
    (group::NR_IRQS, 0),
    (group::CTRL, ctrl::INIT),
    (group::CTRL, ctrl::SAVE_PENDING_TABLES),
    (group::CTRL, ctrl::ITS_SAVE_TABLES),
    (group::CTRL, ctrl::ITS_RESTORE_TABLES),
    (group::CTRL, ctrl::ITS_RESET),
    (group::DIST_REGS, 0x0),
    (group::DIST_REGS, 0x104),
    (group::DIST_REGS, 0x204),
    (group::DIST_REGS, 0xc08),
    (group::REDIST_REGS, 0x0),
    (group::REDIST_REGS, 0x70),
    (group::REDIST_REGS, 0x78),
    (group::REDIST_REGS, 0x1_0100),
    (group::LEVEL_INFO, 32),
    (group::ITS_REGS, 0x0),
    (group::ITS_REGS, 0x80),
    (group::ITS_REGS, 0x88),
    (group::ITS_REGS, 0x100),
    (group::ITS_REGS, 0x108),
];

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let options = program.byte().unwrap_or_default();
    let behaviour = if options & 1 == 0 { Behaviour::KVM } else { Behaviour::SPEC };
    let ram = Arc::new(RamBlock::new(RAM, RAM_BYTES));
    let options_of_vm = SoftArmVmOptions { behaviour, ..SoftArmVmOptions::default() };
    let vm = SoftArmVm::new(options_of_vm, ram, Arc::new(())).expect("the options are in range");
    if options & 2 == 0 {
        bring_up(&vm);
    }
    while step(&vm, &mut program).is_some() {}
});

/// A machine as a VMM makes it, with tables and a queue for the ITS.
fn bring_up(vm: &SoftArmVm) {
    for vcpu in 0..VCPUS {
        let _ = vm.create_vcpu(vcpu);
        let _ = vm.vcpu_init(vcpu);
    }
    let made = [device::VGIC_V3, device::ITS].map(|kind| vm.create_device(kind, 0).expect("the first").expect("made"));
    let set = |device, group, attr, value| vm.set_device_attr(device, KvmDeviceAttr { group, attr }, value);
    let calls = [
        (made[0], group::ADDR, addr::V3_DIST, GICD),
        (made[0], group::ADDR, addr::V3_REDIST, GICR),
        (made[0], group::CTRL, ctrl::INIT, 0),
        (made[1], group::ADDR, addr::ITS, ITS),
        (made[0], group::DIST_REGS, 0x0, 0x12),
        (made[0], group::REDIST_REGS, 0x70, RAM + 0x5_0000 | 15),
        (made[0], group::REDIST_REGS, 0x78, RAM + 0x6_0000),
        (made[0], group::REDIST_REGS, 0x0, 1),
        (made[1], group::ITS_REGS, 0x80, 1 << 63 | QUEUE | 15),
        (made[1], group::ITS_REGS, 0x100, 1 << 63 | RAM + 0x2_0000 | 2 << 8),
        (made[1], group::ITS_REGS, 0x108, 1 << 63 | RAM + 0x3_0000 | 2 << 8),
        (made[1], group::ITS_REGS, 0x0, 1),
    ];
    for (device, group, attr, value) in calls {
        set(device, group, attr, value).expect("as a VMM does it");
    }
}

fn step(vm: &SoftArmVm, program: &mut Program<'_>) -> Option<()> {
    let op = program.byte()?;
    let vcpu = u32::from(op >> 4) % (VCPUS + 1);
    match op % 12 {
        0 => drop(vm.create_device([device::VGIC_V3, device::ITS, device::VGIC_V2, 9][usize::from(op >> 6)], 0)),
        1 => drop((vm.create_vcpu(vcpu), vm.vcpu_init(vcpu))),
        2..=4 => {
            let (place, value) = (program.byte()?, program.quad()?);
            let (group, attr) = match PLACES.get(usize::from(place)) {
                Some((group, attr)) => (*group, *attr),
                None => (u32::from(place) % 10, program.quad()?),
            };
            let attribute = KvmDeviceAttr { group, attr: attr | u64::from(vcpu & 1) << 32 * u64::from(op & 8 == 8) };
            let (device, mut was) = (Device(u32::from(op >> 5) % 3), value);
            let _ = vm.set_device_attr(device, attribute, value);
            let _ = vm.get_device_attr(device, attribute, &mut was);
            let _ = vm.has_device_attr(device, attribute);
        }
        5 => drop(vm.irq_line(KvmIrqLevel { irq: u32::from_le_bytes(program.take()?), level: u32::from(op >> 7) })),
        6 => {
            let [words, devid] = [program.quad()?, program.quad()?];
            let address = if op & 16 == 0 { ITS + 0x1_0040 } else { ITS + (words >> 32) };
            let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
            let flags = u32::from(op >> 5 & 3);
            let message =
                KvmMsi { address_lo, address_hi, data: words as u32, flags, devid: devid as u32, pad: [0; 12] };
            if let Ok(sent) = vm.signal_msi(&message) {
                assert!(sent == 0 || sent == 1, "{sent} for one LPI");
            }
        }
        7 => {
            let [head, payload] = [program.quad()?, program.quad()?];
            let mut entry = KvmIrqRoutingEntry::pin(head as u32, payload as u32, (payload >> 32) as u32);
            (entry.kind, entry.flags) = ((head >> 32) as u32 & 7, (head >> 40) as u32 & 3);
            let _ = vm.set_gsi_routing(u32::from(op >> 4) % 3, 0, &[entry, entry]);
        }
        8 => {
            // A command of the ITS, and the store that has it run.
            let (slot, command) = (program.byte()? & 0x7f, program.take::<32>()?);
            let at = QUEUE + 32 * u64::from(slot);
            let _ = vm.write_ram(at, &command);
            let _ = vm.store(vcpu, ITS + 0x88, 8, 32 * (u64::from(slot) + 1));
        }
        9 => {
            let (at, bytes) = (program.half()?, program.take::<8>()?);
            let _ = vm.write_ram(RAM + 8 * u64::from(at), &bytes);
        }
        10 => {
            let (register, value) = (program.half()?, program.quad()?);
            let known = SystemRegister::ICC.get(usize::from(register)).map(|(_, register)| *register);
            let register = known.unwrap_or(SystemRegister::from_bits(register));
            let _ = vm.write_register(vcpu, register, value);
            let _ = vm.read_register(vcpu, register);
        }
        _ => {
            let (offset, value) = (program.take::<4>().map(u32::from_le_bytes)?, program.quad()?);
            let address = GICD + u64::from(offset) % 0x10_0000;
            let bytes = [1, 2, 4, 8][usize::from(op >> 6)];
            let _ = vm.store(vcpu, address, bytes, value);
            let _ = vm.load(vcpu, address, bytes);
        }
    }
    Some(())
}
