mod bounds;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::*;
use crate::{
    Error, Kick, MsiMessage, Target, VcpuId,
    chips::x86::lapic::{ApicOptions, ApicSet, Eoi as LapicEoi, LocalApic},
};

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

/// Records what is sent, and answers as it is told.
struct Recorder {
    sent: Mutex<Vec<MsiMessage>>,
    answer: Mutex<Result<Delivery, ()>>,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::new(Self { sent: Mutex::default(), answer: Mutex::new(Ok(Delivery::Delivered(1))) })
    }

    fn take(&self) -> Vec<u8> {
        self.sent.lock().unwrap().drain(..).map(|message| message.data as u8).collect()
    }

    fn answer(&self, answer: Result<Delivery, ()>) {
        *self.answer.lock().unwrap() = answer;
    }
}

impl MsiTarget for Recorder {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.sent.lock().unwrap().push(*message);
        self.answer.lock().unwrap().map_err(|()| Error::NoController)
    }

    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        unreachable!("nothing was prepared")
    }
}

fn chip() -> (Arc<Recorder>, IoApic) {
    let recorder = Recorder::new();
    (recorder.clone(), IoApic::new(recorder, IoApicOptions::default()))
}

/// As `KVM_SET_IRQCHIP` with one entry changed, which is how the reference driver configures a pin.
fn set_redirection(ioapic: &IoApic, pin: usize, entry: u64) {
    let mut state = ioapic.state();
    state.redirtbl[pin] = entry;
    ioapic.set_state(&state);
}

fn line(ioapic: &IoApic, pin: u16, level: bool) -> i32 {
    ioapic.set(CHIP, pin, LineSource::USER, level).status()
}

fn irr(ioapic: &IoApic, pin: usize) -> u32 {
    ioapic.state().irr >> pin & 1
}

fn guest_store(ioapic: &IoApic, pin: u32, entry: u64) -> Effect {
    assert_eq!(ioapic.write(INDEX, 0x11 + 2 * pin), Effect::None);
    let high = ioapic.write(WINDOW, (entry >> 32) as u32);
    assert_eq!(ioapic.write(INDEX, 0x10 + 2 * pin), Effect::None);
    let low = ioapic.write(WINDOW, entry as u32);
    if high == Effect::None { low } else { high }
}

fn pins(pins: &[u16]) -> Pins {
    Pins::from_slice(pins)
}

#[test]
fn a1_reset_values_are_those_of_kvm() {
    let (_, ioapic) = chip();
    let reset = ioapic.state();
    assert_eq!((reset.base_address, reset.id, reset.ioregsel, reset.irr), (0xfec0_0000, 0, 0, 0));
    assert_eq!(reset.redirtbl, [0x10000; 24]);
    set_redirection(&ioapic, 3, 0x41);
    let _ = ioapic.write(INDEX, 0x12);
    line(&ioapic, 3, true);
    ioapic.reset();
    assert_eq!(ioapic.state(), reset);
    assert_eq!(ioapic.save().pins[3].line, 1, "the source still drives the line");
    assert!(ioapic.end(0x41).is_empty());
    assert_eq!(ioapic.end(0).len(), 24);
}

/// The answers that the kernel's KVM gave to `ioapic.level_*` of the reference driver.
#[test]
fn a2_to_a5_level_pins_are_answered_as_by_kvm() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 10, 0x71 | LEVEL | MASKED);
    assert_eq!(line(&ioapic, 10, true), -1);
    assert_eq!(irr(&ioapic, 10), 1);
    assert_eq!(target.take(), []);
    set_redirection(&ioapic, 10, 0x71 | LEVEL);
    assert_eq!(target.take(), [0x71]);
    assert!(ioapic.entry(10).remote_irr());
    assert_eq!(line(&ioapic, 10, true), -1);
    assert_eq!(line(&ioapic, 10, false), 1);
    assert_eq!(irr(&ioapic, 10), 0);
    assert_eq!(target.take(), []);
}

