//! The hazards of irqfd.md, with real threads; the small ones are loom models too.

use std::{
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU64},
    thread,
    time::{Duration, Instant},
};

use super::{
    dispatching::{eventually, most_descriptors},
    *,
};

/// How long a storm blows.
const STORM: Duration = Duration::from_millis(700);

fn storm(mut round: impl FnMut(u64)) -> u64 {
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < STORM {
        round(rounds);
        rounds += 1;
    }
    assert!(rounds > 10, "only {rounds} rounds");
    rounds
}

#[test]
fn h1_a_write_before_or_during_assign_is_never_without_an_event() {
    for dispatcher in [dispatcher(), lazy()] {
        let _thread = dispatcher.spawn("irqfd").unwrap();
        storm(|_| {
            let (fd, sink) = (eventfd(), Counted::default());
            thread::scope(|scope| {
                scope.spawn(|| write(&fd, 1));
                let irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
                eventually(|| sink.get() > 0);
                drop(irqfd);
            });
        });
    }
}

#[test]
fn h2_after_the_drop_nothing_is_delivered_in_a_storm_of_writes() {
    for dispatcher in [dispatcher(), lazy()] {
        let _threads = [dispatcher.spawn("irqfd 0").unwrap(), dispatcher.spawn("irqfd 1").unwrap()];
        let (fd, stop) = (eventfd(), AtomicBool::new(false));
        let delivered = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    write(&fd, 1);
                }
            });
            storm(|_| {
                // Boxed and cleared: a late delivery would find it false, or freed.
                let alive = Arc::new(AtomicBool::new(true));
                let (inside, count) = (Arc::clone(&alive), Counted::default());
                let counting = Arc::clone(&count.0);
                let sink = move || {
                    counting.fetch_add(1, Ordering::Relaxed);
                    assert!(inside.load(Ordering::SeqCst), "delivered after the drop");
                    Delivery::Delivered(1)
                };
                let irqfd = dispatcher.attach(&fd, IrqfdTarget::Sink(Arc::new(sink))).unwrap();
                eventually(|| count.get() > 0);
                drop(irqfd);
                alive.store(false, Ordering::SeqCst);
                let after = count.get();
                assert_eq!(Arc::strong_count(&alive), 1, "the sink is gone");
                thread::yield_now();
                assert_eq!(count.get(), after);
                delivered.fetch_add(after.into(), Ordering::Relaxed);
            });
            stop.store(true, Ordering::Relaxed);
        });
        assert!(delivered.load(Ordering::Relaxed) > 0);
        let [a, b] = _threads;
        a.stop().unwrap();
        b.stop().unwrap();
    }
}

#[test]
fn h3_the_last_close_the_drop_and_the_end_of_the_machine_at_once_shut_down_once() {
    storm(|_| {
        let (machine, ended) = (dispatcher(), Counted::default());
        struct Ends(Counted);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (fd, ends) = (eventfd(), Ends(ended.clone()));
        let sink = move || {
            let _ends = &ends;
            Delivery::Delivered(1)
        };
        let irqfd = machine.attach(&fd, IrqfdTarget::Sink(Arc::new(sink))).unwrap();
        let again = fd.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || drop(fd));
            scope.spawn(move || drop(machine));
            drop(irqfd);
        });
        assert_eq!(ended.get(), 1);
        drop(dispatcher().attach(&again, Counted::default().target()).unwrap());
    });
}

