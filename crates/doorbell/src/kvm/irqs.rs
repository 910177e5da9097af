//! The manager over a VM of the kernel.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::chips::{KernelMsi, KernelPins};
use super::heat::{Heat, Promotion};
use super::irqfds::{Irqfds, Standing};
use super::path::KvmPath;
use super::routes::KernelRoutes;
use super::{KERNEL_ROUTES, Vm};
use crate::chips::x86::ioapic::IoApic;
use crate::delivery::ChipId;
use crate::gate::Gate;
use crate::irqfd::{Dispatcher, DispatcherOptions, Drain, Resamplers, ResamplersState};
use crate::manager::{Backend, Capability, IrqManager, Irqfd, ManagerState};
use crate::route::{GsiRoutes, RouteEntry, RoutePolicy, RouteTable, RouteUpdate};
use crate::{Delivery, Error, LineSource, MsiMessage, PinInput, Pins, VectorPath, VectorSource};

const CAP_IRQ_ROUTING: u32 = 25;
const CAP_IRQFD: u32 = 32;
const CAP_SIGNAL_MSI: u32 = 77;
const CAP_IRQFD_RESAMPLE: u32 = 82;
const CAP_MSI_DEVID: u32 = 131;

/// What can be chosen.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KvmOptions {
    /// When lazy sources go to the kernel.
    pub promotion: Promotion,
    /// How the table behaves where the designs differ.
    pub policy: RoutePolicy,
}

impl Default for KvmOptions {
    /// Devices may have four times as many vectors as the kernel's table has routes: what the kernel has no room for stays
    /// with the dispatcher.
    fn default() -> Self {
        let policy = RoutePolicy { loans: 3 * KERNEL_ROUTES, ..RoutePolicy::default() };
        Self { promotion: Promotion::default(), policy }
    }
}

impl KvmOptions {
    /// With this promotion.
    pub fn promotion(self, promotion: Promotion) -> Self {
        Self { promotion, ..self }
    }
}

/// Whose pins there are.
enum PinSide {
    /// The kernel's: it resamples by itself.
    Kernel,
    /// Those of a chip in this process.
    User { ioapic: Arc<IoApic>, resamplers: Resamplers },
}

/// The interrupts of one VM of the kernel. Clones are handles of the same.
///
/// The routing table, the masks and the pending bits are doorbell's, as over soft chips; an event ends in a call of the
/// kernel. An eventfd that is bound is *lazy* at first: the dispatcher watches it, and delivers with `KVM_SIGNAL_MSI`.
/// [`promote`](Self::promote) commits the routes of all that are unmasked with one `KVM_SET_GSI_ROUTING` and gives their
/// eventfds to the kernel. What is masked or loses its route comes back by itself.
#[derive(Clone)]
pub struct KvmIrqs(Arc<Inner>);

struct Inner {
    irqfds: Arc<Irqfds>,
    path: Arc<KvmPath>,
    pins: PinSide,
}

impl KvmIrqs {
    /// Over a VM whose chips are all in the kernel (`KVM_CREATE_IRQCHIP`): `chips` and how many pins each has; x86:
    /// [`X86_CHIPS`](super::X86_CHIPS). Replaces the VM's routing table.
    ///
    /// # Errors
    /// Where the kernel refuses the table, so where there is no in-kernel chip, or there are no more descriptors.
    pub fn full(vm: Arc<Vm>, chips: &[(ChipId, u16)], options: KvmOptions) -> Result<Self, Error> {
        let pins = Arc::new(KernelPins::new(Arc::clone(&vm), chips));
        let (fixed, first) = (pins.routes().collect(), pins.gsis());
        let routes = Arc::new(KernelRoutes::new(Arc::clone(&vm), Vec::new()));
        routes.set_fixed(fixed)?;
        let msi = Arc::new(KernelMsi::new(Arc::clone(&vm)));
        let table = Arc::new(RouteTable::new(msi, pins, options.policy));
        Self::over(vm, table, routes, first, PinSide::Kernel, options)
    }

    /// Over local APICs in the kernel and an IOAPIC here, which sends to them; `first`: the lowest kernel GSI that is not
    /// a pin's.
    pub(super) fn split(
        vm: Arc<Vm>,
        ioapic: Arc<IoApic>,
        routes: Arc<KernelRoutes>,
        first: u32,
        options: KvmOptions,
    ) -> Result<Self, Error> {
        let msi = Arc::new(KernelMsi::new(Arc::clone(&vm)));
        let table = Arc::new(RouteTable::new(msi, Arc::clone(&ioapic) as Arc<dyn PinInput>, options.policy));
        let pins = PinSide::User { ioapic, resamplers: Resamplers::new(Arc::clone(&table)) };
        Self::over(vm, table, routes, first, pins, options)
    }

