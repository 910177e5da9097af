//! A [`VectorPath`] for tests: one mutex, a log of what was sent, a limit of GSIs.

use std::{collections::BTreeMap, ops::DerefMut, sync::Arc};

use crate::{Delivery, Error, MsiMessage, SlotFire, VectorPath, VectorSlot, inflight::OwnerState, sync::Mutex};

#[derive(Default)]
struct Gsi {
    tag: u32,
    message: Option<MsiMessage>,
    masked: bool,
    pending: bool,
}

#[derive(Default)]
struct State {
    /// Those on loan, by number.
    gsis: BTreeMap<u32, Gsi>,
    limit: u32,
    last_tag: u32,
    sent: Log,
    commits: usize,
    refuse: Option<u64>,
}

/// A path whose outcome a test can see.
pub(super) trait TestPath: VectorPath {
    /// What was sent since the last call.
    fn take_sent(&self) -> Vec<MsiMessage>;

    /// How many GSIs are on loan.
    fn lent(&self) -> usize;

    /// Calls `watch` for each message instead of keeping it.
    #[cfg(not(loom))]
    fn watch(&self, watch: Box<dyn FnMut(MsiMessage) + Send>);
}

/// What was sent, or who is told of it.
#[derive(Default)]
pub(super) struct Log {
    pub(super) sent: Vec<MsiMessage>,
    pub(super) watch: Option<Box<dyn FnMut(MsiMessage) + Send>>,
}

impl Log {
    pub(super) fn push(&mut self, message: MsiMessage) {
        match &mut self.watch {
            Some(watch) => watch(message),
            None => self.sent.push(message),
        }
    }
}

impl TestPath for FakePath {
    fn take_sent(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.state().sent.sent)
    }

    fn lent(&self) -> usize {
        self.state().gsis.len()
    }

    #[cfg(not(loom))]
    fn watch(&self, watch: Box<dyn FnMut(MsiMessage) + Send>) {
        self.state().sent.watch = Some(watch);
    }
}

/// See the module.
pub(super) struct FakePath {
    state: Mutex<State>,
    reclaims: bool,
}

impl FakePath {
    /// A path with this many GSIs.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { limit, ..State::default() }), reclaims: true })
    }

    /// The same without [`VectorPath::reclaim`].
    #[cfg(not(loom))]
    pub(super) fn without_reclaim(limit: u32) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { limit, ..State::default() }), reclaims: false })
    }

    fn state(&self) -> impl DerefMut<Target = State> {
        self.state.lock()
    }

    /// How many calls of `set_message` and `set_messages` there were.
    pub(super) fn commits(&self) -> usize {
        self.state().commits
    }

    /// Refuses messages to this address from now on.
    #[cfg(not(loom))]
    pub(super) fn refuse(&self, address: Option<u64>) {
        self.state().refuse = address;
    }

    fn with<T>(&self, slot: VectorSlot, act: impl FnOnce(&mut Gsi, &mut Log) -> T) -> Option<T> {
        let state = &mut *self.state();
        let gsi = state.gsis.get_mut(&slot.gsi).filter(|gsi| gsi.tag == slot.tag)?;
        Some(act(gsi, &mut state.sent))
    }
}

fn send(gsi: &Gsi, log: &mut Log) -> Delivery {
    match gsi.message {
        Some(message) => {
            log.push(message);
            Delivery::Delivered(1)
        }
        None => panic!("an event met a GSI without a message: it is lost"),
    }
}

impl VectorPath for FakePath {
    fn lease(&self) -> Result<VectorSlot, Error> {
        let state = &mut *self.state();
        let free = (0..state.limit).find(|gsi| !state.gsis.contains_key(gsi)).ok_or(Error::NoFreeGsi(state.limit))?;
        state.last_tag += 1;
        let gsi = Gsi { tag: state.last_tag, message: None, masked: true, pending: false };
        state.gsis.insert(free, gsi);
        Ok(VectorSlot { gsi: free, tag: state.last_tag })
    }

    fn release(&self, slot: VectorSlot) -> bool {
        match self.with(slot, |gsi, _| gsi.pending) {
            Some(pending) => {
                self.state().gsis.remove(&slot.gsi);
                pending
            }
            None => false,
        }
    }

    fn reclaim(&self, slot: VectorSlot) -> Option<bool> {
        let state = &mut *self.state();
        let gsi = state.gsis.get(&slot.gsi).filter(|gsi| self.reclaims && gsi.tag == slot.tag && gsi.masked)?;
        let pending = gsi.pending;
        state.gsis.remove(&slot.gsi);
        Some(pending)
    }

    fn is_current(&self, slot: VectorSlot) -> bool {
        self.with(slot, |_, _| ()).is_some()
    }

    fn set_message(&self, slot: VectorSlot, message: &MsiMessage) -> Result<(), Error> {
        let refused = || Error::Invalid { what: "address", value: message.address, allowed: "another" };
        let mut state = self.state();
        state.commits += 1;
        if state.refuse == Some(message.address) {
            return Err(refused());
        }
        drop(state);
        self.with(slot, |gsi, _| gsi.message = Some(*message)).ok_or_else(refused)
    }

    fn set_messages(&self, batch: &[(VectorSlot, MsiMessage)]) -> Result<(), Error> {
        let before = self.commits();
        let refused = self.state().refuse;
        if let Some((_, message)) = batch.iter().find(|(_, message)| refused == Some(message.address)) {
            return Err(Error::Invalid { what: "address", value: message.address, allowed: "another" });
        }
        batch.iter().try_for_each(|(slot, message)| self.set_message(*slot, message))?;
        self.state().commits = before + 1;
        Ok(())
    }

    fn mask(&self, slot: VectorSlot) {
        self.with(slot, |gsi, _| gsi.masked = true);
    }

    fn unmask(&self, slot: VectorSlot) -> Option<Delivery> {
        self.with(slot, |gsi, sent| {
            gsi.masked = false;
            std::mem::take(&mut gsi.pending).then(|| send(gsi, sent))
        })?
    }

    fn is_pending(&self, slot: VectorSlot) -> bool {
        self.with(slot, |gsi, _| gsi.pending).unwrap_or(false)
    }

    fn fire(&self, slot: VectorSlot) -> SlotFire {
        self.with(slot, |gsi, sent| {
            if gsi.masked {
                gsi.pending = true;
                SlotFire::Pending
            } else {
                SlotFire::Sent(send(gsi, sent))
            }
        })
        .unwrap_or(SlotFire::Stale)
    }

    fn own(&self, _: VectorSlot) -> Option<OwnerState> {
        None
    }

    fn fire_owned(&self, slot: VectorSlot, _: &mut OwnerState) -> SlotFire {
        self.fire(slot)
    }

    fn disown(&self, _: VectorSlot, _: OwnerState) {}
}
