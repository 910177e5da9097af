//! The MSI capability against a model of its registers, for any program of accesses and events.

use proptest::{collection::vec, prelude::*};

use super::{MsiCapability, MsiOptions};
use crate::{
    MsiMessage,
    pci::{
        WhileDisabled,
        rig::{self, Make, Rig},
    },
};

#[derive(Clone, Debug)]
enum Op {
    Fire(u16),
    /// Bytes from an offset.
    Write(usize, Vec<u8>),
    Withdraw(u16),
    SaveRestore,
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u16..32).prop_map(Op::Fire),
        4 => (0usize..26, vec(any::<u8>(), 1..=8)).prop_map(|(offset, data)| Op::Write(offset, data)),
        4 => any::<u8>().prop_map(|control| Op::Write(2, vec![control])),
        2 => any::<u8>().prop_map(|bits| Op::Write(16, vec![bits])),
        1 => (0u16..32).prop_map(Op::Withdraw),
        1 => Just(Op::SaveRestore),
        1 => Just(Op::Reset),
    ]
}

/// The capability as bytes, and the pending bits.
struct Model {
    capable: u8,
    form: u8,
    image: [u8; 24],
    pending: u32,
    sent: Vec<MsiMessage>,
}

const LONG: u8 = 1;
const MASKABLE: u8 = 2;

impl Model {
    fn new(capable: u8, form: u8) -> Self {
        let mut image = [0; 24];
        image[0] = 5;
        image[2] = capable << 1 | (form & LONG) << 7;
        image[3] = form >> 1;
        Self { capable, form, image, pending: 0, sent: vec![] }
    }

    fn data_at(&self) -> usize {
        if self.form & LONG != 0 { 12 } else { 8 }
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.image[at..at + 4].try_into().unwrap())
    }

    fn is_open(&self, vector: u16) -> bool {
        let masked = self.form & MASKABLE != 0 && self.dword(self.data_at() + 4) >> vector & 1 != 0;
        self.image[2] & 1 != 0 && vector < 1 << (self.image[2] >> 4 & 7) && !masked
    }

    fn message(&self, vector: u16) -> MsiMessage {
        let high = if self.form & LONG != 0 { self.dword(8) } else { 0 };
        let at = self.data_at();
        let low = (1 << (self.image[2] >> 4 & 7)) - 1;
        let data = u16::from_le_bytes([self.image[at], self.image[at + 1]]) & !low | vector;
        MsiMessage::new(u64::from(high) << 32 | u64::from(self.dword(4)), data.into())
    }

    fn replay(&mut self) {
        for vector in 0..32 {
            if self.is_open(vector) && self.pending >> vector & 1 != 0 {
                self.pending &= !(1 << vector);
                self.sent.push(self.message(vector));
            }
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let vectors = 1u32 << self.capable;
        let implemented = (u32::MAX >> (32 - vectors)).to_le_bytes();
        let mask_at = self.data_at() + 4;
        for (at, &byte) in data.iter().enumerate().map(|(at, byte)| (offset + at, byte)) {
            let writable = match at {
                2 => 0x71,
                4 => 0xfc,
                5..=7 => 0xff,
                8..=11 if self.form & LONG != 0 => 0xff,
                at if at == self.data_at() || at == self.data_at() + 1 => 0xff,
                at if self.form & MASKABLE != 0 && (mask_at..mask_at + 4).contains(&at) => implemented[at - mask_at],
                _ => continue,
            };
            self.image[at] = self.image[at] & !writable | byte & writable;
            if at == 2 && self.image[2] >> 4 & 7 > self.capable {
                self.image[2] = self.image[2] & !0x70 | self.capable << 4;
            }
        }
        self.replay();
    }

    fn fire(&mut self, vector: u16) {
        if self.is_open(vector) {
            self.sent.push(self.message(vector));
        } else {
            self.pending |= 1 << vector;
        }
    }
}

fn check(make: Make, capable: u8, form: u8, program: &[Op]) {
    let vectors = 1u16 << capable;
    let Rig { strategy, path, fire } = make(vectors, WhileDisabled::Keep);
    let options = MsiOptions { next: 0, address_64: form & LONG != 0, per_vector_masking: form & MASKABLE != 0 };
    let mut msi = MsiCapability::new(strategy, options).unwrap();
    let mut model = Model::new(capable, form);
    for op in program {
        match op {
            Op::Fire(vector) => {
                fire(vector % vectors);
                model.fire(vector % vectors);
            }
            Op::Write(offset, data) => {
                msi.write(*offset, data);
                model.write(*offset, data);
            }
            Op::Withdraw(vector) => {
                msi.withdraw(vector % vectors);
                model.pending &= !(1 << (vector % vectors));
            }
            Op::SaveRestore => {
                let state = msi.save();
                msi.restore(&state).unwrap();
                assert_eq!(msi.save(), state);
            }
            Op::Reset => {
                msi.reset();
                model = Model::new(capable, form);
            }
        }
        let key = |message: &MsiMessage| (message.address, message.data);
        let (mut sent, mut expected) = (path.take_sent(), std::mem::take(&mut model.sent));
        sent.sort_by_key(key);
        expected.sort_by_key(key);
        assert_eq!(sent, expected, "{op:?}");
        let mut image = [0; 24];
        msi.read(0, &mut image);
        let mut expected = model.image;
        if form & MASKABLE != 0 {
            let allotted = u32::MAX >> (32 - (1u32 << (image[2] >> 4 & 7)));
            let at = model.data_at() + 8;
            expected[at..at + 4].copy_from_slice(&(model.pending & allotted).to_le_bytes());
        }
        assert_eq!(image, expected, "{op:?}");
    }
    msi.reset();
    assert_eq!(path.lent(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn capability_does_what_the_model_does(capable in 0u8..=5, form in 0u8..4, program in vec(op(), 0..120)) {
        check(rig::fake, capable, form, &program);
        check(rig::table, capable, form, &program);
    }
}
