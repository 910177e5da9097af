use super::*;

#[test]
fn a_saved_pair_goes_on_where_it_was() {
    let machine = machine();
    machine.out(&[(0x4d0, 0x20), (0x20, 0xc6), (0xa0, 0x0b), (0xa0, 0x0c), (0x20, 0x68), (0xa0, 0x80), (0x21, 0x10)]);
    machine.pic.set(0, 5, LineSource::RESAMPLE, true);
    machine.take();
    machine.pulse(6);
    machine.out(&[(0xa0, 0x11), (0xa1, 0x28)]);
    let ended = machine.pic.write(0x20, &[0x20]);
    let saved = machine.pic.save();
    assert!(saved.due && !saved.output && !ended.is_empty());
    let other = with(PicOptions::default());
    other.pic.restore(&saved).unwrap();
    assert_eq!((other.pic.save(), other.told()), (saved.clone(), vec![]));
    other.pic.settle(ended);
    assert_eq!((other.pic.output(), other.told()), (true, vec![true]));
    assert_eq!(other.pic.set(0, 5, LineSource::USER, true).status(), 0);
    assert_eq!(
        (other.pic.set(0, 5, LineSource::USER, false), other.pic.state(0).irr & 0x20),
        (Delivery::Coalesced, 0x20)
    );

    let mut refused = saved.clone();
    refused.chips[1].priority_add = 8;
    assert!(matches!(machine.pic.restore(&refused), Err(crate::Error::Snapshot(_))));
    assert_eq!(machine.pic.save(), saved, "nothing was changed");
    refused.chips[1].priority_add = 7;
    assert!(machine.pic.restore(&refused).is_ok());
}

#[test]
fn restoring_an_output_tells_it() {
    let machine = machine();
    let quiet = machine.pic.save();
    machine.pulse(3);
    let loud = machine.pic.save();
    machine.told();
    machine.pic.restore(&quiet).unwrap();
    machine.pic.restore(&loud).unwrap();
    machine.pic.restore(&loud).unwrap();
    assert_eq!(machine.told(), [false, true]);
    assert_eq!(machine.take(), Some(0x23));
}

#[test]
fn a_vmm_that_sets_the_state_tells_intr() {
    let machine = machine();
    machine.change(1, |state| state.irr = 0x40);
    assert_eq!((machine.told(), machine.take()), (vec![true], Some(0x2e)));
    machine.change(0, |state| state.priority_add = 0xfd);
    assert_eq!(machine.pic.state(0).priority_add, 5, "bits 7:3 mean nothing");
    assert!(format!("{:?}", machine.pic).contains("priority_add: 5"));
}

#[test]
fn what_icw1_left_as_it_was_is_brought_up_to_date() {
    let machine = machine();
    machine.pulse(9);
    machine.out(&[(0x20, 0x11)]);
    assert_eq!((machine.pic.state(0).irr, machine.pic.output()), (0, true), "as in KVM, INTR stays");
    machine.pic.refresh();
    assert_eq!((machine.pic.state(0).irr, machine.pic.output()), (0x04, true));
    let machine = self::machine();
    machine.pulse(3);
    machine.out(&[(0x20, 0x11)]);
    assert!(machine.pic.output());
    machine.pic.refresh();
    assert!(!machine.pic.output());
}
