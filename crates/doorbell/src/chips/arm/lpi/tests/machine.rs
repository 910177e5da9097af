//! Any calls in any order, against a reference that is as plain as can be: no words, no queues, memory a byte at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CPUS: u16 = 3;
/// Near the beginning, where a table may end, where its bits may end, and no LPIs at all.
const LPIS: [u32; 12] = [8192, 8193, 8199, 8200, 8327, 8328, 9216, 16_383, 16_384, 65_535, 65_536, 8191];
/// Where RAM ends: of the pending table at 0x10000 the bits of 8192 to 8327 are in it.
const END: u64 = 0x1_0000 + 1024 + 17;
/// The last but one ends with RAM; the last is outside.
const PROPERTY_TABLES: [u64; 4] = [0x1000, 0x4000, 0xf000, 0x5_0000_0000];
/// Apart from those of the configuration; the last is outside.
const PENDING_TABLES: [u64; 3] = [0x1_0000, 0x1_0000 | ZERO, 0x2_0000];

#[derive(Clone, Debug)]
enum Call {
    Pend(u32),
    Clear(u32),
    Map(u32, Option<u16>),
    Target(u32, Option<u16>),
    Rehome(u32, Option<u16>),
    Unmap(u32),
    MoveAll(u16, u16, bool),
    Invalidate(u32),
    InvalidateAll(u16),
    Switch(u16, bool),
    Properties(u16, u64),
    Pending(u16, u64),
    /// A byte of RAM.
    Poke(u64, u8),
    Take(u16),
    Save,
}

fn call() -> impl Strategy<Value = Call> {
    let lpi = || prop_oneof![4 => prop::sample::select(&LPIS[..4]), 1 => prop::sample::select(&LPIS[..])];
    let cpu = || 0..CPUS;
    let any_cpu = || prop_oneof![8 => (0..CPUS).prop_map(Some), 1 => Just(None), 1 => Just(Some(CPUS))];
    let properties = (prop::sample::select(&PROPERTY_TABLES[..]), 12u64..18).prop_map(|(table, bits)| table | bits);
    // What an LPI of the list has in a table that is used.
    let place = (prop::sample::select(&LPIS[..8]), prop::sample::select(&PROPERTY_TABLES[..3]))
        .prop_map(|(lpi, table)| table + u64::from(lpi - 8192));
    let bits = prop::sample::select(&LPIS[..8]).prop_map(|lpi| PENDING_TABLES[0] + u64::from(lpi / 8));
    let byte = prop_oneof![Just(0xa1u8), Just(0x41), Just(0xff), Just(0), any::<u8>()];
    prop_oneof![
        8 => lpi().prop_map(Call::Pend),
        2 => lpi().prop_map(Call::Clear),
        6 => (lpi(), any_cpu()).prop_map(|(lpi, cpu)| Call::Map(lpi, cpu)),
        3 => (lpi(), any_cpu()).prop_map(|(lpi, cpu)| Call::Target(lpi, cpu)),
        3 => (lpi(), any_cpu()).prop_map(|(lpi, cpu)| Call::Rehome(lpi, cpu)),
        3 => lpi().prop_map(Call::Unmap),
        2 => (cpu(), 0..CPUS + 1, any::<bool>()).prop_map(|(from, to, every)| Call::MoveAll(from, to, every)),
        3 => lpi().prop_map(Call::Invalidate),
        2 => cpu().prop_map(Call::InvalidateAll),
        6 => (cpu(), any::<bool>()).prop_map(|(cpu, on)| Call::Switch(cpu, on)),
        3 => (cpu(), properties).prop_map(|(cpu, value)| Call::Properties(cpu, value)),
        3 => (cpu(), prop::sample::select(&PENDING_TABLES[..])).prop_map(|(cpu, value)| Call::Pending(cpu, value)),
        4 => (prop_oneof![place, bits], byte).prop_map(|(at, byte)| Call::Poke(at, byte)),
        6 => cpu().prop_map(Call::Take),
        2 => Just(Call::Save),
    ]
}

