//! Every strategy over every path, in one shape, for the tests that all of them must pass.

use std::sync::{Arc, Mutex};

use super::{
    InjectorMask, InjectorOptions, MaskStrategy, VectorEvent, VectorPool, WhileDisabled,
    fake_path::{FakePath, Log, TestPath},
    shared::{ProducerEvent, SharedMsix, SharedProducer},
};
use crate::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, Pins, SlotFire, Target, VectorPath, VectorSlot,
    delivery::ChipId,
    inflight::{BiasPermit, OwnerState},
    route::{Route, RouteEntry, RoutePolicy, RouteTable},
};

/// A strategy, a way for its events, and the path behind it.
pub(super) struct Rig {
    pub(super) strategy: Box<dyn MaskStrategy>,
    pub(super) path: Arc<dyn TestPath>,
    /// An event of a vector, from any thread.
    pub(super) fire: Arc<dyn Fn(u16) -> VectorEvent + Send + Sync>,
}

/// One of the functions below.
pub(super) type Make = fn(u16, WhileDisabled) -> Rig;

/// S5-A over the simplest path.
pub(super) fn fake(vectors: u16, while_disabled: WhileDisabled) -> Rig {
    beside(FakePath::new(4096), vectors, while_disabled)
}

/// S5-A over the routing table.
pub(super) fn table(vectors: u16, while_disabled: WhileDisabled) -> Rig {
    beside(TablePath::new(None), vectors, while_disabled)
}

/// S5-A over the routing table, with a single owner for each vector, who is granted the bias.
pub(super) fn biased(vectors: u16, while_disabled: WhileDisabled) -> Rig {
    let path: Arc<dyn TestPath> = TablePath::new(BiasPermit::request().ok());
    let strategy =
        InjectorMask::new(&VectorPool::new(path.clone()), vectors, InjectorOptions { while_disabled }).unwrap();
    let triggers: Vec<_> = (0..vectors).map(|vector| Mutex::new(strategy.trigger(vector).unwrap())).collect();
    let fire = Arc::new(move |vector: u16| triggers[usize::from(vector)].lock().unwrap().fire());
    Rig { strategy: Box::new(strategy), path, fire }
}

/// S5-A-shared, whose events come in the VMM.
pub(super) fn shared(vectors: u16, while_disabled: WhileDisabled) -> Rig {
    let path: Arc<dyn TestPath> = FakePath::new(4096);
    let strategy =
        SharedMsix::new(&VectorPool::new(path.clone()), vectors, InjectorOptions { while_disabled }).unwrap();
    let handles: Vec<_> = (0..vectors).map(|vector| strategy.vector(vector).unwrap()).collect();
    Rig { strategy: Box::new(strategy), path, fire: Arc::new(move |vector| handles[usize::from(vector)].fire()) }
}

/// S5-A-shared over the routing table, whose events come through a producer's own mapping of the memory.
pub(super) fn producer(vectors: u16, while_disabled: WhileDisabled) -> Rig {
    let path: Arc<dyn TestPath> = TablePath::new(None);
    let strategy =
        SharedMsix::new(&VectorPool::new(path.clone()), vectors, InjectorOptions { while_disabled }).unwrap();
    let handles: Vec<_> = (0..vectors).map(|vector| strategy.vector(vector).unwrap()).collect();
    let producer = SharedProducer::open(strategy.memory().try_clone_to_owned().unwrap()).unwrap();
    let fire = Arc::new(move |vector| match producer.signal(vector).unwrap() {
        ProducerEvent::Notify => handles[usize::from(vector)].fire(),
        ProducerEvent::Pending => VectorEvent::Pending,
        ProducerEvent::Dropped => VectorEvent::Dropped,
    });
    Rig { strategy: Box::new(strategy), path, fire }
}

fn beside(path: Arc<dyn TestPath>, vectors: u16, while_disabled: WhileDisabled) -> Rig {
    let strategy =
        InjectorMask::new(&VectorPool::new(path.clone()), vectors, InjectorOptions { while_disabled }).unwrap();
    let handles: Vec<_> = (0..vectors).map(|vector| strategy.vector(vector).unwrap()).collect();
    Rig { strategy: Box::new(strategy), path, fire: Arc::new(move |vector| handles[usize::from(vector)].fire()) }
}

