//! The machine on doorbell's chips: an IOAPIC and local APICs in this process, MSI-X tables, vCPU threads.

mod driver;
mod remapping;
mod sleeper;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use doorbell::{
    Delivery, Error, EventSink, Kick, MsiTarget, PinInput, VcpuId,
    chips::x86::{
        ioapic::{CHIP, FIRST_ENTRY, INDEX, IoApic, IoApicOptions, WINDOW},
        lapic::{ApicOptions, ApicSet},
    },
    irqfd::{DispatchThread, IrqfdTarget},
    manager::{IrqManager, SoftOptions},
    pci::VectorPool,
    route::{Pin, Route, RouteEntry},
};

use super::{
    coordinator::{Ended, Running},
    fault::Fault,
    function::{self, Binding, Functions},
    histogram::Histogram,
    ledger::Ledger,
    machine::Remap,
    plan::{self, Line, Plan, Vector, Wire},
    process::Doorbell,
    report::{Problem, count, grouped},
};
use driver::{Driver, Shift};
use remapping::Remapping;
use sleeper::Sleeper;

/// What the vCPU threads share.
pub struct Shared {
    ledger: Arc<Ledger>,
    ioapic: Arc<IoApic>,
    irqs: IrqManager,
    functions: Functions,
    sleepers: Arc<Sleepers>,
    plan: Plan,
    remapping: Option<Remapping>,
    stop: AtomicBool,
}

impl Shared {
    /// A level interrupt with this vector has ended: its lines are lowered, the devices told, and what is still high is
    /// sent again.
    fn end(&self, vector: u8) {
        // Where messages are remapped, the vector of an IOAPIC's entry and that of the table's are the same here, as they
        // must be for an end to find its pins.
        self.irqs.end(CHIP, &self.ioapic.end(vector));
    }
}

/// The vCPUs' beds.
pub struct Sleepers(Vec<Sleeper>);

impl Kick for Sleepers {
    fn kick(&self, vcpu: VcpuId) {
        if let Some(sleeper) = self.0.get(vcpu.0 as usize) {
            sleeper.wake();
        }
    }
}

/// The offset of the spurious-vector register in a local APIC's page, and its value that enables the APIC.
const SPURIOUS: u64 = 0xf0;
const SOFTWARE_ENABLE: u32 = 0x1ff;
/// With more vCPUs than this, the local APICs are in x2APIC mode.
const XAPIC_VCPUS: u32 = 255;

/// Where a vector's events go: on to the function's vector, except for those that a fault takes.
struct Source<S> {
    next: S,
    drop: Option<Dropping>,
}

/// One event of so many disappears, counted over all vectors.
#[derive(Clone)]
struct Dropping {
    every: u64,
    events: Arc<AtomicU64>,
}

impl<S: EventSink> EventSink for Source<S> {
    #[inline]
    fn signal(&self) -> Delivery {
        if let Some(drop) = &self.drop {
            // Relaxed: a count that stands for itself.
            let event = drop.events.fetch_add(1, Ordering::Relaxed) + 1;
            if event % drop.every == 0 {
                return Delivery::Ignored;
            }
        }
        self.next.signal()
    }
}

/// A machine on doorbell's chips.
pub struct Soft {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Shift>>,
    /// The GSI of each vector of the plan.
    gsis: Vec<Option<u32>>,
    // Dropped in this order: no event arrives once the thread has gone.
    _dispatching: DispatchThread,
    bindings: Vec<Binding>,
}