    fn over(
        vm: Arc<Vm>,
        table: Arc<RouteTable>,
        routes: Arc<KernelRoutes>,
        first: u32,
        pins: PinSide,
        options: KvmOptions,
    ) -> Result<Self, Error> {
        // Counters are taken with each event: what is left in one is an event for the kernel.
        let dispatcher = Dispatcher::new(DispatcherOptions { drain: Drain::Each, ..Default::default() })?;
        let heat = Arc::new(Heat::new(options.promotion));
        let kernel_pins = matches!(pins, PinSide::Kernel);
        let irqfds = Arc::new(Irqfds::new(vm, table, dispatcher, heat, routes, first, kernel_pins));
        let path = Arc::new(KvmPath(Arc::clone(&irqfds)));
        Ok(Self(Arc::new(Inner { irqfds, path, pins })))
    }

    /// The manager.
    pub fn manager(&self) -> IrqManager {
        IrqManager::over(Arc::clone(&self.0) as Arc<dyn Backend>)
    }

    /// The dispatcher of the lazy eventfds: poll it, or give it a thread.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.0.irqfds.dispatcher
    }

    /// The VM, and how often each of its calls was made.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.0.irqfds.vm
    }

    /// Binds an eventfd to a vector whose GSI may change, such as one of MSI-X. Its sink must not drop an irqfd of this
    /// manager: whoever moves a source waits for its sink.
    ///
    /// # Errors
    /// As [`Dispatcher::attach`].
    pub fn bind_vector(&self, fd: impl AsFd, vector: Arc<dyn VectorSource>) -> Result<Irqfd, Error> {
        self.0.irqfds.bind_vector(fd.as_fd(), vector).map(Irqfd::new)
    }

    /// Gives every lazy eventfd whose GSI is routed and unmasked to the kernel, with one routing call for all of them.
    /// Returns how many went; what the kernel has no room for stays lazy.
    ///
    /// # Errors
    /// Where the kernel refuses the routes; nothing has changed then.
    pub fn promote(&self) -> Result<usize, Error> {
        self.0.irqfds.promote(false)
    }

    /// The same for those that are hot, if they make a batch ([`Promotion::Hot`]).
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn promote_hot(&self) -> Result<usize, Error> {
        if self.0.irqfds.heat.take_batch() { self.0.irqfds.promote(true) } else { Ok(0) }
    }

    /// Where the events of the eventfds that are bound to `gsi` go at the moment, in the order of their binding; for who
    /// asks why an interrupt does not arrive. `None` if another thread has been moving eventfds between dispatcher and
    /// kernel for as long as `patience`.
    pub fn standings(&self, gsi: u32, patience: Duration) -> Option<Vec<Standing>> {
        self.0.irqfds.standings(gsi, patience)
    }

    /// A thread that promotes each batch of hot eventfds, until the value that stands for it is dropped.
    ///
    /// # Errors
    /// If the thread cannot be made, or there is one already.
    pub fn spawn_promoter(&self) -> std::io::Result<PromoterThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (irqs, stopped) = (self.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("promoter".into()).spawn(move || {
            // Acquire: pairs with the Release in `PromoterThread::drop`.
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = irqs.promote_hot() {
                    tracing::warn!(%error, "hot sources stay with the dispatcher");
                }
                std::thread::park();
            }
        })?;
        let first = self.0.irqfds.heat.woken(thread.thread().clone());
        let promoter = PromoterThread { stop, thread: Some(thread) };
        if first { Ok(promoter) } else { Err(std::io::ErrorKind::AlreadyExists.into()) }
    }
}

/// A thread that promotes; dropping this stops it and waits for it.
pub struct PromoterThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for PromoterThread {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the thread's look.
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the promoter had panicked");
            }
        }
    }
}

impl Inner {
    fn table(&self) -> &Arc<RouteTable> {
        &self.irqfds.table
    }
}

impl Backend for Inner {
    fn table(&self) -> Option<Arc<RouteTable>> {
        Some(Arc::clone(self.table()))
    }

    fn set_routes(&self, entries: &[RouteEntry]) -> Result<(), Error> {
        self.table().set(entries)?;
        self.irqfds.settle(self.irqfds.held());
        Ok(())
    }

    fn update_routes(&self, updates: &[RouteUpdate]) -> Result<(), Error> {
        self.table().update(updates)?;
        self.irqfds.settle(updates.iter().map(|update| match update {
            RouteUpdate::Set { gsi, .. } | RouteUpdate::Remove { gsi } => *gsi,
        }));
        Ok(())
    }

