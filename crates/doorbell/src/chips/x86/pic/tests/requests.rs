use super::*;

#[test]
fn p1_after_reset_everything_is_0() {
    let machine = with(PicOptions::default());
    let reset = [0xf8, 0xde].map(|elcr_mask| PicState { elcr_mask, ..PicState::default() });
    assert_eq!(machine.states(), reset);
    machine.initialise();
    machine.out(&[(0x21, 0xfa), (0x4d0, 0x20), (0x20, 0x6c)]);
    machine.pulse(2);
    machine.line(5, true);
    assert_eq!(machine.told(), [true]);
    machine.pic.reset();
    assert_eq!((machine.states(), machine.told()), (reset, vec![false]));
}

#[test]
fn p2_the_guest_makes_only_some_pins_level() {
    let machine = machine();
    machine.out(&[(0x4d0, 0xff), (0x4d1, 0xff)]);
    assert_eq!([machine.load(0x4d0), machine.load(0x4d1)], [0xf8, 0xde]);
    machine.out(&[(0x4d0, 0x10), (0x4d1, 0)]);
    assert_eq!([machine.load(0x4d0), machine.load(0x4d1)], [0x10, 0]);
    assert_eq!([0, 1].map(|chip| machine.pic.state(chip).elcr), [0x10, 0]);
}

#[test]
fn p3_an_edge_stays_when_its_line_falls() {
    let machine = machine();
    assert_eq!([machine.line(3, true), machine.line(3, true)], [1, 1], "the second is no edge");
    assert_eq!((machine.line(3, false), machine.load(0x20)), (1, 1 << 3));
    assert_eq!(machine.take_all(), [0x23]);
    assert_eq!((machine.load(0x20), machine.told()), (0, vec![true, false]));
}

#[test]
fn p4_a_second_edge_is_merged() {
    let machine = machine();
    assert_eq!([machine.pulse(3), machine.pulse(3)], [1, 0]);
    assert_eq!([machine.line(3, true), machine.line(3, false)], [0, 1]);
    assert_eq!(machine.take_all(), [0x23]);
    machine.end(0x23);
    assert_eq!(machine.take(), None, "once");
}

#[test]
fn p5_a_masked_pin_latches_and_is_offered_when_it_is_unmasked() {
    let machine = machine();
    machine.out(&[(0x21, 0x08)]);
    assert_eq!([machine.pulse(3), machine.pulse(3), machine.pulse(4)], [-1, -1, 1]);
    assert_eq!((machine.load(0x20), machine.load(0x21), machine.take()), (0x18, 0x08, Some(0x24)));
    assert_eq!(machine.told(), [true, false]);
    machine.out(&[(0x21, 0)]);
    assert_eq!((machine.told(), machine.take()), (vec![true], Some(0x23)));
}

#[test]
fn p6_a_level_pin_follows_its_line() {
    let machine = machine();
    machine.out(&[(0x4d0, 0x20)]);
    assert_eq!([machine.line(5, true), machine.line(5, true)], [1, 0]);
    assert_eq!(machine.take(), Some(0x25));
    assert_eq!(machine.load(0x20), 0x20, "it asks as long as it is high");
    machine.end(0x25);
    assert_eq!(machine.take(), Some(0x25), "again");
    assert_eq!((machine.line(5, false), machine.load(0x20)), (1, 0));
    machine.end(0x25);
    assert_eq!(machine.take(), None);
    assert_eq!((machine.pulse(5), machine.take()), (1, None), "nothing is left of a pulse");
}

#[test]
fn p7_the_slave_asks_through_pin_2_of_the_master() {
    let machine = machine();
    assert_eq!(machine.line(9, true), 1);
    assert_eq!(machine.states().map(|chip| chip.irr), [1 << 2, 1 << 1]);
    assert_eq!(machine.take(), Some(0x29));
    assert_eq!(machine.states().map(|chip| (chip.irr, chip.isr)), [(0, 1 << 2), (0, 1 << 1)]);
    machine.out(&[(0x20, 0x20), (0xa0, 0x20)]);
    assert_eq!(machine.states().map(|chip| chip.isr), [0, 0]);
}

