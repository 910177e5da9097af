//! The R rows of irqfd.md.

use super::*;

/// A dispatcher, a table whose GSIs are pins, and the resamplers between them.
struct Bench {
    dispatcher: Dispatcher,
    table: Arc<RouteTable>,
    lines: Arc<Lines>,
    resamplers: Resamplers,
}

/// One sharer's two ends, and its binding.
struct Sharer {
    fd: OwnedFd,
    resamplefd: Arc<OwnedFd>,
    irqfd: Irqfd,
}

impl Bench {
    fn new() -> Self {
        let (table, lines) = pin_table();
        Self { dispatcher: dispatcher(), resamplers: Resamplers::new(Arc::clone(&table)), table, lines }
    }

    fn sharer(&self, gsi: u32) -> Sharer {
        let (fd, resamplefd) = (eventfd(), Arc::new(eventfd()));
        let gsi = RoutedGsi::new(&self.table, gsi).unwrap();
        let irqfd = self.resamplers.attach(&self.dispatcher, &gsi, &fd, &*resamplefd).unwrap();
        Sharer { fd, resamplefd, irqfd }
    }

    fn signal(&self, sharer: &Sharer) {
        write(&sharer.fd, 1);
        dispatch(&self.dispatcher);
    }

    /// The guest's end of interrupt, as the chip reports it.
    fn end(&self, pin: u16) {
        self.resamplers.ended(IOAPIC, &Pins::from_slice(&[pin]));
    }
}

const RESAMPLE: u64 = LineSource::RESAMPLE.bit();
const USER: u64 = LineSource::USER.bit();

#[test]
fn r1_a_signal_raises_the_line_under_its_own_source_and_it_stays_up() {
    let bench = Bench::new();
    let device = bench.sharer(5);
    bench.signal(&device);
    assert_eq!((bench.lines.sources(5), counter(&device.fd), counter(&*device.resamplefd)), (RESAMPLE, 0, 0));
}

/// Arm: the line call goes straight to the pin of its own number, an irqfd never does (G14, R1).
#[test]
fn r1_an_irqfds_line_follows_the_route_also_where_line_calls_do_not() {
    let lines = Arc::new(Lines::default());
    let policy = RoutePolicy { lines: LineCalls::Direct(IOAPIC), ..RoutePolicy::S2_TABLE };
    let table = Arc::new(RouteTable::new(Arc::new(Notes::default()), lines.clone(), policy));
    route(&table, 5, Route::Pin(Pin { chip: IOAPIC, pin: 9 }));
    let bench = Bench { dispatcher: dispatcher(), resamplers: Resamplers::new(Arc::clone(&table)), table, lines };
    let device = bench.sharer(5);
    bench.signal(&device);
    assert_eq!((bench.lines.sources(5), bench.lines.sources(9)), (0, RESAMPLE));
    bench.end(9);
    assert_eq!((bench.lines.sources(9), counter(&*device.resamplefd)), (0, 1));
}

#[test]
fn r2_the_end_lowers_the_line_once_and_then_notifies_every_sharer() {
    let bench = Bench::new();
    let devices = [bench.sharer(5), bench.sharer(5), bench.sharer(5)];
    bench.signal(&devices[0]);
    bench.signal(&devices[1]);
    // At each change of the line: its level, and what the sharers had been told by then.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (seeing, told) = (Arc::clone(&seen), devices.each_ref().map(|device| Arc::clone(&device.resamplefd)));
    bench.lines.watch(move |pin, level| seeing.lock().push((pin, level, told.each_ref().map(|fd| counter(&**fd)))));
    bench.end(5);
    assert_eq!(*seen.lock(), [(5, false, [0; 3])], "one lowering, before anybody is told");
    assert_eq!(devices.each_ref().map(|device| counter(&*device.resamplefd)), [1; 3]);
    bench.signal(&devices[2]);
    assert_eq!(bench.lines.sources(5), RESAMPLE, "a device whose condition still holds raises it again");
}

#[test]
fn r2_an_end_of_another_pin_or_chip_is_nobodys() {
    let bench = Bench::new();
    let device = bench.sharer(5);
    bench.signal(&device);
    bench.end(6);
    bench.resamplers.ended(1, &Pins::from_slice(&[5]));
    bench.end(9999);
    assert_eq!((bench.lines.sources(5), counter(&*device.resamplefd)), (RESAMPLE, 0));
}