#[derive(Clone, Copy, Debug, Default)]
struct Lpi {
    events: u32,
    home: Option<u16>,
    target: Option<u16>,
    pending: bool,
    byte: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Redistributor {
    on: bool,
    properties: u64,
    pending: u64,
}

/// What should happen.
struct Reference {
    behaviour: Behaviour,
    lpis: BTreeMap<u32, Lpi>,
    cpus: [Redistributor; CPUS as usize],
    ram: Vec<u8>,
}

impl Reference {
    fn new(behaviour: Behaviour) -> Self {
        Self { behaviour, lpis: BTreeMap::new(), cpus: Default::default(), ram: vec![0; END as usize] }
    }

    fn peek(&self, address: u64) -> Result<u8, NoMemory> {
        self.ram.get(address as usize).copied().ok_or(NoMemory { address, length: 1 })
    }

    fn on(&self, cpu: Option<u16>) -> bool {
        cpu.is_some_and(|cpu| self.cpus[usize::from(cpu)].on)
    }

    fn kvm(&self) -> bool {
        self.behaviour.one_propbaser
    }

    fn byte(&self, cpu: Option<u16>, lpi: u32) -> Result<u8, NoMemory> {
        let cpu = if self.kvm() { 0 } else { cpu.unwrap() };
        let table = self.cpus[usize::from(cpu)].properties;
        if u64::from(lpi) >= 2 << (table & 0x1f) {
            return Ok(0);
        }
        self.peek((table & !0xfff) + u64::from(lpi - 8192))
    }

    /// Sets or clears a pending bit in memory; what it was.
    fn swap(&mut self, cpu: u16, lpi: u32, to: bool) -> Result<bool, NoMemory> {
        let at = (self.cpus[usize::from(cpu)].pending & !(ZERO | 0xffff)) + u64::from(lpi / 8);
        let was = self.peek(at)?;
        let bit = 1 << (lpi % 8);
        self.ram[at as usize] = if to { was | bit } else { was & !bit };
        Ok(was & bit != 0)
    }

    /// What an LPI becomes that is on a vCPU with LPIs off.
    fn settle(&mut self, lpi: u32) {
        let state = self.lpis[&lpi];
        let Some(target) = state.target else { return };
        if state.pending && !self.on(state.target) && !self.behaviour.lpis_off_keeps_pending {
            self.lpis.get_mut(&lpi).unwrap().pending = false;
            let _ = self.swap(target, lpi, true);
        }
    }

    fn load(&mut self, lpi: u32, cpu: u16) {
        let table = self.cpus[usize::from(cpu)].pending & ZERO == 0;
        let bit = table && self.swap(cpu, lpi, false).unwrap_or(false);
        let mut state = self.lpis[&lpi];
        if state.home == Some(cpu) {
            state.byte = self.byte(Some(cpu), lpi).unwrap_or(state.byte);
        }
        if bit && !state.pending {
            (state.pending, state.target) = (true, Some(cpu));
        }
        self.lpis.insert(lpi, state);
    }

    fn pend(&mut self, lpi: u32) -> LpiSent {
        let Some(state) = self.lpis.get(&lpi).copied() else { return LpiSent::Nowhere };
        if state.home.is_none() {
            return LpiSent::Nowhere;
        }
        if !self.on(state.home) {
            return LpiSent::Off;
        }
        self.lpis.insert(lpi, Lpi { pending: true, target: state.home, ..state });
        if state.pending { LpiSent::Already } else { LpiSent::Pended }
    }

