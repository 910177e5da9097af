//! Random programs against a reference written from the specification page: maps, and nothing clever.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{ItsOptions, registers::offset, rig::*, sink::LpiSink};
use crate::{
    Errno,
    chips::arm::{Behaviour, lpi::LpiSent},
    guest_ram::GuestRam,
};

#[derive(Clone, Debug)]
enum Step {
    Command(Words),
    Ring {
        device: u32,
        event: u32,
        prepared: bool,
    },
    Enable(bool),
    /// From here on for 0x200 bytes there is no memory; 0: there is.
    Hole(u64),
    /// A redistributor's LPIs, off or on.
    Off(u64),
    /// The table of this register is taken away and given again, while disabled.
    Table(u64),
    SaveAndRestore,
}

/// Devices of 4 to 10 bits, and one of 16; their interrupt translation tables do not overlap.
fn itt(device: u32) -> u64 {
    if device == 3 { RAM + 0x20_0000 } else { ITT + u64::from(device % 8) * 0x4000 }
}

fn devices() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..5, 1 => prop::sample::select(vec![0x1ffe, 0x1fff, 0x2000, 0x1_0001, u32::MAX])]
}

fn events() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..6, 4 => 14u32..36, 1 => prop::sample::select(vec![1023, 1024, 0xffff, 0x1_0000, u32::MAX])]
}

fn lpis() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 8192u32..8204, 1 => prop::sample::select(vec![0, 8191, 0xffff, 0x1_0000, u32::MAX])]
}

fn icids() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0u16..4, 1 => prop::sample::select(vec![0x1fff, 0x2000, 0xffff])]
}

fn cpus() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..2, 1 => prop::sample::select(vec![2, 0xffff, 0x1_0000, (1 << 35) - 1])]
}

