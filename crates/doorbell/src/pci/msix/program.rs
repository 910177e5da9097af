//! A byte string as a program of guest accesses and events, run against a table and against a model of it.
//!
//! For fuzz targets and property tests: any bytes are a program. The model is the rules of the specification on an
//! image of the registers; it knows nothing of GSIs, and it panics where the table does something else.

use std::sync::Arc;

use super::{
    MsixCapability, MsixState, MsixTable, RegisterPlace,
    registers::{ENTRY_BYTES, MAX_VECTORS, MessageControl},
};
use crate::{
    Delivery, MsiMessage, VectorPath,
    pci::{InjectorMask, InjectorOptions, MaskStrategy, VectorEvent, VectorPool, WhileDisabled},
};

/// What a program runs against: a table, its events, and what they send.
pub struct Subject<'a, S> {
    /// The table, in its reset state.
    pub table: &'a mut MsixTable<S>,
    /// What the device does while disabled.
    pub while_disabled: WhileDisabled,
    /// An event of a vector below the table's number.
    pub fire: &'a mut dyn FnMut(u16) -> VectorEvent,
    /// What was sent since the last call.
    pub take_sent: &'a mut dyn FnMut() -> Vec<MsiMessage>,
}

/// What happened in a run, so that a test can see that it tested something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events fired.
    pub events: u32,
    /// Messages sent.
    pub sent: u32,
}

/// Runs a program to its end.
///
/// # Panics
/// Where the table differs from the model.
pub fn run<S: MaskStrategy>(subject: Subject<'_, S>, program: &[u8]) -> Summary {
    let vectors = subject.table.vectors();
    let place = |offset| RegisterPlace { bar: 0, offset };
    let capability = MsixCapability::new(vectors, 0, place(0), place(0x8000)).expect("the PBA is behind the table");
    let model = Model::new(vectors, subject.while_disabled);
    let mut run = Run { subject, capability, model, summary: Summary::default() };
    let mut bytes = Bytes(program);
    while let Some(code) = bytes.next() {
        run.step(code, &mut bytes);
        run.compare();
    }
    run.summary
}

/// Runs a program against strategy S5-A over `path`; its first two bytes choose the device. For a fuzz target.
///
/// # Panics
/// As [`run`].
pub fn run_beside_injector<P: VectorPath + ?Sized>(
    path: &Arc<P>,
    take_sent: &mut dyn FnMut() -> Vec<MsiMessage>,
    program: &[u8],
) -> Summary {
    let mut bytes = Bytes(program);
    let vectors = [1, 3, 64, 65, 200, MAX_VECTORS][usize::from(bytes.byte() % 6)];
    let while_disabled = if bytes.byte() % 2 == 0 { WhileDisabled::Keep } else { WhileDisabled::Drop };
    let pool = VectorPool::new(path.clone());
    let strategy = InjectorMask::new(&pool, vectors, InjectorOptions { while_disabled }).expect("1 to 2,048 vectors");
    let mut table = MsixTable::new(strategy).expect("1 to 2,048 vectors");
    let handles: Vec<_> = (0..vectors).filter_map(|vector| table.strategy().vector(vector)).collect();
    let fire = &mut |vector| handles[usize::from(vector)].fire();
    run(Subject { table: &mut table, while_disabled, fire, take_sent }, bytes.0)
}

/// Bytes that are 0 where the program is over, other than for the next operation.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn qword(&mut self) -> [u8; 8] {
        std::array::from_fn(|_| self.byte())
    }
}

struct Run<'a, S> {
    subject: Subject<'a, S>,
    capability: MsixCapability,
    model: Model,
    summary: Summary,
}

