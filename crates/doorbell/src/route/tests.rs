//! The table, the gate and the loans against the statements of the reference (G and S5-C).

mod bounds;
mod loans;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::Errno;
use parking_lot::Mutex;

use super::*;
use crate::{Delivery, Error, MsiTarget, SlotFire, Target, VectorPath, gate::Gate};

/// Records what arrives: messages by their data, pins by chip, pin, source and level.
#[derive(Default)]
struct Recorder {
    messages: Mutex<Vec<MsiMessage>>,
    pins: Mutex<Vec<(u8, u16, u64, bool)>>,
    prepared: bool,
}

impl Recorder {
    fn data(&self) -> Vec<u32> {
        std::mem::take(&mut *self.messages.lock()).iter().map(|message| message.data).collect()
    }
    fn edges(&self) -> Vec<(u8, u16, u64, bool)> {
        std::mem::take(&mut *self.pins.lock())
    }
}

impl MsiTarget for Recorder {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.messages.lock().push(*message);
        Ok(Delivery::Delivered(1))
    }
    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if self.prepared { Target::new(message.data) } else { None }
    }
    fn fire(&self, target: Target) -> Delivery {
        self.messages.lock().push(MsiMessage::new(0, target.bits()));
        Delivery::Delivered(1)
    }
}

impl PinInput for Recorder {
    fn pins(&self, chip: ChipId) -> u16 {
        [8, 8, 24].get(usize::from(chip)).copied().unwrap_or(0)
    }
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        self.pins.lock().push((chip, pin, source.bit(), level));
        Delivery::Delivered(1)
    }
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

fn table() -> (Arc<Recorder>, RouteTable) {
    table_with(RoutePolicy::S2_TABLE, false)
}

fn table_with(policy: RoutePolicy, prepared: bool) -> (Arc<Recorder>, RouteTable) {
    let recorder = Arc::new(Recorder { prepared, ..Recorder::default() });
    let table = RouteTable::new(recorder.clone(), recorder.clone(), policy);
    (recorder, table)
}

fn msi(gsi: u32, data: u32) -> RouteEntry {
    RouteEntry { gsi, route: Route::Msi(MsiMessage::new(0xfee0_0000, data)) }
}

fn pin(gsi: u32, chip: u8, pin: u16) -> RouteEntry {
    RouteEntry { gsi, route: Route::Pin(Pin { chip, pin }) }
}

fn refused(result: Result<(), Error>) -> Errno {
    result.expect_err("must be refused").errno()
}

#[test]
fn g1_more_than_4096_entries_are_refused() {
    let (_, table) = table();
    assert_eq!(refused(table.set(&vec![msi(1, 1); 4097])), Errno::INVAL);
}