fn commands() -> impl Strategy<Value = Words> {
    let bits = prop_oneof![8 => 4u64..11, 1 => prop::sample::select(vec![1, 16, 17, 32])];
    prop_oneof![
        6 => (devices(), events(), lpis(), icids()).prop_map(|(device, event, lpi, icid)| mapti(device, event, lpi, icid)),
        2 => (devices(), events(), icids()).prop_map(|(d, event, icid)| [0x0b | u64::from(d) << 32, event.into(), icid.into(), 0]),
        4 => (devices(), bits, prop::bool::weighted(0.8)).prop_map(|(device, bits, valid)| {
            let bits = if bits <= 10 || device == 3 { bits } else { bits.max(17) };
            mapd(device, bits, itt(device), valid)
        }),
        4 => (icids(), cpus(), prop::bool::weighted(0.7)).prop_map(|(icid, cpu, valid)| mapc(icid, cpu, valid)),
        3 => (devices(), events(), icids()).prop_map(|(device, event, icid)| movi(device, event, icid)),
        6 => (prop::sample::select(vec![3u64, 4, 0xc, 0xf]), devices(), events())
            .prop_map(|(opcode, device, event)| event_command(opcode, device, event)),
        1 => (cpus(), cpus()).prop_map(|(from, to)| movall(from, to)),
        1 => icids().prop_map(|icid| [0x0d, 0, icid.into(), 0]),
        1 => any::<Words>(),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => commands().prop_map(Step::Command),
        12 => (devices(), events(), any::<bool>())
            .prop_map(|(device, event, prepared)| Step::Ring { device, event, prepared }),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => prop::sample::select(vec![0, 0, DEVICES, COLLECTIONS, QUEUE, QUEUE + 0x200, itt(1), itt(2) + 0x80])
            .prop_map(Step::Hole),
        1 => (0u64..4).prop_map(Step::Off),
        1 => prop::sample::select(vec![offset::BASER0, offset::BASER1]).prop_map(Step::Table),
        2 => Just(Step::SaveAndRestore),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    lpi: u32,
    icid: u16,
    lost: bool,
}

/// The reference.
struct Model {
    kvm: bool,
    lpis: FakeLpis,
    enabled: bool,
    devices: BTreeMap<u32, u64>,
    collections: BTreeMap<u16, Option<u16>>,
    events: BTreeMap<(u32, u32), Event>,
    hole: u64,
    /// There have been holes.
    holes: bool,
    cwriter: u64,
    errors: BTreeMap<u32, u64>,
    unreadable: u64,
    unknown: u64,
}

impl Model {
    fn new(kvm: bool) -> Self {
        Self {
            kvm,
            lpis: FakeLpis::new(),
            enabled: true,
            devices: BTreeMap::new(),
            collections: BTreeMap::new(),
            events: BTreeMap::new(),
            hole: 0,
            holes: false,
            cwriter: 0,
            errors: BTreeMap::new(),
            unreadable: 0,
            unknown: 0,
        }
    }

    fn memory(&self, at: u64, bytes: u64) -> bool {
        let hole = self.hole != 0 && at < self.hole + 0x200 && at + bytes > self.hole;
        !hole && at >= RAM && at + bytes <= RAM + RAM_BYTES as u64
    }

    fn cpu(&self, redistributor: u64) -> Option<u16> {
        (redistributor < CPUS.into()).then_some(redistributor as u16)
    }

    /// Where events of a collection go.
    fn home(&self, icid: u16) -> Option<u16> {
        self.collections.get(&icid).copied().flatten()
    }

    /// An event that comes through.
    fn alive(&self, at: (u32, u32)) -> Option<&Event> {
        self.events.get(&at).filter(|event| !event.lost && self.home(event.icid).is_some())
    }

    fn ring(&self, device: u32, event: u32) -> Result<i32, Errno> {
        if !self.enabled {
            return Err(Errno::BUSY);
        }
        let Some(event) = self.alive((device, event)) else { return Ok(0) };
        match self.lpis.pend(event.lpi) {
            LpiSent::Off => Err(Errno::BUSY),
            LpiSent::Nowhere => Ok(0),
            _ => Ok(1),
        }
    }

    fn unmap(&mut self, at: (u32, u32)) {
        if let Some(event) = self.events.remove(&at) {
            self.lpis.unmap(event.lpi, self.kvm);
        }
    }

    fn unmap_device(&mut self, device: u32) {
        let events: Vec<_> = self.events.keys().copied().filter(|at| at.0 == device).collect();
        events.into_iter().for_each(|at| self.unmap(at));
        self.devices.remove(&device);
    }

    fn unmap_collection(&mut self, icid: u16) {
        let named = self.events.values().any(|event| event.icid == icid && !event.lost);
        let kvm = self.kvm;
        self.events.values_mut().filter(|event| event.icid == icid).for_each(|event| event.lost |= kvm);
        if kvm || !named {
            self.collections.remove(&icid);
        } else if let Some(collection) = self.collections.get_mut(&icid) {
            *collection = None;
        }
    }

    /// The code of the mistake, if it is one.
    fn command(&mut self, [head, second, third, fourth]: Words) -> Result<(), u32> {
        let (device, event) = ((head >> 32) as u32, second as u32);
        let (icid, valid, redistributor) = (third as u16, third >> 63 == 1, third >> 16 & ((1 << 35) - 1));
        let at = (device, event);
        match head as u8 {
            0x01 => {
                let old = self.events.get(&at).cloned().ok_or(0x01_0107u32)?;
                let stuck = self.kvm && self.alive(at).is_none();
                let home = self.home(icid).filter(|_| !stuck).ok_or(0x01_0109u32)?;
                self.lpis.retarget(old.lpi, home, true);
                self.events.insert(at, Event { lpi: old.lpi, icid, lost: false });
            }
            0x03 => {
                let lpi = self.alive(at).ok_or(0x01_0307u32)?.lpi;
                self.lpis.pend(lpi);
            }
            0x04 => self.lpis.clear(self.events.get(&at).ok_or(0x01_0507u32)?.lpi),
            0x05 => {}
            0x08 => {
                let bits = (second & 0x1f) + 1;
                if device >= 0x2000 || !self.memory(DEVICES + 8 * u64::from(device), 8) {
                    return Err(0x01_0801);
                }
                if valid && bits > 16 {
                    return Err(0x01_0802);
                }
                self.unmap_device(device);
                if valid {
                    self.devices.insert(device, bits);
                }
            }
            0x09 if !valid => self.unmap_collection(icid),
            0x09 => {
                let cpu = self.cpu(redistributor).ok_or(0x01_0902u32)?;
                self.check_collection(icid)?;
                self.collections.insert(icid, Some(cpu));
                for event in self.events.values().filter(|event| event.icid == icid && !event.lost) {
                    self.lpis.retarget(event.lpi, cpu, self.kvm);
                }
            }
            0x0a | 0x0b => {
                let lpi = if head as u8 == 0x0a { (second >> 32) as u32 } else { event };
                let bits = *self.devices.get(&device).ok_or(0x01_0a04u32)?;
                if u64::from(event) >> bits != 0 || !self.memory(itt(device) + 8 * u64::from(event), 8) {
                    return Err(0x01_0a05);
                }
                if !(8192..0x1_0000).contains(&lpi) {
                    return Err(0x01_0a06);
                }
                let old = self.events.get(&at).cloned();
                if self.kvm && old.is_some() {
                    return Ok(());
                }
                self.check_collection(icid)?;
                let home = *self.collections.entry(icid).or_insert(None);
                self.lpis.map(lpi, home).unwrap();
                self.events.insert(at, Event { lpi, icid, lost: false });
                if let Some(old) = old {
                    self.lpis.unmap(old.lpi, old.lpi == lpi);
                }
            }
            0x0c => self.lpis.invalidate(self.events.get(&at).ok_or(0x01_0c07u32)?.lpi).unwrap(),
            0x0d => self.lpis.invalidate_all(self.home(icid).ok_or(0x01_0d09u32)?),
            0x0e => {
                let from = self.cpu(redistributor).ok_or(0x01_0e01u32)?;
                let to = self.cpu(fourth >> 16 & ((1 << 35) - 1)).ok_or(0x01_0e01u32)?;
                if from != to {
                    self.lpis.move_all(from, to, self.kvm);
                }
            }
            0x0f => {
                if !self.events.contains_key(&at) || self.kvm && self.alive(at).is_none() {
                    return Err(0x01_0f07);
                }
                self.unmap(at);
            }
            _ => self.unknown += 1,
        }
        Ok(())
    }

    fn check_collection(&self, icid: u16) -> Result<(), u32> {
        let known = self.collections.contains_key(&icid);
        let there = icid < 0x2000 && self.memory(COLLECTIONS + 8 * u64::from(icid), 8);
        if known || there { Ok(()) } else { Err(0x01_0903) }
    }

    /// What is left after a save and a restore into a machine whose LPIs are new.
    fn restored(&mut self) {
        self.lpis = FakeLpis::new();
        self.events.retain(|_, event| !event.lost);
        for event in self.events.values() {
            self.lpis.map(event.lpi, self.home(event.icid)).unwrap();
        }
    }
}

/// As a guest must before it gives memory to an ITS.
fn zero_tables(rig: &Rig) {
    for (at, bytes) in [(DEVICES, 0x1_0000), (COLLECTIONS, 0x1_0000), (ITT, 0x2_0000), (itt(3), 0x8_0000)] {
        rig.ram.write(at, &vec![0; bytes]).unwrap();
    }
}

fn step(rig: &mut Rig, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Command(words) => {
            let at = QUEUE + model.cwriter;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let written = rig.ram.write(at, &bytes).is_ok();
            model.cwriter = (model.cwriter + 32) % 0x1_0000;
            if !model.enabled {
                rig.write(offset::CTLR, 1);
                model.enabled = true;
            }
            rig.write(offset::CWRITER, model.cwriter);
            prop_assert_eq!(rig.read(offset::CREADR), model.cwriter);
            if !written {
                model.unreadable += 1;
            } else if let Err(code) = model.command(words) {
                *model.errors.entry(code).or_default() += 1;
            }
        }
        Step::Ring { device, event, prepared } => {
            let target = match (u16::try_from(device), u16::try_from(event)) {
                (Ok(device), Ok(event)) if prepared => rig.unit.prepare(device, event),
                _ => None,
            };
            let answer = match target {
                Some(target) => Rig::answer(rig.unit.fire(target).unwrap()),
                None => rig.signal(device, event),
            };
            prop_assert_eq!(answer, model.ring(device, event));
        }
        Step::Enable(enabled) => {
            rig.write(offset::CTLR, enabled.into());
            model.enabled = enabled;
        }
        Step::Hole(at) => {
            *rig.ram.hole.lock() = at..if at == 0 { 0 } else { at + 0x200 };
            model.hole = at;
            model.holes |= at != 0;
        }
        Step::Off(cpus) => {
            for lpis in [&rig.unit.lpis, &model.lpis] {
                lpis.off.store(cpus, std::sync::atomic::Ordering::Relaxed);
            }
        }
        Step::Table(at) => {
            *rig.ram.hole.lock() = 0..0;
            model.hole = 0;
            rig.write(offset::CTLR, 0);
            let value = rig.read(at);
            rig.write(at, value & !VALID);
            rig.write(at, value);
            rig.write(offset::CTLR, 1);
            model.enabled = true;
            if at == offset::BASER0 {
                let devices: Vec<_> = model.devices.keys().copied().collect();
                devices.into_iter().for_each(|device| model.unmap_device(device));
                zero_tables(rig);
            } else {
                let kvm = model.kvm;
                model.events.values_mut().for_each(|event| event.lost |= kvm);
                model.collections.clear();
                if !kvm {
                    model.collections.extend(model.events.values().map(|event| (event.icid, None)));
                }
            }
        }
        Step::SaveAndRestore => {
            *rig.ram.hole.lock() = 0..0;
            model.hole = 0;
            if model.kvm || model.holes {
                // KVM leaves entries of events that are gone; so must anybody whose memory is not there.
                zero_tables(rig);
            }
            rig.unit.save_tables().unwrap();
            let state = rig.unit.save();
            let before = rig.unit.counters();
            rig.unit = rig.fresh(&ItsOptions::default());
            rig.unit.restore(&state).unwrap();
            prop_assert_eq!(rig.unit.save(), state);
            prop_assert_eq!(before.full, 0);
            model.restored();
            (model.errors, model.unreadable, model.unknown) = Default::default();
        }
    }
    Ok(())
}

