//! GSIs on loan, through the calls that a device makes.

use super::*;
use crate::VectorSlot;

fn message(data: u32) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, data)
}

#[test]
fn a_gsi_that_comes_back_rests_before_it_is_lent_again() {
    let (_, table) = table();
    for gsi in 0..4 {
        let slot = table.lease().unwrap();
        assert_eq!(slot.gsi, gsi);
        table.release(slot);
    }
    assert_eq!(table.lent(), 0);
    let slots: Vec<_> = (4..RouteTable::GSIS).map(|_| table.lease().unwrap()).collect();
    assert_eq!((slots[0].gsi, slots.last().unwrap().gsi, table.lent()), (4, 4095, 4092));
    assert_eq!(table.lease().unwrap().gsi, 0, "round the end");
}

#[test]
fn the_gsis_of_pins_are_never_lent_even_when_they_lead_nowhere() {
    let (_, table) = table_with(RoutePolicy::KVM_X86, false);
    table.set(&[msi(24, 1)]).unwrap();
    table.set(&[]).unwrap();
    let lent: Vec<_> = std::iter::from_fn(|| table.lease().ok()).map(|slot| slot.gsi).collect();
    assert_eq!(lent, (24..RouteTable::GSIS).collect::<Vec<_>>());
    assert!(matches!(table.lease(), Err(Error::NoFreeGsi(4096))));
}

#[test]
fn a_stale_slot_ends_nobodys_loan() {
    let (_, table) = table();
    let slot = table.lease().unwrap();
    for stale in
        [VectorSlot { tag: slot.tag + 1, ..slot }, VectorSlot { tag: 0, ..slot }, VectorSlot { gsi: 1, ..slot }]
    {
        assert!(!table.release(stale) && table.reclaim(stale).is_none(), "{stale:?}");
        assert!(!table.is_current(stale) && !table.is_pending(stale), "{stale:?}");
        assert!(VectorPath::own(&table, stale).is_none(), "{stale:?}");
    }
    assert!(!table.is_current(VectorSlot { gsi: 4096, ..slot }));
    assert!(!table.is_current(VectorSlot { gsi: 7, tag: 0 }), "a GSI that nobody has on loan");
    assert_eq!((table.lent(), table.is_current(slot)), (1, true));
}

#[test]
fn only_a_masked_slot_is_reclaimed_and_its_event_is_told() {
    let (recorder, table) = table();
    let [open, quiet, due] = [(); 3].map(|()| table.lease().unwrap());
    table.set_messages(&[(open, message(1)), (quiet, message(2)), (due, message(3))]).unwrap();
    VectorPath::unmask(&table, open);
    VectorPath::fire(&table, due);
    assert_eq!([open, quiet, due].map(|slot| table.is_pending(slot)), [false, false, true]);
    assert_eq!([open, quiet, due].map(|slot| table.reclaim(slot)), [None, Some(false), Some(true)]);
    assert_eq!([open, quiet, due].map(|slot| table.is_current(slot)), [true, false, false]);
    assert_eq!(VectorPath::fire(&table, open), SlotFire::Sent(Delivery::Delivered(1)));
    assert_eq!((recorder.data(), table.lent()), (vec![1], 1));
}

#[test]
fn a_batch_with_a_stale_slot_gives_no_slot_its_message() {
    let (recorder, table) = table();
    let [first, second] = [(); 2].map(|()| table.lease().unwrap());
    table.set_messages(&[(first, message(1)), (second, message(2))]).unwrap();
    table.release(second);
    assert_eq!(refused(table.set_messages(&[(first, message(3)), (second, message(4))])), Errno::INVAL);
    VectorPath::unmask(&table, first);
    VectorPath::fire(&table, first);
    assert_eq!(recorder.data(), [1]);
}

#[test]
fn a_route_cannot_replace_the_message_of_a_loan() {
    let (recorder, table) = table();
    let slot = table.lease().unwrap();
    table.set_message(slot, &message(1)).unwrap();
    assert_eq!(refused(table.set_msi(slot.gsi, &message(2))), Errno::BUSY);
    VectorPath::unmask(&table, slot);
    assert_eq!(VectorPath::fire(&table, slot), SlotFire::Sent(Delivery::Delivered(1)));
    assert_eq!(recorder.data(), [1]);
}

#[test]
fn an_owner_of_a_slot_is_alone_until_it_gives_up() {
    let (_, table) = table();
    let slot = table.lease().unwrap();
    let owner = VectorPath::own(&table, slot).unwrap();
    assert!(VectorPath::own(&table, slot).is_none());
    VectorPath::disown(&table, slot, owner);
    assert!(VectorPath::own(&table, slot).is_some());
}
