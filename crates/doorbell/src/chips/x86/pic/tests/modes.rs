use super::*;

/// The order in which the pins of a chip are taken, all of them asking at once.
fn order(machine: &Machine) -> Vec<u8> {
    for pin in [0, 1, 3, 4, 5, 6, 7] {
        machine.pulse(pin);
    }
    let take = || {
        let vector = machine.take()?;
        machine.end(vector);
        Some(vector & 7)
    };
    std::iter::from_fn(take).collect()
}

#[test]
fn the_lowest_priority_can_be_set() {
    let machine = machine();
    assert_eq!(order(&machine), [0, 1, 3, 4, 5, 6, 7]);
    machine.out(&[(0x20, 0xc4)]);
    assert_eq!((order(&machine), machine.pic.state(0).priority_add), (vec![5, 6, 7, 0, 1, 3, 4], 5));
    machine.out(&[(0x20, 0xc7)]);
    assert_eq!((order(&machine), machine.pic.state(0).priority_add), (vec![0, 1, 3, 4, 5, 6, 7], 0));
}

#[test]
fn setting_the_lowest_priority_lets_a_blocked_pin_through() {
    let machine = machine();
    machine.pulse(3);
    machine.take();
    machine.pulse(5);
    assert_eq!(machine.take(), None);
    machine.told();
    machine.out(&[(0x20, 0xc3)]);
    assert_eq!((machine.told(), machine.take()), (vec![true], Some(0x25)));
}

#[test]
fn ends_rotate_if_asked_to() {
    let machine = machine();
    machine.pulse(5);
    machine.take();
    machine.out(&[(0x20, 0xa0)]);
    assert_eq!((machine.pic.state(0).priority_add, machine.pic.state(0).isr), (6, 0), "non-specific");
    assert_eq!(order(&machine), [6, 7, 0, 1, 3, 4, 5]);
    machine.pulse(1);
    machine.take();
    machine.pulse(7);
    assert_eq!(machine.take(), Some(0x27), "7 before 1 now");
    machine.out(&[(0x20, 0xa0)]);
    assert_eq!((machine.pic.state(0).priority_add, machine.pic.state(0).isr), (0, 0x02), "what ended is the highest");
    machine.out(&[(0x20, 0xe1)]);
    assert_eq!((machine.pic.state(0).priority_add, machine.pic.state(0).isr), (2, 0), "specific");
    machine.out(&[(0x20, 0xa0)]);
    assert_eq!(machine.pic.state(0).priority_add, 2, "nothing ended, nothing rotates");
}

#[test]
fn automatic_ends_come_with_the_acknowledge_and_rotate_if_asked_to() {
    let machine = machine();
    machine.out(&[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 0x03)]);
    machine.pulse(4);
    let taken = machine.pic.acknowledge();
    assert_eq!((taken.vector, taken.ended.chips().collect::<Vec<_>>()), (0x24, vec![(0, Pins::from_slice(&[4]))]));
    assert_eq!((machine.pic.state(0).isr, machine.pic.output()), (0, true), "INTR follows when the end is settled");
    machine.pic.settle(taken.ended);
    assert!(!machine.pic.output());
    assert_eq!(order(&machine), [0, 1, 3, 4, 5, 6, 7]);
    machine.out(&[(0x20, 0x80)]);
    assert_eq!(order(&machine), [0, 1, 3, 4, 5, 6, 7]);
    assert_eq!(
        (machine.pic.state(0).priority_add, machine.pic.state(0).rotate_on_auto_eoi),
        (0, true),
        "7 was the last"
    );
    machine.pulse(3);
    machine.take();
    assert_eq!((order(&machine), machine.pic.state(0).priority_add), (vec![4, 5, 6, 7, 0, 1, 3], 4));
    machine.out(&[(0x20, 0)]);
    assert!(!machine.pic.state(0).rotate_on_auto_eoi);
    machine.pulse(6);
    machine.take();
    assert_eq!(machine.pic.state(0).priority_add, 4);
}

#[test]
fn an_automatic_end_of_the_slave_names_both_pins_the_slaves_first() {
    let machine = machine();
    machine.change(0, |state| state.auto_eoi = true);
    machine.change(1, |state| state.auto_eoi = true);
    machine.pulse(12);
    let ended: Vec<_> = machine.pic.acknowledge().ended.chips().collect();
    assert_eq!(ended, [(1, Pins::from_slice(&[4])), (0, Pins::from_slice(&[2]))]);
}

#[test]
fn in_special_fully_nested_mode_the_slave_interrupts_itself() {
    for (icw4, second) in [(0x01, None), (0x11, Some(0x29))] {
        let machine = machine();
        machine.out(&[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, icw4)]);
        machine.pulse(12);
        assert_eq!(machine.take(), Some(0x2c));
        machine.pulse(9);
        assert_eq!(machine.take(), second, "of higher priority on the slave");
        machine.pulse(13);
        assert_eq!(machine.take(), None, "of lower priority there");
    }
    // The mode is the master's: on the slave it changes nothing.
    let machine = machine();
    machine.out(&[(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 0x11)]);
    machine.pulse(10);
    machine.take();
    machine.pulse(10);
    machine.out(&[(0x20, 0x20)]);
    assert_eq!(machine.take(), None);
}

#[test]
fn as_in_kvm_special_mask_mode_is_kept_and_means_nothing() {
    let machine = machine();
    machine.pulse(3);
    machine.take();
    machine.out(&[(0x20, 0x68), (0x21, 0x08)]);
    assert!(machine.pic.state(0).special_mask);
    machine.pulse(5);
    assert_eq!(machine.take(), None);
    machine.out(&[(0x20, 0x28)]);
    assert!(machine.pic.state(0).special_mask, "bit 6 says whether bit 5 counts");
    machine.out(&[(0x20, 0x48)]);
    assert!(!machine.pic.state(0).special_mask);
}
