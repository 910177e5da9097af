//! Where a vCPU thread sleeps when nothing is pending.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

/// One thread's bed. Another thread wakes it with one futex call; a wake before the sleep is not lost.
#[derive(Debug, Default)]
pub struct Sleeper {
    /// 1: woken since [`prepare`](Self::prepare).
    woken: AtomicU32,
}

impl Sleeper {
    /// To be called before the last look for work: who wakes it from here on ends the next [`sleep`](Self::sleep).
    pub fn prepare(&self) {
        // SeqCst: before the look for work that follows, which the waker has made true before its own store.
        self.woken.store(0, Ordering::SeqCst);
    }

    /// Sleeps until woken.
    pub fn sleep(&self) {
        while self.woken.load(Ordering::Acquire) == 0 {
            // A wake between the load and the call changes the word, and the call returns at once.
            let _ = futex::wait(&self.woken, futex::Flags::PRIVATE, 0, None);
        }
    }

    /// Ends the sleep.
    pub fn wake(&self) {
        // SeqCst: see `prepare`.
        if self.woken.swap(1, Ordering::SeqCst) == 0 {
            let _ = futex::wake(&self.woken, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_ends_it() {
        let sleeper = Sleeper::default();
        sleeper.prepare();
        sleeper.wake();
        sleeper.sleep();
    }

    #[test]
    fn a_sleeper_is_woken_by_another_thread() {
        let sleeper = Sleeper::default();
        sleeper.prepare();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| sleeper.sleep());
            sleeper.wake();
            thread.join().unwrap();
        });
        assert_eq!(sleeper.woken.load(Ordering::Relaxed), 1);
    }
}