/// Where the table's messages end: remembers them, resolved or not.
#[derive(Default)]
struct Sink {
    prepared: Mutex<Vec<MsiMessage>>,
    log: Mutex<Log>,
}

impl MsiTarget for Sink {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.log.lock().unwrap().push(*message);
        Ok(Delivery::Delivered(1))
    }

    /// Odd data goes the slow way, even data is resolved.
    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let mut prepared = self.prepared.lock().unwrap();
        let at = prepared.iter().position(|known| known == message).unwrap_or_else(|| {
            prepared.push(*message);
            prepared.len() - 1
        });
        Target::new(at as u32).filter(|_| message.data % 2 == 0)
    }

    fn fire(&self, target: Target) -> Delivery {
        let message = self.prepared.lock().unwrap()[target.bits() as usize];
        self.log.lock().unwrap().push(message);
        Delivery::Delivered(1)
    }
}

impl PinInput for Sink {
    fn pins(&self, _: ChipId) -> u16 {
        0
    }

    fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
        Delivery::Ignored
    }

    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

/// The routing table as a path whose outcome can be seen.
pub(super) struct TablePath {
    sink: Arc<Sink>,
    table: RouteTable,
}

impl TablePath {
    pub(super) fn new(bias: Option<BiasPermit>) -> Arc<Self> {
        let sink = Arc::new(Sink::default());
        let table = RouteTable::with_bias(sink.clone(), sink.clone(), RoutePolicy::S2_TABLE, bias);
        Arc::new(Self { sink, table })
    }

    /// A table that has only this many GSIs to lend: the others are routed.
    pub(super) fn limited(gsis: u32) -> Arc<Self> {
        let path = Self::new(None);
        let route = |gsi| RouteEntry { gsi, route: Route::Msi(MsiMessage::new(0, 0)) };
        path.table.set(&(gsis..RouteTable::GSIS).map(route).collect::<Vec<_>>()).unwrap();
        path
    }
}

impl TestPath for TablePath {
    fn take_sent(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.sink.log.lock().unwrap().sent)
    }

    fn lent(&self) -> usize {
        self.table.lent() as usize
    }

    fn watch(&self, watch: Box<dyn FnMut(MsiMessage) + Send>) {
        self.sink.log.lock().unwrap().watch = Some(watch);
    }
}

impl VectorPath for TablePath {
    fn lease(&self) -> Result<VectorSlot, Error> {
        self.table.lease()
    }

    fn release(&self, slot: VectorSlot) -> bool {
        self.table.release(slot)
    }

    fn reclaim(&self, slot: VectorSlot) -> Option<bool> {
        self.table.reclaim(slot)
    }

    fn is_current(&self, slot: VectorSlot) -> bool {
        self.table.is_current(slot)
    }

    fn set_message(&self, slot: VectorSlot, message: &MsiMessage) -> Result<(), Error> {
        self.table.set_message(slot, message)
    }

    fn set_messages(&self, batch: &[(VectorSlot, MsiMessage)]) -> Result<(), Error> {
        self.table.set_messages(batch)
    }

    fn mask(&self, slot: VectorSlot) {
        VectorPath::mask(&self.table, slot);
    }

    fn unmask(&self, slot: VectorSlot) -> Option<Delivery> {
        VectorPath::unmask(&self.table, slot)
    }

    fn is_pending(&self, slot: VectorSlot) -> bool {
        VectorPath::is_pending(&self.table, slot)
    }

    fn fire(&self, slot: VectorSlot) -> SlotFire {
        VectorPath::fire(&self.table, slot)
    }

    fn own(&self, slot: VectorSlot) -> Option<OwnerState> {
        VectorPath::own(&self.table, slot)
    }

    fn fire_owned(&self, slot: VectorSlot, owner: &mut OwnerState) -> SlotFire {
        VectorPath::fire_owned(&self.table, slot, owner)
    }

    fn disown(&self, slot: VectorSlot, owner: OwnerState) {
        VectorPath::disown(&self.table, slot, owner);
    }
}
