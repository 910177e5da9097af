//! What a VMM sees, as it was recorded on KVM with 96 INTIDs and two vCPUs.

use std::sync::Arc;

use super::*;
use crate::{
    PinInput,
    chips::arm::{Behaviour, GicOptions, Identity, line::CHIP},
    guest_ram::RamBlock,
};

const VCPU: VcpuId = VcpuId(0);

fn kvm() -> Arc<Gic> {
    let mut options = GicOptions::new(2);
    (options.intids, options.behaviour, options.identity) = (96, Behaviour::KVM, Identity::Kvm);
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    gic.attach_its();
    gic
}

/// Runs of offsets, up to the last one of each, that a device says it has.
fn runs(end: u64, has: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for offset in (0..end).step_by(4).filter(|offset| has(*offset)) {
        match runs.last_mut() {
            Some(run) if run.1 + 4 == offset => run.1 = offset,
            _ => runs.push((offset, offset)),
        }
    }
    runs
}

#[test]
fn the_registers_of_the_distributor_are_those_that_kvm_has() {
    let gic = kvm();
    let expected = [
        (0x0000, 0x0010),
        (0x0080, 0x0088),
        (0x0100, 0x0108),
        (0x0180, 0x0188),
        (0x0200, 0x0208),
        (0x0280, 0x0288),
        (0x0300, 0x0308),
        (0x0380, 0x0388),
        (0x0400, 0x045c),
        (0x0800, 0x085c),
        (0x0c00, 0x0c14),
        (0x0d00, 0x0d08),
        (0x6000, 0x62fc),
        (0xffd0, 0xfffc),
    ];
    assert_eq!(runs(0x1_0100, |offset| gic.distributor().has_register(offset)), expected, "C45");
    assert!(![0x401, 2, u64::MAX].iter().any(|&offset| gic.distributor().has_register(offset)));
}

#[test]
fn the_registers_of_a_redistributor_are_those_that_kvm_has() {
    let gic = kvm();
    let expected = [
        (0x00000, 0x0000c),
        (0x00014, 0x00014),
        (0x00070, 0x0007c),
        (0x000a0, 0x000a4),
        (0x000b0, 0x000b4),
        (0x000c0, 0x000c0),
        (0x0ffd0, 0x0fffc),
        (0x10080, 0x10080),
        (0x10100, 0x10100),
        (0x10180, 0x10180),
        (0x10200, 0x10200),
        (0x10280, 0x10280),
        (0x10300, 0x10300),
        (0x10380, 0x10380),
        (0x10400, 0x1041c),
        (0x10c00, 0x10c04),
        (0x10d00, 0x10d00),
        (0x10e00, 0x10e00),
    ];
    let redistributor = gic.redistributor(VCPU).unwrap();
    assert_eq!(runs(0x2_0100, |offset| redistributor.has_register(offset)), expected, "C45");
}

#[test]
fn c44_a_vmm_sets_the_latches_exactly() {
    let gic = kvm();
    let distributor = gic.distributor();
    let both = || [distributor.user_read(0x204), distributor.user_read(0x284)];
    for (offset, stored, read) in
        [(0x204, 0xf, 0xf), (0x204, 3, 3), (0x284, 1, 3), (0x284, 0, 3), (0x284, u32::MAX, 3), (0x204, 0, 0)]
    {
        distributor.user_write(offset, stored).unwrap();
        assert_eq!(both(), [read, 0], "{stored:#x} to {offset:#x}");
    }
    let redistributor = gic.redistributor(VCPU).unwrap();
    redistributor.user_write(0x1_0200, 0x80ff_0003);
    redistributor.user_write(0x1_0280, u32::MAX);
    assert_eq!([0x1_0200, 0x1_0280].map(|offset| redistributor.user_read(offset)), [0x80ff_0003, 0]);
    redistributor.user_write(0x1_0200, 0);
    assert_eq!(redistributor.user_read(0x1_0200), 0);
}

#[test]
fn active_and_enable_bits_take_ones_from_a_vmm_too() {
    let gic = kvm();
    let distributor = gic.distributor();
    for (offset, stored, read) in [(0x304, 5, 5), (0x304, 2, 7), (0x384, 3, 4)] {
        distributor.user_write(offset, stored).unwrap();
        assert_eq!([distributor.user_read(0x304), distributor.user_read(0x384)], [read; 2]);
    }
    let redistributor = gic.redistributor(VCPU).unwrap();
    redistributor.user_write(0x1_0180, 3);
    assert_eq!(redistributor.user_read(0x1_0100), 0xfffc);
}

#[test]
fn c12a_the_latch_and_the_line_are_read_apart() {
    let gic = kvm();
    let distributor = gic.distributor();
    let lines = || gic.user_read_lines(VCPU, 32).unwrap();
    distributor.write(0xc04 + 8, 4, 0); // SPIs 48 to 63 follow their level
    gic.set(CHIP, 28, LineSource::USER, true);
    assert_eq!((distributor.user_read(0x204), lines()), (0, 1 << 28));
    assert_eq!(distributor.read(0x204, 4), 1 << 28, "a guest sees it pending");
    gic.set(CHIP, 28, LineSource::USER, false);
    assert_eq!((distributor.user_read(0x204), lines(), distributor.read(0x204, 4)), (0, 0, 0));
}

