//! Any bytes as saved registers and tables of an ITS: restored or refused, and what was restored is what is saved again.
#![no_main]

use doorbell::{
    Delivery, DeviceId,
    chips::arm::its::{ItsState, registers::offset},
    guest_ram::GuestRamExt,
};
use doorbell_fuzz::{
    Program,
    arm::{Arm, COLLECTIONS, DEVICES, ITT, VALID, queue},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let machine = Arm::new(program.byte().unwrap_or_default());
    let its = &machine.itss[0];
    if fill(&machine, &mut program).is_none() {
        return;
    }
    let its_state = |flags: u8| ItsState {
        enabled: flags & 1 != 0,
        cbaser: VALID | queue(0),
        cwriter: u64::from(flags & 2) << 6,
        creadr: 0,
        devices: its.read(offset::BASER0, 8) & !(1 << 62) | u64::from(flags >> 2 & 1) << 62,
        collections: its.read(offset::BASER1, 8),
    };
    let restored = match program.byte() {
        Some(flags) => its.restore(&its_state(flags)),
        None => its.restore_tables(),
    };
    let before = its.save();
    if restored.is_err() {
        for device in 0..16 {
            for event in 0..16 {
                // Disabled, or not mapped.
                assert!(!matches!(its.send(DeviceId(device), event), Ok(Delivery::Delivered(_))));
            }
        }
        return;
    }
    // What is mapped now is saved, restored, and is the same; unless tables lie on top of each other.
    if its.save_tables().is_ok() && its.restore(&before).is_ok() {
        assert_eq!(its.save(), before);
    }
});

/// Entries of the tables, in places that the fuzzer chooses.
fn fill(machine: &Arm, program: &mut Program<'_>) -> Option<()> {
    let entries = program.byte()?;
    for _ in 0..entries {
        let (place, value) = (program.byte()?, program.quad()?);
        let base = [COLLECTIONS, DEVICES, ITT, ITT + 0x400][usize::from(place >> 6)];
        // Mostly such that something can be made of it.
        let value = match place >> 6 {
            0 if place & 1 == 0 => value & 0x8000_0000_0001_000f,
            1 if place & 1 == 0 => value & (VALID | 0x3 << 49 | 7) | ITT >> 3,
            2 if place & 1 == 0 => value & 0x0003_0000_00ff_0003 | 0x2000 << 16,
            _ => value,
        };
        let _ = machine.ram.write_le(base + 8 * u64::from(place & 0x3f), value);
    }
    Some(())
}
