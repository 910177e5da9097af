//! The rows of the page on the distributor. What KVM and QEMU answer was recorded on them.

use std::sync::Arc;

use super::*;
use crate::{
    VcpuId,
    chips::arm::{Behaviour, GicOptions},
    guest_ram::RamBlock,
};

const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const IGRPMODR: u64 = 0xd00;
const IROUTER: u64 = 0x6000;

fn gic_with(options: GicOptions) -> Arc<Gic> {
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    gic.attach_its();
    gic
}

fn gic() -> Arc<Gic> {
    gic_with(GicOptions::new(2))
}

fn kvm() -> Arc<Gic> {
    let mut options = GicOptions::new(2);
    (options.intids, options.behaviour, options.identity) = (96, Behaviour::KVM, Identity::Kvm);
    gic_with(options)
}

fn qemu() -> Arc<Gic> {
    let mut options = GicOptions::new(2);
    (options.intids, options.identity) = (256, Identity::Qemu);
    gic_with(options)
}

/// The frame, word by word, as runs of equal words.
fn frame(gic: &Gic) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for offset in (0..FRAME).step_by(4) {
        let value = gic.distributor().read(offset, 4);
        if runs.last().is_none_or(|run| run.1 != value) {
            runs.push((offset, value));
        }
    }
    runs
}

#[test]
fn after_reset_the_frame_is_that_of_kvm() {
    let expected = [
        (0x0000, 0x50),
        (0x0004, 0x7a_0002),
        (0x0008, 0x4b00_343b),
        (0x000c, 0),
        (0x0010, 0xffff_ffff),
        (0x0014, 0),
        (0x0084, 0xffff_ffff),
        (0x008c, 0),
        (0x0c08, 0xaaaa_aaaa),
        (0x0c18, 0),
        (0xffe8, 0x3b),
        (0xffec, 0),
    ];
    assert_eq!(frame(&kvm()), expected, "C1, C4a, C9a");
}

#[test]
fn kvm_without_an_its_offers_no_lpis() {
    let mut options = GicOptions::new(2);
    (options.intids, options.behaviour, options.identity) = (96, Behaviour::KVM, Identity::Kvm);
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    assert_eq!(gic.distributor().read(TYPER, 4), 0x48_0002);
}

#[test]
fn after_reset_the_frame_is_that_of_qemu() {
    let expected = [
        (0x0000, 0x50),
        (0x0004, 0x37a_0007),
        (0x0008, 0x43b),
        (0x000c, 0),
        (0xffd0, 0x44),
        (0xffd4, 0),
        (0xffe0, 0x92),
        (0xffe4, 0xb4),
        (0xffe8, 0x3b),
        (0xffec, 0),
        (0xfff0, 0xd),
        (0xfff4, 0xf0),
        (0xfff8, 0x5),
        (0xfffc, 0xb1),
    ];
    assert_eq!(frame(&qemu()), expected);
}

/// In KVM, what is written to ICENABLER, ICPENDR and ICACTIVER after the others undoes them.
#[test]
fn stores_of_ones_leave_in_kvm_what_was_recorded() {
    let gic = kvm();
    // Not to ISPENDR and ICPENDR: the recording was made by user space, which sees those differently.
    for offset in (0..0x200).chain(0x300..FRAME).step_by(4) {
        gic.distributor().write(offset, 4, u32::MAX.into());
    }
    let mut expected = vec![
        (0x0000, 0x52),
        (0x0004, 0x7a_0002),
        (0x0008, 0x4b00_343b),
        (0x000c, 0),
        (0x0010, 0xffff_ffff),
        (0x0014, 0),
        (0x0084, 0xffff_ffff),
        (0x008c, 0),
        (0x0420, 0xf8f8_f8f8),
        (0x0460, 0),
        (0x0c08, 0xaaaa_aaaa),
        (0x0c18, 0),
    ];
    for router in (0x6100..0x6300).step_by(8) {
        expected.extend([(router, 0xff_ffff), (router + 4, 0)]);
    }
    expected.extend([(0xffe8, 0x3b), (0xffec, 0)]);
    assert_eq!(frame(&gic), expected, "C1, C3, C5, C8");
}

#[test]
fn doorbell_says_what_it_can_do() {
    let typer = |options| Type::from_bits(gic_with(options).distributor().read(TYPER, 4) as u32);
    let all = typer(GicOptions::new(2));
    assert_eq!((all.lines(), all.id_bits(), all.cpus(), all.lpi_bits()), (31, 15, 0, 0));
    assert!(all.message_spis() && all.lpis() && all.level3() && all.range_selector());
    assert!(!all.no_one_of_n() && !all.security() && !all.extended_spis() && !all.virtual_lpis());
    let mut few = GicOptions::new(1);
    (few.intids, few.id_bits) = (64, 20);
    let few = typer(few);
    assert_eq!((few.lines(), few.id_bits()), (1, 19));
}