/// KVM looks at no line while an interrupt is an edge: each 1 is one.
#[test]
fn c4a_an_edge_of_kvm_has_no_level() {
    let gic = kvm();
    let distributor = gic.distributor();
    let latch = || distributor.user_read(0x204);
    gic.set(CHIP, 1, LineSource::USER, true);
    assert_eq!(latch(), 2);
    gic.set(CHIP, 1, LineSource::USER, false);
    assert_eq!(latch(), 2, "it stays pending");
    distributor.user_write(0x204, 0).unwrap();
    gic.set(CHIP, 1, LineSource::USER, true);
    gic.set(CHIP, 1, LineSource::RESAMPLE, true);
    assert_eq!(latch(), 2, "again, though nobody let go");
    distributor.user_write(0x204, 0).unwrap();
    distributor.user_write(0xc08, 0).unwrap();
    assert_eq!((latch(), gic.user_read_lines(VCPU, 32).unwrap()), (0, 0), "the level was not kept");
}

#[test]
fn lines_are_set_whatever_the_trigger_and_show_while_it_is_a_level() {
    let gic = kvm();
    let distributor = gic.distributor();
    let lines = |first| gic.user_read_lines(VCPU, first).unwrap();
    distributor.user_write(0xc08, 0).unwrap();
    gic.user_write_lines(VCPU, 32, 0x16).unwrap();
    assert_eq!(lines(32), 0x16);
    distributor.user_write(0xc08, 0xaaaa_aaaa).unwrap();
    assert_eq!((lines(32), distributor.user_read(0x204)), (0, 0));
    distributor.user_write(0xc08, 0).unwrap();
    assert_eq!(lines(32), 0x16);
    gic.user_write_lines(VCPU, 0, u32::MAX).unwrap();
    assert_eq!(lines(0), 0xffff_0000, "SGIs have no lines");
    assert_eq!(gic.user_read_lines(VcpuId(1), 0).unwrap(), 0);
    for first in [96, 992, 0xffff_ffe0] {
        gic.user_write_lines(VCPU, first, 7).unwrap();
        assert_eq!(lines(first), 0, "beyond the last interrupt");
    }
    assert!(gic.user_read_lines(VCPU, 37).is_err() && gic.user_write_lines(VcpuId(2), 32, 0).is_err());
}

#[test]
fn the_line_of_a_ppi_belongs_to_its_vcpu() {
    let gic = kvm();
    gic.set_ppi(VCPU, 20, true);
    let lines = [0, 1].map(|vcpu| gic.user_read_lines(VcpuId(vcpu), 0).unwrap());
    assert_eq!(lines, [1 << 20, 0]);
    assert_eq!(gic.redistributor(VCPU).unwrap().user_read(0x1_0200), 0);
}

#[test]
fn iidr_chooses_the_revision_and_nothing_else() {
    let gic = kvm();
    let distributor = gic.distributor();
    let control = || gic.redistributor(VCPU).unwrap().user_read(0);
    for (stored, taken, read, ctlr) in [
        (0x4b00_043b, false, 0x4b00_343b, 6),
        (0x4b00_143b, false, 0x4b00_343b, 6),
        (0x4b00_243b, true, 0x4b00_243b, 0),
        (0x4b00_343b, true, 0x4b00_343b, 6),
        (0x4b00_443b, false, 0x4b00_343b, 6),
        (0x4c00_343b, false, 0x4b00_343b, 6),
        (0x4b01_343b, false, 0x4b00_343b, 6),
    ] {
        assert_eq!(distributor.user_write(IIDR, stored).is_ok(), taken, "{stored:#x}");
        assert_eq!((distributor.user_read(IIDR), control()), (read, ctlr), "{stored:#x}");
    }
    assert!(distributor.user_write(TYPER2, 1).is_err() && distributor.user_write(TYPER2, 0).is_ok());
    assert!(distributor.user_write(4, 1).is_ok(), "GICD_TYPER ignores it");
    distributor.write(IIDR, 4, 0x4b00_243b);
    assert_eq!(distributor.user_read(IIDR), 0x4b00_343b, "a guest cannot");
    let gic = Gic::new(GicOptions::new(1), Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    let own = gic.distributor().user_read(IIDR);
    assert!(gic.distributor().user_write(IIDR, own).is_ok());
    assert!(gic.distributor().user_write(IIDR, own | 0x2000).is_err(), "doorbell's own has one revision");
}

#[test]
fn what_is_not_there_reads_0_and_takes_stores() {
    let gic = kvm();
    let redistributor = gic.redistributor(VCPU).unwrap();
    for offset in [0x401, 0x102, 0x1_0000, 0x2_0000, 0x8c, 0x6301, u64::MAX] {
        gic.distributor().user_write(offset, u32::MAX).unwrap();
        assert_eq!(gic.distributor().user_read(offset), 0, "{offset:#x}");
    }
    for offset in [0x1_0402 + 1, 0x2_0000, 0x1_0084, 0x10] {
        redistributor.user_write(offset, u32::MAX);
        assert_eq!(redistributor.user_read(offset), 0, "{offset:#x}");
    }
    gic.distributor().user_write(0x6108, 5).unwrap();
    assert_eq!(gic.distributor().user_read(0x6108), 5, "a vCPU that there is not");
    gic.distributor().user_write(0, 1).unwrap();
    assert_eq!(gic.distributor().user_read(0), 0x50);
}
