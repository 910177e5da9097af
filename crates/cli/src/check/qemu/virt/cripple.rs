//! Faults that the check must find: a check that finds nothing has to be able to find something.

use super::icc::Register;
use super::side::{Input, Op};
use super::step::{EDU_BAR, PENDING, QUEUE};
use crate::qtest::virt::GICD;

/// What is wrong with doorbell on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A level SPI's line that falls stays high.
    SpiStaysHigh,
    /// ICC_EOIR1_EL1 does nothing.
    EndOfGroup1,
    /// ICC_DIR_EL1 does nothing.
    Deactivate,
    /// ICC_BPR1_EL1 cannot be written.
    BinaryPoint,
    /// ICC_SGI1R_EL1 reaches the first CPU only.
    SgiTargets,
    /// Clearing an enable does nothing.
    ClearEnable,
    /// CLEAR of the ITS does nothing.
    ItsClear,
    /// MOVI of the ITS does nothing.
    ItsMovi,
    /// The message of a device is lost.
    DeviceMessage,
    /// The pending tables are not written.
    PendingTables,
}

/// A machine's fault, between it and the check.
pub struct Crippled(Option<Fault>);

impl Crippled {
    /// With this fault, or none.
    pub fn new(fault: Option<Fault>) -> Self {
        Self(fault)
    }

    /// An operation as the machine gets it, or none.
    pub fn op(&self, op: Op) -> Option<Op> {
        let Some(fault) = self.0 else { return Some(op) };
        let is_command = |number: u64| {
            matches!(op, Op::Store(_, 8, address, value)
            if (QUEUE..QUEUE + 0x1_0000).contains(&address) && address % 32 == 0 && value & 0xff == number)
        };
        match (fault, op) {
            (Fault::SpiStaysHigh, Op::Line(Input::Spi(_), false)) => None,
            (Fault::EndOfGroup1, Op::Write(_, Register::Eoir1, _) | Op::WriteLast(_, Register::Eoir1)) => None,
            (Fault::Deactivate, Op::Write(_, Register::Dir, _) | Op::WriteLast(_, Register::Dir)) => None,
            (Fault::BinaryPoint, Op::Write(_, Register::Bpr1, _)) => None,
            (Fault::SgiTargets, Op::Write(cpu, Register::Sgi1r, value)) => {
                Some(Op::Write(cpu, Register::Sgi1r, value & !0xfffe))
            }
            (Fault::ClearEnable, Op::Store(_, _, address, _)) if (GICD + 0x180..GICD + 0x200).contains(&address) => {
                None
            }
            // SYNC instead.
            (Fault::ItsClear, Op::Store(cpu, bytes, address, _)) if is_command(0x04) => {
                Some(Op::Store(cpu, bytes, address, 0x05))
            }
            (Fault::ItsMovi, Op::Store(cpu, bytes, address, _)) if is_command(0x01) => {
                Some(Op::Store(cpu, bytes, address, 0x05))
            }
            (Fault::DeviceMessage, Op::Store(_, _, address, _)) if address == EDU_BAR + 0x60 => None,
            _ => Some(op),
        }
    }

    /// A result as the check gets it.
    pub fn result(&self, op: Op, value: u64) -> u64 {
        match op {
            Op::Load(_, 8, address) if self.0 == Some(Fault::PendingTables) && address >> 16 == PENDING[0] >> 16 => 0,
            _ => value,
        }
    }
}
