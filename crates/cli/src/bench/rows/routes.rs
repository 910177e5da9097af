//! Routes changed, and vectors brought up.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use doorbell::{
    Delivery, EventSink, SlotFire, VectorPath, VectorSlot, VectorSource,
    kvm::{KvmIrqs, KvmOptions, Promotion, X86_CHIPS},
    route::{RouteTable, SharedTrigger},
};
use rustix::event::{EventfdFlags, eventfd};

use super::{
    Work, kernel,
    machine::{Machine, message},
};

/// The GSI whose route changes.
const GSI: u32 = 100;

/// A table with a message for every GSI.
fn full_table() -> Result<Machine, String> {
    let machine = Machine::new(1);
    machine.route((0..RouteTable::GSIS).map(|_| message(0, 0x41)))?;
    Ok(machine)
}

/// One route changed; its source says nothing meanwhile.
pub fn update_idle() -> Result<Work, String> {
    let machine = full_table()?;
    let mut vector = 0x41u8;
    Ok(super::timed(move || {
        vector ^= 1;
        machine.table.set_msi(GSI, &message(0, vector))
    }))
}

/// One route changed while another thread fires it without a pause.
pub fn update_firing() -> Result<Work, String> {
    let machine = full_table()?;
    let mut vector = 0x41u8;
    Ok(Box::new(move |times| {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Arc::new(AtomicBool::new(false));
        let firing = thread::spawn({
            let (trigger, stop) = (SharedTrigger::new(Arc::clone(&machine.table), GSI), Arc::clone(&stop));
            let running = Arc::clone(&started);
            move || {
                // Relaxed: flags of this measurement, which order nothing else.
                while !stop.load(Ordering::Relaxed) {
                    trigger.fire();
                    running.store(true, Ordering::Relaxed);
                }
            }
        });
        while !started.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let begin = Instant::now();
        for _ in 0..times {
            vector ^= 1;
            let _ = machine.table.set_msi(GSI, &message(0, vector));
        }
        let took = begin.elapsed();
        stop.store(true, Ordering::Relaxed);
        firing.join().expect("the firing thread does not panic");
        took
    }))
}

/// Vectors brought up one by one: lent, given their message, unmasked.
pub fn vectors_up() -> Result<Work, String> {
    let machine = Machine::new(1);
    Ok(Box::new(move |times| {
        let mut slots = Vec::with_capacity(kernel::VECTORS as usize);
        (0..times).fold(Duration::ZERO, |sum, _| {
            let started = Instant::now();
            for vector in 0..kernel::VECTORS {
                let slot = machine.table.lease().expect("3,072 more are free");
                machine
                    .table
                    .set_message(slot, &message(0, 0x30 + (vector % 0xc0) as u8))
                    .expect("a message that the APICs take");
                machine.table.unmask(slot);
                slots.push(slot);
            }
            let took = started.elapsed();
            for slot in slots.drain(..) {
                machine.table.release(slot);
            }
            sum + took
        })
    }))
}

/// A vector of a device, which has a GSI once the guest has brought it up.
struct Vector {
    path: Arc<dyn VectorPath>,
    slot: Mutex<Option<VectorSlot>>,
}

impl Vector {
    fn up(&self, vector: u8) {
        let slot = self.path.lease().expect("as many are free");
        self.path.set_message(slot, &message(0, vector)).expect("a message that KVM takes");
        self.path.unmask(slot);
        *self.locked() = Some(slot);
    }

    fn down(&self) {
        if let Some(slot) = self.locked().take() {
            self.path.release(slot);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<VectorSlot>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Vector {
    fn signal(&self) -> Delivery {
        match self.slot().map(|slot| self.path.fire(slot)) {
            Some(SlotFire::Sent(delivery)) => delivery,
            Some(SlotFire::Pending) => Delivery::Coalesced,
            Some(SlotFire::Stale) | None => Delivery::Ignored,
        }
    }
}

impl VectorSource for Vector {
    fn slot(&self) -> Option<VectorSlot> {
        *self.locked()
    }
}

fn kvm_irqs() -> Result<KvmIrqs, String> {
    let options = KvmOptions::default().promotion(Promotion::Manual);
    KvmIrqs::full(kernel::new_vm()?, &X86_CHIPS, options).map_err(|error| error.to_string())
}

fn new_eventfd() -> Result<OwnedFd, String> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| error.to_string())
}

/// The same on the kernel's chips, for vectors whose eventfds were bound when their device was made: from then on a write
/// to any of them arrives.
pub fn vectors_up_on_kvm() -> Result<Work, String> {
    let irqs = kvm_irqs()?;
    let path = irqs.manager().vectors();
    let mut vectors = Vec::new();
    for number in 0..kernel::VECTORS {
        let vector = Arc::new(Vector { path: Arc::clone(&path), slot: Mutex::new(None) });
        let eventfd = new_eventfd()?;
        let irqfd = irqs.bind_vector(&eventfd, Arc::clone(&vector) as Arc<dyn VectorSource>);
        vectors.push((vector, 0x30 + (number % 0xc0) as u8, eventfd, irqfd.map_err(|error| error.to_string())?));
    }
    let last = vectors.last().map(|(vector, number, eventfd, _)| (Arc::clone(vector), *number, eventfd));
    if let Some((vector, number, eventfd)) = last {
        vector.up(number);
        rustix::io::write(eventfd, &1u64.to_ne_bytes()).map_err(|error| error.to_string())?;
        irqs.dispatcher().dispatch().map_err(|error| error.to_string())?;
        if irqs.vm().calls().signal_msi != 1 {
            return Err("a vector that is up was signalled, and no message was sent".into());
        }
        vector.down();
    }
    Ok(Box::new(move |times| {
        (0..times).fold(Duration::ZERO, |sum, _| {
            let started = Instant::now();
            for (vector, number, ..) in &vectors {
                vector.up(*number);
            }
            let took = started.elapsed();
            for (vector, ..) in &vectors {
                vector.down();
            }
            sum + took
        })
    }))
}

/// An eventfd bound to a vector on the kernel's chips, and unbound.
pub fn irqfd_bind() -> Result<Work, String> {
    let irqs = kvm_irqs()?;
    let path = irqs.manager().vectors();
    let vector = Arc::new(Vector { path, slot: Mutex::new(None) });
    let eventfd = new_eventfd()?;
    Ok(super::timed(move || irqs.bind_vector(&eventfd, Arc::clone(&vector) as Arc<dyn VectorSource>).map(drop)))
}
