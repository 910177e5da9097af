//! A device process: its producer loop, in an executable of its own that has nothing but the ledger and its descriptors.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    sync::atomic::Ordering,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    thread::futex,
};

use super::{
    handover::{self, Setup},
    ledger::{DeviceWords, Header, Ledger, Slot, now_ns},
};

/// A vector is given up when its handler has not answered this often in a row.
const STRIKES: u32 = 3;
/// No sleep is longer than this, so that a stop is noticed.
const NAP_NS: u64 = 10_000_000;

/// A coordinator that has not let its devices go after this long is gone.
const HOLD_NS: u64 = 60_000_000_000;

/// The hidden command of a device process.
pub fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doorbell: `device` is started by `doorbell run` only: {error}");
            ExitCode::from(2)
        }
    }
}

fn start() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let (setup, ledger, descriptors) = handover::receive(io::stdin().as_fd())?;
    Device::new(&setup, &ledger, descriptors)?.run();
    Ok(())
}

/// One interrupt source of the device.
struct Port {
    slot: Slot,
    lockstep: bool,
    left: u32,
    eventfd: OwnedFd,
    /// A level line: where its end is reported.
    resample: Option<OwnedFd>,
    /// The last number published.
    number: u32,
    /// When it was signalled, in ns.
    since: u64,
    /// A level line that has been raised and whose end has not been reported.
    raised: bool,
    strikes: u32,
    finished: bool,
}

struct Device<'a> {
    ledger: &'a Ledger,
    words: &'a DeviceWords,
    patience: u64,
    poll: u64,
    ports: Vec<Port>,
}