    fn map(&mut self, lpi: u32, cpu: Option<u16>) -> Result<(), NoMemory> {
        if !(8192..65_536).contains(&lpi) {
            return Ok(());
        }
        let mut state = self.lpis.get(&lpi).copied().unwrap_or_default();
        if state.events == 0 || !self.behaviour.mapped_lpi_stays {
            state.byte = 0;
            if self.kvm() || self.on(cpu) {
                state.byte = self.byte(cpu, lpi)?;
                if let Some(cpu) = cpu {
                    state.pending |= self.swap(cpu, lpi, false)?;
                }
            }
            (state.home, state.target) = (cpu, cpu);
        }
        state.events += 1;
        self.lpis.insert(lpi, state);
        self.settle(lpi);
        Ok(())
    }

    fn target(&mut self, lpi: u32, cpu: Option<u16>) {
        let Some(state) = self.lpis.get_mut(&lpi) else { return };
        let arrives = state.home.is_none() && !self.behaviour.lpis_off_keeps_pending;
        (state.home, state.target) = (cpu, cpu);
        if arrives && self.on(cpu) {
            // The table is looked at whatever PTZ said when LPIs were switched on.
            let cpu = cpu.unwrap();
            let known = std::mem::replace(&mut self.cpus[usize::from(cpu)].pending, 0);
            self.cpus[usize::from(cpu)].pending = known & !ZERO;
            self.load(lpi, cpu);
            self.cpus[usize::from(cpu)].pending = known;
        }
        self.settle(lpi);
    }

    fn rehome(&mut self, lpi: u32, cpu: Option<u16>) {
        let Some(state) = self.lpis.get_mut(&lpi) else { return };
        state.home = cpu;
        if !state.pending || state.target.is_none() {
            state.target = cpu;
        }
        self.settle(lpi);
    }

    fn unmap(&mut self, lpi: u32) {
        let Some(state) = self.lpis.get_mut(&lpi) else { return };
        state.events -= 1;
        state.pending = false;
        if state.events == 0 {
            self.lpis.remove(&lpi);
        }
    }

    fn all(&self) -> Vec<u32> {
        self.lpis.keys().copied().collect()
    }

    fn move_all(&mut self, from: u16, to: u16, every: bool) {
        if to >= CPUS || from == to {
            return;
        }
        for lpi in self.all() {
            let state = self.lpis.get_mut(&lpi).unwrap();
            if state.target == Some(from) && every {
                self.target(lpi, Some(to));
            } else if state.target == Some(from) && state.pending {
                state.target = Some(to);
                self.settle(lpi);
            }
        }
    }

    fn invalidate(&mut self, lpi: u32) -> Result<(), NoMemory> {
        let Some(state) = self.lpis.get(&lpi).copied() else { return Ok(()) };
        if state.home.is_some() || self.kvm() {
            self.lpis.get_mut(&lpi).unwrap().byte = self.byte(state.home, lpi)?;
        }
        Ok(())
    }

    fn invalidate_all(&mut self, cpu: u16) {
        for lpi in self.all() {
            let state = self.lpis[&lpi];
            if state.target == Some(cpu) || state.home == Some(cpu) && !self.kvm() {
                self.lpis.get_mut(&lpi).unwrap().byte = self.byte(Some(cpu), lpi).unwrap_or(state.byte);
            }
        }
    }

    fn switch(&mut self, cpu: u16, on: bool) {
        let old = std::mem::replace(&mut self.cpus[usize::from(cpu)].on, on);
        if old == on {
            return;
        }
        for lpi in self.all() {
            match (on, self.behaviour.lpis_off_keeps_pending) {
                (true, false) => self.load(lpi, cpu),
                (true, true) => {
                    let Redistributor { pending, .. } = self.cpus[usize::from(cpu)];
                    let state = self.lpis.get_mut(&lpi).unwrap();
                    if state.target == Some(cpu) && pending & ZERO == 0 {
                        let at = (pending & !0xffff) + u64::from(lpi / 8);
                        if let Some(byte) = self.ram.get(at as usize) {
                            state.pending = byte >> (lpi % 8) & 1 != 0;
                        }
                    }
                }
                (false, _) => self.settle(lpi),
            }
        }
    }

