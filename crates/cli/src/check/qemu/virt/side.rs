//! What both machines are told to do, and what they answer.

use std::fmt;

use super::super::Error;
use super::code::Routine;
use super::icc::Register;
use super::step::register;

/// How many CPUs there are.
pub const CPUS: u32 = 2;

/// One access by a CPU, or the change of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// CPU, bytes (1, 2, 4 or 8) and an address that is a multiple of them.
    Load(u32, u8, u64),
    /// The same, and the value.
    Store(u32, u8, u64, u64),
    /// CPU and register.
    Read(u32, Register),
    /// The same, and the value.
    Write(u32, Register, u64),
    /// The value is what the CPU acknowledged last.
    WriteLast(u32, Register),
    /// An input of the distributor: INTID of an SPI, or of a PPI of a CPU.
    Line(Input, bool),
}

/// An input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// INTID 32 and up.
    Spi(u32),
    /// CPU, and INTID 16 to 31.
    Ppi(u32, u32),
}

impl Op {
    /// A store by the first CPU.
    pub fn store(bytes: u8, address: u64, value: u64) -> Self {
        Self::Store(0, bytes, address, value)
    }

    /// A load by the first CPU.
    pub fn load(bytes: u8, address: u64) -> Self {
        Self::Load(0, bytes, address)
    }

    /// As an entry of QEMU's list: CPU, routine, address and value. None for a line, which no CPU can drive.
    pub fn entry(self) -> Option<(u32, Routine, u64, u64)> {
        Some(match self {
            Self::Load(cpu, bytes, address) => (cpu, Routine::Load(bytes), address, 0),
            Self::Store(cpu, bytes, address, value) => (cpu, Routine::Store(bytes), address, value),
            Self::Read(cpu, register) => (cpu, Routine::Read(register), 0, 0),
            Self::Write(cpu, register, value) => (cpu, Routine::Write(register), 0, value),
            Self::WriteLast(cpu, register) => (cpu, Routine::WriteLast(register), 0, 0),
            Self::Line(..) => return None,
        })
    }

    /// Whether its result says something.
    pub fn reads(self) -> bool {
        matches!(self, Self::Load(..) | Self::Read(..))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Load(_, bytes, address) => write!(f, "load {}, {bytes} bytes", register(address)),
            Self::Store(_, bytes, address, value) => {
                write!(f, "store {}, {bytes} bytes, {value:#x}", register(address))
            }
            Self::Read(cpu, register) => write!(f, "CPU {cpu} {register}"),
            Self::Write(cpu, register, value) => write!(f, "CPU {cpu} {register} = {value:#x}"),
            Self::WriteLast(cpu, register) => write!(f, "CPU {cpu} {register} = what it took last"),
            Self::Line(Input::Spi(intid), level) => write!(f, "SPI {intid} {}", if level { "high" } else { "low" }),
            Self::Line(Input::Ppi(cpu, intid), level) => {
                write!(f, "CPU {cpu} PPI {intid} {}", if level { "high" } else { "low" })
            }
        }
    }
}

/// A machine.
pub trait Side {
    /// How it is called.
    fn name(&self) -> &'static str;

    /// Back to the state after power-on; RAM stays.
    ///
    /// # Errors
    /// Where it is gone.
    fn reset(&mut self) -> Result<(), Error>;

    /// Does these in order. What each gave; 0 for those that give nothing.
    ///
    /// # Errors
    /// Where it is gone.
    fn run(&mut self, ops: &[Op]) -> Result<Vec<u64>, Error>;

    /// Clears RAM.
    ///
    /// # Errors
    /// Where it is gone.
    fn clear(&mut self, address: u64, bytes: u64) -> Result<(), Error>;
}
