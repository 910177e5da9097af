//! Both sides of each boundary, and what is not done.

use super::*;

/// Resolves every message to its vector, and counts how often.
#[derive(Default)]
struct Resolver {
    prepared: AtomicU32,
    fired: Mutex<Vec<u32>>,
}

impl MsiTarget for Resolver {
    fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
        unreachable!("every message can be resolved")
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        Target::new(message.data & 0xff)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.fired.lock().unwrap().push(target.bits());
        Delivery::Delivered(1)
    }
}

#[test]
fn a_message_is_resolved_when_its_entry_changes_and_at_no_other_time() {
    let target = Arc::new(Resolver::default());
    let ioapic = IoApic::new(target.clone(), IoApicOptions::default());
    let prepared = || target.prepared.swap(0, Ordering::Relaxed);
    let pulse = || ioapic.pulse(CHIP, 3, LineSource::USER);
    assert_eq!(guest_store(&ioapic, 3, 0x41), Effect::None);
    assert_eq!((prepared(), pulse()), (1, Delivery::Delivered(1)));
    for masked in [MASKED, 0] {
        assert_eq!(guest_store(&ioapic, 3, 0x41 | masked), Effect::None);
    }
    set_redirection(&ioapic, 3, 0x41 | REMOTE_IRR);
    set_redirection(&ioapic, 3, 0x41);
    assert_eq!(prepared(), 0, "neither the mask nor a read-only bit is part of the message");
    assert_eq!(guest_store(&ioapic, 3, 0x42), Effect::None);
    assert_eq!((prepared(), pulse()), (1, Delivery::Delivered(1)));
    assert_eq!(*target.fired.lock().unwrap(), [0x41, 0x42]);
}

#[test]
fn there_is_no_pin_24() {
    let (_, ioapic) = chip();
    let entry = RedirectionEntry::from_bits(0x41);
    for pin in [24, 25, usize::MAX] {
        assert_eq!(ioapic.write_entry(pin, entry), Effect::None);
        assert_eq!(ioapic.entry(pin).into_bits(), u64::MAX);
    }
    assert_eq!(ioapic.write_entry(23, entry), Effect::None);
    assert_eq!(ioapic.entry(23), entry);
}

#[test]
fn the_id_register_shows_four_bits_of_the_id_that_the_vmm_set() {
    let (_, ioapic) = chip();
    ioapic.set_state(&IoApicState { id: 0x1f5, ..ioapic.state() });
    for index in [ID, ARBITRATION] {
        assert_eq!(ioapic.write(INDEX, index), Effect::None);
        assert_eq!(ioapic.read(WINDOW), 0x0500_0000);
    }
    assert_eq!(ioapic.state().id, 0x1f5);
    assert!(format!("{ioapic:?}").contains("id: 501"), "{ioapic:?}");
}

#[test]
fn only_the_clock_of_a_chip_that_accounts_for_it_is_heard_among_edges() {
    // A clock that is accounted for; the pins with the vector; whether an end reaches them.
    for (accounted, numbers, reached) in [(true, [8, 5], true), (true, [6, 5], false), (false, [8, 5], false)] {
        let (_, mut ioapic) = chip();
        if accounted {
            ioapic = with_apics(1).2;
        }
        for pin in numbers {
            set_redirection(&ioapic, pin, 0xe2 | REMOTE_IRR | MASKED);
        }
        assert_eq!(ioapic.end(0xe2).len(), 2);
        for pin in numbers {
            assert_eq!(ioapic.entry(pin).remote_irr(), !reached, "{accounted} {numbers:?} pin {pin}");
        }
    }
}

