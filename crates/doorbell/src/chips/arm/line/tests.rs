//! What devices do to the lines, and what becomes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
};

use super::*;
use crate::{
    chips::arm::{Behaviour, CpuInterface, GicOptions, Group, IccRegister},
    guest_ram::RamBlock,
};

/// Pin 8: SPI 40.
const PIN: u16 = 8;
const SPI: u32 = 40;
const OTHER: LineSource = LineSource::RESAMPLE;

fn gic_with(behaviour: Behaviour) -> Arc<Gic> {
    let mut options = GicOptions::new(1);
    (options.intids, options.behaviour) = (64, behaviour);
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    let distributor = gic.distributor();
    distributor.write(0, 4, 2);
    distributor.write(0x84, 4, u32::MAX.into());
    distributor.write(0x104, 4, u32::MAX.into());
    gic.redistributor(VcpuId(0)).unwrap().write(0x14, 4, 0);
    gic
}

fn gic() -> Arc<Gic> {
    gic_with(Behaviour::SPEC)
}

fn vcpu(gic: &Arc<Gic>) -> CpuInterface {
    let mut cpu = gic.cpu_interface(VcpuId(0)).unwrap();
    cpu.write(IccRegister::Pmr, 0xff);
    cpu.write(IccRegister::Igrpen1, 1);
    cpu
}

/// SPI 40 becomes an edge, or follows its level.
fn trigger(gic: &Gic, edge: bool) {
    gic.distributor().write(0xc08, 4, u64::from(edge) << 17);
}

fn pending(gic: &Gic) -> bool {
    gic.distributor().read(0x204, 4) >> PIN & 1 == 1
}

#[test]
fn g12_pins_are_spis_less_32() {
    let gic = gic();
    assert_eq!([gic.pins(CHIP), gic.pins(1)], [988, 0], "G6a: also with few SPIs");
    assert_eq!(gic.set(CHIP, PIN, LineSource::USER, true), Delivery::Delivered(1));
    assert!(pending(&gic));
    for (chip, pin) in [(CHIP, 32), (CHIP, 987), (CHIP, u16::MAX), (1, PIN)] {
        assert_eq!(gic.set(chip, pin, LineSource::USER, true), Delivery::Ignored);
        assert_eq!(gic.pulse(chip, pin, LineSource::USER), Delivery::Ignored);
        assert_eq!(gic.message_spi(u32::from(pin) + 32 + u32::from(chip) * 4096, true), Delivery::Ignored);
    }
    assert_eq!(gic.distributor().read(0x204, 4), 1 << PIN);
}

