//! The F rows of irqfd.md.

use crate::Errno;

use super::*;

fn errno(result: Result<Irqfd, Error>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn f4_not_open_is_ebadf_and_not_an_eventfd_is_einval() {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let (dispatcher, sink) = (dispatcher(), Counted::default());
    let pipe = rustix::pipe::pipe().unwrap();
    let error = dispatcher.attach(&pipe.0, sink.target()).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(error.to_string().starts_with("the irqfd's descriptor: "), "{error}");
    assert_eq!(errno(dispatcher.attach(std::fs::File::open("/proc/self/stat").unwrap(), sink.target())), Errno::INVAL);
    assert_eq!(errno(dispatcher.attach(&dispatcher, sink.target())), Errno::INVAL, "an epoll instance is not one");

    // A number so high that no other test is given it.
    let highest = dispatching::most_descriptors() - 1;
    // SAFETY: nothing is done with the number but to ask the kernel about it.
    let closed = unsafe { BorrowedFd::borrow_raw(i32::try_from(highest).unwrap()) };
    assert_eq!(errno(dispatcher.attach(closed, sink.target())), Errno::BADF);
    assert_eq!(EventfdId::of(closed).unwrap_err().errno(), Errno::BADF);

    let (table, _) = pin_table();
    let resamplers = Resamplers::new(table);
    let fd = eventfd();
    assert_eq!(
        errno(resamplers.attach_unrouted(&dispatcher, 5, &fd, &pipe.0)),
        Errno::INVAL,
        "the same for resamplefd"
    );
    assert_eq!(errno(resamplers.attach_unrouted(&dispatcher, 5, &fd, closed)), Errno::BADF);
    assert!(fd.as_raw_fd() >= 0 && dispatcher.attach(&fd, sink.target()).is_ok(), "nothing was left bound");
}

#[test]
fn f5_an_eventfd_is_bound_once_in_the_process() {
    let (first, second, sink) = (dispatcher(), dispatcher(), Counted::default());
    let fd = eventfd();
    let duplicate = fd.try_clone().unwrap();
    let irqfd = first.attach(&fd, sink.target()).unwrap();
    assert_eq!(errno(first.attach(&fd, sink.target())), Errno::BUSY, "the same machine");
    assert_eq!(errno(first.attach(&duplicate, sink.target())), Errno::BUSY, "by another descriptor");
    assert_eq!(errno(second.attach(&fd, sink.target())), Errno::BUSY, "another machine");
    drop(irqfd);
    let _second = second.attach(&duplicate, sink.target()).unwrap();
    assert_eq!(errno(first.attach(&fd, sink.target())), Errno::BUSY);
}

#[test]
fn f5a_by_the_older_rule_two_machines_share_an_eventfd_and_both_see_each_event() {
    let options = DispatcherOptions { exclusive: Exclusive::Dispatcher, ..DispatcherOptions::default() };
    let (first, second) = (Dispatcher::new(options).unwrap(), Dispatcher::new(options).unwrap());
    let (one, two) = (Counted::default(), Counted::default());
    let fd = eventfd();
    let _one = first.attach(&fd, one.target()).unwrap();
    let _two = second.attach(&fd, two.target()).unwrap();
    assert_eq!(errno(first.attach(&fd, one.target())), Errno::BUSY, "not twice in one");
    assert_eq!(errno(dispatcher().attach(&fd, one.target())), Errno::BUSY, "not beside one that wants it alone");
    for round in 1..=3 {
        write(&fd, 1);
        dispatch(&first);
        dispatch(&second);
        assert_eq!((one.get(), two.get()), (round, round));
    }
}

#[test]
fn f6_two_eventfds_may_lead_to_one_gsi() {
    let (table, notes) = message_table();
    route(&table, 3, Route::Msi(MsiMessage::new(0, 0x31)));
    let gsi = RoutedGsi::new(&table, 3).unwrap();
    let dispatcher = dispatcher();
    let (a, b) = (eventfd(), eventfd());
    let _a = dispatcher.attach(&a, gsi.clone()).unwrap();
    let _b = dispatcher.attach(&b, gsi).unwrap();
    write(&a, 1);
    write(&b, 1);
    dispatch(&dispatcher);
    assert_eq!(notes.take(), [MsiMessage::new(0, 0x31); 2]);
}

#[test]
fn f7_an_unrouted_gsi_swallows_its_events_and_does_not_replay_them() {
    let (table, notes) = message_table();
    let dispatcher = dispatcher();
    for gsi in [7, 100_000] {
        let fd = eventfd();
        let irqfd = dispatcher.attach(&fd, IrqfdTarget::unrouted(&table, gsi)).unwrap();
        write(&fd, 2);
        dispatch(&dispatcher);
        assert_eq!(counter(&fd), 0, "drained");
        if gsi == 7 {
            route(&table, 7, Route::Msi(MsiMessage::new(0, 0x37)));
            dispatch(&dispatcher);
            assert_eq!(notes.take(), [], "not replayed");
            write(&fd, 1);
            dispatch(&dispatcher);
            assert_eq!(notes.take(), [MsiMessage::new(0, 0x37)], "but routed from now on");
        }
        drop(irqfd);
    }
    assert_eq!(notes.take(), []);
}

#[test]
fn f7_the_typed_constructor_wants_the_route_first() {
    let (table, _) = message_table();
    assert!(matches!(RoutedGsi::new(&table, 9), Err(Error::Unrouted(9))));
    assert!(matches!(RoutedGsi::new(&table, 4096), Err(Error::NoSuchGsi { gsi: 4096, last: 4095 })));
    route(&table, 9, Route::Msi(MsiMessage::new(0, 0x39)));
    assert_eq!(RoutedGsi::new(&table, 9).unwrap().gsi(), 9);
}

#[test]
fn f8_the_binding_knows_its_eventfd_by_any_descriptor() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    assert_eq!(irqfd.eventfd(), EventfdId::of(fd.try_clone().unwrap()).unwrap());
    assert_eq!(irqfd.eventfd(), dispatcher.eventfd_id(&fd).unwrap());
    assert_ne!(irqfd.eventfd(), EventfdId::of(eventfd()).unwrap());
}

