//! The code of guests: one piece for each thing that a program can make a vCPU do.
//!
//! Each piece does it with X0 as the value and X1 as the address, and stores X0 at X2, where no memory is: the vCPU leaves
//! with it.

use doorbell::kvm_abi::arm::SystemRegister;

use super::call::{Deed, Group};
use super::layout;

/// What the vCPU has left with is skipped when it goes on (see the agent).
const NOP: u32 = 0xd503_201f;
const ISB: u32 = 0xd503_3fdf;
/// `DSB SY`.
const DSB: u32 = 0xd503_3f9f;
/// `STR X0, [X2]`.
const REPORT: u32 = 0xf900_0040;
/// A branch to itself.
const STOP: u32 = 0x1400_0000;
/// Instructions of a piece.
const PIECE: u64 = 6;
const WIDTHS: [u8; 4] = [1, 2, 4, 8];

/// All pieces, as bytes from [`layout::CODE`] on.
pub fn all() -> Vec<u8> {
    let reads = SystemRegister::ICC.iter().map(|(_, register)| read(*register));
    let writes = SystemRegister::ICC.iter().map(|(_, register)| write(*register));
    let loads = (0..4).map(load);
    let stores = (0..4).map(store);
    let pieces = reads.chain(writes).chain(loads).chain(stores);
    pieces.flat_map(|deed| [NOP, deed, ISB, DSB, REPORT, STOP]).flat_map(u32::to_le_bytes).collect()
}

/// Where the piece for this is.
///
/// # Panics
/// Where there is none: an end, a register that is not the CPU interface's, or another width.
pub fn address(deed: Deed) -> u64 {
    let registers = SystemRegister::ICC.len();
    let number = |register| SystemRegister::ICC.iter().position(|(_, known)| *known == register);
    let width = |bytes| WIDTHS.iter().position(|width| *width == bytes);
    let piece = match deed {
        Deed::Acknowledge(Group::Zero) => number(SystemRegister::ICC_IAR0_EL1),
        Deed::Acknowledge(Group::One) => number(SystemRegister::ICC_IAR1_EL1),
        Deed::End => None,
        Deed::Read(register) => number(register),
        Deed::Write(register, _) => number(register).map(|number| registers + number),
        Deed::Load { bytes, .. } => width(bytes).map(|width| 2 * registers + width),
        Deed::Store { bytes, .. } => width(bytes).map(|width| 2 * registers + WIDTHS.len() + width),
    };
    layout::CODE + 4 * PIECE * piece.expect("programs are made of what there is code for") as u64
}

/// `MRS X0, register`.
fn read(register: SystemRegister) -> u32 {
    0xd520_0000 | u32::from(register.into_bits()) << 5
}

/// `MSR register, X0`.
fn write(register: SystemRegister) -> u32 {
    0xd500_0000 | u32::from(register.into_bits()) << 5
}

/// `LDRB W0, [X1]`, `LDRH`, `LDR W0`, `LDR X0`.
fn load(width: u32) -> u32 {
    0x3940_0020 | width << 30
}

/// `STRB W0, [X1]` and so on.
fn store(width: u32) -> u32 {
    0x3900_0020 | width << 30
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected words are those of `aarch64-linux-gnu-as`.
    #[test]
    fn instructions_are_encoded_as_an_assembler_does() {
        assert_eq!(read(SystemRegister::ICC_IAR1_EL1), 0xd538_cc00);
        assert_eq!(write(SystemRegister::ICC_EOIR1_EL1), 0xd518_cc20);
        assert_eq!(write(SystemRegister::ICC_PMR_EL1), 0xd518_4600);
        assert_eq!([load(0), load(1), load(2), load(3)], [0x3940_0020, 0x7940_0020, 0xb940_0020, 0xf940_0020]);
        assert_eq!([store(0), store(1), store(2), store(3)], [0x3900_0020, 0x7900_0020, 0xb900_0020, 0xf900_0020]);
    }

    #[test]
    fn every_piece_is_where_its_address_says() {
        let code = all();
        let word = |address: u64| {
            let at = (address - layout::CODE) as usize + 4;
            u32::from_le_bytes(code[at..at + 4].try_into().unwrap())
        };
        for (_, register) in SystemRegister::ICC {
            assert_eq!(word(address(Deed::Read(*register))), read(*register));
            assert_eq!(word(address(Deed::Write(*register, 0))), write(*register));
        }
        assert_eq!(word(address(Deed::Store { address: 0, bytes: 8, value: 0 })), store(3));
        assert!(code.len() < 0x1_0000, "below the command queues");
    }
}