#[test]
fn c1_affinity_routing_and_one_security_state_cannot_be_switched_off() {
    for (gic, after_0x37, after_0x12, after_1) in [(kvm(), 0x52, 0x52, 0x50), (qemu(), 0x53, 0x52, 0x51)] {
        let distributor = gic.distributor();
        for (stored, read) in [(0, 0x50), (0x37, after_0x37), (0x12, after_0x12), (1, after_1), (0x8000_0080, 0x50)] {
            distributor.write(CTLR, 4, stored);
            assert_eq!(distributor.read(CTLR, 4), read, "{stored:#x}");
        }
    }
}

#[test]
fn kvm_forwards_both_groups_or_none() {
    let gic = kvm();
    for (stored, groups) in [(1, 0), (2, 3), (3, 3), (0, 0)] {
        gic.distributor().write(CTLR, 4, stored);
        assert_eq!(gic.groups(), groups, "{stored}");
    }
}

#[test]
fn c2_the_private_range_is_not_here() {
    let gic = gic();
    let distributor = gic.distributor();
    for (offset, size) in
        [(IGROUPR, 4), (ISENABLER, 4), (ISPENDR, 4), (ISACTIVER, 4), (IPRIORITYR, 32), (ICFGR, 8), (IROUTER, 256)]
    {
        for offset in (offset..offset + size).step_by(4) {
            distributor.write(offset, 4, u32::MAX.into());
            assert_eq!(distributor.read(offset, 4), 0, "{offset:#x}");
        }
    }
    let redistributor = gic.redistributor(VcpuId(0)).unwrap();
    assert_eq!([IGROUPR, ISENABLER, ISPENDR].map(|offset| redistributor.read(0x1_0000 + offset, 4)), [0; 3]);
}

#[test]
fn c3_targets_by_cpu_number_and_what_takes_two_security_states_are_not_there() {
    let gic = gic();
    for offset in
        (ITARGETSR..ICFGR).chain(IGRPMODR..0x1000).chain([0x50, 0x58]).chain(0x1000..0x6000).chain(0x8000..0xffd0)
    {
        for bytes in [1, 2, 4, 8] {
            gic.distributor().write(offset, bytes, u64::MAX);
            assert_eq!(gic.distributor().read(offset, bytes), 0, "{offset:#x}");
        }
    }
    assert_eq!(frame(&gic), frame(&self::gic()), "nothing else was written either");
}

#[test]
fn c4_only_the_higher_bit_of_a_trigger_exists() {
    let gic = gic();
    let distributor = gic.distributor();
    assert_eq!(distributor.read(ICFGR + 8, 4), 0, "SPIs follow their level after reset");
    for (stored, read) in [(0xffff_ffff, 0xaaaa_aaaa), (0x5555_5555, 0), (0x0000_0007, 2)] {
        distributor.write(ICFGR + 8, 4, stored);
        assert_eq!(distributor.read(ICFGR + 8, 4), read);
    }
}

#[test]
fn c5_five_bits_of_priority_exist_by_bytes_and_words() {
    let gic = gic();
    let distributor = gic.distributor();
    for (stored, read) in [(0xff, 0xf8), (0x07, 0), (0xa5, 0xa0)] {
        distributor.write(IPRIORITYR + 41, 1, stored);
        assert_eq!(distributor.read(IPRIORITYR + 41, 1), read);
        assert_eq!(distributor.read(IPRIORITYR + 40, 4), read << 8, "its neighbours are untouched");
    }
    distributor.write(IPRIORITYR + 40, 4, 0x8040_20ff);
    assert_eq!(distributor.read(IPRIORITYR + 43, 1), 0x80);
    assert_eq!(distributor.read(IPRIORITYR + 40, 4), 0x8040_20f8);
}

#[test]
fn c8_a_router_keeps_a_name_that_no_vcpu_has() {
    let gic = gic();
    let distributor = gic.distributor();
    let router = IROUTER + 8 * 40;
    distributor.write(router, 8, u64::MAX);
    assert_eq!(distributor.read(router, 8), 0xff_80ff_ffff);
    distributor.write(router, 4, 0x1234);
    assert_eq!(distributor.read(router, 8), 0xff_0000_1234, "the lower half alone");
    distributor.write(router + 4, 4, 1);
    assert_eq!([distributor.read(router, 4), distributor.read(router + 4, 4)], [0x1234, 1]);
    assert_eq!(gic.shared(40).unwrap().state().target(), crate::chips::arm::irq::NOBODY);
    distributor.write(router, 8, 1);
    assert_eq!(gic.shared(40).unwrap().state().target(), 1);
    distributor.write(IROUTER + 8 * 1020, 8, 1);
    assert_eq!(distributor.read(IROUTER + 8 * 1020, 8), 0, "1020 is no SPI");
}

