//! Both sides of each boundary: the ends of ranges, the exact error, what is kept and what is not.

use super::*;

fn gsi_of(table: &RouteTable, chip: u8, pin: u16) -> Option<u32> {
    table.gsi_of_pin(Pin { chip, pin })
}

#[test]
fn a_table_takes_4096_entries_and_says_how_many_it_takes() {
    let (_, table) = table();
    let full: Vec<_> = (0..4096).map(|gsi| msi(gsi, gsi)).collect();
    table.set(&full).unwrap();
    assert_eq!(table.entries(), full);
    let more: Vec<_> = full.iter().copied().chain([pin(4, 2, 4)]).collect();
    assert!(matches!(table.set(&more), Err(Error::TooManyRoutes { count: 4097, most: 4096 })));
    assert!(matches!(table.set(&[msi(4096, 1)]), Err(Error::NoSuchGsi { gsi: 4096, last: 4095 })));
}

#[test]
fn chip_15_is_the_last_that_a_route_can_name() {
    struct Everywhere;
    impl PinInput for Everywhere {
        fn pins(&self, _: ChipId) -> u16 {
            4
        }
        fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
            Delivery::Ignored
        }
        fn reevaluate(&self, _: ChipId, _: &Pins) {}
    }
    let table = RouteTable::new(Arc::new(Recorder::default()), Arc::new(Everywhere), RoutePolicy::S2_TABLE);
    table.set(&[pin(1, 15, 3)]).unwrap();
    assert!(matches!(table.set(&[pin(1, 15, 4)]), Err(Error::NoSuchPin { chip: 15, pin: 4, pins: 4 })));
    for chip in [16, 17, 255] {
        assert!(matches!(table.set(&[pin(1, chip, 3)]), Err(Error::NoSuchPin { pin: 3, pins: 0, .. })), "{chip}");
    }
    assert_eq!(table.entries(), [pin(1, 15, 3)]);
}

#[test]
fn a_machine_without_pins_has_none() {
    let table = RouteTable::new(Arc::new(Recorder::default()), Arc::new(NoPins), RoutePolicy::S2_TABLE);
    assert!(matches!(table.set(&[pin(1, 0, 0)]), Err(Error::NoSuchPin { chip: 0, pin: 0, pins: 0 })));
}

#[test]
fn the_reverse_map_knows_each_pin_and_the_later_gsi_of_each() {
    let (_, table) = table();
    table.set(&[pin(9, 2, 4), pin(5, 2, 4), pin(7, 2, 4), pin(3, 2, 3), pin(6, 2, 5), pin(8, 0, 4)]).unwrap();
    let reverse = [(2, 3), (2, 4), (2, 5), (0, 4), (0, 5)].map(|(chip, pin)| gsi_of(&table, chip, pin));
    assert_eq!(reverse, [Some(3), Some(7), Some(6), Some(8), None]);
}

#[test]
fn the_last_of_any_number_of_gsis_has_the_pin() {
    let (_, table) = table();
    for last in 30..40 {
        let entries: Vec<_> = (30..=last).map(|gsi| pin(gsi, 2, 4)).collect();
        table.set(&entries).unwrap();
        assert_eq!(gsi_of(&table, 2, 4), Some(last));
    }
}

#[test]
fn of_entries_with_one_pin_the_last_is_kept_and_no_other() {
    let at = |pin| Pin { chip: 2, pin };
    let order = vec![(at(3), 1), (at(4), 9), (at(4), 5), (at(4), 7), (at(5), 7)];
    assert_eq!(table::keep_last(order), [(at(3), 1), (at(4), 7), (at(5), 7)]);
    assert_eq!(table::keep_last(vec![]), []);
}

#[test]
fn without_an_8259_the_default_routes_of_a_pc_lead_to_the_ioapic_alone() {
    struct OnlyIoapic;
    impl PinInput for OnlyIoapic {
        fn pins(&self, chip: ChipId) -> u16 {
            if chip == 2 { 24 } else { 0 }
        }
        fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
            Delivery::Ignored
        }
        fn reevaluate(&self, _: ChipId, _: &Pins) {}
    }
    let table = RouteTable::new(Arc::new(Recorder::default()), Arc::new(OnlyIoapic), RoutePolicy::KVM_X86);
    let expected: Vec<_> = (0..24).map(|gsi| pin(gsi, 2, gsi as u16)).collect();
    assert_eq!(table.entries(), expected);
}

#[test]
fn the_reverse_map_follows_each_update() {
    let set = |gsi, route| RouteUpdate::Set { gsi, routes: GsiRoutes::from_slice(&[route]) };
    let (_, table) = table();
    table.update(&[set(5, pin(5, 2, 5).route)]).unwrap();
    assert_eq!(gsi_of(&table, 2, 5), Some(5), "a pin came");
    table.update(&[set(5, pin(5, 2, 6).route), set(30, msi(30, 1).route)]).unwrap();
    assert_eq!((gsi_of(&table, 2, 5), gsi_of(&table, 2, 6)), (None, Some(5)), "another one in its place");
    table.update(&[RouteUpdate::Remove { gsi: 5 }]).unwrap();
    assert_eq!(gsi_of(&table, 2, 6), None, "it went");
    table.update(&[set(30, msi(30, 2).route), set(31, pin(31, 2, 7).route)]).unwrap();
    table.update(&[set(31, msi(31, 3).route), RouteUpdate::Remove { gsi: 30 }]).unwrap();
    assert_eq!(gsi_of(&table, 2, 7), None, "a message took its place");
}