/// The answers of KVM to `ioapic.edge*` and `line.unrouted*`.
#[test]
fn a6_to_a8_edge_pins_are_answered_as_by_kvm() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 10, 0x72 | MASKED);
    assert_eq!((line(&ioapic, 10, true), irr(&ioapic, 10)), (-1, 1));
    assert_eq!((line(&ioapic, 10, false), irr(&ioapic, 10)), (1, 0));
    set_redirection(&ioapic, 10, 0x72);
    assert_eq!(target.take(), [], "A6");
    assert_eq!(line(&ioapic, 10, true), 1);
    assert_eq!(target.take(), [0x72]);
    assert_eq!(irr(&ioapic, 10), 0, "an edge that was sent is not reported");
    assert_eq!(line(&ioapic, 10, true), 0, "A7");
    assert_eq!(target.take(), []);
    assert_eq!(line(&ioapic, 10, false), 1);
    assert_eq!(line(&ioapic, 10, true), 1, "A8");
    assert_eq!(target.take(), [0x72]);
    assert_eq!(line(&ioapic, 10, true), 0);
    assert_eq!(line(&ioapic, 24, true), -1);
    assert_eq!(ioapic.set(1, 10, LineSource::USER, true), Delivery::Ignored, "another chip's pin");
    assert_eq!((ioapic.pins(2), ioapic.pins(1)), (24, 0));
}

/// The answers of KVM to `resample.*`: both sharers drive one source.
#[test]
fn a14_sources_share_a_pin_by_wired_or() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 10, 0x73 | LEVEL);
    assert_eq!(ioapic.set(CHIP, 10, LineSource::RESAMPLE, true), Delivery::Delivered(1));
    assert_eq!((target.take(), irr(&ioapic, 10), ioapic.entry(10).remote_irr()), (vec![0x73], 1, true));
    assert_eq!(line(&ioapic, 10, false), -1, "the other source still drives it");
    assert_eq!(irr(&ioapic, 10), 1);
    assert_eq!(ioapic.set(CHIP, 10, LineSource::RESAMPLE, false), Delivery::Delivered(1));
    assert_eq!(irr(&ioapic, 10), 0);
}

#[test]
fn a_pulse_is_up_and_down() {
    let (target, ioapic) = chip();
    let pulse = |pin| ioapic.pulse(CHIP, pin, LineSource::USER).status();
    set_redirection(&ioapic, 4, 0x44);
    assert_eq!([pulse(4), pulse(4)], [1, 1]);
    assert_eq!(target.take(), [0x44, 0x44]);
    set_redirection(&ioapic, 4, 0x44 | MASKED);
    assert_eq!((pulse(4), irr(&ioapic, 4)), (-1, 0), "F16a: lost");
    set_redirection(&ioapic, 4, 0x44 | LEVEL);
    assert_eq!([pulse(4), pulse(4)], [1, -1]);
    assert_eq!(pulse(24), -1);
    assert_eq!(ioapic.pulse(0, 4, LineSource::USER), Delivery::Ignored);
}

#[test]
fn a9_an_end_of_interrupt_delivers_what_is_still_high() {
    let (target, ioapic) = chip();
    for pin in [4, 5, 6] {
        set_redirection(&ioapic, pin, 0x61 | if pin == 6 { 0 } else { LEVEL });
        assert_eq!(line(&ioapic, pin as u16, true), 1);
    }
    assert_eq!(target.take(), [0x61; 3]);
    assert_eq!(line(&ioapic, 5, false), 1);
    assert_eq!(ioapic.end(0x60), pins(&[]));
    let ended = ioapic.end(0x61);
    assert_eq!(ended, pins(&[4, 5, 6]));
    assert!(!ioapic.entry(4).remote_irr() && !ioapic.entry(5).remote_irr());
    assert_eq!(target.take(), [], "not before the resamplers were told");
    ioapic.reevaluate(CHIP, &ended);
    assert_eq!(target.take(), [0x61; 2], "pin 4 is still high, pin 5 fell; pin 6 is an edge, which KVM treats alike");
    ioapic.reevaluate(CHIP, &ended);
    ioapic.reevaluate(0, &ended);
    ioapic.reevaluate(CHIP, &pins(&[24, 1000]));
    assert_eq!(target.take(), [], "each end counts once");
}

