//! A signal that comes back to a thread, so that a vCPU which sleeps in the kernel returns from `KVM_RUN`.

use std::time::Duration;

use doorbell::kvm_abi::Errno;

/// A timer whose signal interrupts the system calls of the thread that made it.
#[derive(Debug)]
pub struct Alarm(libc::timer_t);

impl Alarm {
    /// A timer that is off. Its signal, the second real-time one, must not be used by the program.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new() -> Result<Self, Errno> {
        extern "C" fn nothing(_: libc::c_int) {}
        let signal = libc::SIGRTMIN() + 1;
        // SAFETY: a zeroed sigaction is valid (no flags, empty mask), and a handler that does nothing is
        // async-signal-safe; without SA_RESTART, the interrupted call returns. The event is zeroed and then filled in,
        // and the timer is written by the call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = std::ptr::null_mut();
            check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer))?;
            Ok(Self(timer))
        }
    }

    /// From now on a signal each `period`: one that comes before `KVM_RUN` is entered is followed by another.
    pub fn every(&self, period: Duration) {
        let time = libc::timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        self.set(libc::itimerspec { it_interval: time, it_value: time });
    }

    /// No signals any more.
    pub fn off(&self) {
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        self.set(libc::itimerspec { it_interval: never, it_value: never });
    }

    fn set(&self, time: libc::itimerspec) {
        // SAFETY: the timer exists as long as `self`; the old setting is not asked for.
        unsafe { libc::timer_settime(self.0, 0, &time, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody uses it after this.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn check(answer: libc::c_int) -> Result<(), Errno> {
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error)
}
