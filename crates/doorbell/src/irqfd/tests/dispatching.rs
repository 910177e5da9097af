//! The dispatcher: batches, loops, threads, and sinks that call back.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::Errno;

/// Waits for another thread, for as long as a busy machine may need.
pub(super) fn eventually(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happened for 30 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many descriptors this process may have, after asking for as many as it can get, within reason.
pub(super) fn most_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = 1 << 20;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.unwrap_or(most).min(most);
    // Refused: then it stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(most).min(most)
}

#[test]
fn thousands_of_descriptors_in_batches() {
    // Two descriptors for each binding; other tests have theirs.
    let many = (most_descriptors() / 2).saturating_sub(200).min(6000) as usize / 2;
    for dispatcher in [dispatcher(), lazy()] {
        let sink = Counted::default();
        let fds: Vec<OwnedFd> = (0..many).map(|_| eventfd()).collect();
        let irqfds: Vec<Irqfd> = fds.iter().map(|fd| dispatcher.attach(fd, sink.target()).unwrap()).collect();
        fds.iter().for_each(|fd| write(fd, 1));
        let mut batches = Vec::new();
        loop {
            match dispatcher.dispatch().unwrap() {
                0 => break,
                ready => batches.push(ready),
            }
        }
        assert_eq!(batches.iter().sum::<usize>(), many);
        assert!(batches[..batches.len() - 1].iter().all(|&ready| ready == BATCH), "{batches:?}");
        assert_eq!(sink.get() as usize, many);
        drop(irqfds);
        let again: Vec<Irqfd> = fds.iter().map(|fd| dispatcher.attach(fd, sink.target()).unwrap()).collect();
        fds.iter().for_each(|fd| write(fd, 1));
        dispatch(&dispatcher);
        assert_eq!(sink.get() as usize, 2 * many, "slots that were used before work again");
        drop(again);
    }
}

#[test]
fn an_embedders_loop_polls_it() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let readable = || {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&dispatcher, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    assert!(!readable());
    write(&fd, 1);
    assert!(readable());
    dispatch(&dispatcher);
    assert!(!readable());
    assert_eq!(sink.get(), 1);
}

#[test]
fn waiting_ends_with_the_timeout() {
    let dispatcher = dispatcher();
    let start = Instant::now();
    assert_eq!(dispatcher.wait(Some(Duration::from_millis(20))).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(19));
}

#[test]
fn threads_dispatch_and_stop_one_by_one() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    let mut threads: Vec<DispatchThread> = (0..3).map(|_| dispatcher.spawn("irqfd").unwrap()).collect();
    for round in 1.. {
        write(&fd, 1);
        eventually(|| sink.get() == round);
        let Some(thread) = threads.pop() else { break };
        thread.stop().unwrap();
        if threads.is_empty() {
            break;
        }
    }
    write(&fd, 1);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(sink.get(), 3, "nobody dispatches any more");
    dispatch(&dispatcher);
    assert_eq!(sink.get(), 4);
}

#[test]
fn dropping_a_thread_stops_it_and_waits_for_it() {
    let dispatcher = dispatcher();
    let inner = dispatcher.downgrade();
    let thread = dispatcher.spawn("irqfd").unwrap();
    assert_eq!(inner.strong_count(), 3, "the dispatcher, the thread, and who stops it");
    drop(thread);
    assert_eq!(inner.strong_count(), 1);
}

#[test]
fn a_sink_that_panics_is_reported_by_its_thread_and_leaves_the_binding_usable() {
    let (dispatcher, fd) = (dispatcher(), eventfd());
    let sink = IrqfdTarget::Sink(Arc::new(|| -> Delivery { panic!("a sink of the embedder") }));
    let irqfd = dispatcher.attach(&fd, sink).unwrap();
    let thread = dispatcher.spawn("irqfd").unwrap();
    write(&fd, 1);
    eventually(|| counter(&fd) == 0);
    assert!(thread.stop().unwrap_err().to_string().contains("panicked"));
    let counted = Counted::default();
    irqfd.retarget(counted.target()).unwrap();
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(counted.get(), 1);
}

/// An irqfd whose sink does something to it.
fn with_self(
    dispatcher: &Dispatcher,
    fd: &OwnedFd,
    act: impl Fn(&Mutex<Option<Irqfd>>) + Send + Sync + 'static,
) -> Arc<Mutex<Option<Irqfd>>> {
    let own = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&own);
    let sink = move || {
        act(&inside);
        Delivery::Delivered(1)
    };
    *own.lock() = Some(dispatcher.attach(fd, IrqfdTarget::Sink(Arc::new(sink))).unwrap());
    own
}