    fn deliverable(&self, cpu: u16) -> Vec<(u8, u32)> {
        let wanted = |lpi: &Lpi| lpi.pending && lpi.target == Some(cpu) && lpi.byte & 1 != 0 && self.on(Some(cpu));
        self.lpis.iter().filter(|(_, lpi)| wanted(lpi)).map(|(intid, lpi)| (lpi.byte & 0xf8, *intid)).collect()
    }

    fn save(&mut self) -> Result<(), NoMemory> {
        for lpi in self.all() {
            let state = self.lpis[&lpi];
            let Some(target) = state.target else { continue };
            if self.on(Some(target)) || self.behaviour.lpis_off_keeps_pending {
                self.swap(target, lpi, state.pending)?;
            }
        }
        Ok(())
    }
}

fn run(behaviour: Behaviour, calls: Vec<Call>) -> Result<(), TestCaseError> {
    let mut options = GicOptions::new(u32::from(CPUS));
    options.behaviour = behaviour;
    let ram = Arc::new(RamBlock::new(0, END as usize));
    let gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(())).unwrap();
    gic.attach_its();
    let rig = Rig { gic, ram };
    let mut reference = Reference::new(behaviour);
    let there = |cpu: Option<u16>| cpu.filter(|cpu| *cpu < CPUS);
    for call in calls {
        match call.clone() {
            Call::Pend(lpi) => prop_assert_eq!(rig.gic.pend_lpi(lpi), reference.pend(lpi)),
            Call::Clear(lpi) => {
                rig.gic.clear_lpi(lpi);
                reference.lpis.entry(lpi).and_modify(|lpi| lpi.pending = false);
            }
            Call::Map(lpi, cpu) => {
                prop_assert_eq!(rig.gic.map_lpi(lpi, cpu), reference.map(lpi, there(cpu)), "{:?}", call);
            }
            Call::Target(lpi, cpu) => {
                // An ITS names only what it has mapped, here and below.
                if reference.lpis.contains_key(&lpi) {
                    rig.gic.target_lpi(lpi, cpu);
                    reference.target(lpi, there(cpu));
                }
            }
            Call::Rehome(lpi, cpu) => {
                if reference.lpis.contains_key(&lpi) {
                    rig.gic.rehome_lpi(lpi, cpu);
                    reference.rehome(lpi, there(cpu));
                }
            }
            Call::Unmap(lpi) => {
                rig.gic.unmap_lpi(lpi, false);
                reference.unmap(lpi);
            }
            Call::MoveAll(from, to, every) => {
                rig.gic.move_all_lpis(from, to, every);
                reference.move_all(from, to, every);
            }
            Call::Invalidate(lpi) => prop_assert_eq!(rig.gic.invalidate_lpi(lpi), reference.invalidate(lpi)),
            Call::InvalidateAll(cpu) => {
                rig.gic.invalidate_all_lpis(cpu);
                reference.invalidate_all(cpu);
            }
            Call::Switch(cpu, on) => {
                rig.write(cpu, LpiRegister::Control, on.into());
                reference.switch(cpu, on);
            }
            Call::Properties(cpu, value) => {
                rig.write(cpu, LpiRegister::Properties, value);
                let at = if reference.kvm() { 0 } else { cpu };
                if !reference.on(Some(cpu)) {
                    reference.cpus[usize::from(at)].properties = value;
                }
            }
            Call::Pending(cpu, value) => {
                rig.write(cpu, LpiRegister::Pending, value);
                if !reference.on(Some(cpu)) {
                    reference.cpus[usize::from(cpu)].pending = value;
                }
            }
            Call::Poke(at, byte) => {
                if rig.ram.write_le(at, byte).is_ok() {
                    reference.ram[at as usize] = byte;
                }
            }
            Call::Take(cpu) => {
                let deliverable = reference.deliverable(cpu);
                let most = deliverable.iter().map(|(level, _)| *level).min();
                match rig.take(cpu) {
                    None => prop_assert_eq!(deliverable, []),
                    Some(lpi) => {
                        prop_assert!(deliverable.contains(&(most.unwrap_or(0), lpi)), "{lpi} of {deliverable:?}");
                        reference.lpis.get_mut(&lpi).unwrap().pending = false;
                    }
                }
            }
            Call::Save => prop_assert_eq!(rig.gic.save_pending_tables(), reference.save()),
        }
        let mut ram = vec![0; END as usize];
        rig.ram.read(0, &mut ram).unwrap();
        prop_assert!(ram == reference.ram, "memory after {call:?}");
        for (cpu, it) in (0..).zip(&reference.cpus) {
            prop_assert_eq!(rig.gic.lpis_enabled(cpu), it.on);
        }
    }
    // Nothing that is pending is left anywhere.
    for cpu in 0..CPUS {
        let mut left: Vec<_> = rig.taken(cpu);
        left.sort_unstable();
        let deliverable: Vec<_> = reference.deliverable(cpu).into_iter().map(|(_, lpi)| lpi).collect();
        prop_assert_eq!(left, deliverable);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_calls_do_what_the_plain_reference_does(calls in prop::collection::vec(call(), 1..80)) {
        run(Behaviour::SPEC, calls)?;
    }

    #[test]
    fn any_calls_in_kvms_ways_do_what_the_plain_reference_does(calls in prop::collection::vec(call(), 1..80)) {
        run(Behaviour { unmapping_keeps_pending: false, ..Behaviour::KVM }, calls)?;
    }

    /// Tables that overlap each other, RAM that ends anywhere: nothing is promised but that it ends.
    #[test]
    fn tables_may_be_anywhere(
        calls in prop::collection::vec(call(), 1..60),
        tables in prop::collection::vec((0..CPUS, 0u64..0x3_0000, 0u64..0x3_0000), 1..6),
        length in 0usize..0x2_0000,
    ) {
        let ram = Arc::new(RamBlock::new(0, length));
        let gic = Gic::new(GicOptions::new(CPUS.into()), ram, Arc::new(())).unwrap();
        gic.attach_its();
        let rig = Rig { gic, ram: Arc::new(RamBlock::new(0, 0)) };
        for (cpu, properties, pending) in tables {
            rig.write(cpu, LpiRegister::Control, 0);
            rig.write(cpu, LpiRegister::Properties, properties);
            rig.write(cpu, LpiRegister::Pending, pending);
            rig.write(cpu, LpiRegister::Control, 1);
            for call in &calls {
                match *call {
                    Call::Pend(lpi) => drop(rig.gic.pend_lpi(lpi)),
                    Call::Clear(lpi) => rig.gic.clear_lpi(lpi),
                    Call::Map(lpi, cpu) => drop(rig.gic.map_lpi(lpi, cpu)),
                    Call::Target(lpi, cpu) => rig.gic.target_lpi(lpi, cpu),
                    Call::Rehome(lpi, cpu) => rig.gic.rehome_lpi(lpi, cpu),
                    Call::Unmap(lpi) => rig.gic.unmap_lpi(lpi, lpi % 2 == 0),
                    Call::MoveAll(from, to, every) => rig.gic.move_all_lpis(from, to, every),
                    Call::Invalidate(lpi) => drop(rig.gic.invalidate_lpi(lpi)),
                    Call::InvalidateAll(cpu) => rig.gic.invalidate_all_lpis(cpu),
                    Call::Switch(cpu, on) => rig.write(cpu, LpiRegister::Control, on.into()),
                    Call::Properties(cpu, value) => rig.write(cpu, LpiRegister::Properties, value),
                    Call::Pending(cpu, value) => rig.write(cpu, LpiRegister::Pending, value),
                    Call::Poke(..) => {}
                    Call::Take(cpu) => drop(rig.take(cpu)),
                    Call::Save => drop(rig.gic.save_pending_tables()),
                }
            }
        }
    }
}
