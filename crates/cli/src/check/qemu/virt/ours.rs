//! Doorbell's virt machine. Its CPU interfaces are called, where QEMU's CPUs run a program.

use doorbell::chips::arm::{Encoding, IccRegister};

use super::super::Error;
use super::code::REFUSED;
use super::cripple::{Crippled, Fault};
use super::icc::Register;
use super::side::{CPUS, Input, Op, Side};
use crate::qtest::machine::Machine;
use crate::qtest::options::CommandLine;
use crate::qtest::virt::INTIDS;

/// ISR_EL1 (Arm ARM): an IRQ, an FIQ is pending.
const IRQ: u64 = 1 << 7;
const FIQ: u64 = 1 << 6;

/// Doorbell's.
pub struct Doorbell {
    machine: Machine,
    crippled: Crippled,
    /// What each CPU acknowledged last.
    last: [u64; CPUS as usize],
}

impl Doorbell {
    /// The machine, with a fault if one is wanted.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new(fault: Option<Fault>) -> Result<Self, Error> {
        let words = format!("-M virt,gic-version=3,its=on -smp {CPUS} -m 256 -device edu,addr=3");
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let machine = Machine::new(CommandLine::parse(&words)?.machine)?;
        Ok(Self { machine, crippled: Crippled::new(fault), last: [NOTHING; CPUS as usize] })
    }

    fn read(&mut self, cpu: u32, register: Register) -> u64 {
        if !register.is_readable() {
            return REFUSED;
        }
        let Some(interface) = self.machine.cpu(cpu) else { return REFUSED };
        let Some(known) = IccRegister::from_encoding(Encoding::from_bits(register.encoding())) else {
            let lines = interface.line();
            return if lines.irq { IRQ } else { 0 } | if lines.fiq { FIQ } else { 0 };
        };
        let value = interface.read(known);
        if register.acknowledges() {
            self.last[cpu as usize] = value;
        }
        value
    }

    fn write(&mut self, cpu: u32, register: Register, value: u64) -> u64 {
        let known = IccRegister::from_encoding(Encoding::from_bits(register.encoding()));
        match (known, self.machine.cpu(cpu)) {
            (Some(known), Some(interface)) if register.is_writable() => {
                // Nothing resamples here.
                let _ = interface.write(known, value);
                0
            }
            _ => REFUSED,
        }
    }

    fn take(&mut self, op: Op) -> u64 {
        match op {
            Op::Load(_, bytes, address) => {
                let mut value = [0; 8];
                self.machine.load(address, &mut value[..usize::from(bytes)]);
                u64::from_le_bytes(value)
            }
            Op::Store(_, bytes, address, value) => {
                self.machine.store(address, &value.to_le_bytes()[..usize::from(bytes)]);
                0
            }
            Op::Read(cpu, register) => self.read(cpu, register),
            Op::Write(cpu, register, value) => self.write(cpu, register, value),
            Op::WriteLast(cpu, register) => self.write(cpu, register, self.last[cpu as usize]),
            Op::Line(input, level) => {
                let input = match input {
                    Input::Spi(intid) => intid - 32,
                    Input::Ppi(cpu, intid) => u32::from(INTIDS) - 32 + 32 * cpu + intid,
                };
                self.machine.set_line(0, input as u16, level);
                0
            }
        }
    }
}

/// What a CPU took that has not taken anything.
const NOTHING: u64 = 1023;

impl Side for Doorbell {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.last = [NOTHING; CPUS as usize];
        self.machine.reset()
    }

    fn run(&mut self, ops: &[Op]) -> Result<Vec<u64>, Error> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let value = match self.crippled.op(*op) {
                Some(op) => self.take(op),
                None => 0,
            };
            results.push(self.crippled.result(*op, value));
        }
        Ok(results)
    }

    fn clear(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        self.machine.store(address, &vec![0; bytes as usize]);
        Ok(())
    }
}
