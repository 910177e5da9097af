//! The thread of one vCPU: takes interrupts from its half of the chips, handles them as a guest's driver would, ends them,
//! and sleeps when there are none.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Shared,
    platform::{Platform, Processor},
};
use crate::run::{
    device,
    function::Random,
    histogram::Histogram,
    ledger::{SLOTS, Slot, now_ns},
    plan::{Plan, Wire},
    trace::{Event, Recorder},
};

/// A vector is masked after one interrupt of this many, and a whole function after one of this many times 64.
const MASK_ONE_OF: u64 = 64;
/// A mask lasts this many interrupts of the vCPU, or until it has nothing else to do.
const MASK_LASTS: u32 = 12;
/// With the fault: the interrupt that is not ended.
const STUCK_AT: u32 = 100;

/// What a handler must know of what it was entered for: a vector, or a line, whose sources follow one another.
#[derive(Clone, Copy)]
struct Handler {
    /// The index of its first vector among those whose latencies are measured here.
    latency: usize,
    /// Its index in the plan.
    index: usize,
    /// Where it is accounted.
    slot: Slot,
    /// How many sources there are.
    sources: usize,
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
    arrival: u32,
    /// Nothing of this vector was on its way when it was masked: it must not arrive.
    quiet: bool,
    left: u32,
}

/// What a vCPU has done when it stops.
#[derive(Debug, Default)]
pub struct Shift {
    /// The latencies of its vectors, with their indices in the plan.
    pub latencies: Vec<(usize, Histogram)>,
    /// Which vectors of the plan are still pending here.
    pub pending: Vec<usize>,
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
    /// Interrupts that came to a vCPU to which their vector did not belong any more.
    pub stale: u64,
}

/// See the [module](self).
pub struct Driver<P: Platform> {
    vcpu: u32,
    cpu: P::Cpu,
    shared: Arc<Shared<P>>,
    /// By what the acknowledge says.
    handlers: HashMap<u32, Handler>,
    masks: Vec<Mask>,
    random: Random,
    stuck: bool,
    shift: Shift,
}

impl<P: Platform> Driver<P> {
    /// The driver of a vCPU, which owns its half of the chips. `stuck`: it does not end one of its interrupts.
    pub fn new(cpu: P::Cpu, plan: &Plan, shared: &Arc<Shared<P>>, seed: u64, trace: bool, stuck: bool) -> Self {
        let vcpu = cpu.vcpu();
        let mut handlers: HashMap<u32, Handler> = HashMap::new();
        let mut latencies = Vec::new();
        for (index, vector) in plan.vectors.iter().enumerate().filter(|(_, vector)| plan.may_arrive(vector, vcpu)) {
            let entry = match vector.wire {
                Wire::MsiX { entry } => Some(entry),
                Wire::Line(_) => None,
            };
            let handler = handlers.entry(vector.arrival).or_insert(Handler {
                latency: latencies.len(),
                index,
                slot: vector.slot,
                sources: 0,
                device: vector.device,
                entry,
                level: vector.is_level(),
            });
            handler.sources += 1;
            latencies.push((index, Histogram::default()));
        }
        let shift = Shift { latencies, recorder: Recorder::new(trace), ..Shift::default() };
        let random = Random::new(seed.wrapping_add(u64::from(vcpu) << 32));
        let masks = Vec::with_capacity(SLOTS);
        Self { vcpu, cpu, shared: Arc::clone(shared), handlers, masks, random, stuck, shift }
    }

