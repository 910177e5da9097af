//! Q10 to Q16: messages to two ITSs, in front of a GIC and a guest's tables.

use super::*;
use crate::{
    chips::arm::{
        Behaviour,
        its::{Its, ItsOptions, registers::offset},
        lpi::LpiRegister,
    },
    guest_ram::{GuestRam, GuestRamExt},
};

const RAM: u64 = 0x4000_0000;
const ITS: [u64; 2] = [0x0808_0000, 0x080a_0000];
const DOORBELL: u64 = 0x1_0040;
const VALID: u64 = 1 << 63;

struct Machine {
    gic: Arc<Gic>,
    its: [Arc<Its>; 2],
    frames: MsiFrames,
}

/// Device 8 of either ITS has event 3: LPI 8195 of the first, LPI 8196 of the second, for vCPU 0; and event 4, in a
/// collection that is not mapped.
fn machine(behaviour: Behaviour) -> Machine {
    let ram = Arc::new(RamBlock::new(RAM, 0x20_0000));
    let mut options = GicOptions::new(1);
    options.behaviour = behaviour;
    let gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(())).unwrap();
    // Before anything is mapped: in KVM its size bounds the LPIs.
    gic.write_lpi_register(0, LpiRegister::Properties, u64::MAX, RAM | 15);
    gic.write_lpi_register(0, LpiRegister::Pending, u64::MAX, RAM + 0x2_0000);
    let frames = MsiFrames::new();
    let its = [0, 1].map(|number| {
        let its = Its::new(Arc::clone(&gic), ItsOptions::default());
        let memory = RAM + 0x8_0000 * (1 + number);
        its.write(offset::BASER0, 8, VALID | 2 << 8 | (memory + 0x1_0000));
        its.write(offset::BASER1, 8, VALID | 2 << 8 | (memory + 0x2_0000));
        its.write(offset::CBASER, 8, VALID | memory);
        its.write(offset::CTLR, 4, 1);
        let lpi = 8195 + number;
        let commands = [
            [0x09, 0, VALID, 0],
            [0x08 | 8 << 32, 4, VALID | (memory + 0x3_0000), 0],
            [0x0a | 8 << 32, lpi << 32 | 3, 0, 0],
            [0x0a | 8 << 32, (lpi + 10) << 32 | 4, 1, 0],
        ];
        for (word, at) in commands.into_iter().flatten().zip((memory..).step_by(8)) {
            ram.write_le(at, word).unwrap();
        }
        its.write(offset::CWRITER, 8, 4 * 32);
        frames.place(ITS[number as usize], Arc::clone(&its) as Arc<dyn MsiFrame>).unwrap();
        its
    });
    let machine = Machine { gic, its, frames };
    machine.switch(true);
    machine
}

impl Machine {
    fn switch(&self, on: bool) {
        self.gic.write_lpi_register(0, LpiRegister::Control, u64::MAX, on.into());
    }

    fn send(&self, address: u64, device: u32, event: u32) -> Result<Delivery, Errno> {
        let message = MsiMessage::new(address, event).from_device(DeviceId(device));
        self.frames.send(&message).map_err(|error| error.errno())
    }

    fn is_pending(&self, lpi: u32) -> bool {
        self.gic.shared(lpi).is_some_and(|irq| irq.state().pending())
    }
}

#[test]
fn each_its_has_events_of_its_own() {
    let machine = machine(Behaviour::SPEC);
    assert!(machine.frames.takes_device_ids());
    assert_eq!(machine.send(ITS[1] + DOORBELL, 8, 3), Ok(Delivery::Delivered(1)));
    assert!(machine.is_pending(8196) && !machine.is_pending(8195));
    let message = MsiMessage::new(ITS[0] + DOORBELL, 3).from_device(DeviceId(8));
    let target = machine.frames.prepare(&message).unwrap();
    assert_eq!(machine.frames.fire(target), Delivery::Delivered(1));
    assert!(machine.is_pending(8195));
    assert_eq!(
        machine.send(ITS[0] + DOORBELL, 8, 3),
        Ok(Delivery::Delivered(1)),
        "Q15: also when it is pending already"
    );
}

#[test]
fn q10_a_message_without_a_device_is_refused_always() {
    let machine = machine(Behaviour::KVM);
    let message = MsiMessage::new(ITS[0] + DOORBELL, 3);
    for _ in 0..2 {
        assert_eq!(machine.frames.send(&message).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(machine.frames.prepare(&message), None);
        // Q10a: KVM would deliver the next one, from its cache.
        assert_eq!(machine.send(ITS[0] + DOORBELL, 8, 3), Ok(Delivery::Delivered(1)));
    }
}

#[test]
fn q12_only_the_doorbell_takes_messages_or_in_kvm_all_of_the_frame() {
    for (behaviour, elsewhere) in [(Behaviour::SPEC, Err(Errno::INVAL)), (Behaviour::KVM, Ok(Delivery::Delivered(1)))] {
        let machine = machine(behaviour);
        for offset in [0, 0x1_0044, 0x1_ffff] {
            assert_eq!(machine.send(ITS[0] + offset, 8, 3), elsewhere, "{offset:#x}");
            let message = MsiMessage::new(ITS[0] + offset, 3).from_device(DeviceId(8));
            assert_eq!(machine.frames.prepare(&message).is_some(), elsewhere.is_ok());
        }
        assert_eq!(machine.send(ITS[0] - 1, 8, 3), Err(Errno::INVAL));
        assert_eq!(machine.send(ITS[1] + 0x2_0000, 8, 3), Err(Errno::INVAL));
    }
}

#[test]
fn q13_a_disabled_its_and_lpis_that_are_off_are_busy() {
    let machine = machine(Behaviour::SPEC);
    machine.switch(false);
    assert_eq!(machine.send(ITS[0] + DOORBELL, 8, 3), Err(Errno::BUSY));
    machine.switch(true);
    machine.its[0].write(offset::CTLR, 4, 0);
    assert_eq!(machine.send(ITS[0] + DOORBELL, 8, 3), Err(Errno::BUSY));
    assert_eq!(machine.send(ITS[1] + DOORBELL, 8, 3), Ok(Delivery::Delivered(1)), "the other one is not");
    assert!(!machine.is_pending(8195), "I8: dropped, not kept");
}

#[test]
fn q14_what_is_not_mapped_is_kvms_0() {
    let machine = machine(Behaviour::SPEC);
    for (device, event) in [(9, 3), (8, 5), (8, 4), (8, u32::MAX), (u32::MAX, 3)] {
        let sent = machine.send(ITS[0] + DOORBELL, device, event);
        assert_eq!(sent.map(Delivery::status), Ok(0), "device {device}, event {event}");
    }
}