#[test]
fn an_edge_entry_keeps_its_remote_irr_unless_a_level_entry_has_the_vector_too() {
    const REMOTE_IRR: u64 = 1 << 14;
    let (_, ioapic) = chip();
    set_redirection(&ioapic, 14, 0xe2 | REMOTE_IRR);
    assert_eq!(ioapic.end(0xe2), pins(&[14]));
    assert!(ioapic.entry(14).remote_irr(), "KVM does not look at the IOAPIC for such a vector");
    set_redirection(&ioapic, 15, 0xe2 | LEVEL);
    assert_eq!(ioapic.end(0xe2), pins(&[14, 15]));
    assert!(!ioapic.entry(14).remote_irr());
}

#[test]
fn a9_a_line_that_is_raised_between_the_end_and_the_reevaluation_is_sent_once() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 4, 0x61 | LEVEL);
    line(&ioapic, 4, true);
    let ended = ioapic.end(0x61);
    line(&ioapic, 4, false);
    assert_eq!(line(&ioapic, 4, true), 1);
    ioapic.reevaluate(CHIP, &ended);
    assert_eq!(target.take(), [0x61, 0x61]);
}

#[test]
fn an_edge_end_only_names_the_pins() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 4, 0x61 | LEVEL);
    line(&ioapic, 4, true);
    assert_eq!(ioapic.end_edge(0x61), pins(&[4]));
    assert_eq!(ioapic.end_by(VcpuId(0), 0x61, false), pins(&[4]));
    ioapic.reevaluate(CHIP, &pins(&[4]));
    assert!(ioapic.entry(4).remote_irr());
    assert_eq!(target.take(), [0x61]);
    assert_eq!(ioapic.end_by(VcpuId(0), 0x61, true), pins(&[4]));
    assert!(!ioapic.entry(4).remote_irr());
}

#[test]
fn a10_the_storm_guard_holds_an_interrupt_back_once_in_10000() {
    let recorder = Recorder::new();
    let ioapic = IoApic::new(recorder.clone(), IoApicOptions { storm_guard: true, ..IoApicOptions::default() });
    set_redirection(&ioapic, 4, 0x61 | LEVEL);
    line(&ioapic, 4, true);
    let end = || ioapic.reevaluate(CHIP, &ioapic.end(0x61));
    for _ in 1..STORM {
        end();
    }
    assert_eq!(recorder.take().len(), usize::from(STORM));
    assert_eq!(ioapic.take_delayed(), pins(&[]));
    end();
    assert_eq!(recorder.take(), [], "held back");
    let delayed = ioapic.take_delayed();
    assert_eq!(delayed, pins(&[4]));
    ioapic.reevaluate(CHIP, &delayed);
    end();
    assert_eq!(recorder.take(), [0x61, 0x61]);
    line(&ioapic, 4, false);
    end();
    assert_eq!(ioapic.save().pins[4].storm, 0, "an end with the line low starts the count anew");
}

#[test]
fn a11_a_store_keeps_read_only_bits_and_an_edge_entry_loses_remote_irr() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 7, 0x61 | LEVEL | 1 << 12);
    line(&ioapic, 7, true);
    assert_eq!(guest_store(&ioapic, 7, 0xffff_ffff_ffff_8f00 | 0x62), Effect::None);
    let bits = ioapic.entry(7).into_bits();
    assert_eq!(bits & (REMOTE_IRR | 1 << 12), REMOTE_IRR | 1 << 12, "read-only bits stay");
    assert_eq!(bits, 0xffff_ffff_ffff_df62);
    assert_eq!(guest_store(&ioapic, 7, 0x62 | MASKED), Effect::None);
    assert_eq!(ioapic.entry(7).into_bits(), 0x62 | MASKED | 1 << 12, "the end of old guests: made an edge");
    line(&ioapic, 7, false);
    assert_eq!(guest_store(&ioapic, 7, 0x62 | LEVEL | REMOTE_IRR), Effect::None);
    assert_eq!(line(&ioapic, 7, true), 1);
    assert_eq!(target.take(), [0x61, 0x62]);
}

