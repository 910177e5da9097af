//! The machine that the rows use: local APICs, a route table in front of them, and vCPUs that this thread plays.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use doorbell::{
    MsiMessage, MsiTarget, VcpuId,
    chips::x86::lapic::{ApicOptions, ApicSet, LocalApic},
    inflight::BiasPermit,
    route::{NoPins, Route, RouteEntry, RoutePolicy, RouteTable},
};

use super::Work;

/// The first vector that is used; those below 16 are illegal, those below 32 exceptions.
pub const FIRST_VECTOR: u8 = 0x30;
/// So many events are fired between two tidyings-up, which are not timed.
pub const ROUND: u8 = 128;

/// A machine.
pub struct Machine {
    /// The half of the local APICs that anyone may send to.
    pub apics: Arc<ApicSet>,
    /// The halves of the vCPUs, enabled.
    pub cpus: Vec<LocalApic>,
    /// The routes.
    pub table: Arc<RouteTable>,
}

impl Machine {
    /// A machine with so many vCPUs and no pins. Single owners get the bias, where the kernel has `membarrier`.
    pub fn new(vcpus: u32) -> Self {
        Self::behind(vcpus, |apics| apics)
    }

    /// The same with a station between routes and local APICs.
    pub fn behind(vcpus: u32, station: impl FnOnce(Arc<dyn MsiTarget>) -> Arc<dyn MsiTarget>) -> Self {
        let kicked = AtomicBool::new(false);
        // An embedder's kick at its cheapest. Relaxed: nothing is ordered by it.
        let kick = move |_: VcpuId| kicked.store(true, Ordering::Relaxed);
        let apics = ApicSet::new(vcpus, Arc::new(kick), ApicOptions::default());
        let cpus = (0..vcpus).map(|vcpu| enabled(&apics, vcpu)).collect();
        let target = station(apics.clone());
        let bias = BiasPermit::request().ok();
        let table = RouteTable::with_bias(target, Arc::new(NoPins), RoutePolicy::default(), bias);
        Self { apics, cpus, table: Arc::new(table) }
    }

    /// Gives the first GSIs these messages.
    pub fn route(&self, messages: impl Iterator<Item = MsiMessage>) -> Result<(), String> {
        let entries: Vec<_> =
            (0..).zip(messages).map(|(gsi, message)| RouteEntry { gsi, route: Route::Msi(message) }).collect();
        self.table.set(&entries).map_err(|error| error.to_string())
    }
}

fn enabled(apics: &Arc<ApicSet>, vcpu: u32) -> LocalApic {
    let mut cpu = apics.local(VcpuId(vcpu)).expect("each half is taken once");
    // Spurious vector register: software enable.
    cpu.write(0xf0, 0x1ff);
    cpu
}

/// The message for a vector of a vCPU, by its physical id.
pub fn message(vcpu: u8, vector: u8) -> MsiMessage {
    MsiMessage::new(0xfee0_0000 | u64::from(vcpu) << 12, vector.into())
}

/// Takes and ends all that is pending.
pub fn drain(cpu: &mut LocalApic) {
    while cpu.acknowledge().is_some() {
        cpu.eoi();
    }
}

/// Work in rounds: `fire` does so many operations, `tidy` is not timed.
pub fn in_rounds<S: 'static>(mut state: S, fire: fn(&mut S, usize), tidy: fn(&mut S)) -> Work {
    Box::new(move |times| {
        let mut left = times;
        let mut took = Duration::ZERO;
        while left > 0 {
            let now = left.min(ROUND.into());
            let started = Instant::now();
            fire(&mut state, now as usize);
            took += started.elapsed();
            tidy(&mut state);
            left -= now;
        }
        took
    })
}
