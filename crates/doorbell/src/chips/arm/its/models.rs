//! loom models: events against the commands that take their mapping away, move it, or give its place to another device.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib chips::arm::its`

use loom::{sync::Arc, thread};

use super::{
    command::Event,
    counters::Drops,
    cripple::Cripple,
    mappings::{Context, Device, Mappings},
    sink::LpiSink,
    targets::Targets,
    translation::{Dropped, Sent, Translation},
};
use crate::{
    chips::arm::{Behaviour, lpi::LpiSent},
    guest_ram::{NoMemory, RamBlock},
    sync::{AtomicU32, Ordering},
};

const OLD: u32 = 8192;
const NEW: u32 = 8193;
/// The event that is sent: device 1, event 0.
const DEVICE: u16 = 1;

/// LPIs that count their events.
#[derive(Default)]
struct Lpis {
    events: [AtomicU32; 2],
    mapped: [AtomicU32; 2],
    /// Events of LPIs that nothing is mapped to.
    stray: AtomicU32,
}

impl Lpis {
    fn count(&self, lpi: u32) -> u32 {
        self.events[(lpi - OLD) as usize].load(Ordering::Relaxed)
    }

    fn stray(&self) -> u32 {
        self.stray.load(Ordering::Relaxed)
    }
}

impl LpiSink for Lpis {
    fn vcpus(&self) -> u32 {
        1
    }

    fn in_range(&self, lpi: u32) -> bool {
        (OLD..=NEW).contains(&lpi)
    }

    fn pend(&self, lpi: u32) -> LpiSent {
        let at = (lpi - OLD) as usize;
        if self.mapped[at].load(Ordering::Relaxed) == 0 {
            self.stray.fetch_add(1, Ordering::Relaxed);
        }
        self.events[at].fetch_add(1, Ordering::Relaxed);
        LpiSent::Pended
    }

    fn clear(&self, _: u32) {}

    fn map(&self, lpi: u32, _: Option<u16>) -> Result<(), NoMemory> {
        self.mapped[(lpi - OLD) as usize].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&self, lpi: u32, _: bool) {
        self.mapped[(lpi - OLD) as usize].fetch_sub(1, Ordering::Relaxed);
    }

    fn retarget(&self, _: u32, _: u16, _: bool) {}

    fn move_all(&self, _: u16, _: u16, _: bool) {}

    fn invalidate(&self, _: u32) -> Result<(), NoMemory> {
        Ok(())
    }

    fn invalidate_all(&self, _: u16) {}
}

/// What threads share of an ITS.
struct World {
    translation: Translation,
    lpis: Lpis,
    drops: Drops,
    ram: RamBlock,
}

impl World {
    fn cx(&self) -> Context<'_> {
        Context {
            lpis: &self.lpis,
            ram: &self.ram,
            behaviour: &Behaviour::SPEC,
            translation: &self.translation,
            drops: &self.drops,
        }
    }

    fn fire(&self) -> Sent {
        self.translation.fire(DEVICE, 0, |lpi| self.lpis.pend(lpi))
    }
}

/// An enabled ITS with the event mapped to [`OLD`], and what its lock protects.
fn mapped(cripple: Cripple) -> (Arc<World>, Mappings) {
    let translation = Translation::crippled(2, cripple);
    let world = World { translation, lpis: Lpis::default(), drops: Drops::default(), ram: RamBlock::new(0, 64) };
    let mut mappings = Mappings::new(2);
    let cx = world.cx();
    world.translation.enable(true);
    mappings.map_collection(&cx, 0, Some(0));
    mappings.map_device(&cx, DEVICE, device());
    mappings.map_event(&cx, DEVICE, 0, OLD, 0).unwrap();
    (Arc::new(world), mappings)
}

