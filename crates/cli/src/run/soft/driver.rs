//! The thread of one vCPU: takes interrupts from its local APIC, handles them as a guest's driver would, ends them, and
//! sleeps when there are none.

use std::sync::{Arc, atomic::Ordering};

use doorbell::chips::x86::lapic::LocalApic;

use super::Shared;
use crate::run::{
    device,
    function::Random,
    histogram::Histogram,
    ledger::{FIRST_VECTOR, SLOTS, Slot, now_ns},
    plan::{Plan, Wire},
    trace::{Event, Recorder},
};

/// A vector is masked after one interrupt of this many, and a whole function after one of this many times 64.
const MASK_ONE_OF: u64 = 64;
/// A mask lasts this many interrupts of the vCPU, or until it has nothing else to do.
const MASK_LASTS: u32 = 12;
/// With interrupt remapping: a vector is given another vCPU after one interrupt of this many.
const RETARGET_ONE_OF: u64 = 32;
/// With the fault: the interrupt that is not ended.
const STUCK_AT: u32 = 100;

/// What a handler must know of a slot.
#[derive(Clone, Copy)]
struct Handler {
    /// The index of its vector among those whose latencies are measured here.
    vector: usize,
    /// Its index in the plan.
    index: usize,
    /// Where it is accounted.
    slot: Slot,
    device: usize,
    /// Its entry, if it is one of MSI-X.
    entry: Option<u16>,
    /// Its device learns of the end by a resample descriptor, and needs no bell.
    level: bool,
}

/// What the driver has masked.
#[derive(Clone, Copy)]
struct Mask {
    device: usize,
    /// `None`: the whole function.
    entry: Option<u16>,
    vector: u8,
    /// Nothing of this vector was on its way when it was masked: it must not arrive.
    quiet: bool,
    left: u32,
}

/// What a vCPU has done when it stops.
#[derive(Debug, Default)]
pub struct Shift {
    /// The latencies of its vectors, with their indices in the plan.
    pub latencies: Vec<(usize, Histogram)>,
    /// What is still pending.
    pub pending: [u32; 8],
    /// What it recorded.
    pub recorder: Recorder,
    /// How often it masked a vector, and a function.
    pub masks: u64,
    /// See `masks`.
    pub function_masks: u64,
    /// Interrupts that were pending when it unmasked.
    pub replayed: u64,
    /// Interrupts that came through a mask.
    pub through: u64,
    /// Interrupts that came by an entry of the remapping table whose invalidation was complete.
    pub stale: u64,
}

/// See the [module](self).
pub struct Driver {
    vcpu: u32,
    apic: LocalApic,
    shared: Arc<Shared>,
    handlers: Vec<Option<Handler>>,
    masks: Vec<Mask>,
    /// By slot: the vector has been given another vCPU, and nothing of it was on its way here.
    away: Vec<bool>,
    random: Random,
    stuck: bool,
    shift: Shift,
}

impl Driver {
    /// The driver of a vCPU, which owns its local APIC. `stuck`: it does not end one of its interrupts.
    pub fn new(apic: LocalApic, plan: &Plan, shared: &Arc<Shared>, seed: u64, trace: bool, stuck: bool) -> Self {
        let vcpu = apic.vcpu().0;
        let mut handlers = vec![None; SLOTS];
        let mut latencies = Vec::new();
        for (index, vector) in plan.vectors.iter().enumerate().filter(|(_, vector)| plan.may_arrive(vector, vcpu)) {
            if vector.line().is_some() && vector.slot.vcpu != vcpu {
                continue;
            }
            let entry = match vector.wire {
                Wire::MsiX { entry } => Some(entry),
                Wire::Line(_) => None,
            };
            if let Some(slot) = vector.slot.index() {
                handlers[slot] = Some(Handler {
                    vector: latencies.len(),
                    index,
                    slot: vector.slot,
                    device: vector.device,
                    entry,
                    level: vector.is_level(),
                });
                latencies.push((index, Histogram::default()));
            }
        }
        let shift = Shift { latencies, recorder: Recorder::new(trace), ..Shift::default() };
        let random = Random::new(seed.wrapping_add(u64::from(vcpu) << 32));
        let masks = Vec::with_capacity(SLOTS);
        let away = vec![false; SLOTS];
        Self { vcpu, apic, shared: Arc::clone(shared), handlers, masks, away, random, stuck, shift }
    }

    /// Works until the machine stops.
    pub fn run(mut self) -> Shift {
        let shared = Arc::clone(&self.shared);
        let sleeper = &shared.sleepers.0[self.vcpu as usize];
        let mut taken = 0u32;
        loop {
            while let Some(vector) = self.apic.acknowledge() {
                taken += 1;
                if self.stuck && taken == STUCK_AT {
                    self.unmask_due(true);
                    self.shared.ledger.enter(self.vcpu, vector, |_, _, _| ());
                    while !shared.stop.load(Ordering::Acquire) {
                        sleeper.prepare();
                        if !shared.stop.load(Ordering::SeqCst) {
                            sleeper.sleep();
                        }
                    }
                    break;
                }
                self.handle(vector);
            }
            self.unmask_due(true);
            sleeper.prepare();
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
            if self.apic.arm().is_idle() {
                sleeper.sleep();
            }
            self.apic.disarm();
        }
        for vector in 0..=u8::MAX {
            if self.apic.holds(vector) {
                self.shift.pending[usize::from(vector / 32)] |= 1 << (vector % 32);
            }
        }
        self.shift
    }