fn run(kvm: bool, program: &[Step]) -> Result<(), TestCaseError> {
    let mut rig = if kvm { Rig::kvm() } else { Rig::spec() };
    prop_assert_eq!(rig.unit.nature().behaviour == Behaviour::KVM, kvm);
    rig.bring_up();
    let mut model = Model::new(kvm);
    for one in program {
        step(&mut rig, &mut model, one)?;
        prop_assert_eq!(&*rig.unit.lpis.lpis.lock(), &*model.lpis.lpis.lock(), "after {:x?}", one);
        prop_assert_eq!(&*rig.unit.lpis.invalidated.lock(), &*model.lpis.invalidated.lock());
        let counters = rig.unit.counters();
        let errors: BTreeMap<_, _> = counters.errors.iter().map(|(error, count)| (error.code(), *count)).collect();
        prop_assert_eq!(&errors, &model.errors, "after {:x?}", one);
        prop_assert_eq!((counters.unreadable, counters.unknown), (model.unreadable, model.unknown));
    }
    // What is mapped can be delivered, and nothing else.
    rig.write(offset::CTLR, 1);
    model.enabled = true;
    for device in 0..6 {
        for event in 0..40 {
            prop_assert_eq!(rig.signal(device, event), model.ring(device, event));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_its_does_what_the_reference_does(program in prop::collection::vec(steps(), 1..120)) {
        run(false, &program)?;
    }

    #[test]
    fn an_its_with_kvms_ways_does_what_the_reference_does(program in prop::collection::vec(steps(), 1..120)) {
        run(true, &program)?;
    }
}
