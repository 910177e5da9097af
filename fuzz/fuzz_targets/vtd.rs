//! Any bytes as a guest's accesses to a VT-d unit: its registers, its table, its queue, and messages in between.
#![no_main]

use std::sync::Arc;

use doorbell::{
    Delivery, DeviceId, MsiMessage, MsiTarget,
    chips::x86::lapic::ApicSet,
    guest_ram::GuestRam,
    remap::vtd::{VtdUnit, registers},
};
use doorbell_fuzz::{Machine, Program, RAM, vtd};
use libfuzzer_sys::fuzz_target;

/// Where the registers are, so that the fuzzer need not find them.
const PLACES: [u64; 20] = [
    0x00, 0x08, 0x10, 0x18, 0x1c, 0x20, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x80, 0x88, 0x90, 0x9c, 0xa0, 0xb0, 0xb8, 0x22c,
    0x23c,
];
const TABLE: u64 = 0x1_0000;
const QUEUE: u64 = 0x8000;

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let options = program.byte().unwrap_or_default();
    let mut machine = Machine::new(options & 0x3f);
    for cpu in &mut machine.cpus {
        cpu.write(0xf0, 0x1ff);
    }
    let apics: Arc<ApicSet> = machine.apics.clone();
    let (unit, ram) = vtd(usize::from(options >> 6), apics.clone());
    if options & 1 == 0 {
        unit.write(registers::TABLE_ADDRESS, 8, TABLE | 5);
        unit.write(registers::QUEUE_ADDRESS, 8, QUEUE);
        for command in [1 << 24, 1 << 25, 3 << 25] {
            unit.write(registers::GLOBAL_COMMAND, 4, command);
        }
    }
    let mut targets = Vec::new();
    while step(&unit, &*ram, &mut program, &mut targets).is_some() {
        for cpu in &mut machine.cpus {
            cpu.acknowledge();
            cpu.eoi();
        }
    }
    // A saved state is one that can be restored, and nothing of it is lost.
    let saved = unit.save();
    let (other, _) = vtd(usize::from(options >> 6), apics);
    other.restore(&saved).expect("it was saved by a unit");
    assert_eq!(other.save(), saved);
});

fn step(
    unit: &VtdUnit,
    ram: &dyn GuestRam,
    program: &mut Program<'_>,
    targets: &mut Vec<(MsiMessage, doorbell::Target)>,
) -> Option<()> {
    let op = program.byte()?;
    match op % 8 {
        0 | 1 => {
            let (place, value) = (program.byte()?, program.quad()?);
            let offset = PLACES.get(usize::from(place)).copied().unwrap_or(u64::from(place) * 4);
            let size = [4, 8, 4, 8, 4, 8, 1, 3][usize::from(op >> 3) % 8];
            unit.write(offset, size, value);
            unit.read(offset, size);
        }
        2 => {
            unit.read(u64::from(program.half()?), usize::from(op >> 3) % 10);
        }
        // Guest memory: the table or the queue, or anywhere.
        3 => {
            let (index, entry) = (program.byte()?, program.take::<16>()?);
            let _ = ram.write(TABLE + 16 * u64::from(index), &entry);
        }
        4 => {
            let (index, descriptor) = (program.byte()?, program.take::<16>()?);
            let _ = ram.write(QUEUE + 16 * u64::from(index), &descriptor);
        }
        5 => {
            let (place, bytes) = (program.half()?, program.take::<8>()?);
            let _ = ram.write(8 * u64::from(place) % RAM as u64, &bytes);
        }
        // A message, unprepared and prepared: neither delivers without the other having a reason to.
        6 => {
            let [address, data] = [program.quad()?, program.quad()?];
            let device_id = (op & 8 == 0).then_some(DeviceId((data >> 32) as u32 & 0x1_ffff));
            let address = if op & 16 == 0 { 0xfee0_0000 | address & 0xf_ffff } else { address };
            let message = MsiMessage { address, data: data as u32, device_id };
            let sent = unit.send(&message);
            if let Some(target) = unit.prepare(&message) {
                assert_eq!(unit.prepare(&message), Some(target), "a message keeps its slot");
                let fired = unit.fire(target);
                let was_prepared = targets.iter().any(|(other, _)| *other == message);
                if let (false, Ok(Delivery::Ignored)) = (was_prepared, sent) {
                    // What was looked up just now and blocked is blocked again.
                    assert_eq!(fired, Delivery::Ignored);
                }
                if !was_prepared {
                    targets.push((message, target));
                }
            }
        }
        _ => {
            let target = doorbell::Target::new(u32::from(program.half()?));
            if let Some(target) = target {
                unit.fire(target);
            }
        }
    }
    Some(())
}
