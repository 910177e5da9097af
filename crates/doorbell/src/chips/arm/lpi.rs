//! LPIs: which there are, where they go, and what guest memory says of them (Arm IHI 0069, "Locality-specific Peripheral
//! Interrupts").
//!
//! An LPI is 16 bytes: an [`Irq`] like every other. It appears when an event is mapped to it, in chunks of 1,024, and never on
//! the hot path. Its priority and its enable bit are kept in its word until an INV; its pending bit is in its word and
//! nowhere else while its redistributor has LPIs switched on.
//!
//! | file | holds |
//! |---|---|
//! | `mapping` | what the ITS's commands do: map, move, unmap |
//! | `tables` | the configuration table and the pending tables in guest memory |
//! | `switch` | EnableLPIs on and off |
//! | `access`, `registers` | the redistributors' registers for LPIs, and their layouts |
//! | `direct` | LPIs that hardware delivers |
//! | `state` | save and restore |
//!
//! # Where an LPI goes
//!
//! To its *home*, the vCPU of its collection. Its *target*, where it waits while it is pending, is another one only after a
//! MOVALL, or a MAPC of its collection, has left it behind (I16, I19); the next event brings it home (I16a).
//!
//! # Whether it goes there
//!
//! Whether home and target have their LPIs switched on is in the word of each LPI as well, so that an event decides by one
//! exchange: it comes before the switch, and is pending, or after it, and is dropped (H26). There is no moment in between
//! in which it could be lost, or left behind on a vCPU that has LPIs off.
//!
//! # What KVM does otherwise
//!
//! | | KVM | here, unless [`Behaviour`](super::Behaviour) says otherwise |
//! |---|---|---|
//! | GICR_PROPBASER | one register, whichever redistributor it is written through | one for each: an LPI's configuration is read through that of its home |
//! | LPIs off | what is pending stays pending in the kernel | it is written to the pending table |
//! | LPIs on | what the table says replaces what was pending; its bits stay set in memory | the bits are taken over: they are cleared in memory, so that each counts once |
//! | on, configuration | not read again | read again |

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

#[cfg(test)]
use super::cripple;
use super::{
    Gic, GicOptions,
    intid::FIRST_LPI,
    irq::{Irq, IrqState, NOBODY},
};
use crate::sync::{AtomicU32, Mutex, Ordering, crippled};

mod access;
mod direct;
mod mapping;
#[cfg(all(test, loom))]
mod models;
pub(super) mod registers;
mod state;
mod switch;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use access::LpiRegister;
pub use direct::{DirectInjection, DirectLpi};
pub use state::{LpisState, PendingLpi, RedistributorLpisState};

/// How many LPIs appear at once.
const CHUNK: usize = if cfg!(loom) { 2 } else { 1024 };

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LpiSent {
    /// It is pending now.
    Pended,
    /// It was pending already.
    Already,
    /// Its vCPU has LPIs switched off: dropped, as the architecture demands (KVM says EBUSY).
    Off,
    /// There is no such LPI, or it is nobody's.
    Nowhere,
}

/// The LPIs of a GIC, and the redistributors' registers for them.
pub(super) struct Lpis {
    /// LPI `FIRST_LPI + n` is the `n % CHUNK`th of chunk `n / CHUNK`. A chunk stays for ever.
    chunks: Box<[OnceLock<Box<[Irq]>>]>,
    redistributors: Box<[access::Redistributor]>,
    /// 1 once there is an ITS: without one there are no LPIs.
    offered: AtomicU32,
    /// Lock order: after those of an ITS, before the queues. Guest memory is accessed with it held.
    config: Mutex<Config>,
}

/// What changes only with the lock held. So do the words of LPIs, but for their latches.
struct Config {
    /// How many events are mapped to each LPI, for the chunks that exist.
    mapped: Box<[Box<[u32]>]>,
    /// The LPIs that hardware delivers.
    forwarded: BTreeMap<u32, Arc<dyn DirectInjection>>,
}