fn device() -> Device {
    Device { event_bits: 1, itt: 0, written: false }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// One event meets a command, after which the LPI it went to must be left alone.
fn an_event_against(cripple: Cripple, command: impl Fn(&World, &mut Mappings) + Send + Sync + 'static) {
    check(move || {
        let (world, mut mappings) = mapped(cripple);
        let firer = {
            let world = world.clone();
            thread::spawn(move || world.fire())
        };
        command(&world, &mut mappings);
        let seen = world.lpis.count(OLD);
        let sent = firer.join().unwrap();
        assert_eq!(world.lpis.count(OLD), seen, "late by the old mapping");
        assert_eq!(world.lpis.stray(), 0, "an LPI that is not mapped");
        let new = world.lpis.count(NEW);
        match sent {
            Sent::Pending => assert_eq!(seen + new, 1),
            Sent::HandedOver => assert!(seen + new <= 1),
            Sent::Dropped(_) => assert_eq!(seen + new, 0),
        }
    });
}

fn discard(world: &World, mappings: &mut Mappings) {
    let event = mappings.event(&world.cx(), Event { device: DEVICE.into(), event: 0 }).unwrap();
    mappings.unmap_event(&world.cx(), &event);
}

/// H20, DISCARD.
#[test]
fn an_event_against_discard() {
    an_event_against(Cripple::Nothing, discard);
}

#[test]
#[should_panic(expected = "an LPI that is not mapped")]
fn an_lpi_unmapped_before_its_entry_is_noticed() {
    an_event_against(Cripple::EmptiedLate, discard);
}

/// H20, MAPC with V = 0.
#[test]
fn an_event_against_an_unmapped_collection() {
    an_event_against(Cripple::Nothing, |world, mappings| mappings.unmap_collection(&world.cx(), 0));
}

fn disable(world: &World, mappings: &mut Mappings) {
    world.translation.enable(false);
    mappings.drain(&world.cx());
}

/// H20, disable.
#[test]
fn an_event_against_disable() {
    an_event_against(Cripple::Nothing, disable);
}

#[test]
#[should_panic(expected = "late by the old mapping")]
fn a_disable_that_waits_for_nobody_is_noticed() {
    an_event_against(Cripple::DisableWaitsForNobody, disable);
}

#[test]
#[should_panic(expected = "late by the old mapping")]
fn an_event_that_looks_too_early_whether_the_its_is_enabled_is_noticed() {
    an_event_against(Cripple::EnabledLookedAtEarly, disable);
}

/// H20, H21: MAPD with V = 0, and the place of the event goes to another device.
fn give_place_away(world: &World, mappings: &mut Mappings) {
    let cx = world.cx();
    mappings.unmap_device(&cx, DEVICE);
    mappings.map_device(&cx, 2, device());
    mappings.map_event(&cx, 2, 0, NEW, 0).unwrap();
}

#[test]
fn an_event_never_reaches_the_next_owner_of_its_place() {
    an_event_against(Cripple::Nothing, |world, mappings| {
        give_place_away(world, mappings);
        assert_eq!(world.lpis.count(NEW), 0, "of another device");
    });
    check(|| {
        let (world, mut mappings) = mapped(Cripple::Nothing);
        let firer = {
            let world = world.clone();
            thread::spawn(move || world.fire())
        };
        give_place_away(&world, &mut mappings);
        firer.join().unwrap();
        assert_eq!(world.lpis.count(NEW), 0, "of another device");
    });
}

#[test]
#[should_panic(expected = "of another device")]
fn an_event_that_does_not_look_at_the_key_is_noticed() {
    check(|| {
        let (world, mut mappings) = mapped(Cripple::AnyKey);
        let firer = {
            let world = world.clone();
            thread::spawn(move || world.fire())
        };
        give_place_away(&world, &mut mappings);
        firer.join().unwrap();
        assert_eq!(world.lpis.count(NEW), 0, "of another device");
    });
}

/// An event that is mapped anew meanwhile is delivered once, by the old mapping or the new one.
#[test]
fn an_event_against_mapti() {
    check(|| {
        let (world, mut mappings) = mapped(Cripple::Nothing);
        let firer = {
            let world = world.clone();
            thread::spawn(move || world.fire())
        };
        mappings.map_event(&world.cx(), DEVICE, 0, NEW, 0).unwrap();
        let old = world.lpis.count(OLD);
        assert!(!matches!(firer.join().unwrap(), Sent::Dropped(_)), "never neither");
        assert_eq!(world.lpis.count(OLD), old, "late by the old mapping");
        assert_eq!(world.lpis.count(OLD) + world.lpis.count(NEW), 1, "delivered once");
        assert_eq!(world.lpis.stray(), 0);
    });
}

/// A first MAPTI: the LPI is there before an event can reach it.
#[test]
fn an_event_against_its_first_mapti() {
    check(|| {
        let (world, mut mappings) = mapped(Cripple::Nothing);
        discard(&world, &mut mappings);
        let firer = {
            let world = world.clone();
            thread::spawn(move || world.fire())
        };
        mappings.map_event(&world.cx(), DEVICE, 0, NEW, 0).unwrap();
        let sent = firer.join().unwrap();
        assert!(matches!(sent, Sent::Pending | Sent::Dropped(Dropped::Unmapped)), "{sent:?}");
        assert_eq!(world.lpis.stray(), 0, "an LPI that is not mapped");
        assert_eq!(world.fire(), Sent::Pending, "it is mapped now");
    });
}

/// H22: two threads prepare one event.
#[test]
fn an_event_prepared_twice_at_once_has_one_number() {
    check(|| {
        let targets = Arc::new(Targets::new(4));
        let other = {
            let targets = targets.clone();
            thread::spawn(move || targets.prepare(1, 2).unwrap())
        };
        let target = targets.prepare(1, 2).unwrap();
        assert_eq!(targets.event(target), Some((1, 2)));
        assert_eq!(other.join().unwrap(), target);
        assert_eq!(targets.event(target), Some((1, 2)));
    });
}