    /// One interrupt, from the acknowledge to what follows its end.
    fn handle(&mut self, vector: u8) {
        if self.masks.iter().any(|mask| mask.quiet && mask.vector == vector) {
            self.shift.through += 1;
        }
        let handler = vector.checked_sub(FIRST_VECTOR).and_then(|slot| self.handlers[usize::from(slot)]);
        self.look_for_stale(handler);
        let Self { vcpu, shared, handlers, shift, .. } = self;
        let entered = if shift.recorder.is_on() { now_ns() } else { 0 };
        let ledger = &shared.ledger;
        let account = |slot: usize, number, waited| {
            let Some(handler) = handlers[slot] else { return };
            if let Some(waited) = waited {
                shift.latencies[handler.vector].1.record(waited);
            }
            if shift.recorder.is_on() {
                shift.recorder.record(Event { index: slot as u32, number, entered, left: now_ns(), waited });
            }
        };
        let entry = match handler {
            Some(handler) if shared.remapping.is_some() && handler.entry.is_some() => {
                ledger.enter_at(*vcpu, handler.slot, account)
            }
            _ => ledger.enter(*vcpu, vector, account),
        };
        if let Some(eoi) = self.apic.eoi() {
            if eoi.level {
                self.shared.end(eoi.vector);
            }
        }
        self.shared.ledger.leave(self.vcpu);
        let Some(handler) = handler else { return };
        if entry.fresh > 0 && !handler.level {
            device::ring(&self.shared.ledger.header().devices[handler.device]);
        }
        if let Some(msix) = handler.entry {
            if self.is_here(handler) {
                self.retarget_perhaps(handler, vector);
            }
            if self.is_here(handler) {
                self.mask_perhaps(handler.device, msix, vector);
            }
        }
        self.unmask_due(false);
    }

    /// Whether a vector arrives at this vCPU by now, which then is the one to change that.
    fn is_here(&self, handler: Handler) -> bool {
        self.shared.remapping.as_ref().is_none_or(|remapping| remapping.owner(handler.index) == self.vcpu)
    }

    /// Counts an interrupt that should have gone to another vCPU.
    fn look_for_stale(&mut self, handler: Option<Handler>) {
        let Some((handler, slot)) = handler.and_then(|handler| Some((handler, handler.slot.index()?))) else { return };
        if self.away[slot] && !self.is_here(handler) {
            self.shift.stale += 1;
        }
        self.away[slot] = false;
    }

    /// Now and then the driver gives the vector whose interrupt it has just handled to a neighbour.
    fn retarget_perhaps(&mut self, handler: Handler, vector: u8) {
        let shared = Arc::clone(&self.shared);
        let Some(remapping) = &shared.remapping else { return };
        if self.random.next() >> 16 & (RETARGET_ONE_OF - 1) != 0 || self.masks.iter().any(|mask| mask.vector == vector)
        {
            return;
        }
        let group = shared.plan.group();
        let first = self.vcpu / group * group;
        let size = group.min(shared.plan.vcpus - first);
        if size == 1 {
            return;
        }
        let step = 1 + (self.random.next() >> 16) as u32 % (size - 1);
        remapping.retarget(&shared.plan, handler.index, first + (self.vcpu - first + step) % size);
        if let Some(slot) = handler.slot.index() {
            self.away[slot] = !self.apic.holds(vector);
        }
    }

    /// Now and then the driver masks the vector whose interrupt it has just handled, or its whole function.
    fn mask_perhaps(&mut self, device: usize, entry: u16, vector: u8) {
        let random = self.random.next();
        if random % MASK_ONE_OF != 0 || self.masks.iter().any(|mask| mask.vector == vector) {
            return;
        }
        let Some(function) = self.shared.functions.of(device) else { return };
        let whole = random / MASK_ONE_OF % 64 == 0;
        if whole {
            if !function.mask_all() {
                return;
            }
            self.shift.function_masks += 1;
        } else {
            function.mask(entry);
            self.shift.masks += 1;
        }
        let quiet = !self.apic.holds(vector);
        let entry = (!whole).then_some(entry);
        self.masks.push(Mask { device, entry, vector, quiet, left: MASK_LASTS });
    }

    /// Ends the masks whose time is over, or all.
    fn unmask_due(&mut self, all: bool) {
        let Self { masks, shared, shift, .. } = self;
        masks.retain_mut(|mask| {
            mask.left -= 1;
            if !all && mask.left > 0 {
                return true;
            }
            if let Some(function) = shared.functions.of(mask.device) {
                shift.replayed += match mask.entry {
                    Some(entry) => u64::from(function.unmask(entry)),
                    None => u64::from(function.unmask_all()),
                };
            }
            false
        });
    }
}
