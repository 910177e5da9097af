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
    VectorPath,
    route::{RouteTable, SharedTrigger},
};

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
