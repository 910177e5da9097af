//! KVM's accounting of the real-time clock's interrupt: who has yet to end it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Delivery, MsiMessage, VcpuId};

/// The clock's pin.
pub const PIN: usize = 8;

/// What the accounting needs to know about the local APICs.
pub trait RtcTargets: Send + Sync {
    /// Calls `each` with every CPU that would put this message in its IRR if it were sent now.
    fn takers(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId));

    /// Calls `each` with every CPU that the message's destination names, even if its APIC is disabled.
    fn matches(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId));
}

/// The accounting. Every call but [`recount`](Self::recount) is made by the holder of the clock's pin.
pub struct Rtc {
    targets: Arc<dyn RtcTargets>,
    /// In the lock order after the pin; nothing is called while it is held.
    account: Mutex<Account>,
}

#[derive(Default)]
struct Account {
    /// How many ends are missing. As in KVM, more than there are takers after an NMI, which nobody ends.
    missing: u32,
    /// Which CPUs have yet to end which vector.
    takers: Vec<(VcpuId, u8)>,
}

impl Account {
    fn clear(&mut self, taker: usize) {
        self.takers.swap_remove(taker);
        self.missing = self.missing.saturating_sub(1);
    }
}

impl Rtc {
    pub fn new(targets: Arc<dyn RtcTargets>) -> Self {
        Self { targets, account: Mutex::default() }
    }

    pub fn is_pending(&self) -> bool {
        self.account.lock().missing != 0
    }

    pub fn forget(&self) {
        *self.account.lock() = Account::default();
    }

    /// The clock's message is about to be sent.
    pub fn sends(&self, message: &MsiMessage, vector: u8) {
        let mut takers = Vec::new();
        self.targets.takers(message, &mut |vcpu| takers.push((vcpu, vector)));
        self.account.lock().takers = takers;
    }

    /// It was sent.
    pub fn sent(&self, delivery: Delivery) {
        self.account.lock().missing = if let Delivery::Delivered(taken) = delivery { taken } else { 0 };
    }

    pub fn ended(&self, vcpu: VcpuId, vector: u8) {
        let mut account = self.account.lock();
        if let Some(taker) = account.takers.iter().position(|&taker| taker == (vcpu, vector)) {
            account.clear(taker);
        }
    }

    /// `holds` says whether a CPU has the vector, or `None` if it is not to be looked at.
    pub fn recount(&self, message: &MsiMessage, vector: u8, mut holds: impl FnMut(VcpuId) -> Option<bool>) {
        let mut matches = Vec::new();
        self.targets.matches(message, &mut |vcpu| matches.extend(holds(vcpu).map(|holds| (vcpu, holds))));
        let mut account = self.account.lock();
        for (vcpu, holds) in matches {
            match (holds, account.takers.iter().position(|taker| taker.0 == vcpu)) {
                (true, None) => {
                    account.takers.push((vcpu, vector));
                    account.missing += 1;
                }
                (false, Some(taker)) => account.clear(taker),
                _ => {}
            }
        }
    }
}