#[test]
fn a_sink_may_drop_its_own_irqfd() {
    let (dispatcher, fd, count) = (dispatcher(), eventfd(), Counted::default());
    let counting = count.clone();
    let own = with_self(&dispatcher, &fd, move |own| {
        counting.0.fetch_add(1, Ordering::Relaxed);
        drop(own.lock().take());
    });
    write(&fd, 1);
    dispatch(&dispatcher);
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!((count.get(), counter(&fd)), (1, 1), "unbound when its sink returned");
    assert!(own.lock().is_none());
    let again = Counted::default();
    let _again = dispatcher.attach(&fd, again.target()).unwrap();
    dispatch(&dispatcher);
    assert_eq!(again.get(), 1, "and free to be bound again");
}

#[test]
fn a_sink_may_drop_another_irqfd_of_the_same_batch() {
    let dispatcher = dispatcher();
    let fds = [eventfd(), eventfd()];
    let irqfds: Arc<[Mutex<Option<Irqfd>>; 2]> = Arc::default();
    let count = Counted::default();
    for (at, fd) in fds.iter().enumerate() {
        let (irqfds_inside, count) = (Arc::clone(&irqfds), count.clone());
        let sink = move || {
            count.0.fetch_add(1, Ordering::Relaxed);
            drop(irqfds_inside[1 - at].lock().take());
            Delivery::Delivered(1)
        };
        *irqfds[at].lock() = Some(dispatcher.attach(fd, IrqfdTarget::Sink(Arc::new(sink))).unwrap());
    }
    fds.iter().for_each(|fd| write(fd, 1));
    assert_eq!(dispatcher.dispatch().unwrap(), 2, "both are in one batch");
    assert_eq!(count.get(), 1, "but the first one ended the second");
    assert_eq!(fds.iter().map(counter).sum::<u64>(), 1, "whose counter stays");
}

#[test]
fn inside_its_sink_an_irqfd_refuses_what_would_wait_for_the_sink() {
    let dispatcher = Arc::new(dispatcher());
    let (fd, inside) = (eventfd(), Arc::clone(&dispatcher));
    let answers = Arc::new(OnceLock::new());
    let answered = Arc::clone(&answers);
    let own = with_self(&dispatcher, &fd, move |own| {
        let own = own.lock();
        let own = own.as_ref().unwrap();
        let answer = [
            own.mask().unwrap_err().errno(),
            own.unmask().unwrap_err().errno(),
            own.retarget(Counted::default().target()).unwrap_err().errno(),
            Errno::from_raw_os_error(inside.dispatch().unwrap_err().raw_os_error().unwrap()),
        ];
        answered.set(answer).unwrap();
    });
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!(answers.get(), Some(&[Errno::BUSY, Errno::BUSY, Errno::BUSY, Errno::DEADLK]));
    own.lock().take();
}

#[test]
fn a_controller_may_drop_the_irqfd_whose_message_it_is_sent() {
    struct Dropping(Mutex<Option<Irqfd>>, Counted);
    impl MsiTarget for Dropping {
        fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
            self.1.0.fetch_add(1, Ordering::Relaxed);
            drop(self.0.lock().take());
            Ok(Delivery::Delivered(1))
        }
        fn prepare(&self, _: &MsiMessage) -> Option<Target> {
            None
        }
        fn fire(&self, _: Target) -> Delivery {
            unreachable!("nothing was resolved")
        }
    }
    let (dispatcher, fds, count) = (dispatcher(), [eventfd(), eventfd()], Counted::default());
    let controller = Arc::new(Dropping(Mutex::new(None), count.clone()));
    let msi = Arc::clone(&controller) as Arc<dyn MsiTarget>;
    let table = Arc::new(RouteTable::new(Arc::clone(&msi), Arc::new(NoPins), RoutePolicy::S2_TABLE));
    route(&table, 1, Route::Msi(MsiMessage::new(0, 1)));
    let targets =
        [IrqfdTarget::unrouted(&table, 1), IrqfdTarget::Message { target: msi, message: MsiMessage::new(0, 2) }];
    for (at, target) in targets.into_iter().enumerate() {
        *controller.0.lock() = Some(dispatcher.attach(&fds[at], target).unwrap());
        write(&fds[at], 1);
        dispatch(&dispatcher);
        write(&fds[at], 1);
        dispatch(&dispatcher);
        assert_eq!((count.get() as usize, counter(&fds[at])), (at + 1, 1));
    }
}
