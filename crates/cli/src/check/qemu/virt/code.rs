//! The program that QEMU's CPUs run: each takes its own operations from one list, in order, and stores what they gave.
//!
//! A list is an array of entries of 24 bytes: whose it is (u32), which routine does it (u32, its address), an address
//! (u64), and a value (u64) that the result replaces. [`TURN`] holds the address of the entry whose turn it is; a CPU that
//! finds its own number there runs the routine and moves it on. [`NOBODY`] ends a list. So everything happens in one
//! order, however QEMU schedules its CPUs.
//!
//! An access that is refused (an abort, an undefined register) gives [`REFUSED`].

use super::icc::Register;

/// Where the program is.
pub const PROGRAM: u64 = 0x4700_0000;
/// Where the address of the next entry is kept, and where lists begin. They are used in turn: a CPU may have looked at
/// [`TURN`] and be about to look at the end of the last list, which therefore stays while the next one is stored.
pub const TURN: u64 = 0x4800_0000;
pub const LISTS: [u64; 2] = [0x4810_0000, 0x4820_0000];
/// Bytes of an entry.
pub const ENTRY: u64 = 24;
/// The CPU of an entry that ends a list.
pub const NOBODY: u32 = u32::MAX;
/// The result of an access that was refused.
pub const REFUSED: u64 = 0xdead << 48;

/// The loop. x19: TURN; x20: the CPU's number; x21: the INTID that the CPU acknowledged last.
const LOOP: [u32; 29] = [
    0xd538_00b4, //        mrs   x20, mpidr_el1
    0x9240_1e94, //        and   x20, x20, #0xff
    0xd2a9_0013, //        mov   x19, #0x48000000
    0xd2a8_e000, //        mov   x0, #0x47000000
    0x9120_0000, //        add   x0, x0, #0x800         the vectors
    0xd518_c000, //        msr   vbar_el1, x0
    0xd280_7ff5, //        mov   x21, #1023
    0xd503_3fdf, //        isb
    0xb500_00f4, //        cbnz  x20, next              CPU 0 starts CPU 1, by PSCI's CPU_ON
    0xd2b8_8000, //        mov   x0, #0xc4000000
    0xf280_0060, //        movk  x0, #3
    0xd280_0021, //        mov   x1, #1
    0xd2a8_e002, //        mov   x2, #0x47000000
    0xd280_0003, //        mov   x3, #0
    0xd400_0002, //        hvc   #0
    0xf940_0262, // next:  ldr   x2, [x19]              the entry
    0xb940_0043, //        ldr   w3, [x2]
    0x6b14_007f, //        cmp   w3, w20
    0x5400_0121, //        b.ne  wait
    0xb940_0444, //        ldr   w4, [x2, #4]           the routine
    0xa940_8041, //        ldp   x1, x0, [x2, #8]       address, value
    0xd63f_0080, //        blr   x4
    0xf900_0840, //        str   x0, [x2, #16]
    0x9100_6042, //        add   x2, x2, #24
    0xd503_3f9f, //        dsb   sy
    0xf900_0262, //        str   x2, [x19]
    0x17ff_fff5, //        b     next
    0xd503_203f, // wait:  yield
    0x17ff_fff3, //        b     next
];
/// What a refused access comes to: the next instruction, with [`REFUSED`]. It lies at the vector of synchronous exceptions
/// of the current level (Arm ARM, "Exception vectors").
const HANDLER: [u32; 5] = [
    0xd538_4025, //        mrs   x5, elr_el1
    0x9100_10a5, //        add   x5, x5, #4
    0xd518_4025, //        msr   elr_el1, x5
    0xd2fb_d5a0, //        mov   x0, #0xdead << 48
    0xd69f_03e0, //        eret
];
const HANDLER_AT: usize = 0xa00;
/// Loads and stores of 1, 2, 4 and 8 bytes at `[x1]`.
const LOADS: [u32; 4] = [0x3940_0020, 0x7940_0020, 0xb940_0020, 0xf940_0020];
const STORES: [u32; 4] = [0x3900_0020, 0x7900_0020, 0xb900_0020, 0xf900_0020];
const DSB: u32 = 0xd503_3f9f;
const ISB: u32 = 0xd503_3fdf;
const RET: u32 = 0xd65f_03c0;
/// mov x21, x0 and mov x0, x21.
const REMEMBER: u32 = 0xaa00_03f5;
const RECALL: u32 = 0xaa15_03e0;
/// mrs x0, … and msr …, x0, without the register.
const MRS: u32 = 0xd530_0000;
const MSR: u32 = 0xd510_0000;

/// Routines have places of 16 bytes behind the handler.
const ROUTINES_AT: usize = 0x1000;
const ROUTINE: usize = 16;

/// What an entry of the list does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routine {
    /// A load of so many bytes: 1, 2, 4 or 8.
    Load(u8),
    /// A store.
    Store(u8),
    /// A load of a register of the CPU.
    Read(Register),
    /// A store.
    Write(Register),
    /// A store of the INTID that the CPU acknowledged last.
    WriteLast(Register),
}

impl Routine {
    /// Its place among the routines.
    fn index(self) -> usize {
        let size = |bytes: u8| bytes.trailing_zeros() as usize & 3;
        match self {
            Self::Load(bytes) => size(bytes),
            Self::Store(bytes) => 4 + size(bytes),
            Self::Read(register) => 8 + 3 * register as usize,
            Self::Write(register) => 9 + 3 * register as usize,
            Self::WriteLast(register) => 10 + 3 * register as usize,
        }
    }

    /// Its address.
    pub fn address(self) -> u32 {
        PROGRAM as u32 + (ROUTINES_AT + ROUTINE * self.index()) as u32
    }

    fn words(self) -> [u32; 4] {
        match self {
            Self::Load(_) => [LOADS[self.index()], DSB, RET, 0],
            Self::Store(_) => [STORES[self.index() - 4], DSB, RET, 0],
            Self::Read(register) if register.acknowledges() => [MRS | register.field(), REMEMBER, DSB, RET],
            Self::Read(register) => [MRS | register.field(), DSB, RET, 0],
            Self::Write(register) => [MSR | register.field(), ISB, RET, 0],
            Self::WriteLast(register) => [RECALL, MSR | register.field(), ISB, RET],
        }
    }
}

/// The whole program, as bytes to lie at [`PROGRAM`].
pub fn image() -> Vec<u8> {
    let registers = Register::all();
    let of_registers = registers.flat_map(|of| [Routine::Read(of), Routine::Write(of), Routine::WriteLast(of)]);
    let of_memory = [1, 2, 4, 8].map(Routine::Load).into_iter().chain([1, 2, 4, 8].map(Routine::Store));
    let routines: Vec<_> = of_memory.chain(of_registers).collect();
    let mut image = vec![0; ROUTINES_AT + ROUTINE * routines.len()];
    let mut put = |at: usize, words: &[u32]| {
        for (place, word) in image[at..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    put(0, &LOOP);
    put(HANDLER_AT, &HANDLER);
    for routine in routines {
        put(ROUTINES_AT + ROUTINE * routine.index(), &routine.words());
    }
    image
}
