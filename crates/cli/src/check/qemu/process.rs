//! QEMU with stopped CPUs, as a child of ours: its sockets, and its end.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ivshmem::Server;
use super::wire::{Error, VECTORS, Wire, ok};
use crate::qtest::machine::Chip;

/// The program, unless `QTEST_QEMU_BINARY` names another.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Debian's package that has it.
pub const PACKAGE: &str = "qemu-system-x86";
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(30);
/// QEMU takes so many monitor commands before it answers one.
const COMMANDS_AT_ONCE: usize = 4;

/// Why there is no QEMU.
pub enum Missing {
    /// It is not installed.
    Program(String),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only that the numbers differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("doorbell-qemu-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn listen(&self, name: &str) -> Result<(PathBuf, UnixListener), Error> {
        let path = self.0.join(name);
        let listener = UnixListener::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((path, listener))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One end of a conversation in lines, and where QEMU says why it left.
struct Lines(BufReader<UnixStream>, PathBuf);

impl Lines {
    fn new(stream: UnixStream, stderr: &Path) -> Self {
        Self(BufReader::with_capacity(1 << 16, stream), stderr.to_owned())
    }

    fn gone(&self) -> Error {
        let said = std::fs::read_to_string(&self.1).unwrap_or_default();
        format!("QEMU is gone: {}", said.trim().lines().next_back().unwrap_or("it said nothing"))
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        self.0.get_mut().write_all(text.as_bytes()).map_err(|_| self.gone())
    }

    fn read(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err(self.gone()),
            Ok(_) => Ok(line),
            Err(error) => Err(format!("QEMU does not answer: {error}")),
        }
    }
}

/// The child, which does not outlive its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU. Fields are dropped in order: the process first.
pub struct Qemu {
    _process: Process,
    qtest: Lines,
    qmp: Lines,
    server: Server,
    /// The names of the two 8259s, which count all devices of the machine.
    pics: [String; 2],
    _folder: Folder,
}

impl Qemu {
    /// Starts it with these options besides those that every machine here has.
    ///
    /// # Errors
    /// Where it is not installed, or does not come up.
    pub fn start(options: &[String]) -> Result<Self, Missing> {
        let program = std::env::var("QTEST_QEMU_BINARY").unwrap_or_else(|_| PROGRAM.into());
        let folder = Folder::new()?;
        let (qtest_path, qtest) = folder.listen("qtest")?;
        let (qmp_path, qmp) = folder.listen("qmp")?;
        let (peer_path, peer) = folder.listen("ivshmem")?;
        let stderr = folder.0.join("stderr");
        let errors = std::fs::File::create(&stderr).map_err(|error| format!("{}: {error}", stderr.display()))?;
        let mut command = Command::new(&program);
        command.args([
            "-accel",
            "tcg",
            "-S",
            "-display",
            "none",
            "-nodefaults",
            "-serial",
            "none",
            "-qtest-log",
            "none",
        ]);
        command.args(["-qtest", &format!("unix:{}", qtest_path.display())]);
        command.args(["-chardev", &format!("socket,id=qmp,path={}", qmp_path.display())]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        command.args(["-chardev", &format!("socket,id=peer,path={}", peer_path.display())]);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
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
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Missing::Program(format!("{program} is not installed; Debian's package is {PACKAGE}"))
            }
            _ => Missing::Other(format!("{program}: {error}")),
        })?;
        let mut process = Process(child);
        // It connects to all of them by itself, and then waits for the server's greeting.
        let server = Server::new(accept(&peer, &mut process, &stderr)?, VECTORS)?;
        let [qmp, qtest] = [&qmp, &qtest]
            .map(|listener| Ok::<_, Error>(Lines::new(accept(listener, &mut process, &stderr)?, &stderr)));
        let (qmp, qtest) = (qmp?, qtest?);
        let mut qemu = Self { _process: process, qtest, qmp, server, pics: Default::default(), _folder: folder };
        qemu.qmp.read()?;
        qemu.execute("qmp_capabilities", json!({}))?;
        qemu.find_pics()?;
        Ok(qemu)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.qmp.write(&format!("{}\n", json!({ "execute": command, "arguments": arguments })))?;
        self.returned()
    }

    /// The next answer, past events.
    fn returned(&mut self) -> Result<Value, Error> {
        loop {
            let line = self.qmp.read()?;
            let mut answer: Value = serde_json::from_str(&line).map_err(|error| format!("QMP: {error}: {line}"))?;
            if answer.get("error").is_some() {
                return Err(format!("QMP: {}", answer["error"]));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn find_pics(&mut self) -> Result<(), Error> {
        const FOLDER: &str = "/machine/unattached";
        let devices = self.execute("qom-list", json!({ "path": FOLDER }))?;
        let is_pic = |device: &&Value| device["type"] == "child<isa-i8259>";
        let names =
            devices.as_array().into_iter().flatten().filter(is_pic).filter_map(|device| device["name"].as_str());
        // The master is made first. Their numbers are compared as numbers.
        let mut numbers: Vec<u32> =
            names.filter_map(|name| name.strip_prefix("device[")?.strip_suffix(']')?.parse().ok()).collect();
        numbers.sort_unstable();
        let [master, slave] = numbers[..] else { return Err(format!("QEMU has {} of its 8259s", numbers.len())) };
        self.pics = [master, slave].map(|number| format!("{FOLDER}/device[{number}]"));
        Ok(())
    }

    /// Where its sockets are, for tests.
    #[cfg(test)]
    pub fn folder(&self) -> &Path {
        &self._folder.0
    }

    /// Its process id, for tests.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self._process.0.id()
    }
}

fn accept(listener: &UnixListener, process: &mut Process, stderr: &Path) -> Result<UnixStream, Error> {
    let begun = Instant::now();
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
        if let Ok(Some(status)) = process.0.try_wait() {
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

impl Wire for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.qmp.write("{\"execute\":\"system_reset\"}\n")?;
        let (mut returned, mut reset) = (false, false);
        while !(returned && reset) {
            let line = self.qmp.read()?;
            returned |= line.contains("\"return\"");
            reset |= line.contains("\"RESET\"");
        }
        Ok(())
    }

    fn say(&mut self, lines: &[String]) -> Result<Vec<String>, Error> {
        self.qtest.write(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        lines.iter().map(|line| self.qtest.read().and_then(|answer| ok(line, &answer))).collect()
    }

    fn ask(&mut self, commands: &[String]) -> Result<Vec<String>, Error> {
        let mut answers = Vec::new();
        for commands in commands.chunks(COMMANDS_AT_ONCE) {
            let request = |command: &String| {
                let arguments = json!({ "command-line": command });
                format!("{}\n", json!({ "execute": "human-monitor-command", "arguments": arguments }))
            };
            self.qmp.write(&commands.iter().map(request).collect::<String>())?;
            for _ in commands {
                answers.push(self.returned()?.as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(answers)
    }

    fn event(&mut self, vector: u16, times: u32) -> Result<(), Error> {
        for _ in 0..times {
            self.server.fire(vector)?;
        }
        // The round of QEMU's event loop that answers the first line also sees the event, maybe after it; the next line
        // is answered in a later round.
        for _ in 0..2 {
            self.say(&["endianness".into()])?;
        }
        Ok(())
    }

    fn path(&self, chip: Chip) -> &str {
        match chip {
            Chip::IoApic => "/machine/q35/ioapic",
            Chip::Master => &self.pics[0],
            Chip::Slave => &self.pics[1],
        }
    }
}

/// An eventfd.
pub fn eventfd() -> Result<OwnedFd, Error> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).map_err(|error| format!("eventfd: {error}"))
}
