//! QEMU as a child of ours: its sockets, and its end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Error, Missing};
use crate::child::{Folder, Running};

/// QEMU takes so many monitor commands before it answers one.
const COMMANDS_AT_ONCE: usize = 4;

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

/// Which of QEMU's programs, and Debian's package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The program, unless `QTEST_QEMU_BINARY` names another.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

/// QEMU. Fields are dropped in order: the process first.
pub struct Process {
    _child: Running,
    qtest: Lines,
    qmp: Lines,
    _folder: Folder,
}

impl Process {
    /// Starts it with these options besides those that every machine here has. With `peer`, it gets a `-chardev` of that name,
    /// and `greet` the other end of it, before QEMU waits for a greeting there.
    ///
    /// # Errors
    /// Where it is not installed, or does not come up.
    pub fn start<P>(
        program: Program,
        options: &[String],
        peer: Option<&str>,
        greet: impl FnOnce(Option<UnixStream>) -> Result<P, Error>,
    ) -> Result<(Self, P), Missing> {
        let Program { name, package } = program;
        let program = std::env::var("QTEST_QEMU_BINARY").unwrap_or_else(|_| name.into());
        let folder = Folder::new("doorbell-qemu")?;
        let (qtest_path, qtest) = folder.listen("qtest")?;
        let (qmp_path, qmp) = folder.listen("qmp")?;
        let stderr = folder.path("stderr");
        let errors = std::fs::File::create(&stderr).map_err(|error| format!("{}: {error}", stderr.display()))?;
        let mut command = Command::new(&program);
        command.args(["-S", "-display", "none", "-nodefaults", "-serial", "none", "-qtest-log", "none"]);
        command.args(["-qtest", &format!("unix:{}", qtest_path.display())]);
        command.args(["-chardev", &format!("socket,id=qmp,path={}", qmp_path.display())]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        let mut listening = None;
        if let Some(peer) = peer {
            let (path, listener) = folder.listen(peer)?;
            command.args(["-chardev", &format!("socket,id={peer},path={}", path.display())]);
            listening = Some(listener);
        }
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut child = Running::start(&mut command).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Missing::Oracle(format!("{program} is not installed; Debian's package is {package}"))
            }
            _ => Missing::Other(format!("{program}: {error}")),
        })?;
        // It connects to all of them by itself, and then waits for the peer's greeting.
        let peer = listening.map(|listener| child.accept(&listener, &stderr)).transpose()?;
        let peer = greet(peer)?;
        let [qmp, qtest] =
            [&qmp, &qtest].map(|listener| Ok::<_, Error>(Lines::new(child.accept(listener, &stderr)?, &stderr)));
        let mut process = Self { _child: child, qtest: qtest?, qmp: qmp?, _folder: folder };
        process.qmp.read()?;
        process.execute("qmp_capabilities", json!({}))?;
        Ok((process, peer))
    }

    /// A command of the monitor, and what it returns.
    ///
    /// # Errors
    /// Where QEMU is gone or refuses it.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
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

    /// Back to the state after power-on.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.qmp.write("{\"execute\":\"system_reset\"}\n")?;
        let (mut returned, mut reset) = (false, false);
        while !(returned && reset) {
            let line = self.qmp.read()?;
            returned |= line.contains("\"return\"");
            reset |= line.contains("\"RESET\"");
        }
        Ok(())
    }

    /// Says qtest lines. The answers without their `OK`.
    ///
    /// # Errors
    /// Where it is gone or refuses one.
    pub fn say(&mut self, lines: &[String]) -> Result<Vec<String>, Error> {
        self.qtest.write(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        lines.iter().map(|line| self.qtest.read().and_then(|answer| ok(line, &answer))).collect()
    }

    /// Asks the human monitor.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn ask(&mut self, commands: &[String]) -> Result<Vec<String>, Error> {
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

    /// Where its sockets are, for tests.
    #[cfg(test)]
    pub fn folder(&self) -> &Path {
        self._folder.as_path()
    }

    /// Its process id, for tests.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self._child.0.id()
    }
}

/// What follows `OK` in an answer.
pub fn ok(line: &str, answer: &str) -> Result<String, Error> {
    match answer.trim_end().strip_prefix("OK") {
        Some(rest) => Ok(rest.trim_start().to_owned()),
        None => Err(format!("`{line}` was answered with `{}`", answer.trim_end())),
    }
}
