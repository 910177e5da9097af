//! The guest's program, assembled here: 64-bit kernel code that waits in an idle loop, does what its mailbox says, and
//! notes every vector that it takes.
//!
//! Guest code may be emulated, at some 0.4 million instructions a second, so registers hold what all of it needs: `r15` the
//! vCPU's mailbox, `r14` the local APIC, `r13` the end of the vCPU's log, `r12` the IOAPIC. Everything lies in the first
//! MiB, at the same virtual address; of the rest only the windows of the two APICs are mapped.

/// The guest's memory in bytes, from address 0.
pub const MEMORY: usize = 0x10_0000;
/// The top of the page tables.
pub const PAGE_TABLES: u64 = 0x1000;
/// The descriptor table and its limit.
pub const GDT: (u64, u16) = (0x5000, 0x17);
/// The interrupt table and its limit.
pub const IDT: (u64, u16) = (0x6000, 0xfff);
/// The selector of the code segment, and of the others.
pub const CODE_SEGMENT: u16 = 0x08;
/// See [`CODE_SEGMENT`].
pub const DATA_SEGMENT: u16 = 0x10;

/// The port that the guest writes to when it has nothing to do.
pub const IDLE: u16 = 0x10;
/// The port that it writes to only to leave: where chips outside of the guest have to catch up.
pub const PASS: u16 = 0x11;
/// The same where a handler lets others in.
pub const NEST: u16 = 0x12;

/// Where the local APIC is after reset.
pub const LAPIC: u64 = 0xfee0_0000;
/// Where the IOAPIC is.
pub const IOAPIC: u64 = 0xfec0_0000;

const OPERATIONS: usize = 0x9000;
/// The handlers, one for each vector.
const HANDLERS: usize = 0x1_0000;
const HANDLER: usize = 0x80;
/// What belongs to one vCPU: mailbox, stack, log.
const BLOCKS: usize = 0x2_0000;
const BLOCK: usize = 0x1_0000;
const LOG: usize = 0x4000;
/// How many events fit a log.
pub const LOG_EVENTS: usize = (BLOCK - LOG) / 2;

/// The mailbox: what to do, its two arguments, its answer; how many interrupts handlers may still end; and for each vector
/// what its handler does.
pub mod mailbox {
    /// The address of the operation.
    pub const OPERATION: usize = 0;
    /// Its first argument.
    pub const FIRST: usize = 8;
    /// Its second argument.
    pub const SECOND: usize = 16;
    /// Its answer.
    pub const ANSWER: usize = 24;
    /// How many interrupts handlers may still end.
    pub const ENDS: usize = 32;
    /// Not 0: a handler that lets others in asks once more.
    pub const AGAIN: usize = 36;
    /// A byte for each vector: [`super::Policy`].
    pub const POLICIES: usize = 0x100;
}

/// What a handler does once it has noted its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It leaves the interrupt in service.
    Leave = 0,
    /// It ends it.
    End = 1,
    /// It lets others in, and then ends it.
    NestAndEnd = 2,
}

/// What the idle loop can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing: it only takes what is pending.
    Nothing,
    /// Stores 32 bits, the second argument, at an address, the first.
    Store,
    /// Loads 32 bits from an address.
    Load,
    /// Stores the second argument in the IOAPIC's register with the number of the first.
    StoreIoApic,
    /// Loads from it.
    LoadIoApic,
    /// Stores the second argument in CR8.
    SetCr8,
    /// Loads CR8.
    GetCr8,
    /// Lets interrupts in.
    Enable,
    /// Keeps them out.
    Disable,
    /// Halts with interrupts as they are.
    Halt,
    /// Writes the byte in the second argument to a port.
    Out,
    /// Reads a byte from a port.
    In,
}

impl Operation {
    const ALL: [Self; 12] = [
        Self::Nothing,
        Self::Store,
        Self::Load,
        Self::StoreIoApic,
        Self::LoadIoApic,
        Self::SetCr8,
        Self::GetCr8,
        Self::Enable,
        Self::Disable,
        Self::Halt,
        Self::Out,
        Self::In,
    ];

