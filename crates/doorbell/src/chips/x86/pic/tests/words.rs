use super::*;

#[test]
fn initialisation_takes_three_words_or_four() {
    let machine = with(PicOptions::default());
    machine.out(&[(0x20, 0x10), (0x21, 0xff), (0x21, 0x55), (0x21, 0xa5)]);
    let state = machine.pic.state(0);
    assert_eq!((state.irq_base, state.imr, state.init_state), (0xf8, 0xa5, 0), "without ICW4, the third is the mask");
    machine.out(&[(0xa0, 0x11), (0xa1, 0x70), (0xa1, 2), (0xa1, 0x12), (0xa1, 0x5a)]);
    let state = machine.pic.state(1);
    assert_eq!((state.irq_base, state.imr, state.init_state), (0x70, 0x5a, 0));
    assert_eq!((state.fully_nested, state.auto_eoi), (true, true));
    machine.out(&[(0xa0, 0x10)]);
    let state = machine.pic.state(1);
    assert_eq!((state.fully_nested, state.auto_eoi, state.imr), (false, false, 0), "without ICW4, its modes are off");
    machine.out(&[(0xa1, 0x70), (0xa1, 2), (0xa0, 0x11), (0xa1, 0x70), (0xa1, 2), (0xa1, 0x10)]);
    let state = machine.pic.state(1);
    assert_eq!((state.fully_nested, state.auto_eoi), (true, false));
    // KVM takes any byte from a VMM, and then no more words.
    machine.change(1, |state| state.init_state = 4);
    machine.out(&[(0xa1, 0x33)]);
    assert_eq!((machine.pic.state(1).init_state, machine.pic.state(1).imr), (4, 0));
}

#[test]
fn specific_ends_name_their_pin() {
    let machine = machine();
    for pin in [6, 3] {
        machine.pulse(pin);
        assert_eq!(machine.take(), Some(0x20 + pin as u8));
    }
    let ended = machine.pic.write(0x20, &[0x66]);
    assert_eq!(ended.chips().collect::<Vec<_>>(), [(0, Pins::from_slice(&[6]))]);
    machine.pic.settle(ended);
    assert_eq!(machine.pic.state(0).isr, 0x08);
    let ended = machine.pic.write(0xa0, &[0x65]);
    assert_eq!(
        ended.chips().collect::<Vec<_>>(),
        [(1, Pins::from_slice(&[5]))],
        "as in KVM, whether it was in service or not"
    );
    assert!(machine.pic.write(0xa0, &[0x20]).is_empty(), "but nothing in service, nothing ended");
    assert!(machine.pic.write(0x20, &[0x40]).is_empty(), "no operation");
    assert_eq!(machine.pic.state(0).isr, 0x08);
}

#[test]
fn ocw3_chooses_what_is_read() {
    let machine = machine();
    machine.pulse(1);
    machine.take();
    machine.pulse(6);
    assert_eq!(machine.load(0x20), 0x40);
    machine.out(&[(0x20, 0x0b)]);
    assert_eq!([machine.load(0x20), machine.load(0x20)], [0x02, 0x02]);
    machine.out(&[(0x20, 0x08)]);
    assert_eq!((machine.load(0x20), machine.load(0xa0)), (0x02, 0), "without bit 1, the choice stays");
    machine.out(&[(0x20, 0x0a)]);
    assert_eq!(machine.load(0x20), 0x40);
}

#[test]
fn a_poll_takes_and_as_in_kvm_ends_what_asks() {
    let machine = machine();
    machine.out(&[(0x20, 0x0c)]);
    assert_eq!([machine.load(0x20), machine.load(0x20)], [0x07, 0], "nothing, once");
    machine.pulse(6);
    machine.pulse(3);
    machine.told();
    machine.out(&[(0x20, 0x0c)]);
    let mut byte = [0];
    let ended = machine.pic.read(0x21, &mut byte);
    assert_eq!(
        (byte, ended.chips().collect::<Vec<_>>()),
        ([0x83], vec![(0, Pins::from_slice(&[3]))]),
        "by either port"
    );
    machine.pic.settle(ended);
    assert_eq!((machine.pic.state(0).irr, machine.pic.state(0).isr, machine.told()), (0x40, 0, vec![]));
    machine.out(&[(0x20, 0x0c)]);
    assert_eq!((machine.load(0x20), machine.told()), (0x86, vec![false]));
}

#[test]
fn a_poll_of_the_slave_clears_the_masters_pin_and_one_of_the_master_leaves_the_slave_to_be_polled() {
    let machine = machine();
    machine.pulse(9);
    machine.out(&[(0xa0, 0x0c)]);
    assert_eq!(
        (machine.load(0xa0), machine.states().map(|chip| chip.irr), machine.pic.output()),
        (0x81, [0, 0], false)
    );
    machine.pulse(10);
    machine.out(&[(0x20, 0x0c)]);
    assert_eq!((machine.load(0x20), machine.states().map(|chip| chip.irr)), (0x82, [0, 0x04]));
    assert!(machine.pic.output(), "not yet brought up to date");
    machine.out(&[(0xa0, 0x0c)]);
    assert_eq!(
        (machine.load(0xa0), machine.states().map(|chip| chip.irr), machine.pic.output()),
        (0x82, [0, 0], false)
    );
    assert_eq!(machine.states().map(|chip| chip.isr), [0, 0]);
}

#[test]
fn other_ports_widths_chips_and_pins_are_ignored() {
    let machine = machine();
    let before = machine.states();
    for (port, data) in [(0x21, &[0xff, 0xff][..]), (0x21, &[]), (0x22, &[0xff]), (0x4d2, &[0xff]), (0x121, &[0xff])] {
        assert!(machine.pic.write(port, data).is_empty());
    }
    let mut word = [0xaa; 2];
    assert!(machine.pic.read(0x21, &mut word).is_empty());
    assert_eq!(word, [0, 0]);
    let mut byte = [0];
    assert!(machine.pic.read(0x22, &mut byte).is_empty());
    assert_eq!(byte, [0xff]);
    assert_eq!([0, 1, 2].map(|chip| machine.pic.pins(chip)), [8, 8, 0]);
    for (chip, pin) in [(0, 8), (1, 8), (2, 0), (255, 0)] {
        assert_eq!(machine.pic.set(chip, pin, LineSource::USER, true), Delivery::Ignored);
        assert_eq!(machine.pic.pulse(chip, pin, LineSource::USER), Delivery::Ignored);
    }
    assert_eq!(machine.states(), before);
}
