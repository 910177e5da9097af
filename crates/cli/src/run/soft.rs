//! The machine on doorbell's chips: in this process, with MSI-X tables and vCPU threads. What differs between the
//! architectures stands behind [`Platform`].

mod arm;
mod driver;
mod platform;
mod sleeper;
mod x86;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use doorbell::{
    Delivery, Error, EventSink, Kick, VcpuId,
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
    machine::Arch,
    plan::{Plan, Vector, Wire},
    process::Doorbell,
    report::{Problem, grouped},
};
use arm::Arm;
use driver::{Driver, Shift};
use platform::Platform;
use sleeper::Sleeper;
use x86::X86;

/// What the vCPU threads share.
pub struct Shared<P> {
    ledger: Arc<Ledger>,
    platform: P,
    irqs: IrqManager,
    functions: Functions,
    sleepers: Arc<Sleepers>,
    plan: Plan,
    stop: AtomicBool,
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
pub struct Soft<P: Platform> {
    shared: Arc<Shared<P>>,
    threads: Vec<JoinHandle<Shift>>,
    /// The guest's thread that is no vCPU's.
    meanwhile: Option<JoinHandle<()>>,
    /// It did not end well.
    panicked: bool,
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

/// Builds the machine of a plan on the chips of its architecture, and starts its vCPUs.
///
/// # Errors
/// One line.
pub fn start(
    plan: &Plan,
    ledger: &Arc<Ledger>,
    doorbells: &[Doorbell],
    options: &Options,
) -> Result<Box<dyn Running>, String> {
    match plan.arch {
        Arch::X86 => Ok(Box::new(Soft::<X86>::start(plan, ledger, doorbells, options)?)),
        Arch::Arm => Ok(Box::new(Soft::<Arm>::start(plan, ledger, doorbells, options)?)),
    }
}

impl<P: Platform> Soft<P> {
    /// Builds the machine as a VMM would, lets its guest driver program it, and starts the vCPUs.
    fn start(plan: &Plan, ledger: &Arc<Ledger>, doorbells: &[Doorbell], options: &Options) -> Result<Self, String> {
        // The VMM's part: chips, table, dispatcher.
        let sleepers = Arc::new(Sleepers((0..plan.vcpus).map(|_| Sleeper::default()).collect()));
        let platform = P::new(plan, ledger, Arc::clone(&sleepers) as Arc<dyn Kick>)?;
        let irqs =
            IrqManager::soft(SoftOptions::new(platform.msi(), platform.pins())).map_err(|error| error.to_string())?;
        let pool = VectorPool::new(irqs.vectors());
        let functions = Functions::new(&pool, plan).map_err(|error| failed("MSI-X", error))?;
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            platform,
            irqs: irqs.clone(),
            functions,
            sleepers,
            plan: plan.clone(),
            stop: AtomicBool::new(false),
        });
        let mut machine = Self {
            shared,
            threads: Vec::new(),
            meanwhile: None,
            panicked: false,
            _dispatching: irqs
                .dispatcher()
                .spawn("dispatcher")
                .map_err(|error| failed("the dispatcher's thread", error))?,
            bindings: Vec::new(),
            gsis: Vec::new(),
        };
        machine.boot(plan, options)?;
        machine.bind(plan, doorbells, options)?;
        machine.meanwhile = P::meanwhile(&machine.shared, options.seed, options.fault.is_some())?;
        Ok(machine)
    }

    /// The routes of the lines; then the guest's part: it programs its chips and MSI-X tables, and lets the vCPUs go.
    fn boot(&mut self, plan: &Plan, options: &Options) -> Result<(), String> {
        let pins: BTreeSet<_> = plan.vectors.iter().filter_map(|vector| Some(vector.line()?.pin)).collect();
        let route = |&pin: &u16| RouteEntry { gsi: pin.into(), route: Route::Pin(Pin { chip: P::PINS, pin }) };
        let routes: Vec<_> = pins.iter().map(route).collect();
        self.shared.irqs.set_routes(&routes).map_err(|error| failed("the routes", error))?;
        let cpus = P::boot(&self.shared)?;
        self.shared.functions.program(plan);
        for (vcpu, cpu) in (0..).zip(cpus) {
            let stuck = options.fault == Some(Fault::StuckVcpu(vcpu));
            let driver = Driver::new(cpu, plan, &self.shared, options.seed, options.trace, stuck);
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
        if self.meanwhile.take().is_some_and(|thread| thread.join().is_err()) {
            // It has said why.
            self.panicked = true;
        }
        self.threads.drain(..).map(JoinHandle::join).collect()
    }
}

impl<P: Platform> Drop for Soft<P> {
    fn drop(&mut self) {
        self.end_threads();
    }
}

impl<P: Platform> Running for Soft<P> {
    fn path(&self, index: usize, vector: &Vector) -> String {
        let gsi = self.gsis[index].map_or_else(|| "no GSI".into(), |gsi| format!("GSI {gsi}"));
        let path = self.shared.platform.path(&self.shared.plan, index);
        match vector.wire {
            Wire::MsiX { entry } => format!("eventfd → MSI-X {entry} → {gsi} → {path}"),
            Wire::Line(line) => {
                let end = if line.resample { " → resample" } else { "" };
                format!("eventfd → {gsi} → {path}{end}")
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
        let chips = self.shared.platform.standing(&self.shared.plan, index);
        format!("{mask}; {chips}vCPU {} has taken {} interrupts", vector.slot.vcpu, page.taken.load(Ordering::Relaxed))
    }

    fn stop(mut self: Box<Self>) -> Ended {
        let vectors = self.gsis.len();
        let mut ended =
            Ended { latencies: vec![Histogram::default(); vectors], pending: vec![false; vectors], ..Ended::default() };
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
            shift.pending.iter().for_each(|&index| ended.pending[index] = true);
            ended.recorders.push(shift.recorder);
            if shift.stale > 0 {
                let problem = format!("vCPU {vcpu}: {} interrupts came by an old way", grouped(shift.stale));
                ended.problems.push(Problem(problem));
            }
            masks += shift.masks;
            function_masks += shift.function_masks;
            replayed += shift.replayed;
        }
        if self.panicked {
            ended.problems.push(Problem("the guest's thread panicked".into()));
        }
        self.shared.platform.finish(&self.shared.plan, &self.shared.irqs, &mut ended);
        if masks + function_masks > 0 {
            ended.notes.push(function::note(masks, function_masks, replayed));
        }
        ended
    }
}