impl Lpis {
    pub fn new(options: &GicOptions) -> Self {
        let chunks = ((1usize << options.id_bits) - FIRST_LPI as usize).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            redistributors: options.affinities.iter().map(|_| access::Redistributor::new(options)).collect(),
            offered: AtomicU32::new(0),
            config: Mutex::new(Config {
                mapped: (0..chunks).map(|_| Box::default()).collect(),
                forwarded: BTreeMap::new(),
            }),
        }
    }

    /// The LPI, if an event has ever been mapped to one near it.
    #[inline]
    pub fn get(&self, lpi: u32) -> Option<&Irq> {
        let number = lpi.checked_sub(FIRST_LPI)? as usize;
        self.chunks.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }

    /// The LPI, which appears if it has not been there; `None` if there are not so many.
    fn create(&self, config: &mut Config, lpi: u32) -> Option<&Irq> {
        let number = lpi.checked_sub(FIRST_LPI)? as usize;
        let chunk = self.chunks.get(number / CHUNK)?;
        let irqs = chunk.get_or_init(|| (0..CHUNK).map(|_| Irq::new(unmapped())).collect());
        let mapped = &mut config.mapped[number / CHUNK];
        if mapped.is_empty() {
            *mapped = vec![0; CHUNK].into();
        }
        irqs.get(number % CHUNK)
    }

    fn bytes(&self) -> usize {
        let chunk = CHUNK * (size_of::<Irq>() + size_of::<u32>());
        let there = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        let directory = size_of::<OnceLock<Box<[Irq]>>>() + size_of::<Box<[u32]>>();
        there * chunk + self.chunks.len() * directory + self.redistributors.len() * size_of::<access::Redistributor>()
    }
}

/// An LPI that no event is mapped to.
fn unmapped() -> IrqState {
    IrqState::new().with_edge(true).with_group1(true).with_target(NOBODY).with_home(NOBODY)
}

impl Config {
    fn mapped(&mut self, lpi: u32) -> Option<&mut u32> {
        let number = lpi.checked_sub(FIRST_LPI)? as usize;
        self.mapped.get_mut(number / CHUNK)?.get_mut(number % CHUNK)
    }
}

impl Gic {
    /// There is an ITS, so there are LPIs.
    pub(crate) fn attach_its(&self) {
        // Relaxed: before the guest runs.
        self.lpis.offered.store(1, Ordering::Relaxed);
    }

    /// Whether there are LPIs at all.
    pub(crate) fn has_lpis(&self) -> bool {
        self.lpis.offered.load(Ordering::Relaxed) != 0
    }

    /// Whether an event can be mapped to this INTID.
    pub(crate) fn lpi_in_range(&self, lpi: u32) -> bool {
        (FIRST_LPI..self.lpi_limit()).contains(&lpi)
    }

    /// How many INTIDs there are, LPIs included.
    fn lpi_limit(&self) -> u32 {
        let most = 1 << self.options.id_bits;
        if self.options.behaviour.one_propbaser { self.properties_of(0).limit().min(most) } else { most }
    }

    /// An event: takes no lock and allocates nothing, unless it brings home an LPI that waits elsewhere.
    #[inline]
    pub(crate) fn pend_lpi(&self, lpi: u32) -> LpiSent {
        let Some(irq) = self.lpis.get(lpi) else { return LpiSent::Nowhere };
        let looked = crippled!(self, LooksAtSwitchFirst);
        if looked && !self.lpis_enabled(irq.state().home()) {
            return LpiSent::Off;
        }
        let (was, _) = self.update(irq, lpi, |state| {
            if state.home() == NOBODY || state.home_off() && !looked || state.forwarded() {
                state
            } else {
                state.with_latch(true).with_target(state.home()).with_off(false)
            }
        });
        match was {
            _ if was.home() == NOBODY => LpiSent::Nowhere,
            _ if was.home_off() => LpiSent::Off,
            _ if was.forwarded() => self.pend_forwarded(lpi),
            _ if was.latch() => LpiSent::Already,
            _ => LpiSent::Pended,
        }
    }

    /// CLEAR: it is not pending any more (I12).
    pub(crate) fn clear_lpi(&self, lpi: u32) {
        if let Some(irq) = self.lpis.get(lpi) {
            let (was, _) = self.update(irq, lpi, |state| state.with_latch(false));
            if was.forwarded() {
                self.clear_forwarded(lpi);
            }
        }
    }

    /// How many bytes the LPIs take, all tables included. Grows with the LPIs that events are mapped to, up to 20 bytes for
    /// each INTID that `GicOptions::id_bits` allows.
    pub fn lpi_memory(&self) -> usize {
        self.lpis.bytes()
    }

    /// Everything that is known of an LPI: for each that exists, in the order of their numbers.
    fn each_lpi(&self, config: &Config, mut visit: impl FnMut(u32, &Irq)) {
        for (number, mapped) in config.mapped.iter().enumerate().filter(|(_, mapped)| !mapped.is_empty()) {
            for (at, count) in mapped.iter().enumerate() {
                let lpi = FIRST_LPI + (number * CHUNK + at) as u32;
                let Some(irq) = self.lpis.get(lpi) else { break };
                if *count != 0 || self.lingers(irq.state()) {
                    visit(lpi, irq);
                }
            }
        }
    }

    /// Whether an LPI that no event is mapped to still exists. In KVM it does while a vCPU is about to take it (I17a).
    fn lingers(&self, state: IrqState) -> bool {
        self.options.behaviour.unmapping_keeps_pending && state.queued() && state.latch()
    }
}