#[test]
fn a12_h12_a_level_that_was_masked_at_its_end_is_offered_to_resamplers_first() {
    for resampled in [true, false] {
        let (target, ioapic) = chip();
        set_redirection(&ioapic, 9, 0x61 | LEVEL);
        ioapic.set(CHIP, 9, LineSource::RESAMPLE, true);
        assert_eq!(guest_store(&ioapic, 9, 0x61 | LEVEL | MASKED), Effect::None);
        ioapic.reevaluate(CHIP, &ioapic.end(0x61));
        assert_eq!(target.take(), [0x61]);
        let effect = guest_store(&ioapic, 9, 0x61 | LEVEL);
        assert_eq!(effect, Effect::Unmasked(pins(&[9])));
        assert_eq!(target.take(), [], "the latch may be stale");
        if resampled {
            ioapic.withdraw(&pins(&[9]));
            assert_eq!(irr(&ioapic, 9), 0);
            ioapic.reevaluate(CHIP, &pins(&[9]));
            assert_eq!(target.take(), [], "H12: no stale delivery");
            assert_eq!(ioapic.set(CHIP, 9, LineSource::RESAMPLE, true), Delivery::Delivered(1));
            assert_eq!(target.take(), [0x61], "the device still wants it");
        } else {
            ioapic.reevaluate(CHIP, &pins(&[9]));
            assert_eq!(target.take(), [0x61]);
        }
        assert!(ioapic.entry(9).remote_irr());
    }
}

#[test]
fn h12_a_line_that_is_raised_before_the_withdrawal_is_kept() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 9, 0x61 | LEVEL | MASKED);
    line(&ioapic, 9, true);
    assert_eq!(guest_store(&ioapic, 9, 0x61 | LEVEL), Effect::Unmasked(pins(&[9])));
    assert_eq!(line(&ioapic, 9, true), 1, "another thread's raise comes first");
    ioapic.withdraw(&pins(&[9]));
    assert_eq!(irr(&ioapic, 9), 1);
    ioapic.reevaluate(CHIP, &ioapic.end(0x61));
    assert_eq!(target.take(), [0x61, 0x61]);
}

#[test]
fn a12_masking_again_takes_the_offer_back() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 9, 0x61 | LEVEL | MASKED);
    line(&ioapic, 9, true);
    assert_eq!(guest_store(&ioapic, 9, 0x61 | LEVEL), Effect::Unmasked(pins(&[9])));
    assert_eq!(ioapic.write_entry(9, RedirectionEntry::from_bits(0x61 | LEVEL | MASKED)), Effect::None);
    ioapic.withdraw(&pins(&[9]));
    ioapic.reevaluate(CHIP, &pins(&[9]));
    assert_eq!((irr(&ioapic, 9), target.take()), (1, vec![]));
}

#[test]
fn a13_registers() {
    for (version, value) in [(Version::V20, 0x17_0020), (Version::V11, 0x17_0011)] {
        let ioapic = IoApic::new(Recorder::new(), IoApicOptions { version, ..IoApicOptions::default() });
        let register = |index| {
            assert_eq!(ioapic.write(INDEX, index), Effect::None);
            ioapic.read(WINDOW)
        };
        let store = |index, value| {
            assert_eq!(ioapic.write(INDEX, index), Effect::None);
            assert_eq!(ioapic.write(WINDOW, value), Effect::None);
        };
        store(1, 0xffff_ffff);
        assert_eq!(register(1), value, "read-only");
        store(0, 0xffff_ffff);
        store(2, 0);
        assert_eq!((register(0), register(2)), (0x0f00_0000, 0x0f00_0000));
        store(0x10 + 47, 0x1234_5678);
        assert_eq!((register(0x3e), register(0x3f)), (0x10000, 0x1234_5678), "the last entry");
        assert_eq!(
            (register(3), register(0xf), register(0x40), register(0xff)),
            (u32::MAX, u32::MAX, u32::MAX, u32::MAX)
        );
        store(0x40, 0);
        store(5, 0);
        assert_eq!(ioapic.write(INDEX, 0x112), Effect::None);
        assert_eq!(ioapic.read(INDEX), 0x12);
        assert_eq!((ioapic.read(0x20), ioapic.read(u64::MAX)), (0, 0));
        assert_eq!(ioapic.write(0x20, 7), Effect::None);
    }
}