#[test]
fn a_direct_line_call_ends_with_the_last_pin_of_its_chip() {
    let policy = RoutePolicy { lines: LineCalls::Direct(2), ..RoutePolicy::S2_TABLE };
    let (recorder, table) = table_with(policy, false);
    assert_eq!(table.line(24, LineSource::USER, true), Delivery::Ignored);
    assert_eq!(table.line(0x1_0000, LineSource::USER, true), Delivery::Ignored, "not pin 0");
    assert!(recorder.edges().is_empty());
    assert_eq!(table.line(23, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(recorder.edges(), [(2, 23, 1, true)]);
}

#[test]
fn a_line_call_on_a_masked_message_is_pending() {
    let (recorder, table) = table();
    let gate = Gate::new(&table);
    table.set(&[msi(24, 0x41)]).unwrap();
    gate.mask(24).unwrap();
    assert_eq!(table.line(24, LineSource::USER, false), Delivery::Ignored);
    assert!(!gate.is_pending(24), "a falling call is no event");
    assert_eq!(table.line(24, LineSource::USER, true), Delivery::Ignored);
    assert!(gate.is_pending(24) && recorder.data().is_empty());
    assert_eq!(gate.unmask(24).unwrap(), Some(Delivery::Delivered(1)));
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn a_line_call_leaves_no_trace_on_a_gsi_without_a_route() {
    let (_, table) = table();
    table.line(77, LineSource::USER, true);
    assert_eq!(table.save(), RouteTableState::default());
}

#[test]
fn a_line_is_forgotten_with_the_pins_that_had_it_and_kept_with_other_pins() {
    let (_, table) = table();
    let gate = Gate::new(&table);
    table.set(&[pin(5, 2, 5)]).unwrap();
    gate.mask(5).unwrap();
    table.line(5, LineSource::RESAMPLE, true);
    table.set(&[pin(5, 2, 6)]).unwrap();
    assert!(gate.is_pending(5), "its source still drives it");
    table.set(&[msi(5, 1)]).unwrap();
    table.set(&[pin(5, 2, 5)]).unwrap();
    assert!(!gate.is_pending(5));
}

#[test]
fn a_pulse_ends_the_users_level_and_no_other() {
    for (others, left) in [(vec![], 0), (vec![LineSource::RESAMPLE], 0b10)] {
        let (_, table) = table();
        table.set(&[pin(5, 2, 5)]).unwrap();
        table.line(5, LineSource::USER, true);
        for source in others {
            table.line(5, source, true);
        }
        table.fire(5);
        assert_eq!(table.save().gsis[0].line, left);
    }
}

#[test]
fn under_the_identity_policy_messages_begin_behind_the_last_pin() {
    let policy = RoutePolicy { pins: PinRoutes::Identity(2), initial: Initial::Identity(2), ..RoutePolicy::S2_TABLE };
    let (_, table) = table_with(policy, false);
    assert_eq!(refused(table.set(&[msi(23, 1)])), Errno::INVAL);
    table.set(&[msi(24, 1)]).unwrap();
    let saved = table.save();
    let (_, restored) = table_with(policy, false);
    restored.restore(&saved).unwrap();
    assert_eq!(restored.save(), saved, "pins that only the policy may set");
    for routes in [vec![pin(5, 2, 6).route], vec![msi(5, 1).route]] {
        let mut forged = saved.clone();
        forged.gsis[5].routes = routes;
        assert_eq!(refused(restored.restore(&forged)), Errno::INVAL);
    }
}

#[test]
fn gates_of_a_set_are_checked_before_the_first_is_closed_or_opened() {
    let (_, table) = table();
    let gate = Gate::new(&table);
    table.set(&[msi(0, 1), msi(1, 2)]).unwrap();
    let lent = table.lease().unwrap().gsi;
    assert_eq!(lent, 2);
    assert_eq!(refused(gate.mask_set(0, &[0b111])), Errno::BUSY);
    assert!(!gate.mask(0).unwrap() && !gate.mask(1).unwrap(), "neither was masked");
    assert_eq!(refused(gate.unmask_set(0, &[0b111])), Errno::BUSY);
    assert!(gate.mask(0).unwrap() && gate.mask(1).unwrap(), "both still are");
    assert!(matches!(gate.mask_set(4095, &[0b11]), Err(Error::NoSuchGsi { gsi: 4096, last: 4095 })));
    assert!(!gate.mask(4095).unwrap());
}

#[test]
fn a_pending_gsi_has_its_bit_in_its_word() {
    let (_, table) = table();
    let gate = Gate::new(&table);
    for gsi in [105, 163, 164, 233] {
        gate.mask(gsi).unwrap();
        table.fire(gsi);
    }
    let mut bits = [0; 2];
    gate.pending(100..4096, &mut bits);
    assert_eq!(bits, [1 << 5 | 1 << 63, 1], "the last is beyond the words");
    gate.pending(100..164, &mut bits);
    assert_eq!(bits, [1 << 5 | 1 << 63, 0]);
}

#[test]
fn a_message_without_a_device_stays_so() {
    let (recorder, table) = table();
    table.set(&[msi(24, 0x41)]).unwrap();
    table.fire(24);
    assert_eq!(*recorder.messages.lock(), [MsiMessage { address: 0xfee0_0000, data: 0x41, device_id: None }]);
}

#[test]
fn a_trigger_names_its_gsi() {
    let (_, table) = table();
    assert_eq!(IrqTrigger::new(Arc::new(table), 24).gsi(), 24);
}
