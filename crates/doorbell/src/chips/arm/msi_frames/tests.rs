//! Frames at addresses, and what each of them takes.

mod its;

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    DeviceId, LineSource, PinInput, Pins,
    chips::arm::{GicOptions, Gicv2m, gicv2m},
    delivery::ChipId,
    guest_ram::RamBlock,
};

/// Notes what it gets.
struct Noting {
    size: u64,
    seen: Mutex<Vec<(u64, u32)>>,
}

impl Noting {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, seen: Mutex::default() })
    }
}

impl MsiFrame for Noting {
    fn size(&self) -> u64 {
        self.size
    }
    fn send(&self, offset: u64, message: &MsiMessage) -> Result<Delivery, Error> {
        self.seen.lock().push((offset, message.data));
        Ok(Delivery::Delivered(1))
    }
    fn prepare(&self, offset: u64, message: &MsiMessage) -> Option<Target> {
        if offset == 4 { Target::new(message.data) } else { None }
    }
    fn fire(&self, target: Target) -> Delivery {
        self.seen.lock().push((u64::MAX, target.bits()));
        Delivery::Delivered(1)
    }
}

#[test]
fn a_message_reaches_the_frame_at_its_address_with_the_offset_in_it() {
    let frames = MsiFrames::new();
    let (a, b) = (Noting::new(0x2_0000), Noting::new(0x1000));
    frames.place(0x0808_0000, a.clone()).unwrap();
    frames.place(0x080a_0000, b.clone()).unwrap();
    for (address, data) in [(0x0808_0000, 1), (0x0809_ffff, 2), (0x080a_0000, 3), (0x080a_0fff, 4)] {
        assert_eq!(frames.send(&MsiMessage::new(address, data)).unwrap(), Delivery::Delivered(1));
    }
    assert_eq!(*a.seen.lock(), [(0, 1), (0x1_ffff, 2)]);
    assert_eq!(*b.seen.lock(), [(0, 3), (0xfff, 4)]);
    for address in [0x0807_ffff, 0x080a_1000, 0, u64::MAX] {
        let error = frames.send(&MsiMessage::new(address, 5)).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "Q12");
        assert!(error.to_string().contains("one in the frame of an MSI controller"));
    }
}