#[test]
fn h4_a_number_that_is_closed_and_reopened_meanwhile_never_binds_the_wrong_file() {
    let dispatcher = dispatcher();
    // Beyond those that the other tests are given.
    let number = RawFd::try_from(most_descriptors()).unwrap() - 2;
    let (wanted, stop) = (eventfd(), AtomicBool::new(false));
    let id = EventfdId::of(&wanted).unwrap();
    let pipe = rustix::pipe::pipe().unwrap().0;
    let mut bound = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                // SAFETY: the number is this test's alone, and whatever it refers to is an OwnedFd for this long.
                let mut place =
                    std::mem::ManuallyDrop::new(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) });
                let file = if turn % 2 == 0 { wanted.as_fd() } else { pipe.as_fd() };
                rustix::io::dup2(file, &mut place).unwrap();
                if turn % 3 == 0 {
                    drop(std::mem::ManuallyDrop::into_inner(place));
                }
            }
        });
        storm(|_| {
            // SAFETY: asking the kernel about a number that may be closed is what this is about.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            match dispatcher.attach(fd, Counted::default().target()) {
                Ok(irqfd) => {
                    assert_eq!(irqfd.eventfd(), id);
                    bound += 1;
                }
                Err(error) => {
                    assert!(matches!(error.errno(), crate::Errno::BADF | crate::Errno::INVAL), "{error}")
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert!(bound > 0);
    assert!(wanted.as_raw_fd() != number);
}

#[test]
fn h5_one_eventfd_raced_into_two_machines_has_one_winner_and_is_free_after_its_drop() {
    let machines = [dispatcher(), dispatcher()];
    storm(|_| {
        let fd = eventfd();
        let sink = Counted::default();
        let attach = |machine: &Dispatcher| machine.attach(&fd, sink.target());
        let [a, b] = thread::scope(|scope| {
            let other = scope.spawn(|| attach(&machines[1]));
            [attach(&machines[0]), other.join().unwrap()]
        });
        let (winner, loser) = match (a, b) {
            (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
            (a, b) => panic!("one wins: {a:?}, {b:?}"),
        };
        assert_eq!(loser.errno(), crate::Errno::BUSY);
        drop(winner);
        drop(attach(&machines[0]).unwrap());
        drop(attach(&machines[1]).unwrap());
    });
}

#[test]
fn h6_events_are_delivered_while_the_binding_lock_is_held() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    write(&fd, 1);
    let held = dispatcher.hold_lock();
    dispatch(&dispatcher);
    drop(held);
    assert_eq!(sink.get(), 1);
}

#[test]
fn h6_writes_and_binding_calls_at_once_do_not_stop_each_other() {
    let dispatcher = dispatcher();
    let _thread = dispatcher.spawn("irqfd").unwrap();
    let (fds, stop) = ([eventfd(), eventfd()], AtomicBool::new(false));
    thread::scope(|scope| {
        let stop = &stop;
        for fd in &fds {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    write(fd, 1);
                }
            });
        }
        storm(|round| {
            let sink = Counted::default();
            drop(dispatcher.attach(&fds[round as usize % 2], sink.target()).unwrap());
        });
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn h7_an_event_that_was_taken_before_the_drop_does_not_reach_the_next_binding() {
    // The event of the second is in the batch; the sink of the first replaces the second by a third in the same slot.
    let (dispatcher, second, third) = (Arc::new(dispatcher()), Counted::default(), Counted::default());
    let fds = [eventfd(), eventfd(), eventfd()];
    let irqfd = Arc::new(Mutex::new(None));
    let replace = {
        let (dispatcher, irqfd, third) = (Arc::downgrade(&dispatcher), Arc::clone(&irqfd), third.clone());
        let fd = fds[2].try_clone().unwrap();
        move || {
            drop(irqfd.lock().take());
            *irqfd.lock() = Some(dispatcher.upgrade().unwrap().attach(&fd, third.target()).unwrap());
            Delivery::Delivered(1)
        }
    };
    let _first = dispatcher.attach(&fds[0], IrqfdTarget::Sink(Arc::new(replace))).unwrap();
    let bound = dispatcher.attach(&fds[1], second.target()).unwrap();
    let place = format!("{bound:?}");
    *irqfd.lock() = Some(bound);
    write(&fds[0], 1);
    write(&fds[1], 1);
    assert_eq!(dispatcher.dispatch().unwrap(), 2);
    assert_eq!((second.get(), third.get(), counter(&fds[1])), (0, 0, 1));
    let index = |text: &str| text.split("token: ").nth(1).unwrap().split('.').next().unwrap().to_owned();
    assert_eq!(index(&format!("{:?}", irqfd.lock().as_ref().unwrap())), index(&place), "it was the same slot");
}

#[test]
fn h8_an_event_during_a_change_of_target_meets_the_old_one_or_the_new_one_and_never_the_old_one_after() {
    for dispatcher in [dispatcher(), lazy()] {
        let _thread = dispatcher.spawn("irqfd").unwrap();
        let (fd, stop) = (eventfd(), AtomicBool::new(false));
        let current = Arc::new(AtomicU64::new(0));
        let stale = Counted::default();
        let target = |generation: u64| {
            let (current, stale) = (Arc::clone(&current), stale.clone());
            IrqfdTarget::Sink(Arc::new(move || {
                if current.load(Ordering::SeqCst) > generation {
                    stale.0.fetch_add(1, Ordering::Relaxed);
                }
                Delivery::Delivered(1)
            }))
        };
        let irqfd = dispatcher.attach(&fd, target(0)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    write(&fd, 1);
                }
            });
            storm(|round| {
                irqfd.retarget(target(round + 1)).unwrap();
                current.store(round + 1, Ordering::SeqCst);
            });
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(stale.get(), 0);
        let last = Counted::default();
        irqfd.retarget(last.target()).unwrap();
        take(&fd);
        write(&fd, 1);
        eventually(|| last.get() > 0);
    }
}

