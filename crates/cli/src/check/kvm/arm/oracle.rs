//! A kernel with KVM for Arm, in a QEMU that is a child of ours, and the agent that runs in it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::super::super::programs::Missing;
use super::kernel::{self, Kernel};
use super::side::{Machine, Recording, Script, Start};
use super::wire::Batch;
use super::{Error, initramfs};
use crate::child::{Folder, Running};

/// The agent's source.
const AGENT: &str = include_str!("agent.c");
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const COMPILER_PACKAGES: &str = "gcc-aarch64-linux-gnu, with libc6-dev-arm64-cross";
const QEMU: &str = "qemu-system-aarch64";
const QEMU_PACKAGE: &str = "qemu-system-arm";
/// A CPU with EL2 and without the extensions of later ones, which QEMU emulates fast. One of them: the kernel's workers run
/// when the agent waits for them, and nothing is left to chance.
const MACHINE: [&str; 12] = [
    "-accel",
    "tcg",
    "-machine",
    "virt,virtualization=on,gic-version=3,its=on",
    "-cpu",
    "cortex-a72",
    "-smp",
    "1",
    "-m",
    "512M",
    "-display",
    "none",
];
/// The first word of a message, "DOORBELL".
const MAGIC: u64 = 0x4c4c_4542_524f_4f44;
/// The most words of an answer.
const MOST_WORDS: u64 = 1 << 20;

/// What is booted.
pub struct Image {
    kernel: PathBuf,
    initrd: PathBuf,
    _folder: Folder,
}

impl Image {
    /// Builds the agent, finds the kernel, and packs what it starts with.
    ///
    /// # Errors
    /// [`Missing::Oracle`] with what is not installed; otherwise what went wrong.
    pub fn prepare() -> Result<Self, Missing<Error>> {
        let folder = Folder::new("doorbell-arm")?;
        kernel::run(Command::new(QEMU).arg("--version"), QEMU_PACKAGE).map_err(Missing::Oracle)?;
        let agent = compile(&folder).map_err(Missing::Oracle)?;
        let Kernel { image: kernel, modules } = Kernel::find().map_err(Missing::Oracle)?;
        let files: Vec<_> = [("init".to_owned(), agent)].into_iter().chain(modules).collect();
        let initrd = folder.path("initramfs");
        fs::write(&initrd, initramfs::pack(&files)).map_err(|error| format!("{}: {error}", initrd.display()))?;
        Ok(Self { kernel, initrd, _folder: folder })
    }
}

/// A kernel that answers batches of calls. Fields are dropped in order: the process first.
pub struct Oracle {
    _child: Running,
    port: UnixStream,
    console: PathBuf,
    _folder: Folder,
}

impl Oracle {
    /// Boots it.
    ///
    /// # Errors
    /// One line, where it does not come up.
    pub fn boot(image: &Image) -> Result<Self, Error> {
        let folder = Folder::new("doorbell-arm")?;
        let console = folder.path("console");
        let (path, listener) = folder.listen("port")?;
        let stderr = folder.path("stderr");
        let errors = fs::File::create(&stderr).map_err(|error| format!("{}: {error}", stderr.display()))?;
        let mut command = Command::new(QEMU);
        command.args(MACHINE).args(["-nodefaults", "-no-reboot", "-append", "console=ttyAMA0 quiet panic=-1"]);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-chardev", &format!("socket,id=port,path={}", path.display())]);
        command.args(["-device", "virtio-serial-device", "-device", "virtserialport,chardev=port"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut child = Running::start(&mut command).map_err(|error| format!("{QEMU}: {error}"))?;
        let port = child.accept(&listener, &stderr)?;
        let mut oracle = Self { _child: child, port, console, _folder: folder };
        // A batch without calls is answered once the agent is there.
        oracle.ask(&[0])?;
        Ok(oracle)
    }

    /// Sends a batch, and returns the words of its answer.
    ///
    /// # Errors
    /// One line, where the kernel or QEMU is gone.
    fn ask(&mut self, words: &[u64]) -> Result<Vec<u64>, Error> {
        let head = [MAGIC, words.len() as u64, checksum(words)];
        let bytes: Vec<u8> = head.iter().chain(words).flat_map(|word| word.to_le_bytes()).collect();
        self.port.write_all(&bytes).map_err(|_| self.gone())?;
        let head = self.words(3)?;
        let [MAGIC, count @ 1..=MOST_WORDS, sum] = head[..] else {
            return Err("what the agent sent is no answer".into());
        };
        let words = self.words(count as usize)?;
        if checksum(&words) == sum { Ok(words) } else { Err("an answer of the agent arrived damaged".into()) }
    }

    fn words(&mut self, count: usize) -> Result<Vec<u64>, Error> {
        let mut bytes = vec![0; 8 * count];
        self.port.read_exact(&mut bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => format!("the agent does not answer; {}", self.gone()),
            _ => self.gone(),
        })?;
        Ok(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(std::array::from_fn(|at| word[at]))).collect())
    }

    /// What there is to say when nothing answers any more.
    fn gone(&self) -> Error {
        let said = fs::read(&self.console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);

        // What comes behind it are registers.
        let why = said
            .lines()
            .find(|line| ["agent:", "Unable to handle", "panic", "BUG"].iter().any(|why| line.contains(why)));
        let last = said.trim().lines().next_back().unwrap_or("it said nothing");
        format!("the kernel under QEMU is gone: {}", why.unwrap_or(last))
    }
}

impl Machine for Oracle {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn run(&mut self, start: Start, script: &Script<'_>) -> Result<Recording, Error> {
        let batch = Batch::new(start, script);
        let answer = self.ask(batch.words())?;
        batch.recording(script.calls, &answer)
    }
}

fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// The agent as a program for arm64.
fn compile(folder: &Folder) -> Result<Vec<u8>, String> {
    let (source, program) = (folder.path("agent.c"), folder.path("agent"));
    fs::write(&source, AGENT).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut command = Command::new(COMPILER);
    command.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o"]).arg(&program).arg(&source);
    kernel::run(&mut command, COMPILER_PACKAGES)
        .map_err(|error| format!("{error} (Debian's packages are {COMPILER_PACKAGES})"))?;
    fs::read(&program).map_err(|error| format!("{}: {error}", program.display()))
}
