//! The machine on doorbell's chips: an IOAPIC and local APICs in this process, MSI-X tables, vCPU threads.

mod driver;
mod function;
mod sleeper;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use doorbell::{
    Delivery, Error, EventSink, Kick, MsiTarget, PinInput, Pins, VcpuId, VectorPath,
    chips::x86::{
        ioapic::{CHIP, FIRST_ENTRY, INDEX, IoApic, IoApicOptions, WINDOW},
        lapic::{ApicOptions, ApicSet},
    },
    irqfd::{DispatchThread, Dispatcher, DispatcherOptions, Irqfd, IrqfdTarget, Resamplers, RoutedGsi},
    pci::VectorPool,
    route::{Pin, Route, RouteEntry, RoutePolicy, RouteTable},
};

use super::{
    coordinator::{Ended, Running},
    fault::Fault,
    histogram::Histogram,
    ledger::Ledger,
    plan::{Line, Plan, Vector, Wire, message, redirection},
    process::Doorbell,
    report::{Problem, grouped},
};
use driver::{Driver, Shift};
use function::Function;
use sleeper::Sleeper;

/// What the vCPU threads share.
pub struct Shared {
    ledger: Arc<Ledger>,
    ioapic: Arc<IoApic>,
    resamplers: Resamplers,
    functions: Vec<Option<Function>>,
    sleepers: Arc<Sleepers>,
    stop: AtomicBool,
}

