//! QEMU's q35, whose CPUs never run, as a child of ours.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};

use super::super::process::{Process, Program};
use super::super::{Error, Missing};
use super::ivshmem::Server;
use super::wire::{VECTORS, Wire};
use crate::qtest::q35::Chip;

/// The program.
const PROGRAM: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };

/// QEMU. Fields are dropped in order: the process first.
pub struct Qemu {
    process: Process,
    server: Server,
    /// The names of the two 8259s, which count all devices of the machine.
    pics: [String; 2],
}

impl Qemu {
    /// Starts it.
    ///
    /// # Errors
    /// Where it is not installed, or does not come up.
    pub fn start(options: &[String]) -> Result<Self, Missing> {
        let greet = |stream: Option<_>| Server::new(stream.ok_or("no peer")?, VECTORS);
        let (process, server) = Process::start(PROGRAM, options, Some("peer"), greet)?;
        let mut qemu = Self { process, server, pics: Default::default() };
        qemu.find_pics()?;
        Ok(qemu)
    }

    fn find_pics(&mut self) -> Result<(), Error> {
        const FOLDER: &str = "/machine/unattached";
        let devices = self.process.execute("qom-list", json!({ "path": FOLDER }))?;
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

    /// Its process, for tests.
    #[cfg(test)]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Wire for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.process.reset()
    }

    fn say(&mut self, lines: &[String]) -> Result<Vec<String>, Error> {
        self.process.say(lines)
    }

    fn ask(&mut self, commands: &[String]) -> Result<Vec<String>, Error> {
        self.process.ask(commands)
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