    /// Works until the machine stops.
    pub fn run(mut self) -> Shift {
        let shared = Arc::clone(&self.shared);
        let sleeper = &shared.sleepers.0[self.vcpu as usize];
        let mut taken = 0u32;
        loop {
            while let Some(arrival) = self.cpu.acknowledge() {
                taken += 1;
                if self.stuck && taken == STUCK_AT {
                    self.unmask_due(true);
                    let handler = self.handlers.get(&arrival).copied();
                    self.enter(arrival, handler);
                    while !shared.stop.load(Ordering::Acquire) {
                        sleeper.prepare();
                        if !shared.stop.load(Ordering::SeqCst) {
                            sleeper.sleep();
                        }
                    }
                    break;
                }
                self.handle(arrival);
            }
            self.unmask_due(true);
            sleeper.prepare();
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
            if self.cpu.arm() {
                sleeper.sleep();
            }
            self.cpu.disarm();
        }
        let Self { cpu, handlers, shift, .. } = &mut self;
        let held = handlers.iter().filter(|(arrival, _)| cpu.holds(**arrival));
        shift.pending = held.flat_map(|(_, handler)| handler.index..handler.index + handler.sources).collect();
        self.shift
    }

    /// Accounts for an interrupt. Returns how many sources had something new.
    fn enter(&mut self, arrival: u32, handler: Option<Handler>) -> u32 {
        let Self { vcpu, cpu, shared, shift, .. } = self;
        let ledger = &shared.ledger;
        let Some(handler) = handler else {
            // No slot has this vector: it is noted as one that nobody sent.
            return ledger.enter_at(*vcpu, arrival, Slot { vcpu: *vcpu, vector: 0 }, |_, _, _| ()).fresh;
        };
        let entered = if shift.recorder.is_on() { now_ns() } else { 0 };
        let first = handler.slot.index().unwrap_or_default();
        let account = |slot: usize, number, waited| {
            let source = slot - first;
            if let Some(waited) = waited {
                shift.latencies[handler.latency + source].1.record(waited);
            }
            if shift.recorder.is_on() {
                let index = handler.index + source;
                shift.recorder.record(Event { index, number, entered, left: now_ns(), waited });
            }
        };
        if cpu.is_shared(handler.index) {
            ledger.enter_at(*vcpu, arrival, handler.slot, account).fresh
        } else {
            ledger.enter(*vcpu, handler.slot.vector, account).fresh
        }
    }

    /// One interrupt, from the acknowledge to what follows its end.
    fn handle(&mut self, arrival: u32) {
        if self.masks.iter().any(|mask| mask.quiet && mask.arrival == arrival) {
            self.shift.through += 1;
        }
        let handler = self.handlers.get(&arrival).copied();
        if handler.is_some_and(|handler| self.cpu.is_stale(handler.index)) {
            self.shift.stale += 1;
        }
        let fresh = self.enter(arrival, handler);
        if let Some(pins) = self.cpu.end(arrival) {
            self.shared.irqs.end(P::PINS, &pins);
        }
        self.shared.ledger.leave(self.vcpu);
        let Some(handler) = handler else { return };
        if fresh > 0 && !handler.level {
            device::ring(&self.shared.ledger.header().devices[handler.device]);
        }
        if let Some(entry) = handler.entry {
            if self.cpu.is_here(handler.index) && !self.is_masked(arrival) {
                self.cpu.retarget(handler.index, &mut self.random);
            }
            if self.cpu.is_here(handler.index) && !self.is_masked(arrival) {
                self.mask_perhaps(handler, entry, arrival);
            }
        }
        self.unmask_due(false);
    }

    /// Whether this driver has masked a vector.
    fn is_masked(&self, arrival: u32) -> bool {
        self.masks.iter().any(|mask| mask.arrival == arrival)
    }

    /// Now and then the driver masks the vector whose interrupt it has just handled, or its whole function.
    fn mask_perhaps(&mut self, handler: Handler, entry: u16, arrival: u32) {
        let random = self.random.next();
        if random % MASK_ONE_OF != 0 {
            return;
        }
        let Some(function) = self.shared.functions.of(handler.device) else { return };
        let whole = random / MASK_ONE_OF % 64 == 0;
        if whole {
            if !function.mask_all() {
                return;
            }
            self.shift.function_masks += 1;
        } else {
            if !function.mask(entry) {
                return;
            }
            self.shift.masks += 1;
        }
        let quiet = self.cpu.is_quiet(arrival);
        let entry = (!whole).then_some(entry);
        self.masks.push(Mask { device: handler.device, entry, arrival, quiet, left: MASK_LASTS });
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
