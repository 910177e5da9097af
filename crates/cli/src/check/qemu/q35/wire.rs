//! Two machines behind the same protocol: QEMU's chips and doorbell's.

use crate::qtest::machine::Machine;
use crate::qtest::options::CommandLine;
use crate::qtest::q35::Chip;
use crate::qtest::{monitor, protocol};

use super::super::Error;
use super::super::process::ok;
use super::cripple::{Crippled, Fault};

/// Where the PCI functions of both machines are.
pub const EDU: u8 = 3 << 3;
/// The MSI-X function.
pub const IVSHMEM: u8 = 4 << 3;
/// How many vectors it has.
pub const VECTORS: u16 = 3;
/// How many vCPUs there are.
pub const CPUS: u32 = 2;

/// A machine.
pub trait Wire {
    /// How it is called.
    fn name(&self) -> &'static str;

    /// Back to the state after power-on.
    ///
    /// # Errors
    /// Where it is gone.
    fn reset(&mut self) -> Result<(), Error>;

    /// Says qtest lines. The answers without their `OK`.
    ///
    /// # Errors
    /// Where it is gone or refuses one.
    fn say(&mut self, lines: &[String]) -> Result<Vec<String>, Error>;

    /// Asks the human monitor.
    ///
    /// # Errors
    /// Where it is gone.
    fn ask(&mut self, commands: &[String]) -> Result<Vec<String>, Error>;

    /// Events of the MSI-X function; returns when they have had their effect.
    ///
    /// # Errors
    /// Where it is gone.
    fn event(&mut self, vector: u16, times: u32) -> Result<(), Error>;

    /// The name of a chip whose lines are driven.
    fn path(&self, chip: Chip) -> &str;
}

/// Doorbell's.
pub struct Doorbell {
    machine: Machine,
    crippled: Crippled,
}

impl Doorbell {
    /// The machine that these options of QEMU's describe, with a fault if one is wanted.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new(options: &[String], fault: Option<Fault>) -> Result<Self, Error> {
        let machine = Machine::new(CommandLine::parse(options)?.machine)?;
        Ok(Self { machine, crippled: Crippled::new(fault) })
    }
}

impl Wire for Doorbell {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.machine.reset()
    }

    fn say(&mut self, lines: &[String]) -> Result<Vec<String>, Error> {
        let mut say = |line: &String| {
            let line = self.crippled.line(line);
            let answer = protocol::execute(&mut self.machine, line.as_bytes());
            ok(&line, &self.crippled.answer(&line, answer))
        };
        lines.iter().map(&mut say).collect()
    }

    fn ask(&mut self, commands: &[String]) -> Result<Vec<String>, Error> {
        Ok(commands.iter().map(|command| self.crippled.shown(monitor::human(&self.machine, command))).collect())
    }

    fn event(&mut self, vector: u16, times: u32) -> Result<(), Error> {
        for _ in 0..self.crippled.times(times) {
            self.machine.ivshmem_event(IVSHMEM, vector);
        }
        Ok(())
    }

    fn path(&self, chip: Chip) -> &str {
        match chip {
            Chip::IoApic => "/machine/q35/ioapic",
            Chip::Master => "/machine/q35/i8259[0]",
            Chip::Slave => "/machine/q35/i8259[1]",
        }
    }
}