#[test]
fn the_clock_is_recounted_for_one_cpu_alone() {
    let (_, cpus, ioapic) = with_apics(2);
    let count = |only| ioapic.recount_clock(only, |vcpu, vector| (vcpu, vector) == (VcpuId(1), 0x70));
    set_redirection(&ioapic, 8, 0xff << 56 | 0x70);
    count(Some(VcpuId(0)));
    assert_eq!(line(&ioapic, 8, true), 2, "the other one was not looked at");
    set_redirection(&ioapic, 8, 0xff << 56 | 0x70);
    count(Some(VcpuId(1)));
    assert_eq!(line(&ioapic, 8, true), 0, "it is waited for");
    assert_eq!(ioapic.end_by(cpus[0].vcpu(), 0x70, false), pins(&[8]));
    assert_eq!(line(&ioapic, 8, true), 0, "the other's end is not its own");
    assert_eq!(ioapic.end_by(cpus[1].vcpu(), 0x71, false), pins(&[]));
    assert_eq!(line(&ioapic, 8, true), 0, "nor is that of another vector");
    assert_eq!(ioapic.end_by(cpus[1].vcpu(), 0x70, false), pins(&[8]));
    assert_eq!(line(&ioapic, 8, true), 2);
}

#[test]
fn a_recount_takes_out_the_cpu_that_has_lost_the_vector_and_no_other() {
    let (_, mut cpus, ioapic) = with_apics(2);
    set_redirection(&ioapic, 8, 0xff << 56 | 0x70);
    assert_eq!(line(&ioapic, 8, true), 2);
    line(&ioapic, 8, false);
    cpus[0].reset();
    ioapic.recount_clock(None, |vcpu, vector| cpus[vcpu.0 as usize].holds(vector));
    assert_eq!(line(&ioapic, 8, true), 0, "the second is waited for");
    line(&ioapic, 8, false);
    assert_eq!(ioapic.end_by(cpus[1].vcpu(), 0x70, false), pins(&[8]));
    assert_eq!(line(&ioapic, 8, true), 1, "nobody is");
}

#[test]
fn a_reset_forgets_who_has_yet_to_end_the_clock() {
    let (_, _cpus, ioapic) = with_apics(2);
    set_redirection(&ioapic, 8, 0xff << 56 | 0x70);
    assert_eq!(line(&ioapic, 8, true), 2);
    line(&ioapic, 8, false);
    ioapic.reset();
    assert_eq!(guest_store(&ioapic, 8, 0xff << 56 | 0x72), Effect::None);
    assert_eq!(line(&ioapic, 8, true), 2);
}

#[test]
fn another_chips_pins_are_left_alone() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 4, 0x44);
    assert_eq!(ioapic.pulse(0, 4, LineSource::USER), Delivery::Ignored);
    assert_eq!(target.take(), []);
    set_redirection(&ioapic, 9, 0x61 | LEVEL | MASKED);
    line(&ioapic, 9, true);
    assert_eq!(guest_store(&ioapic, 9, 0x61 | LEVEL), Effect::Unmasked(pins(&[9])));
    PinInput::withdraw(&ioapic, 0, &pins(&[9]));
    assert_eq!(irr(&ioapic, 9), 1);
    PinInput::withdraw(&ioapic, CHIP, &pins(&[9]));
    assert_eq!((irr(&ioapic, 9), target.take()), (0, vec![]));
}

#[test]
fn a10_only_a_guarded_pin_counts_and_an_end_that_sends_nothing_ends_the_count() {
    for (storm_guard, counted) in [(true, 3), (false, 0)] {
        let ioapic = IoApic::new(Recorder::new(), IoApicOptions { storm_guard, ..IoApicOptions::default() });
        let count = || ioapic.save().pins[4].storm;
        let end = || ioapic.reevaluate(CHIP, &ioapic.end(0x61));
        set_redirection(&ioapic, 4, 0x61 | LEVEL);
        line(&ioapic, 4, true);
        (0..3).for_each(|_| end());
        assert_eq!(count(), counted);
        assert_eq!(guest_store(&ioapic, 4, 0x61 | LEVEL | MASKED), Effect::None);
        end();
        assert_eq!(count(), 0, "it was masked");
    }
}
