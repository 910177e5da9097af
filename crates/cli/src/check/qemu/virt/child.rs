//! QEMU's virt machine as a child of ours, whose CPUs run the program of [`code`](super::code).

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::process::{Process, Program};
use super::super::{Error, Missing};
use super::code::{self, ENTRY, LISTS, NOBODY, PROGRAM, REFUSED, TURN};
use super::side::{CPUS, Input, Op, Side};

/// The program.
const QEMU: Program = Program { name: "qemu-system-aarch64", package: "qemu-system-arm" };
/// A list that takes longer does not end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many entries one list has at most, so that its text stays short of QEMU's limits.
const MOST_ENTRIES: usize = 8192;

/// QEMU.
pub struct Qemu {
    process: Process,
    /// Where its distributor is in its tree of objects, and how many SPIs that has.
    gic: String,
    spis: u32,
    /// The number of the next list.
    next: usize,
}

impl Qemu {
    /// Starts it.
    ///
    /// # Errors
    /// Where it is not installed, or does not come up.
    pub fn start() -> Result<Self, Missing> {
        // One thread for all CPUs: they never run at the same time anyway, and who waits leaves the processor to the other.
        let words = format!(
            "-accel tcg,thread=single -M virt,gic-version=3,its=on -smp {CPUS} -m 256 -cpu max -device edu,addr=3 -device \
             loader,addr={PROGRAM:#x},cpu-num=0"
        );
        let options: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let (process, ()) = Process::start(QEMU, &options, None, |_| Ok(()))?;
        let mut qemu = Self { process, gic: String::new(), spis: 0, next: 0 };
        qemu.find_gic()?;
        qemu.write(PROGRAM, &code::image())?;
        // Nobody's turn, so that the CPUs wait when they begin.
        qemu.list(&[])?;
        qemu.process.execute("cont", json!({}))?;
        Ok(qemu)
    }

    fn find_gic(&mut self) -> Result<(), Error> {
        const FOLDER: &str = "/machine/unattached";
        let devices = self.process.execute("qom-list", json!({ "path": FOLDER }))?;
        let device = devices.as_array().into_iter().flatten().find(|device| device["type"] == "child<arm-gicv3>");
        let name = device.and_then(|device| device["name"].as_str()).ok_or("QEMU has no arm-gicv3")?;
        self.gic = format!("{FOLDER}/{name}");
        let inputs = self.process.execute("qom-get", json!({ "path": self.gic, "property": "num-irq" }))?;
        let inputs = inputs.as_u64().ok_or("QEMU does not say how many interrupts its distributor has")?;
        self.spis = (inputs as u32).saturating_sub(32);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut line = format!("write {address:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            let _ = write!(line, "{byte:02x}");
        }
        self.process.say(&[line]).map(drop)
    }

    /// Stores a list, and gives its first entry the turn. Returns where it begins.
    fn list(&mut self, entries: &[(u32, code::Routine, u64, u64)]) -> Result<u64, Error> {
        let mut bytes = Vec::with_capacity((entries.len() + 1) * ENTRY as usize);
        for (cpu, routine, address, value) in entries {
            bytes.extend_from_slice(&cpu.to_le_bytes());
            bytes.extend_from_slice(&routine.address().to_le_bytes());
            bytes.extend_from_slice(&address.to_le_bytes());
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&NOBODY.to_le_bytes());
        let list = LISTS[self.next];
        self.next = (self.next + 1) % LISTS.len();
        self.write(list, &bytes)?;
        self.process.say(&[format!("writeq {TURN:#x} {list:#x}")])?;
        Ok(list)
    }

    fn execute(&mut self, entries: &[(u32, code::Routine, u64, u64)]) -> Result<Vec<u64>, Error> {
        let list = self.list(entries)?;
        let bytes = entries.len() as u64 * ENTRY;
        let begun = Instant::now();
        let turn = [format!("readq {TURN:#x}")];
        loop {
            let at = number(&self.process.say(&turn)?.remove(0));
            if at == list + bytes {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("QEMU's CPUs are stuck at entry {}", at.wrapping_sub(list) / ENTRY));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let text = self.process.say(&[format!("read {list:#x} {bytes:#x}")])?.remove(0);
        let digits = text.trim_start_matches("0x").as_bytes();
        let entries = digits.chunks_exact(2 * ENTRY as usize);
        Ok(entries.map(|entry| little(&entry[32..])).collect())
    }
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

/// The number that eight bytes in hexadecimal are, the lowest first.
fn little(digits: &[u8]) -> u64 {
    std::str::from_utf8(digits).map(number).unwrap_or(0).swap_bytes()
}

impl Side for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.process.reset()
    }

    fn run(&mut self, ops: &[Op]) -> Result<Vec<u64>, Error> {
        let mut results = Vec::with_capacity(ops.len());
        let mut waiting = Vec::new();
        for op in ops {
            match (op, op.entry()) {
                (_, Some(entry)) => {
                    waiting.push(entry);
                    if waiting.len() == MOST_ENTRIES {
                        results.extend(self.execute(&std::mem::take(&mut waiting))?);
                    }
                }
                (Op::Line(input, level), None) => {
                    if !waiting.is_empty() {
                        results.extend(self.execute(&std::mem::take(&mut waiting))?);
                    }
                    let input = match *input {
                        Input::Spi(intid) => intid - 32,
                        Input::Ppi(cpu, intid) => self.spis + 32 * cpu + intid,
                    };
                    let line = format!("set_irq_in {} unnamed-gpio-in {input} {}", self.gic, u8::from(*level));
                    self.process.say(&[line])?;
                    results.push(0);
                }
                (_, None) => results.push(0),
            }
        }
        if !waiting.is_empty() {
            results.extend(self.execute(&waiting)?);
        }
        for (op, result) in ops.iter().zip(&mut results) {
            // A bus answers a load that it refuses with 0, as QEMU's own client has it.
            if matches!(op, Op::Load(..)) && *result == REFUSED {
                *result = 0;
            }
        }
        Ok(results)
    }

    fn clear(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        self.process.say(&[format!("memset {address:#x} {bytes:#x} 0")]).map(drop)
    }
}
