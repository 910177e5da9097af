//! The machine under /dev/kvm: a guest whose handlers keep the ledger, on the kernel's chips, on half of them, or on
//! doorbell's.

use std::{
    collections::BTreeMap,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use doorbell::{
    Error,
    irqfd::{DispatchThread, IrqfdTarget},
    kvm::{KvmIrqs, KvmOptions, PromoterThread, Standing},
    pci::VectorPool,
    route::{Pin, Route, RouteEntry},
};

use super::{
    coordinator::{Ended, Running},
    function::{self, Binding, Functions},
    guest::{Chips, KernelMachine},
    ledger::Ledger,
    plan::{Line, Plan, Vector, Wire, x86::redirection},
    process::Doorbell,
    report::{Problem, grouped},
};

/// The kernel's number of the IOAPIC.
const IOAPIC: u8 = 2;
/// How long the driver leaves a vector alone, and how long it masks one.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a lock or a vCPU is waited for when somebody asks where an interrupt is.
const PATIENCE: Duration = Duration::from_millis(500);
/// See [`PAUSE`].
const MASKED: Duration = Duration::from_micros(200);

/// A machine under /dev/kvm.
pub struct Kernel {
    chips: Chips,
    gsis: Vec<Option<u32>>,
    driver: Driver,
    // Dropped in this order: no event arrives once the threads have gone.
    promoter: Option<PromoterThread>,
    dispatching: DispatchThread,
    bindings: Vec<Binding>,
    machine: KernelMachine,
}

fn failed(what: impl std::fmt::Display) -> impl Fn(Error) -> String {
    move |error| format!("{what}: {error}")
}

impl Kernel {
    /// Makes the VM, routes and binds every vector, and starts the guest. Where the kernel has local APICs, eventfds that
    /// turn out to be busy go to it in batches.
    ///
    /// # Errors
    /// One line.
    pub fn start(
        chips: Chips,
        plan: &Plan,
        ledger: &Arc<Ledger>,
        memory: BorrowedFd<'_>,
        doorbells: &[Doorbell],
        seed: u64,
    ) -> Result<Self, String> {
        let mut machine = KernelMachine::new(chips, ledger, memory, KvmOptions::default())?;
        let irqs = machine.manager().clone();
        let pool = VectorPool::new(irqs.vectors());
        let functions = Arc::new(Functions::new(&pool, plan).map_err(failed("MSI-X"))?);
        let lines: BTreeMap<_, _> = plan.vectors.iter().filter_map(|v| Some((v.line()?, v.slot.vcpu))).collect();
        for (line, &vcpu) in &lines {
            machine.set_redirection(line.pin, redirection(vcpu, *line))?;
        }
        let route =
            |line: &Line| RouteEntry { gsi: line.pin.into(), route: Route::Pin(Pin { chip: IOAPIC, pin: line.pin }) };
        irqs.set_routes(&lines.keys().map(route).collect::<Vec<_>>()).map_err(failed("the routes"))?;
        functions.program(plan);
        machine.start(ledger)?;
        let mut bindings = Vec::new();
        for (vector, doorbell) in plan.vectors.iter().zip(doorbells) {
            let bound = match vector.wire {
                Wire::MsiX { entry } => {
                    let source = functions.vector(vector.device, entry).ok_or(Error::NoController);
                    source.and_then(|source| match machine.kernel_irqs() {
                        Some(kernel) => kernel.bind_vector(&doorbell.eventfd, Arc::new(source)).map(Binding::Irqfd),
                        None => {
                            let target = IrqfdTarget::Sink(Arc::new(source));
                            irqs.dispatcher().attach(&doorbell.eventfd, target).map(Binding::Vector)
                        }
                    })
                }
                Wire::Line(line) => function::bind_line(&irqs, line, doorbell).map(Binding::Irqfd),
            };
            bindings.push(bound.map_err(failed("an irqfd"))?);
        }
        let thread = |error| format!("a thread: {error}");
        Ok(Self {
            chips,
            gsis: function::gsis(plan, |gsi| irqs.routes(gsi)),
            driver: Driver::start(&functions, plan, seed).map_err(thread)?,
            promoter: machine.kernel_irqs().map(KvmIrqs::spawn_promoter).transpose().map_err(thread)?,
            dispatching: irqs.dispatcher().spawn("dispatcher").map_err(thread)?,
            bindings,
            machine,
        })
    }
}

impl Running for Kernel {
    fn path(&self, index: usize, vector: &Vector) -> String {
        let gsi = self.gsis[index].map_or_else(|| "no GSI".into(), |gsi| format!("GSI {gsi}"));
        let (vcpu, arrives) = (vector.slot.vcpu, vector.arrives_as());
        let (ioapic, apic) = match self.chips {
            Chips::Kernel => ("KVM IOAPIC", "KVM local APIC"),
            Chips::Split => ("IOAPIC", "KVM local APIC"),
            Chips::None => ("IOAPIC", "local APIC"),
        };
        match vector.wire {
            Wire::MsiX { entry } => format!("irqfd → MSI-X {entry} → {gsi} → {apic} {vcpu} → {arrives:#x}"),
            Wire::Line(line) => {
                let (pin, end) = (line.pin, if line.resample { " → resample" } else { "" });
                format!("irqfd → {gsi} → {ioapic} pin {pin} → {apic} {vcpu} → {arrives:#x}{end}")
            }
        }
    }

    fn standing(&self, index: usize, vector: &Vector) -> String {
        let (vcpu, arrives) = (vector.slot.vcpu, vector.arrives_as());
        let apic = match self.machine.local_apic(vcpu, PATIENCE) {
            None => format!("vCPU {vcpu} does not say what is pending there"),
            Some(apic) => {
                let bit = |words: [u32; 8]| words[usize::from(arrives / 32)] >> (arrives % 32) & 1;
                let (irr, isr, ppr) = (bit(apic.irr), bit(apic.isr), apic.ppr);
                format!("vCPU {vcpu}: IRR {irr}, ISR {isr}, PPR {ppr:#x}")
            }
        };
        let Some(gsi) = self.gsis[index] else { return apic };
        let place = match self.machine.kernel_irqs().map(|kernel| kernel.standings(gsi, PATIENCE)) {
            None => "is doorbell's",
            Some(None) => "cannot be told: irqfds are being moved all the while",
            Some(Some(places)) => match places.first() {
                None => "is bound to nothing",
                Some(Standing::Watched) => "is with the dispatcher",
                Some(Standing::Kernel) => "is in the kernel",
                Some(Standing::Parked) => "is parked behind a mask",
                Some(Standing::Adrift) => "is adrift",
            },
        };
        format!("GSI {gsi} {place}; {apic}")
    }

    fn stop(self: Box<Self>) -> Ended {
        let Self { driver, promoter, dispatching, bindings, machine, .. } = *self;
        let mut ended = Ended::default();
        if let Some((masks, replayed)) = driver.stop() {
            ended.notes.push(function::note(masks, 0, replayed));
        }
        if let Some(kernel) = machine.kernel_irqs() {
            let calls = kernel.vm().calls();
            ended.notes.push(format!(
                "Calls of the kernel: {} of KVM_SET_GSI_ROUTING, {} of KVM_IRQFD, {} of KVM_SIGNAL_MSI.",
                grouped(calls.set_routing),
                grouped(calls.assign + calls.deassign),
                grouped(calls.signal_msi)
            ));
        }
        drop(promoter);
        if let Err(error) = dispatching.stop() {
            ended.problems.push(Problem(format!("the dispatcher: {error}")));
        }
        drop(bindings);
        for (vcpu, report) in machine.stop().into_iter().enumerate() {
            if let Err(error) = report {
                ended.problems.push(Problem(format!("vCPU {vcpu}: {error}")));
            }
        }
        ended
    }
}

/// A thread that plays the part of the guest's driver, which masks and unmasks vectors: the guest itself knows nothing of
/// PCI.
struct Driver {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Driver {
    fn start(functions: &Arc<Functions>, plan: &Plan, seed: u64) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let entries: Vec<_> = plan
            .vectors
            .iter()
            .filter_map(|vector| match vector.wire {
                Wire::MsiX { entry } => Some((vector.device, entry)),
                Wire::Line(_) => None,
            })
            .collect();
        let (functions, stopped) = (Arc::clone(functions), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("driver".into()).spawn(move || {
            let (mut masks, mut replayed) = (0, 0);
            let mut random = function::Random::new(seed);
            // Relaxed: a flag that stands for itself.
            while !entries.is_empty() && !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(PAUSE);
                let (device, entry) = entries[random.next() as usize % entries.len()];
                if let Some(function) = functions.of(device) {
                    // It is the only one that masks.
                    let _ = function.mask(entry);
                    std::thread::sleep(MASKED);
                    masks += 1;
                    replayed += u64::from(function.unmask(entry));
                }
            }
            (masks, replayed)
        })?;
        Ok(Self { stop, thread })
    }

    /// How often it masked, and how many interrupts were pending when it unmasked.
    fn stop(self) -> Option<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok()
    }
}