#[test]
fn f8a_f8b_after_the_drop_the_counter_stays_and_nothing_is_injected() {
    for dispatcher in [dispatcher(), lazy()] {
        let (sink, fd) = (Counted::default(), eventfd());
        let irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
        drop(irqfd);
        write(&fd, 1);
        assert_eq!(dispatcher.dispatch().unwrap(), 0, "epoll does not know it any more");
        assert_eq!((counter(&fd), sink.get()), (1, 0));
    }
}

#[test]
fn f8b_what_was_not_yet_dispatched_is_kept_for_the_next_binding() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    write(&fd, 1);
    drop(irqfd);
    dispatch(&dispatcher);
    assert_eq!((counter(&fd), sink.get()), (1, 0));
    let _again = dispatcher.attach(&fd, sink.target()).unwrap();
    dispatch(&dispatcher);
    assert_eq!(sink.get(), 1);
}

#[test]
fn f10_a_counter_that_is_not_zero_is_one_event_and_stays() {
    for dispatcher in [dispatcher(), lazy()] {
        let (sink, fd) = (Counted::default(), eventfd());
        write(&fd, 7);
        let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
        dispatch(&dispatcher);
        dispatch(&dispatcher);
        assert_eq!((sink.get(), counter(&fd)), (1, 7), "7 stays 7");
    }
}

#[test]
fn f10_then_a_write_is_an_event_of_its_own_that_drains() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    write(&fd, 7);
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    dispatch(&dispatcher);
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (2, 0));
}

#[test]
fn f10_a_write_before_the_first_dispatch_makes_one_event_with_the_initial_one_and_drains() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    write(&fd, 7);
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (1, 0), "the documented difference");
}

#[test]
fn f11_a_write_of_any_size_is_one_event_and_the_counter_is_taken() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    for (round, value) in [1, 2, 1000, u64::MAX - 1].into_iter().enumerate() {
        write(&fd, value);
        dispatch(&dispatcher);
        assert_eq!((sink.get(), counter(&fd)), (round as u32 + 1, 0), "after a write of {value}");
    }
}

#[test]
fn f11_a_lazy_dispatcher_leaves_the_counter_but_never_full() {
    let (dispatcher, sink, fd) = (lazy(), Counted::default(), eventfd());
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    for round in 1..=10 {
        write(&fd, 3);
        dispatch(&dispatcher);
        assert_eq!((sink.get(), counter(&fd)), (round, 3 * u64::from(round)));
    }
    write(&fd, u64::MAX - 1 - 30);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (11, 0), "full: a writer would have had to wait");
    let mut seen = 0;
    for _ in 0..600 {
        write(&fd, 1);
        dispatch(&dispatcher);
        seen = seen.max(counter(&fd));
    }
    assert_eq!((sink.get(), seen), (611, 254), "taken every so often, and each event once");
}

#[test]
fn f11_a_semaphore_gives_one_event_per_write_and_loses_one_of_its_count() {
    let (dispatcher, sink) = (dispatcher(), Counted::default());
    let fd = rustix::event::eventfd(0, EventfdFlags::SEMAPHORE).unwrap();
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    write(&fd, 3);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (1, 2));
}

