use super::*;

#[test]
fn strict_special_mask_mode_lets_lower_pins_through_while_the_one_in_service_is_masked() {
    let machine = strict();
    machine.pulse(3);
    machine.take();
    machine.pulse(5);
    machine.out(&[(0x20, 0x68)]);
    assert_eq!(machine.take(), None, "not masked");
    machine.out(&[(0x21, 0x08)]);
    assert_eq!((machine.take(), machine.pic.state(0).isr), (Some(0x25), 0x28));
    machine.out(&[(0x20, 0x20)]);
    assert_eq!(machine.pic.state(0).isr, 0x08, "the masked one has to be ended by name");
    machine.out(&[(0x20, 0x20)]);
    assert_eq!(machine.pic.state(0).isr, 0x08);
    machine.out(&[(0x20, 0x63)]);
    assert_eq!(machine.pic.state(0).isr, 0);
}

#[test]
fn strict_icw1_ends_what_is_in_service() {
    let machine = strict();
    machine.pulse(6);
    machine.take();
    machine.pulse(3);
    machine.told();
    let ended = machine.pic.write(0x20, &[0x11]);
    assert_eq!(ended.chips().collect::<Vec<_>>(), [(0, Pins::from_slice(&[6]))]);
    machine.pic.settle(ended);
    assert_eq!((machine.pic.state(0).isr, machine.pic.state(0).irr, machine.told()), (0, 0, vec![false]));
    // The slave is not touched by the master's.
    let machine = strict();
    machine.pulse(9);
    machine.take();
    machine.out(&[(0x20, 0x11)]);
    assert_eq!(machine.states().map(|chip| chip.isr), [0, 0x02]);
}

#[test]
fn strict_a_request_of_the_slave_is_withdrawn_with_its_cause() {
    let machine = strict();
    machine.out(&[(0x4d1, 0x02)]);
    machine.line(9, true);
    assert_eq!((machine.pic.state(0).irr, machine.pic.output()), (0x04, true));
    machine.line(9, false);
    assert_eq!((machine.pic.state(0).irr, machine.told()), (0, vec![true, false]));
    // KVM leaves the CPU a spurious interrupt instead.
    let machine = self::machine();
    machine.out(&[(0x4d1, 0x02)]);
    machine.line(9, true);
    machine.line(9, false);
    assert_eq!(machine.take(), Some(0x2f));
}

#[test]
fn strict_a_poll_leaves_its_pin_in_service() {
    let machine = strict();
    machine.pulse(3);
    machine.out(&[(0x20, 0x0c)]);
    assert_eq!((machine.load(0x20), machine.pic.state(0).isr, machine.pic.output()), (0x83, 0x08, false));
    machine.end(0x23);
    assert_eq!(machine.pic.state(0).isr, 0);
}

#[test]
fn strict_a_masked_request_of_the_slave_is_withdrawn_with_its_cause_too() {
    let machine = strict();
    machine.out(&[(0x21, 0x04)]);
    machine.line(9, true);
    assert_eq!(machine.load(0x20), 0x04);
    machine.out(&[(0xa0, 0x0b)]);
    machine.change(1, |slave| slave.isr = 0x08);
    machine.out(&[(0xa0, 0x11)]);
    assert_eq!(machine.load(0x20), 0, "ICW1 forgot the slave's edge");
}