#[test]
fn q11_no_controller_and_one_without_an_address_are_told_apart() {
    let frames = MsiFrames::new();
    let message = MsiMessage::new(0x0809_0040, 0).from_device(DeviceId(8));
    assert_eq!(frames.send(&message).unwrap_err().errno(), Errno::NODEV);
    frames.announce();
    assert_eq!(frames.send(&message).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn a_prepared_message_remembers_its_frame() {
    let frames = MsiFrames::new();
    let noting: Vec<_> = (0..MsiFrames::MOST).map(|_| Noting::new(8)).collect();
    for (frame, base) in noting.iter().zip((0..).step_by(8)) {
        frames.place(base, frame.clone()).unwrap();
    }
    for (at, frame) in noting.iter().enumerate() {
        let message = |offset, data| MsiMessage::new(at as u64 * 8 + offset, data);
        assert_eq!(frames.prepare(&message(0, 7)), None, "the frame would not");
        assert_eq!(frames.prepare(&message(4, 1 << 20)), None, "too many bits");
        let target = frames.prepare(&message(4, (1 << 20) - 1)).unwrap();
        frames.fire(target);
        assert_eq!(*frame.seen.lock(), [(u64::MAX, (1 << 20) - 1)]);
    }
    assert!(matches!(frames.place(0x1000, Noting::new(8)), Err(Error::Unsupported(_))));
}

#[test]
fn targets_of_nobody_do_nothing() {
    let frames = MsiFrames::new();
    for bits in [0, 1 << 20, (1 << 24) - 1] {
        assert_eq!(frames.fire(Target::new(bits).unwrap()), Delivery::Ignored);
    }
}

#[test]
fn frames_neither_overlap_nor_wrap() {
    let frames = MsiFrames::new();
    frames.place(0x1_0000, Noting::new(0x1_0000)).unwrap();
    for base in [0x1_0000, 0x1_ffff, 0x1000, 1] {
        assert!(matches!(frames.place(base, Noting::new(0x1_0000)), Err(Error::Busy(_))), "{base:#x}");
    }
    frames.place(0x2_0000, Noting::new(0x1_0000)).unwrap();
    frames.place(0, Noting::new(0x1_0000)).unwrap();
    frames.place(u64::MAX - 0xffe, Noting::new(0xfff)).unwrap_err();
    assert!(matches!(frames.place(u64::MAX - 0xffe, Noting::new(0x1000)), Err(Error::Invalid { .. })));
    assert!(matches!(frames.place(5, Noting::new(0)), Err(Error::Invalid { .. })), "an empty one has no address");
}

/// Notes the pulses of its pins.
#[derive(Default)]
struct Pulses(Mutex<Vec<(u16, bool)>>);

impl PinInput for Pulses {
    fn pins(&self, _: ChipId) -> u16 {
        988
    }
    fn set(&self, chip: ChipId, pin: u16, _: LineSource, level: bool) -> Delivery {
        assert_eq!(chip, 0);
        self.0.lock().push((pin, level));
        Delivery::Delivered(1)
    }
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

#[test]
fn gicv2m_pulses_the_spis_that_are_its_own() {
    let pulses = Arc::new(Pulses::default());
    let frames = MsiFrames::new();
    frames.place(0x0802_0000, Arc::new(Gicv2m::new(pulses.clone(), 80, 2).unwrap())).unwrap();
    frames.place(0x0802_1000, Arc::new(Gicv2m::new(pulses.clone(), 1019, 1).unwrap())).unwrap();
    let send = |address, data| frames.send(&MsiMessage::new(address, data)).unwrap();
    assert_eq!(send(0x0802_0040, 80), Delivery::Delivered(1));
    assert_eq!(send(0x0802_0040, 0xffff_fc00 | 81), Delivery::Delivered(1), "ten bits count");
    assert_eq!(send(0x0802_1040, 1019), Delivery::Delivered(1));
    let seen = [(48, true), (48, false), (49, true), (49, false), (987, true), (987, false)];
    assert_eq!(std::mem::take(&mut *pulses.0.lock()), seen);
    for (address, data) in
        [(0x0802_0040, 79), (0x0802_0040, 82), (0x0802_0044, 80), (0x0802_0008, 80), (0x0802_1040, 1020)]
    {
        assert_eq!(send(address, data), Delivery::Ignored);
        assert_eq!(frames.prepare(&MsiMessage::new(address, data)), None);
    }
    let target = frames.prepare(&MsiMessage::new(0x0802_1040, 1019)).unwrap();
    assert_eq!(frames.fire(target), Delivery::Delivered(1));
    assert_eq!(std::mem::take(&mut *pulses.0.lock()), [(987, true), (987, false)]);
    let stray = Target::new(target.bits() & !0xffff | 48).unwrap();
    assert_eq!(frames.fire(stray), Delivery::Ignored, "another frame's SPI");
    assert!(pulses.0.lock().is_empty());
}

#[test]
fn gicv2m_registers_have_their_sizes_and_values() {
    let pulses = Arc::new(Pulses::default());
    let frame = Gicv2m::new(pulses.clone(), 80, 32).unwrap();
    assert_eq!(frame.read(gicv2m::TYPER, 4), 0x0050_0020, "first SPI 80, 32 of them");
    for (offset, size) in [(gicv2m::TYPER, 2), (gicv2m::TYPER, 8), (gicv2m::SETSPI, 4), (gicv2m::IIDR, 4), (0xffc, 4)] {
        assert_eq!(frame.read(offset, size), 0);
    }
    assert_eq!(frame.write(gicv2m::SETSPI, 2, 80), Delivery::Delivered(1), "half-words are allowed");
    assert_eq!(frame.write(gicv2m::SETSPI, 1, 80), Delivery::Ignored);
    assert_eq!(frame.write(gicv2m::SETSPI, 8, 80), Delivery::Ignored);
    assert_eq!(frame.write(gicv2m::TYPER, 4, 80), Delivery::Ignored);
    assert_eq!(pulses.0.lock().len(), 2);
}

#[test]
fn gicv2m_is_refused_spis_that_there_are_not() {
    let new = |first, count| Gicv2m::new(Arc::new(Pulses::default()), first, count).map(|_| ());
    for (first, count) in [(31, 1), (1020, 1), (32, 0), (32, 989), (1019, 2), (u32::MAX, u32::MAX)] {
        assert_eq!(new(first, count).unwrap_err().errno(), Errno::INVAL, "{first} {count}");
    }
    for (first, count) in [(32, 988), (1019, 1), (80, 32)] {
        assert!(new(first, count).is_ok(), "{first} {count}");
    }
}

fn gic() -> Arc<Gic> {
    Gic::new(GicOptions::new(1), Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap()
}

fn edge(gic: &Gic, intid: u32) {
    gic.update(gic.shared(intid).unwrap(), intid, |state| state.with_edge(true));
}

fn pending(gic: &Gic, intid: u32) -> bool {
    gic.shared(intid).unwrap().state().pending()
}

#[test]
fn the_distributor_takes_messages_that_raise_an_spi_and_take_it_back() {
    let gic = gic();
    let frames = MsiFrames::new();
    frames.place(0x0800_0000, Arc::new(MessageSpis::new(Arc::clone(&gic)))).unwrap();
    edge(&gic, 40);
    // One edge and one level.
    for intid in [40, 41] {
        frames.send(&MsiMessage::new(0x0800_0040, intid)).unwrap();
        assert!(pending(&gic, intid));
        frames.send(&MsiMessage::new(0x0800_0048, intid)).unwrap();
        assert!(!pending(&gic, intid));
        frames.fire(frames.prepare(&MsiMessage::new(0x0800_0040, intid)).unwrap());
        assert!(pending(&gic, intid));
        frames.fire(frames.prepare(&MsiMessage::new(0x0800_0048, intid)).unwrap());
        assert!(!pending(&gic, intid));
    }
    for (address, data) in [(0x0800_0044, 40), (0x0800_0050, 40), (0x0800_0040, 31), (0x0800_0040, 1020)] {
        assert_eq!(frames.send(&MsiMessage::new(address, data)).unwrap(), Delivery::Ignored);
    }
    assert!(!pending(&gic, 40));
}

#[test]
fn by_the_rfc_the_data_is_the_number_and_the_address_does_not_count() {
    let gic = gic();
    let target = DataIsNumber::new(Arc::clone(&gic));
    edge(&gic, 40);
    assert!(target.send(&MsiMessage::new(0xdead_0000, 40)).is_ok());
    assert!(pending(&gic, 40));
    assert!(target.prepare(&MsiMessage::new(0, 1019)).is_some());
    for data in [0, 31, 1020, 8192, u32::MAX] {
        assert_eq!(target.send(&MsiMessage::new(0, data)).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(target.prepare(&MsiMessage::new(0, data)), None);
    }
    assert_eq!(target.fire(Target::new(7).unwrap()), Delivery::Ignored);
}