#[test]
fn f12_closing_the_descriptor_that_was_handed_in_changes_nothing() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let writer = fd.try_clone().unwrap();
    let _irqfd = dispatcher.attach(fd, sink.target()).unwrap();
    write(&writer, 1);
    dispatch(&dispatcher);
    assert_eq!(sink.get(), 1);
}

#[test]
fn f13_dropping_the_dispatcher_unbinds_everything() {
    let (dispatcher, sink) = (dispatcher(), Counted::default());
    let fds: Vec<OwnedFd> = (0..200).map(|_| eventfd()).collect();
    let irqfds: Vec<Irqfd> = fds.iter().map(|fd| dispatcher.attach(fd, sink.target()).unwrap()).collect();
    drop(dispatcher);
    let other = super::dispatcher();
    let _bound: Vec<Irqfd> = fds.iter().map(|fd| other.attach(fd, sink.target()).unwrap()).collect();
    assert!(!irqfds[0].mask().unwrap(), "inert, not dangling");
    drop(irqfds);
    fds.iter().for_each(|fd| write(fd, 1));
    dispatch(&other);
    assert_eq!(sink.get(), 200, "the late drops took nothing from the new bindings");
    assert_eq!(Arc::strong_count(&sink.0), 201, "the sinks of the old ones are gone");
}

#[test]
fn f15_a_pin_gets_a_pulse() {
    let (table, lines) = pin_table();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = Arc::clone(&seen);
    lines.watch(move |pin, level| seeing.lock().push((pin, level)));
    let (dispatcher, fd) = (dispatcher(), eventfd());
    let _irqfd = dispatcher.attach(&fd, RoutedGsi::new(&table, 6).unwrap()).unwrap();
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(*seen.lock(), [(6, true), (6, false)]);
}

#[test]
fn f17_after_a_route_change_only_the_new_message_is_delivered() {
    let (table, notes) = message_table();
    route(&table, 4, Route::Msi(MsiMessage::new(0, 0xa)));
    let (dispatcher, fd) = (dispatcher(), eventfd());
    let _irqfd = dispatcher.attach(&fd, RoutedGsi::new(&table, 4).unwrap()).unwrap();
    route(&table, 4, Route::Msi(MsiMessage::new(0, 0xb)));
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(notes.take(), [MsiMessage::new(0, 0xb)]);
}

#[test]
fn s2_direct_binds_device_and_event_with_no_table() {
    let (controller, dispatcher, fd) = (Arc::new(Notes::default()), dispatcher(), eventfd());
    let target = |message| IrqfdTarget::Message { target: Arc::clone(&controller) as Arc<dyn MsiTarget>, message };
    let event = |address, data| MsiMessage::new(address, data).from_device(DeviceId(0x18));
    let irqfd = dispatcher.attach(&fd, target(event(0x808_0040, 5))).unwrap();
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(controller.take(), [event(0x808_0040, 5)], "sent whole where it cannot be resolved");

    irqfd.retarget(target(event(0, 6))).unwrap();
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(controller.take(), [MsiMessage::new(0, 6)], "through the resolved target where it can");

    assert_eq!((irqfd.mask().unwrap(), irqfd.mask().unwrap()), (false, true));
    write(&fd, 4);
    dispatch(&dispatcher);
    assert_eq!((controller.take(), irqfd.is_pending(), counter(&fd)), (vec![], true, 4));
    irqfd.retarget(target(event(0, 7))).unwrap();
    assert!(irqfd.unmask().unwrap());
    assert_eq!((controller.take(), irqfd.is_pending(), counter(&fd)), (vec![MsiMessage::new(0, 7)], false, 0));
    assert!(!irqfd.unmask().unwrap());
}

#[test]
fn mask_and_pending_bit_are_saved_and_restored() {
    let (dispatcher, sink) = (dispatcher(), Counted::default());
    let fds = [eventfd(), eventfd()];
    let [saved, restored] = fds.each_ref().map(|fd| dispatcher.attach(fd, sink.target()).unwrap());
    assert_eq!(saved.save(), IrqfdState { masked: false, pending: false });
    saved.mask().unwrap();
    assert_eq!(saved.save(), IrqfdState { masked: true, pending: false });
    write(&fds[0], 1);
    dispatch(&dispatcher);
    let state = saved.save();
    assert_eq!(state, IrqfdState { masked: true, pending: true });
    assert!(restored.restore(&IrqfdState { masked: false, pending: true }).is_err());
    assert_eq!(restored.save(), IrqfdState::default(), "nothing is changed");
    restored.restore(&state).unwrap();
    assert!(restored.unmask().unwrap());
    assert_eq!((sink.get(), restored.save()), (1, IrqfdState::default()));
}
