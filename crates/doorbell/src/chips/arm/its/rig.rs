//! What the tests of an ITS run on: the memory map of the recorded runs, LPIs that remember, and commands in words.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    ItsOptions,
    bank::Nature,
    registers::offset,
    sink::LpiSink,
    translation::{Dropped, Sent},
    unit::Unit,
};
use crate::{
    Errno,
    chips::arm::{Behaviour, Identity, lpi::LpiSent},
    guest_ram::{GuestRam, GuestRamExt, NoMemory, RamBlock},
};

pub(super) const RAM: u64 = 0x4000_0000;
pub(super) const RAM_BYTES: usize = 4 << 20;
pub(super) const QUEUE: u64 = RAM + 0x1_0000;
pub(super) const DEVICES: u64 = RAM + 0x2_0000;
pub(super) const COLLECTIONS: u64 = RAM + 0x3_0000;
pub(super) const ITT: u64 = RAM + 0x4_0000;
pub(super) const VALID: u64 = 1 << 63;
/// GITS_BASERn.Page_Size of 64 KiB.
pub(super) const PAGES_64K: u64 = 2 << 8;
/// The device of the recorded runs.
pub(super) const DEVICE: u32 = 8;

/// An LPI as the architecture describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FakeLpi {
    pub events: u32,
    pub home: Option<u16>,
    /// Where it is pending.
    pub pending: Option<u16>,
}

/// LPIs that remember what was done to them.
pub(super) struct FakeLpis {
    pub lpis: Mutex<BTreeMap<u32, FakeLpi>>,
    /// vCPUs with LPIs switched off, a bit for each.
    pub off: AtomicU64,
    /// The next MAPTI finds no configuration.
    pub refuses: AtomicBool,
    /// What INV and INVALL asked for.
    pub invalidated: Mutex<Vec<Result<u32, u16>>>,
}

pub(super) const CPUS: u16 = 2;

impl FakeLpis {
    pub fn new() -> Self {
        Self {
            lpis: Mutex::default(),
            off: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            invalidated: Mutex::default(),
        }
    }
}

impl LpiSink for FakeLpis {
    fn vcpus(&self) -> u32 {
        CPUS.into()
    }

    fn in_range(&self, lpi: u32) -> bool {
        (8192..0x1_0000).contains(&lpi)
    }

    fn pend(&self, lpi: u32) -> LpiSent {
        let mut lpis = self.lpis.lock();
        let Some(lpi) = lpis.get_mut(&lpi).filter(|lpi| lpi.events != 0) else { return LpiSent::Nowhere };
        let Some(home) = lpi.home else { return LpiSent::Nowhere };
        if self.off.load(Ordering::Relaxed) >> home & 1 == 1 {
            return LpiSent::Off;
        }
        if lpi.pending.replace(home) == Some(home) { LpiSent::Already } else { LpiSent::Pended }
    }

    fn clear(&self, lpi: u32) {
        self.lpis.lock().entry(lpi).or_default().pending = None;
    }

    fn map(&self, lpi: u32, cpu: Option<u16>) -> Result<(), NoMemory> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(NoMemory { address: 0, length: 1 });
        }
        let mut lpis = self.lpis.lock();
        let lpi = lpis.entry(lpi).or_default();
        lpi.events += 1;
        lpi.home = cpu;
        Ok(())
    }

    fn unmap(&self, lpi: u32, keep_pending: bool) {
        let mut lpis = self.lpis.lock();
        let lpi = lpis.entry(lpi).or_default();
        lpi.events -= 1;
        if !keep_pending {
            lpi.pending = None;
        }
    }

    fn retarget(&self, lpi: u32, cpu: u16, pending: bool) {
        let mut lpis = self.lpis.lock();
        let lpi = lpis.entry(lpi).or_default();
        lpi.home = Some(cpu);
        if pending {
            lpi.pending = lpi.pending.map(|_| cpu);
        }
    }

    fn move_all(&self, from: u16, to: u16, every: bool) {
        for lpi in self.lpis.lock().values_mut() {
            if lpi.pending == Some(from) || every && lpi.pending.is_some() {
                lpi.pending = Some(to);
            }
            if every {
                lpi.home = lpi.home.map(|_| to);
            }
        }
    }

    fn invalidate(&self, lpi: u32) -> Result<(), NoMemory> {
        self.invalidated.lock().push(Ok(lpi));
        Ok(())
    }

    fn invalidate_all(&self, cpu: u16) {
        self.invalidated.lock().push(Err(cpu));
    }
}