#[test]
fn p8_an_acknowledge_of_nothing_is_spurious_irq_7_or_15() {
    let machine = machine();
    assert_eq!(machine.pic.acknowledge(), Acknowledged { vector: 0x27, ended: Ended::default() });
    assert_eq!(machine.states().map(|chip| chip.isr), [0, 0]);
    // The slave asked, and its pin is masked before the CPU comes.
    machine.pulse(9);
    machine.out(&[(0xa1, 0xff)]);
    assert_eq!(machine.take(), Some(0x2f));
    assert_eq!(machine.states().map(|chip| chip.isr), [1 << 2, 0], "the master served its pin");
}

#[test]
fn p9_an_acknowledge_moves_an_edge_into_service_and_leaves_a_level() {
    let machine = machine();
    machine.out(&[(0x4d0, 0x20)]);
    machine.line(5, true);
    machine.pulse(1);
    assert_eq!((machine.take(), machine.pic.state(0).irr, machine.pic.state(0).isr), (Some(0x21), 0x20, 0x02));
    machine.end(0x21);
    assert_eq!((machine.take(), machine.pic.state(0).irr, machine.pic.state(0).isr), (Some(0x25), 0x20, 0x20));
}

#[test]
fn p10_icw1_forgets_edges_and_masks_and_as_kvm_has_it_ends_only_those_edges() {
    let machine = machine();
    machine.out(&[(0x4d0, 0x20), (0x20, 0xc3), (0x20, 0x0b)]);
    assert_eq!(machine.pic.state(0).priority_add, 4);
    machine.pulse(6);
    assert_eq!(machine.take(), Some(0x26));
    machine.pulse(4);
    assert_eq!(machine.take(), Some(0x24), "both in service");
    machine.line(4, true);
    machine.line(5, true);
    machine.out(&[(0x21, 0x80)]);
    let ended = machine.pic.write(0x20, &[0x11]);
    assert_eq!(ended.chips().collect::<Vec<_>>(), [(0, Pins::from_slice(&[4]))]);
    let state = machine.pic.state(0);
    assert_eq!((state.irr, state.last_irr, state.imr, state.isr, state.priority_add), (0x20, 0, 0, 0x40, 0));
    assert_eq!((state.read_isr, state.init_state, state.fourth_follows, state.irq_base), (false, 1, true, 0x20));
    // The line of pin 4 is still high, but the edge detector has forgotten it.
    assert_eq!((machine.line(4, true), machine.pic.state(0).irr), (1, 0x30));
}

#[test]
fn icw1_that_no_cpu_hears_ends_nothing() {
    struct Unheard;
    impl Intr for Unheard {
        fn set(&self, _: bool) {}
        fn is_heard(&self) -> bool {
            false
        }
    }
    let pic = Pic::new(Unheard, PicOptions::default());
    pic.set_state(0, &PicState { irr: 0x0a, isr: 0x08, ..PicState::default() });
    assert!(pic.write(0x20, &[0x11]).is_empty());
    assert_eq!((pic.state(0).irr, pic.state(0).isr), (0, 0x08));
}

#[test]
fn p11_a_pin_in_service_blocks_itself_and_those_below() {
    let machine = machine();
    machine.pulse(4);
    assert_eq!(machine.take(), Some(0x24));
    for pin in [7, 4, 5] {
        machine.pulse(pin);
    }
    assert_eq!((machine.take(), machine.pulse(3), machine.take()), (None, 1, Some(0x23)));
    machine.end(0x23);
    assert_eq!(machine.take(), None, "4 is still in service");
    machine.end(0x24);
    assert_eq!(machine.take_all(), [0x24]);
    machine.end(0x24);
    assert_eq!(machine.take_all(), [0x25]);
}