#[test]
fn r2_the_end_follows_the_route_to_its_gsi() {
    let bench = Bench::new();
    route(&bench.table, 30, Route::Pin(Pin { chip: IOAPIC, pin: 5 }));
    let device = bench.sharer(30);
    bench.signal(&device);
    assert_eq!(bench.lines.sources(5), RESAMPLE);
    bench.end(5);
    assert_eq!((bench.lines.sources(5), counter(&*device.resamplefd)), (0, 1), "the later entry wins");
}

#[test]
fn r3_sharers_share_one_source_that_is_wired_with_the_users() {
    let bench = Bench::new();
    let devices = [bench.sharer(5), bench.sharer(5)];
    bench.table.line(5, LineSource::USER, true);
    devices.iter().for_each(|device| bench.signal(device));
    assert_eq!(bench.lines.sources(5), USER | RESAMPLE, "one source for both");
    bench.table.line(5, LineSource::USER, false);
    assert_eq!(bench.lines.sources(5), RESAMPLE, "lowering the user's leaves the pin high");
    bench.table.line(5, LineSource::USER, true);
    bench.end(5);
    assert_eq!(bench.lines.sources(5), USER, "the end lowers the resamplers' source only");
}

#[test]
fn r4_the_line_stays_up_until_the_last_sharer_goes() {
    let bench = Bench::new();
    let [first, second] = [bench.sharer(5), bench.sharer(5)];
    bench.signal(&first);
    drop(first.irqfd);
    assert_eq!(bench.lines.sources(5), RESAMPLE);
    drop(second.irqfd);
    assert_eq!(bench.lines.sources(5), 0);
}

#[test]
fn r5_unbinding_notifies_nobody() {
    let bench = Bench::new();
    let [first, second] = [bench.sharer(5), bench.sharer(5)];
    bench.signal(&first);
    drop((first.irqfd, second.irqfd));
    assert_eq!((counter(&*first.resamplefd), counter(&*second.resamplefd)), (0, 0));
    bench.end(5);
    assert_eq!((counter(&*first.resamplefd), counter(&*second.resamplefd)), (0, 0), "nor does a later end");
}

#[test]
fn r6_h12_a_pin_unmasked_with_its_latch_set_asks_the_sharers_and_leaves_the_line() {
    let bench = Bench::new();
    let pin = Pin { chip: IOAPIC, pin: 5 };
    assert!(!bench.resamplers.notify(pin), "no resampler: deliver the level");
    let devices = [bench.sharer(5), bench.sharer(5)];
    bench.signal(&devices[0]);
    assert!(bench.resamplers.notify(pin));
    assert_eq!(devices.each_ref().map(|device| counter(&*device.resamplefd)), [1, 1]);
    assert_eq!(bench.lines.sources(5), RESAMPLE, "only an end lowers it");
    assert!(!bench.resamplers.notify(Pin { chip: IOAPIC, pin: 6 }));
    drop(devices.map(|device| device.irqfd));
    assert!(!bench.resamplers.notify(pin));
}

/// A call, its pins, and how often the sharer had been told by then.
type Call = (&'static str, ChipId, Vec<u16>, u64);

/// Notes what pins are asked for.
struct Asked {
    resamplefd: Arc<OwnedFd>,
    calls: Mutex<Vec<Call>>,
}

impl Asked {
    fn note(&self, what: &'static str, chip: ChipId, pins: &Pins) {
        self.calls.lock().push((what, chip, pins.to_vec(), counter(&*self.resamplefd)));
    }
}

impl PinInput for Asked {
    fn pins(&self, _: ChipId) -> u16 {
        24
    }

    fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
        Delivery::Ignored
    }

    fn reevaluate(&self, chip: ChipId, pins: &Pins) {
        self.note("reevaluate", chip, pins);
    }

    fn withdraw(&self, chip: ChipId, pins: &Pins) {
        self.note("withdraw", chip, pins);
    }
}

#[test]
fn r6_of_unmasked_pins_the_shared_ones_forget_their_latch_before_the_sharer_is_told_and_others_are_sent() {
    let bench = Bench::new();
    let device = bench.sharer(5);
    let asked = Asked { resamplefd: Arc::clone(&device.resamplefd), calls: Mutex::default() };
    assert!(bench.resamplers.covers(Pin { chip: IOAPIC, pin: 5 }));
    assert!(!bench.resamplers.covers(Pin { chip: IOAPIC, pin: 6 }));
    bench.resamplers.unmasked(&asked, IOAPIC, &Pins::from_slice(&[4, 5]));
    assert_eq!(*asked.calls.lock(), [("reevaluate", IOAPIC, vec![4], 0), ("withdraw", IOAPIC, vec![5], 0)]);
    assert_eq!(counter(&*device.resamplefd), 1);
}

