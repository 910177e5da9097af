//! KVM's accounting of the real-time clock's interrupt: who has yet to end it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{MsiMessage, VcpuId};

/// The clock's pin.
pub const PIN: usize = 8;

/// What the accounting needs to know about the local APICs.
pub trait RtcTargets: Send + Sync {
    /// Calls `each` with every CPU that would take this message if it were sent now.
    fn takers(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId));

    /// Calls `each` with every CPU that the message's destination names, whether it takes interrupts or not.
    fn matches(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId));
}

/// Which CPUs have yet to end which vector.
pub struct Rtc {
    targets: Arc<dyn RtcTargets>,
    /// In the lock order after the pin; nothing is called while it is held.
    waits_for: Mutex<Vec<(VcpuId, u8)>>,
}

impl Rtc {
    pub fn new(targets: Arc<dyn RtcTargets>) -> Self {
        Self { targets, waits_for: Mutex::new(Vec::new()) }
    }

    pub fn is_pending(&self) -> bool {
        !self.waits_for.lock().is_empty()
    }

    pub fn forget(&self) {
        self.waits_for.lock().clear();
    }

    /// To be called before the message is sent: a CPU may end it at once.
    pub fn sent(&self, message: &MsiMessage, vector: u8) {
        let mut takers = Vec::new();
        self.targets.takers(message, &mut |vcpu| takers.push((vcpu, vector)));
        *self.waits_for.lock() = takers;
    }

    pub fn ended(&self, vcpu: VcpuId, vector: u8) {
        self.waits_for.lock().retain(|&waits| waits != (vcpu, vector));
    }

    pub fn recount(&self, message: &MsiMessage, vector: u8, mut pending: impl FnMut(VcpuId, u8) -> bool) {
        let mut matches = Vec::new();
        self.targets.matches(message, &mut |vcpu| matches.push(vcpu));
        let mut waits_for = self.waits_for.lock();
        for vcpu in matches {
            let holds = pending(vcpu, vector);
            let known = waits_for.iter().position(|waits| waits.0 == vcpu);
            match (holds, known) {
                (true, None) => waits_for.push((vcpu, vector)),
                (false, Some(at)) => {
                    waits_for.swap_remove(at);
                }
                _ => {}
            }
        }
    }
}
