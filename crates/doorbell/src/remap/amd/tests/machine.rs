//! Random guests against a reference that reads the tables anew for each message (T20 to T24).
//!
//! A unit may use what the tables said at any time since the last invalidation that concerned the sender, and nothing older.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::registers::offset,
    rig::{DEVICES, Rig},
};
use crate::{DeviceId, MsiMessage};

/// Two that share a group of the marks, one beside them, one that a small device table does not have.
const SENDERS: [u16; 4] = [0x08, 0x108, 0x09, 0x210];
/// Where their tables are; the last address is no memory.
const TABLES: [u64; 4] = [0x6_0000, 0x6_8000, 0x7_0000, 0x4000_0000];
const PAGE: u64 = 0x9_0000;
/// From here on there is no memory.
const MEMORY: u64 = 0x12_0000;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Delivered(u64, u32),
    Posted(u8),
    /// A post to some page that the machine does not look at.
    Elsewhere,
    Blocked(Option<[u64; 2]>),
}
use Outcome::{Blocked, Delivered, Elsewhere, Posted};

/// What the guest has stored, by quadword, and the registers that matter.
#[derive(Clone, Default)]
struct World {
    memory: BTreeMap<u64, u64>,
    control: u64,
    size: u64,
}

impl World {
    fn quad(&self, at: u64) -> u64 {
        self.memory.get(&at).copied().unwrap_or(0)
    }

