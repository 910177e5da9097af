//! Any bytes as what a guest does to two ITSs of one GIC: registers, command queues, tables, redistributors, and doorbells
//! in between.
#![no_main]

use doorbell::{Delivery, DeviceId, VcpuId, chips::arm::its::registers::offset, guest_ram::GuestRam};
use doorbell_fuzz::{
    Program,
    arm::{Arm, ITS_RAM, queue},
};
use libfuzzer_sys::fuzz_target;

/// Where the registers are, so that the fuzzer need not find them.
const PLACES: [u64; 12] = [
    offset::CTLR,
    offset::CBASER,
    offset::CWRITER,
    offset::CREADR,
    offset::BASER0,
    offset::BASER1,
    offset::CBASER + 4,
    offset::BASER0 + 4,
    offset::TYPER,
    offset::IIDR,
    offset::PIDR2,
    offset::TRANSLATER,
];

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let mut machine = Arm::new(program.byte().unwrap_or_default());
    let mut targets = Vec::new();
    while step(&mut machine, &mut program, &mut targets).is_some() {}
    // Whatever was done: a guest that starts afresh finds a working ITS, and the events of each of them reach its own LPI.
    machine.bring_up_afresh();
    for (number, its) in machine.itss.iter().enumerate() {
        for event in 0..4 {
            assert_eq!(its.send(DeviceId(1), event).unwrap(), Delivery::Delivered(1), "ITS {number}, event {event}");
        }
        assert_eq!(its.send(DeviceId(2), 0).unwrap(), Delivery::Coalesced, "a device that is not mapped");
        assert!(its.counters().errors.len() <= 15);
    }
    let mut taken = machine.drain();
    taken.sort_unstable();
    assert_eq!(taken, [8192, 8193, 8194, 8195, 8292, 8293, 8294, 8295], "each its own, and nothing else");
});

fn step(machine: &mut Arm, program: &mut Program<'_>, targets: &mut Vec<(usize, doorbell::Target)>) -> Option<()> {
    let op = program.byte()?;
    let number = usize::from(op >> 7);
    let its = machine.itss[number].clone();
    match op % 8 {
        0 => {
            let (place, value) = (program.byte()?, program.quad()?);
            let at = PLACES.get(usize::from(place)).copied().unwrap_or(u64::from(place) * 0x200);
            its.write(at, [4, 8, 2, 3][usize::from(op >> 3) % 4], value);
            its.read(at, [8, 4, 1, 0][usize::from(op >> 3) % 4]);
        }
        // One command, as a guest gives it.
        1..=3 => {
            let words = program.take::<32>()?;
            let at = its.read(offset::CWRITER, 8);
            let _ = machine.ram.write(queue(number) + at, &words);
            its.write(offset::CWRITER, 8, (at + 32) % 0x1000);
        }
        4 => {
            let (place, bytes) = (program.half()?, program.take::<8>()?);
            let _ = machine.ram.write(8 * u64::from(place) % ITS_RAM as u64, &bytes);
        }
        5 => {
            let (device, event) = (DeviceId(program.byte()?.into()), u32::from(program.byte()?));
            let sent = its.send(device, event);
            if let Some(target) = its.prepare(device, event) {
                let fired = its.fire(target);
                // Both go by what is mapped; the second one finds nothing else.
                assert_eq!(fired, sent.unwrap_or(Delivery::Ignored));
                assert_eq!(its.prepare(device, event), Some(target));
                targets.push((number, target));
            }
            its.translate(device, offset::TRANSLATER, 4, event.into());
        }
        6 => {
            let (register, value) = (program.byte()?, program.quad()?);
            let at = [0u64, 0x70, 0x78, 0xa0, 0xb0][usize::from(register) % 5];
            let redistributor = machine.gic.redistributor(VcpuId(u32::from(op >> 3) & 1)).expect("there are two");
            redistributor.write(at, if at == 0 { 4 } else { 8 }, value);
        }
        _ => {
            machine.drain();
            if let Some((number, target)) = targets.get(usize::from(op >> 3)) {
                machine.itss[*number].fire(*target);
            }
            if op & 8 == 0 {
                let _ = its.save_tables();
            }
        }
    }
    Some(())
}