#[test]
fn accesses_of_every_width() {
    let (_, ioapic) = chip();
    assert_eq!(ioapic.mmio_write(INDEX, &[0x10]), Effect::None);
    for (data, expected) in [
        (vec![0x41], 0x41),
        (vec![0x42, 0x80], 0x8042),
        (vec![0x43, 0, 1, 0], 0x1_0043),
        (vec![0x44, 0, 1, 0, 9, 9, 9, 9], 0x1_0044),
        (vec![], 0x1_0044),
        (vec![1, 2, 3], 0x1_0044),
        (vec![1; 16], 0x1_0044),
    ] {
        assert_eq!(ioapic.mmio_write(WINDOW, &data), Effect::None);
        assert_eq!(ioapic.read(WINDOW), expected);
    }
    let mut wide = [9; 8];
    ioapic.mmio_read(WINDOW, &mut wide);
    assert_eq!(wide, [0x44, 0, 1, 0, 0, 0, 0, 0]);
    let mut byte = [9];
    ioapic.mmio_read(WINDOW, &mut byte);
    assert_eq!(byte, [0x44]);
    let mut odd = [9; 3];
    ioapic.mmio_read(WINDOW, &mut odd);
    assert_eq!(odd, [0; 3]);
}

#[test]
fn the_eoi_register_ends_like_a_broadcast() {
    let (target, ioapic) = chip();
    set_redirection(&ioapic, 9, 0x61 | LEVEL);
    line(&ioapic, 9, true);
    assert_eq!(ioapic.write(EOI, 0x62), Effect::None);
    assert_eq!(ioapic.write(EOI, 0x61), Effect::Ended(pins(&[9])));
    ioapic.reevaluate(CHIP, &pins(&[9]));
    assert_eq!(target.take(), [0x61, 0x61]);
    let old = IoApic::new(target, IoApicOptions { version: Version::V11, ..IoApicOptions::default() });
    set_redirection(&old, 9, 0x61 | LEVEL);
    line(&old, 9, true);
    assert_eq!(old.write(EOI, 0x61), Effect::None, "version 0x11 has none");
    assert!(old.entry(9).remote_irr());
}

#[test]
fn the_message_has_every_field_of_the_entry() {
    let recorder = Recorder::new();
    let options = IoApicOptions { device_id: Some(DeviceId(0xf0)), ..IoApicOptions::default() };
    let ioapic = IoApic::new(recorder.clone(), options);
    set_redirection(&ioapic, 1, 0xa5 << 56 | LEVEL | 1 << 11 | 0x1ab);
    line(&ioapic, 1, true);
    set_redirection(&ioapic, 2, 0xa5 << 56 | 1 << 48 | 0x4c);
    line(&ioapic, 2, true);
    let device_id = Some(DeviceId(0xf0));
    let expected = [
        MsiMessage { address: 0xfeea_5004, data: 0xc1ab, device_id },
        // The remappable format: handle 0x5280 >> 1 in bits 19:5, bit 4 set.
        MsiMessage { address: 0xfeea_5010, data: 0x404c, device_id },
    ];
    assert_eq!(*recorder.sent.lock().unwrap(), expected);
}