    /// What it is made of; it ends with a jump to the idle loop.
    fn code(self) -> &'static [u8] {
        match self {
            Self::Nothing => &[],
            // mov rbx, [r15+8]; mov eax, [r15+16]; mov [rbx], eax
            Self::Store => &[0x49, 0x8b, 0x5f, 8, 0x41, 0x8b, 0x47, 16, 0x89, 0x03],
            // mov rbx, [r15+8]; mov eax, [rbx]; mov [r15+24], eax
            Self::Load => &[0x49, 0x8b, 0x5f, 8, 0x8b, 0x03, 0x41, 0x89, 0x47, 24],
            // mov eax, [r15+8]; mov [r12], eax; mov eax, [r15+16]; mov [r12+16], eax
            Self::StoreIoApic => {
                &[0x41, 0x8b, 0x47, 8, 0x41, 0x89, 0x04, 0x24, 0x41, 0x8b, 0x47, 16, 0x41, 0x89, 0x44, 0x24, 16]
            }
            // mov eax, [r15+8]; mov [r12], eax; mov eax, [r12+16]; mov [r15+24], eax
            Self::LoadIoApic => {
                &[0x41, 0x8b, 0x47, 8, 0x41, 0x89, 0x04, 0x24, 0x41, 0x8b, 0x44, 0x24, 16, 0x41, 0x89, 0x47, 24]
            }
            // mov rax, [r15+16]; mov cr8, rax
            Self::SetCr8 => &[0x49, 0x8b, 0x47, 16, 0x44, 0x0f, 0x22, 0xc0],
            // mov rax, cr8; mov [r15+24], eax
            Self::GetCr8 => &[0x44, 0x0f, 0x20, 0xc0, 0x41, 0x89, 0x47, 24],
            // sti; nop
            Self::Enable => &[0xfb, 0x90],
            // cli
            Self::Disable => &[0xfa],
            // hlt
            Self::Halt => &[0xf4],
            // mov edx, [r15+8]; mov al, [r15+16]; out dx, al
            Self::Out => &[0x41, 0x8b, 0x57, 8, 0x41, 0x8a, 0x47, 16, 0xee],
            // mov edx, [r15+8]; xor eax, eax; in al, dx; mov [r15+24], eax
            Self::In => &[0x41, 0x8b, 0x57, 8, 0x31, 0xc0, 0xec, 0x41, 0x89, 0x47, 24],
        }
    }

    /// Where its code is.
    pub fn address(self) -> u64 {
        let place = Self::ALL.iter().position(|&other| other == self).unwrap_or(0);
        (OPERATIONS + 0x40 * (place + 1)) as u64
    }
}

/// An event of a vCPU's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The handler of this vector was entered.
    Taken(u8),
    /// It has ended its interrupt and is about to return.
    Ended(u8),
}

impl Event {
    /// As the guest wrote it; `None` for what it never writes.
    pub fn from_bits(bits: u16) -> Option<Self> {
        match bits >> 8 {
            1 => Some(Self::Taken(bits as u8)),
            2 => Some(Self::Ended(bits as u8)),
            _ => None,
        }
    }
}

/// Where the block of a vCPU begins, with its mailbox.
pub fn block(vcpu: u32) -> usize {
    BLOCKS + vcpu as usize * BLOCK
}

/// Where its log begins; its stack ends there.
pub fn log(vcpu: u32) -> usize {
    block(vcpu) + LOG
}

/// Where the handler of a vector begins.
pub fn handler(vector: u8) -> u64 {
    (HANDLERS + usize::from(vector) * HANDLER) as u64
}

/// Where its code begins: at the idle loop.
pub const ENTRY: u64 = OPERATIONS as u64;

/// Who takes interrupts out of the local APIC: see [`Machine`](super::machine::Machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// The vCPU, as its interrupt flag says.
    Vcpu,
    /// The host, for a guest that never sets the flag.
    Host,
}

