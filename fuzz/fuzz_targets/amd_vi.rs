//! Any bytes as a guest's accesses to two AMD-Vi units: registers, tables, commands, and messages in between.
#![no_main]

use std::sync::Arc;

use doorbell::{
    DeviceId, MsiMessage, MsiTarget, Target,
    guest_ram::{GuestRam, RamBlock},
    remap::amd::{AmdUnit, AmdUnitOptions, AmdVi, registers::offset},
};
use doorbell_fuzz::{Machine, Program};
use libfuzzer_sys::fuzz_target;

/// Where the registers are, so that the fuzzer need not find them.
const REGISTERS: [u64; 24] = [
    0x0000, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0030, 0x00e0, 0x00e8, 0x0150, 0x0158, 0x0160, 0x0170, 0x0178,
    0x0180, 0x01a0, 0x2000, 0x2008, 0x2010, 0x2018, 0x2020, 0x2040, 0x2048, 0x3ff8,
];
const RAM: usize = 0x1_0000;
/// A device table of 128 entries, with 16 tables of 256 bytes behind it.
const DEVICES: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const COMMANDS: u64 = 0x4000;
const EVENTS: u64 = 0x6000;
const GUESTS: u64 = 0x8000;

fn units(options: u8, apics: Arc<dyn MsiTarget>, ram: Arc<RamBlock>) -> Arc<AmdVi> {
    let bit = |n: u8| options >> n & 1 == 1;
    let unit = |requesters| AmdUnitOptions {
        requesters,
        x2apic: !bit(0),
        guest_apic: !bit(1),
        wide_index: !bit(2),
        messages: if bit(3) { 4 } else { 64 },
    };
    AmdVi::new(apics, ram, Arc::new(()), &[unit(0..=7), unit(8..=0xff)]).expect("two ranges")
}

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let options = program.byte().unwrap_or_default();
    let mut machine = Machine::new(0);
    for cpu in &mut machine.cpus {
        cpu.write(0xf0, 0x1ff);
    }
    let ram = Arc::new(RamBlock::new(0, RAM));
    let remap = units(options, machine.apics.clone(), ram.clone());
    if options >> 4 & 1 == 0 {
        for unit in remap.units() {
            unit.write(offset::DEVICE_TABLE_BASE, 8, DEVICES);
            unit.write(offset::COMMAND_BUFFER_BASE, 8, COMMANDS | 8 << 56);
            unit.write(offset::EVENT_LOG_BASE, 8, EVENTS | 8 << 56);
            unit.write(offset::GA_LOG_BASE, 8, GUESTS | 8 << 56);
            unit.write(offset::CONTROL, 8, 0x3202_1007 | u64::from(options >> 5) << 17);
            unit.set_own_message(Some(&MsiMessage::new(0xfee0_0000, 0xe0)));
        }
    }
    let mut targets = Vec::new();
    while step(&remap, &ram, &mut program, &mut targets).is_some() {
        for cpu in &mut machine.cpus {
            cpu.acknowledge();
            cpu.eoi();
        }
    }
    // A saved state is one that can be restored, and nothing of it is lost.
    let saved = remap.save();
    let other = units(options, machine.apics.clone(), ram);
    other.restore(&saved).expect("it was saved by these units");
    assert_eq!(other.save(), saved);
});

fn step(remap: &AmdVi, ram: &RamBlock, program: &mut Program<'_>, targets: &mut Vec<Target>) -> Option<()> {
    let op = program.byte()?;
    let unit: &AmdUnit = &remap.units()[usize::from(op >> 7)];
    match op % 8 {
        0 => {
            let (register, value) = (program.byte()?, program.quad()?);
            let at = REGISTERS[usize::from(register) % REGISTERS.len()] + u64::from(register >> 7) * 4;
            unit.write(at, if op & 0x40 == 0 { 8 } else { 4 }, value);
        }
        1 => {
            let (at, value) = (program.half()?, program.take::<8>()?);
            unit.mmio_write(at.into(), &value[..usize::from(op >> 4 & 7) + 1]);
        }
        2 => {
            let mut data = [0; 8];
            unit.mmio_read(program.half()?.into(), &mut data[..usize::from(op >> 4 & 7) + 1]);
            let status = unit.read(offset::STATUS, 8);
            assert_eq!(status & !0x71f, 0, "only the bits that there are");
        }
        // The interrupt fields of a device table entry, with a table of its own.
        3 => {
            let (device, bits) = (u64::from(op >> 3 & 0xf), program.quad()?);
            let entry = bits & !0x0fff_ffff_ffff_ffe0 | TABLES + device * 0x100;
            let _ = ram.write(DEVICES + 32 * device + 16, &entry.to_le_bytes());
        }
        4 => {
            let (place, quad) = (program.half()?, program.take::<8>()?);
            let _ = ram.write(TABLES + u64::from(place & 0x1ff) * 8, &quad);
        }
        // A command, run at once.
        5 => {
            let (low, high) = (program.take::<8>()?, if op & 0x40 == 0 { [0; 8] } else { program.take::<8>()? });
            let tail = unit.read(offset::COMMAND_TAIL, 8) % 0x1000;
            let _ = ram.write(COMMANDS + tail, &low);
            let _ = ram.write(COMMANDS + tail + 8, &high);
            unit.write(offset::COMMAND_TAIL, 8, (tail + 16) % 0x1000);
        }
        6 => {
            let (device, data) = (program.byte()?, program.half()?);
            let address = if op & 0x40 == 0 { 0xfee0_0000 } else { program.quad()? };
            let message = MsiMessage::new(address, data.into());
            let message =
                if device == 0xff { message } else { message.from_device(DeviceId(u32::from(device) % 0x110)) };
            let _ = remap.send(&message);
            if let Some(target) = remap.prepare(&message) {
                remap.fire(target);
                targets.push(target);
            }
        }
        _ => {
            let target = *targets.get(usize::from(program.byte()?))?;
            remap.fire(target);
        }
    }
    Some(())
}