#[test]
fn only_the_line_of_a_single_sharer_is_lowered_for_him() {
    let bench = Bench::new();
    let [first, second] = [bench.sharer(5), bench.sharer(5)];
    bench.signal(&first);
    assert!(!bench.resamplers.lower_unshared(5), "the other one may hold it up");
    assert_eq!(bench.lines.sources(5), RESAMPLE);
    drop(second.irqfd);
    assert!(bench.resamplers.lower_unshared(5));
    assert_eq!(bench.lines.sources(5), 0);
    assert!(!bench.resamplers.lower_unshared(6), "nobody");
}

#[test]
fn r7_a_resample_binding_to_a_message_is_accepted_and_never_resamples() {
    let (table, notes) = message_table();
    route(&table, 40, Route::Msi(MsiMessage::new(0, 0x40)));
    let (dispatcher, resamplers) = (dispatcher(), Resamplers::new(Arc::clone(&table)));
    let (fd, resamplefd) = (eventfd(), eventfd());
    let gsi = RoutedGsi::new(&table, 40).unwrap();
    let _irqfd = resamplers.attach(&dispatcher, &gsi, &fd, &resamplefd).unwrap();
    for _ in 0..2 {
        write(&fd, 1);
        dispatch(&dispatcher);
        assert_eq!(notes.take(), [MsiMessage::new(0, 0x40)], "each signal is a message");
    }
    resamplers.ended(IOAPIC, &Pins::from_slice(&[40]));
    assert_eq!(counter(&resamplefd), 0);
}

#[test]
fn f5_a_refused_resample_binding_leaves_the_line_to_those_who_have_it() {
    let bench = Bench::new();
    let device = bench.sharer(5);
    bench.signal(&device);
    let resamplefd = eventfd();
    let refused = bench.resamplers.attach_unrouted(&bench.dispatcher, 5, &device.fd, &resamplefd);
    assert_eq!(refused.unwrap_err().errno(), crate::Errno::BUSY);
    assert_eq!(bench.lines.sources(5), RESAMPLE);
    bench.end(5);
    assert_eq!((counter(&*device.resamplefd), counter(&resamplefd)), (1, 0));
    assert!(device.irqfd.retarget(Counted::default().target()).is_err(), "its line is not its own");
}

#[test]
fn f7_a_resample_binding_beyond_the_table_swallows() {
    let bench = Bench::new();
    let (fd, resamplefd) = (eventfd(), eventfd());
    let _irqfd = bench.resamplers.attach_unrouted(&bench.dispatcher, 100_000, &fd, &resamplefd).unwrap();
    write(&fd, 1);
    dispatch(&bench.dispatcher);
    assert_eq!((counter(&fd), counter(&resamplefd)), (0, 0));
}

#[test]
fn one_resamplefd_may_serve_several_bindings() {
    let bench = Bench::new();
    let resamplefd = eventfd();
    let fds = [eventfd(), eventfd()];
    let _irqfds =
        fds.each_ref().map(|fd| bench.resamplers.attach_unrouted(&bench.dispatcher, 5, fd, &resamplefd).unwrap());
    bench.end(5);
    assert_eq!(counter(&resamplefd), 2);
}

#[test]
fn what_was_raised_is_saved_and_raised_again() {
    let bench = Bench::new();
    let devices = [bench.sharer(5), bench.sharer(6), bench.sharer(9)];
    bench.signal(&devices[0]);
    bench.signal(&devices[2]);
    let state = bench.resamplers.save();
    assert_eq!(state, ResamplersState { raised: vec![5, 9] });

    let other = Bench::new();
    let error = other.resamplers.restore(&state).unwrap_err().to_string();
    assert!(error.contains("GSI 5") && error.contains("no such irqfd"), "{error}");
    let _devices = [other.sharer(5), other.sharer(9)];
    other.resamplers.check(&state).unwrap();
    for raised in [vec![9, 5], vec![5, 5], vec![5, 6], vec![5, u32::MAX]] {
        assert!(other.resamplers.check(&ResamplersState { raised: raised.clone() }).is_err());
        assert!(other.resamplers.restore(&ResamplersState { raised }).is_err());
        assert_eq!((other.lines.sources(5), other.resamplers.save().raised), (0, vec![]), "nothing is changed");
    }
    other.resamplers.restore(&state).unwrap();
    assert_eq!((other.lines.sources(5), other.lines.sources(9)), (RESAMPLE, RESAMPLE));
    assert_eq!(other.resamplers.save(), state);
    other.end(5);
    assert_eq!(other.resamplers.save().raised, [9]);
}