impl<S: MaskStrategy> Run<'_, S> {
    fn step(&mut self, code: u8, bytes: &mut Bytes<'_>) {
        let vectors = self.model.vectors;
        match code % 12 {
            0..=2 => {
                let vector = bytes.word() % vectors;
                self.summary.events += 1;
                let event = (self.subject.fire)(vector);
                let expected = self.model.fire(vector);
                assert_eq!(std::mem::discriminant(&event), std::mem::discriminant(&expected), "{event:?}");
            }
            // The mask bit of one entry: what guests do most.
            3..=5 => {
                let offset = u64::from(bytes.word() % vectors) * ENTRY_BYTES + 12;
                let value = u32::from(bytes.byte()).to_le_bytes();
                self.subject.table.write(offset, &value);
                self.model.write(offset, &value);
            }
            // Any store around the table: 1, 2, 4 or 8 bytes, aligned or not.
            6 => {
                let room = u64::from(vectors) * ENTRY_BYTES + 16;
                let offset = (u64::from(bytes.word()) % room) & if bytes.byte() % 4 == 0 { !0 } else { !3 };
                let data = bytes.qword();
                let length = [4, 8, 4, 8, 1, 2, 4, 8][usize::from(bytes.byte() % 8)];
                self.subject.table.write(offset, &data[..length]);
                self.model.write(offset, &data[..length]);
            }
            7 => {
                // Enable and Function Mask by themselves, or any bytes of the capability.
                let (offset, data) = if bytes.byte() % 4 == 0 {
                    (usize::from(bytes.byte() % 16), bytes.qword()[..usize::from(bytes.byte() % 9)].to_vec())
                } else {
                    (3, vec![bytes.byte() << 6])
                };
                self.capability.write(self.subject.table, offset, &data);
                self.model.write_capability(offset, &data);
            }
            8 => {
                let (offset, length) = (u64::from(bytes.word()), usize::from(bytes.byte() % 10));
                let mut data = vec![0; length];
                self.subject.table.read(offset, &mut data);
                assert_eq!(data, self.model.read(offset, length), "{length} bytes at {offset:#x} of the table");
                self.subject.table.write_pba(offset, &data);
            }
            9 => {
                let vector = bytes.word() % vectors;
                self.subject.table.withdraw(vector);
                self.model.pending[usize::from(vector)] = false;
            }
            10 => self.restore(bytes),
            _ => {
                if bytes.byte() % 8 == 0 {
                    self.subject.table.reset();
                    self.model = Model::new(vectors, self.model.while_disabled);
                }
            }
        }
    }

    /// Saves, and restores the same or something that a program has spoilt.
    fn restore(&mut self, bytes: &mut Bytes<'_>) {
        let table = &mut *self.subject.table;
        let saved = table.save();
        let mut spoilt = saved.clone();
        match bytes.byte() % 8 {
            0 => spoilt.control ^= bytes.word() & !0xc000,
            1 => spoilt.pending.truncate(usize::from(bytes.byte() % 3)),
            2 => spoilt.entries.truncate(usize::from(bytes.byte())),
            3 => spoilt.entries[0].address ^= u64::from(bytes.byte() % 4),
            4 => {
                let last = spoilt.pending.len() - 1;
                spoilt.pending[last] |= u64::from(bytes.byte()).rotate_right(8);
            }
            _ => {}
        }
        let result = table.restore(&spoilt);
        if result.is_err() {
            assert_ne!(spoilt, saved, "a state that was saved is refused");
            assert_eq!(table.save(), saved, "a refused state has changed something");
        } else {
            // Pending bits that the program has added are events too.
            let added = spoilt.pending.iter().zip(&saved.pending).map(|(spoilt, saved)| (spoilt & !saved).count_ones());
            self.summary.events += added.sum::<u32>();
            self.model.restore(&spoilt);
        }
    }

    fn compare(&mut self) {
        let mut sent = (self.subject.take_sent)();
        self.summary.sent += sent.len() as u32;
        let mut expected = std::mem::take(&mut self.model.sent);
        let key = |message: &MsiMessage| (message.address, message.data);
        sent.sort_by_key(key);
        expected.sort_by_key(key);
        assert_eq!(sent, expected, "what was sent");
        for word in 0..self.model.vectors.div_ceil(64) {
            let mut data = [0; 8];
            self.subject.table.read_pba(u64::from(word) * 8, &mut data);
            assert_eq!(u64::from_le_bytes(data), self.model.pending_word(word), "word {word} of the PBA");
        }
        let mut control = [0; 2];
        self.capability.read(self.subject.table, 2, &mut control);
        assert_eq!(u16::from_le_bytes(control), self.model.control.into_bits(), "Message Control");
        assert!(self.summary.sent <= self.summary.events, "more messages than events: {:?}", self.summary);
    }
}