#[test]
fn g2_gsi_4095_is_the_last() {
    let (recorder, table) = table();
    assert_eq!(refused(table.set(&[msi(4096, 1)])), Errno::INVAL);
    assert_eq!(refused(table.update(&[RouteUpdate::Remove { gsi: 4096 }])), Errno::INVAL);
    table.set(&[msi(4095, 0x41)]).unwrap();
    assert_eq!(table.fire(4095), Delivery::Delivered(1));
    assert_eq!(table.fire(4096), Delivery::Ignored);
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn g4_only_pins_of_different_chips_share_a_gsi() {
    let (recorder, table) = table();
    for conflict in [[msi(4, 1), msi(4, 2)], [pin(4, 2, 4), pin(4, 2, 5)], [pin(4, 2, 4), msi(4, 1)]] {
        assert_eq!(refused(table.set(&conflict)), Errno::INVAL, "{conflict:?}");
    }
    table.set(&[pin(4, 0, 4), pin(4, 2, 4)]).unwrap();
    table.fire(4);
    assert_eq!(recorder.edges(), [(0, 4, 1, true), (0, 4, 1, false), (2, 4, 1, true), (2, 4, 1, false)]);
}

#[test]
fn g5_two_gsis_share_a_pin_and_the_reverse_map_keeps_the_later() {
    let (_, table) = table();
    table.set(&[pin(9, 2, 4), pin(5, 2, 4)]).unwrap();
    assert_eq!(table.gsi_of_pin(Pin { chip: 2, pin: 4 }), Some(5));
    table.set(&[pin(5, 2, 4), pin(9, 2, 4)]).unwrap();
    assert_eq!(table.gsi_of_pin(Pin { chip: 2, pin: 4 }), Some(9));
    assert_eq!(table.gsi_of_pin(Pin { chip: 2, pin: 5 }), None);
}

#[test]
fn g6_pins_that_no_chip_has_are_refused() {
    let (_, table) = table();
    for bad in [pin(4, 0, 8), pin(4, 2, 24), pin(4, 3, 0), pin(4, 200, 0)] {
        assert_eq!(refused(table.set(&[bad])), Errno::INVAL, "{bad:?}");
    }
}

#[test]
fn g8_a_table_that_is_refused_changes_nothing() {
    let (recorder, table) = table();
    table.set(&[msi(24, 0x41)]).unwrap();
    table.set(&[msi(24, 0x42), msi(4096, 0x43)]).unwrap_err();
    table.update(&[RouteUpdate::Remove { gsi: 24 }, RouteUpdate::Remove { gsi: 5000 }]).unwrap_err();
    table.fire(24);
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn g9_an_empty_table_unroutes_every_gsi() {
    let (recorder, table) = table();
    table.set(&[msi(24, 0x41), pin(5, 2, 5)]).unwrap();
    table.set(&[]).unwrap();
    assert_eq!((table.fire(24), table.fire(5)), (Delivery::Ignored, Delivery::Ignored));
    assert_eq!(table.gsi_of_pin(Pin { chip: 2, pin: 5 }), None);
    assert!(recorder.data().is_empty() && recorder.edges().is_empty());
}

#[test]
fn g15_a_device_id_is_carried_and_not_judged() {
    let (recorder, table) = table();
    let message = MsiMessage::new(0xfee0_0000, 0x41).from_device(crate::DeviceId(0x18));
    table.set(&[RouteEntry { gsi: 24, route: Route::Msi(message) }]).unwrap();
    table.fire(24);
    assert_eq!(*recorder.messages.lock(), [message]);
    assert_eq!(table.entries(), [RouteEntry { gsi: 24, route: Route::Msi(message) }]);
}

#[test]
fn a_resolved_target_follows_each_change_of_the_route() {
    let (recorder, table) = table_with(RoutePolicy::S2_TABLE, true);
    table.set_msi(24, &MsiMessage::new(0, 0x41)).unwrap();
    table.fire(24);
    table.set_msi(24, &MsiMessage::new(0, 0x42)).unwrap();
    table.fire(24);
    table
        .update(&[RouteUpdate::Set { gsi: 24, routes: GsiRoutes::from_slice(&[Route::Pin(Pin { chip: 2, pin: 7 })]) }])
        .unwrap();
    table.fire(24);
    table.set_msi(24, &MsiMessage::new(0, 0x43)).unwrap();
    assert_eq!(table.gsi_of_pin(Pin { chip: 2, pin: 7 }), None);
    table.fire(24);
    assert_eq!(recorder.data(), [0x41, 0x42, 0x43]);
    assert_eq!(recorder.edges(), [(2, 7, 1, true), (2, 7, 1, false)]);
}

#[test]
fn line_calls_send_a_message_on_the_rising_call_only() {
    let (recorder, table) = table();
    table.set(&[msi(24, 0x41)]).unwrap();
    assert_eq!(table.line(24, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(table.line(24, LineSource::USER, false), Delivery::Ignored);
    assert_eq!(table.line(3000, LineSource::USER, true), Delivery::Ignored);
    assert_eq!(table.line(5000, LineSource::USER, true), Delivery::Ignored);
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn s2_line_goes_through_the_table_and_kvm_arm_does_not() {
    for (policy, expected) in [
        (RoutePolicy { lines: LineCalls::Direct(2), ..RoutePolicy::S2_TABLE }, vec![(2, 5, 1, true)]),
        (RoutePolicy::S2_TABLE, vec![(2, 9, 1, true)]),
    ] {
        let (recorder, table) = table_with(policy, false);
        table.set(&[pin(5, 2, 9)]).unwrap();
        table.line(5, LineSource::USER, true);
        assert_eq!(recorder.edges(), expected);
    }
}

#[test]
fn s2_ident_keeps_pins_and_takes_messages() {
    let policy =
        RoutePolicy { pins: PinRoutes::Identity(2), initial: Initial::Identity(2), lines: LineCalls::Routed, loans: 0 };
    let (recorder, table) = table_with(policy, false);
    assert_eq!(refused(table.set(&[pin(30, 2, 4)])), Errno::INVAL);
    assert_eq!(refused(table.set(&[msi(5, 0x41)])), Errno::INVAL);
    assert_eq!(refused(table.update(&[RouteUpdate::Remove { gsi: 5 }])), Errno::INVAL);
    table.set(&[msi(30, 0x41)]).unwrap();
    table.fire(5);
    table.fire(30);
    assert_eq!(recorder.edges(), [(2, 5, 1, true), (2, 5, 1, false)]);
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn no_table_no_injection() {
    let (recorder, table) = table_with(RoutePolicy::S2_TABLE, false);
    for gsi in 0..RouteTable::GSIS {
        assert_eq!(table.fire(gsi), Delivery::Ignored);
    }
    let (with_default, table) = table_with(RoutePolicy::KVM_X86, false);
    assert_eq!(table.fire(23), Delivery::Delivered(1));
    assert_eq!(table.fire(24), Delivery::Ignored);
    assert!(recorder.edges().is_empty());
    assert_eq!(with_default.edges(), [(2, 23, 1, true), (2, 23, 1, false)]);
}

#[test]
fn a_pcs_first_16_gsis_lead_to_the_8259_too() {
    let (recorder, table) = table_with(RoutePolicy::KVM_X86, false);
    for (gsi, chip, pin) in [(0, 0, 0), (7, 0, 7), (8, 1, 0), (15, 1, 7)] {
        assert_eq!(table.line(gsi, LineSource::USER, true), Delivery::Delivered(2));
        assert_eq!(recorder.edges(), [(2, gsi as u16, 1, true), (chip, pin, 1, true)]);
        assert_eq!(table.gsi_of_pin(Pin { chip, pin }), Some(gsi));
    }
    assert_eq!(table.line(16, LineSource::USER, true), Delivery::Delivered(1));
    assert_eq!(recorder.edges(), [(2, 16, 1, true)]);
}

#[test]
fn s5c_events_behind_the_mask_are_one_pending_bit() {
    let (recorder, table) = table();
    let gate = Gate::new(&table);
    table.set(&[msi(24, 0x41)]).unwrap();
    assert!(!gate.mask(24).unwrap());
    assert!(gate.mask(24).unwrap(), "was masked already");
    assert!(!gate.is_pending(24));
    assert_eq!(table.fire(24), Delivery::Ignored);
    assert_eq!(table.fire(24), Delivery::Coalesced);
    assert!(gate.is_pending(24) && gate.is_pending(24), "asking does not clear it");
    table.set_msi(24, &MsiMessage::new(0, 0x42)).unwrap();
    assert_eq!(gate.unmask(24).unwrap(), Some(Delivery::Delivered(1)));
    assert_eq!(gate.unmask(24).unwrap(), None);
    assert_eq!(recorder.data(), [0x42], "once, with the message of now");
    assert!(!gate.is_pending(24));
}

#[test]
fn s5c_a_masked_gsi_without_a_route_latches() {
    let (recorder, table) = table();
    let gate = Gate::new(&table);
    gate.mask(24).unwrap();
    table.fire(24);
    table.set(&[msi(24, 0x41)]).unwrap();
    assert!(gate.is_pending(24));
    gate.unmask(24).unwrap();
    assert_eq!(recorder.data(), [0x41]);
}

#[test]
fn s5c_a_level_line_is_taken_off_the_pin_and_shown_again() {
    let (recorder, table) = table();
    let gate = Gate::new(&table);
    table.set(&[pin(5, 2, 5)]).unwrap();
    table.line(5, LineSource::RESAMPLE, true);
    gate.mask(5).unwrap();
    assert!(gate.is_pending(5));
    table.line(5, LineSource::USER, true);
    table.line(5, LineSource::RESAMPLE, false);
    assert_eq!(recorder.edges(), [(2, 5, 2, true), (2, 5, 2, false)]);
    gate.unmask(5).unwrap();
    assert_eq!(recorder.edges(), [(2, 5, 1, true)]);
    gate.mask(5).unwrap();
    table.line(5, LineSource::USER, false);
    assert!(!gate.is_pending(5), "the condition is gone");
    assert_eq!(gate.unmask(5).unwrap(), None);
}

#[test]
fn s5c_sets_and_ranges() {
    let (recorder, table) = table();
    let gate = Gate::new(&table);
    table.set(&[msi(100, 1), msi(165, 2), msi(166, 3)]).unwrap();
    gate.mask_set(100, &[1, 0b10]).unwrap();
    for gsi in [100, 165, 166] {
        table.fire(gsi);
    }
    assert_eq!(recorder.data(), [3]);
    let mut bits = [u64::MAX; 2];
    gate.pending(100..4096, &mut bits);
    assert_eq!(bits, [1, 0b10]);
    gate.pending(101..165, &mut bits);
    assert_eq!(bits, [0, 0], "a range ends before its end");
    gate.unmask_set(100, &[1, 0b10]).unwrap();
    assert_eq!(recorder.data(), [1, 2]);
    assert_eq!(refused(gate.mask_set(4090, &[1 << 6])), Errno::INVAL);
    assert_eq!(refused(gate.mask_set(u32::MAX, &[2])), Errno::INVAL);
}

#[test]
fn loans_are_lazy_exclusive_and_come_back() {
    let (recorder, table) = table_with(RoutePolicy::KVM_X86, false);
    table.set(&[msi(24, 0x41)]).unwrap();
    let slot = table.lease().unwrap();
    assert!(slot.gsi > 24, "neither a pin's nor a routed GSI: {slot:?}");
    assert_eq!(refused(table.set(&[msi(slot.gsi, 1)])), Errno::BUSY);
    assert_eq!(refused(table.set_msi(slot.gsi, &MsiMessage::new(0, 1))), Errno::BUSY);
    assert_eq!(refused(Gate::new(&table).unmask(slot.gsi).map(drop)), Errno::BUSY);
    assert_eq!(VectorPath::fire(&table, slot), SlotFire::Pending, "masked until it has a message");
    table.set_message(slot, &MsiMessage::new(0, 0x51)).unwrap();
    assert_eq!(VectorPath::unmask(&table, slot), Some(Delivery::Delivered(1)));
    assert_eq!(VectorPath::fire(&table, slot), SlotFire::Sent(Delivery::Delivered(1)));
    assert_eq!(recorder.data(), [0x51, 0x51]);
    VectorPath::mask(&table, slot);
    VectorPath::fire(&table, slot);
    assert!(table.release(slot), "the event that nobody got");
    assert_eq!((table.lent(), table.release(slot)), (0, false));
}

#[test]
fn h_g_a_stale_slot_reaches_nobody() {
    let (recorder, table) = table();
    let old = table.lease().unwrap();
    let mut owner = VectorPath::own(&table, old).unwrap();
    table.release(old);
    let new = loop {
        let slot = table.lease().unwrap();
        if slot.gsi == old.gsi {
            break slot;
        }
        table.release(slot);
    };
    table.set_message(new, &MsiMessage::new(0, 0x61)).unwrap();
    assert_eq!(VectorPath::fire(&table, old), SlotFire::Stale);
    assert!(!table.is_pending(new), "not even behind the mask");
    VectorPath::unmask(&table, new);
    assert_eq!(VectorPath::fire(&table, old), SlotFire::Stale);
    assert_eq!(VectorPath::fire_owned(&table, old, &mut owner), SlotFire::Stale);
    assert_eq!(refused(table.set_message(old, &MsiMessage::new(0, 1))), Errno::INVAL);
    VectorPath::mask(&table, old);
    assert_eq!(VectorPath::fire(&table, new), SlotFire::Sent(Delivery::Delivered(1)), "not masked by the old slot");
    VectorPath::disown(&table, old, owner);
    assert_eq!(recorder.data(), [0x61]);
}

#[test]
fn all_gsis_can_be_lent_and_no_more() {
    let (_, table) = table();
    let slots: Vec<_> = (0..RouteTable::GSIS).map(|_| table.lease().unwrap()).collect();
    assert_eq!(table.lease().unwrap_err().errno(), Errno::NOSPC);
    assert!(!table.release(slots[77]));
    assert_eq!(table.lease().unwrap().gsi, 77);
}

#[test]
fn numbers_beyond_the_table_are_lent_and_never_routed() {
    let (recorder, table) = table_with(RoutePolicy { loans: 100, ..RoutePolicy::default() }, false);
    assert_eq!(table.numbers(), 4196);
    let slots: Vec<_> = (0..4196).map(|_| table.lease().unwrap()).collect();
    assert_eq!(table.lease().unwrap_err().errno(), Errno::NOSPC);
    let last = slots[4195];
    assert_eq!(last.gsi, 4195);
    table.set_message(last, &MsiMessage::new(0xfee0_0000, 0x41)).unwrap();
    assert_eq!(VectorPath::unmask(&table, last), None);
    assert_eq!(VectorPath::fire(&table, last), SlotFire::Sent(Delivery::Delivered(1)));
    assert_eq!(recorder.data(), [0x41]);
    assert!(!table.release(last));
    assert_eq!(table.fire(4195), Delivery::Ignored);
    assert_eq!(refused(table.update(&[msi_update(4195)])), Errno::INVAL);
    assert_eq!(refused(table.set(&[msi(4096, 1)])), Errno::INVAL);
    assert_eq!(table.lease().unwrap().gsi, 4195, "free again");
}

#[test]
fn there_are_65536_numbers_at_most() {
    let (_, table) = table_with(RoutePolicy { loans: u32::MAX, ..RoutePolicy::default() }, false);
    assert_eq!(table.numbers(), 65_536);
}

fn msi_update(gsi: u32) -> RouteUpdate {
    let routes = [Route::Msi(MsiMessage::new(0xfee0_0000, 0x42))];
    RouteUpdate::Set { gsi, routes: GsiRoutes::from_slice(&routes) }
}

#[test]
fn only_one_trigger_owns_a_gsi_and_all_of_them_deliver() {
    let (recorder, table) = table();
    let table = Arc::new(table);
    table.set(&[msi(24, 0x41)]).unwrap();
    let mut first = IrqTrigger::new(table.clone(), 24);
    let mut second = IrqTrigger::new(table.clone(), 24);
    assert!(table.own(24).is_none());
    first.fire();
    second.fire();
    first.share().fire();
    drop((first, second));
    assert!(table.own(24).is_some());
    assert_eq!(recorder.data().len(), 3);
}

/// Counts what arrives while the table is changed: [`h8_h9`].
#[derive(Default)]
struct Pairs {
    torn: AtomicU32,
    seen: [AtomicU32; 2],
}

impl MsiTarget for Pairs {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        let which = message.data as usize & 1;
        if message.address != 0x1000 + u64::from(message.data) {
            self.torn.fetch_add(1, Ordering::Relaxed);
        }
        self.seen[which].fetch_add(1, Ordering::Relaxed);
        Ok(Delivery::Delivered(1))
    }
    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }
    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

#[test]
fn h8_h9_a_storm_meets_the_old_or_the_new_route_and_after_the_call_only_the_new() {
    const CHANGES: u32 = 4_000;
    let target = Arc::new(Pairs::default());
    let table = Arc::new(RouteTable::new(target.clone(), Arc::new(NoPins), RoutePolicy::S2_TABLE));
    let message = |n: u32| MsiMessage::new(0x1000 + u64::from(n), n);
    table.set_msi(24, &message(0)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let fired = std::thread::scope(|scope| {
        let firers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut fired = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        table.fire(24);
                        fired += 1;
                    }
                    fired
                })
            })
            .collect();
        for change in 1..CHANGES {
            let (old, new) = ((change as usize + 1) & 1, change & 1);
            if change % 3 == 0 {
                table.set(&[RouteEntry { gsi: 24, route: Route::Msi(message(new)) }]).unwrap();
            } else {
                table.set_msi(24, &message(new)).unwrap();
            }
            let before = target.seen[old].load(Ordering::Relaxed);
            std::hint::spin_loop();
            assert_eq!(target.seen[old].load(Ordering::Relaxed), before, "a late delivery by the old route");
        }
        stop.store(true, Ordering::Relaxed);
        firers.into_iter().map(|firer| firer.join().unwrap()).sum::<u32>()
    });
    let seen: u32 = target.seen.iter().map(|seen| seen.load(Ordering::Relaxed)).sum();
    assert_eq!(target.torn.load(Ordering::Relaxed), 0);
    assert!(seen <= fired && seen > 0, "{seen} delivered of {fired}");
}

#[test]
fn a_saved_table_is_restored_with_its_masks_and_lines() {
    let (_, table) = table();
    let gate = Gate::new(&table);
    table.set(&[msi(24, 0x41), pin(5, 0, 5), pin(5, 2, 5), msi(25, 0x42)]).unwrap();
    table.line(5, LineSource::RESAMPLE, true);
    gate.mask(24).unwrap();
    table.fire(24);
    gate.mask(77).unwrap();
    let lent = table.lease().unwrap();
    let state = table.save();
    assert_eq!(state.gsis.iter().map(|gsi| gsi.gsi).collect::<Vec<_>>(), [5, 24, 25, 77]);

    let (recorder, restored) = table_with(RoutePolicy::S2_TABLE, false);
    restored.set(&[msi(100, 1)]).unwrap();
    restored.restore(&state).unwrap();
    assert_eq!(restored.save(), state);
    assert_eq!(restored.gsi_of_pin(Pin { chip: 2, pin: 5 }), Some(5));
    assert!(recorder.data().is_empty() && recorder.edges().is_empty(), "nothing is delivered by a restore");
    let gate = Gate::new(&restored);
    gate.unmask(24).unwrap();
    assert_eq!(recorder.data(), [0x41]);
    assert!(!gate.is_pending(77));
    assert_eq!(refused(table.restore(&state)), Errno::BUSY);
    table.release(lent);
    table.restore(&state).unwrap();
}

#[test]
fn a_forged_table_is_refused_and_changes_nothing() {
    let (_, table) = table();
    table.set(&[msi(24, 0x41)]).unwrap();
    let before = table.save();
    let good = |gsi| GsiState { gsi, routes: vec![msi(0, 1).route], masked: true, pending: true, line: 0 };
    let forged = [
        vec![good(4096)],
        vec![good(5), good(5)],
        vec![good(6), good(5)],
        vec![GsiState { masked: false, ..good(5) }],
        vec![GsiState { line: 1, ..good(5) }],
        vec![GsiState { routes: vec![msi(0, 1).route; 2], ..good(5) }],
        vec![GsiState { routes: vec![pin(0, 2, 24).route], ..good(5) }],
        vec![GsiState { routes: vec![pin(0, 2, 1).route; 5], ..good(5) }],
    ];
    for gsis in forged {
        let state = RouteTableState { gsis };
        assert_eq!(refused(table.restore(&state)), Errno::INVAL, "{state:?}");
        assert_eq!(table.save(), before);
    }
}
