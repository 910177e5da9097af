//! What a child leaves behind when its owner goes: nothing.

use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A child that does not connect, or does not answer, in this time does not do it at all.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one below the system's folder for such things; its name says whose it is.
    ///
    /// # Errors
    /// One line, where it cannot be made.
    pub fn new(owner: &str) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only that the numbers differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{owner}-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// A name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Waits for connections at a name in it.
    ///
    /// # Errors
    /// One line, where that is not possible.
    pub fn listen(&self, name: &str) -> Result<(PathBuf, UnixListener), String> {
        let path = self.path(name);
        let listener = UnixListener::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((path, listener))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child that does not outlive its owner.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it. It is killed when our process ends, however it ends.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        // In a group of its own: a Ctrl-C at the terminal is for us.
        command.process_group(0);
        let us = rustix::process::getpid();
        // SAFETY: between fork and exec, `prctl` and `getppid` are plain system calls that allocate nothing.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                // We may have died before that.
                if rustix::process::getppid() == Some(us) {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::Interrupted.into())
                }
            });
        }
        command.spawn().map(Self)
    }

    /// Waits until it connects. What it writes to standard error is in the file `stderr`.
    ///
    /// # Errors
    /// One line, where it ends or does nothing.
    pub fn accept(&mut self, listener: &UnixListener, stderr: &Path) -> Result<UnixStream, String> {
        let begun = Instant::now();
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                let said = std::fs::read_to_string(stderr).unwrap_or_default();
                return Err(format!("QEMU ended ({status}): {}", said.trim().replace('\n', "; ")));
            }
            if begun.elapsed() > PATIENCE {
                return Err("QEMU does not connect".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let set = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
        set.map_err(|error| error.to_string())?;
        Ok(stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