#[test]
fn h11_ends_against_sharers_who_come_and_go() {
    let (table, lines) = pin_table();
    let (dispatcher, resamplers) = (dispatcher(), Resamplers::new(Arc::clone(&table)));
    let _thread = dispatcher.spawn("irqfd").unwrap();
    let stop = AtomicBool::new(false);
    let ends = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                resamplers.ended(IOAPIC, &Pins::from_slice(&[5]));
                ends.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        storm(|round| {
            let (fd, resamplefd) = (eventfd(), eventfd());
            let attach = || resamplers.attach_unrouted(&dispatcher, 5, &fd, &resamplefd).unwrap();
            let irqfd = attach();
            write(&fd, 1);
            if round % 2 == 0 {
                // Whoever is bound is told of some end.
                eventually(|| counter(&resamplefd) > 0);
            }
            drop(irqfd);
            assert_eq!(lines.sources(5), 0, "the last one lowered it");
            let told = counter(&resamplefd);
            let before = ends.load(Ordering::Relaxed);
            eventually(|| ends.load(Ordering::Relaxed) > before + 1);
            assert_eq!(counter(&resamplefd), told, "nobody who left is told");
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!resamplers.notify(Pin { chip: IOAPIC, pin: 5 }));
}

#[test]
fn h11_a_device_that_keeps_its_condition_is_never_forgotten() {
    // Two devices share a line. Each raises, and raises again when told, until it was served 300 times in all.
    let (table, lines) = pin_table();
    let (dispatcher, resamplers) = (dispatcher(), Resamplers::new(Arc::clone(&table)));
    let _thread = dispatcher.spawn("irqfd").unwrap();
    let served = [Counted::default(), Counted::default()];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for served in &served {
            scope.spawn(|| {
                let (fd, resamplefd) = (eventfd(), eventfd());
                let _irqfd = resamplers.attach_unrouted(&dispatcher, 5, &fd, &resamplefd).unwrap();
                while served.get() < 300 {
                    write(&fd, 1);
                    rustix::io::read(&resamplefd, &mut [0; 8]).unwrap();
                    served.0.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // The guest: it ends the interrupt whenever the line is high.
        let guest = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if lines.sources(5) != 0 {
                    resamplers.ended(IOAPIC, &Pins::from_slice(&[5]));
                } else {
                    thread::yield_now();
                }
            }
        });
        eventually(|| served.iter().all(|served| served.get() == 300));
        stop.store(true, Ordering::Relaxed);
        guest.join().unwrap();
    });
}

#[test]
fn h13_the_initial_event_may_be_repeated_by_a_later_one() {
    // The counter was not taken, so a write that adds nothing to it is an event all the same.
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    write(&fd, 7);
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    dispatch(&dispatcher);
    write(&fd, 0);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (2, 0), "as documented");
}
