//! An eventfd that another process writes, until its vector is pending.

use std::{
    env,
    io::{self, Read, Write},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use doorbell::irqfd::{Dispatcher, DispatcherOptions, Drain, IrqfdTarget};
use rustix::{
    event::{EventfdFlags, eventfd},
    time::{ClockId, clock_gettime},
};

use super::{
    Work,
    machine::{FIRST_VECTOR, Machine, message},
};

/// The `doorbell` program, where this is not it.
pub static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
/// Long enough for the dispatching thread to fall asleep.
const PAUSE: Duration = Duration::from_micros(200);
/// After which a write counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many are written by one process.
const MOST_EVENTS: u64 = 64;

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The other process: writes the eventfd that is its standard input so many times, each after a pause, and then says on
/// its standard output when it was.
pub fn writer(times: u32) -> ExitCode {
    let mut said = Vec::new();
    for _ in 0..times {
        thread::sleep(PAUSE);
        said.extend(now().to_le_bytes());
        if rustix::io::write(io::stdin(), &1u64.to_ne_bytes()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    match io::stdout().write_all(&said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The median of some events, as if each had taken so long. The dispatching thread sleeps before each.
pub fn work() -> Result<Work, String> {
    let program = match PROGRAM.get() {
        Some(program) => program.clone(),
        None => env::current_exe().map_err(|error| error.to_string())?,
    };
    // A batch of ready descriptors costs one system call.
    let options = DispatcherOptions { drain: Drain::Lazy, ..DispatcherOptions::default() };
    let machine = Machine::new(1);
    machine.route(std::iter::once(message(0, FIRST_VECTOR)))?;
    let dispatcher = Dispatcher::new(options).map_err(|error| error.to_string())?;
    let fd = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let (table, arrived) = (Arc::clone(&machine.table), Arc::clone(&arrived));
        move || {
            let delivery = table.fire(0);
            // The vector is pending by now. The lock is this measurement's own, and nobody holds it meanwhile.
            arrived.lock().expect("nobody panics with it").push(now());
            delivery
        }
    };
    let irqfd = dispatcher
        .attach(&fd, IrqfdTarget::Sink(Arc::new(sink) as Arc<dyn doorbell::EventSink>))
        .map_err(|error| error.to_string())?;
    let thread = dispatcher.spawn("bench").map_err(|error| error.to_string())?;
    let round = move |times: u64| -> Result<Duration, String> {
        // They live as long as the work does.
        let _alive = (&machine, &dispatcher, &irqfd, &thread);
        arrived.lock().expect("nobody panics with it").clear();
        let eventfd = fd.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new(&program)
            .args(["bench", "--writer", &times.to_string()])
            .stdin(Stdio::from(eventfd))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let mut said = Vec::new();
        child.stdout.take().expect("it is piped").read_to_end(&mut said).map_err(|error| error.to_string())?;
        child.wait().map_err(|error| error.to_string())?;
        let written = said.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
        let deadline = Instant::now() + PATIENCE;
        while (arrived.lock().expect("nobody panics with it").len() as u64) < times {
            if Instant::now() > deadline {
                return Err(format!("of {times} writes, not all arrived"));
            }
            thread::sleep(PAUSE);
        }
        let arrived = arrived.lock().expect("nobody panics with it");
        let mut latencies: Vec<u64> = written.zip(arrived.iter()).map(|(from, to)| to.saturating_sub(from)).collect();
        latencies.sort_unstable();
        Ok(Duration::from_nanos(latencies[latencies.len() / 2] * times))
    };
    // The first one shows whether it works at all.
    round(3)?;
    let mut last = Duration::ZERO;
    Ok(Box::new(move |times| {
        // However many are asked for: each takes a pause, too.
        let events = times.min(MOST_EVENTS);
        if let Ok(took) = round(events) {
            last = took / events as u32;
        }
        last * times as u32
    }))
}