impl Shared {
    /// A level interrupt with this vector has ended: its lines are lowered, the devices told, and what is still high is
    /// sent again.
    fn end(&self, vector: u8) {
        let pins: Pins = self.ioapic.end(vector);
        self.resamplers.ended(CHIP, &pins);
        self.ioapic.reevaluate(CHIP, &pins);
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
    irqfds: Vec<Irqfd>,
    dispatcher: Dispatcher,
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
        let apics = ApicSet::new(plan.vcpus, Arc::clone(&sleepers) as Arc<dyn Kick>, ApicOptions::default());
        let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, IoApicOptions::default()));
        let msi = Arc::clone(&apics) as Arc<dyn MsiTarget>;
        let pins = Arc::clone(&ioapic) as Arc<dyn PinInput>;
        let table = Arc::new(RouteTable::new(msi, pins, RoutePolicy::S2_TABLE));
        let resamplers = Resamplers::new(Arc::clone(&table));
        let dispatcher = Dispatcher::new(DispatcherOptions::default()).map_err(|error| error.to_string())?;
        let pool = VectorPool::new(Arc::clone(&table) as Arc<dyn VectorPath>);
        let mut functions = Vec::new();
        for device in 0..plan.devices.len() {
            let vectors = plan.of_device(device).filter(|vector| matches!(vector.wire, Wire::MsiX { .. })).count();
            let function = (vectors > 0).then(|| Function::new(&pool, vectors as u16)).transpose();
            functions.push(function.map_err(|error| failed("MSI-X", error))?);
        }
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            ioapic,
            resamplers,
            functions,
            sleepers,
            stop: AtomicBool::new(false),
        });
        let mut machine = Self {
            shared,
            threads: Vec::new(),
            _dispatching: dispatcher.spawn("dispatcher").map_err(|error| failed("the dispatcher's thread", error))?,
            irqfds: Vec::new(),
            dispatcher,
            gsis: Vec::new(),
        };
        machine.boot(plan, &table, &apics, options)?;
        machine.bind(plan, &table, doorbells, options)?;
        Ok(machine)
    }

    /// The guest's part: it enables the local APICs, programs IOAPIC and MSI-X tables, and lets the vCPUs go.
    fn boot(&mut self, plan: &Plan, table: &RouteTable, apics: &Arc<ApicSet>, options: &Options) -> Result<(), String> {
        let mut locals = Vec::new();
        for vcpu in 0..plan.vcpus {
            let mut local = apics.local(VcpuId(vcpu)).ok_or_else(|| format!("vCPU {vcpu} has no local APIC"))?;
            local.write(SPURIOUS, SOFTWARE_ENABLE);
            locals.push(local);
        }
        let pins: BTreeMap<_, _> = plan.vectors.iter().filter_map(|v| Some((v.line()?, v.slot.vcpu))).collect();
        let route =
            |line: &Line| RouteEntry { gsi: line.pin.into(), route: Route::Pin(Pin { chip: CHIP, pin: line.pin }) };
        table.set(&pins.keys().map(route).collect::<Vec<_>>()).map_err(|error| failed("the routes", error))?;
        for (line, &vcpu) in &pins {
            let entry = redirection(vcpu, *line);
            let register = FIRST_ENTRY + 2 * u32::from(line.pin);
            // The mask bit is in the low half, which therefore comes last.
            for (register, half) in [(register + 1, entry >> 32), (register, entry)] {
                // Nothing has been latched yet that a store could set free.
                let _ = self.shared.ioapic.write(INDEX, register);
                let _ = self.shared.ioapic.write(WINDOW, half as u32);
            }
        }
        for (device, function) in self.shared.functions.iter().enumerate() {
            let messages = plan.of_device(device).filter_map(|vector| match vector.wire {
                Wire::MsiX { entry } => Some((entry, message(vector.slot))),
                Wire::Line(_) => None,
            });
            if let Some(function) = function {
                function.program(messages);
            }
        }
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
    fn bind(
        &mut self,
        plan: &Plan,
        table: &Arc<RouteTable>,
        doorbells: &[Doorbell],
        options: &Options,
    ) -> Result<(), String> {
        let drop = match options.fault {
            Some(Fault::Drop(every)) => Some(Dropping { every: every.get(), events: Arc::default() }),
            _ => None,
        };
        let routed: HashMap<_, _> = (0..RouteTable::GSIS)
            .filter_map(|gsi| match table.routes(gsi).first() {
                Some(Route::Msi(message)) => Some(((message.address, message.data), gsi)),
                _ => None,
            })
            .collect();
        for (vector, doorbell) in plan.vectors.iter().zip(doorbells) {
            let gsi = match vector.wire {
                Wire::MsiX { .. } => {
                    let message = message(vector.slot);
                    routed.get(&(message.address, message.data)).copied()
                }
                Wire::Line(line) => Some(line.pin.into()),
            };
            self.gsis.push(gsi);
            let bound = self.source(vector, table, doorbell, drop.clone());
            self.irqfds.push(bound.map_err(|error| failed("an irqfd", error))?);
        }
        Ok(())
    }

    fn source(
        &self,
        vector: &Vector,
        table: &Arc<RouteTable>,
        doorbell: &Doorbell,
        drop: Option<Dropping>,
    ) -> Result<Irqfd, Error> {
        let dispatcher = &self.dispatcher;
        match (vector.wire, &doorbell.resample) {
            (Wire::MsiX { entry }, _) => {
                let function = self.shared.functions[vector.device].as_ref();
                let next = function.and_then(|function| function.vector(entry)).ok_or(Error::NoController)?;
                dispatcher.attach(&doorbell.eventfd, IrqfdTarget::Sink(Arc::new(Source { next, drop })))
            }
            (Wire::Line(line), Some(resample)) => {
                let gsi = RoutedGsi::new(table, line.pin.into())?;
                self.shared.resamplers.attach(dispatcher, &gsi, &doorbell.eventfd, resample)
            }
            (Wire::Line(line), None) => dispatcher.attach(&doorbell.eventfd, RoutedGsi::new(table, line.pin.into())?),
        }
    }

    fn end_threads(&mut self) -> Vec<std::thread::Result<Shift>> {
        // SeqCst: before the wakes; a vCPU that is about to sleep finds one or the other.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.sleepers.0.iter().for_each(Sleeper::wake);
        self.threads.drain(..).map(JoinHandle::join).collect()
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
            Wire::MsiX { entry } => format!("eventfd → MSI-X {entry} → {gsi} → local APIC {vcpu} → {arrives:#x}"),
            Wire::Line(line) => {
                let end = if line.resample { " → resample" } else { "" };
                format!("eventfd → {gsi} → IOAPIC pin {} → local APIC {vcpu} → {arrives:#x}{end}", line.pin)
            }
        }
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
            masks += shift.masks;
            function_masks += shift.function_masks;
            replayed += shift.replayed;
        }
        if masks + function_masks > 0 {
            ended.notes.push(format!(
                "Meanwhile the guest's driver masked vectors {} times and whole functions {} times; {} interrupts were \
                 pending when it unmasked.",
                grouped(masks),
                grouped(function_masks),
                grouped(replayed)
            ));
        }
        ended
    }
}