    /// The reference, bit by bit from the manual's figures.
    fn outcome(&self, device: u16, address: u64, data: u32) -> Outcome {
        let pass = Delivered(address, data);
        let (device, bits) = (u64::from(device), u64::from(data));
        let named = 0xfdf8 << 24
            | (bits & 0xff) << 16
            | (address >> 12 & 0xff) << 8
            | (address >> 2 & 1) << 6
            | (bits >> 15 & 1) << 5
            | (bits >> 8 & 7) << 2;
        let event = |head: u64| Blocked(Some([head | device, named]));
        if self.control & 1 == 0 {
            return pass;
        }
        if device >= (self.size + 1) * 4096 / 32 {
            return event(2 << 60 | 1 << 51);
        }
        let entry = self.quad(DEVICES + device * 32 + 16);
        if entry & 1 == 0 {
            return pass;
        }
        if entry >> 52 & 15 != 0 || entry >> 59 & 1 != 0 {
            return event(1 << 60 | 1 << 51 | 1 << 55);
        }
        if address >> 20 != 0xfee {
            return Blocked(None);
        }
        let domain = self.quad(DEVICES + device * 32 + 8) & 0xffff;
        let fault = |suppressed: bool, flags: u64| {
            if suppressed || entry >> 5 & 1 == 1 {
                Blocked(None)
            } else {
                event(2 << 60 | 1 << 51 | domain << 32 | flags)
            }
        };
        if self.control >> 43 & 3 != 1 {
            match bits >> 8 & 7 {
                0 | 1 => {}
                2 => return pass,
                3 | 6 => return event(8 << 60 | 6 << 57),
                mode => {
                    let bit = match mode {
                        4 => 58,
                        5 => 56,
                        _ => 57,
                    };
                    return if entry >> bit & 1 == 1 { pass } else { fault(false, 0) };
                }
            }
        }
        match entry >> 60 & 3 {
            0 => return event(8 << 60 | 5 << 57),
            1 => return pass,
            3 => return event(1 << 60 | 1 << 51 | 1 << 55),
            _ => {}
        }
        let (length, index, table) = (entry >> 1 & 15, bits & 0x7ff, entry & 0x000f_ffff_ffff_ffc0);
        if length > 11 {
            return event(1 << 60 | 1 << 51);
        }
        if index >= 1 << length {
            return fault(false, 0);
        }
        let wide = self.control >> 17 & 1 == 1;
        let at = table + index * if wide { 16 } else { 4 };
        if at >= TABLES[3] {
            return Blocked(Some([4 << 60 | 1 << 57 | 1 << 51 | domain << 32 | device, at]));
        }
        let (low, vector, destination) = if wide {
            let (low, high) = (self.quad(at), self.quad(at + 8));
            let destination = low >> 8 & 0xff_ffff | high >> 56 << 24;
            (low, high & 0xff, if self.control >> 50 & 1 == 1 { destination } else { destination & 0xff })
        } else {
            let low = self.quad(at & !7) >> (at % 8 * 8) & 0xffff_ffff;
            (low, low >> 16 & 0xff, low >> 8 & 0xff)
        };
        let quiet = low >> 1 & 1 == 1;
        if low & 1 == 0 {
            return fault(quiet, 0);
        }
        let guest = low >> 7 & 1 == 1;
        if guest && wide && self.control >> 25 & 7 == 1 {
            let page = self.quad(at + 8) & 0x000f_ffff_ffff_f000;
            let word = page + 0x200 + vector / 32 * 16;
            return match page {
                PAGE => Posted(vector as u8),
                MEMORY.. => Blocked(Some([4 << 60 | 1 << 57 | 1 << 51 | device, word])),
                _ => Elsewhere,
            };
        }
        if guest || low >> 2 & 7 > 1 || !wide && low >> 24 != 0 {
            return fault(quiet, 1 << 52 | 1 << 55);
        }
        let level = low >> 5 & 1 | bits >> 15 & 1;
        let assert = bits >> 14 & 1 | level;
        let data = vector | (low >> 2 & 1) << 8 | assert << 14 | level << 15;
        let address = 0xfee0_0000 | (destination & 0xff) << 12 | (low >> 6 & 1) << 2 | destination >> 8 << 40;
        Delivered(address, data as u32)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The interrupt fields of a sender's device table entry.
    Device {
        sender: usize,
        table: usize,
        bits: u64,
    },
    /// A quadword of a table.
    Entry {
        table: usize,
        quad: u64,
        bits: u64,
    },
    Control {
        bits: u64,
    },
    Size {
        size: u64,
    },
    Invalidate {
        kind: u8,
        sender: usize,
    },
    Send {
        sender: usize,
        address: u64,
        data: u32,
        prepared: bool,
    },
    SaveAndRestore,
}

/// Mostly a usable device table entry, without its table.
fn device_bits() -> impl Strategy<Value = u64> {
    let usable = (0u64..=11).prop_map(|length| 1 | length << 1 | 2 << 60);
    let odd = (any::<u64>(), 0u64..16, 0u64..4)
        .prop_map(|(bits, length, control)| bits & 0xc7f0_0000_0000_0021 & !(bits << 3) | length << 1 | control << 60);
    prop_oneof![4 => usable, 3 => odd]
}

/// Two 32-bit entries or half of a 128-bit one, mostly enabled and plain.
fn entry_bits() -> impl Strategy<Value = u64> {
    let plain = (any::<u32>(), any::<u32>()).prop_map(|(low, high)| {
        let plain = |bits: u32| bits & 0x00ff_ff64 | 1;
        u64::from(plain(high)) << 32 | u64::from(plain(low))
    });
    let page = (any::<u8>(), any::<u8>()).prop_map(|(vector, high)| u64::from(vector) | PAGE | u64::from(high) << 56);
    prop_oneof![4 => plain, 2 => page, 1 => any::<u64>().prop_map(|bits| bits & 0xff0f_ffff_0fff_ffff)]
}

fn step() -> impl Strategy<Value = Step> {
    let sender = || 0..SENDERS.len();
    let index = prop_oneof![6 => 0u32..6, 1 => 0x100u32..0x106, 1 => any::<u32>().prop_map(|data| data & 0xc7ff)];
    let address = prop_oneof![
        6 => Just(0xfee0_0000u64),
        1 => (0u64..0x10_0000).prop_map(|low| 0xfee0_0000 | low & !3),
        1 => any::<u64>().prop_map(|address| address & 0xff_fff0_0000 | 0xc000),
    ];
    let control = (any::<bool>(), any::<u64>()).prop_map(|(mostly, bits)| {
        // GAEn, GAMEn, NumIntRemapMode, XTEn; the unit is mostly enabled.
        bits & (1 << 17 | 1 << 25 | 1 << 43 | 1 << 50) | u64::from(mostly || bits >> 60 != 0)
    });
    prop_oneof![
        3 => (sender(), 0usize..4, device_bits()).prop_map(|(sender, table, bits)| Step::Device { sender, table, bits }),
        4 => (0usize..3, prop_oneof![4 => 0u64..8, 1 => 0x200u64..0x20c], entry_bits())
            .prop_map(|(table, quad, bits)| Step::Entry { table, quad, bits }),
        1 => control.prop_map(|bits| Step::Control { bits }),
        1 => (0u64..8).prop_map(|size| Step::Size { size }),
        4 => (0u8..4, sender()).prop_map(|(kind, sender)| Step::Invalidate { kind, sender }),
        10 => (sender(), address, index, any::<bool>())
            .prop_map(|(sender, address, data, prepared)| Step::Send { sender, address, data, prepared }),
        1 => Just(Step::SaveAndRestore),
    ]
}

struct Machine {
    rig: Rig,
    now: World,
    /// For each sender, what the tables have said since it was last invalidated.
    since: [Vec<World>; SENDERS.len()],
}

impl Machine {
    fn new() -> Self {
        let rig = Rig::new();
        let now = World { control: 1, size: 31, ..World::default() };
        Self { since: std::array::from_fn(|_| vec![now.clone()]), rig, now }
    }