/// Guest memory that can be replaced, or have a hole, while it is used.
pub(super) struct SwapRam {
    now: Mutex<Arc<RamBlock>>,
    /// From where to where there is none.
    pub hole: Mutex<std::ops::Range<u64>>,
}

impl SwapRam {
    pub fn new() -> Self {
        Self { now: Mutex::new(Arc::new(RamBlock::new(RAM, RAM_BYTES))), hole: Mutex::new(0..0) }
    }

    /// Other memory is in its place from now on.
    pub fn swap(&self, new: Arc<RamBlock>) -> Arc<RamBlock> {
        std::mem::replace(&mut self.now.lock(), new)
    }

    fn at(&self, address: u64, length: usize) -> Result<Arc<RamBlock>, NoMemory> {
        let hole = self.hole.lock();
        if address < hole.end && address.saturating_add(length as u64) > hole.start {
            return Err(NoMemory { address, length });
        }
        Ok(self.now.lock().clone())
    }
}

impl GuestRam for SwapRam {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory> {
        self.at(address, bytes.len())?.read(address, bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        self.at(address, bytes.len())?.write(address, bytes)
    }
}

/// An ITS with its memory and its LPIs.
pub(super) struct Rig {
    pub unit: Unit<FakeLpis>,
    pub ram: Arc<SwapRam>,
}

/// Commands as their four words.
pub(super) type Words = [u64; 4];

pub(super) fn event_command(opcode: u64, device: u32, event: u32) -> Words {
    [opcode | u64::from(device) << 32, event.into(), 0, 0]
}

pub(super) fn mapd(device: u32, bits: u64, itt: u64, valid: bool) -> Words {
    [0x08 | u64::from(device) << 32, bits - 1, u64::from(valid) << 63 | itt, 0]
}

pub(super) fn mapc(icid: u16, cpu: u64, valid: bool) -> Words {
    [0x09, 0, u64::from(valid) << 63 | cpu << 16 | u64::from(icid), 0]
}

pub(super) fn mapti(device: u32, event: u32, lpi: u32, icid: u16) -> Words {
    [0x0a | u64::from(device) << 32, u64::from(event) | u64::from(lpi) << 32, icid.into(), 0]
}

pub(super) fn movi(device: u32, event: u32, icid: u16) -> Words {
    [0x01 | u64::from(device) << 32, event.into(), icid.into(), 0]
}

pub(super) fn movall(from: u64, to: u64) -> Words {
    [0x0e, 0, from << 16, to << 16]
}

pub(super) fn int(event: u32) -> Words {
    event_command(0x03, DEVICE, event)
}

pub(super) fn clear(event: u32) -> Words {
    event_command(0x04, DEVICE, event)
}

pub(super) fn inv(event: u32) -> Words {
    event_command(0x0c, DEVICE, event)
}

pub(super) fn discard(event: u32) -> Words {
    event_command(0x0f, DEVICE, event)
}

impl Rig {
    pub fn new(nature: Nature, options: &ItsOptions) -> Self {
        let ram = Arc::new(SwapRam::new());
        Self { unit: Unit::new(Arc::new(FakeLpis::new()), ram.clone(), nature, options), ram }
    }

    /// As the architecture says.
    pub fn spec() -> Self {
        Self::new(Nature { identity: Identity::Doorbell, behaviour: Behaviour::SPEC }, &ItsOptions::default())
    }

