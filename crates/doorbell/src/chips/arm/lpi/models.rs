//! loom models of LPIs: what comes while the guest moves them, configures them, or switches them off and on.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p doorbell --release --lib lpi::models`

use std::sync::Arc;

use loom::thread::JoinHandle;

use super::{LpiRegister, LpiSent};
use crate::{
    chips::arm::{Gic, GicOptions, cripple::Cripple, gic::View},
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    sync::Ordering,
};

const LPI: u32 = 8192;
/// The pending tables, of vCPU 0 and 1; the bit of [`LPI`] is bit 0 of the byte 1,024 in.
const PENDING: [u64; 2] = [0, 0x1_0000];
const BYTE: u64 = 1024;
/// The configuration table.
const PROPERTIES: u64 = 0x1000;
const ENABLED: u8 = 0xa1;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

struct Rig {
    gic: Arc<Gic>,
    ram: Arc<RamBlock>,
}

impl Rig {
    /// Two vCPUs with LPIs on, and tables in memory that say nothing.
    fn new(cripple: Cripple) -> Arc<Self> {
        let ram = Arc::new(RamBlock::new(0, PENDING[1] as usize + BYTE as usize + 1));
        let mut options = GicOptions::new(2);
        options.id_bits = 14;
        let mut gic = Gic::new(options, Arc::clone(&ram) as Arc<dyn GuestRam>, Arc::new(())).unwrap();
        Arc::get_mut(&mut gic).unwrap().cripple(cripple);
        gic.attach_its();
        gic.ctlr.store(3, Ordering::SeqCst);
        let rig = Self { gic, ram };
        for cpu in [0, 1] {
            rig.write(cpu, LpiRegister::Properties, PROPERTIES | 13);
            rig.write(cpu, LpiRegister::Pending, PENDING[usize::from(cpu)]);
            rig.write(cpu, LpiRegister::Control, 1);
        }
        Arc::new(rig)
    }

    /// The same, with an enabled LPI on vCPU 0.
    fn mapped(cripple: Cripple) -> Arc<Self> {
        let rig = Self::new(cripple);
        rig.configure(ENABLED);
        rig.gic.map_lpi(LPI, Some(0)).unwrap();
        rig
    }

    fn write(&self, cpu: u16, register: LpiRegister, value: u64) {
        self.gic.write_lpi_register(cpu, register, u64::MAX, value);
    }

    fn switch(&self, on: bool) {
        self.write(0, LpiRegister::Control, on.into());
    }

    fn configure(&self, byte: u8) {
        self.ram.write_le(PROPERTIES, byte).unwrap();
    }

    fn bit(&self, cpu: usize) -> bool {
        self.ram.read_le::<u8>(PENDING[cpu] + BYTE).unwrap() & 1 != 0
    }

    fn set_bit(&self, cpu: usize) {
        self.ram.write_le(PENDING[cpu] + BYTE, 1u8).unwrap();
    }

    /// Takes it on a vCPU, if it is there.
    fn take(&self, cpu: usize) -> u32 {
        let shared = &self.gic.cpus[cpu];
        let irqs = View { gic: &self.gic, cpu: shared };
        shared.queue.take(&irqs, |_| true, |_| true).is_some().into()
    }
}

fn spawn<T: 'static>(rig: &Arc<Rig>, step: impl FnOnce(&Rig) -> T + 'static) -> JoinHandle<T> {
    let rig = Arc::clone(rig);
    loom::thread::spawn(move || step(&rig))
}

fn pend_against_off(cripple: Cripple) {
    check(move || {
        let rig = Rig::mapped(cripple);
        let device = spawn(&rig, |rig| rig.gic.pend_lpi(LPI));
        rig.switch(false);
        let sent = device.join().unwrap();
        assert_eq!(rig.take(0), 0, "left behind on a vCPU with LPIs off");
        assert_eq!(rig.bit(0), sent == LpiSent::Pended, "in the table, or dropped");
        rig.switch(true);
        assert_eq!(rig.take(0), u32::from(sent == LpiSent::Pended));
        assert!(rig.take(0) == 0 && !rig.bit(0), "once");
    });
}

#[test]
fn h26_an_event_against_lpis_off() {
    pend_against_off(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "left behind")]
fn h26_an_event_that_looks_at_the_switch_before_it_is_pending_is_noticed() {
    pend_against_off(Cripple::LooksAtSwitchFirst);
}

/// Off and on again while two events come: whoever was told that it is pending is followed by a handler.
#[test]
fn h26_events_against_lpis_off_and_on() {
    check(|| {
        let rig = Rig::mapped(Cripple::Nothing);
        let guest = spawn(&rig, |rig| {
            rig.switch(false);
            rig.switch(true);
        });
        let first = rig.gic.pend_lpi(LPI);
        let early = rig.take(0);
        let second = rig.gic.pend_lpi(LPI);
        guest.join().unwrap();
        let late = rig.take(0);
        assert!(second == LpiSent::Off || late == 1, "lost");
        let pended = [first, second].into_iter().filter(|sent| *sent == LpiSent::Pended).count() as u32;
        assert_eq!(early + late, pended, "once for each that made it pending");
        assert!(!rig.bit(0) && rig.take(0) == 0);
    });
}