#[test]
fn remote_irr_waits_only_for_an_end_that_will_come() {
    let (target, ioapic) = chip();
    for (answer, status, waits) in [
        (Ok(Delivery::Delivered(2)), 2, true),
        (Ok(Delivery::Coalesced), 0, false),
        (Ok(Delivery::Ignored), -1, true),
        (Err(()), -1, false),
    ] {
        target.answer(answer);
        set_redirection(&ioapic, 4, 0x61 | LEVEL);
        assert_eq!(line(&ioapic, 4, true), status);
        assert_eq!(ioapic.entry(4).remote_irr(), waits, "{answer:?}");
        line(&ioapic, 4, false);
    }
}

#[test]
fn a_saved_chip_goes_on_where_it_was() {
    let (_, ioapic) = chip();
    set_redirection(&ioapic, 4, 0x61 | LEVEL);
    set_redirection(&ioapic, 5, 0x62 | LEVEL | MASKED);
    set_redirection(&ioapic, 6, 0x63);
    for pin in [4, 5, 6] {
        line(&ioapic, pin, true);
    }
    let _ = ioapic.write(INDEX, 0x33);
    let snapshot = ioapic.save();

    let (target, other) = chip();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.save(), snapshot);
    assert_eq!(other.state(), ioapic.state());
    assert_eq!(target.take(), [], "nothing is sent by restoring");
    assert_eq!(line(&other, 6, true), 0, "an edge that was sent is not sent again");
    other.reevaluate(CHIP, &other.end(0x61));
    assert_eq!(guest_store(&other, 5, 0x62 | LEVEL), Effect::Unmasked(pins(&[5])));
    other.reevaluate(CHIP, &pins(&[5]));
    assert_eq!(target.take(), [0x61, 0x62]);

    let before = other.save();
    let mut bad = snapshot.clone();
    bad.pins[23].storm = STORM;
    assert!(other.restore(&bad).is_err());
    assert!(other.restore(&IoApicSnapshot { delayed: 1 << 24, ..snapshot }).is_err());
    assert_eq!(other.save(), before, "a restore that fails changes nothing");
}

fn with_apics(vcpus: u32) -> (Arc<ApicSet>, Vec<LocalApic>, IoApic) {
    let apics = ApicSet::new(vcpus, Arc::new(()), ApicOptions::default());
    let mut cpus: Vec<_> = (0..vcpus).map(|vcpu| apics.local(VcpuId(vcpu)).unwrap()).collect();
    cpus.iter_mut().for_each(|cpu| assert_eq!(cpu.write(0xf0, 0x1ff), None));
    let ioapic = IoApic::with_rtc(apics.clone(), apics.clone(), IoApicOptions::default());
    (apics, cpus, ioapic)
}

#[test]
fn a_resolved_pin_follows_its_entry() {
    let (_, mut cpus, ioapic) = with_apics(2);
    for (entry, cpu, vector) in [(0x41u64, 0, 0x41), (1 << 56 | 0x42, 1, 0x42), (1 << 56 | LEVEL | 0x43, 1, 0x43)] {
        assert_eq!(guest_store(&ioapic, 3, entry), Effect::None);
        assert_eq!(ioapic.pulse(CHIP, 3, LineSource::USER), Delivery::Delivered(1));
        assert_eq!(cpus[cpu].acknowledge(), Some(vector));
        let level = entry & LEVEL != 0;
        assert_eq!(cpus[cpu].eoi(), Some(LapicEoi { vector, level }));
    }
    assert_eq!(guest_store(&ioapic, 3, 0xff << 56 | 0x44), Effect::None);
    assert_eq!(ioapic.pulse(CHIP, 3, LineSource::USER), Delivery::Delivered(2), "broadcast is not resolved");
}

