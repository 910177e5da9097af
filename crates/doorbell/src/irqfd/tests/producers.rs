//! Producers in processes of their own.

use std::process::{Child, Command, Stdio};

use super::{dispatching::eventually, *};

/// A process that writes 1 to `fd` a number of times, and then does as the shell is told.
fn process(fd: &OwnedFd, writes: u32, then: &str) -> Child {
    let one = r"printf '\001\0\0\0\0\0\0\0'";
    let script = format!("i=0; while [ $i -lt {writes} ]; do {one}; i=$((i+1)); done; {then}");
    let stdout = Stdio::from(fd.try_clone().unwrap());
    Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).stdout(stdout).spawn().unwrap()
}

#[test]
fn another_process_raises_the_interrupt() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let _irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    let mut child = process(&fd, 3, "exit 0");
    assert!(child.wait().unwrap().success());
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (1, 0), "three writes before one dispatch");
}

#[test]
fn a_killed_producer_is_reported_with_what_it_leaves_and_its_lines_are_lowered() {
    let (table, lines) = pin_table();
    let (dispatcher, resamplers) = (dispatcher(), Resamplers::new(Arc::clone(&table)));
    let (plain, level, shared, dropped) = (eventfd(), eventfd(), eventfd(), eventfd());
    let (resamplefd, sink) = (eventfd(), Counted::default());
    let attach = |gsi, fd: &OwnedFd| resamplers.attach_unrouted(&dispatcher, gsi, fd, &resamplefd).unwrap();

    let irqfds = [dispatcher.attach(&plain, sink.target()).unwrap(), attach(5, &level), attach(6, &shared)];
    let other = eventfd();
    let _other = attach(6, &other);

    let mut child = process(&level, 1, "exec sleep 1000");
    let exits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&exits);
    let pidfd = producer_pidfd(child.id()).unwrap();
    let producer = Producer::watch(&dispatcher, pidfd, move |exit| seen.lock().push(exit)).unwrap();
    irqfds.iter().for_each(|irqfd| assert!(producer.owns(irqfd)));
    let gone = dispatcher.attach(&dropped, sink.target()).unwrap();
    assert!(producer.owns(&gone));
    drop(gone);
    let line = LineSource::new(7).unwrap();
    assert!(producer.drives(&table, 8, line));
    table.line(8, line, true);
    table.line(8, LineSource::USER, true);
    write(&shared, 1);
    eventually(|| {
        dispatch(&dispatcher);
        lines.sources(5) == LineSource::RESAMPLE.bit()
    });
    assert!(!producer.is_dead() && exits.lock().is_empty());

    child.kill().unwrap();
    child.wait().unwrap();
    dispatch(&dispatcher);
    let bound = irqfds.iter().map(Irqfd::eventfd).collect();
    assert_eq!(*exits.lock(), [ProducerExit { bound, lowered: vec![5, 8] }], "6 is shared with a living one");
    assert!(producer.is_dead());
    let resample = LineSource::RESAMPLE.bit();
    assert_eq!([5, 6, 8].map(|pin| lines.sources(pin)), [0, resample, LineSource::USER.bit()]);
    dispatch(&dispatcher);
    assert_eq!(exits.lock().len(), 1, "once");
    assert!(!producer.owns(&irqfds[0]));
    table.line(9, line, true);
    assert!(!producer.drives(&table, 9, line));
    assert_eq!(lines.sources(9), 0, "too late: lowered at once");
}

#[test]
fn what_a_producer_wrote_before_it_died_is_delivered_before_its_death() {
    let (dispatcher, order) = (dispatcher(), Arc::new(Mutex::new(Vec::new())));
    let fd = eventfd();
    let noting = Arc::clone(&order);
    let sink = move || {
        noting.lock().push("event");
        Delivery::Delivered(1)
    };
    let _irqfd = dispatcher.attach(&fd, IrqfdTarget::Sink(Arc::new(sink))).unwrap();
    let mut child = process(&fd, 1, "kill -9 $$");
    let noting = Arc::clone(&order);
    let pidfd = producer_pidfd(child.id()).unwrap();
    let _producer = Producer::watch(&dispatcher, pidfd, move |_| noting.lock().push("death")).unwrap();
    child.wait().unwrap();
    dispatch(&dispatcher);
    assert_eq!(*order.lock(), ["event", "death"]);
}

#[test]
fn the_callback_may_drop_everything_of_the_producer() {
    let (dispatcher, sink, fd) = (dispatcher(), Counted::default(), eventfd());
    let kept = Arc::new(Mutex::new(None));
    let mut child = process(&fd, 0, "exit 0");
    let pidfd = producer_pidfd(child.id()).unwrap();
    child.wait().unwrap();
    let inside = Arc::clone(&kept);
    let producer = Producer::watch(&dispatcher, pidfd, move |_| drop(inside.lock().take())).unwrap();
    let irqfd = dispatcher.attach(&fd, sink.target()).unwrap();
    assert!(producer.owns(&irqfd), "not noticed yet");
    *kept.lock() = Some((producer, irqfd));
    dispatch(&dispatcher);
    assert!(kept.lock().is_none());
    write(&fd, 1);
    dispatch(&dispatcher);
    assert_eq!((sink.get(), counter(&fd)), (0, 1));
}

#[test]
fn a_process_that_does_not_exist_is_esrch() {
    for pid in [0, u32::MAX, 1 << 30] {
        assert_eq!(producer_pidfd(pid).unwrap_err().errno(), crate::Errno::SRCH);
    }
}

#[test]
fn a_producer_killed_in_the_middle_of_a_storm_harms_nobody_else() {
    let dispatcher = dispatcher();
    let _thread = dispatcher.spawn("irqfd").unwrap();
    let (fds, sinks) = ([eventfd(), eventfd()], [Counted::default(), Counted::default()]);
    let irqfds = [0, 1].map(|at| dispatcher.attach(&fds[at], sinks[at].target()).unwrap());
    let mut children = fds.each_ref().map(|fd| process(fd, u32::MAX, ""));
    let dead = Arc::new(Mutex::new(None));
    let noting = Arc::clone(&dead);
    let pidfd = producer_pidfd(children[0].id()).unwrap();
    let producer = Producer::watch(&dispatcher, pidfd, move |exit| *noting.lock() = Some(exit)).unwrap();
    assert!(producer.owns(&irqfds[0]));
    eventually(|| sinks.iter().all(|sink| sink.get() > 100));
    children[0].kill().unwrap();
    children[0].wait().unwrap();
    eventually(|| dead.lock().is_some());
    assert_eq!(*dead.lock(), Some(ProducerExit { bound: vec![irqfds[0].eventfd()], lowered: vec![] }));
    let (last, others) = (sinks[0].get(), sinks[1].get());
    eventually(|| sinks[1].get() > others + 100);
    assert_eq!((sinks[0].get(), counter(&fds[0])), (last, 0), "nothing is left of it");
    children[1].kill().unwrap();
    children[1].wait().unwrap();
}