/// What the user chose for the machine.
pub struct Options {
    /// The fault to make.
    pub fault: Option<Fault>,
    /// When the driver masks and unmasks.
    pub seed: u64,
    /// Record a trace.
    pub trace: bool,
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> String {
    format!("{what}: {error}")
}

impl Soft {
    /// Builds the machine as a VMM would, lets its guest driver program it, and starts the vCPUs.
    ///
    /// # Errors
    /// One line.
    pub fn start(plan: &Plan, ledger: &Arc<Ledger>, doorbells: &[Doorbell], options: &Options) -> Result<Self, String> {
        // The VMM's part: chips, table, dispatcher.
        let sleepers = Arc::new(Sleepers((0..plan.vcpus).map(|_| Sleeper::default()).collect()));
        // Ids above 255 are reached through a table only, in whose messages the destination has more bits; and 255 is then
        // an id like others, not everybody.
        let behind = plan.remap != Remap::None;
        let apic_options = ApicOptions { extended_ids: behind, no_broadcast_quirk: behind, ..ApicOptions::default() };
        let apics = ApicSet::new(plan.vcpus, Arc::clone(&sleepers) as Arc<dyn Kick>, apic_options);
        let remapping = Remapping::start(plan, Arc::clone(&apics) as Arc<dyn MsiTarget>)?;
        let msi = remapping.as_ref().map_or(Arc::clone(&apics) as Arc<dyn MsiTarget>, Remapping::target);
        let ioapic_options = IoApicOptions { device_id: Some(plan::IOAPIC), ..IoApicOptions::default() };
        let ioapic = Arc::new(IoApic::new(Arc::clone(&msi), ioapic_options));
        let pins = Arc::clone(&ioapic) as Arc<dyn PinInput>;
        let irqs = IrqManager::soft(SoftOptions::new(msi, pins)).map_err(|error| error.to_string())?;
        let pool = VectorPool::new(irqs.vectors());
        let functions = Functions::new(&pool, plan).map_err(|error| failed("MSI-X", error))?;
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            ioapic,
            irqs: irqs.clone(),
            functions,
            sleepers,
            plan: plan.clone(),
            remapping,
            stop: AtomicBool::new(false),
        });
        let mut machine = Self {
            shared,
            threads: Vec::new(),
            _dispatching: irqs
                .dispatcher()
                .spawn("dispatcher")
                .map_err(|error| failed("the dispatcher's thread", error))?,
            bindings: Vec::new(),
            gsis: Vec::new(),
        };
        machine.boot(plan, &apics, options)?;
        machine.bind(plan, doorbells, options)?;
        Ok(machine)
    }

    /// The guest's part: it enables the local APICs, programs IOAPIC and MSI-X tables, and lets the vCPUs go.
    fn boot(&mut self, plan: &Plan, apics: &Arc<ApicSet>, options: &Options) -> Result<(), String> {
        let mut locals = Vec::new();
        for vcpu in 0..plan.vcpus {
            let mut local = apics.local(VcpuId(vcpu)).ok_or_else(|| format!("vCPU {vcpu} has no local APIC"))?;
            local.write(SPURIOUS, SOFTWARE_ENABLE);
            if plan.vcpus > XAPIC_VCPUS {
                let x2apic = local.base().with_x2apic(true).into_bits();
                local.set_base(x2apic).map_err(|_| format!("vCPU {vcpu} cannot enter x2APIC mode"))?;
            }
            locals.push(local);
        }
        // The first of those that share a line.
        let pins: BTreeMap<_, _> =
            plan.vectors.iter().enumerate().rev().filter_map(|(index, v)| Some((v.line()?, index))).collect();
        let route =
            |line: &Line| RouteEntry { gsi: line.pin.into(), route: Route::Pin(Pin { chip: CHIP, pin: line.pin }) };
        self.shared
            .irqs
            .set_routes(&pins.keys().map(route).collect::<Vec<_>>())
            .map_err(|error| failed("the routes", error))?;
        for (line, &index) in &pins {
            let entry = plan.redirection(index, *line);
            let register = FIRST_ENTRY + 2 * u32::from(line.pin);
            // The mask bit is in the low half, which therefore comes last.
            for (register, half) in [(register + 1, entry >> 32), (register, entry)] {
                // Nothing has been latched yet that a store could set free.
                let _ = self.shared.ioapic.write(INDEX, register);
                let _ = self.shared.ioapic.write(WINDOW, half as u32);
            }
        }
        self.shared.functions.program(plan);
        for local in locals {
            let vcpu = local.vcpu().0;
            let stuck = options.fault == Some(Fault::StuckVcpu(vcpu));
            let driver = Driver::new(local, plan, &self.shared, options.seed, options.trace, stuck);
            let thread = std::thread::Builder::new().name(format!("vcpu-{vcpu}")).spawn(move || driver.run());
            self.threads.push(thread.map_err(|error| failed(format_args!("a thread for vCPU {vcpu}"), error))?);
        }
        Ok(())
    }

    /// The VMM's part again: the devices' eventfds become sources.
    fn bind(&mut self, plan: &Plan, doorbells: &[Doorbell], options: &Options) -> Result<(), String> {
        let drop = match options.fault {
            Some(Fault::Drop(every)) => Some(Dropping { every: every.get(), events: Arc::default() }),
            _ => None,
        };
        self.gsis = function::gsis(plan, |gsi| self.shared.irqs.routes(gsi));
        for (vector, doorbell) in plan.vectors.iter().zip(doorbells) {
            let bound = self.source(vector, doorbell, drop.clone());
            self.bindings.push(bound.map_err(|error| failed("an irqfd", error))?);
        }
        Ok(())
    }

    fn source(&self, vector: &Vector, doorbell: &Doorbell, drop: Option<Dropping>) -> Result<Binding, Error> {
        let irqs = &self.shared.irqs;
        match vector.wire {
            Wire::MsiX { entry } => {
                let next = self.shared.functions.vector(vector.device, entry).ok_or(Error::NoController)?;
                let source = IrqfdTarget::Sink(Arc::new(Source { next, drop }));
                irqs.dispatcher().attach(&doorbell.eventfd, source).map(Binding::Vector)
            }
            Wire::Line(line) => function::bind_line(irqs, line, doorbell).map(Binding::Irqfd),
        }
    }

    fn end_threads(&mut self) -> Vec<std::thread::Result<Shift>> {
        // SeqCst: before the wakes; a vCPU that is about to sleep finds one or the other.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.sleepers.0.iter().for_each(Sleeper::wake);
        self.threads.drain(..).map(JoinHandle::join).collect()
    }
}

