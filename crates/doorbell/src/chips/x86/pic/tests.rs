use std::sync::{Arc, Mutex};

use super::*;

/// What INTR was told, in order.
type Told = Arc<Mutex<Vec<bool>>>;

struct Machine {
    pic: Pic,
    told: Told,
}

fn with(options: PicOptions) -> Machine {
    let told = Told::default();
    let wire = Arc::clone(&told);
    Machine { pic: Pic::new(move |level| wire.lock().unwrap().push(level), options), told }
}

/// Vectors 0x20 to 0x2f, nothing masked.
fn machine() -> Machine {
    let machine = with(PicOptions::default());
    machine.initialise();
    machine
}

fn strict() -> Machine {
    let machine = with(PicOptions { strict: true });
    machine.initialise();
    machine
}

impl Machine {
    fn initialise(&self) {
        let words =
            [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)];
        self.out(&words);
        self.out(&[(0x21, 0), (0xa1, 0)]);
    }

    fn out(&self, words: &[(u16, u8)]) {
        for &(port, byte) in words {
            self.pic.settle(self.pic.write(port, &[byte]));
        }
    }

    fn load(&self, port: u16) -> u8 {
        let mut byte = [0];
        self.pic.settle(self.pic.read(port, &mut byte));
        byte[0]
    }

    /// A line call, as KVM answers it.
    fn line(&self, pin: u16, level: bool) -> i32 {
        self.pic.set((pin / 8) as ChipId, pin % 8, LineSource::USER, level).status()
    }

    fn pulse(&self, pin: u16) -> i32 {
        self.pic.pulse((pin / 8) as ChipId, pin % 8, LineSource::USER).status()
    }

    /// What the CPU takes while INTR is high.
    fn take(&self) -> Option<u8> {
        self.pic.output().then(|| {
            let taken = self.pic.acknowledge();
            self.pic.settle(taken.ended);
            taken.vector
        })
    }

    /// Everything that the CPU can take without an end.
    fn take_all(&self) -> Vec<u8> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Non-specific ends, on the slave too if the vector was its.
    fn end(&self, vector: u8) {
        if vector >= 0x28 {
            self.out(&[(0xa0, 0x20)]);
        }
        self.out(&[(0x20, 0x20)]);
    }

    fn told(&self) -> Vec<bool> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn states(&self) -> [PicState; 2] {
        [0, 1].map(|chip| self.pic.state(chip))
    }

    /// Sets both chips as a VMM does.
    fn change(&self, chip: ChipId, change: impl FnOnce(&mut PicState)) {
        let mut state = self.pic.state(chip);
        change(&mut state);
        self.pic.set_state(chip, &state);
    }
}

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
fn a_line_is_the_or_of_its_sources() {
    let machine = machine();
    let set = |source, level| machine.pic.set(1, 3, source, level).status();
    assert_eq!([set(LineSource::USER, true), set(LineSource::RESAMPLE, true)], [1, 1]);
    assert_eq!((set(LineSource::USER, false), machine.pic.state(1).last_irr), (1, 0x08));
    assert_eq!(machine.pic.pulse(1, 3, LineSource::USER).status(), 1, "no edge: it is high");
    assert_eq!(machine.pic.state(1).last_irr, 0x08);
    assert_eq!((set(LineSource::RESAMPLE, false), machine.pic.state(1).last_irr), (1, 0));
    assert_eq!(machine.pic.pulse(1, 3, LineSource::USER).status(), 0, "an edge, merged");
    // A pulse ends low, whatever its source was before.
    set(LineSource::USER, true);
    machine.pic.pulse(1, 3, LineSource::USER);
    assert_eq!(machine.pic.state(1).last_irr, 0);
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

#[test]
fn what_still_asks_after_an_end_is_offered_by_the_reevaluation_only() {
    let machine = machine();
    machine.pulse(3);
    machine.take();
    machine.pulse(5);
    machine.told();
    let ended = machine.pic.write(0x20, &[0x20]);
    assert_eq!((machine.pic.output(), machine.told()), (false, vec![]));
    machine.pic.reevaluate(2, &Pins::new());
    assert!(!machine.pic.output(), "another chip's");
    for (chip, pins) in ended.chips() {
        machine.pic.reevaluate(chip, &pins);
    }
    assert_eq!((machine.pic.output(), machine.told()), (true, vec![true]));
    machine.pic.reevaluate(0, &Pins::from_slice(&[3]));
    assert_eq!(machine.told(), [], "once");
}

/// R2 for a level pin of the slave: its line falls between the end and the re-evaluation, and nothing is left behind.
#[test]
fn a_line_that_falls_at_its_end_leaves_no_request_of_the_slave() {
    let machine = machine();
    machine.out(&[(0x4d1, 0x08)]);
    machine.line(11, true);
    assert_eq!(machine.take(), Some(0x2b));
    machine.out(&[(0x20, 0x20)]);
    let ended = machine.pic.write(0xa0, &[0x20]);
    machine.line(11, false);
    machine.pic.settle(ended);
    assert_eq!((machine.states().map(|chip| chip.irr), machine.take()), ([0, 0], None));
}

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

/// Threads drive all pins while another takes and ends: each edge that was not merged arrives once, and INTR is low in the
/// end because nothing is left.
#[test]
fn no_edge_is_lost_in_a_storm() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const PULSES: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    let level = Arc::new(AtomicBool::new(false));
    let wire = Arc::clone(&level);
    let pic = Pic::new(
        move |level| assert_ne!(wire.swap(level, Ordering::SeqCst), level, "each change once"),
        PicOptions::default(),
    );
    let machine = Machine { pic, told: Told::default() };
    machine.initialise();
    let (pins, running) = ([0u16, 1, 3, 8, 9, 15], AtomicU64::new(6));
    let sent: [AtomicU64; 16] = std::array::from_fn(|_| AtomicU64::new(0));
    let mut taken = [0u64; 16];
    std::thread::scope(|scope| {
        for &pin in &pins {
            let (machine, sent, running) = (&machine, &sent, &running);
            scope.spawn(move || {
                for turn in 0..PULSES {
                    // Both ways of making an edge.
                    let delivery = if turn % 2 == 0 {
                        machine.pulse(pin)
                    } else {
                        let delivery = machine.line(pin, true);
                        machine.line(pin, false);
                        delivery
                    };
                    match delivery {
                        1 => drop(sent[usize::from(pin)].fetch_add(1, Ordering::Relaxed)),
                        0 => {}
                        other => assert_eq!(other, -1, "masked"),
                    }
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut turns = 0u32;
        loop {
            let over = running.load(Ordering::SeqCst) == 0;
            if level.load(Ordering::SeqCst) {
                let acknowledged = machine.pic.acknowledge();
                machine.pic.settle(acknowledged.ended);
                let pin = usize::from(acknowledged.vector - 0x20);
                taken[pin] += 1;
                machine.end(acknowledged.vector);
                turns += 1;
                if turns % 64 == 0 {
                    // Configuration in between: another order.
                    machine.out(&[(0x20, 0xc0 | (turns / 64 % 8) as u8)]);
                }
            } else if over {
                break;
            } else {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(machine.states().map(|chip| (chip.irr, chip.isr)), [(0, 0), (0, 0)]);
    for (pin, (sent, taken)) in sent.iter().zip(taken).enumerate() {
        assert_eq!(taken, sent.load(Ordering::Relaxed), "pin {pin}");
    }
}