    /// As the kernel does.
    pub fn kvm() -> Self {
        Self::new(Nature { identity: Identity::Kvm, behaviour: Behaviour::KVM }, &ItsOptions::default())
    }

    pub fn read(&self, at: u64) -> u64 {
        self.unit.read(at, if super::unit::is_wide(at) { 8 } else { 4 })
    }

    pub fn write(&self, at: u64, value: u64) {
        self.unit.write(at, if super::unit::is_wide(at) { 8 } else { 4 }, value);
    }

    pub fn load(&self, at: u64) -> u64 {
        self.ram.read_le(at).unwrap()
    }

    /// A queue of 64 KiB, tables of one page of 64 KiB, enabled.
    pub fn bring_up(&self) {
        self.write(offset::CBASER, VALID | QUEUE | 15);
        self.write(offset::CWRITER, 0);
        self.write(offset::BASER0, VALID | DEVICES | PAGES_64K);
        self.write(offset::BASER1, VALID | COLLECTIONS | PAGES_64K);
        self.write(offset::CTLR, 1);
    }

    /// As the recorded run begins: seven commands.
    pub fn map_both(&self) {
        self.run(&[
            mapd(DEVICE, 5, ITT, true),
            mapc(0, 0, true),
            mapc(1, 1, true),
            mapti(DEVICE, 3, 8195, 0),
            mapti(DEVICE, 4, 8200, 1),
            inv(3),
            [5, 0, 0, 0],
        ]);
    }

    /// Puts commands behind those that are there, without telling.
    pub fn queue(&self, commands: &[Words]) -> u64 {
        let mut at = self.read(offset::CWRITER);
        for command in commands {
            for (word, value) in (0..).zip(command) {
                self.ram.write_le(QUEUE + at + 8 * word, *value).unwrap();
            }
            at = (at + 32) % 0x1_0000;
        }
        at
    }

    /// Runs commands.
    pub fn run(&self, commands: &[Words]) {
        let end = self.queue(commands);
        self.write(offset::CWRITER, end);
        assert_eq!(self.read(offset::CREADR), end, "I6: never stalls");
    }

    /// What KVM_SIGNAL_MSI returns.
    pub fn signal(&self, device: u32, event: u32) -> Result<i32, Errno> {
        let sent = match (u16::try_from(device), u16::try_from(event)) {
            (Ok(device), Ok(event)) => self.unit.signal(device, event),
            _ => self.unit.signal_nothing(),
        };
        Self::answer(sent)
    }

    /// KVM's number for what became of an event.
    pub fn answer(sent: Sent) -> Result<i32, Errno> {
        match sent {
            Sent::Dropped(Dropped::Disabled | Dropped::LpisOff) => Err(Errno::BUSY),
            sent => Ok(super::delivery(sent).status()),
        }
    }

    /// Another ITS of this nature, with nothing mapped, over the same memory.
    pub fn fresh(&self, options: &ItsOptions) -> Unit<FakeLpis> {
        Unit::new(Arc::new(FakeLpis::new()), self.ram.clone(), self.unit.nature(), options)
    }

    /// The same for an event of the device of the recorded runs.
    pub fn ring(&self, event: u32) -> Result<i32, Errno> {
        self.signal(DEVICE, event)
    }

    /// Which LPIs are pending, and where.
    pub fn pending(&self) -> Vec<(u16, u32)> {
        let lpis = self.unit.lpis.lpis.lock();
        let mut pending: Vec<_> = lpis.iter().filter_map(|(lpi, it)| Some((it.pending?, *lpi))).collect();
        pending.sort_unstable();
        pending
    }

    /// The errors that were counted since the last time, by code.
    pub fn errors(&self) -> Vec<(u32, u64)> {
        self.unit.counters().errors.iter().map(|(error, count)| (error.code(), *count)).collect()
    }
}
