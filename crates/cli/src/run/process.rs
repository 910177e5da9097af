//! The device processes, seen from the machine: started, watched, and waited for.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    net::{AddressFamily, SocketFlags, SocketType},
    process::{Pid, PidfdFlags},
};

use super::{
    handover::{self, Setup, SetupVector},
    plan::{Plan, Vector},
};

/// The descriptors of one vector.
#[derive(Debug)]
pub struct Doorbell {
    /// Signalled by the device.
    pub eventfd: OwnedFd,
    /// Signalled at the end of a level interrupt.
    pub resample: Option<OwnedFd>,
}

impl Doorbell {
    /// The descriptors that a vector needs.
    ///
    /// # Errors
    /// What the operating system says; most likely that there are too many descriptors.
    pub fn new(vector: &Vector) -> io::Result<Self> {
        let eventfd = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self { eventfd: eventfd()?, resample: if vector.is_level() { Some(eventfd()?) } else { None } })
    }
}

/// One device process.
#[derive(Debug)]
pub struct Device {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    ended: Option<ExitStatus>,
}

impl Device {
    /// Starts device `index` of the plan with its own `doorbells`, one for each of its vectors. It waits for the
    /// ledger's GO.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(plan: &Plan, index: usize, ledger: BorrowedFd<'_>, doorbells: &[&Doorbell]) -> io::Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // In a group of its own: a Ctrl-C at the terminal is for the coordinator.
        let mut command = Command::new("/proc/self/exe");
        let child = command.arg("device").stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0).spawn()?;
        let mut device = Self {
            name: plan.devices[index].clone(),
            pidfd: rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?,
            child,
            ended: None,
        };
        let vectors = plan.of_device(index).map(|vector| SetupVector {
            slot: vector.slot,
            lockstep: vector.lockstep,
            interrupts: vector.interrupts,
            level: vector.is_level(),
        });
        let setup = Setup { index, vectors: vectors.collect() };
        let mut descriptors = Vec::new();
        for doorbell in doorbells {
            descriptors.push(doorbell.eventfd.as_fd());
            descriptors.extend(doorbell.resample.as_ref().map(AsFd::as_fd));
        }
        if let Err(error) = handover::send(ours.as_fd(), &setup, ledger, &descriptors) {
            device.kill();
            return Err(error);
        }
        Ok(device)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs, as far as [`watch`] has noticed.
    pub fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// How it ended, in words; `None` if it runs or did all its work.
    pub fn failure(&self) -> Option<String> {
        let status = self.ended.filter(|status| !status.success())?;
        let how = match (status.signal(), status.code()) {
            (Some(9), _) => "was killed (signal 9)".to_owned(),
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(code)) => format!("exited with status {code}"),
            (None, None) => "ended".to_owned(),
        };
        Some(format!("device \"{}\" (process {}) {how}", self.name, self.pid()))
    }

    fn notice(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
            return self.ended.is_some();
        }
        false
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

/// Waits until a device ends, at most `timeout`. Returns the indices of those that have ended since the last call.
pub fn watch(devices: &mut [Device], timeout: Duration) -> Vec<usize> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut running: Vec<_> = devices
        .iter()
        .filter(|device| device.is_running())
        .map(|device| PollFd::new(&device.pidfd, PollFlags::IN))
        .collect();
    // A signal only means another look.
    let _ = rustix::event::poll(&mut running, Some(&timeout));
    drop(running);
    devices.iter_mut().enumerate().filter_map(|(index, device)| device.notice().then_some(index)).collect()
}

/// Gives the devices `patience` to end by themselves, and then ends them.
pub fn finish(devices: &mut [Device], patience: Duration) {
    let deadline = Instant::now() + patience;
    while devices.iter().any(Device::is_running) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            devices.iter_mut().filter(|device| device.is_running()).for_each(Device::kill);
        }
        watch(devices, left);
    }
}