#[test]
fn c8_a_router_of_kvm_has_a_lower_half_alone() {
    let gic = kvm();
    let distributor = gic.distributor();
    let router = IROUTER + 8 * 33;
    distributor.write(router, 4, 0x8123_4567);
    distributor.write(router + 4, 4, 0xff);
    assert_eq!(distributor.read(router, 8), 0x23_4567);
}

#[test]
fn c10_and_c12_set_and_clear_registers_take_ones() {
    let gic = gic();
    let distributor = gic.distributor();
    for (set, clear) in [(ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)] {
        let both = || [distributor.read(set + 4, 4), distributor.read(clear + 4, 4)];
        distributor.write(set + 4, 4, 0x5000_000f);
        assert_eq!(both(), [0x5000_000f; 2], "{set:#x}");
        distributor.write(set + 4, 4, 0);
        distributor.write(clear + 4, 4, 0x4000_0003);
        assert_eq!(both(), [0x1000_000c; 2], "{set:#x}");
        distributor.write(clear + 4, 4, u32::MAX.into());
        assert_eq!(both(), [0; 2]);
    }
}

#[test]
fn an_access_of_another_width_or_unaligned_reads_0_and_stores_nothing() {
    let gic = gic();
    let distributor = gic.distributor();
    let before = frame(&gic);
    let registers = [CTLR, ISENABLER + 4, ISPENDR + 4, IPRIORITYR + 40, ICFGR + 8];
    for offset in registers.into_iter().flat_map(|offset| offset..offset + 4) {
        for bytes in [1, 2, 3, 4, 5, 8, 16, 255, 0] {
            let takes = offset % 4 == 0 && bytes == 4 || (IPRIORITYR..ITARGETSR).contains(&offset) && bytes == 1;
            if !takes {
                distributor.write(offset, bytes, u64::MAX);
                assert_eq!(distributor.read(offset, bytes), 0, "{bytes} bytes at {offset:#x}");
            }
        }
    }
    for (offset, bytes) in [(0x6141, 4), (0x6142, 2), (0x6144, 8), (0x6140, 1), (0x6140, 0)] {
        distributor.write(offset, bytes, u64::MAX);
        assert_eq!(distributor.read(offset, bytes), 0);
    }
    assert_eq!(frame(&gic), before);
}

#[test]
fn there_are_no_interrupts_beyond_the_configured_ones() {
    let gic = kvm();
    let distributor = gic.distributor();
    for (offset, bytes) in [(IGROUPR + 12, 4), (ISENABLER + 12, 4), (IPRIORITYR + 96, 1), (IROUTER + 8 * 96, 8)] {
        distributor.write(offset, bytes, u64::MAX);
        assert_eq!(distributor.read(offset, bytes), 0);
    }
    for offset in [u64::MAX, u64::MAX - 7, FRAME, 1 << 32] {
        distributor.write(offset, 4, 1);
        assert_eq!(distributor.read(offset, 4), 0);
    }
    // 32 to 1019 with all SPIs: the last register has fields for 28.
    let gic = self::gic();
    gic.distributor().write(ISENABLER + 124, 4, u32::MAX.into());
    assert_eq!(gic.distributor().read(ISENABLER + 124, 4), 0x0fff_ffff);
}

#[test]
fn a_message_sets_and_clears_an_edge() {
    let gic = gic();
    let distributor = gic.distributor();
    distributor.write(ICFGR + 8, 4, 2 << 16);
    for (set, clear, bytes) in [(SETSPI_NSR, CLRSPI_NSR, 4), (SETSPI_NSR, CLRSPI_NSR, 2)] {
        distributor.write(set, bytes, 40 | 0xff_0000 & u64::MAX << (8 * bytes));
        assert_eq!(distributor.read(ISPENDR + 4, 4), 1 << 8);
        distributor.write(clear, bytes, 40);
        assert_eq!(distributor.read(ISPENDR + 4, 4), 0);
    }
    for (offset, bytes, value) in [(SETSPI_NSR, 1, 40), (SETSPI_NSR, 8, 40), (0x50, 4, 40), (SETSPI_NSR, 4, 8)] {
        distributor.write(offset, bytes, value);
        assert_eq!(distributor.read(ISPENDR + 4, 4), 0, "{bytes} bytes at {offset:#x}");
    }
    assert_eq!(distributor.read(SETSPI_NSR, 4), 0, "write-only");
    let gic = kvm();
    gic.distributor().write(SETSPI_NSR, 4, 40);
    assert_eq!(gic.distributor().read(ISPENDR + 4, 4), 0, "KVM has no such register");
}
