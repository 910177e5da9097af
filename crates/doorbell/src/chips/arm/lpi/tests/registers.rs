//! GICR_CTLR, GICR_PROPBASER, GICR_PENDBASER, GICR_INVLPIR, GICR_INVALLR, GICR_SYNCR.

use super::*;

#[test]
fn i30_ctlr_shows_what_can_be_done_and_keeps_enable_lpis() {
    for behaviour in [Behaviour::SPEC, Behaviour::KVM] {
        let rig = Rig::off(1, behaviour);
        assert_eq!(rig.read(0, LpiRegister::Control), 0x6);
        rig.write(0, LpiRegister::Control, u64::MAX);
        assert_eq!(rig.read(0, LpiRegister::Control), 0x7);
        rig.gic.write_lpi_register(0, LpiRegister::Control, 0xffff_fffe, 0);
        assert_eq!(rig.read(0, LpiRegister::Control), 0x7, "its byte was not written");
        rig.write(0, LpiRegister::Control, 0);
        assert_eq!(rig.read(0, LpiRegister::Control), 0x6, "I31");
    }
    let mut options = GicOptions::new(1);
    options.identity = Identity::Qemu;
    let gic = Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    gic.attach_its();
    gic.write_lpi_register(0, LpiRegister::Control, u64::MAX, 1);
    assert_eq!(gic.read_lpi_register(0, LpiRegister::Control), 0x3);
}

#[test]
fn without_an_its_there_are_no_lpis() {
    let gic = Gic::new(GicOptions::new(1), Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap();
    assert!(!gic.has_lpis());
    gic.write_lpi_register(0, LpiRegister::Control, u64::MAX, 1);
    assert!(!gic.lpis_enabled(0));
    gic.attach_its();
    assert!(gic.has_lpis());
}

#[test]
fn i32_in_kvm_propbaser_is_one_for_all_and_attributes_are_forced() {
    let rig = Rig::off(2, Behaviour::KVM);
    rig.write(0, LpiRegister::Properties, 0x4005_000f);
    rig.write(1, LpiRegister::Pending, 0x4007_0000);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x4005_018f, "the recorded value");
    assert_eq!(rig.read(1, LpiRegister::Properties), 0x4005_018f);
    assert_eq!(rig.read(1, LpiRegister::Pending), 0x4007_0180, "the recorded value");
    assert_ne!(rig.read(0, LpiRegister::Pending), 0x4007_0180, "one for each");
    rig.switch(0, true);
    rig.write(0, LpiRegister::Properties, 0x4006_000f);
    rig.write(0, LpiRegister::Pending, 0);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x4005_018f, "ignored while LPIs are on");
    assert_eq!(rig.read(0, LpiRegister::Pending), rig.table(0) | 0x180);
    rig.write(1, LpiRegister::Properties, 0x4006_000f);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x4006_018f, "by a vCPU whose own are off");
    assert!(rig.gic.lpi_in_range(65_535));
    rig.write(1, LpiRegister::Properties, 13);
    assert!(rig.gic.lpi_in_range(16_383) && !rig.gic.lpi_in_range(16_384), "IDbits bounds what can be mapped");
    rig.write(1, LpiRegister::Properties, 3);
    assert!(!rig.gic.lpi_in_range(8192));
}

#[test]
fn by_the_architecture_propbaser_is_one_for_each_and_kept_as_written() {
    let rig = Rig::off(2, Behaviour::SPEC);
    rig.write(0, LpiRegister::Properties, u64::MAX);
    rig.write(0, LpiRegister::Pending, u64::MAX);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x070f_ffff_ffff_ff9f);
    assert_eq!(rig.read(0, LpiRegister::Pending), 0x070f_ffff_ffff_0f80, "PTZ reads as 0");
    assert_eq!(rig.read(1, LpiRegister::Properties), PROPERTIES | 15);
}

#[test]
fn half_of_a_register_can_be_written() {
    let rig = Rig::off(1, Behaviour::SPEC);
    let high = 0xffff_ffff_0000_0000;
    rig.gic.write_lpi_register(0, LpiRegister::Properties, high, 0x0001_0000_ffff_ffff);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x0001_0000_0000_0000 | PROPERTIES | 15);
    rig.gic.write_lpi_register(0, LpiRegister::Properties, !high, 0xffff_ffff_0000_100e);
    assert_eq!(rig.read(0, LpiRegister::Properties), 0x0001_0000_0000_100e);
}

#[test]
fn i34_configurations_are_invalidated_by_registers_while_lpis_are_on() {
    let rig = Rig::new(2, Behaviour::SPEC);
    for (lpi, cpu) in [(8192, 0), (8193, 0), (8194, 1)] {
        rig.gic.map_lpi(lpi, Some(cpu)).unwrap();
        rig.configure(lpi, 0xa1);
        rig.gic.pend_lpi(lpi);
    }
    rig.write(0, LpiRegister::InvalidateOne, 8191);
    rig.gic.write_lpi_register(0, LpiRegister::InvalidateOne, 0xffff_ffff_0000_0000, 8192);
    assert_eq!(rig.take(0), None, "no LPI; the half for virtual PEs");
    rig.write(0, LpiRegister::InvalidateOne, 8193);
    assert_eq!(rig.taken(0), [8193]);
    rig.write(0, LpiRegister::InvalidateAll, 0);
    assert_eq!((rig.taken(0), rig.taken(1)), (vec![8192], vec![]));
    rig.switch(1, false);
    rig.write(1, LpiRegister::InvalidateOne, 8194);
    rig.write(1, LpiRegister::InvalidateAll, 0);
    assert_eq!(rig.read(1, LpiRegister::Sync), 0);
    assert_eq!(rig.read(1, LpiRegister::InvalidateOne), 0);
}

#[test]
fn a_redistributor_that_there_is_not_has_no_registers() {
    let rig = Rig::new(1, Behaviour::SPEC);
    use LpiRegister::*;
    for register in [Control, Properties, Pending, InvalidateOne, InvalidateAll, Sync] {
        rig.write(1, register, u64::MAX);
        assert_eq!(rig.read(1, register), 0);
    }
}