/// The registers as bytes, and the rules M1 to M14.
struct Model {
    vectors: u16,
    while_disabled: WhileDisabled,
    control: MessageControl,
    table: Vec<u8>,
    pending: Vec<bool>,
    sent: Vec<MsiMessage>,
}

/// The bits of each dword of an entry that can be written.
const WRITABLE: [u32; 4] = [!3, !0, !0, 1];

impl Model {
    fn new(vectors: u16, while_disabled: WhileDisabled) -> Self {
        assert!((1..=MAX_VECTORS).contains(&vectors));
        let entry = [0u32, 0, 0, 1].map(u32::to_le_bytes).concat();
        Self {
            vectors,
            while_disabled,
            control: MessageControl::new().with_table_size(vectors - 1),
            table: entry.repeat(vectors.into()),
            pending: vec![false; vectors.into()],
            sent: Vec::new(),
        }
    }

    fn dword(&self, offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|at| self.table[offset + at]))
    }

    fn is_open(&self, vector: u16) -> bool {
        self.control.is_open() && self.dword(usize::from(vector) * 16 + 12) & 1 == 0
    }

    fn message(&self, vector: u16) -> MsiMessage {
        let entry = usize::from(vector) * 16;
        let address = u64::from(self.dword(entry)) | u64::from(self.dword(entry + 4)) << 32;
        MsiMessage::new(address, self.dword(entry + 8))
    }

    fn pending_word(&self, word: u16) -> u64 {
        let bits = self.pending.iter().skip(usize::from(word) * 64).take(64);
        bits.enumerate().fold(0, |word, (bit, pending)| word | u64::from(*pending) << bit)
    }

    fn fire(&mut self, vector: u16) -> VectorEvent {
        if self.is_open(vector) {
            self.sent.push(self.message(vector));
            VectorEvent::Sent(Delivery::Delivered(1))
        } else if !self.control.enable() && self.while_disabled == WhileDisabled::Drop {
            VectorEvent::Dropped
        } else {
            self.pending[usize::from(vector)] = true;
            VectorEvent::Pending
        }
    }

    /// Sends what is pending and unmasked.
    fn replay(&mut self) {
        for vector in 0..self.vectors {
            if self.is_open(vector) && std::mem::take(&mut self.pending[usize::from(vector)]) {
                self.sent.push(self.message(vector));
            }
        }
    }

    fn is_access(&self, offset: u64, length: usize) -> bool {
        matches!(length, 4 | 8) && offset % length as u64 == 0 && offset < self.table.len() as u64
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if !self.is_access(offset, data.len()) {
            return;
        }
        let offset = offset as usize;
        for (at, byte) in data.iter().enumerate() {
            let mask = WRITABLE[(offset + at) % 16 / 4].to_le_bytes()[(offset + at) % 4];
            self.table[offset + at] = byte & mask;
        }
        self.replay();
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        if self.is_access(offset, length) {
            self.table[offset as usize..offset as usize + length].to_vec()
        } else {
            vec![0xff; length]
        }
    }

    fn write_capability(&mut self, offset: usize, data: &[u8]) {
        // Byte 3 of the capability holds Function Mask in bit 6 and Enable in bit 7.
        if let Some(byte) = 3usize.checked_sub(offset).and_then(|at| data.get(at)) {
            self.control = self.control.with_function_mask(byte & 0x40 != 0).with_enable(byte & 0x80 != 0);
            self.replay();
        }
    }

    fn restore(&mut self, state: &MsixState) {
        *self = Self { sent: std::mem::take(&mut self.sent), ..Self::new(self.vectors, self.while_disabled) };
        for (vector, entry) in state.entries.iter().enumerate() {
            let dwords = [entry.address as u32, (entry.address >> 32) as u32, entry.data, entry.masked.into()];
            let bytes = dwords.map(u32::to_le_bytes).concat();
            self.table[vector * 16..vector * 16 + 16].copy_from_slice(&bytes);
            self.pending[vector] = state.pending[vector / 64] >> (vector % 64) & 1 != 0;
        }
        self.control = MessageControl::from_bits(state.control);
        self.replay();
    }
}
