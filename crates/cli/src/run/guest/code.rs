//! The guest's program, assembled here: real mode with 4 GiB data segments, so that one instruction reaches the local
//! APIC and the ledger. Each vector has a handler of its own with all addresses in its instructions, because guest
//! code may be emulated, at some 0.4 million instructions a second.

use std::mem::offset_of;

use crate::run::ledger::{CpuPage, FIRST_VECTOR, Ledger, SLOTS, SPAN_LEVEL};

/// Where the ledger begins in the guest's physical memory.
pub const LEDGER_BASE: u32 = 0x1000_0000;
/// The bytes of low memory that belong to one vCPU: its vector table, handlers, idle loop and stack.
pub const BLOCK: u32 = 0x8000;
/// How many vCPUs fit below 1 MiB, which is as far as a real-mode segment reaches.
pub const MOST_VCPUS: u32 = 0x10_0000 / BLOCK;
/// Offset of the first instruction in a block.
pub const ENTRY: u16 = 0x7f00;
/// First value of the stack pointer: the stack grows down from the end of the block.
pub const STACK: u16 = BLOCK as u16;

/// End of interrupt of the local APIC, at its address after reset.
const APIC_EOI: u32 = 0xfee0_00b0;
const HANDLERS: usize = 0x400;

/// Where the block of `vcpu` begins.
pub const fn block_base(vcpu: u32) -> u32 {
    vcpu * BLOCK
}

/// Whether the guest leaves to user space after the end of each level interrupt.
///
/// On a split chip the kernel reports that end when it next enters the guest. Where it emulates guest code, it may
/// instead go on to the idle loop's HLT and sleep, with the report still to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLevel {
    /// It goes on.
    Nothing,
    /// It writes to a port, which nobody has.
    Exit,
}

/// The block of `vcpu`, which belongs at [`block_base`]. `spans` are those of its page in the ledger.
pub fn assemble(vcpu: u32, spans: &[u8; SLOTS], after_level: AfterLevel) -> Vec<u8> {
    let page = LEDGER_BASE + Ledger::cpu_page_offset(vcpu) as u32;
    let segment = ((block_base(vcpu) >> 4) as u16).to_le_bytes();
    let mut block = vec![0; BLOCK as usize];
    let mut next = HANDLERS;
    // Exceptions are stray too: nothing here raises one.
    let stray = put(&mut block, &mut next, &Handler::new(page, 0).stray());
    for vector in 0..=255_u8 {
        let slot = usize::from(vector.wrapping_sub(FIRST_VECTOR));
        let flags = spans.get(slot).copied().unwrap_or(0);
        let span = usize::from(flags & !SPAN_LEVEL);
        let exit = flags & SPAN_LEVEL != 0 && after_level == AfterLevel::Exit;
        let entry = match span {
            _ if vector < FIRST_VECTOR => stray,
            0 => stray,
            _ => put(&mut block, &mut next, &Handler::new(page, vector).serve(slot, span.min(SLOTS - slot), exit)),
        };
        let offset = (entry as u16).to_le_bytes();
        let at = usize::from(vector) * 4;
        block[at..at + 4].copy_from_slice(&[offset[0], offset[1], segment[0], segment[1]]);
    }
    assert!(next <= usize::from(ENTRY), "a handler takes at most 96 bytes a slot");
    // sti; hlt; and back to hlt, interrupts still enabled: iret restores the flag.
    block[usize::from(ENTRY)..][..4].copy_from_slice(&[0xfb, 0xf4, 0xeb, 0xfd]);
    block
}

fn put(block: &mut [u8], next: &mut usize, code: &[u8]) -> usize {
    let at = *next;
    block[at..at + code.len()].copy_from_slice(code);
    *next += code.len();
    at
}

/// A handler on its way into memory: what the ledger's page prescribes, in 16-bit code. Prefix 66 makes an operand 32
/// bits wide, 67 an address. Registers need not be kept: the idle loop uses none, and handlers do not nest.
struct Handler {
    page: u32,
    code: Vec<u8>,
}

impl Handler {
    fn new(page: u32, vector: u8) -> Self {
        let handler = Self { page, code: Vec::with_capacity(96) };
        let last = page + offset_of!(CpuPage, last) as u32;
        handler
            .increment(offset_of!(CpuPage, taken))
            // mov dword [last], vector
            .address(&[0x66, 0x67, 0xc7, 0x05], last)
            .bytes(&u32::from(vector).to_le_bytes())
    }