    fn routes(&self, gsi: u32) -> GsiRoutes {
        self.table().routes(gsi)
    }

    fn irqfd(&self, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Result<Irqfd, Error> {
        match (resample, &self.pins) {
            (None, _) => self.irqfds.bind(gsi, fd).map(Irqfd::new),
            (Some(resample), PinSide::Kernel) => self.irqfds.bind_resample(gsi, fd, resample).map(Irqfd::new),
            (Some(resample), PinSide::User { resamplers, .. }) => {
                resamplers.attach_unrouted(&self.irqfds.dispatcher, gsi, fd, resample).map(Irqfd::new)
            }
        }
    }

    fn dispatcher(&self) -> &Dispatcher {
        &self.irqfds.dispatcher
    }

    fn fire(&self, gsi: u32) -> Delivery {
        self.table().fire(gsi)
    }

    fn irq_line(&self, gsi: u32, source: LineSource, level: bool) -> Delivery {
        self.table().line(gsi, source, level)
    }

    fn signal_msi(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.table().msi_target().send(message)
    }

    fn mask(&self, gsi: u32) -> Result<bool, Error> {
        let was = Gate::new(self.table()).mask(gsi)?;
        self.irqfds.settle([gsi]);
        Ok(was)
    }

    fn unmask(&self, gsi: u32) -> Result<Option<Delivery>, Error> {
        if !self.irqfds.is_held(gsi) {
            return Gate::new(self.table()).unmask(gsi);
        }
        let mut places = self.irqfds.lock();
        places.remember(gsi);
        let delivery = Gate::new(self.table()).unmask(gsi)?;
        places.settle(&[gsi]);
        Ok(delivery)
    }

    fn pending(&self, range: Range<u32>, bits: &mut [u64]) {
        for gsi in self.irqfds.held().into_iter().filter(|gsi| range.contains(gsi)) {
            self.irqfds.lock().remember(gsi);
        }
        Gate::new(self.table()).pending(range, bits);
    }

    fn vectors(&self) -> Arc<dyn VectorPath> {
        Arc::clone(&self.path) as Arc<dyn VectorPath>
    }

    fn capability(&self, capability: Capability) -> u32 {
        let number = match (capability, &self.pins) {
            (Capability::Routes, _) => CAP_IRQ_ROUTING,
            (Capability::Irqfd, _) => CAP_IRQFD,
            (Capability::IrqfdResample, PinSide::User { .. }) => return 1,
            (Capability::IrqfdResample, PinSide::Kernel) => CAP_IRQFD_RESAMPLE,
            (Capability::SignalMsi, _) => CAP_SIGNAL_MSI,
            (Capability::MsiDeviceId, _) => CAP_MSI_DEVID,
            (Capability::Mask, _) => return 0,
        };
        u32::try_from(self.irqfds.vm.check(number)).unwrap_or(0)
    }

    fn end(&self, chip: ChipId, ended: &Pins) {
        if let PinSide::User { ioapic, resamplers } = &self.pins {
            resamplers.ended(chip, ended);
            ioapic.reevaluate(chip, ended);
        }
    }

    fn unmasked(&self, chip: ChipId, unmasked: &Pins) {
        if let PinSide::User { ioapic, resamplers } = &self.pins {
            resamplers.unmasked(&**ioapic, chip, unmasked);
        }
    }
    /// Lines that in-kernel sources hold up are in the state of the kernel's chips, not here.
    fn save(&self) -> ManagerState {
        for gsi in self.irqfds.held() {
            self.irqfds.lock().remember(gsi);
        }
        let resamplers = match &self.pins {
            PinSide::Kernel => ResamplersState::default(),
            PinSide::User { resamplers, .. } => resamplers.save(),
        };
        ManagerState { routes: self.table().save(), resamplers }
    }

    fn restore(&self, state: &ManagerState) -> Result<(), Error> {
        let ManagerState { routes, resamplers: raised } = state;
        if matches!(self.pins, PinSide::Kernel) && !raised.raised.is_empty() {
            return Err(Error::Snapshot("resampled lines are raised, but here they are the kernel's to save".into()));
        }
        if let PinSide::User { resamplers, .. } = &self.pins {
            resamplers.check(raised)?;
        }
        self.table().restore(routes)?;
        self.irqfds.settle(self.irqfds.held());
        match &self.pins {
            PinSide::Kernel => Ok(()),
            PinSide::User { resamplers, .. } => resamplers.restore(raised),
        }
    }
}
