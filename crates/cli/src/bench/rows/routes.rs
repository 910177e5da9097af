//! Routes changed, and vectors brought up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use doorbell::{
    MsiMessage, VectorPath,
    route::{NoPins, Route, RouteEntry, RoutePolicy, RouteTable, SharedTrigger},
};

use super::{Work, kernel, machine::Sink};

/// The GSI whose route changes.
const GSI: u32 = 100;

fn message(vector: u32) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, vector)
}

/// A table with a message for every GSI.
fn full_table() -> Result<Arc<RouteTable>, String> {
    let table = RouteTable::new(Sink::target(), Arc::new(NoPins), RoutePolicy::default());
    let entries: Vec<_> =
        (0..RouteTable::GSIS).map(|gsi| RouteEntry { gsi, route: Route::Msi(message(0x41)) }).collect();
    table.set(&entries).map_err(|error| error.to_string())?;
    Ok(Arc::new(table))
}

/// One route changed; its source says nothing meanwhile.
pub fn update_idle() -> Result<Work, String> {
    let table = full_table()?;
    let mut vector = 0x41;
    Ok(super::timed(move || {
        vector ^= 1;
        table.set_msi(GSI, &message(vector))
    }))
}

/// One route changed while another thread fires it without a pause.
pub fn update_firing() -> Result<Work, String> {
    let table = full_table()?;
    let mut vector = 0x41;
    Ok(Box::new(move |times| {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Arc::new(AtomicBool::new(false));
        let firing = thread::spawn({
            let (trigger, stop) = (SharedTrigger::new(Arc::clone(&table), GSI), Arc::clone(&stop));
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
            let _ = table.set_msi(GSI, &message(vector));
        }
        let took = begin.elapsed();
        stop.store(true, Ordering::Relaxed);
        firing.join().expect("the firing thread does not panic");
        took
    }))
}

/// Vectors brought up one by one: lent, given their message, unmasked.
pub fn vectors_up() -> Result<Work, String> {
    let table = RouteTable::new(Sink::target(), Arc::new(NoPins), RoutePolicy::default());
    Ok(Box::new(move |times| {
        let mut slots = Vec::with_capacity(kernel::VECTORS as usize);
        (0..times).fold(Duration::ZERO, |sum, _| {
            let started = Instant::now();
            for vector in 0..kernel::VECTORS {
                let slot = table.lease().expect("3,072 more are free");
                table.set_message(slot, &message(0x30 + vector % 0xc0)).expect("a message that the APICs take");
                table.unmask(slot);
                slots.push(slot);
            }
            let took = started.elapsed();
            for slot in slots.drain(..) {
                table.release(slot);
            }
            sum + took
        })
    }))
}