    /// For a vector that nobody uses.
    fn stray(self) -> Vec<u8> {
        self.increment(offset_of!(CpuPage, stray)).leave(false)
    }

    /// For a vector that serves `span` slots from `slot` on.
    fn serve(self, slot: usize, span: usize, exit: bool) -> Vec<u8> {
        if span == 1 {
            let seen = Self { page: self.page, code: Vec::new() }.record(slot).leave(exit);
            return self
                .compare(slot)
                .skip_if_equal(seen.len())
                .bytes(&seen)
                .increment(offset_of!(CpuPage, again) + 4 * slot)
                .leave(exit);
        }
        // xor bx, bx: nothing new so far.
        let mut handler = self.bytes(&[0x31, 0xdb]);
        for sharer in slot..slot + span {
            // inc bx
            let seen = Self { page: handler.page, code: Vec::new() }.record(sharer).bytes(&[0x43]).code;
            handler = handler.compare(sharer).skip_if_equal(seen.len()).bytes(&seen);
        }
        let none = Self { page: handler.page, code: Vec::new() }.increment(offset_of!(CpuPage, again) + 4 * slot).code;
        // test bx, bx; jnz over the next instruction
        handler.bytes(&[0x85, 0xdb, 0x75, none.len() as u8]).bytes(&none).leave(exit)
    }

    /// `mov eax, [sequence]; cmp eax, [seen]`
    fn compare(self, slot: usize) -> Self {
        let sequence = self.page + (offset_of!(CpuPage, sequence) + 4 * slot) as u32;
        let seen = self.page + (offset_of!(CpuPage, seen) + 4 * slot) as u32;
        self.address(&[0x66, 0x67, 0xa1], sequence).address(&[0x66, 0x67, 0x3b, 0x05], seen)
    }

    /// `je` over the next `length` bytes.
    fn skip_if_equal(self, length: usize) -> Self {
        self.bytes(&[0x74, length as u8])
    }

    /// `inc dword [count]; mov [seen], eax`
    fn record(self, slot: usize) -> Self {
        let seen = self.page + (offset_of!(CpuPage, seen) + 4 * slot) as u32;
        self.increment(offset_of!(CpuPage, count) + 4 * slot).address(&[0x66, 0x67, 0xa3], seen)
    }

    /// Ends the interrupt at the local APIC, which takes any value; `out 0x80, al` to exit; `inc dword [ended]; iret`.
    fn leave(self, exit: bool) -> Vec<u8> {
        let out: &[u8] = if exit { &[0xe6, 0x80] } else { &[] };
        let ended = self.address(&[0x66, 0x67, 0xa3], APIC_EOI).bytes(out);
        ended.increment(offset_of!(CpuPage, ended)).bytes(&[0xcf]).code
    }

    /// `inc dword [page + offset]`
    fn increment(self, offset: usize) -> Self {
        let address = self.page + offset as u32;
        self.address(&[0x66, 0x67, 0xff, 0x05], address)
    }

    fn address(self, opcode: &[u8], address: u32) -> Self {
        self.bytes(opcode).bytes(&address.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_fits_and_leads_into_its_own_block() {
        for spans in [[0; SLOTS], [1; SLOTS], [3 | SPAN_LEVEL; SLOTS]] {
            let vcpu = MOST_VCPUS - 1;
            if spans[0] & !SPAN_LEVEL == 3 {
                // Sharers take the slots of the vectors after theirs, so only each third vector is in use.
                let mut used = [0; SLOTS];
                used.iter_mut().step_by(3).for_each(|span| *span = 3 | SPAN_LEVEL);
                check(vcpu, &used);
            } else {
                check(vcpu, &spans);
            }
        }
    }

    fn check(vcpu: u32, spans: &[u8; SLOTS]) {
        let block = assemble(vcpu, spans, AfterLevel::Exit);
        assert_eq!(block.len(), BLOCK as usize);
        for vector in 0..256 {
            let entry = &block[vector * 4..][..4];
            let offset = u16::from_le_bytes([entry[0], entry[1]]);
            let segment = u16::from_le_bytes([entry[2], entry[3]]);
            assert_eq!(u32::from(segment) << 4, block_base(vcpu));
            assert!((HANDLERS as u16..ENTRY).contains(&offset), "vector {vector:#x} leads to {offset:#x}");
            assert_eq!(block[usize::from(offset)], 0x66, "the first instruction of a handler");
        }
    }
}