/// The memory of a guest before it runs.
pub fn image(accepts: Accepts) -> Vec<u8> {
    let mut image = Image(vec![0; MEMORY]);
    image.page_tables();
    // Code: present, 64 bits; data: present, writable.
    image.words(GDT.0 as usize, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    for vector in 0..=255_u8 {
        let handler = handler(vector);
        // An interrupt gate: present, interrupts off.
        let gate = handler & 0xffff | u64::from(CODE_SEGMENT) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        image.words(IDT.0 as usize + 16 * usize::from(vector), &[gate, handler >> 32]);
        image.bytes(handler as usize, &handler_of(vector, accepts));
    }
    // out IDLE, al; jmp [r15]
    image.bytes(OPERATIONS, &[0xe6, IDLE as u8, 0x41, 0xff, 0x27]);
    for operation in Operation::ALL {
        let (at, code) = (operation.address() as usize, operation.code());
        image.bytes(at, code);
        let jump = at + code.len();
        let distance = (OPERATIONS as i32 - (jump as i32 + 5)).to_le_bytes();
        image.bytes(jump, &[&[0xe9], &distance[..]].concat());
    }
    image.0
}

struct Image(Vec<u8>);

impl Image {
    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, at: usize, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(at, &bytes);
    }

    /// The first 2 MiB, and the two pages of 2 MiB with the APICs.
    fn page_tables(&mut self) {
        /// Present and writable.
        const TABLE: u64 = 3;
        /// The same, 2 MiB; and not to be cached.
        const PAGE: u64 = 0x83;
        const DEVICE: u64 = PAGE | 0x18;
        let [top, middle, low, high] = [0, 1, 2, 3].map(|page| PAGE_TABLES + page * 0x1000);
        self.words(top as usize, &[middle | TABLE]);
        self.words(middle as usize, &[low | TABLE, 0, 0, high | TABLE]);
        self.words(low as usize, &[PAGE]);
        for window in [IOAPIC, LAPIC] {
            let entry = (window >> 21 & 0x1ff) as usize;
            self.words(high as usize + 8 * entry, &[window | DEVICE]);
        }
    }
}

/// The handler of a vector.
fn handler_of(vector: u8, accepts: Accepts) -> Vec<u8> {
    let policy = ((mailbox::POLICIES + usize::from(vector)) as u32).to_le_bytes();
    let note = |kind: u8| {
        // mov word [r13], event; add r13, 2
        [0x66, 0x41, 0xc7, 0x45, 0, vector, kind, 0x49, 0x83, 0xc5, 2]
    };
    // test byte [r15+policy], mask
    let test = |mask: u8| [&[0x41, 0xf6, 0x87], &policy[..], &[mask]].concat();
    // iretq
    let leave: &[u8] = &[0x48, 0xcf];
    let end = [
        // dec dword [r15+ENDS]
        &[0x41, 0xff, 0x4f, mailbox::ENDS as u8][..],
        // mov [r14+0xb0], eax: the end of interrupt, for which any value does
        &[0x41, 0x89, 0x86, 0xb0, 0, 0, 0],
        // out PASS, al
        &[0xe6, PASS as u8],
        &note(2),
    ]
    .concat();
    // sti and cli, or two times nothing
    let [set, clear] = if accepts == Accepts::Vcpu { [0xfb, 0xfa] } else { [0x90, 0x90] };
    // sti; out NEST, al; test byte [r15+AGAIN], 1; jnz back to out; cli
    let nest = [set, 0xe6, NEST as u8, 0x41, 0xf6, 0x47, mailbox::AGAIN as u8, 1, 0x75, 0xf7, clear];
    [
        &note(1)[..],
        &test(Policy::End as u8 | Policy::NestAndEnd as u8),
        // jnz over the next instruction
        &[0x75, leave.len() as u8],
        leave,
        &test(Policy::NestAndEnd as u8),
        // jz
        &[0x74, nest.len() as u8],
        &nest,
        // cmp dword [r15+ENDS], 0; je
        &[0x41, 0x83, 0x7f, mailbox::ENDS as u8, 0, 0x74, end.len() as u8],
        &end,
        leave,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_do_not_overlap() {
        assert!((0..=255).all(|vector| handler_of(vector, Accepts::Vcpu).len() <= HANDLER));
        assert!(Operation::ALL.iter().all(|operation| operation.code().len() + 5 <= 0x40));
        assert!(OPERATIONS + 0x40 * (Operation::ALL.len() + 1) <= HANDLERS);
        const { assert!(HANDLERS + 256 * HANDLER <= BLOCKS) };
        const { assert!(BLOCKS + 4 * BLOCK <= MEMORY) };
        // The stack is between the two.
        const { assert!(mailbox::POLICIES + 256 < LOG) };
    }

    #[test]
    fn events_are_read_as_the_guest_writes_them() {
        assert_eq!(Event::from_bits(0x0141), Some(Event::Taken(0x41)));
        assert_eq!(Event::from_bits(0x02ff), Some(Event::Ended(0xff)));
        assert_eq!(Event::from_bits(0x0041), None);
        assert_eq!(Event::from_bits(0x0341), None);
    }
}