/// The station of interrupt remapping on the path of a vector.
fn remapped(plan: &Plan, index: usize) -> String {
    let entry = plan.place(index).entry;
    match plan.remap {
        Remap::None => String::new(),
        Remap::Vtd => format!("VT-d entry {entry} → "),
        Remap::Amd => format!("AMD-Vi entry {entry} → "),
    }
}

impl Drop for Soft {
    fn drop(&mut self) {
        self.end_threads();
    }
}

impl Running for Soft {
    fn path(&self, index: usize, vector: &Vector) -> String {
        let gsi = self.gsis[index].map_or_else(|| "no GSI".into(), |gsi| format!("GSI {gsi}"));
        let (vcpu, arrives) = (vector.slot.vcpu, vector.arrives_as());
        match vector.wire {
            Wire::MsiX { entry } => {
                let remapped = remapped(&self.shared.plan, index);
                format!("eventfd → MSI-X {entry} → {gsi} → {remapped}local APIC {vcpu} → {arrives:#x}")
            }
            Wire::Line(line) => {
                let end = if line.resample { " → resample" } else { "" };
                let remapped = remapped(&self.shared.plan, index);
                format!("eventfd → {gsi} → IOAPIC pin {} → {remapped}local APIC {vcpu} → {arrives:#x}{end}", line.pin)
            }
        }
    }

    fn standing(&self, index: usize, vector: &Vector) -> String {
        let pending = self.gsis[index].is_some_and(|gsi| {
            let mut bits = [0];
            self.shared.irqs.pending(gsi..gsi + 1, &mut bits);
            bits != [0]
        });
        let mask = if pending { "it is pending behind a mask" } else { "it is not pending behind a mask" };
        let page = self.shared.ledger.cpu(vector.slot.vcpu);
        format!("{mask}; vCPU {} has taken {} interrupts", vector.slot.vcpu, page.taken.load(Ordering::Relaxed))
    }

    fn stop(mut self: Box<Self>) -> Ended {
        let mut ended = Ended { latencies: vec![Histogram::default(); self.gsis.len()], ..Ended::default() };
        let (mut masks, mut function_masks, mut replayed) = (0, 0, 0);
        for (vcpu, shift) in self.end_threads().into_iter().enumerate() {
            let Ok(shift) = shift else {
                ended.problems.push(Problem(format!("the thread of vCPU {vcpu} panicked")));
                continue;
            };
            for (index, latency) in &shift.latencies {
                ended.latencies[*index].add(latency);
            }
            if shift.through > 0 {
                let problem = format!("vCPU {vcpu}: {} interrupts came through a mask", grouped(shift.through));
                ended.problems.push(Problem(problem));
            }
            ended.pending.push(shift.pending);
            ended.recorders.push(shift.recorder);
            if shift.stale > 0 {
                let problem = format!("vCPU {vcpu}: {} interrupts came by an old entry", grouped(shift.stale));
                ended.problems.push(Problem(problem));
            }
            masks += shift.masks;
            function_masks += shift.function_masks;
            replayed += shift.replayed;
        }
        if let Some(remapping) = &self.shared.remapping {
            let retargeted = remapping.retargeted.load(Ordering::Relaxed);
            ended.notes.push(format!(
                "Meanwhile the guest's driver re-targeted entries of its remapping table {}, with an invalidation each.",
                count(retargeted, "time")
            ));
        }
        if masks + function_masks > 0 {
            ended.notes.push(function::note(masks, function_masks, replayed));
        }
        ended
    }
}
