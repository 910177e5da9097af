//! A thread of its own for a dispatcher.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use super::dispatcher::Inner;

/// A thread that dispatches; dropping this stops it and waits for it.
pub struct DispatchThread {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl DispatchThread {
    pub(super) fn new(dispatcher: &Arc<Inner>, name: &str) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (inner, stopped) = (Arc::clone(dispatcher), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Relaxed: the wake eventfd, written after it, orders it.
            while !stopped.load(Ordering::Relaxed) {
                match inner.batch(None) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(Self { inner: Arc::clone(dispatcher), stop, thread: Some(thread) })
    }

    /// Stops it.
    ///
    /// # Errors
    /// What made it end before: a failed `epoll_wait`, or the panic of a sink.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Relaxed: read after the wake-up that follows.
        self.stop.store(true, Ordering::Relaxed);
        rustix::io::write(&self.inner.wake, &1u64.to_ne_bytes())?;
        let ended = thread.join();
        rustix::io::read(&self.inner.wake, &mut [0; 8])?;
        ended.unwrap_or_else(|_| Err(io::Error::other("a sink of the dispatcher panicked")))
    }
}

impl Drop for DispatchThread {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "a dispatcher thread had ended");
        }
    }
}
