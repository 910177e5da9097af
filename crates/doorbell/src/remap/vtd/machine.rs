//! Random programs on a unit and on a reference that has no cache: it reads the table for every message, in plain
//! arithmetic after the specification. The guest of these programs invalidates what it changes.

use proptest::prelude::*;

use super::{VtdOptions, registers as r, rig::*};
use crate::{
    Delivery, DeviceId, MsiMessage, MsiTarget,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
};

#[derive(Clone, Debug)]
enum Step {
    /// An entry is changed and invalidated: by its index under a mask, or with all.
    Entry {
        index: u32,
        entry: [u64; 2],
        mask: Option<u8>,
    },
    /// A message, as it is or through its target.
    Send {
        address: u64,
        data: u32,
        requester: Option<u32>,
        prepared: bool,
    },
    Command {
        bits: u32,
    },
    Table {
        second: bool,
        size: u8,
        extended: bool,
    },
    /// A descriptor of a posted interrupt: its fifth word.
    Control {
        word: u64,
    },
    FreeRecord {
        number: u64,
    },
    FaultStatus {
        value: u32,
    },
    Mask {
        masked: bool,
    },
    SaveAndRestore,
}

const POSTED_AT: u64 = 0x3_0000;

fn entries() -> impl Strategy<Value = [u64; 2]> {
    let low = (any::<u8>(), any::<u8>(), 0u64..16, prop_oneof![9 => Just(0u64), 1 => any::<u64>()]).prop_map(
        |(vector, cpu, flags, noise)| 1 | (flags << 1 & 0x1e) | u64::from(vector) << 16 | u64::from(cpu) << 40 ^ noise,
    );
    let high =
        (prop_oneof![Just(0x18u64), Just(0x1f), Just(0x0100), any::<u16>().prop_map(u64::from)], 0u64..4, 0u64..4)
            .prop_map(|(source, qualifier, kind)| source | qualifier << 16 | kind << 18);
    let posted = (any::<u8>(), any::<bool>(), high.clone()).prop_map(|(vector, urgent, high)| {
        let descriptor = POSTED_AT | if vector & 1 == 0 { 0 } else { 1 << 20 };
        [1 | u64::from(urgent) << 14 | 1 << 15 | u64::from(vector) << 16 | descriptor << 32, high]
    });
    prop_oneof![
        6 => (low, high).prop_map(|(low, high)| [low, high]),
        2 => posted,
        1 => Just([0, 0]),
        1 => Just([2, 0]),
    ]
}