#[test]
fn a_level_is_the_or_of_its_sources() {
    let gic = gic();
    assert_eq!(gic.set(CHIP, PIN, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(gic.set(CHIP, PIN, OTHER, true), Delivery::Coalesced);
    assert_eq!(gic.set(CHIP, PIN, OTHER, true), Delivery::Coalesced, "N5");
    assert_eq!(gic.set(CHIP, PIN, LineSource::USER, false), Delivery::Delivered(1));
    assert!(pending(&gic));
    gic.set(CHIP, PIN, OTHER, false);
    assert!(!pending(&gic), "nothing was latched");
}

#[test]
fn c12_clearing_the_latch_of_a_high_level_leaves_it_pending() {
    let gic = gic();
    gic.set(CHIP, PIN, LineSource::USER, true);
    gic.distributor().write(0x204, 4, 1 << PIN);
    gic.distributor().write(0x284, 4, 1 << PIN);
    assert!(pending(&gic));
    gic.set(CHIP, PIN, LineSource::USER, false);
    assert!(!pending(&gic));
}

#[test]
fn c13_and_c15_a_level_is_taken_again_until_the_line_falls() {
    let gic = gic();
    let mut cpu = vcpu(&gic);
    gic.set(CHIP, PIN, LineSource::USER, true);
    for _ in 0..3 {
        assert_eq!(cpu.acknowledge(Group::One), SPI);
        assert!(pending(&gic), "active and pending: it follows the line");
        assert_eq!(cpu.acknowledge(Group::One), 1023, "C14");
        let ended = cpu.end(Group::One, SPI).unwrap();
        assert_eq!(ended.pin, Some(PIN));
    }
    gic.set(CHIP, PIN, LineSource::USER, false);
    assert_eq!(cpu.acknowledge(Group::One), 1023, "H-C3");
}

#[test]
fn an_edge_is_latched_once_for_each_rise() {
    let gic = gic();
    let mut cpu = vcpu(&gic);
    trigger(&gic, true);
    assert_eq!(gic.set(CHIP, PIN, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(cpu.acknowledge(Group::One), SPI);
    assert!(!pending(&gic), "C13");
    assert_eq!(gic.set(CHIP, PIN, OTHER, true), Delivery::Coalesced, "no edge: it is high already");
    assert_eq!(gic.set(CHIP, PIN, LineSource::USER, true), Delivery::Coalesced);
    assert_eq!(cpu.end(Group::One, SPI).unwrap().pin, None);
    assert_eq!(cpu.acknowledge(Group::One), 1023);
    gic.set(CHIP, PIN, OTHER, false);
    gic.set(CHIP, PIN, LineSource::USER, false);
    assert!(!pending(&gic), "N6: a fall is no edge");
    gic.set(CHIP, PIN, OTHER, true);
    assert_eq!(cpu.acknowledge(Group::One), SPI);
}

#[test]
fn a_pulse_is_an_edge_and_leaves_the_line_as_it_was() {
    let gic = gic();
    assert_eq!(gic.pulse(CHIP, PIN, LineSource::USER), Delivery::Delivered(1));
    assert!(!pending(&gic), "of a pulse, a level keeps nothing");
    trigger(&gic, true);
    assert_eq!(gic.pulse(CHIP, PIN, LineSource::USER), Delivery::Delivered(1));
    assert_eq!(gic.pulse(CHIP, PIN, LineSource::USER), Delivery::Coalesced);
    gic.distributor().write(0x284, 4, 1 << PIN);
    gic.set(CHIP, PIN, OTHER, true);
    gic.distributor().write(0x284, 4, 1 << PIN);
    assert_eq!(gic.pulse(CHIP, PIN, LineSource::USER), Delivery::Coalesced, "another source holds it");
    assert!(!pending(&gic));
    trigger(&gic, false);
    assert!(pending(&gic), "and goes on holding it");
    gic.set(CHIP, PIN, LineSource::USER, true);
    gic.set(CHIP, PIN, OTHER, false);
    gic.pulse(CHIP, PIN, LineSource::USER);
    assert!(!pending(&gic), "a pulse of the source that held it ends low");
}

#[test]
fn the_wire_of_kvm_is_one_for_all_sources() {
    let gic = gic_with(Behaviour::KVM);
    trigger(&gic, false);
    gic.set(CHIP, PIN, LineSource::USER, true);
    gic.set(CHIP, PIN, OTHER, true);
    gic.set(CHIP, PIN, OTHER, false);
    assert!(!pending(&gic), "who spoke last decides");
    gic.pulse(CHIP, PIN, LineSource::USER);
    assert!(pending(&gic), "an irqfd raises the line and leaves it up");
    gic.set(CHIP, PIN, OTHER, false);
    assert!(!pending(&gic));
    trigger(&gic, true);
    gic.pulse(CHIP, PIN, LineSource::USER);
    assert!(pending(&gic));
    gic.distributor().write(0x284, 4, 1 << PIN);
    gic.set(CHIP, PIN, LineSource::USER, false);
    assert!(!pending(&gic));
    gic.set_ppi(VcpuId(0), 20, true);
    gic.set_ppi(VcpuId(0), 20, false);
    assert_eq!(gic.redistributor(VcpuId(0)).unwrap().read(0x1_0200, 4), 0, "a PPI follows its level");
}

#[test]
fn messages_drive_a_level_and_latch_an_edge() {
    let gic = gic();
    assert_eq!(gic.message_spi(SPI, true), Delivery::Delivered(1));
    assert_eq!(gic.message_spi(SPI, true), Delivery::Coalesced);
    gic.distributor().write(0x284, 4, 1 << PIN);
    assert!(pending(&gic), "until it is taken back");
    gic.set(CHIP, PIN, LineSource::USER, true);
    gic.message_spi(SPI, false);
    assert!(pending(&gic), "or while something else drives it");
    gic.set(CHIP, PIN, LineSource::USER, false);
    assert!(!pending(&gic));
    trigger(&gic, true);
    gic.message_spi(SPI, true);
    assert!(pending(&gic));
    gic.message_spi(SPI, false);
    assert!(!pending(&gic));
    trigger(&gic, false);
    gic.message_spi(SPI, true);
    trigger(&gic, true);
    gic.message_spi(SPI, false);
    trigger(&gic, false);
    assert!(!pending(&gic), "taken back, although the trigger was another one when it came");
    for intid in [0, 16, 31, 64, 1020, u32::MAX] {
        assert_eq!(gic.message_spi(intid, true), Delivery::Ignored, "{intid}");
    }
}

#[test]
fn a_ppi_has_a_line_and_a_trigger_of_its_own() {
    let gic = gic();
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    let pending = || redistributor.read(0x1_0200, 4);
    assert_eq!(gic.set_ppi(VcpuId(0), 20, true), Delivery::Delivered(1));
    assert_eq!(gic.set_ppi(VcpuId(0), 20, true), Delivery::Coalesced);
    assert_eq!(pending(), 1 << 20);
    gic.set_ppi(VcpuId(0), 20, false);
    assert_eq!(pending(), 0);
    redistributor.write(0x1_0c04, 4, 2 << 8);
    gic.set_ppi(VcpuId(0), 20, true);
    redistributor.write(0x1_0280, 4, 1 << 20);
    gic.set_ppi(VcpuId(0), 20, true);
    assert_eq!(pending(), 0, "one edge for one rise");
    gic.set_ppi(VcpuId(0), 20, false);
    gic.set_ppi(VcpuId(0), 20, true);
    assert_eq!(pending(), 1 << 20);
    for (vcpu, intid) in [(0, 15), (0, 32), (0, 255), (1, 20)] {
        assert_eq!(gic.set_ppi(VcpuId(vcpu), intid, true), Delivery::Ignored);
    }
}

/// Sources that come and go at once: in the end the level is what they make of it, and each edge was counted.
#[test]
fn a_line_that_many_drive_ends_as_they_left_it() {
    const ROUNDS: u32 = 2000;
    let gic = gic();
    let mut cpu = vcpu(&gic);
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
        for id in 2..5 {
            let (gic, done) = (&gic, &done);
            scope.spawn(move || {
                let source = LineSource::new(id).unwrap();
                for _ in 0..ROUNDS {
                    gic.set(CHIP, PIN, source, true);
                    gic.set(CHIP, PIN, source, false);
                }
                gic.set(CHIP, PIN, source, id == 4);
                done.fetch_add(1, Relaxed);
            });
        }
        while done.load(Relaxed) < 3 {
            if cpu.acknowledge(Group::One) == SPI {
                cpu.end(Group::One, SPI);
            }
        }
    });
    assert!(pending(&gic));
    assert_eq!(cpu.acknowledge(Group::One), SPI, "one source still drives it");
    cpu.end(Group::One, SPI);
    gic.set(CHIP, PIN, LineSource::new(4).unwrap(), false);
    assert!(!pending(&gic));
    assert_eq!(cpu.acknowledge(Group::One), 1023);
}