    fn store(&mut self, at: u64, quad: u64) {
        self.rig.store(at, [quad]);
        self.now.memory.insert(at, quad);
        for since in &mut self.since {
            since.push(self.now.clone());
        }
    }

    fn forget(&mut self, concerned: impl Fn(u16) -> bool) {
        for (since, sender) in self.since.iter_mut().zip(SENDERS) {
            if concerned(sender) {
                *since = vec![self.now.clone()];
            }
        }
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Device { sender, table, bits } => {
                let at = DEVICES + 32 * u64::from(SENDERS[sender]);
                self.store(at + 8, 0x1200 | sender as u64);
                self.store(at + 16, bits | TABLES[table]);
            }
            Step::Entry { table, quad, bits } => self.store(TABLES[table] + 8 * quad, bits),
            Step::Control { bits } => {
                self.rig.unit().write(offset::CONTROL, 8, bits | 1 << 2 | 1 << 12);
                if bits != self.now.control {
                    self.now.control = bits;
                    self.forget(|_| true);
                }
            }
            Step::Size { size } => {
                self.rig.unit().write(offset::DEVICE_TABLE_BASE, 8, DEVICES | size);
                self.now.size = size;
                self.forget(|_| true);
            }
            // Commands wait while the unit is disabled.
            Step::Invalidate { .. } if self.now.control & 1 == 0 => {}
            Step::Invalidate { kind, sender } => {
                let device = SENDERS[sender];
                let opcode = [2, 5, 8, 5][usize::from(kind)];
                self.rig.commands(&[[opcode << 60 | if opcode == 8 { 0 } else { u64::from(device) }, 0], [1 << 60, 0]]);
                self.forget(|it| opcode == 8 || it == device);
            }
            Step::Send { sender, address, data, prepared } => {
                let device = SENDERS[sender];
                let message = MsiMessage::new(address, data).from_device(DeviceId(device.into()));
                let outcomes: Vec<_> =
                    self.since[sender].iter().map(|world| world.outcome(device, address, data)).collect();
                if outcomes.contains(&Elsewhere) {
                    return Ok(());
                }
                self.rig.store(PAGE + 0x200, [0; 32]);
                self.rig.fire_or_send(&message, prepared);
                let seen = self.seen()?;
                prop_assert!(outcomes.contains(&seen), "{:x?}, but {:x?}", seen, outcomes);
                if !prepared {
                    prop_assert_eq!(Some(&seen), outcomes.last(), "what was not prepared is looked up each time");
                }
            }
            Step::SaveAndRestore => {
                let saved = self.rig.remap.save();
                self.rig.remap.restore(&saved).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(self.rig.remap.save(), saved);
                self.forget(|_| true);
            }
        }
        prop_assert_eq!(self.rig.events(), Vec::<[u64; 2]>::new());
        prop_assert_eq!(self.rig.taken(), vec![]);
        Ok(())
    }

    /// What became of the message just sent.
    fn seen(&self) -> Result<Outcome, TestCaseError> {
        let (taken, events) = (self.rig.taken(), self.rig.events());
        let words: [u64; 32] = self.rig.load(PAGE + 0x200);
        let posted: Vec<u8> =
            (0..=255u8).filter(|&vector| words[usize::from(vector) / 32 * 2] >> (vector % 32) & 1 == 1).collect();
        Ok(match (&taken[..], &posted[..], &events[..]) {
            ([(address, data)], [], []) => Delivered(*address, *data),
            ([], [vector], []) => Posted(*vector),
            ([], [], []) => Blocked(None),
            ([], [], [event]) => Blocked(Some(*event)),
            all => return Err(TestCaseError::fail(format!("one message made {all:x?}"))),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_guests_see_what_their_tables_say(steps in prop::collection::vec(step(), 1..80)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.run(step)?;
        }
    }

    /// T24: whatever the tables hold, two senders of the same data never get each other's vector.
    #[test]
    fn senders_never_get_each_others_vectors(
        steps in prop::collection::vec((0usize..2, 0u64..8, 1u8..8, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let rig = Rig::new();
        let senders = [SENDERS[0], SENDERS[1]];
        for (n, sender) in senders.into_iter().enumerate() {
            rig.device(sender, TABLES[n], 3);
        }
        for (n, index, low, invalidate, prepared) in steps {
            // The high half of a vector says whose it is.
            rig.store_entry(TABLES[n], index, super::entry(0x40 + 0x10 * n as u8 + low, n as u8));
            if invalidate {
                rig.invalidate(senders[n]);
            }
            for (whose, sender) in senders.into_iter().enumerate() {
                let message = super::message(sender, index as u32);
                rig.fire_or_send(&message, prepared);
                for (address, data) in rig.taken() {
                    prop_assert_eq!((address, data >> 4), (0xfee0_0000 | (whose as u64) << 12, 4 + whose as u32));
                }
            }
        }
    }
}
