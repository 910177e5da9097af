//! Any bytes as guest accesses to an MSI-X table, its PBA and its capability, with events in between, against a model.
#![no_main]

use std::sync::{Arc, Mutex};

use doorbell::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput, Pins, Target,
    delivery::ChipId,
    pci::msix::program::run_beside_injector,
    route::{RoutePolicy, RouteTable},
};
use libfuzzer_sys::fuzz_target;

/// A controller that remembers what it was sent.
#[derive(Default)]
struct Log(Mutex<Vec<MsiMessage>>);

impl MsiTarget for Log {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.lock().unwrap().push(*message);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

impl PinInput for Log {
    fn pins(&self, _: ChipId) -> u16 {
        0
    }

    fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
        Delivery::Ignored
    }

    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

fuzz_target!(|program: &[u8]| {
    let log = Arc::new(Log::default());
    let path = Arc::new(RouteTable::new(log.clone(), log.clone(), RoutePolicy::S2_TABLE));
    run_beside_injector(&path, &mut || std::mem::take(&mut log.0.lock().unwrap()), program);
    assert_eq!(path.lent(), 0, "GSIs that were not given back");
});
