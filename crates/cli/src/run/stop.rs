//! Ctrl-C: a request to end with what there is.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

extern "C" fn request(_: libc::c_int) {
    // Relaxed: a flag that stands for itself.
    REQUESTED.store(true, Ordering::Relaxed);
}

/// From now on the first SIGINT or SIGTERM is a request; the second ends the process as usual.
pub fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed `sigaction` is a valid one, and the handler does nothing but store to an atomic.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = request as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Whether it was made.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