/// A vCPU that takes it while its LPIs are switched off: taken, or in the table.
#[test]
fn h26_an_acknowledge_against_lpis_off() {
    check(|| {
        let rig = Rig::mapped(Cripple::Nothing);
        rig.gic.pend_lpi(LPI);
        let guest = spawn(&rig, |rig| rig.switch(false));
        let taken = rig.take(0);
        guest.join().unwrap();
        assert_eq!(rig.take(0), 0);
        assert_eq!(taken + u32::from(rig.bit(0)), 1, "once");
    });
}

fn pend_against_move(cripple: Cripple) {
    check(move || {
        let rig = Rig::mapped(cripple);
        let device = spawn(&rig, |rig| rig.gic.pend_lpi(LPI));
        let guest = spawn(&rig, |rig| rig.gic.target_lpi(LPI, Some(1)));
        let early = rig.take(0);
        assert_eq!(device.join().unwrap(), LpiSent::Pended);
        guest.join().unwrap();
        assert_eq!(rig.take(0), 0, "it is vCPU 1's");
        assert_eq!(early + rig.take(1), 1, "once");
        assert_eq!(rig.take(1), 0);
    });
}

#[test]
fn h23_an_event_against_movi() {
    pend_against_move(Cripple::Nothing);
}

#[test]
#[should_panic]
fn h23_an_lpi_that_stays_in_its_old_queue_is_noticed() {
    pend_against_move(Cripple::NoRequeue);
}

fn pend_against_invalidate(cripple: Cripple) {
    check(move || {
        let rig = Rig::new(cripple);
        rig.gic.map_lpi(LPI, Some(0)).unwrap();
        rig.configure(ENABLED);
        let device = spawn(&rig, |rig| rig.gic.pend_lpi(LPI));
        rig.gic.invalidate_lpi(LPI).unwrap();
        let early = rig.take(0);
        device.join().unwrap();
        assert_eq!(early + rig.take(0), 1, "pending while disabled, it fires on INV");
        assert_eq!(rig.take(0), 0);
    });
}

#[test]
fn h24_an_event_against_inv() {
    pend_against_invalidate(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "fires on INV")]
fn h24_an_inv_that_overwrites_what_changed_since_it_looked_is_noticed() {
    pend_against_invalidate(Cripple::ConfiguresBlindly);
}

/// Two ITSs map an event to one LPI whose bit is set in the pending table, and its vCPU takes it meanwhile.
fn map_against_map(cripple: Cripple) {
    check(move || {
        let rig = Rig::new(cripple);
        rig.configure(ENABLED);
        rig.set_bit(0);
        let other = spawn(&rig, |rig| rig.gic.map_lpi(LPI, Some(0)).unwrap());
        rig.gic.map_lpi(LPI, Some(0)).unwrap();
        let early = rig.take(0);
        other.join().unwrap();
        assert_eq!(early + rig.take(0), 1, "the bit is consumed once");
        assert!(!rig.bit(0));
    });
}

#[test]
fn h25_two_mappings_of_an_lpi_that_was_pending() {
    map_against_map(Cripple::Nothing);
}

#[test]
#[should_panic(expected = "consumed once")]
fn h25_a_mapping_that_looks_at_the_table_without_the_lock_is_noticed() {
    map_against_map(Cripple::LooksAtTableWithoutLock);
}

#[test]
fn h25_a_mapping_against_movi() {
    check(|| {
        let rig = Rig::new(Cripple::Nothing);
        rig.configure(ENABLED);
        rig.gic.map_lpi(LPI, None).unwrap();
        rig.set_bit(0);
        let mover = spawn(&rig, |rig| rig.gic.target_lpi(LPI, Some(1)));
        rig.gic.map_lpi(LPI, Some(0)).unwrap();
        mover.join().unwrap();
        let taken = [rig.take(0), rig.take(1)];
        assert_eq!(taken.iter().sum::<u32>(), 1, "the bit is consumed once");
        assert_eq!(taken[1], u32::from(rig.gic.lpis.get(LPI).unwrap().state().home() == 1), "and where the LPI is");
    });
}

fn pend_against_move_all(cripple: Cripple) {
    check(move || {
        let rig = Rig::mapped(cripple);
        rig.gic.pend_lpi(LPI);
        let device = spawn(&rig, |rig| rig.gic.pend_lpi(LPI));
        let guest = spawn(&rig, |rig| rig.gic.move_all_lpis(0, 1, false));
        assert_eq!(device.join().unwrap(), LpiSent::Already);
        guest.join().unwrap();
        assert_eq!(rig.take(0) + rig.take(1), 1, "once, at home or where MOVALL brought it");
        assert_eq!(rig.take(0) + rig.take(1), 0);
        rig.gic.pend_lpi(LPI);
        assert_eq!((rig.take(0), rig.take(1)), (1, 0), "I16a: the mapping is untouched");
    });
}

#[test]
fn h29_an_event_against_movall() {
    pend_against_move_all(Cripple::Nothing);
}

#[test]
#[should_panic]
fn h29_a_movall_that_leaves_it_in_its_old_queue_is_noticed() {
    pend_against_move_all(Cripple::NoRequeue);
}