#[test]
fn the_clocks_line_is_merged_until_every_taker_has_ended_it() {
    let (_, mut cpus, ioapic) = with_apics(2);
    set_redirection(&ioapic, 8, 0xff << 56 | 0x70);
    assert_eq!(line(&ioapic, 8, true), 2);
    line(&ioapic, 8, false);
    assert_eq!(line(&ioapic, 8, true), 0);
    for cpu in &mut cpus {
        assert_eq!(line(&ioapic, 8, true), 0);
        cpu.acknowledge();
        let eoi = cpu.eoi().unwrap();
        assert_eq!(ioapic.end_by(cpu.vcpu(), eoi.vector, eoi.level), pins(&[8]));
    }
    line(&ioapic, 8, false);
    assert_eq!(line(&ioapic, 8, true), 2);
    line(&ioapic, 8, false);
    assert_eq!(ioapic.pulse(CHIP, 8, LineSource::USER).status(), 2, "an eventfd's pulse is not accounted for");
    cpus[1].reset();
    ioapic.recount_clock(None, |vcpu, vector| cpus[vcpu.0 as usize].holds(vector));
    assert_eq!(line(&ioapic, 8, true), 0);
    cpus[0].reset();
    ioapic.recount_clock(None, |vcpu, vector| cpus[vcpu.0 as usize].holds(vector));
    assert_eq!(line(&ioapic, 8, true), 0, "nobody waits, but the latch still stands for the first edge");
    line(&ioapic, 8, false);
    assert_eq!(line(&ioapic, 8, true), 0, "the APICs are software-disabled: nobody takes it, nobody is waited for");
    line(&ioapic, 8, false);
    cpus[0].write(0xf0, 0x1ff);
    assert_eq!(line(&ioapic, 8, true), 1);
}

struct Unpark(Vec<std::thread::Thread>);

impl Kick for Unpark {
    fn kick(&self, vcpu: VcpuId) {
        self.0[vcpu.0 as usize].unpark();
    }
}

/// Hazard H-A: vector v ends on one CPU while another pin with v is delivered to it. Each pin's device keeps its line up
/// until its own handler ran; no interrupt may be lost, so every device is served as often as it asked.
#[test]
fn h_a_no_pin_is_skipped_when_pins_share_a_vector_in_a_storm() {
    const ROUNDS: u64 = 20_000;
    const DEVICES: usize = 3;
    let apics = ApicSet::new(1, Arc::new(Unpark(vec![std::thread::current()])), ApicOptions::default());
    let mut cpu = apics.local(VcpuId(0)).unwrap();
    cpu.write(0xf0, 0x1ff);
    let ioapic = IoApic::new(apics, IoApicOptions::default());
    for pin in 0..DEVICES {
        set_redirection(&ioapic, pin, 0x61 | LEVEL);
    }
    let asked: [AtomicU64; DEVICES] = Default::default();
    let served: [AtomicU64; DEVICES] = Default::default();
    let stop = AtomicU32::new(0);
    let finished = std::thread::scope(|scope| {
        for device in 0..DEVICES {
            let (asked, served, ioapic, stop) = (&asked[device], &served[device], &ioapic, &stop);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::Release);
                    ioapic.set(CHIP, device as u16, LineSource::USER, true);
                    while served.load(Ordering::Acquire) != round {
                        if stop.load(Ordering::Relaxed) != 0 {
                            return;
                        }
                        std::thread::yield_now();
                    }
                }
            });
        }
        let start = std::time::Instant::now();
        let serve = |cpu: &mut LocalApic| {
            while cpu.acknowledge().is_some() {
                for device in 0..DEVICES {
                    let round = asked[device].load(Ordering::Acquire);
                    if round != served[device].load(Ordering::Relaxed) {
                        ioapic.set(CHIP, device as u16, LineSource::USER, false);
                        served[device].store(round, Ordering::Release);
                    }
                }
                let ended = ioapic.end(cpu.eoi().unwrap().vector);
                ioapic.reevaluate(CHIP, &ended);
            }
        };
        loop {
            serve(&mut cpu);
            if served.iter().all(|served| served.load(Ordering::Relaxed) == ROUNDS) {
                break true;
            }
            if start.elapsed().as_secs() >= 30 {
                stop.store(1, Ordering::Relaxed);
                break false;
            }
            if cpu.arm().is_idle() {
                std::thread::park_timeout(std::time::Duration::from_secs(2));
            }
            cpu.disarm();
        }
    });
    let served = served.map(|served| served.into_inner());
    assert!(finished, "a pin was skipped: served {served:?} of {ROUNDS}");
}