fn signal(eventfd: &OwnedFd) {
    // An eventfd refuses a write only when 2^64 - 2 signals are waiting in it: one more would change nothing.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

impl Port {
    /// The next number, and its signal, unless a level line is up already and says the same.
    fn publish(&mut self, ledger: &Ledger) {
        self.number = ledger.publish(self.slot);
        self.left -= 1;
        self.since = now_ns();
        if self.resample.is_none() {
            signal(&self.eventfd);
        } else if !self.raised {
            self.raise();
        }
        ledger.sent(self.slot, self.number);
    }

    fn raise(&mut self) {
        self.raised = true;
        self.since = now_ns();
        signal(&self.eventfd);
    }

    /// Takes note of an end of interrupt; a device whose work has not been seen raises its line again.
    fn resampled(&mut self, ledger: &Ledger) {
        let mut count = [0; 8];
        let ended = self.resample.as_ref().is_some_and(|fd| rustix::io::read(fd, &mut count).is_ok());
        if ended {
            self.raised = false;
            if ledger.seen(self.slot) != self.number {
                self.raise();
            }
        }
    }

    /// Nothing of this port is under way.
    fn is_answered(&self, ledger: &Ledger) -> bool {
        !self.raised && ledger.seen(self.slot) == self.number
    }
}

impl<'a> Device<'a> {
    fn new(setup: &Setup, ledger: &'a Ledger, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let header = ledger.header();
        let words = header.devices.get(setup.index).ok_or(io::ErrorKind::InvalidData)?;
        let mut descriptors = descriptors.into_iter();
        let mut ports = Vec::with_capacity(setup.vectors.len());
        for vector in &setup.vectors {
            if vector.slot.vcpu as usize >= ledger.vcpus() || vector.slot.index().is_none() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let eventfd = descriptors.next().ok_or(io::ErrorKind::InvalidData)?;
            let resample =
                if vector.level { Some(descriptors.next().ok_or(io::ErrorKind::InvalidData)?) } else { None };
            ports.push(Port {
                slot: vector.slot,
                lockstep: vector.lockstep,
                left: vector.interrupts,
                eventfd,
                resample,
                number: ledger.seen(vector.slot),
                since: 0,
                raised: false,
                strikes: 0,
                finished: false,
            });
        }
        let began = now_ns();
        while header.control.load(Ordering::Acquire) == Header::HOLD {
            // Woken by the store of GO or STOP; an early return only means another look.
            let nap = Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = futex::wait(&header.control, futex::Flags::empty(), Header::HOLD, Some(&nap));
            if now_ns() - began > HOLD_NS {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let microseconds = |word: u32| u64::from(word) * 1_000;
        let patience = microseconds(header.patience_us.load(Ordering::Relaxed));
        let poll = microseconds(header.poll_us.load(Ordering::Relaxed));
        Ok(Self { ledger, words, patience, poll, ports })
    }

    fn run(mut self) {
        while self.ledger.header().control.load(Ordering::Acquire) == Header::GO {
            // Acquire, before the look at the ports: a handler that finishes after it changes the bell.
            let bell = self.words.bell.load(Ordering::Acquire);
            let free = self.lockstep_turn();
            let waiting = self.free_turn(free);
            if self.ports.iter().all(|port| port.finished) {
                break;
            }
            if waiting {
                self.sleep(bell);
            }
        }
        // Release: pairs with the coordinator's Acquire; everything this device published is in the ledger.
        self.words.done.store(1, Ordering::Release);
    }

    /// Signals every lock-step port whose handler has answered. Returns how many signals the free ports may give now.
    fn lockstep_turn(&mut self) -> usize {
        let (mut signals, mut waiting) = (0, false);
        let now = now_ns();
        for port in self.ports.iter_mut().filter(|port| port.lockstep && !port.finished) {
            port.resampled(self.ledger);
            if !port.is_answered(self.ledger) {
                if now.saturating_sub(port.since) < self.patience {
                    waiting = true;
                    continue;
                }
                let index = port.slot.index().unwrap_or_default();
                // Relaxed: only this device writes it.
                self.ledger.signals(port.slot.vcpu).missed[index].fetch_add(1, Ordering::Relaxed);
                port.strikes += 1;
                if port.strikes == STRIKES {
                    port.finished = true;
                    self.words.given_up.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                port.raised = false;
            } else {
                port.strikes = 0;
            }
            if port.left == 0 {
                port.finished = true;
                continue;
            }
            port.publish(self.ledger);
            signals += 1;
            waiting = true;
        }
        if waiting { signals } else { usize::MAX }
    }

    /// Signals up to `most` free ports, those that are furthest behind first. Returns whether there is nothing left to
    /// do but wait.
    fn free_turn(&mut self, most: usize) -> bool {
        let now = now_ns();
        let mut behind = 0;
        for port in self.ports.iter_mut().filter(|port| !port.lockstep && !port.finished) {
            port.resampled(self.ledger);
            if port.left > 0 {
                behind = behind.max(port.left);
            } else if port.is_answered(self.ledger) {
                port.finished = true;
            } else if now.saturating_sub(port.since) >= self.patience {
                port.finished = true;
                self.words.given_up.fetch_add(1, Ordering::Relaxed);
            }
        }
        let ledger = self.ledger;
        let next = self.ports.iter_mut().filter(|port| !port.lockstep && port.left > 0 && port.left == behind);
        let signals = next.take(most).map(|port| port.publish(ledger)).count();
        most != usize::MAX || signals == 0
    }

    /// Sleeps until a handler answers.
    fn sleep(&mut self, bell: u32) {
        let longest = if self.poll == 0 { NAP_NS.min(self.patience) } else { self.poll };
        let timeout = Timespec { tv_sec: 0, tv_nsec: longest.min(999_999_999) as i64 };
        let mut ends: Vec<_> =
            self.ports.iter().filter_map(|port| Some(PollFd::new(port.resample.as_ref()?, PollFlags::IN))).collect();
        if !ends.is_empty() {
            // A timeout or a signal only means another look.
            let _ = rustix::event::poll(&mut ends, Some(&timeout));
            return;
        }
        // SeqCst, with the handler's: either it sees the sleeper, or the futex sees the changed bell.
        self.words.asleep.store(1, Ordering::SeqCst);
        let _ = futex::wait(&self.words.bell, futex::Flags::empty(), bell, Some(&timeout));
        self.words.asleep.store(0, Ordering::Relaxed);
    }
}

/// The handler's half of the sleep: one of the device's numbers has been seen.
#[inline]
pub fn ring(words: &DeviceWords) {
    // SeqCst, with the device's store of `asleep` before it sleeps.
    words.bell.fetch_add(1, Ordering::SeqCst);
    if words.asleep.load(Ordering::SeqCst) != 0 && words.asleep.swap(0, Ordering::SeqCst) != 0 {
        let _ = futex::wake(&words.bell, futex::Flags::empty(), 1);
    }
}