fn messages() -> impl Strategy<Value = Step> {
    let place = (0u32..10, any::<bool>()).prop_map(|(index, subhandle)| handle(index) | u64::from(subhandle) << 3);
    let address = prop_oneof![
        8 => place,
        2 => Just(0xfee0_1000u64),
        1 => Just(handle(0xffff)),
        1 => Just(0xfed0_0010),
        1 => Just(0x1_fee0_0010),
    ];
    let data = prop_oneof![4 => 0u32..4, 1 => Just(0x1_0000), 1 => any::<u32>()];
    let requester =
        prop_oneof![4 => Just(Some(0x18)), 1 => Just(Some(0x1c)), 1 => Just(Some(0x10018)), 1 => Just(None)];
    (address, data, requester, any::<bool>()).prop_map(|(address, data, requester, prepared)| Step::Send {
        address,
        data,
        requester,
        prepared,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let commands = prop::sample::select(vec![0, REMAP, REMAP | COMPATIBILITY, REMAP | SET_TABLE, SET_TABLE]);
    prop_oneof![
        6 => (0u32..8, entries(), prop::option::of(0u8..5))
            .prop_map(|(index, entry, mask)| Step::Entry { index, entry, mask }),
        10 => messages(),
        2 => commands.prop_map(|bits| Step::Command { bits }),
        1 => (any::<bool>(), 0u8..4, any::<bool>())
            .prop_map(|(second, size, extended)| Step::Table { second, size, extended }),
        1 => prop_oneof![Just(0u64), Just(1), Just(2), Just(0x0102_0000_00f2_0000), Just(4)]
            .prop_map(|word| Step::Control { word }),
        2 => (0u64..3).prop_map(|number| Step::FreeRecord { number }),
        1 => (0u32..4).prop_map(|value| Step::FaultStatus { value }),
        1 => any::<bool>().prop_map(|masked| Step::Mask { masked }),
        1 => Just(Step::SaveAndRestore),
    ]
}

/// The reference.
struct Model {
    remap: bool,
    compatibility: bool,
    stored_table: u64,
    table: u64,
    /// Reason, index, requester of the taken ones.
    records: [Option<(u8, u16, u16)>; 2],
    next: usize,
    overflow: bool,
    masked: bool,
    waiting: bool,
}

/// What a message comes to.
#[derive(Debug, PartialEq)]
enum Comes {
    To(u64, u32),
    /// A vector is posted; with a message that notifies, or without.
    Posted(u8, Option<(u64, u32)>),
    Nothing,
}

const EVENT: (u64, u32) = (0xfee0_5000, 0x77);

impl Model {
    fn extended(&self) -> bool {
        self.table >> 11 & 1 == 1
    }

    fn cpu(&self, destination: u64) -> u64 {
        let id = if self.extended() { destination } else { destination >> 8 & 0xff };
        0xfee0_0000 | (id & 0xff) << 12 | (id >> 8) << 40
    }

    /// What becomes of a message, and the fault event's message if there is one.
    fn send(&mut self, ram: &RamBlock, address: u64, data: u32, requester: Option<u32>) -> (Comes, bool) {
        let who = requester.filter(|id| *id < 0x1_0000).map_or(0xffff, |id| id as u16);
        if !self.remap {
            return (Comes::To(address, data), false);
        }
        if address >> 20 != 0xfee {
            return (Comes::Nothing, false);
        }
        let subhandle = address & 8 != 0;
        let index = (address >> 5 & 0x7fff)
            + (address >> 2 & 1) * 0x8000
            + if subhandle { u64::from(data & 0xffff) } else { 0 };
        match self.look_up(ram, address, data, index, who) {
            Ok(comes) => (comes, false),
            Err(None) => (Comes::Nothing, false),
            Err(Some(0x25)) => (Comes::Nothing, self.fault(0x25, 0, who)),
            Err(Some(reason)) => (Comes::Nothing, self.fault(reason, index as u16, who)),
        }
    }

    fn look_up(&self, ram: &RamBlock, address: u64, data: u32, index: u64, who: u16) -> Result<Comes, Option<u8>> {
        if address & 0x10 == 0 {
            let passes = self.compatibility && !self.extended();
            return if passes { Ok(Comes::To(address, data)) } else { Err(Some(0x25)) };
        }
        if address & 8 != 0 && data >= 0x1_0000 {
            return Err(Some(0x20));
        }
        if index >= 2 << (self.table & 15) {
            return Err(Some(0x21));
        }
        let at = (self.table & !0xfff) + 16 * index;
        let low: u64 = ram.read_le(at).map_err(|_| Some(0x23))?;
        let high: u64 = ram.read_le(at + 8).map_err(|_| Some(0x23))?;
        let quiet = low & 2 != 0;
        let fault = |reason| Err(if quiet { None } else { Some(reason) });
        if low & 1 == 0 {
            return fault(0x22);
        }
        let posted = low & 0x8000 != 0;
        let reserved = if posted {
            low & 0x3f_ff00_30fc | high & 0xfff0_0000
        } else {
            let destination = if self.extended() { 0 } else { 0xffff_00ff_0000_0000 };
            low & (0xff00_7000 | destination) | high & !0xf_ffff
        };
        if reserved != 0 || high >> 18 & 3 == 3 || !posted && matches!(low >> 5 & 7, 3 | 6) {
            return fault(0x24);
        }
        let source = high as u16;
        let compared = [0xffff, 0xfffb, 0xfff9, 0xfff8][(high >> 16 & 3) as usize];
        let admitted = match high >> 18 & 3 {
            0 => true,
            1 => source & compared == who & compared,
            _ => who >> 8 >= source >> 8 && who >> 8 <= source & 0xff,
        };
        if !admitted {
            return fault(0x26);
        }
        let vector = (low >> 16) as u8;
        if !posted {
            let address = self.cpu(low >> 32) | low & 0xc;
            let (mode, level) = ((low >> 5 & 7) as u32, (low >> 4 & 1) as u32);
            let data = u32::from(vector) | mode << 8 | 0x4000 | level << 15;
            return Ok(Comes::To(address, data));
        }
        let descriptor = high >> 32 << 32 | (low >> 38) << 6;
        if ram.read_le::<u64>(descriptor).is_err() {
            return fault(0x27);
        }
        let control: u64 = ram.read_le(descriptor + 32).unwrap();
        if control & 0xff00_fffc != 0 {
            return fault(0x28);
        }
        let told = control & 1 == 0 && (low & 0x4000 != 0 || control & 2 == 0);
        let notification = (self.cpu(control >> 32), 0x4000 | (control >> 16 & 0xff) as u32);
        Ok(Comes::Posted(vector, told.then_some(notification)))
    }

    /// Whether a fault's event is sent at once.
    fn fault(&mut self, reason: u8, index: u16, who: u16) -> bool {
        if self.overflow {
            return false;
        }
        let first = self.is_quiet();
        if self.records[self.next].is_none() {
            self.records[self.next] = Some((reason, index, who));
            self.next = 1 - self.next;
        } else {
            self.overflow = true;
        }
        self.waiting |= first && self.masked;
        first && !self.masked
    }

    fn is_quiet(&self) -> bool {
        !self.overflow && self.records == [None, None]
    }

    fn settle(&mut self) {
        self.waiting &= !self.is_quiet();
    }
}

fn check(rig: &Rig, model: &Model) -> Result<(), TestCaseError> {
    let status = rig.read32(r::FAULT_STATUS);
    prop_assert_eq!(status & 1 == 1, model.overflow);
    prop_assert_eq!(status & 2 == 2, model.records != [None, None]);
    for number in 0..2u64 {
        let at = r::FAULT_RECORDS + 16 * number;
        let (low, high) = (rig.unit.read(at, 8), rig.unit.read(at + 8, 8));
        let found = (high >> 63 == 1).then_some(((high >> 32) as u8, (low >> 48) as u16, high as u16));
        prop_assert_eq!(found, model.records[number as usize]);
    }
    if status & 2 == 2 {
        let first = (status >> 8 & 0xff) as usize;
        prop_assert!(model.records[first].is_some(), "the index names a record that is taken");
        // With both taken, the older one is that which will be written next.
        prop_assert!(model.records[1 - first].is_none() || first == model.next);
    }
    let event = u32::from(model.masked) << 31 | u32::from(model.waiting) << 30;
    prop_assert_eq!(rig.read32(r::FAULT_EVENT), event);
    Ok(())
}

fn run(program: &[Step]) -> Result<(), TestCaseError> {
    let mut rig = Rig::remapping();
    rig.unit.write(r::FAULT_EVENT + 4, 4, EVENT.1.into());
    rig.unit.write(r::FAULT_EVENT + 8, 4, EVENT.0);
    let mut model = Model {
        remap: true,
        compatibility: false,
        stored_table: TABLE | 7,
        table: TABLE | 7,
        records: [None, None],
        next: 0,
        overflow: false,
        masked: true,
        waiting: false,
    };
    for step in program {
        step_both(&mut rig, &mut model, step)?;
        check(&rig, &model)?;
    }
    Ok(())
}

fn step_both(rig: &mut Rig, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Entry { index, entry, mask } => {
            // Both tables, so that the second one holds something too.
            for table in [TABLE, TABLE + 0x1000] {
                let at = table + 16 * u64::from(index);
                rig.ram.write_le(at, entry[0]).unwrap();
                rig.ram.write_le(at + 8, entry[1]).unwrap();
            }
            rig.submit(&[mask.map_or(INVALIDATE_ALL, |mask| invalidate(index, mask)), wait(index)]);
            prop_assert_eq!(rig.ram.read_le::<u32>(STATUS), Ok(index));
        }
        Step::Send { address, data, requester, prepared } => {
            let message = MsiMessage { address, data, device_id: requester.map(DeviceId) };
            let before = RamBlock::new(0, RAM);
            let mut bytes = vec![0; RAM];
            rig.ram.read(0, &mut bytes).unwrap();
            before.write(0, &bytes).unwrap();
            let answer = if prepared {
                rig.unit.fire(rig.unit.prepare(&message).unwrap())
            } else {
                rig.unit.send(&message).unwrap()
            };
            let (comes, event) = model.send(&before, address, data, requester);
            let told = event.then_some(EVENT);
            let arrived = rig.sink.take();
            match comes {
                Comes::To(address, data) => {
                    prop_assert_eq!(answer, Delivery::Delivered(1));
                    prop_assert_eq!(arrived, vec![(address, data)]);
                }
                Comes::Posted(vector, notification) => {
                    let word = POSTED_AT + u64::from(vector / 64) * 8;
                    let bit = 1u64 << (vector % 64);
                    let was: u64 = before.read_le(word).unwrap();
                    prop_assert_eq!(rig.ram.read_le::<u64>(word), Ok(was | bit));
                    let expected = if was & bit == 0 { Delivery::Delivered(1) } else { Delivery::Coalesced };
                    prop_assert_eq!(answer, expected);
                    prop_assert_eq!(arrived, notification.into_iter().collect::<Vec<_>>());
                }
                Comes::Nothing => {
                    prop_assert_eq!(answer, Delivery::Ignored);
                    prop_assert_eq!(arrived, told.into_iter().collect::<Vec<_>>());
                }
            }
        }
        Step::Command { bits } => {
            rig.command(bits | USE_QUEUE);
            (model.remap, model.compatibility) = (bits & REMAP != 0, bits & COMPATIBILITY != 0);
            if bits & SET_TABLE != 0 {
                model.table = model.stored_table;
            }
        }
        Step::Table { second, size, extended } => {
            model.stored_table = (TABLE + u64::from(second) * 0x1000) | u64::from(extended) << 11 | u64::from(size);
            rig.unit.write(r::TABLE_ADDRESS, 8, model.stored_table);
        }
        Step::Control { word } => rig.ram.write_le(POSTED_AT + 32, word).unwrap(),
        Step::FreeRecord { number } => {
            rig.unit.write(r::FAULT_RECORDS + 16 * number + 12, 4, 1 << 31);
            if let Some(record) = model.records.get_mut(number as usize) {
                *record = None;
            }
            model.settle();
        }
        Step::FaultStatus { value } => {
            rig.unit.write(r::FAULT_STATUS, 4, value.into());
            model.overflow &= value & 1 == 0;
            model.settle();
        }
        Step::Mask { masked } => {
            rig.unit.write(r::FAULT_EVENT, 4, u64::from(masked) << 31);
            let sent = model.waiting && !masked;
            model.masked = masked;
            model.waiting &= masked;
            prop_assert_eq!(rig.sink.take(), if sent { vec![EVENT] } else { vec![] });
        }
        Step::SaveAndRestore => {
            let state = rig.unit.save();
            let options = VtdOptions { fault_records: 2, ..VtdOptions::default() };
            rig.unit = super::VtdUnit::new(options, rig.sink.clone(), rig.ram.clone());
            rig.unit.restore(&state).unwrap();
            prop_assert_eq!(rig.unit.save(), state);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_unit_does_what_the_reference_does(program in prop::collection::vec(steps(), 1..60)) {
        run(&program)?;
    }
}
