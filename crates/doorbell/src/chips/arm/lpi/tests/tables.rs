//! What is read from guest memory, and written to it.

use super::*;

#[test]
fn i24_mapping_takes_over_the_bit_of_the_pending_table() {
    for behaviour in [Behaviour::SPEC, Behaviour::KVM] {
        let rig = Rig::new(2, behaviour);
        rig.set_bit(1, 8195);
        rig.set_bit(0, 8195);
        rig.mapped(8195, 1);
        assert!(!rig.bit(1, 8195), "consumed");
        assert!(rig.bit(0, 8195), "another vCPU's");
        assert_eq!(rig.taken(1), [8195]);
        rig.gic.unmap_lpi(8195, false);
        rig.gic.map_lpi(8195, Some(1)).unwrap();
        assert_eq!(rig.take(1), None, "H25: once");
    }
}

#[test]
fn neighbours_in_a_byte_of_the_pending_table_stay_as_they_are() {
    let rig = Rig::new(1, Behaviour::SPEC);
    rig.ram.write_le(PENDING + 8192 / 8, 0xffu8).unwrap();
    rig.mapped(8195, 0);
    assert_eq!(rig.ram.read_le(PENDING + 8192 / 8), Ok(0xf7u8));
    rig.gic.save_pending_tables().unwrap();
    assert_eq!(rig.ram.read_le(PENDING + 8192 / 8), Ok(0xffu8), "8195 is pending");
    assert_eq!(rig.taken(0), [8195]);
    rig.gic.save_pending_tables().unwrap();
    assert_eq!(rig.ram.read_le(PENDING + 8192 / 8), Ok(0xf7u8), "bits of LPIs that there are not are not touched");
}

#[test]
fn a_table_outside_of_memory_makes_the_mapping_fail() {
    for (behaviour, register, value) in [
        (Behaviour::SPEC, LpiRegister::Properties, 0xf_0000_0000_000f),
        (Behaviour::SPEC, LpiRegister::Pending, 0xf_0000_0000_0000),
        (Behaviour::KVM, LpiRegister::Properties, 0xf_0000_0000_000f),
        (Behaviour::KVM, LpiRegister::Pending, 0xf_0000_0000_0000),
    ] {
        let rig = Rig::off(1, behaviour);
        rig.write(0, register, value);
        rig.switch(0, true);
        let address = if register == LpiRegister::Pending { 0xf_0000_0000_0400 } else { 0xf_0000_0000_0003 };
        assert_eq!(rig.gic.map_lpi(8195, Some(0)), Err(NoMemory { address, length: 1 }), "H30");
        assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Nowhere);
        rig.switch(0, false);
        rig.write(0, LpiRegister::Properties, PROPERTIES | 15);
        rig.write(0, LpiRegister::Pending, PENDING);
        rig.switch(0, true);
        rig.mapped(8195, 0);
        rig.gic.pend_lpi(8195);
        assert_eq!(rig.taken(0), [8195]);
    }
}

#[test]
fn memory_that_goes_away_leaves_the_configuration_as_it_is() {
    let rig = Rig::new(1, Behaviour::SPEC);
    rig.mapped(8195, 0);
    rig.switch(0, false);
    rig.write(0, LpiRegister::Properties, 0xf_0000_0000_000f);
    rig.switch(0, true);
    assert_eq!(rig.gic.invalidate_lpi(8195), Err(NoMemory { address: 0xf_0000_0000_0003, length: 1 }));
    rig.gic.invalidate_all_lpis(0);
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.taken(0), [8195]);
}

#[test]
fn a_table_that_memory_has_in_part_is_read_as_far_as_it_goes() {
    let rig = Rig::off(1, Behaviour::SPEC);
    let end = RAM + 0x10_0000;
    // Of the configuration, the bytes of 8192 to 8195; of the pending bits, none.
    rig.write(0, LpiRegister::Properties, (end - 0x1000) | 15);
    for (lpi, at) in [(8192, end - 0x1000), (12_287, end - 1)] {
        rig.gic.map_lpi(lpi, Some(0)).unwrap();
        rig.ram.write_le(at, 0xa1u8).unwrap();
    }
    rig.gic.map_lpi(12_288, Some(0)).unwrap();
    rig.switch(0, true);
    for lpi in [8192, 12_287, 12_288] {
        assert_eq!(rig.gic.pend_lpi(lpi), LpiSent::Pended);
    }
    assert_eq!(rig.taken(0), [8192, 12_287], "what cannot be read is disabled");
}

#[test]
fn saving_stops_at_memory_that_refuses() {
    let rig = Rig::off(2, Behaviour::KVM);
    rig.write(1, LpiRegister::Pending, 0xf_0000_0000_0000 | ZERO);
    rig.switch(0, true);
    rig.mapped(8195, 0);
    rig.gic.map_lpi(8196, None).unwrap();
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.gic.save_pending_tables(), Ok(()), "an LPI that is nobody's has no bit");
    rig.gic.target_lpi(8196, Some(1));
    assert_eq!(rig.gic.save_pending_tables(), Err(NoMemory { address: 0xf_0000_0000_0400, length: 1 }));
    assert!(rig.bit(0, 8195));
}

#[test]
fn an_lpi_beyond_the_configuration_table_is_disabled() {
    let rig = Rig::off(1, Behaviour::SPEC);
    // 14 bits: LPIs 8192 to 16383.
    rig.write(0, LpiRegister::Properties, PROPERTIES | 13);
    rig.switch(0, true);
    rig.mapped(16_383, 0);
    rig.mapped(16_384, 0);
    rig.gic.pend_lpi(16_383);
    rig.gic.pend_lpi(16_384);
    assert_eq!(rig.taken(0), [16_383]);
    rig.gic.invalidate_lpi(16_384).unwrap();
    rig.gic.invalidate_all_lpis(0);
    assert_eq!(rig.take(0), None);
}
